//! The configuration after validation: nothing here can fail for configuration reasons any more.
//!
//! [`load`] goes in two steps: `file` is what was typed, key by key with its position; `lower` makes a [`Config`] of it
//! and says everything that is wrong, at once. Reading stops early only where TOML itself does.

mod diagnostic;
mod duration;
mod file;
mod lower;
mod size;
mod splice;
mod unavailable;

#[cfg(test)]
mod tests;

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read as _},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use mc_proxy_common::rate;
use toml::de::DeTable;

pub use self::diagnostic::{ConfigErrors, Diagnostic, Place};
use self::{
    diagnostic::{At, Report},
    file::Reader,
    unavailable::{UNAVAILABLE, Unavailable},
};
use crate::{
    desired::Desired,
    http::access::{Sample, Style, writer::Destination},
};
pub use crate::{firewall::AutoBan, http::limits::HttpLimits, net::relay::Splice};

/// A list of a million addresses takes a third of this.
const FILE_MAX_BYTES: u64 = 64 << 20;

/// A valid configuration, and what its author should know about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the daemon runs with.
    pub config: Config,
    /// Settings without effect and the like, in the order of the file.
    pub warnings: Vec<Diagnostic>,
}

/// Reads, overrides and validates the file at `path`. `env` is the environment, such as [`std::env::vars_os`]:
/// `MCPROXY_<SECTION>_<KEY>` takes the place of a key of a plain section, lists separated by commas; other variables are
/// ignored.
///
/// # Errors
/// All errors that the file and the environment have.
pub fn load<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    path: &Path,
    env: impl IntoIterator<Item = (K, V)>,
) -> Result<Loaded, ConfigErrors> {
    let file = path.display().to_string();
    match read(path) {
        Ok(text) => parse(&text, &file, env),
        Err(error) => {
            let text = format!("the configuration cannot be read: {error}; name a readable file with -c");
            Err(ConfigErrors(vec![Diagnostic { place: Place::File { file }, text }]))
        }
    }
}

/// [`load`] without a file system: `file` is only the name that diagnostics carry.
///
/// # Errors
/// All errors that the text and the environment have.
pub fn parse<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    text: &str,
    file: &str,
    env: impl IntoIterator<Item = (K, V)>,
) -> Result<Loaded, ConfigErrors> {
    parse_with(text, file, env, UNAVAILABLE)
}

fn parse_with<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    text: &str,
    file: &str,
    env: impl IntoIterator<Item = (K, V)>,
    unavailable: &[Unavailable],
) -> Result<Loaded, ConfigErrors> {
    let mut report = Report::new(file, text);
    let overrides = lower::overrides(env, &mut report);
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let at = error.span().map_or(At::File, |span| At::Offset(span.start));
            report.error(&at, format!("not TOML: {}", error.message()));
            return Err(report.finish().expect_err("an error was reported"));
        }
    };
    let root = Reader { report: &mut report, overrides: &overrides, unavailable }.root(document);
    let config = lower::lower(root, &mut report);
    report.finish().map(|warnings| Loaded { config, warnings })
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = File::open(path)?.take(FILE_MAX_BYTES + 1).read_to_string(&mut text)?;
    if length as u64 > FILE_MAX_BYTES {
        return Err(io::Error::other("it is larger than 64 MiB"));
    }
    Ok(text)
}

/// What the daemon runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// `database.path`.
    pub database: PathBuf,
    /// Listeners, routes and rules of the file: they seed an empty database.
    pub seed: Desired,
    /// `[firewall]` without the lists, which are in the seed.
    pub firewall: Firewall,
    /// `[proxy]`.
    pub proxy: Proxy,
    /// `[http]`: limits.
    pub http: HttpLimits,
    /// `http.trusted_proxies`.
    pub http_trusted: TrustedProxies,
    /// `[xdp]`.
    pub xdp: Xdp,
    /// `[grpc]`; without an address there is no admin API.
    pub grpc: Option<Grpc>,
    /// `[log]`: the daemon's own lines.
    pub log: Log,
    /// `[log]`: access records.
    pub access: Access,
}

/// `[firewall]`: what is not a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// `firewall.geoip_db`; present when the seed blocks a country.
    pub geoip_db: Option<PathBuf>,
    /// `firewall.rate_limit` and what belongs to it; none = unlimited.
    pub rate_limit: Option<RateLimit>,
    /// `[firewall.auto_ban]`; none = nobody is banned for violations.
    pub auto_ban: Option<AutoBan>,
    /// The daemon's own bans at a time, 1–1,048,576.
    pub max_bans: u32,
}

/// How many new connections a source may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// In a window; above 0.
    pub connections: u32,
    /// Above 0, at most an hour.
    pub window: Duration,
    /// What is one source: addresses that share so many bits, 8–32.
    pub prefix_v4: u8,
    /// The same for IPv6, 16–64.
    pub prefix_v6: u8,
}

impl From<RateLimit> for rate::RateLimit {
    fn from(limit: RateLimit) -> Self {
        let window = u64::try_from(limit.window.as_nanos()).unwrap_or(u64::MAX);
        Self::new(limit.connections, window, limit.prefix_v4, limit.prefix_v6)
    }
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
    /// Firewall mark of connections that carry a client's address, by which their answers are routed back; above 0.
    pub transparent_mark: u32,
    /// Number of the routing table for what has that mark; above 0, and none of the kernel's own.
    pub transparent_table: u32,
    /// Bytes that connections may hold in user space and in pipes, all together; 0 = unlimited.
    pub memory_limit: u64,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(300),
            shutdown_timeout: Duration::from_secs(30),
            splice: Splice::Auto,
            refuse: Refuse::Reset,
            transparent_mark: 0x6d70,
            transparent_table: 0x6d70,
            memory_limit: 0,
        }
    }
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

/// Peers whose `X-Forwarded-*`, `Forwarded`, `X-Real-IP` and `X-Request-Id` are believed and appended to; of everybody else
/// they are discarded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Box<[IpNet]>);

impl TrustedProxies {
    /// Networks, canonical.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks.into())
    }

    /// Whether `ip` is within one of the networks; an IPv4 address in the form of IPv6 is the address itself.
    pub fn trusts(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|net| net.contains(&ip))
    }
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
    /// Whether an interface whose driver has no XDP is refused rather than taken in generic mode.
    pub require_native: bool,
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

/// `[log]`: one record for each HTTP request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// `log.access`; none = there are no records.
    pub to: Option<Destination>,
    /// `log.access_format` and what is redacted; `log.redact_clients` holds for the records of connections too, whether
    /// there are access records or not.
    pub style: Style,
    /// `log.access_sample`.
    pub sample: Sample,
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
