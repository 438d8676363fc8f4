//! The one writer of the desired state.
//!
//! A thread owns the database connection and the kernel plane and works off commands one by one, so that every change
//! goes the same way: database (one transaction), memory (a new snapshot), kernel. When a method here has returned `Ok`
//! the change is in force; when it returned an error nothing has changed.

mod bans;
mod certificates;
mod drops;
mod explain;
mod firewall;
mod lockout;
mod rules;
#[cfg(test)]
mod tests;
mod thread;
mod upkeep;

pub use bans::Bans;
pub use certificates::{ListedCertificate, open_certificates};
pub use drops::{report_violations, tell as tell_drops};
pub(crate) use firewall::FirewallCommand;
pub use firewall::{
    ChangeOptions, ChangeSummary, Considered, DropEvent, ExplainRequest, Explanation, FirewallStatus, GeoIpStatus,
    GroupImport, GroupStatus, IMPORT_MAX, KernelAnswer, ListedRule, NewRule, Pending, Plane, RuleFilter, Verdict,
};
pub use rules::moment;
pub use thread::{Owned, Released, start};
pub use upkeep::Countries;

use std::time::{Duration, SystemTime};

use tokio::sync::{broadcast, mpsc, oneshot};

use crate::{
    config::Splice,
    desired::{AcceptProxy, L7Policy, Route, RouteKey, Target},
    net::relay::Figures,
    tls::certs,
    xdp::PlaneStatus,
};

/// A handle on the control thread.
#[derive(Clone, Debug)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    drops: broadcast::Sender<DropEvent>,
}

/// Why a change did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The thing that is named does not exist.
    #[error("{0}")]
    NotFound(String),
    /// A value that cannot be: the text begins with the field's name.
    #[error("{0}")]
    Invalid(String),
    /// Valid, but not in this version or not in this state.
    #[error("{0}")]
    Refused(String),
    /// The database or the kernel did not take it; nothing has changed.
    #[error("{0}")]
    Failed(String),
    /// The daemon is stopping.
    #[error("the daemon is shutting down")]
    Stopping,
}

/// Routes of a listener, as [`Control::routes`] gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerRoutes {
    /// In the order in which they were added.
    pub routes: Vec<Route>,
    /// For an absent or unknown server name.
    pub default: Option<Target>,
}

/// What `status` shows.
#[derive(Clone, Debug)]
pub struct Status {
    /// When the daemon started.
    pub started_at: SystemTime,
    /// For how long it has been running, by the monotonic clock.
    pub uptime: Duration,
    /// One for each listener.
    pub listeners: Vec<ListenerStatus>,
    /// The kernel plane.
    pub plane: PlaneStatus,
    /// The firewall beside it.
    pub firewall: FirewallStatus,
    /// Connections by how they ended; every outcome, also those that never happened.
    pub outcomes: Vec<(&'static str, u64)>,
    /// How bytes are moved where a route does not say it.
    pub splice: Splice,
    /// What the kernel carries, and why it cannot, if so.
    pub kernel_splice: (Figures, Option<String>),
    /// Bytes from clients to backends. Where HTTP is served, all that came from clients within TLS.
    pub client_bytes: u64,
    /// Bytes from backends to clients. Where HTTP is served, those of content only.
    pub backend_bytes: u64,
    /// What connections have of the daemon's memory.
    pub memory: MemoryStatus,
    /// How often no connection could be accepted although some were waiting.
    pub accept_failures: u64,
    /// Backends' names.
    pub names: crate::net::resolve::Figures,
    /// What TLS is terminated with.
    pub certificates: certs::Figures,
    /// What was lost of access records; none = there are none.
    pub access: Option<AccessStatus>,
    /// What became of requests of HTTP; none while no HTTP is served.
    pub http: Option<HttpStatus>,
}

/// Requests of HTTP since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpStatus {
    /// All of them.
    pub requests: u64,
    /// By class of the response that the client got.
    pub responses: Vec<(&'static str, u64)>,
    /// By what became of them; every outcome.
    pub outcomes: Vec<(&'static str, u64)>,
    /// Malformed messages by reason; every reason.
    pub malformed: Vec<(&'static str, u64)>,
    /// Requests that were sent once more.
    pub retries: u64,
    /// Upgrades and extended CONNECTs.
    pub tunnels: u64,
    /// HTTP/2 connections that were ended for what they cost.
    pub abuse: u64,
}

/// Access records that were lost since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccessStatus {
    /// For want of room.
    pub dropped: u64,
    /// Writes that failed, as on a full disk.
    pub failed: u64,
}

/// Memory of connections, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStatus {
    /// Charged to connections.
    pub used: u64,
    /// 0 = unlimited.
    pub limit: u64,
    /// In the buffers of all TCP sockets of the host; `None` when it is not known.
    pub kernel_sockets: Option<u64>,
}

/// One listener of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    /// The listener's name.
    pub addr: String,
    /// Routes with a hostname.
    pub routes: usize,
    /// Connections now.
    pub active: u64,
    /// 0 = unlimited.
    pub max_connections: u64,
    /// 0 = unlimited.
    pub max_connections_per_source: u64,
    /// Whose PROXY headers are believed; none = there are none.
    pub proxy: Option<AcceptProxy>,
    /// Since start, the refused ones included.
    pub accepted: u64,
}

/// A command of the control thread.
#[derive(Debug)]
pub(crate) enum Command {
    Routes(String, Reply<ListenerRoutes>),
    AddRoute(String, Box<Route>, Reply<()>),
    RemoveRoute(String, RouteKey, Reply<()>),
    Policies(String, RouteKey, Reply<Vec<(L7Policy, u64)>>),
    AddPolicy(String, RouteKey, L7Policy, Reply<()>),
    RemovePolicy(String, RouteKey, L7Policy, Reply<()>),
    SetMaxConnections(String, u64, Reply<()>),
    SetSplice(Splice, Reply<Splice>),
    Status(Reply<Status>),
    ReloadGeoIp(Reply<bool>),
    Certificates(Reply<Vec<ListedCertificate>>),
    ReloadCertificates(Reply<certs::Reloaded>),
    Firewall(FirewallCommand),
    Stop(Reply<()>),
    Release(Reply<Released>),
}

impl Command {
    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::Routes(_, reply) => reply.is_closed(),
            Self::Policies(_, _, reply) => reply.is_closed(),
            Self::SetSplice(_, reply) => reply.is_closed(),
            Self::Status(reply) => reply.is_closed(),
            Self::ReloadGeoIp(reply) => reply.is_closed(),
            Self::Certificates(reply) => reply.is_closed(),
            Self::ReloadCertificates(reply) => reply.is_closed(),
            Self::Release(reply) => reply.is_closed(),
            Self::Firewall(command) => command.is_abandoned(),
            Self::AddRoute(_, _, reply)
            | Self::RemoveRoute(_, _, reply)
            | Self::AddPolicy(_, _, _, reply)
            | Self::RemovePolicy(_, _, _, reply)
            | Self::SetMaxConnections(_, _, reply)
            | Self::Stop(reply) => reply.is_closed(),
        }
    }
}

type Reply<T> = oneshot::Sender<Result<T, ControlError>>;

/// Where drops are told; without watchers they go nowhere.
pub type Drops = broadcast::Sender<DropEvent>;

/// A place for drops of both planes.
pub fn drops() -> Drops {
    broadcast::Sender::new(firewall::DROPS)
}

impl Control {
    fn new(commands: mpsc::Sender<Command>, drops: Drops) -> Self {
        Self { commands, drops }
    }

    /// A handle whose commands a test answers.
    #[cfg(test)]
    pub(crate) fn answered_by_test() -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(16);
        (Self::new(commands, drops()), receiver)
    }

    /// Routes of a listener.
    ///
    /// # Errors
    /// [`ControlError::NotFound`] for an unknown listener.
    pub async fn routes(&self, listener: String) -> Result<ListenerRoutes, ControlError> {
        self.call(|reply| Command::Routes(listener, reply)).await
    }

    /// Adds a route or replaces the one with the same key. Policies of a replaced route are replaced too.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn add_route(&self, listener: String, route: Route) -> Result<(), ControlError> {
        self.call(|reply| Command::AddRoute(listener, Box::new(route), reply)).await
    }

    /// Removes a route.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn remove_route(&self, listener: String, route: RouteKey) -> Result<(), ControlError> {
        self.call(|reply| Command::RemoveRoute(listener, route, reply)).await
    }

    /// Policies of a route, in the order of evaluation, each with the requests that it has refused, or as a shadow would
    /// have, since the daemon has started or the route was added.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn policies(&self, listener: String, route: RouteKey) -> Result<Vec<(L7Policy, u64)>, ControlError> {
        self.call(|reply| Command::Policies(listener, route, reply)).await
    }

    /// Appends a policy; one that exists stays where it is, and becomes a shadow or ceases to be one.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn add_policy(&self, listener: String, route: RouteKey, policy: L7Policy) -> Result<(), ControlError> {
        self.call(|reply| Command::AddPolicy(listener, route, policy, reply)).await
    }

    /// Removes a policy.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn remove_policy(&self, listener: String, route: RouteKey, policy: L7Policy) -> Result<(), ControlError> {
        self.call(|reply| Command::RemovePolicy(listener, route, policy, reply)).await
    }

    /// Sets a listener's limit, 0 = unlimited.
    ///
    /// # Errors
    /// [`ControlError::NotFound`] for an unknown listener.
    pub async fn set_max_connections(&self, listener: String, max: u64) -> Result<(), ControlError> {
        self.call(|reply| Command::SetMaxConnections(listener, max, reply)).await
    }

    /// Sets how bytes are moved from now on where a route does not say it, until the daemon ends; gives what it was.
    ///
    /// # Errors
    /// [`ControlError::Stopping`].
    pub async fn set_splice(&self, mode: Splice) -> Result<Splice, ControlError> {
        self.call(|reply| Command::SetSplice(mode, reply)).await
    }

    /// What `status` shows.
    ///
    /// # Errors
    /// [`ControlError::Stopping`].
    pub async fn status(&self) -> Result<Status, ControlError> {
        self.call(Command::Status).await
    }

    /// Reads the GeoIP database anew; `false` when there is none.
    ///
    /// # Errors
    /// When it cannot be read; the old one stays in force.
    pub async fn reload_geoip(&self) -> Result<bool, ControlError> {
        self.call(Command::ReloadGeoIp).await
    }

    /// The certificates of all routes, and which routes these are.
    ///
    /// # Errors
    /// [`ControlError::Stopping`].
    pub async fn certificates(&self) -> Result<Vec<ListedCertificate>, ControlError> {
        self.call(Command::Certificates).await
    }

    /// Loads all certificates anew. Those that cannot be used are in the answer, and the old ones stay in force.
    ///
    /// # Errors
    /// [`ControlError::Stopping`].
    pub async fn reload_certificates(&self) -> Result<certs::Reloaded, ControlError> {
        self.call(Command::ReloadCertificates).await
    }

    /// Ends the thread: the kernel plane is left or removed as configured, the database is closed.
    ///
    /// # Errors
    /// When the kernel plane could not be removed.
    pub async fn stop(&self) -> Result<(), ControlError> {
        self.call(Command::Stop).await
    }

    /// Ends the thread for the sake of another daemon: what is in force stays so, whatever `xdp.on_exit` says, and
    /// database and pins are free.
    ///
    /// # Errors
    /// [`ControlError::Stopping`].
    pub async fn release(&self) -> Result<Released, ControlError> {
        self.call(Command::Release).await
    }

    async fn call<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| ControlError::Stopping)?;
        answer.await.map_err(|_| ControlError::Stopping)?
    }
}
