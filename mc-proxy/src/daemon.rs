//! The daemon from start to end: the order in which its parts come up, its signals, and its drain.
//!
//! The order matters. Nothing is accepted before the rules are in force, and the service manager hears that the daemon
//! is ready only when it is:
//!
//! ```text
//! configuration -> log -> signal handlers -> database (migrate, seed, load) -> GeoIP -> bind -> kernel plane
//!   -> control thread -> workers -> (takeover: the other daemon goes) -> admin API -> READY=1 -> signals
//!   -> drain -> kernel plane kept or detached
//! ```

mod access;
mod control_plane;
mod drain;
mod hand_over;
mod inherited;
mod notify;
mod rehearsal;
mod sockets;
mod takeover;

use std::{
    io,
    path::Path,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use arc_swap::ArcSwapOption;
use mc_proxy_common::rate::RateLimit;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::{
    access::Records,
    control_plane::{ControlPlane, Doors, Enforced, ban_groups},
    drain::{Tally, drain},
    hand_over::HandOver,
    inherited::Inherited,
    notify::{Named, Notifier},
    takeover::{Predecessor, Successor, TooLate},
};
use crate::{
    config::{self, Config, Loaded, OnExit},
    conn::{Counters, Edge, Listening},
    control::{self, Bans, Countries, Owned},
    desired::{Desired, Listener},
    exit::Exit,
    firewall::{Firewall, Rule, Subject},
    http::{access::writer::Writer, counters::HttpCounters},
    net::{
        listener::Bound,
        memory::Budget,
        relay::{Drain, Kernel, Splice, Splicing},
        resolve::Resolver,
        transparent::{self, TransparentError},
    },
    store::{Difference, Store, StoreError},
    telemetry::{describe, log},
    tls::certs::{Certificates, Reloaded},
    worker::{Shutdown, Worker},
};

/// Differences between file and database that are listed at start: a database of a million bans is one line.
const MAX_DIFFERENCES: usize = 50;

/// A pair that has been quiet for this part of the shutdown timeout is told that there will be no more: late enough for
/// an answer that is being made, early enough for the sides to end by themselves.
const QUIET_SHARE: u32 = 3;

/// Why the daemon did not start or did not end well, in words for one line on stderr.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code that goes with it.
    pub exit: Exit,
    message: String,
}

/// How the daemon comes by its listening sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From the service manager, and else it binds them.
    Fresh,
    /// From a daemon that runs on the same database, whose place it takes. Without one, as [`Self::Fresh`].
    Takeover,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it could not start. What the kernel plane had in force before, or has taken over since, stays in force.
pub fn run(config_path: &Path, start: Start) -> Result<(), Failure> {
    let Loaded { config, warnings } =
        config::load(config_path, std::env::vars_os()).map_err(|errors| Failure::new(Exit::Config, errors))?;
    // Lines are written by a thread of their own: a log that nobody reads must not hold up connections.
    let _log = log::init(config.log).map_err(|error| Failure::new(Exit::Internal, error))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    // Before another daemon is asked for its place: a file that cannot be opened is found first.
    let records = access::start(&config.access)?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::because(Exit::Failure, "starting the reactor", &error))?;
    // Before anything is started: a signal that comes meanwhile ends what has come up in order, and does not kill it.
    let signals = {
        let _entered = runtime.enter();
        Signals::new().map_err(|error| Failure::because(Exit::Failure, "waiting for signals", &error))?
    };
    let place = match start {
        Start::Fresh => None,
        Start::Takeover => ask(&config)?,
    };
    let (inherited, predecessor) = match place {
        Some((inherited, predecessor)) => (inherited, Some(predecessor)),
        None => (Inherited::from_env(), None),
    };
    let running = {
        let _entered = runtime.enter();
        Running::start(config, inherited, records)?
    };
    runtime.block_on(running.serve(signals, predecessor))
}

const TAKING_OVER: &str = "taking over from the daemon that runs";

/// Asks the daemon that runs for its place, if there is one and nothing speaks against it.
fn ask(config: &Config) -> Result<Option<(Inherited, Predecessor)>, Failure> {
    if takeover::path(&config.database).exists() {
        rehearsal::rehearse(config)?;
    }
    takeover::ask(&config.database).map_err(|error| Failure::because(Exit::Failure, TAKING_OVER, &error))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Everything that runs, from the moment that connections are accepted.
struct Running {
    config: Config,
    /// Absent between the two moments of a takeover.
    control_plane: Option<ControlPlane>,
    workers: Vec<Worker>,
    shutdown: Shutdown,
    edge: Arc<Edge>,
    listening: Vec<Arc<Listening>>,
    sockets: Vec<Named>,
    /// What the service manager is to keep no longer.
    forgotten: Vec<String>,
    /// Writes access records.
    records: Option<Writer>,
}

/// Why the daemon ends.
enum Ending {
    Signal,
    /// A successor has the place.
    Replaced,
    /// The daemon whose place was to be taken has kept it.
    TooLate(TooLate),
}

impl Running {
    fn start(config: Config, mut inherited: Inherited, records: Option<Records>) -> Result<Self, Failure> {
        let Opened { mut store, desired, is_empty } = open_store(&config.database, &config.seed)?;
        if !is_empty {
            report_differences(&store.diff(&config.seed).map_err(store_failure)?);
        }
        let geoip = open_geoip(&config, &desired.rules)?;
        let certificates = open_certificates(&desired.listeners, is_empty)?;
        check_transparent(&desired.listeners, config.proxy.transparent_mark)?;
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let bound = sockets::bind(&desired.listeners, &config.seed.listeners, workers, &mut inherited)?;
        let sockets = sockets::duplicate(&desired.listeners, &bound)
            .map_err(|error| Failure::because(Exit::Failure, "duplicating the listening sockets", &error))?;
        let forgotten = inherited.close();
        let doors = Doors::open(&config)?;
        let Enforced { plane, engine } = control_plane::enforce(&config, &desired, geoip.as_ref(), ban_groups())?;
        if is_empty {
            store.seed(&desired).map_err(store_failure)?;
        }

        let limit = config.firewall.rate_limit.map_or(RateLimit::OFF, RateLimit::from);
        let (bans, offences) = Bans::new(config.firewall.auto_ban);
        let (access, records) = records.map(|records| (records.access, records.writer)).unzip();
        let edge = Arc::new(Edge {
            firewall: Firewall::new(engine.memory(), limit),
            geoip: ArcSwapOption::new(geoip.as_ref().map(|countries| Arc::clone(countries.geoip()))),
            http: config.http.clone(),
            http_trusted: config.http_trusted.clone(),
            http_counters: HttpCounters::default(),
            resolver: Resolver::default(),
            counters: Counters::default(),
            offences,
            drops: control::drops(),
            proxy: config.proxy,
            splicing: splicing(config.proxy.splice),
            memory: Budget::new(config.proxy.memory_limit),
            access,
            redact_clients: config.access.style.redact_clients,
        });
        let running = |listener| Arc::new(Listening::with_certificates(listener, &certificates));
        let listening: Vec<_> = desired.listeners.iter().map(running).collect();
        let owned = Owned {
            store,
            plane,
            engine,
            is_host_scope: config.xdp.scope == config::Scope::Host,
            bans_max: config.firewall.max_bans as usize,
            listeners: desired.listeners,
            listening: listening.clone(),
            edge: Arc::clone(&edge),
            geoip,
            certificates,
            bans,
        };
        let control_plane = ControlPlane::start(owned, doors)?;

        let quiet = config.proxy.shutdown_timeout / QUIET_SHARE;
        let shutdown = Shutdown {
            drain: Drain::new(CancellationToken::new(), quiet),
            force: CancellationToken::new(),
            leaves_queues: Arc::default(),
        };
        let workers = start_workers(workers, &edge, &listening, bound, &shutdown)
            .map_err(|error| Failure::because(Exit::Failure, "starting the workers", &error))?;
        let control_plane = Some(control_plane);
        Ok(Self { config, control_plane, workers, shutdown, edge, listening, sockets, forgotten, records })
    }

    async fn serve(mut self, mut signals: Signals, predecessor: Option<Predecessor>) -> Result<(), Failure> {
        let mut notifier = Notifier::from_env();
        let ending = match predecessor.map_or(Ok(()), Predecessor::confirm) {
            Ok(()) => {
                self.open(&mut notifier);
                self.ending(&mut signals, &mut notifier).await
            }
            Err(late) => Ending::TooLate(late),
        };
        let patience = self.config.proxy.shutdown_timeout;
        tracing::info!(timeout = ?patience, "shutting down, draining connections");
        notifier.stopping(patience);
        if let Some(control_plane) = &mut self.control_plane {
            control_plane.close_doorbell();
        }
        // What is not kept by somebody else is to be closed when the workers close theirs.
        drop(self.sockets);
        let tally = Tally::begin(&self.edge, &self.listening);
        if !matches!(ending, Ending::Signal) {
            self.shutdown.leaves_queues.store(true, Relaxed);
        }
        // The other daemon waits for it.
        if let Ending::TooLate(_) = ending
            && let Some(control_plane) = self.control_plane.take()
        {
            drop(control_plane.release().await);
        }
        drain(self.workers, &self.shutdown, patience, tally, &mut signals).await;
        let stopped = match self.control_plane {
            Some(control_plane) => control_plane.stop().await,
            None => Ok(()),
        };
        access::finish(self.records, &self.edge);
        match self.config.xdp.on_exit {
            OnExit::Detach if matches!(ending, Ending::Signal) => tracing::info!("mc-proxy has stopped"),
            OnExit::Keep | OnExit::Detach => {
                tracing::info!("mc-proxy has stopped; what the kernel drops, it goes on dropping");
            }
        }
        if let Ending::TooLate(error) = ending {
            return Err(Failure::because(Exit::Failure, TAKING_OVER, &error));
        }
        stopped.map_err(|error| Failure::because(Exit::Failure, "stopping", &error))
    }

    /// From now on the place is this daemon's.
    fn open(&mut self, notifier: &mut Notifier) {
        if let Some(control_plane) = &mut self.control_plane {
            control_plane.serve(&self.config, &self.edge, &self.shutdown);
        }
        for name in &self.forgotten {
            notifier.forget(name);
        }
        self.shutdown.leaves_queues.store(notifier.store(&self.sockets), Relaxed);
        notifier.ready();
        tracing::info!(version = env!("CARGO_PKG_VERSION"), workers = self.workers.len(), "mc-proxy is ready");
    }

    /// Serves until there is a reason to end.
    async fn ending(&mut self, signals: &mut Signals, notifier: &mut Notifier) -> Ending {
        loop {
            let Some(successor) = self.successor(signals, notifier).await else { return Ending::Signal };
            match self.hand_over(successor, signals, notifier).await {
                HandOver::Done => return Ending::Replaced,
                HandOver::Failed => {}
                HandOver::Signal => return Ending::Signal,
            }
        }
    }

    /// Serves until a successor asks, or a signal comes: `None`.
    async fn successor(&self, signals: &mut Signals, notifier: &mut Notifier) -> Option<Successor> {
        let control_plane = self.control_plane.as_ref();
        // One question for all turns of the loop: a successor that has rung may still be telling who it is.
        let mut ringing = pin!(ControlPlane::rung(control_plane));
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return None,
                _ = signals.interrupt.recv() => return None,
                successor = &mut ringing => return Some(successor),
                _ = signals.hangup.recv() => reload(control_plane, &self.edge, notifier).await,
                () = notifier.watch(&self.workers, control_plane.map(ControlPlane::thread)) => {}
            }
        }
    }
}

/// The database, and what is desired: what it holds, or, when it is empty, what the file says. The file is then to be
/// stored, though not before everything else has come up: a first start that fails must not bind the file's author to
/// what was wrong with it.
struct Opened {
    store: Store,
    desired: Desired,
    is_empty: bool,
}

fn open_store(path: &Path, seed: &Desired) -> Result<Opened, Failure> {
    let store = Store::open(path).map_err(store_failure)?;
    let is_empty = store.is_empty().map_err(store_failure)?;
    let desired = if is_empty { seed.clone() } else { load(&store).map_err(store_failure)? };
    if desired.listeners.is_empty() {
        return Err(Failure::new(Exit::Config, "there is no listener; add a [[listeners]] table with an addr"));
    }
    Ok(Opened { store, desired, is_empty })
}

fn load(store: &Store) -> Result<Desired, StoreError> {
    let mut desired = Desired { listeners: store.listeners()?, rules: Vec::new() };
    store.for_each_rule(&mut |rule| desired.rules.push(rule))?;
    Ok(desired)
}

fn store_failure(error: StoreError) -> Failure {
    Failure::because(Exit::Failure, "database.path", &error)
}

/// What was added at run time is as it should be; what only the file has is what its author may be waiting for.
fn report_differences(differences: &[Difference]) {
    let (added, lost): (Vec<_>, Vec<_>) = differences.iter().partition(|difference| difference.is_only_in_database);
    if !added.is_empty() {
        let entries = added.iter().map(|difference| difference.entries).sum::<u64>();
        tracing::info!(entries, "the database has more than the file");
    }
    for difference in lost.iter().take(MAX_DIFFERENCES) {
        tracing::warn!(difference = difference.text, "the file differs from the database, which wins");
    }
    if let Some(more) = lost.len().checked_sub(MAX_DIFFERENCES).filter(|more| *more > 0) {
        tracing::warn!(more, "the file differs from the database in more than is listed here");
    }
}

fn open_geoip(config: &Config, rules: &[Rule]) -> Result<Option<Countries>, Failure> {
    match &config.firewall.geoip_db {
        Some(path) => Countries::open(path.clone())
            .map(Some)
            .map_err(|error| Failure::because(Exit::Config, format!("firewall.geoip_db {}", path.display()), &error)),
        None if rules.iter().any(|rule| matches!(rule.key.subject, Subject::Country(_))) => {
            Err(Failure::new(Exit::Config, "firewall: geoip_db is required, because the database blocks a country"))
        }
        None => Ok(None),
    }
}

/// A file that is to be the first desired state has to be right as a whole. Later, one certificate that is broken does not
/// keep the other routes from being served.
fn open_certificates(listeners: &[Listener], is_first: bool) -> Result<Certificates, Failure> {
    let (certificates, problems) = control::open_certificates(listeners);
    if is_first && !problems.is_empty() {
        return Err(Failure::new(Exit::Config, problems.join("\n")));
    }
    for problem in problems {
        tracing::error!(problem, "connections of the route are refused until the file can be loaded");
    }
    Ok(certificates)
}

/// Without rights for the kernel's part, pairs are carried in user space, which is said once.
fn splicing(mode: Splice) -> Splicing {
    let kernel = Kernel::load().map_err(|error| {
        let why = describe(&error);
        match mode {
            Splice::Sockmap => tracing::warn!(why, "proxy.splice = \"sockmap\": pairs are carried in user space only"),
            Splice::Auto | Splice::Userspace => tracing::info!(why, "pairs are carried in user space only"),
        }
        why.into()
    });
    Splicing::new(mode, kernel)
}

/// Without the right every connection of a transparent route would fail.
fn check_transparent(listeners: &[Listener], mark: u32) -> Result<(), Failure> {
    let is_used = |listener: &Listener| {
        let routes = listener.routes.iter().map(|route| &route.target);
        listener.default.iter().chain(routes).any(|target| target.transparent)
    };
    let Some(listener) = listeners.iter().find(|listener| is_used(listener)) else { return Ok(()) };
    transparent::probe(mark).map_err(|error| {
        let what = format!("listener {} has a transparent route", listener.addr);
        let is_privilege = matches!(error, TransparentError::Privilege(_));
        Failure::because(if is_privilege { Exit::NoPermission } else { Exit::Failure }, what, &error)
    })
}

/// Gives each worker one socket of every listener, and of those that have more than there are workers, its share.
fn start_workers(
    workers: usize,
    edge: &Arc<Edge>,
    listening: &[Arc<Listening>],
    bound: Vec<Vec<Bound>>,
    shutdown: &Shutdown,
) -> io::Result<Vec<Worker>> {
    let mut shares: Vec<Vec<(Arc<Listening>, Bound)>> = std::iter::repeat_with(Vec::new).take(workers).collect();
    for (listening, sockets) in listening.iter().zip(bound) {
        for (index, socket) in sockets.into_iter().enumerate() {
            shares[index % workers].push((Arc::clone(listening), socket));
        }
    }
    shares
        .into_iter()
        .enumerate()
        .map(|(index, share)| Worker::start(index, Arc::clone(edge), share, shutdown.clone()))
        .collect()
}

async fn reload(control_plane: Option<&ControlPlane>, edge: &Edge, notifier: &mut Notifier) {
    if let Some(access) = &edge.access {
        access.log.reopen();
        tracing::info!("received SIGHUP, opening the access log anew");
    }
    let Some(control_plane) = control_plane else { return };
    tracing::info!("received SIGHUP, reloading GeoIP database");
    notifier.reloading();
    match control_plane.control().reload_geoip().await {
        Ok(true) => {}
        Ok(false) => tracing::info!("there is no firewall.geoip_db to reload; the configuration is read at start only"),
        Err(error) => tracing::error!(error = describe(&error), "reloading failed, the old GeoIP database stays"),
    }
    match control_plane.control().reload_certificates().await {
        Ok(Reloaded { replaced, unchanged, failed }) => {
            let failed = failed.len();
            tracing::info!(replaced, unchanged, failed, "certificates reloaded");
        }
        Err(error) => tracing::error!(error = describe(&error), "reloading failed, the old certificates stay"),
    }
    notifier.ready();
}

/// Two descriptors a connection, and two more for each direction that is spliced: the default soft limit of 1,024 is for
/// programs that use `select(2)`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit on open files stays at {:?}", limit.current);
    }
}

impl Failure {
    fn new(exit: Exit, message: impl ToString) -> Self {
        Self { exit, message: message.to_string() }
    }

    fn because(exit: Exit, what: impl std::fmt::Display, cause: &dyn std::error::Error) -> Self {
        Self { exit, message: format!("{what}: {}", describe(cause)) }
    }
}
