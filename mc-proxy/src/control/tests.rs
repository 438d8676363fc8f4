//! The control thread over a real database and a kernel plane that a test can make refuse.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tempfile::TempDir;

use super::*;
use crate::{
    config::{Proxy, Refuse, Splice},
    conn::{Counters, Edge, Listening, Offences},
    desired::{Desired, L7PolicyKind, Listener},
    firewall::{Firewall, RuleSet},
    net::resolve::Resolver,
    store::Store,
    xdp_v1::{Change, Dataplane, PlaneError, Repairs},
};

/// What the plane was asked for, and whether it is to refuse.
#[derive(Clone, Default)]
struct Plane {
    changes: Arc<Mutex<Vec<Change>>>,
    refuses: Arc<AtomicBool>,
    /// A database that is moved away with the refusal, so that it cannot be taken back either.
    loses: Arc<Mutex<Option<PathBuf>>>,
}

impl Dataplane for Plane {
    fn apply(&mut self, change: Change, rules: &RuleSet) -> Result<(), PlaneError> {
        let (rule, is_there) = match change {
            Change::Added(rule) => (rule, true),
            Change::Removed(rule) => (rule, false),
        };
        assert_eq!(rules.contains(&rule), is_there, "memory comes before the kernel");
        if self.refuses.load(Relaxed) {
            if let Some(path) = &*self.loses.lock().unwrap() {
                fs::rename(path, path.with_extension("lost")).unwrap();
            }
            return Err(PlaneError::new("the map is full"));
        }
        self.changes.lock().unwrap().push(change);
        Ok(())
    }

    fn reconcile(&mut self, _rules: &RuleSet) -> Result<Repairs, PlaneError> {
        Ok(Repairs::default())
    }

    fn status(&self) -> PlaneStatus {
        PlaneStatus::default()
    }

    fn shutdown(&mut self) -> Result<(), PlaneError> {
        Ok(())
    }
}

struct Bench {
    control: Control,
    thread: std::thread::JoinHandle<()>,
    plane: Plane,
    edge: Arc<Edge>,
    listening: Arc<Listening>,
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("mc-proxy.db")).unwrap();
        let listener = Listener::new(":443".parse().unwrap());
        store.seed(&Desired { listeners: vec![listener.clone()], rules: Vec::new() }).unwrap();
        let second = Duration::from_secs(1);
        let edge = Arc::new(Edge {
            firewall: Firewall::default(),
            resolver: Resolver::default(),
            counters: Counters::default(),
            offences: Offences::ignored(),
            proxy: Proxy {
                connect_timeout: second,
                handshake_timeout: second,
                idle_timeout: second,
                shutdown_timeout: second,
                splice: Splice::Auto,
                refuse: Refuse::Reset,
            },
        });
        let plane = Plane::default();
        let listening = Arc::new(Listening::new(&listener));
        let (control, thread) = start(Owned {
            store,
            plane: Box::new(plane.clone()),
            listeners: vec![listener],
            listening: vec![Arc::clone(&listening)],
            edge: Arc::clone(&edge),
            geoip_db: None,
        })
        .unwrap();
        Self { control, thread, plane, edge, listening, dir }
    }

    /// What a daemon that starts now would find.
    async fn stored(self) -> Desired {
        self.control.stop().await.unwrap();
        self.thread.join().unwrap();
        Store::open(&self.dir.path().join("mc-proxy.db")).unwrap().load().unwrap()
    }
}

fn block(text: &str) -> Rule {
    Rule::block(text.parse().unwrap())
}

fn route(hostname: &str, backend: &str) -> Route {
    Route { hostname: hostname.parse().unwrap(), target: Target::passthrough(backend.parse().unwrap()) }
}

#[tokio::test]
async fn a_rule_is_in_all_three_places_when_the_call_returns() {
    let bench = Bench::new();
    let rule = block("203.0.113.50");
    bench.control.add_rule(rule).await.unwrap();
    assert!(bench.edge.firewall.rules.load().contains(&rule));
    assert_eq!(*bench.plane.changes.lock().unwrap(), [Change::Added(rule)]);
    assert_eq!(bench.control.rules().await.unwrap(), [rule]);
    // Again: nothing new, but the kernel is told once more.
    bench.control.add_rule(rule).await.unwrap();
    assert_eq!(bench.plane.changes.lock().unwrap().len(), 2);
    assert_eq!(bench.stored().await.rules, [rule]);
}

#[tokio::test]
async fn nothing_has_changed_when_the_kernel_refuses() {
    let bench = Bench::new();
    let kept = block("198.51.100.0/24");
    bench.control.add_rule(kept).await.unwrap();
    bench.plane.refuses.store(true, Relaxed);
    let error = bench.control.add_rule(block("203.0.113.50")).await.unwrap_err();
    assert_eq!(error.to_string(), "the map is full");
    assert!(matches!(bench.control.remove_rule(kept).await, Err(ControlError::Failed(_))));
    let rules: Vec<_> = bench.edge.firewall.rules.load().iter().collect();
    assert_eq!(rules, [kept]);
    assert_eq!(bench.stored().await.rules, [kept]);
}

/// Or else the comparison with the kernel, which goes by memory, would not know of the change.
#[tokio::test]
async fn memory_stays_with_a_database_that_cannot_take_back() {
    let bench = Bench::new();
    let path = bench.dir.path().join("mc-proxy.db");
    let rule = block("203.0.113.50");
    *bench.plane.loses.lock().unwrap() = Some(path.clone());
    bench.plane.refuses.store(true, Relaxed);
    assert!(matches!(bench.control.add_rule(rule).await, Err(ControlError::Failed(_))));
    assert!(bench.edge.firewall.rules.load().contains(&rule));
    fs::rename(path.with_extension("lost"), &path).unwrap();
    assert!(matches!(bench.control.remove_rule(rule).await, Err(ControlError::Failed(_))));
    assert!(bench.edge.firewall.rules.load().is_empty());
    fs::rename(path.with_extension("lost"), &path).unwrap();
    assert!(bench.stored().await.rules.is_empty());
}

#[tokio::test]
async fn a_country_needs_a_database() {
    let bench = Bench::new();
    let error = bench.control.add_rule(block("RU")).await.unwrap_err();
    assert!(matches!(&error, ControlError::Refused(text) if text.contains("firewall: geoip_db is required")));
    assert!(bench.stored().await.rules.is_empty());
}

#[tokio::test]
async fn routes_are_published_as_a_whole_and_stored() {
    let bench = Bench::new();
    let listener = || ":443".to_owned();
    let name: crate::tls::ServerName = "a.example".parse().unwrap();
    let backend = |listening: &Listening| {
        listening.routes.load().lookup(Some(&name)).map(|found| found.target.backends[0].to_string())
    };
    bench.control.add_route(listener(), route("a.example", "10.0.0.1:443")).await.unwrap();
    bench.control.add_route(listener(), route("*.example", "10.0.0.2:443")).await.unwrap();
    assert_eq!(backend(&bench.listening).as_deref(), Some("10.0.0.1:443"));
    bench.control.add_route(listener(), route("a.example", "10.0.0.3:443")).await.unwrap();
    assert_eq!(backend(&bench.listening).as_deref(), Some("10.0.0.3:443"));
    let policy = L7Policy { kind: L7PolicyKind::RequireHeader, value: "X-Key".into() };
    let pattern: Pattern = "a.example".parse().unwrap();
    bench.control.add_policy(listener(), pattern.clone(), policy.clone()).await.unwrap();
    assert_eq!(bench.control.policies(listener(), pattern.clone()).await.unwrap(), [policy]);
    bench.control.remove_route(listener(), pattern.clone()).await.unwrap();
    assert_eq!(backend(&bench.listening).as_deref(), Some("10.0.0.2:443"));
    assert!(matches!(bench.control.remove_route(listener(), pattern).await, Err(ControlError::NotFound(_))));
    let unknown = bench.control.routes(":80".into()).await.unwrap_err();
    assert_eq!(unknown.to_string(), "listener_addr: there is no listener \":80\"; there is \":443\"");
    bench.control.set_max_connections(listener(), 7).await.unwrap();
    assert_eq!(bench.listening.max_connections(), 7);
    let stored = bench.stored().await;
    assert_eq!(stored.listeners[0].max_connections, 7);
    assert_eq!(stored.listeners[0].routes, [route("*.example", "10.0.0.2:443")]);
}
