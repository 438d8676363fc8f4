//! The hostname of a route: exact, or a wildcard.

use std::{fmt, str::FromStr};

use crate::tls::{ServerName, ServerNameError};

/// What a route's `hostname` matches. Displays as the canonical text (`app.example.com`, `*.example.com`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pattern {
    /// This name only.
    Exact(ServerName),
    /// `*.example.com`: every name below the suffix, one label or more (`a.example.com`, `a.b.example.com`), not
    /// the suffix itself.
    Wildcard(ServerName),
}

/// Why a text is not a [`Pattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A `*` that is not the whole first label.
    #[error("a wildcard is \"*.\" followed by a name, such as \"*.example.com\"")]
    Wildcard,
    /// The name, or what follows `*.`, is not a DNS name.
    #[error(transparent)]
    Name(#[from] ServerNameError),
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (rest, is_wildcard) = match text.strip_prefix("*.") {
            Some(suffix) => (suffix, true),
            None => (text, false),
        };
        if rest.contains('*') {
            return Err(PatternError::Wildcard);
        }
        let name = rest.parse::<ServerName>()?;
        Ok(if is_wildcard { Self::Wildcard(name) } else { Self::Exact(name) })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_text() {
        for (text, canonical) in [
            ("app.example.com", "app.example.com"),
            ("App.Example.COM.", "app.example.com"),
            ("*.example.com", "*.example.com"),
            ("*.Example.com.", "*.example.com"),
            ("*.com", "*.com"),
            ("_a.example", "_a.example"),
        ] {
            let pattern = text.parse::<Pattern>().unwrap();
            assert_eq!(pattern.to_string(), canonical, "{text}");
            assert_eq!(canonical.parse::<Pattern>().unwrap(), pattern, "{text}");
        }
    }

    #[test]
    fn a_star_is_the_whole_first_label() {
        for text in ["*", "*example.com", "*a.example.com", "a.*.example.com", "*.*.example.com", "a.*", "**.a"] {
            assert_eq!(text.parse::<Pattern>(), Err(PatternError::Wildcard), "{text}");
        }
    }

    #[test]
    fn what_follows_the_star_is_a_name() {
        for (text, error) in [
            ("", ServerNameError::Empty),
            ("*.", ServerNameError::Empty),
            ("*..", ServerNameError::Empty),
            ("*..com", ServerNameError::NotDns),
            ("*.192.0.2.1", ServerNameError::IpLiteral),
            ("192.0.2.1", ServerNameError::IpLiteral),
            ("*.a\0", ServerNameError::Nul),
            ("a b", ServerNameError::NotDns),
        ] {
            assert_eq!(text.parse::<Pattern>(), Err(PatternError::Name(error)), "{text:?}");
        }
    }
}
