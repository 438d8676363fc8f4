//! Exit codes of both programs: those of sysexits(3), under the names that systemd gives them.

use std::process::ExitCode;

/// How a program ends. A unit file can name these: `RestartPreventExitStatus=77 78`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Refused or failed; stderr says why.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The daemon cannot be reached.
    Unavailable = 69,
    /// A defect of the program itself.
    Internal = 70,
    /// No answer in time; the same command may succeed later.
    TryLater = 75,
    /// A capability or a permission is missing.
    NoPermission = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_sysexits() {
        let codes = [
            (Exit::Success, 0),
            (Exit::Failure, 1),
            (Exit::Usage, 2),
            (Exit::Unavailable, 69),
            (Exit::Internal, 70),
            (Exit::TryLater, 75),
            (Exit::NoPermission, 77),
            (Exit::Config, 78),
        ];
        for (exit, code) in codes {
            assert_eq!(exit as u8, code, "{exit:?}");
        }
    }
}
