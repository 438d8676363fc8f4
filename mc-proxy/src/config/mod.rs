//! The configuration after validation: nothing here can fail for configuration reasons any more.

use std::{path::PathBuf, time::Duration};

use crate::desired::Desired;

/// What the daemon runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// `database.path`.
    pub database: PathBuf,
    /// Listeners, routes and rules of the file: they seed an empty database.
    pub seed: Desired,
    /// `firewall.geoip_db`; present when the seed blocks a country.
    pub geoip_db: Option<PathBuf>,
    /// `[proxy]`.
    pub proxy: Proxy,
    /// `[xdp]`.
    pub xdp: Xdp,
    /// `[grpc]`; without an address there is no admin API.
    pub grpc: Option<Grpc>,
    /// `[log]`.
    pub log: Log,
}

/// `[proxy]`: deadlines of the stages of a connection, all above zero but the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// For each backend that is tried, name resolution included.
    pub connect_timeout: Duration,
    /// From accept until the ClientHello is complete.
    pub handshake_timeout: Duration,
    /// Without a byte in either direction.
    pub idle_timeout: Duration,
    /// For established connections after SIGTERM; 0 = none.
    pub shutdown_timeout: Duration,
    /// How bytes are moved.
    pub splice: Splice,
    /// What a client gets whose server name no route has.
    pub refuse: Refuse,
}

/// `proxy.refuse`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refuse {
    /// A TCP reset, like every other refusal.
    #[default]
    Reset,
    /// The TLS alert `unrecognized_name`, if the client spoke TLS.
    Alert,
}

/// `proxy.splice`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Splice {
    /// What is measured to be best for what the pair does.
    #[default]
    Auto,
    /// Never in the kernel.
    Userspace,
}

/// `[xdp]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Interface names; none = user space only.
    pub interfaces: Vec<String>,
    /// Where in the receive path.
    pub mode: XdpMode,
    /// Whether a missing kernel plane is a start-up error.
    pub required: bool,
    /// Which packets of a blocked source are dropped.
    pub scope: Scope,
    /// What a clean stop does to the kernel plane.
    pub on_exit: OnExit,
    /// A directory on a BPF file system.
    pub pin_path: PathBuf,
}

/// `xdp.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native, or generic where the driver has no XDP; which of them it became is reported.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// After the socket buffer is allocated; works on every interface.
    Generic,
}

/// `xdp.scope`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Packets to listener ports.
    #[default]
    Listeners,
    /// Every packet.
    Host,
}

/// `xdp.on_exit`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExit {
    /// The kernel goes on dropping.
    #[default]
    Keep,
    /// Program and maps are removed.
    Detach,
}

/// `[grpc]`: the admin API on a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grpc {
    /// Path of the socket.
    pub path: PathBuf,
    /// Permission bits, 0–0o777.
    pub mode: u32,
    /// Group name that the socket is given to.
    pub group: Option<String>,
}

/// `[log]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Least severe level that is written.
    pub level: tracing::Level,
    /// How a line looks.
    pub format: LogFormat,
}

/// `log.format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// logfmt: `level=INFO msg="…"`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
