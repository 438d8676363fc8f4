//! `mc-proxy check`: what the daemon will need of the file and of the host, one line each, with the remedy for what is
//! missing. Nothing is changed; a port is bound for a moment.

mod host;
mod transparent;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use rustix::thread::CapabilitySet;

use crate::{
    config::{self, Config},
    desired::{Listener, Target},
    http::access::writer::Destination,
    net::{addr::BackendAddr, resolve::Resolver},
    store::{self, StoreError},
    telemetry,
};

/// All names together get this long to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Names that are resolved at a time.
const RESOLVERS: usize = 16;

/// What [`run`] found. Displays one line for each finding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checklist {
    /// In the order in which the daemon would come across them.
    pub findings: Vec<Finding>,
}

/// One line of a [`Checklist`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub grade: Grade,
    /// What was looked at, and how to mend it.
    pub text: String,
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// As it should be.
    Good,
    /// The daemon starts; something will not work, or cannot be told from here.
    Warning,
    /// The daemon would not start.
    Bad,
}

/// Checks the configuration at `path` and, when it is valid, the host. `env` as in [`config::load`].
pub fn run<K: AsRef<OsStr>, V: AsRef<OsStr>>(path: &Path, env: impl IntoIterator<Item = (K, V)>) -> Checklist {
    let mut list = Checklist::default();
    let loaded = match config::load(path, env) {
        Ok(loaded) => loaded,
        Err(errors) => {
            for error in errors.diagnostics() {
                list.bad(error.to_string());
            }
            return list;
        }
    };
    let Config { seed, .. } = &loaded.config;
    list.good(format!(
        "configuration {}: {} listeners, {} routes, {} firewall rules",
        path.display(),
        seed.listeners.len(),
        seed.listeners.iter().map(|listener| listener.routes.len()).sum::<usize>(),
        seed.rules.len(),
    ));
    for warning in &loaded.warnings {
        list.warn(warning.to_string());
    }
    let known = store::peek(&loaded.config.database);
    if seed.listeners.is_empty() && !matches!(known, Ok(Some(_))) {
        // Of a database that cannot be read a line of its own tells.
        let grade = if known.is_err() { Grade::Warning } else { Grade::Bad };
        let text = "no [[listeners]]: the daemon does not start unless the database has some; write [[listeners]]";
        list.push(grade, text.to_owned());
    }
    let capabilities = match rustix::thread::capabilities(None) {
        Ok(sets) => sets.effective,
        Err(error) => {
            list.warn(format!("capabilities of this process: {error}; the lines below suppose that it has none"));
            CapabilitySet::empty()
        }
    };
    host::database(&mut list, &loaded.config.database);
    let listeners = desired(&mut list, known, &seed.listeners);
    if let Some(path) = &loaded.config.firewall.geoip_db {
        host::geoip(&mut list, path);
    }
    for listener in listeners.as_ref() {
        host::port(&mut list, listener, capabilities);
    }
    if let Some(Destination::File(path)) = &loaded.config.access.to {
        host::access_log(&mut list, path);
    }
    if let Some(grpc) = &loaded.config.grpc {
        host::admin_socket(&mut list, grpc);
    }
    host::kernel_plane(&mut list, &loaded.config.xdp, capabilities);
    let mut certificates = Checklist::default();
    for files in targets(&listeners).filter_map(Target::cert_files) {
        host::certificate(&mut certificates, &files);
    }
    for path in targets(&listeners).filter_map(Target::backend_roots).collect::<BTreeSet<_>>() {
        host::backend_ca(&mut certificates, path);
    }
    if matches!(listeners, Cow::Owned(_)) {
        // A first start wants all of them; later, only the route of a broken one is not served.
        for finding in &mut certificates.findings {
            finding.grade = finding.grade.min(Grade::Warning);
        }
    }
    list.findings.append(&mut certificates.findings);
    let names = backends(&mut list, &listeners, RESOLVE_TIMEOUT, resolve);
    let wanted = transparent::Wanted::of(&loaded.config.proxy, &listeners, &names);
    transparent::check(&mut list, &wanted);
    list
}

impl Checklist {
    /// Whether the daemon would start.
    pub fn is_ok(&self) -> bool {
        self.findings.iter().all(|finding| finding.grade < Grade::Bad)
    }

    fn good(&mut self, text: impl Into<String>) {
        self.push(Grade::Good, text.into());
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.push(Grade::Warning, text.into());
    }

    fn bad(&mut self, text: impl Into<String>) {
        self.push(Grade::Bad, text.into());
    }

    fn push(&mut self, grade: Grade, text: String) {
        self.findings.push(Finding { grade, text });
    }
}

impl fmt::Display for Checklist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))
    }
}

/// `[+]` for what is good, `[~]` for a warning, `[!]` for what keeps the daemon from starting.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.grade {
            Grade::Good => "[+]",
            Grade::Warning => "[~]",
            Grade::Bad => "[!]",
        };
        write!(f, "{mark} {}", self.text)
    }
}

/// The listeners that a start would have: those of the database as soon as it has any.
fn desired<'f>(
    list: &mut Checklist,
    known: Result<Option<Vec<Listener>>, StoreError>,
    in_file: &'f [Listener],
) -> Cow<'f, [Listener]> {
    match known {
        Ok(Some(listeners)) => {
            let routes = listeners.iter().map(|listener| listener.routes.len()).sum::<usize>();
            list.good(format!("the database counts, not the file: {} listeners, {routes} routes", listeners.len()));
            return listeners.into();
        }
        Ok(None) => {}
        Err(error @ StoreError::Unmigrated { .. }) => {
            list.warn(format!("{error}; listeners and routes below are those of the file"));
        }
        Err(error) => list.bad(telemetry::describe(&error)),
    }
    in_file.into()
}

/// Where connections may go.
fn targets(listeners: &[Listener]) -> impl Iterator<Item = &Target> {
    listeners
        .iter()
        .flat_map(|listener| listener.default.iter().chain(listener.routes.iter().map(|route| &route.target)))
}

/// Never worse than a warning: a name server that is down must not keep the edge from starting. Returns the addresses of
/// the names.
fn backends(
    list: &mut Checklist,
    listeners: &[Listener],
    timeout: Duration,
    resolve: impl Fn(&str, u16) -> Result<Addrs, String> + Send + Sync + 'static,
) -> BTreeMap<Name, Addrs> {
    let mut resolved = BTreeMap::new();
    let addrs = targets(listeners).flat_map(|target| &target.backends).collect::<BTreeSet<_>>();
    let mut names = BTreeSet::new();
    for addr in addrs {
        match addr {
            BackendAddr::Ip(_) => {}
            BackendAddr::Name { host, port } => {
                names.insert((host.to_string(), *port));
            }
            BackendAddr::Unix(path) => host::backend_socket(list, path),
        }
    }
    for ((host, port), answer) in resolve_all(names, timeout, resolve) {
        let backend = format!("backend {host}:{port}");
        match answer {
            Some(Ok(addrs)) => {
                list.good(format!("{backend} resolves to {} addresses", addrs.len()));
                resolved.insert((host, port), addrs);
            }
            Some(Err(error)) => {
                list.warn(format!(
                    "{backend} does not resolve: {error}; correct the name, or try `getent ahosts {host}`"
                ));
            }
            None => list.warn(format!(
                "{backend} did not resolve within {} s; look at /etc/resolv.conf, or try `getent ahosts {host}`",
                timeout.as_secs()
            )),
        }
    }
    resolved
}

/// As the daemon does.
fn resolve(host: &str, port: u16) -> Result<Addrs, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let found = runtime.block_on(Resolver::default().lookup(host)).map_err(|e| e.to_string())?;
    Ok(found.in_order(tokio::time::Instant::now()).map(|ip| SocketAddr::new(ip, port)).collect())
}

type Name = (String, u16);
type Addrs = BTreeSet<SocketAddr>;

/// Asks for all names on a few threads. A thread that is still waiting for an answer afterwards is left to end with the
/// process.
fn resolve_all(
    names: BTreeSet<Name>,
    timeout: Duration,
    resolve: impl Fn(&str, u16) -> Result<Addrs, String> + Send + Sync + 'static,
) -> Vec<(Name, Option<Result<Addrs, String>>)> {
    let mut answers = names.iter().cloned().map(|name| (name, None)).collect::<BTreeMap<_, _>>();
    let threads = names.len().min(RESOLVERS);
    let queue = Arc::new(Mutex::new(names));
    let resolve = Arc::new(resolve);
    let (sender, receiver) = mpsc::channel();
    for _ in 0..threads {
        let (queue, resolve, sender) = (Arc::clone(&queue), Arc::clone(&resolve), sender.clone());
        std::thread::spawn(move || {
            let next = || queue.lock().ok().and_then(|mut queue| queue.pop_first());
            while let Some(name) = next() {
                let answer = resolve(&name.0, name.1);
                if sender.send((name, answer)).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let deadline = Instant::now() + timeout;
    while let Ok((name, answer)) = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        answers.insert(name, Some(answer));
    }
    answers.into_iter().collect()
}

#[cfg(test)]
mod tests;
