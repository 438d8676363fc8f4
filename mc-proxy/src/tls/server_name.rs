//! The name that a ClientHello asks for, in the one form in which names are compared.

use std::{borrow::Borrow, fmt, net::Ipv4Addr, str::FromStr};

/// A DNS name from SNI (RFC 6066 §3) or from a route: ASCII lower case, without a trailing dot, 1–253 bytes of
/// letters, digits, `-`, `_` and `.`, with labels of 1–63 bytes. Never an IP literal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerName(Box<str>);

/// Why bytes are not a [`ServerName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ServerNameError {
    /// Nothing, or nothing but a dot.
    #[error("the name is empty")]
    Empty,
    /// A NUL: what a C string would cut the name at.
    #[error("the name contains a NUL byte")]
    Nul,
    /// RFC 6066 §3 forbids literal addresses.
    #[error("the name is an IP address")]
    IpLiteral,
    /// Longer than 253 bytes, an empty or overlong label, or a byte that host names do not have.
    #[error("the name is not a DNS host name")]
    NotDns,
}

impl ServerName {
    /// Parses the bytes of a `host_name`, folding case and dropping one trailing dot.
    ///
    /// # Errors
    /// When the bytes are not a DNS name.
    pub fn parse(bytes: &[u8]) -> Result<Self, ServerNameError> {
        if bytes.contains(&0) {
            return Err(ServerNameError::Nul);
        }
        let name = bytes.strip_suffix(b".").unwrap_or(bytes);
        if name.is_empty() {
            return Err(ServerNameError::Empty);
        }
        if is_ip_literal(name) {
            return Err(ServerNameError::IpLiteral);
        }
        let is_label = |label: &[u8]| {
            (1..=63).contains(&label.len())
                && label.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_')
        };
        if name.len() > 253 || !name.split(|b| *b == b'.').all(is_label) {
            return Err(ServerNameError::NotDns);
        }
        let folded = name.iter().map(|b| char::from(b.to_ascii_lowercase())).collect::<String>();
        Ok(Self(folded.into()))
    }

    /// The name in its canonical form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Maps keyed by names are searched with parts of other names.
impl Borrow<str> for ServerName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServerName {
    type Err = ServerNameError;

    fn from_str(text: &str) -> Result<Self, ServerNameError> {
        Self::parse(text.as_bytes())
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// IPv6 is told by its colon, bracketed or not; a zone or a mistake in it makes it no better a host name.
fn is_ip_literal(name: &[u8]) -> bool {
    name.contains(&b':')
        || name.starts_with(b"[")
        || std::str::from_utf8(name).is_ok_and(|text| text.parse::<Ipv4Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn parsed(name: &str) -> Result<String, ServerNameError> {
        ServerName::parse(name.as_bytes()).map(|name| name.to_string())
    }

    #[test]
    fn case_is_folded_and_one_dot_dropped() {
        for (name, canonical) in [
            ("a.example", "a.example"),
            ("A.eXaMpLe", "a.example"),
            ("a.example.", "a.example"),
            ("localhost", "localhost"),
            ("_sip._tcp.a-b.example", "_sip._tcp.a-b.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("1.2.3.example", "1.2.3.example"),
            ("1.2.3", "1.2.3"),
        ] {
            assert_eq!(parsed(name).as_deref(), Ok(canonical), "{name}");
        }
    }

    #[test]
    fn what_is_not_a_name() {
        use ServerNameError::{Empty, IpLiteral, NotDns, Nul};
        for (name, error) in [
            ("", Empty),
            (".", Empty),
            ("..", NotDns),
            ("a.example..", NotDns),
            (".a.example", NotDns),
            ("a..example", NotDns),
            ("a.example\0.evil", Nul),
            ("\0", Nul),
            ("192.0.2.1", IpLiteral),
            ("192.0.2.1.", IpLiteral),
            ("::1", IpLiteral),
            ("2001:db8::1", IpLiteral),
            ("[2001:db8::1]", IpLiteral),
            ("fe80::1%eth0", IpLiteral),
            ("a.example:443", IpLiteral),
            ("[a", IpLiteral),
            ("a b.example", NotDns),
            ("*.example", NotDns),
            ("a/b", NotDns),
            ("bücher.example", NotDns),
        ] {
            assert_eq!(parsed(name), Err(error), "{name:?}");
        }
        assert_eq!(ServerName::parse(b"\xff.example"), Err(NotDns));
    }

    #[test]
    fn lengths() {
        let label = "a".repeat(63);
        assert!(parsed(&label).is_ok());
        assert_eq!(parsed(&format!("{label}a.example")), Err(ServerNameError::NotDns));

        let longest = [label.as_str(), &label, &label, &"a".repeat(61)].join(".");
        assert_eq!(longest.len(), 253);
        assert_eq!(parsed(&longest).as_deref(), Ok(longest.as_str()));
        assert_eq!(parsed(&format!("{longest}.")).as_deref(), Ok(longest.as_str()), "the root's dot does not count");
        let too_long = [label.as_str(), &label, &label, &"a".repeat(62)].join(".");
        assert_eq!(too_long.len(), 254);
        assert_eq!(parsed(&too_long), Err(ServerNameError::NotDns));
    }

    #[test]
    fn a_map_is_searched_with_text() {
        let map = HashMap::from([("a.example".parse::<ServerName>().unwrap(), 1)]);
        assert_eq!(map.get("a.example"), Some(&1));
    }
}
