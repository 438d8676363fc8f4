//! Addresses as types by role, so that the peer of a socket cannot stand where the client belongs.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

/// The other end of an accepted socket. IPv4-mapped IPv6 (RFC 4291 §2.5.5.2) is folded to IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(SocketAddr);

/// Who the connection is from: what the firewall judges and the log names. The peer, unless a trusted
/// PROXY header named somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(SocketAddr);

/// A listener's address, identified by the text of the configuration (`":443"`).
#[derive(Clone, Debug)]
pub struct ListenAddr {
    text: Box<str>,
    socket: SocketAddr,
    is_dual_stack: bool,
}

/// Where a route's connections go: `host:port`, `[v6]:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendAddr {
    /// A literal address.
    Ip(SocketAddr),
    /// A name, resolved anew as its answers age.
    Name {
        /// A host name, as given.
        host: Box<str>,
        /// 1–65535.
        port: u16,
    },
    /// A stream socket in the file system.
    Unix(PathBuf),
}

/// An address that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not {expected}")]
pub struct AddrError {
    text: String,
    expected: &'static str,
}

impl PeerAddr {
    /// From what `accept` returned.
    pub fn new(addr: SocketAddr) -> Self {
        Self(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }

    /// The address without the port.
    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ClientAddr {
    /// On a listener without PROXY protocol the peer is the client.
    pub fn from_peer(peer: PeerAddr) -> Self {
        Self(peer.0)
    }

    /// Whom the PROXY header of a trusted peer names.
    pub fn from_header(source: SocketAddr) -> Self {
        Self(SocketAddr::new(source.ip().to_canonical(), source.port()))
    }

    /// Address and port.
    pub fn socket(self) -> SocketAddr {
        self.0
    }

    /// The same client at any of its ports.
    pub fn without_port(self) -> Self {
        Self(SocketAddr::new(self.0.ip(), 0))
    }

    /// The address without the port.
    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ListenAddr {
    /// As in the configuration; the listener's name in the API, the database and the log.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What to bind. `:443` is `[::]:443`.
    pub fn socket(&self) -> SocketAddr {
        self.socket
    }

    /// Whether IPv4 is accepted on the IPv6 socket too (`:443` only).
    pub fn is_dual_stack(&self) -> bool {
        self.is_dual_stack
    }
}

/// Two spellings are two listeners; binding tells whether they collide.
impl PartialEq for ListenAddr {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for ListenAddr {}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for ListenAddr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let error = || AddrError {
            text: text.to_owned(),
            expected: "a listen address; write \":443\", \"10.0.0.1:443\" or \"[::]:443\"",
        };
        let (socket, is_dual_stack) = match text.strip_prefix(':') {
            Some(port) => (SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), parse_port(port).ok_or_else(error)?), true),
            None => (text.parse::<SocketAddr>().map_err(|_| error())?, false),
        };
        if socket.port() == 0 {
            return Err(error());
        }
        Ok(Self { text: text.into(), socket, is_dual_stack })
    }
}

impl fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for BackendAddr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let error = || AddrError {
            text: text.to_owned(),
            expected: "a backend address; write \"host:port\", \"[v6]:port\" or \"unix:/path\"",
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') && !path.contains('\0') && path.len() < 108 {
                Ok(Self::Unix(path.into()))
            } else {
                Err(error())
            };
        }
        if let Ok(addr) = text.parse::<SocketAddr>() {
            // One spelling of each, so that `::ffff:10.0.0.5` is IPv4 for routes, marks and exemptions, too.
            let addr = match addr.ip().to_canonical() {
                ip @ IpAddr::V4(_) => SocketAddr::new(ip, addr.port()),
                IpAddr::V6(_) => addr,
            };
            return if addr.port() == 0 { Err(error()) } else { Ok(Self::Ip(addr)) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port = parse_port(port).filter(|port| *port != 0).ok_or_else(error)?;
        if !is_host_name(host) {
            return Err(error());
        }
        Ok(Self::Name { host: host.into(), port })
    }
}

/// Digits only: `u16::from_str` takes a plus sign too.
fn parse_port(text: &str) -> Option<u16> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// RFC 1123 §2.1 labels, with the underscore that service names use.
fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A last label of digits only would be an address that did not parse, such as 10.0.0.256.
    let last_is_numeric = host.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= 253 && host.split('.').all(is_label) && !last_is_numeric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_peer_is_ipv4() {
        let peer = PeerAddr::new("[::ffff:192.0.2.1]:5000".parse().unwrap());
        assert_eq!(peer.to_string(), "192.0.2.1:5000");
        assert_eq!(ClientAddr::from_peer(peer).ip(), "192.0.2.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn listen_addresses() {
        let any: ListenAddr = ":443".parse().unwrap();
        assert_eq!((any.as_str(), any.socket(), any.is_dual_stack()), (":443", "[::]:443".parse().unwrap(), true));
        let v6: ListenAddr = "[::]:443".parse().unwrap();
        assert!(!v6.is_dual_stack());
        for bad in ["", ":", "443", ":0", ":65536", ":+80", "host:80", "10.0.0.1", "10.0.0.1:0", "::1:80"] {
            assert!(bad.parse::<ListenAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn backend_addresses_keep_their_text() {
        for good in
            ["127.0.0.1:8443", "[2001:db8::1]:443", "app.internal:443", "app:1", "a_b.c.:65535", "unix:/run/a.sock"]
        {
            assert_eq!(good.parse::<BackendAddr>().unwrap().to_string(), good);
        }
        assert_eq!("[::ffff:10.0.0.5]:80".parse::<BackendAddr>().unwrap().to_string(), "10.0.0.5:80");
        for bad in [
            "",
            "host",
            "host:",
            ":80",
            "host:0",
            "host:+1",
            "host:99999",
            "10.0.0.256:80",
            "-a:1",
            "a b:1",
            "unix:rel",
            "::1:80",
        ] {
            assert!(bad.parse::<BackendAddr>().is_err(), "{bad}");
        }
    }
}
