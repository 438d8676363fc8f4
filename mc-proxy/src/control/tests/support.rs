//! What the tests stand on: a control thread that can be ended and begun anew, and its plane.

use std::{
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mc_proxy_common::rate::RateLimit;
use tempfile::TempDir;

use crate::{
    clock,
    config::Proxy,
    conn::{Counters, Edge, Listening},
    control::{
        Bans, ChangeOptions, Control, Countries, GroupStatus, ListedRule, NewRule, Owned, RuleFilter, drops, moment,
        open_certificates, start,
    },
    desired::{Desired, Listener, Route, Target},
    firewall::{
        Action, AutoBan, Engine, EngineConfig, Firewall, Generations, Group, Rule, RuleKey, RuleScope, Sizes, Subject,
        TableMemory,
    },
    net::{
        relay::{Splice, Splicing},
        resolve::Resolver,
    },
    store::{Store, StoreError},
    xdp::{Dataplane, Events, PlaneError, PlaneStatus, Repairs, TestRun},
};

/// Tables in memory; what is to fail does so, so many times.
#[derive(Clone, Default)]
pub(super) struct Plane(Arc<Switches>);

#[derive(Default)]
pub(super) struct Switches {
    failing_prepares: AtomicU32,
    failing_commits: AtomicU32,
    committed: AtomicU64,
    prepared: AtomicU64,
    is_shut_down: AtomicBool,
    /// Run with the next commit, before it.
    before_commit: Mutex<Option<Hook>>,
}

type Hook = Box<dyn FnOnce() + Send>;

impl Switches {
    pub(super) fn fail_prepares(&self, count: u32) {
        self.failing_prepares.store(count, SeqCst);
    }

    pub(super) fn fail_commits(&self, count: u32) {
        self.failing_commits.store(count, SeqCst);
    }

    /// Generations that were put in force.
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(SeqCst)
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.is_shut_down.load(SeqCst)
    }

    pub(super) fn before_commit(&self, hook: impl FnOnce() + Send + 'static) {
        *self.before_commit.lock().unwrap() = Some(Box::new(hook));
    }

    fn fails(count: &AtomicU32) -> bool {
        count.fetch_update(SeqCst, SeqCst, |count| count.checked_sub(1)).is_ok()
    }
}

impl Generations for Plane {
    fn prepare(&mut self, sizes: &Sizes) -> Result<Arc<TableMemory>, PlaneError> {
        if Switches::fails(&self.0.failing_prepares) {
            return Err(PlaneError::new("no memory for a map"));
        }
        let number = self.0.prepared.fetch_add(1, Relaxed) + 1;
        Ok(Arc::new(TableMemory::heap(sizes, number.wrapping_mul(0x1234_5678_9abc_def1))))
    }

    fn commit(&mut self) -> Result<(), PlaneError> {
        if let Some(hook) = self.0.before_commit.lock().unwrap().take() {
            hook();
        }
        if Switches::fails(&self.0.failing_commits) {
            return Err(PlaneError::new("the link is gone"));
        }
        self.0.committed.fetch_add(1, SeqCst);
        Ok(())
    }

    fn discard(&mut self) {}
}

impl Dataplane for Plane {
    fn keep_attached(&mut self) -> Result<Repairs, PlaneError> {
        Ok(Repairs::default())
    }

    fn clear_group(&mut self, _group: u32) -> Result<(), PlaneError> {
        Ok(())
    }

    fn status(&self) -> PlaneStatus {
        PlaneStatus::default()
    }

    fn events(&self) -> Option<Events> {
        None
    }

    fn test_run(&self, _frame: &[u8]) -> Result<TestRun, PlaneError> {
        Err(PlaneError::new("a plane of a test runs no program"))
    }

    fn shutdown(&mut self) -> Result<(), PlaneError> {
        self.0.is_shut_down.store(true, SeqCst);
        Ok(())
    }
}

/// What the thread is started with.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) listener: Listener,
    pub(super) auto_ban: Option<AutoBan>,
    pub(super) bans_max: usize,
    pub(super) geoip: Option<PathBuf>,
    /// Instead of a directory of its own.
    pub(super) database: Option<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { listener: listener(), auto_ban: None, bans_max: 1_000, geoip: None, database: None }
    }
}

pub(super) struct Bench {
    pub(super) control: Control,
    pub(super) plane: Arc<Switches>,
    pub(super) edge: Arc<Edge>,
    pub(super) listening: Arc<Listening>,
    pub(super) database: PathBuf,
    thread: JoinHandle<()>,
    pub(super) setup: Setup,
    dir: TempDir,
}

/// Everything that a failed change must have left as it was.
#[derive(PartialEq, Eq)]
pub(super) struct State {
    rules: Vec<ListedRule>,
    groups: Vec<(Group, u64)>,
    dropped: Vec<IpAddr>,
}

/// Without the thousands of rules.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rules, groups, dropped } = self;
        write!(f, "{} rules, {groups:?}, dropped: {dropped:?}", rules.len())
    }
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(Setup::default())
    }

    pub(super) fn with(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = setup.database.clone().unwrap_or_else(|| dir.path().join("mc-proxy.db"));
        let mut store = Store::open(&database).unwrap();
        store.seed(&Desired { listeners: vec![setup.listener.clone()], rules: Vec::new() }).unwrap();
        Self::begin(store, setup, dir)
    }

    fn begin(store: Store, setup: Setup, dir: TempDir) -> Self {
        let database = store.path().to_owned();
        let plane = Plane::default();
        let switches = Arc::clone(&plane.0);
        let mut rules = Vec::new();
        store.for_each_rule(&mut |rule| rules.push(rule)).unwrap();
        let geoip = setup.geoip.clone().map(|path| Countries::open(path).unwrap());
        let prefixes = geoip.as_ref().map(|countries| countries.prefixes_for(&rules)).unwrap_or_default();
        let config = EngineConfig { bans_max: setup.bans_max, ..EngineConfig::default() };
        let mut plane = Box::new(plane);
        let engine = Engine::new(rules, prefixes, config, &mut *plane, moment()).unwrap();
        let (bans, offences) = Bans::new(setup.auto_ban);
        let drops = drops();
        let second = Duration::from_secs(1);
        let edge = Arc::new(Edge {
            firewall: Firewall::new(engine.memory(), RateLimit::OFF),
            geoip: Default::default(),
            http: Default::default(),
            http_trusted: Default::default(),
            http_counters: Default::default(),
            resolver: Resolver::default(),
            counters: Counters::default(),
            offences,
            drops: drops.clone(),
            proxy: Proxy {
                connect_timeout: second,
                handshake_timeout: second,
                idle_timeout: second,
                shutdown_timeout: second,
                ..Proxy::default()
            },
            splicing: Splicing::new(Splice::Auto, Err("a bench has none".into())),
            memory: crate::net::memory::Budget::new(0),
            access: None,
            redact_clients: false,
        });
        let listeners = store.listeners().unwrap();
        let (certificates, _) = open_certificates(&listeners);
        let listening = Arc::new(Listening::with_certificates(&listeners[0], &certificates));
        let owned = Owned {
            store,
            plane,
            engine,
            is_host_scope: false,
            bans_max: setup.bans_max,
            listeners,
            listening: vec![Arc::clone(&listening)],
            edge: Arc::clone(&edge),
            geoip,
            certificates,
            bans,
        };
        let (control, thread) = start(owned, drops).unwrap();
        Self { control, plane: switches, edge, listening, database, thread, setup, dir }
    }

    /// Ends the thread; what is to be found then is in the database.
    pub(super) async fn stopped(self) -> (Setup, TempDir) {
        let Self { control, thread, setup, dir, .. } = self;
        control.stop().await.unwrap();
        thread.join().unwrap();
        (setup, dir)
    }

    /// As a daemon that starts anew on the same database.
    pub(super) async fn restarted(self) -> Self {
        let database = self.database.clone();
        let (setup, dir) = self.stopped().await;
        Self::begin(Store::open(&database).unwrap(), setup, dir)
    }

    /// What of the database is read with the thread ended.
    pub(super) async fn stored<T>(self, read: impl FnOnce(&Store) -> Result<T, StoreError>) -> T {
        let database = self.database.clone();
        let (_, _dir) = self.stopped().await;
        read(&Store::open(&database).unwrap()).unwrap()
    }

    pub(super) async fn put(&self, rules: &[Rule]) {
        self.put_with(rules, ChangeOptions::default()).await;
    }

    pub(super) async fn put_with(&self, rules: &[Rule], options: ChangeOptions) -> Option<u64> {
        let rules = rules.iter().map(|rule| new(*rule)).collect();
        self.control.put_rules(rules, options).await.unwrap().confirm_id
    }

    /// All rules of the database.
    pub(super) async fn listed(&self) -> Vec<ListedRule> {
        let mut rules: Vec<ListedRule> = Vec::new();
        loop {
            let after = rules.last().map(|listed| listed.rule.key);
            let page = self.control.list(RuleFilter::default(), after, 1_000).await.unwrap();
            let is_last = page.len() < 1_000;
            rules.extend(page);
            if is_last {
                return rules;
            }
        }
    }

    pub(super) async fn keys(&self) -> Vec<String> {
        self.listed().await.iter().map(|listed| listed.rule.key.to_string()).collect()
    }

    /// Whether the tables say that a connection to the listener is refused.
    pub(super) fn is_dropped(&self, source: &str) -> bool {
        self.edge.firewall.ask(source.parse().unwrap(), 443, clock::since_boot()).is_drop()
    }

    /// The whole, with what the tables say of these sources.
    pub(super) async fn state(&self, sources: &[&str]) -> State {
        let dropped = sources.iter().filter(|source| self.is_dropped(source));
        let sizes = |status: GroupStatus| (status.rules > 0).then_some((status.group, status.rules));
        State {
            rules: self.listed().await,
            groups: self.control.groups().await.unwrap().into_iter().filter_map(sizes).collect(),
            dropped: dropped.map(|source| source.parse().unwrap()).collect(),
        }
    }

    /// Asks until `is` says yes; panics after five seconds.
    pub(super) async fn until(&self, what: &str, is: impl AsyncFn(&Self) -> bool) {
        let begun = Instant::now();
        while !is(self).await {
            assert!(begun.elapsed() < Duration::from_secs(5), "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Named by its address, `:443`.
pub(super) fn listener() -> Listener {
    Listener::new(":443".parse().unwrap())
}

pub(super) fn route(hostname: &str, backend: &str) -> Route {
    Route {
        hostname: hostname.parse().unwrap(),
        alpn: Vec::new(),
        target: Target::passthrough(backend.parse().unwrap()),
    }
}

pub(super) fn block(subject: &str) -> Rule {
    Rule::block(subject.parse().unwrap())
}

pub(super) fn rule(group: &str, action: Action, subject: &str, scope: RuleScope) -> Rule {
    let subject: Subject = subject.parse().unwrap();
    Rule { key: RuleKey::new(group.parse().unwrap(), action, subject, scope).unwrap(), expires_at: None }
}

pub(super) fn new(rule: Rule) -> NewRule {
    NewRule { rule, comment: None }
}

/// Blocks of 10.0.0.0/8, one address each.
pub(super) fn many(count: u32) -> Vec<Rule> {
    let address = |n: u32| std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string();
    (0..count).map(|n| block(&address(n))).collect()
}

pub(super) fn confirm(patience: Duration) -> ChangeOptions {
    ChangeOptions { confirm: Some(patience), ..ChangeOptions::default() }
}
