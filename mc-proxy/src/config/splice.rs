//! How bytes of established pairs are moved.

use std::str::FromStr;

use crate::desired::UnknownWord;

/// `proxy.splice`, and `splice` of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Splice {
    /// What is measured to be best for what the pair does.
    #[default]
    Auto,
    /// In the kernel wherever it can be.
    Sockmap,
    /// Never in the kernel.
    Userspace,
}

impl Splice {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Sockmap => "sockmap",
            Self::Userspace => "userspace",
        }
    }
}

impl FromStr for Splice {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "auto" => Ok(Self::Auto),
            "sockmap" => Ok(Self::Sockmap),
            "userspace" => Ok(Self::Userspace),
            _ => Err(UnknownWord { given: word.to_owned(), expected: "\"auto\", \"sockmap\", \"userspace\"" }),
        }
    }
}
