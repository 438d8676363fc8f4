//! Whether descriptors run short, known from a number: the kernel gives out the lowest that is free, so one that is high
//! means that all below it are in use.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, RawFd},
};

use rustix::{
    io::fcntl_dupfd_cloexec,
    process::{Resource, getrlimit},
};

/// Connections are accepted as long as they leave this part of the descriptors for others: for backends, pipes, the
/// database.
const HEADROOM_SHARE: u64 = 32;

/// Fewer are no headroom.
const HEADROOM_MIN: u64 = 16;

/// The number from which on no more connections are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HighWater(RawFd);

impl HighWater {
    /// For the limit that the process has now (`RLIMIT_NOFILE`).
    pub fn of_process() -> Self {
        Self::of_limit(getrlimit(Resource::Nofile).current)
    }

    fn of_limit(limit: Option<u64>) -> Self {
        let limit = limit.unwrap_or(u64::MAX);
        let high = limit.saturating_sub((limit / HEADROOM_SHARE).max(HEADROOM_MIN));
        Self(RawFd::try_from(high).unwrap_or(RawFd::MAX))
    }

    /// Whether a descriptor that has just been made is one that should have been left for others.
    pub fn is_reached_by(self, newest: impl AsFd) -> bool {
        newest.as_fd().as_raw_fd() >= self.0
    }

    /// Makes a descriptor, a copy of `any`, to see what number it gets.
    pub fn is_reached(self, any: impl AsFd) -> bool {
        match fcntl_dupfd_cloexec(any, 0) {
            Ok(copy) => self.is_reached_by(&copy),
            Err(_) => true,
        }
    }
}

/// What is told when it is reached.
pub fn shortage() -> io::Error {
    io::Error::other("nearly all descriptors are in use; raise LimitNOFILE")
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_part_is_left() {
        for (limit, high) in [
            (Some(1_048_576), 1_015_808),
            (Some(1024), 992),
            (Some(100), 84),
            (Some(10), 0),
            (Some(u64::MAX), RawFd::MAX),
            (None, RawFd::MAX),
        ] {
            assert_eq!(HighWater::of_limit(limit), HighWater(high));
        }
    }

    #[test]
    fn a_number_tells() {
        let file = File::open("/dev/null").unwrap();
        assert!(HighWater(0).is_reached(&file) && HighWater(0).is_reached_by(&file));
        assert!(!HighWater(1_000_000).is_reached(&file) && !HighWater(1_000_000).is_reached_by(&file));
    }
}
