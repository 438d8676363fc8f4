//! The desired state: what the database holds, and what memory and the kernel are made to agree with.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use ::http::HeaderName;
use ipnet::IpNet;

use crate::{
    firewall::Rule,
    http::fields,
    net::{
        addr::{BackendAddr, ListenAddr},
        relay::Splice,
    },
    route::{Pattern, alpn::Listed},
    tls::{ServerName, certs::CertFiles},
};

/// What the TOML file seeds an empty database with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// In the order in which they were first seen.
    pub listeners: Vec<Listener>,
    /// Permanent, of the default group, without duplicates.
    pub rules: Vec<Rule>,
}

/// One listening address with its route table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Unique among the listeners.
    pub addr: ListenAddr,
    /// How a connection finds its route.
    pub protocol: Protocol,
    /// Connections at a time; 0 = unlimited.
    pub max_connections: u64,
    /// Connections at a time of one client; 0 = unlimited. The addresses of an IPv6 /64 are one client.
    pub max_connections_per_source: u64,
    /// Whether, and from whom, every connection begins with a PROXY header.
    pub proxy: Option<AcceptProxy>,
    /// Used when the server name is absent or unknown, and by [`Protocol::Tcp`].
    pub default: Option<Target>,
    /// With distinct [`RouteKey`]s.
    pub routes: Vec<Route>,
}

/// Whose PROXY headers a listener believes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcceptProxy {
    /// Networks that peers connect from, canonical, sorted and distinct; empty only with `trust_any`.
    pub trusted: Vec<IpNet>,
    /// Every peer is believed.
    pub trust_any: bool,
}

/// What a listener expects of its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// TLS; the route is found by SNI.
    #[default]
    Tls,
    /// Any protocol; every connection takes the default route.
    Tcp,
    /// HTTP without TLS; every request is sent to the same place with `https`. There are no routes, and there is no default.
    HttpRedirect,
}

/// A hostname and where its connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Together with `alpn` unique within the listener.
    pub hostname: Pattern,
    /// Application protocols, one of which the client has to offer, as [`crate::route::alpn::canonical`] makes them; empty = any client.
    pub alpn: Vec<String>,
    /// Where to.
    pub target: Target,
}

/// What tells the routes of a listener apart. Displays as `a.example`, or as `a.example (ALPN h2,http/1.1)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// See [`Route::hostname`].
    pub hostname: Pattern,
    /// See [`Route::alpn`].
    pub alpn: Vec<String>,
}

/// Where connections go, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// At least one. Each connection starts with the next one, and tries the others in their order.
    pub backends: Vec<BackendAddr>,
    /// Passthrough or terminate.
    pub mode: Mode,
    /// PEM chain, for [`Mode::L7`].
    pub tls_cert: Option<PathBuf>,
    /// PEM key, for [`Mode::L7`].
    pub tls_key: Option<PathBuf>,
    /// Re-encryption towards the backend ([`Mode::L7`]; kept and ignored otherwise).
    pub backend_tls: bool,
    /// PEM: what the backend's certificate is verified against; none = the system's roots. This and what follows up to
    /// `backend_protocol` is for [`Mode::L7`], and kept and ignored otherwise.
    pub backend_ca: Option<PathBuf>,
    /// The name that the backend is asked for and that its certificate has to be for; none = the
    /// route's hostname, and on a wildcard or default route the one that the client asked for, else the backend's host.
    pub backend_server_name: Option<ServerName>,
    /// Any certificate of the backend is taken.
    pub backend_insecure: bool,
    /// What is spoken with the backend.
    pub backend_protocol: BackendProtocol,
    /// The PROXY header that the backend gets first.
    pub send_proxy: Option<ProxyVersion>,
    /// The backend sees the connection come from the client's address.
    pub transparent: bool,
    /// How bytes are moved; none = as `proxy.splice` says.
    pub splice: Option<Splice>,
    /// In the order of evaluation ([`Mode::L7`]; kept and ignored otherwise).
    pub l7_policies: Vec<L7Policy>,
}

/// Which PROXY header is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyVersion {
    /// The line of text.
    V1,
    /// The binary header, which has room for TLVs.
    #[default]
    V2,
}

/// How a route treats its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Passthrough: bytes are relayed, TLS stays between client and backend.
    #[default]
    L4,
    /// Terminate TLS and proxy HTTP.
    L7,
}

/// Which HTTP a backend is spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BackendProtocol {
    /// Over TLS what it chooses by ALPN; HTTP/1.1 without TLS.
    #[default]
    Auto,
    /// HTTP/1.1 (RFC 9112).
    Http1,
    /// HTTP/2 (RFC 9113), without TLS with prior knowledge (§3.3).
    H2,
}

/// An HTTP policy; the first that matches answers 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L7Policy {
    /// What is looked at.
    pub kind: L7PolicyKind,
    /// Never empty.
    pub value: String,
    /// It counts what it would refuse, and refuses nothing. Not part of what policies are told apart by.
    pub shadow: bool,
}

/// The kinds of [`L7Policy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L7PolicyKind {
    /// Refuses a `User-Agent` that contains the value, case-insensitively.
    BlockUserAgent,
    /// Refuses a request whose header of that name is absent or empty.
    RequireHeader,
}

/// A word that is none of the values of an enumeration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{given}\" is not one of {expected}")]
pub struct UnknownWord {
    pub(crate) given: String,
    pub(crate) expected: &'static str,
}

impl Listener {
    /// A listener without routes.
    pub fn new(addr: ListenAddr) -> Self {
        Self {
            addr,
            protocol: Protocol::default(),
            max_connections: 0,
            max_connections_per_source: 0,
            proxy: None,
            default: None,
            routes: Vec::new(),
        }
    }
}

impl Route {
    /// Whether this is the route of `key`.
    pub fn is(&self, key: &RouteKey) -> bool {
        self.hostname == key.hostname && self.alpn == key.alpn
    }

    /// What the route is found by.
    pub fn key(&self) -> RouteKey {
        RouteKey { hostname: self.hostname.clone(), alpn: self.alpn.clone() }
    }
}

impl From<Pattern> for RouteKey {
    /// The route for any client.
    fn from(hostname: Pattern) -> Self {
        Self { hostname, alpn: Vec::new() }
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hostname.fmt(f)?;
        if self.alpn.is_empty() { Ok(()) } else { write!(f, " (ALPN {})", Listed(&self.alpn)) }
    }
}

impl Target {
    /// Passthrough to one backend.
    pub fn passthrough(backend: BackendAddr) -> Self {
        Self {
            backends: vec![backend],
            mode: Mode::L4,
            tls_cert: None,
            tls_key: None,
            backend_tls: false,
            backend_ca: None,
            backend_server_name: None,
            backend_insecure: false,
            backend_protocol: BackendProtocol::Auto,
            send_proxy: None,
            transparent: false,
            splice: None,
            l7_policies: Vec::new(),
        }
    }

    /// What backends' certificates are verified against, if not the system's roots; none on a route that looks at none.
    pub fn backend_roots(&self) -> Option<&Path> {
        let looks = self.mode == Mode::L7 && self.backend_tls && !self.backend_insecure;
        self.backend_ca.as_deref().filter(|_| looks)
    }

    /// What TLS is terminated with; none on a route that does not, whatever files it names.
    pub fn cert_files(&self) -> Option<CertFiles> {
        match self.mode {
            Mode::L4 => None,
            Mode::L7 => Some(CertFiles { cert: self.tls_cert.clone()?, key: self.tls_key.clone()? }),
        }
    }
}

impl Protocol {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Tcp => "tcp",
            Self::HttpRedirect => "http-redirect",
        }
    }
}

impl FromStr for Protocol {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "tls" => Ok(Self::Tls),
            "tcp" => Ok(Self::Tcp),
            "http-redirect" => Ok(Self::HttpRedirect),
            _ => Err(UnknownWord { given: word.to_owned(), expected: "\"tls\", \"tcp\", \"http-redirect\"" }),
        }
    }
}

impl ProxyVersion {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

impl FromStr for ProxyVersion {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "v1" => Ok(Self::V1),
            "v2" => Ok(Self::V2),
            _ => Err(UnknownWord { given: word.to_owned(), expected: "\"v1\", \"v2\"" }),
        }
    }
}

impl Mode {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::L4 => "l4",
            Self::L7 => "l7",
        }
    }
}

impl FromStr for Mode {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "l4" => Ok(Self::L4),
            "l7" => Ok(Self::L7),
            _ => Err(UnknownWord { given: word.to_owned(), expected: "\"l4\", \"l7\"" }),
        }
    }
}

impl BackendProtocol {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Http1 => "http1",
            Self::H2 => "h2",
        }
    }
}

impl FromStr for BackendProtocol {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "auto" => Ok(Self::Auto),
            "http1" => Ok(Self::Http1),
            "h2" => Ok(Self::H2),
            _ => Err(UnknownWord { given: word.to_owned(), expected: "\"auto\", \"http1\", \"h2\"" }),
        }
    }
}

impl L7Policy {
    /// Why it can match nothing that it is meant for, in words; none of a policy that is good.
    pub fn problem(&self) -> Option<String> {
        match self.kind {
            L7PolicyKind::BlockUserAgent => None,
            L7PolicyKind::RequireHeader => match HeaderName::from_bytes(self.value.as_bytes()) {
                Ok(name) => {
                    let why = fields::unseen(&name)?;
                    Some(format!("{:?} would refuse every request: {why} before policies judge", self.value))
                }
                Err(_) => Some(format!("{:?} is not the name of a header", self.value)),
            },
        }
    }

    /// What whoever adds it may not have thought of, in words.
    pub fn doubt(&self) -> Option<String> {
        let name = match self.kind {
            L7PolicyKind::BlockUserAgent => return None,
            L7PolicyKind::RequireHeader => HeaderName::from_bytes(self.value.as_bytes()).ok()?,
        };
        fields::is_of_trusted(&name).then(|| {
            let whose = "only those whom http.trusted_proxies names can send it, of all others it is removed";
            format!("{:?} tells of the client: {whose} before policies judge", self.value)
        })
    }

    /// Whether it looks for the same as `other`, of which a route has one.
    pub fn is_like(&self, other: &Self) -> bool {
        self.kind == other.kind && self.value == other.value
    }
}

impl L7PolicyKind {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlockUserAgent => "block_user_agent",
            Self::RequireHeader => "require_header",
        }
    }
}

impl FromStr for L7PolicyKind {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "block_user_agent" => Ok(Self::BlockUserAgent),
            "require_header" => Ok(Self::RequireHeader),
            _ => Err(UnknownWord { given: word.to_owned(), expected: "\"block_user_agent\", \"require_header\"" }),
        }
    }
}
