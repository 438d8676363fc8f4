//! The desired state: what the database holds, and what memory and the kernel are made to agree with.

use std::{path::PathBuf, str::FromStr};

use crate::{
    firewall::Rule,
    net::addr::{BackendAddr, ListenAddr},
    route::Pattern,
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
    /// Used when the server name is absent or unknown, and by [`Protocol::Tcp`].
    pub default: Option<Target>,
    /// With distinct hostnames.
    pub routes: Vec<Route>,
}

/// What a listener expects of its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// TLS; the route is found by SNI.
    #[default]
    Tls,
    /// Any protocol; every connection takes the default route.
    Tcp,
}

/// A hostname and where its connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Unique within the listener.
    pub hostname: Pattern,
    /// Where to.
    pub target: Target,
}

/// Where connections go, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// At least one; tried in order.
    pub backends: Vec<BackendAddr>,
    /// Passthrough or terminate.
    pub mode: Mode,
    /// PEM chain, for [`Mode::L7`].
    pub tls_cert: Option<PathBuf>,
    /// PEM key, for [`Mode::L7`].
    pub tls_key: Option<PathBuf>,
    /// Re-encryption towards the backend ([`Mode::L7`]; kept and ignored otherwise).
    pub backend_tls: bool,
    /// PROXY v2 towards the backend.
    pub send_proxy_protocol: bool,
    /// In the order of evaluation ([`Mode::L7`]; kept and ignored otherwise).
    pub l7_policies: Vec<L7Policy>,
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

/// An HTTP policy; the first that matches answers 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L7Policy {
    /// What is looked at.
    pub kind: L7PolicyKind,
    /// Never empty.
    pub value: String,
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
    given: String,
    expected: &'static str,
}

impl Listener {
    /// A listener without routes.
    pub fn new(addr: ListenAddr) -> Self {
        Self { addr, protocol: Protocol::default(), max_connections: 0, default: None, routes: Vec::new() }
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
            send_proxy_protocol: false,
            l7_policies: Vec::new(),
        }
    }
}

impl Protocol {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}

impl FromStr for Protocol {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "tls" => Ok(Self::Tls),
            "tcp" => Ok(Self::Tcp),
            _ => Err(UnknownWord { given: word.to_owned(), expected: "\"tls\", \"tcp\"" }),
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
