//! The thread behind [`super::Control`].

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::mpsc;

use super::{
    Bans, Command, Control, ControlError, Countries, FirewallStatus, GeoIpStatus, HttpStatus, ListenerRoutes,
    ListenerStatus, Pending, Reply, Status,
};
use crate::{
    conn::{Edge, Listening},
    desired::{L7Policy, Listener, Mode, Protocol, Route, RouteKey},
    firewall::{Engine, GroupIds},
    net::{memory, transparent},
    route::RouteTable,
    store::{self, Store, StoreError},
    telemetry::describe,
    tls::certs::Certificates,
    xdp::Dataplane,
};

/// Commands that may wait. Callers wait for a place, and have deadlines.
const QUEUE: usize = 64;

/// How often the thread looks after what nobody asks for.
const TICK: Duration = Duration::from_secs(1);

/// What the thread owns.
pub struct Owned {
    /// The database.
    pub store: Store,
    /// The kernel plane.
    pub plane: Box<dyn Dataplane>,
    /// The rules and the tables that they are compiled into, in agreement with the database.
    pub engine: Engine,
    /// Whether `xdp.scope` is `host`.
    pub is_host_scope: bool,
    /// `firewall.max_bans`.
    pub bans_max: usize,
    /// The listeners with their routes, as the database has them.
    pub listeners: Vec<Listener>,
    /// The same listeners as connections see them, in the same order.
    pub listening: Vec<Arc<Listening>>,
    /// What connections share.
    pub edge: Arc<Edge>,
    /// `firewall.geoip_db`.
    pub geoip: Option<Countries>,
    /// What the routes of the listeners terminate TLS with.
    pub certificates: Certificates,
    /// Who is banned for what connections report.
    pub bans: Bans,
}

/// What the next thread of the same daemon needs of this one, beside the database.
#[derive(Debug)]
pub struct Released {
    /// As the database has them.
    pub listeners: Vec<Listener>,
    /// Groups keep the numbers under which connections count them.
    pub groups: GroupIds,
    /// `firewall.geoip_db`.
    pub geoip: Option<Countries>,
    /// Which routes go on using.
    pub certificates: Certificates,
    /// Where connections go on reporting.
    pub bans: Bans,
}

pub(super) struct Thread {
    pub(super) owned: Owned,
    started_at: SystemTime,
    started: Instant,
    /// The last trouble that was told; empty when there is none.
    pub(super) trouble: String,
    /// Whether the current tick has met one.
    pub(super) is_troubled: bool,
    /// The change that waits to be confirmed.
    pub(super) pending: Option<store::Pending>,
    /// When its time is over whatever becomes of the wall clock.
    pub(super) pending_until: Option<Instant>,
    /// What is in force and not in the database yet: bans, and that rules have expired.
    pub(super) unstored: Vec<store::Change>,
    /// Whether the tables may differ from the database.
    pub(super) needs_rebuild: bool,
}

enum Event {
    Command(Option<Command>),
    Offences,
    Tick,
}

/// Starts the thread. It ends after [`Control::stop`], or when every [`Control`] is gone.
///
/// # Errors
/// When the system has no thread to give, or the database cannot be read.
pub fn start(owned: Owned, drops: super::Drops) -> std::io::Result<(Control, JoinHandle<()>)> {
    let (commands, queue) = mpsc::channel(QUEUE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let pending = owned.store.pending().map_err(std::io::Error::other)?;
    let thread = Thread {
        owned,
        started_at: SystemTime::now(),
        started: Instant::now(),
        trouble: String::new(),
        is_troubled: false,
        pending,
        pending_until: pending.and_then(|pending| until(pending.deadline)),
        unstored: Vec::new(),
        needs_rebuild: false,
    };
    let thread = std::thread::Builder::new().name("control".into()).spawn(move || thread.run(queue, &runtime))?;
    Ok((Control::new(commands, drops), thread))
}

impl Thread {
    fn run(mut self, mut queue: mpsc::Receiver<Command>, runtime: &tokio::runtime::Runtime) {
        self.publish_tables();
        let mut tick_at = Instant::now() + TICK;
        loop {
            let bans = &mut self.owned.bans;
            // Everything is worked off outside the runtime: it blocks, and the kernel plane may need its own.
            let event = runtime.block_on(async {
                tokio::select! {
                    command = queue.recv() => Event::Command(command),
                    () = bans.ready() => Event::Offences,
                    () = tokio::time::sleep_until(tick_at.into()) => Event::Tick,
                }
            });
            match event {
                Event::Command(Some(Command::Stop(reply))) => {
                    answer(reply, self.stop());
                    return;
                }
                Event::Command(Some(Command::Release(reply))) => {
                    answer(reply, Ok(self.release()));
                    return;
                }
                Event::Command(Some(command)) => self.work_off(command),
                Event::Command(None) => {
                    if let Err(error) = self.stop() {
                        tracing::error!(%error, "stopping");
                    }
                    return;
                }
                Event::Offences => self.ban(),
                Event::Tick => {}
            }
            if tick_at <= Instant::now() {
                self.tick();
                tick_at = Instant::now() + TICK;
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
            Command::AddRoute(listener, route, reply) => answer(reply, self.add_route(&listener, *route)),
            Command::RemoveRoute(listener, key, reply) => answer(reply, self.remove_route(&listener, &key)),
            Command::Policies(listener, key, reply) => {
                answer(reply, self.policies(&listener, &key));
            }
            Command::AddPolicy(listener, key, policy, reply) => {
                answer(reply, self.add_policy(&listener, &key, policy));
            }
            Command::RemovePolicy(listener, key, policy, reply) => {
                answer(reply, self.remove_policy(&listener, &key, &policy));
            }
            Command::SetMaxConnections(listener, max, reply) => {
                answer(reply, self.set_max_connections(&listener, max));
            }
            Command::SetSplice(mode, reply) => answer(reply, Ok(self.owned.edge.splicing.set_mode(mode))),
            Command::Status(reply) => answer(reply, Ok(self.status())),
            Command::ReloadGeoIp(reply) => answer(reply, self.reload_geoip()),
            Command::Certificates(reply) => answer(reply, Ok(self.certificates())),
            Command::ReloadCertificates(reply) => answer(reply, Ok(self.reload_certificates())),
            Command::Firewall(command) => self.firewall(command),
            Command::Stop(reply) => answer(reply, Err(ControlError::Stopping)),
            Command::Release(reply) => answer(reply, Err(ControlError::Stopping)),
        }
    }

    pub(super) fn index(&self, listener: &str) -> Result<usize, ControlError> {
        self.owned.listeners.iter().position(|known| known.addr.as_str() == listener).ok_or_else(|| {
            let known: Vec<_> = self.owned.listeners.iter().map(|l| format!("{:?}", l.addr.as_str())).collect();
            ControlError::NotFound(format!(
                "listener_addr: there is no listener {listener:?}; there is {}",
                known.join(", ")
            ))
        })
    }

    fn route(&self, listener: &str, key: &RouteKey) -> Result<&Route, ControlError> {
        let index = self.index(listener)?;
        let routes = self.owned.listeners.get(index).map(|l| l.routes.as_slice()).unwrap_or_default();
        routes.iter().find(|route| route.is(key)).ok_or_else(|| no_route(listener, key, routes))
    }

    fn routes(&self, listener: &str) -> Result<ListenerRoutes, ControlError> {
        let index = self.index(listener)?;
        let listener = self.owned.listeners.get(index).ok_or(ControlError::Stopping)?;
        Ok(ListenerRoutes { routes: listener.routes.clone(), default: listener.default.clone() })
    }

    /// A route that comes without policies keeps those that its predecessor has: deploys repeat their routes, and know nothing of
    /// what operators add at run time.
    fn add_route(&mut self, listener: &str, mut route: Route) -> Result<(), ControlError> {
        let index = self.index(listener)?;
        match self.owned.listeners.get(index).map(|listener| listener.protocol) {
            Some(Protocol::Tls) | None => {}
            Some(Protocol::Tcp) => {
                let why =
                    "it has protocol \"tcp\", and every connection takes its default route, which is set in the file";
                return Err(ControlError::Refused(format!("listener {listener} reads no server name: {why}")));
            }
            Some(Protocol::HttpRedirect) => {
                let why = "it has protocol \"http-redirect\", and no routes";
                return Err(ControlError::Invalid(format!("listener_addr: {listener} redirects every request: {why}")));
            }
        }
        if route.target.transparent {
            transparent::probe(self.owned.edge.proxy.transparent_mark)
                .map_err(|error| ControlError::Refused(format!("route.transparent: {error}")))?;
        }
        let known = self.owned.listeners.get(index).and_then(|l| l.routes.iter().find(|known| known.is(&route.key())));
        if let Some(known) = known.filter(|_| route.target.l7_policies.is_empty()) {
            route.target.l7_policies.clone_from(&known.target.l7_policies);
        }
        let staged = self.stage_certificate(&route)?;
        self.owned.store.upsert_route(listener, &route).map_err(failed)?;
        if let Some((staged, authorities)) = staged {
            self.owned.certificates.commit(staged, SystemTime::now());
            if let Some(authorities) = authorities {
                self.owned.certificates.commit_authorities(authorities);
            }
        }
        self.publish(index, |routes| match routes.iter_mut().find(|known| known.is(&route.key())) {
            Some(known) => *known = route,
            None => routes.push(route),
        });
        // Other routes may name the same file.
        self.publish_authorities();
        Ok(())
    }

    fn remove_route(&mut self, listener: &str, key: &RouteKey) -> Result<(), ControlError> {
        let index = self.index(listener)?;
        if !self.owned.store.delete_route(listener, key).map_err(failed)? {
            let routes = self.owned.listeners.get(index).map(|l| l.routes.as_slice()).unwrap_or_default();
            return Err(no_route(listener, key, routes));
        }
        self.publish(index, |routes| routes.retain(|route| !route.is(key)));
        Ok(())
    }

    /// As the running table has them.
    fn policies(&self, listener: &str, key: &RouteKey) -> Result<Vec<(L7Policy, u64)>, ControlError> {
        self.route(listener, key)?;
        let running = self.owned.listening.get(self.index(listener)?).map(|listening| listening.routes.load());
        let destination = running.as_ref().and_then(|table| table.destination(&key.hostname, &key.alpn));
        let policies = destination.into_iter().flat_map(|destination| destination.policies.hits());
        Ok(policies.map(|(policy, hits)| (policy.clone(), hits)).collect())
    }

    fn add_policy(&mut self, listener: &str, key: &RouteKey, policy: L7Policy) -> Result<(), ControlError> {
        self.route(listener, key)?;
        let index = self.index(listener)?;
        if self.owned.store.insert_policy(listener, key, &policy).map_err(failed)? {
            self.publish(index, |routes| {
                with_route(routes, key, |route| put_policy(&mut route.target.l7_policies, policy))
            });
        }
        Ok(())
    }

    fn remove_policy(&mut self, listener: &str, key: &RouteKey, policy: &L7Policy) -> Result<(), ControlError> {
        self.route(listener, key)?;
        let index = self.index(listener)?;
        if !self.owned.store.delete_policy(listener, key, policy).map_err(failed)? {
            return Err(ControlError::NotFound(format!("policy: the route {key} has no such policy")));
        }
        self.publish(index, |routes| {
            with_route(routes, key, |route| route.target.l7_policies.retain(|known| !known.is_like(policy)));
        });
        Ok(())
    }

    /// Changes a listener's routes in memory: connections from now on see the new table as a whole.
    pub(super) fn publish(&mut self, index: usize, change: impl FnOnce(&mut Vec<Route>)) {
        let Owned { listeners, listening, certificates, .. } = &mut self.owned;
        if let (Some(listener), Some(listening)) = (listeners.get_mut(index), listening.get(index)) {
            change(&mut listener.routes);
            let before = listening.routes.load();
            let default = listener.default.as_ref();
            let table = RouteTable::with_certificates(&listener.routes, default, certificates, Some(&before));
            listening.routes.store(Arc::new(table));
        }
        self.retain_certificates();
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
        let Owned { edge, listeners, listening, plane, engine, geoip, .. } = &self.owned;
        let rules = engine.stats().rules;
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
                    max_connections_per_source: desired.max_connections_per_source,
                    proxy: desired.proxy.clone(),
                    accepted: running.accepted(),
                })
                .collect(),
            plane: crate::xdp::PlaneStatus { rules, ..plane.status() },
            firewall: FirewallStatus {
                geoip: geoip.as_ref().map(|countries| GeoIpStatus {
                    database_type: countries.geoip().database_type().to_owned(),
                    built_at: countries.geoip().built_at(),
                }),
                groups: self.groups(),
                pending: self.pending.map(|pending| Pending { id: pending.id, confirm_by: pending.deadline }),
                bans: self.bans_count(),
                rules,
            },
            outcomes: edge.counters.outcomes(),
            splice: edge.splicing.switch().mode(),
            kernel_splice: (edge.splicing.figures(), edge.splicing.kernel().err().map(str::to_owned)),
            client_bytes,
            backend_bytes,
            memory: super::MemoryStatus {
                used: edge.memory.used(),
                limit: edge.memory.limit(),
                kernel_sockets: memory::socket_bytes().ok(),
            },
            accept_failures: edge.counters.accept_failures(),
            names: edge.resolver.figures(),
            certificates: self.owned.certificates.figures(),
            access: edge
                .access
                .as_ref()
                .map(|access| super::AccessStatus { dropped: access.log.dropped(), failed: access.log.failed() }),
            http: self.http(),
        }
    }

    fn http(&self) -> Option<HttpStatus> {
        let Owned { edge, listeners, .. } = &self.owned;
        let counters = &edge.http_counters;
        let serves = |listener: &Listener| {
            let mut targets = listener.routes.iter().map(|route| &route.target).chain(&listener.default);
            listener.protocol == Protocol::HttpRedirect || targets.any(|target| target.mode == Mode::L7)
        };
        let is_served = counters.requests() > 0 || listeners.iter().any(serves);
        is_served.then(|| HttpStatus {
            requests: counters.requests(),
            responses: counters.responses().collect(),
            outcomes: counters.outcomes().map(|(outcome, count)| (outcome.as_str(), count)).collect(),
            malformed: counters.malformed().collect(),
            retries: counters.retries(),
            tunnels: counters.tunnels(),
            abuse: counters.abuse(),
        })
    }

    /// A trouble that lasts, such as an interface that is not there, is one line and not one every time.
    pub(super) fn tell_trouble(&mut self, trouble: String) {
        self.is_troubled = true;
        if trouble != self.trouble {
            tracing::warn!(trouble, "something could not be put right; trying again");
            self.trouble = trouble;
        }
    }

    /// Database and plane are closed when it returns.
    fn release(mut self) -> Released {
        self.store_bans();
        let Owned { engine, listeners, geoip, certificates, bans, .. } = self.owned;
        Released { listeners, groups: engine.book().groups().clone(), geoip, certificates, bans }
    }

    fn stop(&mut self) -> Result<(), ControlError> {
        self.store_bans();
        if let Some(pending) = self.pending {
            let why = "a change that waits to be confirmed stays in force until the daemon runs again";
            tracing::warn!(change = pending.id, why, "stopping");
        }
        self.owned.plane.shutdown().map_err(|error| ControlError::Failed(describe(&error)))
    }
}

/// A moment of the wall clock by the clock that nobody sets.
pub(super) fn until(deadline: SystemTime) -> Option<Instant> {
    Instant::now().checked_add(deadline.duration_since(SystemTime::now()).unwrap_or_default())
}

fn with_route(routes: &mut [Route], key: &RouteKey, change: impl FnOnce(&mut Route)) {
    if let Some(route) = routes.iter_mut().find(|route| route.is(key)) {
        change(route);
    }
}

/// As the store does: a policy that is there stays where it is.
fn put_policy(policies: &mut Vec<L7Policy>, policy: L7Policy) {
    match policies.iter_mut().find(|known| known.is_like(&policy)) {
        Some(known) => *known = policy,
        None => policies.push(policy),
    }
}

/// Who has forgotten that routes differ in ALPN, too, is told which there are.
fn no_route(listener: &str, key: &RouteKey, routes: &[Route]) -> ControlError {
    let others = routes.iter().filter(|route| route.hostname == key.hostname).map(|route| route.key().to_string());
    let others = others.collect::<Vec<_>>();
    let hint = if others.is_empty() { String::new() } else { format!("; it has {}", others.join(", ")) };
    ControlError::NotFound(format!("hostname: listener {listener:?} has no route {key}{hint}"))
}

pub(super) fn failed(error: StoreError) -> ControlError {
    ControlError::Failed(describe(&error))
}

/// A caller that has gone away does not take back what was done.
pub(super) fn answer<T>(reply: Reply<T>, result: Result<T, ControlError>) {
    drop(reply.send(result));
}
