//! Names of application protocols (RFC 7301) as routes list them.

use std::fmt;

/// Names in the list of one route.
pub const MAX_NAMES: usize = 32;

/// Why a text is not a name that a route can list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AlpnError {
    /// Not 1 to 255 bytes, which is what a ClientHello can carry.
    #[error("is not 1 to 255 bytes long")]
    Length,
    /// Other bytes may be in a ClientHello, and no registered protocol has them: a comma separates names, and what is not
    /// visible cannot be compared by people.
    #[error("has a character that is not visible ASCII, or a comma")]
    Character,
    /// More than [`MAX_NAMES`].
    #[error("lists more than 32 names")]
    TooMany,
}

/// Checks one name.
///
/// # Errors
/// See [`AlpnError`].
pub fn check_name(name: &str) -> Result<(), AlpnError> {
    if !(1..=255).contains(&name.len()) {
        return Err(AlpnError::Length);
    }
    if name.bytes().all(|b| b.is_ascii_graphic() && b != b',') { Ok(()) } else { Err(AlpnError::Character) }
}

/// The one spelling of a set of names: sorted, each of them once.
pub fn canonical(mut names: Vec<String>) -> Vec<String> {
    names.sort_unstable();
    names.dedup();
    names
}

/// Reads `h2,http/1.1`, in any order; an empty text lists nothing.
///
/// # Errors
/// See [`AlpnError`].
pub fn parse_list(text: &str) -> Result<Vec<String>, AlpnError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let names = canonical(text.split(',').map(str::to_owned).collect());
    names.iter().try_for_each(|name| check_name(name))?;
    if names.len() > MAX_NAMES { Err(AlpnError::TooMany) } else { Ok(names) }
}

/// Displays a list as [`parse_list`] reads it.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a>(pub &'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling() {
        for (text, canonical) in
            [("", ""), ("h2", "h2"), ("http/1.1,h2", "h2,http/1.1"), ("h2,h2", "h2"), ("acme-tls/1", "acme-tls/1")]
        {
            let names = parse_list(text).unwrap();
            assert_eq!(Listed(&names).to_string(), canonical, "{text}");
            assert_eq!(parse_list(canonical).unwrap(), names);
        }
    }

    #[test]
    fn what_is_no_name() {
        let long = "x".repeat(256);
        for (text, error) in [
            (",", AlpnError::Length),
            ("h2,", AlpnError::Length),
            (long.as_str(), AlpnError::Length),
            ("h 2", AlpnError::Character),
            ("h2, http/1.1", AlpnError::Character),
            ("h\0", AlpnError::Character),
            ("é", AlpnError::Character),
        ] {
            assert_eq!(parse_list(text), Err(error), "{text:?}");
        }
        assert!(parse_list(&long[1..]).is_ok());
        let many = (0..=MAX_NAMES).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        assert_eq!(parse_list(&many), Err(AlpnError::TooMany));
    }
}
