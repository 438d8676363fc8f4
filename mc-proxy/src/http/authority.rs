//! The host that a request is for: `Host` and `:authority` in the one form in which they are compared.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ::http::{HeaderMap, header};

use crate::tls::{ServerName, ServerNameError};

/// `host [ ":" port ]` (RFC 9110 §7.2, RFC 3986 §3.2) without userinfo. Displays in canonical form: names in lower case and
/// without the root's dot, IPv6 compressed and in brackets, no empty port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    host: Host,
    port: Option<u16>,
}

/// The host of an [`Authority`] (RFC 3986 §3.2.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A registered name, which has to be a DNS name.
    Name(ServerName),
    /// A literal address, never of a zone.
    Ip(IpAddr),
}

/// Why bytes are not an [`Authority`], or a request has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AuthorityError {
    /// RFC 9112 §3.2: an HTTP/1.1 request has a `Host`.
    #[error("the request has no host")]
    Missing,
    /// RFC 9112 §3.2: it has one.
    #[error("the request has more than one Host field")]
    Repeated,
    /// RFC 9113 §8.3.1, and likewise for the absolute form of HTTP/1.1: which of them is meant?
    #[error("Host differs from the authority of the target")]
    Conflicting,
    /// RFC 9110 §4.2.4: user names in front of the host are there to deceive.
    #[error("the authority has a user name")]
    UserInfo,
    /// Neither a DNS name, nor an IPv4 address, nor an IPv6 address in brackets.
    #[error("the host is neither a DNS name nor an IP address")]
    Host,
    /// Not digits, or not from 1 to 65535.
    #[error("the port is not from 1 to 65535")]
    Port,
}

impl Authority {
    /// Parses the value of a `Host` field, of `:authority` or of an absolute target.
    ///
    /// # Errors
    /// When the bytes are not exactly that; no white space is skipped.
    pub fn parse(bytes: &[u8]) -> Result<Self, AuthorityError> {
        if bytes.contains(&b'@') {
            return Err(AuthorityError::UserInfo);
        }
        let (host, port) = if let Some(rest) = bytes.strip_prefix(b"[") {
            let end = rest.iter().position(|b| *b == b']').ok_or(AuthorityError::Host)?;
            let (literal, after) = rest.split_at(end);
            let ip = text(literal).and_then(|text| text.parse::<Ipv6Addr>().ok()).ok_or(AuthorityError::Host)?;
            (Host::Ip(ip.into()), after.get(1..).unwrap_or_default())
        } else {
            let end = bytes.iter().position(|b| *b == b':').unwrap_or(bytes.len());
            let (name, after) = bytes.split_at(end);
            (host(name)?, after)
        };
        let port = match port.split_first() {
            None => None,
            Some((b':', digits)) => port_number(digits)?,
            Some(_) => return Err(AuthorityError::Host),
        };
        Ok(Self { host, port })
    }

    /// The one authority of a request: that of its target (`:authority`, or the absolute form) and that of its `Host` field,
    /// of which there is at most one. Where both are, they have to say the same: RFC 9112 §3.2.2 lets a proxy ignore the
    /// field, but what stands behind it may not, and then each of them sees another host.
    ///
    /// # Errors
    /// When there is none, they differ, or one is malformed.
    pub fn of_request(target: Option<&[u8]>, headers: &HeaderMap) -> Result<Self, AuthorityError> {
        let mut fields = headers.get_all(header::HOST).iter();
        let field = fields.next();
        if fields.next().is_some() {
            return Err(AuthorityError::Repeated);
        }
        let field = field.map(|value| Self::parse(value.as_bytes())).transpose()?;
        let target = target.map(Self::parse).transpose()?;
        match (target, field) {
            (Some(target), Some(field)) if target != field => Err(AuthorityError::Conflicting),
            (Some(authority), _) | (None, Some(authority)) => Ok(authority),
            (None, None) => Err(AuthorityError::Missing),
        }
    }

    /// Who is asked.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port, if one was given.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The host, if it is a name.
    pub fn name(&self) -> Option<&ServerName> {
        match &self.host {
            Host::Name(name) => Some(name),
            Host::Ip(_) => None,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.host.fmt(f)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// Whether a request for `host` may come over a connection that was made for `sni`; if not, the answer is 421 (RFC 9110
/// §15.5.20), upon which a client that has coalesced connections (RFC 9113 §9.1.1) opens another.
///
/// With SNI the host has to be that very name. That both have the same certificate, or the same route, does not help:
/// route, policies and client certificates were chosen by the SNI, and the log names it. An address is no name. Ports
/// are not compared, as port forwarding changes them. Without SNI the connection has the listener's default route, whose
/// policies no other `Host` can escape.
pub fn agrees(sni: Option<&ServerName>, host: &Authority) -> bool {
    sni.is_none_or(|sni| host.name() == Some(sni))
}

fn host(bytes: &[u8]) -> Result<Host, AuthorityError> {
    match ServerName::parse(bytes) {
        Ok(name) => Ok(Host::Name(name)),
        Err(ServerNameError::IpLiteral) => text(bytes)
            .and_then(|text| text.parse::<Ipv4Addr>().ok())
            .map(|ip| Host::Ip(ip.into()))
            .ok_or(AuthorityError::Host),
        Err(ServerNameError::Empty | ServerNameError::Nul | ServerNameError::NotDns) => Err(AuthorityError::Host),
    }
}

/// None for the empty port, which RFC 3986 §3.2.3 has.
fn port_number(digits: &[u8]) -> Result<Option<u16>, AuthorityError> {
    if digits.is_empty() {
        return Ok(None);
    }
    text(digits)
        .filter(|text| text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .filter(|port| *port != 0)
        .map(Some)
        .ok_or(AuthorityError::Port)
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<String, AuthorityError> {
        Authority::parse(text.as_bytes()).map(|authority| authority.to_string())
    }

    #[test]
    fn canonical_form() {
        for (text, canonical) in [
            ("a.example", "a.example"),
            ("A.eXample.:8443", "a.example:8443"),
            ("a.example:", "a.example"),
            ("a.example:00080", "a.example:80"),
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("[2001:DB8:0::1]", "[2001:db8::1]"),
            ("[::ffff:192.0.2.1]:65535", "[::ffff:192.0.2.1]:65535"),
            ("localhost:443", "localhost:443"),
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(canonical), "{text}");
        }
    }

    #[test]
    fn what_is_no_authority() {
        use AuthorityError::{Host, Port, UserInfo};
        for (text, error) in [
            ("", Host),
            (":443", Host),
            (".", Host),
            ("a..b", Host),
            ("a b", Host),
            (" a", Host),
            ("a ", Host),
            ("a,b", Host),
            ("a/b", Host),
            ("a#b", Host),
            ("a?b", Host),
            ("a\\b", Host),
            ("a%2eb", Host),
            ("a\0b", Host),
            ("*.example", Host),
            ("bücher.example", Host),
            ("192.0.2.1.", Host),
            ("[", Host),
            ("[]", Host),
            ("[::1", Host),
            ("[::1]a", Host),
            ("[192.0.2.1]", Host),
            ("[fe80::1%25eth0]", Host),
            ("[v1.x]", Host),
            ("::1", Host),
            ("a@b", UserInfo),
            ("user:pw@a.example:1", UserInfo),
            ("a:b", Port),
            ("a:0", Port),
            ("a:65536", Port),
            ("a:000443", Port),
            ("a:+1", Port),
            ("a:-1", Port),
            ("a: 1", Port),
            ("a:1:2", Port),
            ("2001:db8::1", Port),
            ("[::1]:x", Port),
        ] {
            assert_eq!(parsed(text), Err(error), "{text:?}");
        }
        assert_eq!(Authority::parse(b"\xff"), Err(Host));
    }

    #[test]
    fn a_request_has_one() {
        let of = |target: Option<&str>, hosts: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_static(host));
            }
            Authority::of_request(target.map(str::as_bytes), &headers).map(|authority| authority.to_string())
        };
        assert_eq!(of(None, &["A.example"]).as_deref(), Ok("a.example"));
        assert_eq!(of(Some("a.example:1"), &[]).as_deref(), Ok("a.example:1"));
        assert_eq!(of(Some("a.example"), &["A.EXAMPLE."]).as_deref(), Ok("a.example"));
        assert_eq!(of(None, &[]), Err(AuthorityError::Missing));
        assert_eq!(of(None, &["a", "a"]), Err(AuthorityError::Repeated));
        assert_eq!(of(Some("a"), &["b"]), Err(AuthorityError::Conflicting));
        assert_eq!(of(Some("a"), &["a:443"]), Err(AuthorityError::Conflicting));
        assert_eq!(of(Some("a"), &[""]), Err(AuthorityError::Host));
    }

    #[test]
    fn agreement() {
        let name = |text: &str| text.parse::<ServerName>().unwrap();
        let authority = |text: &str| Authority::parse(text.as_bytes()).unwrap();
        let sni = name("a.example");
        for (host, is_good) in [
            ("a.example", true),
            ("A.Example.:8443", true),
            ("b.example", false),
            ("x.a.example", false),
            ("example", false),
            ("192.0.2.1", false),
            ("[::1]", false),
        ] {
            assert_eq!(agrees(Some(&sni), &authority(host)), is_good, "{host}");
            assert!(agrees(None, &authority(host)), "{host}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_is_stable(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(authority) = Authority::parse(&bytes) {
                prop_assert_eq!(Authority::parse(authority.to_string().as_bytes()), Ok(authority));
            }
        }

        #[test]
        fn likely_texts(text in "[a-zA-Z0-9.:@\\[\\]%-]{0,40}") {
            if let Ok(authority) = Authority::parse(text.as_bytes()) {
                prop_assert_eq!(Authority::parse(authority.to_string().as_bytes()), Ok(authority));
            }
        }
    }
}
