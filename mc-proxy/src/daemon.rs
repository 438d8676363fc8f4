//! The daemon from start to end: the order in which its parts come up, its signals, and its drain.
//!
//! The order matters. Nothing is accepted before the rules are in force, and the service manager hears that the daemon
//! is ready only when it is:
//!
//! ```text
//! configuration -> log -> signal handlers -> database (migrate, seed, load) -> GeoIP -> bind -> kernel plane
//!   -> control thread -> workers -> admin API -> READY=1 -> signals -> drain -> kernel plane kept or detached
//! ```

mod drain;
mod inherited;
mod notify;
mod sockets;
mod takeover;

use std::{
    hash::{BuildHasher, RandomState},
    io,
    path::Path,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use mc_proxy_common::rate::RateLimit;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::{
    drain::{Tally, drain},
    inherited::Inherited,
    notify::{Named, Notifier},
    takeover::{Doorbell, Successor},
};
use crate::{
    admin::{self, AdminSocket},
    config::{self, Config, Loaded, OnExit},
    conn::{Counters, Edge, Listening},
    control::{self, Bans, Control, Countries, Owned, moment},
    desired::{Desired, Listener},
    exit::Exit,
    firewall::{Engine, EngineConfig, EngineError, Firewall, GroupIds, OffenceKind, Rule, Subject},
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
    xdp::{self, Events, PlaneError},
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
    let mut inherited = Inherited::from_env();
    if start == Start::Takeover {
        inherited = takeover::ask(&config.database)
            .map_err(|error| Failure::because(Exit::Failure, "taking over from the daemon that runs", &error))?;
    }
    let running = {
        let _entered = runtime.enter();
        Running::start(config, inherited)?
    };
    runtime.block_on(running.serve(signals))
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
    control: Control,
    control_thread: std::thread::JoinHandle<()>,
    workers: Vec<Worker>,
    shutdown: Shutdown,
    admin: Option<AdminSocket>,
    edge: Arc<Edge>,
    listening: Vec<Arc<Listening>>,
    events: Option<Events>,
    sockets: Vec<Named>,
    /// What the service manager is to keep no longer.
    forgotten: Vec<String>,
    doorbell: Option<Doorbell>,
}

/// Why the daemon ends.
enum Ending {
    Signal,
    Takeover(Successor),
}

impl Running {
    fn start(config: Config, mut inherited: Inherited) -> Result<Self, Failure> {
        let Opened { mut store, desired, is_empty } = open_store(&config)?;
        let geoip = open_geoip(&config, &desired.rules)?;
        let certificates = open_certificates(&desired.listeners, is_empty)?;
        check_transparent(&desired.listeners, config.proxy.transparent_mark)?;
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let bound = sockets::bind(&desired.listeners, &config.seed.listeners, workers, &mut inherited)?;
        let sockets = sockets::duplicate(&desired.listeners, &bound)
            .map_err(|error| Failure::because(Exit::Failure, "duplicating the listening sockets", &error))?;
        let forgotten = inherited.close();
        let doorbell = sockets::doorbell(&config.database);
        let admin = config.grpc.as_ref().map(sockets::admin).transpose()?;

        let limit = config.firewall.rate_limit.map_or(RateLimit::OFF, RateLimit::from);
        let ports = sockets::ports(&desired.listeners, config.firewall.rate_limit.is_some());
        let parameters = xdp::Parameters { ports, rate: limit, seed: RandomState::new().hash_one(0) };
        let mut plane = xdp::open(&config.xdp, parameters).map_err(|error| plane_failure(&error))?;
        // What no rule but the rate limit drops is counted for number 0. The other groups of bans have theirs from the
        // beginning too: operators' groups must not leave bans without.
        let mut groups = GroupIds::default();
        groups.insert(OffenceKind::Rate.group(), 0);
        let others = OffenceKind::ALL.into_iter().filter(|kind| *kind != OffenceKind::Rate);
        for (id, kind) in (1..).zip(others) {
            groups.insert(kind.group(), id);
        }
        let engine_config = EngineConfig {
            is_host_scope: config.xdp.scope == config::Scope::Host,
            bans_max: config.firewall.max_bans as usize,
            groups,
        };
        let prefixes = geoip.as_ref().map(|countries| countries.prefixes_for(&desired.rules)).unwrap_or_default();
        let engine = Engine::new(desired.rules.iter().copied(), prefixes, engine_config, &mut *plane, moment())
            .map_err(|error| engine_failure(&error))?;

        let kernel = plane.status();
        if !kernel.is_active && !config.xdp.interfaces.is_empty() {
            tracing::warn!(why = kernel.detail, "rules are enforced in user space only");
        }

        if is_empty {
            store.seed(&desired).map_err(store_failure)?;
        }
        let firewall = Firewall::new(engine.memory(), limit);
        firewall.limiter.set_second(kernel.is_active);
        let (bans, offences) = Bans::new(config.firewall.auto_ban);
        let drops = control::drops();
        let edge = Arc::new(Edge {
            firewall,
            resolver: Resolver::default(),
            counters: Counters::default(),
            offences,
            drops: drops.clone(),
            proxy: config.proxy,
            splicing: splicing(config.proxy.splice),
            memory: Budget::new(config.proxy.memory_limit),
        });
        let running = |listener| Arc::new(Listening::with_certificates(listener, &certificates));
        let listening: Vec<_> = desired.listeners.iter().map(running).collect();
        let events = plane.events();
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
        let (control, control_thread) = control::start(owned, drops)
            .map_err(|error| Failure::because(Exit::Failure, "starting the control thread", &error))?;

        let quiet = config.proxy.shutdown_timeout / QUIET_SHARE;
        let shutdown = Shutdown {
            drain: Drain::new(CancellationToken::new(), quiet),
            force: CancellationToken::new(),
            leaves_queues: Arc::default(),
        };
        let workers = start_workers(workers, &edge, &listening, bound, &shutdown)
            .map_err(|error| Failure::because(Exit::Failure, "starting the workers", &error))?;
        Ok(Self {
            config,
            control,
            control_thread,
            workers,
            shutdown,
            admin,
            edge,
            listening,
            events,
            sockets,
            forgotten,
            doorbell,
        })
    }

    async fn serve(self, mut signals: Signals) -> Result<(), Failure> {
        let admin_stop = CancellationToken::new();
        let admin = self.admin.map(|socket| {
            let serving =
                admin::serve(socket, self.control.clone(), self.shutdown.drain.token().clone(), admin_stop.clone());
            tokio::task::spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(error = describe(&error), "the admin API has ended");
                }
            })
        });
        if let Some(events) = self.events {
            tokio::task::spawn(control::tell_drops(
                events.clone(),
                self.control.drops().clone(),
                Arc::clone(&self.edge),
            ));
            if self.config.firewall.auto_ban.is_some() {
                tokio::task::spawn(control::report_violations(events, Arc::clone(&self.edge)));
            }
        }
        let mut notifier = Notifier::from_env();
        for name in &self.forgotten {
            notifier.forget(name);
        }
        self.shutdown.leaves_queues.store(notifier.store(&self.sockets), Relaxed);
        notifier.ready();
        tracing::info!(version = env!("CARGO_PKG_VERSION"), workers = self.workers.len(), "mc-proxy is ready");

        let ending = {
            // One question for all turns of the loop: a successor that has rung may still be telling who it is.
            let mut ringing = pin!(rung(self.doorbell.as_ref()));
            loop {
                tokio::select! {
                    _ = signals.terminate.recv() => break Ending::Signal,
                    _ = signals.interrupt.recv() => break Ending::Signal,
                    successor = &mut ringing => match successor.pass(&self.sockets) {
                        Ok(()) => break Ending::Takeover(successor),
                        Err(error) => {
                            tracing::error!(%error, "a successor has gone before it had the listening sockets");
                            ringing.set(rung(self.doorbell.as_ref()));
                        }
                    },
                    _ = signals.hangup.recv() => reload(&self.control, &mut notifier).await,
                    () = notifier.watch(&self.workers, &self.control_thread) => {}
                }
            }
        };
        let patience = self.config.proxy.shutdown_timeout;
        tracing::info!(timeout = ?patience, "shutting down, draining connections");
        notifier.stopping(patience);
        if let Some(doorbell) = self.doorbell {
            doorbell.remove();
        }
        // What is not kept by somebody else is to be closed when the workers close theirs.
        drop(self.sockets);
        let tally = Tally::begin(&self.edge, &self.listening);
        let (workers, shutdown) = (self.workers, &self.shutdown);
        let (control, control_thread, is_released) =
            (self.control, self.control_thread, matches!(ending, Ending::Takeover(_)));
        let stop_control = async move {
            admin_stop.cancel();
            if let Some(admin) = admin {
                drop(admin.await);
            }
            let stopped = if is_released { control.release().await } else { control.stop().await };
            drop(control_thread.join());
            stopped
        };
        let stopped = match ending {
            Ending::Signal => {
                drain(workers, shutdown, patience, tally, &mut signals).await;
                stop_control.await
            }
            Ending::Takeover(successor) => {
                tracing::info!("another daemon takes over");
                shutdown.leaves_queues.store(true, Relaxed);
                shutdown.drain.begin();
                let stopped = stop_control.await;
                if let Err(error) = successor.release() {
                    tracing::error!(%error, "the successor has gone, and nobody accepts connections");
                }
                drain(workers, shutdown, patience, tally, &mut signals).await;
                stopped
            }
        };
        match self.config.xdp.on_exit {
            OnExit::Keep => tracing::info!("mc-proxy has stopped; what the kernel drops, it goes on dropping"),
            OnExit::Detach => tracing::info!("mc-proxy has stopped"),
        }
        stopped.map_err(|error| Failure::because(Exit::Failure, "stopping", &error))
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

fn open_store(config: &Config) -> Result<Opened, Failure> {
    let store = Store::open(&config.database).map_err(store_failure)?;
    let is_empty = store.is_empty().map_err(store_failure)?;
    let desired = if is_empty { config.seed.clone() } else { load(&store).map_err(store_failure)? };
    if desired.listeners.is_empty() {
        return Err(Failure::new(Exit::Config, "there is no listener; add a [[listeners]] table with an addr"));
    }
    if !is_empty {
        report_differences(&store.diff(&config.seed).map_err(store_failure)?);
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
        tracing::error!(problem, "connections of the route are refused until its certificate can be loaded");
    }
    Ok(certificates)
}

fn plane_failure(error: &PlaneError) -> Failure {
    let exit = if error.is_privilege() { Exit::NoPermission } else { Exit::Failure };
    Failure::because(exit, "xdp.required is set, and the kernel plane cannot be had", error)
}

fn engine_failure(error: &EngineError) -> Failure {
    if let EngineError::Prepare(plane) | EngineError::Commit(plane) = error {
        return plane_failure(plane);
    }
    Failure::because(Exit::Failure, "putting the firewall rules in force", error)
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

/// Waits for a successor.
async fn rung(doorbell: Option<&Doorbell>) -> Successor {
    match doorbell {
        Some(doorbell) => doorbell.rung().await,
        None => std::future::pending().await,
    }
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

async fn reload(control: &Control, notifier: &mut Notifier) {
    tracing::info!("received SIGHUP, reloading GeoIP database");
    notifier.reloading();
    match control.reload_geoip().await {
        Ok(true) => {}
        Ok(false) => tracing::info!("there is no firewall.geoip_db to reload; the configuration is read at start only"),
        Err(error) => tracing::error!(error = describe(&error), "reloading failed, the old GeoIP database stays"),
    }
    match control.reload_certificates().await {
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
