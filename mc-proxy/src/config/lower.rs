//! From what was typed to what is valid. Pure: nothing but the text of the configuration is looked at; the rest of the
//! host is for `mc-proxy check`.

mod firewall;
mod http;
mod l4;
mod l7;
mod log;

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use super::{
    Config, Grpc, OnExit, Proxy, Refuse, Scope, Splice, Xdp, XdpMode,
    diagnostic::{At, Report, did_you_mean},
    file::{self, Given, Kind, Override},
};
use crate::{
    desired::{BackendProtocol, Desired, Listener, Mode, Protocol, Route, RouteKey, Target},
    net::addr::{BackendAddr, ListenAddr},
    route::Pattern,
};

/// Every variable with this prefix is meant for the configuration.
const PREFIX: &str = "MCPROXY_";

/// `auto`, the default, first.
const SPLICES: [(&str, Splice); 3] =
    [("auto", Splice::Auto), ("sockmap", Splice::Sockmap), ("userspace", Splice::Userspace)];

/// The longest path of a Unix socket: `sun_path` without its NUL.
const SOCKET_PATH_MAX: usize = 107;

/// Finds the overrides among the variables of the environment, by path of the key.
pub(super) fn overrides<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    env: impl IntoIterator<Item = (K, V)>,
    report: &mut Report<'_>,
) -> BTreeMap<String, Override> {
    let mut found = BTreeMap::new();
    let mut known = None;
    for (name, value) in env {
        let name = name.as_ref().to_string_lossy();
        if !name.starts_with(PREFIX) {
            continue;
        }
        let known = known.get_or_insert_with(variables);
        let at = At::Variable(name.to_string());
        match (known.get(name.as_ref()), value.as_ref().to_str()) {
            (Some(path), Some(value)) => {
                found.insert(path.clone(), Override { name: name.into_owned(), value: value.to_owned() });
            }
            (Some(path), None) => report.error(&at, format!("{path}: the value is not UTF-8; correct or unset it")),
            (None, _) => {
                let hint = did_you_mean(&name, known.keys().map(String::as_str));
                report.error(&at, format!("stands for no key of the configuration; correct or unset it{hint}"));
            }
        }
    }
    found
}

/// Path of the key by name of its variable: the keys of plain sections.
pub(super) fn variables() -> BTreeMap<String, String> {
    let paths = file::key_paths();
    let is_value = |kind: &Kind| match kind {
        Kind::Value => true,
        Kind::Table(_) | Kind::Tables(_) => false,
    };
    paths
        .into_iter()
        .filter(|(path, kind)| is_value(kind) && !path.starts_with("listeners."))
        .map(|(path, _)| (format!("{PREFIX}{}", path.replace('.', "_").to_uppercase()), path))
        .collect()
}

/// Checks everything; what comes back is meaningful when the report has no errors.
pub(super) fn lower(root: file::Root, report: &mut Report<'_>) -> Config {
    let mut lower = Lower { report };
    let (database, database_at) = section(root.database);
    let database = match database.path {
        Some(path) if !path.value.is_empty() => lower.path(path, "database.path"),
        given => {
            let at = given.map_or(database_at, |given| given.at);
            lower
                .report
                .error(&at, "database.path is required; write path = \"/srv/mc-proxy/mc-proxy.db\" in [database]");
            None
        }
    };
    let (rules, firewall) = lower.firewall(section(root.firewall).0);
    let seed = Desired { listeners: lower.listeners(root.listeners), rules };
    lower.metrics(section(root.metrics).0);
    let (http, log) = (section(root.http).0, section(root.log).0);
    Config {
        database: database.unwrap_or_default(),
        seed,
        firewall,
        proxy: lower.proxy(section(root.proxy).0),
        http_trusted: lower.trusted_proxies(http.trusted_proxies.as_ref()),
        http: lower.http(http),
        xdp: lower.xdp(section(root.xdp).0),
        grpc: lower.grpc(section(root.grpc).0),
        access: lower.access(&log),
        log: lower.log(log),
    }
}

struct Lower<'a, 'r> {
    report: &'r mut Report<'a>,
}

impl Lower<'_, '_> {
    fn listeners(&mut self, given: Option<Given<Vec<Given<file::Listener>>>>) -> Vec<Listener> {
        let mut seen = HashMap::<SocketAddr, At>::new();
        let mut listeners = Vec::new();
        for given in given.map(|given| given.value).unwrap_or_default() {
            let Some(addr) = self.required(given.value.addr.clone(), &given.at, "listeners.addr", "addr = \":443\"")
            else {
                self.listener(given, None);
                continue;
            };
            let parsed = self.parse::<ListenAddr>(&addr, "listeners.addr");
            let sockets = parsed.as_ref().map(bound_sockets).unwrap_or_default();
            if let Some(first) = sockets.iter().find_map(|socket| seen.get(socket)) {
                let first = self.report.refer(first);
                let text = format!(
                    "listeners.addr: \"{}\" binds the same socket as the listener at {first}; remove one of the two",
                    addr.value
                );
                self.report.error(&addr.at, text);
            }
            for socket in sockets {
                seen.entry(socket).or_insert_with(|| addr.at.clone());
            }
            listeners.extend(self.listener(given, parsed));
        }
        listeners
    }

    /// Without an address for its errors only.
    fn listener(&mut self, given: Given<file::Listener>, addr: Option<ListenAddr>) -> Option<Listener> {
        let proxy = self.accept_proxy(&given.value);
        let file::Listener { protocol, max_connections, max_connections_per_source, default, routes, .. } = given.value;
        let protocol_at = protocol.as_ref().map(|protocol| protocol.at.clone());
        let words = [("tls", Protocol::Tls), ("tcp", Protocol::Tcp), ("http-redirect", Protocol::HttpRedirect)];
        let protocol = self.word(protocol, "listeners.protocol", &words);
        let max_connections = self.not_negative(max_connections, "listeners.max_connections");
        let max_connections_per_source =
            self.not_negative(max_connections_per_source, "listeners.max_connections_per_source");
        let default_at = default.as_ref().map(|default| default.at.clone());
        let default = default.and_then(|default| {
            if let Some(hostname) = &default.value.hostname {
                let text = "listeners.default.hostname: a default route has no hostname; remove it, or write \
                            [[listeners.routes]]";
                self.report.error(&hostname.at, text);
            }
            if let Some(alpn) = &default.value.alpn {
                let text = "listeners.default.alpn: a default route takes every client that no other route takes; \
                            remove it, or write [[listeners.routes]]";
                self.report.error(&alpn.at, text);
            }
            self.target(default, "listeners.default")
        });
        let routes = routes.map(|given| given.value).unwrap_or_default();
        let first_at = routes.first().map(|route| route.at.clone());
        self.check_protocol(protocol, &protocol_at.unwrap_or_default(), first_at, default_at);
        let routes = self.routes(routes);
        addr.map(|addr| Listener {
            addr,
            protocol,
            max_connections,
            max_connections_per_source,
            proxy,
            default,
            routes,
        })
    }

    /// Whether there are the routes that the protocol needs, and no others.
    fn check_protocol(&mut self, protocol: Protocol, at: &At, first_route: Option<At>, default: Option<At>) {
        match (protocol, first_route, default) {
            (Protocol::Tls, ..) | (Protocol::Tcp, None, Some(_)) | (Protocol::HttpRedirect, None, None) => {}
            (Protocol::Tcp, Some(route), _) => {
                let text = "listeners.routes: with protocol = \"tcp\" no server name is read; write \
                            [listeners.default] instead";
                self.report.error(&route, text);
            }
            (Protocol::Tcp, None, None) => {
                let text = "listeners.default is required with protocol = \"tcp\"; write [listeners.default] with a \
                            backend";
                self.report.error(at, text);
            }
            (Protocol::HttpRedirect, route, default) => {
                for (key, at) in [("routes", route), ("default", default)] {
                    if let Some(at) = at {
                        let text = format!(
                            "listeners.{key}: with protocol = \"http-redirect\" every request is redirected to https; \
                             remove it"
                        );
                        self.report.error(&at, text);
                    }
                }
            }
        }
    }

    fn routes(&mut self, given: Vec<Given<file::Route>>) -> Vec<Route> {
        let mut seen = HashMap::<RouteKey, At>::new();
        let mut routes = Vec::new();
        for mut route in given {
            let alpn = self.alpn(route.value.alpn.take());
            let key = "listeners.routes.hostname";
            let example = "hostname = \"app.example.com\"";
            let hostname = self.required(route.value.hostname.take(), &route.at, key, example);
            let key = hostname.zip(alpn).and_then(|(hostname, alpn)| {
                let pattern = hostname.value.parse::<Pattern>().map_err(|error| {
                    let remedy = "write \"app.example.com\" or \"*.example.com\"";
                    self.report.error(&hostname.at, format!("{key}: {:?}: {error}; {remedy}", hostname.value));
                });
                let found = RouteKey { hostname: pattern.ok()?, alpn };
                if let Some(first) = seen.get(&found) {
                    let first = self.report.refer(first);
                    let RouteKey { hostname: pattern, alpn } = found;
                    let same = if alpn.is_empty() { "" } else { " with this alpn" };
                    let text =
                        format!("{key}: \"{pattern}\"{same} has a route at {first} already; remove one of the two");
                    self.report.error(&hostname.at, text);
                    return None;
                }
                seen.insert(found.clone(), hostname.at);
                Some(found)
            });
            let target = self.target(route, "listeners.routes");
            routes.extend(key.zip(target).map(|(RouteKey { hostname, alpn }, target)| Route {
                hostname,
                alpn,
                target,
            }));
        }
        routes
    }

    fn target(&mut self, given: Given<file::Route>, path: &str) -> Option<Target> {
        let Given { value: route, at } = given;
        let mode = self.word(route.mode.clone(), &format!("{path}.mode"), &[("l4", Mode::L4), ("l7", Mode::L7)]);
        match mode {
            Mode::L4 => self.warn_of_l7_keys(&route, path),
            Mode::L7 => {
                self.require_certificate(&route, &at, path);
                self.warn_of_backend_tls_keys(&route, path);
            }
        }
        let protocols =
            [("auto", BackendProtocol::Auto), ("http1", BackendProtocol::Http1), ("h2", BackendProtocol::H2)];
        let backend_protocol = self.word(route.backend_protocol, &format!("{path}.backend_protocol"), &protocols);
        let backend_ca = self.path_or_none(route.backend_ca, &format!("{path}.backend_ca"));
        let backend_server_name = self.backend_server_name(route.backend_server_name, path);
        let l7_policies = self.policies(route.l7_policies, path);
        let tls_cert = self.path_or_none(route.tls_cert, &format!("{path}.tls_cert"));
        let tls_key = self.path_or_none(route.tls_key, &format!("{path}.tls_key"));
        let send_proxy = self.send_proxy(&route.send_proxy_protocol, route.proxy_protocol_version, path);
        let splice = route.splice.map(|splice| self.word(Some(splice), &format!("{path}.splice"), &SPLICES));
        let backends = self.backends(route.backend, route.backends, &at, path);
        self.refuse_transparent_unix(route.transparent.as_ref(), backends.as_deref(), path);
        Some(Target {
            backends: backends?,
            mode,
            tls_cert,
            tls_key,
            backend_tls: is_set(&route.backend_tls),
            backend_ca,
            backend_server_name,
            backend_insecure: is_set(&route.backend_insecure),
            backend_protocol,
            send_proxy,
            transparent: is_set(&route.transparent),
            splice,
            l7_policies,
        })
    }

    fn backends(
        &mut self,
        backend: Option<Given<String>>,
        backends: Option<Given<Vec<Given<String>>>>,
        at: &At,
        path: &str,
    ) -> Option<Vec<BackendAddr>> {
        let (given, key) = match (backend, backends) {
            (Some(backend), None) => (vec![backend], "backend"),
            (None, Some(backends)) if !backends.value.is_empty() => (backends.value, "backends"),
            (Some(_), Some(backends)) => {
                let text = format!("{path}.backends stands beside {path}.backend; write all of them in backends");
                self.report.error(&backends.at, text);
                return None;
            }
            (None, given) => {
                let at = given.as_ref().map_or(at, |given| &given.at);
                let text = format!("{path}.backend is required; write backend = \"127.0.0.1:8443\"");
                self.report.error(at, text);
                return None;
            }
        };
        let key = format!("{path}.{key}");
        let parsed = given.iter().map(|given| self.parse::<BackendAddr>(given, &key)).collect::<Vec<_>>();
        parsed.into_iter().collect()
    }

    fn proxy(&mut self, proxy: file::Proxy) -> Proxy {
        let default = Proxy::default();
        Proxy {
            connect_timeout: self.deadline(proxy.connect_timeout, "proxy.connect_timeout", default.connect_timeout),
            handshake_timeout: self.deadline(
                proxy.handshake_timeout,
                "proxy.handshake_timeout",
                default.handshake_timeout,
            ),
            idle_timeout: self.deadline(proxy.idle_timeout, "proxy.idle_timeout", default.idle_timeout),
            shutdown_timeout: proxy.shutdown_timeout.map_or(default.shutdown_timeout, |given| given.value),
            splice: self.word(proxy.splice, "proxy.splice", &SPLICES),
            refuse: self.word(proxy.refuse, "proxy.refuse", &[("reset", Refuse::Reset), ("alert", Refuse::Alert)]),
            transparent_mark: self.within(
                proxy.transparent_mark,
                "proxy.transparent_mark",
                1..=u32::MAX,
                default.transparent_mark,
            ),
            transparent_table: self.routing_table(proxy.transparent_table, default.transparent_table),
            memory_limit: self.memory_limit(proxy.memory_limit),
        }
    }

    fn xdp(&mut self, xdp: file::Xdp) -> Xdp {
        let modes = [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
        let mut interfaces = Vec::<String>::new();
        for given in xdp.interfaces.map(|given| given.value).unwrap_or_default() {
            let name = given.value;
            if !is_interface_name(&name) {
                let text = format!("xdp.interfaces: {name:?} is not an interface name; write one that `ip link` shows");
                self.report.error(&given.at, text);
            } else if interfaces.contains(&name) {
                self.report.error(&given.at, format!("xdp.interfaces: \"{name}\" is listed twice; remove one"));
            } else {
                interfaces.push(name);
            }
        }
        if let Some(required) = xdp.required.as_ref().filter(|required| required.value && interfaces.is_empty()) {
            let text = "xdp.required = true with no xdp.interfaces; write interfaces = [\"eth0\"] or required = false";
            self.report.error(&required.at, text);
        }
        let pin_path_at = xdp.pin_path.as_ref().map(|given| given.at.clone()).unwrap_or_default();
        let pin_path = xdp.pin_path.and_then(|given| self.path(given, "xdp.pin_path"));
        let pin_path = pin_path.unwrap_or_else(|| "/sys/fs/bpf/mc-proxy".into());
        if !pin_path.is_absolute() {
            let text = format!("xdp.pin_path: {pin_path:?} is not absolute; write \"/sys/fs/bpf/mc-proxy\"");
            self.report.error(&pin_path_at, text);
        }
        let mode = self.word(xdp.mode, "xdp.mode", &modes);
        if let Some(native) = xdp.require_native.as_ref().filter(|native| native.value) {
            if interfaces.is_empty() {
                let text = "xdp.require_native = true with no xdp.interfaces; write interfaces = [\"eth0\"] or \
                            require_native = false";
                self.report.error(&native.at, text);
            }
            if mode == XdpMode::Generic {
                let text = "xdp.require_native = true with xdp.mode = \"generic\"; write mode = \"auto\" or \
                            require_native = false";
                self.report.error(&native.at, text);
            }
        }
        Xdp {
            interfaces,
            mode,
            required: is_set(&xdp.required),
            require_native: is_set(&xdp.require_native),
            scope: self.word(xdp.scope, "xdp.scope", &[("listeners", Scope::Listeners), ("host", Scope::Host)]),
            on_exit: self.word(xdp.on_exit, "xdp.on_exit", &[("keep", OnExit::Keep), ("detach", OnExit::Detach)]),
            pin_path,
        }
    }

    fn grpc(&mut self, grpc: file::Grpc) -> Option<Grpc> {
        let mode = grpc.socket_mode.map_or(0o660, |given| self.socket_mode(&given));
        for (given, key) in
            [(grpc.tls_cert, "grpc.tls_cert"), (grpc.tls_key, "grpc.tls_key"), (grpc.client_ca, "grpc.client_ca")]
        {
            if let Some(given) = given.filter(|given| !given.value.is_empty()) {
                let text = format!("{key} has no effect on a Unix socket, which socket_mode guards; remove it");
                self.report.warn(&given.at, text);
            }
        }
        let group = grpc.socket_group.filter(|group| !group.value.is_empty()).map(|group| group.value);
        let addr = grpc.addr.filter(|addr| !addr.value.is_empty())?;
        let path = addr.value.strip_prefix("unix:").unwrap_or(&addr.value);
        if !path.starts_with('/') || path.contains('\0') || path.len() > SOCKET_PATH_MAX {
            let text = format!(
                "grpc.addr: {:?} is not an absolute path of at most {SOCKET_PATH_MAX} bytes; write \
                 \"unix:/srv/mc-proxy/mc-proxy.sock\"",
                addr.value
            );
            self.report.error(&addr.at, text);
        }
        Some(Grpc { path: path.into(), mode, group })
    }

    fn socket_mode(&mut self, given: &Given<String>) -> u32 {
        let text = given.value.as_str();
        let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777).unwrap_or_else(|| {
            let text = format!("grpc.socket_mode: {text:?} is not a file mode up to \"0777\"; write \"0660\"");
            self.report.error(&given.at, text);
            0o660
        });
        if mode & 0o002 != 0 {
            let text = format!("grpc.socket_mode: \"{text}\" lets every user of this host change routes and rules");
            self.report.warn(&given.at, text);
        }
        mode
    }

    fn metrics(&mut self, metrics: file::Metrics) {
        if let Some(path) = metrics.path.filter(|path| !path.value.starts_with('/')) {
            let text = format!("metrics.path must start with \"/\": {:?}; write \"/metrics\"", path.value);
            self.report.error(&path.at, text);
        }
    }

    /// One of `words`; the first when nothing, or nothing valid, is given.
    fn word<T: Copy>(&mut self, given: Option<Given<String>>, key: &str, words: &[(&str, T)]) -> T {
        let default = words[0].1;
        let Some(given) = given else { return default };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == given.value) {
            return *value;
        }
        let names = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let hint = did_you_mean(&given.value, words.iter().map(|(word, _)| *word));
        self.report.error(&given.at, format!("{key}: {:?} is not one of {names}{hint}", given.value));
        default
    }

    fn required(&mut self, given: Option<Given<String>>, at: &At, key: &str, example: &str) -> Option<Given<String>> {
        let at = given.as_ref().map_or(at, |given| &given.at).clone();
        let given = given.filter(|given| !given.value.is_empty());
        if given.is_none() {
            self.report.error(&at, format!("{key} is required; write {example}"));
        }
        given
    }

    fn parse<T: FromStr<Err: fmt::Display>>(&mut self, given: &Given<String>, key: &str) -> Option<T> {
        given.value.parse().map_err(|error| self.report.error(&given.at, format!("{key}: {error}"))).ok()
    }

    fn not_negative(&mut self, given: Option<Given<i64>>, key: &str) -> u64 {
        let Some(given) = given else { return 0 };
        u64::try_from(given.value).unwrap_or_else(|_| {
            let text = format!("{key} must not be negative: {}; write 0 for no limit", given.value);
            self.report.error(&given.at, text);
            0
        })
    }

    fn within(&mut self, given: Option<Given<i64>>, key: &str, range: RangeInclusive<u32>, default: u32) -> u32 {
        let Some(given) = given else { return default };
        match u32::try_from(given.value) {
            Ok(value) if range.contains(&value) => value,
            _ => {
                let (least, most) = range.into_inner();
                let text = format!("{key} must be from {least} to {most}: {}; write {default}", given.value);
                self.report.error(&given.at, text);
                default
            }
        }
    }

    /// Nothing waits for ever, so zero is refused rather than taken for that.
    fn deadline(&mut self, given: Option<Given<Duration>>, key: &str, default: Duration) -> Duration {
        let Some(given) = given else { return default };
        if given.value.is_zero() {
            self.report.error(&given.at, format!("{key} must be above 0; write \"{}s\"", default.as_secs()));
        }
        given.value
    }

    /// An empty text switches off what it names.
    fn path_or_none(&mut self, given: Option<Given<String>>, key: &str) -> Option<PathBuf> {
        self.path(given.filter(|given| !given.value.is_empty())?, key)
    }

    fn path(&mut self, given: Given<String>, key: &str) -> Option<PathBuf> {
        if given.value.contains('\0') {
            self.report.error(&given.at, format!("{key}: {:?} contains a NUL; write a path", given.value));
            return None;
        }
        Some(given.value.into())
    }
}

/// A section with its origin; an absent one has nothing but defaults.
fn section<T: Default>(given: Option<Given<T>>) -> (T, At) {
    let Given { value, at } = given.unwrap_or_default();
    (value, at)
}

fn is_set(given: &Option<Given<bool>>) -> bool {
    given.as_ref().is_some_and(|given| given.value)
}

/// What no two listeners can both have: the dual-stack `:443` is `[::]:443` and `0.0.0.0:443`.
fn bound_sockets(addr: &ListenAddr) -> Vec<SocketAddr> {
    let socket = addr.socket();
    let mut sockets = vec![SocketAddr::new(socket.ip().to_canonical(), socket.port())];
    if addr.is_dual_stack() {
        sockets.push(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), socket.port()));
    }
    sockets
}

/// As the kernel's `dev_valid_name`.
fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace())
}
