//! One connection, from accept to its one outcome. [`pipeline`] is the file to read.

mod announce;
mod identify;
mod offences;
mod outcome;
mod pipeline;
mod record;
mod secure;
mod shared;
mod sources;
mod told;

pub use announce::Announced;
pub use offences::{Offence, Offences};
pub use outcome::{Counters, Outcome};
pub use pipeline::run;
pub use record::Shown;
pub use shared::Shared;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};

use self::sources::{Source, Sources};
use crate::{
    config::{Proxy, TrustedProxies},
    control::Drops,
    desired::{AcceptProxy, Listener, Protocol},
    firewall::{Firewall, GeoIp},
    http::{
        access::{Sample, Style, writer::AccessLog},
        counters::HttpCounters,
        limits::HttpLimits,
    },
    net::{
        addr::ListenAddr,
        memory::Budget,
        relay::{Drain, Splicing},
        resolve::Resolver,
    },
    route::RouteTable,
    tls::certs::Certificates,
};

/// What every connection needs of the daemon.
#[derive(Debug)]
pub struct Edge {
    /// Rules in force.
    pub firewall: Firewall,
    /// Backend names.
    pub resolver: Resolver,
    /// How connections ended.
    pub counters: Counters,
    /// What clients did that they may be banned for.
    pub offences: Offences,
    /// Who watches is told of refused connections here.
    pub drops: Drops,
    /// Deadlines.
    pub proxy: Proxy,
    /// What carries established pairs; `proxy.splice` is where it starts.
    pub splicing: Splicing,
    /// What connections may take of the daemon's memory.
    pub memory: Arc<Budget>,
    /// `firewall.geoip_db` as it is in memory, for records.
    pub geoip: ArcSwapOption<GeoIp>,
    /// Whose word for who the client is counts.
    pub http_trusted: TrustedProxies,
    /// What clients may ask of the HTTP proxy.
    pub http: HttpLimits,
    /// What became of requests.
    pub http_counters: HttpCounters,
    /// Where requests are recorded; none = nowhere.
    pub access: Option<Access>,
    /// Records tell the network of a client instead of its address.
    pub redact_clients: bool,
}

/// What becomes of access records.
#[derive(Clone, Debug)]
pub struct Access {
    /// Takes the lines.
    pub log: AccessLog,
    /// What they look like.
    pub style: Style,
    /// Which requests have one.
    pub sample: Sample,
}

/// What the connections of one worker share. The counts of its references stay on the worker's core.
#[derive(Debug)]
pub struct Local {
    /// Of the daemon.
    pub edge: Arc<Edge>,
    /// Begins when the daemon is about to end.
    pub drain: Drain,
}

/// A listener as connections see it.
#[derive(Debug)]
pub struct Listening {
    /// Its name.
    pub addr: ListenAddr,
    /// How a connection finds its route.
    pub protocol: Protocol,
    /// Whether, and from whom, connections begin with a PROXY header.
    pub proxy: Option<Arc<AcceptProxy>>,
    /// Replaced as a whole with every change.
    pub routes: ArcSwap<RouteTable>,
    max_connections: AtomicU64,
    sources: Sources,
    active: AtomicU64,
    accepted: AtomicU64,
}

/// One of a listener's connections; gives its place back when dropped.
#[derive(Debug)]
pub struct Permit {
    listening: Arc<Listening>,
    /// Whose place among the connections of one source it has too.
    source: Option<Source>,
}

impl Listening {
    /// The running side of a desired listener whose routes need no certificates.
    pub fn new(desired: &Listener) -> Self {
        Self::with_table(desired, RouteTable::new(&desired.routes, desired.default.clone()))
    }

    /// The running side of a desired listener.
    pub fn with_certificates(desired: &Listener, certificates: &Certificates) -> Self {
        let table = RouteTable::with_certificates(&desired.routes, desired.default.as_ref(), certificates, None);
        Self::with_table(desired, table)
    }

    fn with_table(desired: &Listener, table: RouteTable) -> Self {
        Self {
            addr: desired.addr.clone(),
            protocol: desired.protocol,
            proxy: desired.proxy.clone().map(Arc::new),
            routes: ArcSwap::from_pointee(table),
            max_connections: desired.max_connections.into(),
            sources: Sources::new(desired.max_connections_per_source),
            active: 0.into(),
            accepted: 0.into(),
        }
    }

    /// A place for one more connection; `None` at the limit.
    pub fn admit(self: &Arc<Self>) -> Option<Permit> {
        self.accepted.fetch_add(1, Relaxed);
        let max = self.max_connections.load(Relaxed);
        // The place is taken first: of two that come at once for the last one, one gives it back.
        let permit = Permit { listening: Arc::clone(self), source: None };
        let active = self.active.fetch_add(1, Relaxed) + 1;
        (max == 0 || active <= max).then_some(permit)
    }

    /// Takes effect on the next accept; 0 = unlimited.
    pub fn set_max_connections(&self, max: u64) {
        self.max_connections.store(max, Relaxed);
    }

    /// 0 = unlimited.
    pub fn max_connections(&self) -> u64 {
        self.max_connections.load(Relaxed)
    }

    /// Connections now.
    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }

    /// Connections since start, the refused ones included.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }
}

impl Permit {
    /// Whose place it is.
    pub fn listener(&self) -> &Listening {
        &self.listening
    }

    /// The same for what outlives a borrow.
    pub(crate) fn listening(&self) -> &Arc<Listening> {
        &self.listening
    }

    /// Takes one of the places that the listener has for each source too, once it is known who the client is; `false` when
    /// they are taken.
    pub fn admit_source(&mut self, client: IpAddr) -> bool {
        let source = Source::of(client);
        let Ok(is_counted) = self.listening.sources.take(source) else { return false };
        self.source = is_counted.then_some(source);
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(source) = self.source {
            self.listening.sources.give_back(source);
        }
        self.listening.active.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_its_places_and_gives_them_back() {
        let desired = Listener { max_connections_per_source: 1, ..Listener::new(":443".parse().unwrap()) };
        let listening = Arc::new(Listening::new(&desired));
        let [mut first, mut second] = [(); 2].map(|()| listening.admit().unwrap());
        let [one, same, other] = ["2001:db8::1", "2001:db8::2", "192.0.2.1"].map(|addr| addr.parse().unwrap());
        assert!(first.admit_source(one) && !second.admit_source(same) && second.admit_source(other));
        drop(first);
        assert!(listening.admit().unwrap().admit_source(same));
        assert_eq!(listening.active(), 1);
    }

    #[test]
    fn a_limit_admits_so_many_at_a_time() {
        let listening =
            Arc::new(Listening::new(&Listener { max_connections: 2, ..Listener::new(":443".parse().unwrap()) }));
        let first = listening.admit().unwrap();
        let _second = listening.admit().unwrap();
        assert!(listening.admit().is_none());
        assert_eq!(listening.active(), 2);
        drop(first);
        assert!(listening.admit().is_some());
        listening.set_max_connections(0);
        let many: Vec<_> = (0..10).map(|_| listening.admit().unwrap()).collect();
        assert_eq!((listening.active(), listening.accepted()), (11, 14));
        drop(many);
        assert_eq!(listening.active(), 1);
    }
}
