//! Names under which rules are kept, counted and replaced together.

use std::{fmt, str::FromStr};

use super::RuleError;

/// Longest name, in bytes.
const MAX_BYTES: usize = 31;

/// The name of a group: `[a-z0-9][a-z0-9._/-]{0,30}`. Sorted as text.
// The bytes behind the name are zero, so that the derived order is that of the names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group([u8; MAX_BYTES], u8);

impl Group {
    /// What a rule without a group is in.
    pub const DEFAULT: Self = Self::literal("default");

    /// Groups below this name are the daemon's own.
    const AUTOMATIC: &str = "auto/";

    /// A name that is known to be valid at compile time.
    ///
    /// # Panics
    /// On any other; in a constant that is a compile error.
    pub const fn literal(name: &str) -> Self {
        match Self::parse(name.as_bytes()) {
            Some(group) => group,
            None => panic!("not the name of a group"),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let name = self.0.get(..usize::from(self.1)).unwrap_or_default();
        std::str::from_utf8(name).expect("names are ASCII")
    }

    /// Whether its rules are the daemon's own bans, and not an operator's.
    pub fn is_automatic(&self) -> bool {
        self.as_str().starts_with(Self::AUTOMATIC)
    }

    const fn parse(name: &[u8]) -> Option<Self> {
        if name.is_empty() || name.len() > MAX_BYTES {
            return None;
        }
        let mut bytes = [0; MAX_BYTES];
        let mut at = 0;
        while at < name.len() {
            match name[at] {
                b'a'..=b'z' | b'0'..=b'9' => {}
                b'.' | b'_' | b'/' | b'-' if at > 0 => {}
                _ => return None,
            }
            bytes[at] = name[at];
            at += 1;
        }
        Some(Self(bytes, name.len() as u8))
    }
}

impl Default for Group {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl FromStr for Group {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        Self::parse(text.as_bytes()).ok_or_else(|| RuleError::Group(text.to_owned()))
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({:?})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_name() {
        let long = "a".repeat(32);
        for text in ["", " ", "A", "-a", ".a", "/a", "_a", "a b", "ä", "a\0", "a:b", &long] {
            let error = text.parse::<Group>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("\"{text}\" is not a group; write 1 to 31 of")), "{error}");
        }
        assert_eq!(Group::DEFAULT.to_string(), "default");
        assert!(Group::literal("auto/rate").is_automatic());
        assert!(!Group::literal("automatic").is_automatic());
    }

    proptest! {
        #[test]
        fn names_are_read_back_and_sorted_as_text(a in "[a-z0-9][a-z0-9._/-]{0,30}", b in "[a-z0-9][a-z0-9._/-]{0,30}") {
            let (group, other): (Group, Group) = (a.parse().unwrap(), b.parse().unwrap());
            prop_assert_eq!(group.to_string(), a.clone());
            prop_assert_eq!(group.cmp(&other), a.cmp(&b));
        }
    }
}
