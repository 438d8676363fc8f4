//! The thread behind [`super::Control`].

use std::{
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::mpsc;

use super::{Command, Control, ControlError, ListenerRoutes, ListenerStatus, Reply, Status};
use crate::{
    conn::{Edge, Listening},
    desired::{L7Policy, Listener, Route},
    firewall::{Action, GeoIp, Rule, RuleKey, Subject},
    route::{Pattern, RouteTable},
    store::{self, Store, StoreError},
    telemetry::describe,
    xdp_v1::{Change, Dataplane, Repairs},
};

/// Commands that may wait. Callers wait for a place, and have deadlines.
const QUEUE: usize = 64;

/// How often the kernel is compared with the desired state, whatever the daemon believes.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);

/// What the thread owns.
pub struct Owned {
    /// The database.
    pub store: Store,
    /// The kernel plane, in agreement with `edge.firewall.rules`.
    pub plane: Box<dyn Dataplane>,
    /// The listeners with their routes, as the database has them.
    pub listeners: Vec<Listener>,
    /// The same listeners as connections see them, in the same order.
    pub listening: Vec<Arc<Listening>>,
    /// What connections share.
    pub edge: Arc<Edge>,
    /// `firewall.geoip_db`.
    pub geoip_db: Option<PathBuf>,
}

struct Thread {
    owned: Owned,
    started_at: SystemTime,
    started: Instant,
    /// Why the last reconciliation failed; empty when it did not.
    trouble: String,
}

/// Starts the thread. It ends after [`Control::stop`], or when every [`Control`] is gone.
///
/// # Errors
/// When the system has no thread to give.
pub fn start(owned: Owned) -> std::io::Result<(Control, JoinHandle<()>)> {
    let (commands, queue) = mpsc::channel(QUEUE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let thread = Thread { owned, started_at: SystemTime::now(), started: Instant::now(), trouble: String::new() };
    let thread = std::thread::Builder::new().name("control".into()).spawn(move || thread.run(queue, &runtime))?;
    Ok((Control { commands }, thread))
}

impl Thread {
    fn run(mut self, mut queue: mpsc::Receiver<Command>, runtime: &tokio::runtime::Runtime) {
        let mut reconcile_at = Instant::now() + RECONCILE_EVERY;
        loop {
            let patience = reconcile_at.saturating_duration_since(Instant::now());
            // Commands are worked off outside the runtime: they block, and the kernel plane may need its own.
            match runtime.block_on(async { tokio::time::timeout(patience, queue.recv()).await }) {
                Ok(Some(Command::Stop(reply))) => {
                    answer(reply, self.stop());
                    return;
                }
                Ok(Some(command)) => self.work_off(command),
                Ok(None) => {
                    if let Err(error) = self.stop() {
                        tracing::error!(%error, "stopping");
                    }
                    return;
                }
                Err(_) => {}
            }
            if reconcile_at <= Instant::now() {
                self.reconcile();
                reconcile_at = Instant::now() + RECONCILE_EVERY;
            }
        }
    }

    fn work_off(&mut self, command: Command) {
        // Who has stopped waiting has been told that it failed.
        if command.is_abandoned() {
            return;
        }
        match command {
            Command::Routes(listener, reply) => answer(reply, self.routes(&listener)),
            Command::AddRoute(listener, route, reply) => answer(reply, self.add_route(&listener, route)),
            Command::RemoveRoute(listener, hostname, reply) => answer(reply, self.remove_route(&listener, &hostname)),
            Command::Policies(listener, hostname, reply) => {
                answer(reply, self.route(&listener, &hostname).map(|route| route.target.l7_policies.clone()));
            }
            Command::AddPolicy(listener, hostname, policy, reply) => {
                answer(reply, self.add_policy(&listener, &hostname, policy));
            }
            Command::RemovePolicy(listener, hostname, policy, reply) => {
                answer(reply, self.remove_policy(&listener, &hostname, &policy));
            }
            Command::Rules(reply) => answer(reply, Ok(self.rules())),
            Command::AddRule(rule, reply) => answer(reply, self.add_rule(rule)),
            Command::RemoveRule(rule, reply) => answer(reply, self.remove_rule(rule)),
            Command::SetMaxConnections(listener, max, reply) => {
                answer(reply, self.set_max_connections(&listener, max));
            }
            Command::Status(reply) => answer(reply, Ok(self.status())),
            Command::ReloadGeoIp(reply) => answer(reply, self.reload_geoip()),
            Command::Stop(reply) => answer(reply, Err(ControlError::Stopping)),
        }
    }

    fn index(&self, listener: &str) -> Result<usize, ControlError> {
        self.owned.listeners.iter().position(|known| known.addr.as_str() == listener).ok_or_else(|| {
            let known: Vec<_> = self.owned.listeners.iter().map(|l| format!("{:?}", l.addr.as_str())).collect();
            ControlError::NotFound(format!(
                "listener_addr: there is no listener {listener:?}; there is {}",
                known.join(", ")
            ))
        })
    }

    fn route(&self, listener: &str, hostname: &Pattern) -> Result<&Route, ControlError> {
        let index = self.index(listener)?;
        let routes = self.owned.listeners.get(index).map(|l| l.routes.as_slice()).unwrap_or_default();
        routes.iter().find(|route| route.hostname == *hostname).ok_or_else(|| no_route(listener, hostname))
    }

    fn routes(&self, listener: &str) -> Result<ListenerRoutes, ControlError> {
        let index = self.index(listener)?;
        let listener = self.owned.listeners.get(index).ok_or(ControlError::Stopping)?;
        Ok(ListenerRoutes { routes: listener.routes.clone(), default: listener.default.clone() })
    }

    fn add_route(&mut self, listener: &str, route: Route) -> Result<(), ControlError> {
        let index = self.index(listener)?;
        self.owned.store.upsert_route(listener, &route).map_err(failed)?;
        self.publish(index, |routes| match routes.iter_mut().find(|known| known.hostname == route.hostname) {
            Some(known) => *known = route,
            None => routes.push(route),
        });
        Ok(())
    }

    fn remove_route(&mut self, listener: &str, hostname: &Pattern) -> Result<(), ControlError> {
        let index = self.index(listener)?;
        if !self.owned.store.delete_route(listener, hostname).map_err(failed)? {
            return Err(no_route(listener, hostname));
        }
        self.publish(index, |routes| routes.retain(|route| route.hostname != *hostname));
        Ok(())
    }

    fn add_policy(&mut self, listener: &str, hostname: &Pattern, policy: L7Policy) -> Result<(), ControlError> {
        self.route(listener, hostname)?;
        let index = self.index(listener)?;
        if self.owned.store.insert_policy(listener, hostname, &policy).map_err(failed)? {
            self.publish(index, |routes| with_route(routes, hostname, |route| route.target.l7_policies.push(policy)));
        }
        Ok(())
    }

    fn remove_policy(&mut self, listener: &str, hostname: &Pattern, policy: &L7Policy) -> Result<(), ControlError> {
        self.route(listener, hostname)?;
        let index = self.index(listener)?;
        if !self.owned.store.delete_policy(listener, hostname, policy).map_err(failed)? {
            return Err(ControlError::NotFound(format!("policy: the route {hostname} has no such policy")));
        }
        self.publish(index, |routes| {
            with_route(routes, hostname, |route| route.target.l7_policies.retain(|known| known != policy));
        });
        Ok(())
    }

    /// Changes a listener's routes in memory: connections from now on see the new table as a whole.
    fn publish(&mut self, index: usize, change: impl FnOnce(&mut Vec<Route>)) {
        let Owned { listeners, listening, .. } = &mut self.owned;
        if let (Some(listener), Some(listening)) = (listeners.get_mut(index), listening.get(index)) {
            change(&mut listener.routes);
            listening.routes.store(Arc::new(RouteTable::new(&listener.routes, listener.default.clone())));
        }
    }

    fn rules(&self) -> Vec<Rule> {
        let mut rules: Vec<_> = self.owned.edge.firewall.rules.load().iter().collect();
        rules.sort_unstable();
        rules
    }

    fn add_rule(&mut self, rule: Rule) -> Result<(), ControlError> {
        if matches!(rule.key.subject, Subject::Country(_)) && self.owned.edge.firewall.geoip.load().is_none() {
            return Err(ControlError::Refused(
                "firewall: geoip_db is required to block a country; set firewall.geoip_db and restart the daemon"
                    .into(),
            ));
        }
        let is_new = !self.owned.edge.firewall.rules.load().contains(&rule);
        self.owned.store.apply([store::Change::Put(rule, None)]).map_err(failed)?;
        let before = self.owned.edge.firewall.rules.load_full();
        let mut after = (*before).clone();
        after.insert(rule);
        self.owned.edge.firewall.rules.store(Arc::new(after.clone()));
        let Err(error) = self.owned.plane.apply(Change::Added(rule), &after) else { return Ok(()) };
        if is_new && self.undo("rule added", |store| store.apply([store::Change::Remove(rule.key)])) {
            self.owned.edge.firewall.rules.store(before);
        }
        Err(ControlError::Failed(describe(&error)))
    }

    fn no_rule(&self, rule: Rule) -> String {
        let (word, other, word_of_other) = match rule.key.action {
            Action::Block | Action::Count => ("block", Action::Allow, "allow"),
            Action::Allow => ("allow", Action::Block, "block"),
        };
        let subject = rule.key.subject;
        if self.owned.edge.firewall.rules.load().contains(&Rule { key: RuleKey { action: other, ..rule.key }, ..rule })
        {
            format!("rule: there is no {word} rule for {subject}, but an {word_of_other} rule")
        } else {
            format!("rule: there is no {word} rule for {subject}")
        }
    }

    fn remove_rule(&mut self, rule: Rule) -> Result<(), ControlError> {
        if !self.owned.edge.firewall.rules.load().contains(&rule) {
            return Err(ControlError::NotFound(self.no_rule(rule)));
        }
        self.owned.store.apply([store::Change::Remove(rule.key)]).map_err(failed)?;
        let before = self.owned.edge.firewall.rules.load_full();
        let mut after = (*before).clone();
        after.remove(&rule);
        self.owned.edge.firewall.rules.store(Arc::new(after.clone()));
        let Err(error) = self.owned.plane.apply(Change::Removed(rule), &after) else { return Ok(()) };
        if self.undo("rule removed", |store| store.apply([store::Change::Put(rule, None)])) {
            self.owned.edge.firewall.rules.store(before);
        }
        Err(ControlError::Failed(describe(&error)))
    }

    /// After the kernel has refused what the database had taken; `false` if the database does not give it back. Memory
    /// then stays with the database, so that the kernel is asked again with every comparison.
    fn undo(&mut self, what: &str, undo: impl FnOnce(&mut Store) -> Result<(), StoreError>) -> bool {
        let Err(error) = undo(&mut self.owned.store) else { return true };
        let error = describe(&error);
        tracing::error!(what, error, "the database keeps a change that the kernel refused; it will be tried again");
        false
    }

    fn set_max_connections(&mut self, listener: &str, max: u64) -> Result<(), ControlError> {
        let index = self.index(listener)?;
        self.owned.store.set_max_connections(listener, max).map_err(failed)?;
        if let (Some(listener), Some(listening)) =
            (self.owned.listeners.get_mut(index), self.owned.listening.get(index))
        {
            listener.max_connections = max;
            listening.set_max_connections(max);
        }
        Ok(())
    }

    fn status(&self) -> Status {
        let Owned { edge, listeners, listening, plane, .. } = &self.owned;
        let (client_bytes, backend_bytes) = edge.counters.bytes();
        Status {
            started_at: self.started_at,
            uptime: self.started.elapsed(),
            listeners: listeners
                .iter()
                .zip(listening)
                .map(|(desired, running)| ListenerStatus {
                    addr: desired.addr.to_string(),
                    routes: desired.routes.len(),
                    active: running.active(),
                    max_connections: running.max_connections(),
                    accepted: running.accepted(),
                })
                .collect(),
            plane: plane.status(),
            outcomes: edge.counters.outcomes(),
            client_bytes,
            backend_bytes,
        }
    }

    fn reload_geoip(&mut self) -> Result<bool, ControlError> {
        let Some(path) = &self.owned.geoip_db else { return Ok(false) };
        let geoip = GeoIp::open(path).map_err(|error| ControlError::Failed(describe(&error)))?;
        self.owned.edge.firewall.geoip.store(Some(Arc::new(geoip)));
        Ok(true)
    }

    fn reconcile(&mut self) {
        let rules = self.owned.edge.firewall.rules.load_full();
        match self.owned.plane.reconcile(&rules) {
            Ok(repairs) if repairs == Repairs::default() => self.trouble.clear(),
            Ok(repairs) => tracing::warn!(
                upserted = repairs.upserted,
                removed = repairs.removed,
                reattached = repairs.reattached,
                "the kernel differed from the desired state and has been put right"
            ),
            Err(error) => self.tell_trouble(describe(&error)),
        }
    }

    /// A trouble that lasts, such as an interface that is not there, is one line and not one every time.
    fn tell_trouble(&mut self, trouble: String) {
        if trouble != self.trouble {
            tracing::warn!(trouble, "the kernel could not be put right; trying again");
            self.trouble = trouble;
        }
    }

    fn stop(&mut self) -> Result<(), ControlError> {
        self.owned.plane.shutdown().map_err(|error| ControlError::Failed(describe(&error)))
    }
}

fn with_route(routes: &mut [Route], hostname: &Pattern, change: impl FnOnce(&mut Route)) {
    if let Some(route) = routes.iter_mut().find(|route| route.hostname == *hostname) {
        change(route);
    }
}

fn no_route(listener: &str, hostname: &Pattern) -> ControlError {
    ControlError::NotFound(format!("hostname: listener {listener:?} has no route {hostname}"))
}

fn failed(error: StoreError) -> ControlError {
    ControlError::Failed(describe(&error))
}

/// A caller that has gone away does not take back what was done.
fn answer<T>(reply: Reply<T>, result: Result<T, ControlError>) {
    drop(reply.send(result));
}
