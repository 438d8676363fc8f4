//! Reading how pairs are carried.

use std::str::FromStr;

use crate::{desired::UnknownWord, net::relay::Splice};

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
