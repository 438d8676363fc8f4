//! The control thread's end of the offences: who is banned for them.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use ipnet::IpNet;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    conn::{Offence, Offences},
    desired::Listener,
    firewall::{AutoBan, Ban, Offenders},
    net::{addr::BackendAddr, resolve::Resolver},
    telemetry::limit::LineLimit,
};

/// Offences that are looked at before commands get their turn.
const BATCH: usize = 4_096;

/// More of them say nothing new.
static BANS: LineLimit = LineLimit::per_second(10);
static EXEMPTIONS: LineLimit = LineLimit::per_second(1);

/// Turns reported offences into bans. Without `firewall.auto_ban` there are none.
#[derive(Debug, Default)]
pub struct Bans(Option<Desk>);

#[derive(Debug)]
struct Desk {
    offenders: Offenders,
    reports: mpsc::Receiver<Offence>,
    /// Taken out of the queue by [`Bans::ready`].
    first: Option<Offence>,
}

impl Bans {
    /// With the end where offences are reported.
    pub fn new(policy: Option<AutoBan>) -> (Self, Offences) {
        match policy {
            Some(policy) => {
                let (offences, reports) = Offences::queue();
                (Self(Some(Desk { offenders: Offenders::new(policy), reports, first: None })), offences)
            }
            None => (Self(None), Offences::ignored()),
        }
    }

    /// Waits until there is something to [`drain`](Self::drain). Nothing is lost when it is cancelled.
    pub async fn ready(&mut self) {
        if let Self(Some(desk)) = self {
            if desk.first.is_none() {
                desk.first = desk.reports.recv().await;
            }
            if desk.first.is_some() {
                return;
            }
        }
        std::future::pending().await
    }

    /// The bans that follow from the offences that have been reported, at `now` of the boot-time clock. They are in force
    /// only when the caller has put them in force; if that fails, [`Self::forget`] is to be called.
    ///
    /// A source that is `exempt`, such as one with a backend in it, is not banned.
    pub fn drain(&mut self, now: u64, exempt: impl Fn(&IpNet) -> bool) -> Vec<Ban> {
        let Self(Some(Desk { offenders, reports, first })) = self else { return Vec::new() };
        let mut bans = Vec::new();
        let offences = first.take().into_iter().chain(std::iter::from_fn(|| reports.try_recv().ok()));
        for Offence { source, kind } in offences.take(BATCH) {
            let Some(ban) = offenders.offend(source, kind, now) else { continue };
            if !exempt(&ban.net) {
                bans.push(ban);
            } else if let Some(suppressed) = EXEMPTIONS.admit(Instant::now()) {
                tracing::warn!(source = %ban.net, reason = %ban.kind, suppressed, "an offender is exempt from bans");
            }
        }
        bans
    }

    /// Forgets the sources within `net`, whose ban could not be put in force, or has been lifted by an operator.
    pub fn forget(&mut self, net: IpNet) {
        if let Self(Some(desk)) = self {
            desk.offenders.forget(net);
        }
    }

    /// Sources that were forgotten before their time for others.
    pub fn displaced(&self) -> u64 {
        self.0.as_ref().map_or(0, |desk| desk.offenders.displaced())
    }
}

/// Addresses of all backends. Of a backend's name the last answer counts; one that no connection has asked for since the
/// daemon started is not known.
pub(super) fn backend_addresses(listeners: &[Listener], resolver: &Resolver) -> BTreeSet<IpAddr> {
    let targets = listeners.iter().flat_map(|l| l.routes.iter().map(|route| &route.target).chain(&l.default));
    let backends = targets.flat_map(|target| &target.backends);
    let addresses = backends.flat_map(|backend| match backend {
        BackendAddr::Ip(addr) => vec![addr.ip().to_canonical()],
        BackendAddr::Name { host, .. } => resolver.known(host).iter().map(IpAddr::to_canonical).collect(),
        BackendAddr::Unix(_) => Vec::new(),
    });
    addresses.collect()
}

/// Whether one of the backends' addresses lies within `net`.
pub(super) fn has_backend(backends: &BTreeSet<IpAddr>, net: &IpNet) -> bool {
    backends.range(net.network()..=net.broadcast()).next().is_some()
}

/// Whether one of the proxies whose PROXY headers a listener believes may lie within `net`: a ban would cut off all that
/// come through it, for what a client did that reached another listener without a header.
pub(super) fn has_proxy(listeners: &[Listener], net: &IpNet) -> bool {
    trusted_proxies(listeners).any(|proxies| proxies.contains(net) || net.contains(proxies))
}

/// Whose PROXY headers are believed.
pub(super) fn trusted_proxies(listeners: &[Listener]) -> impl Iterator<Item = &IpNet> {
    listeners.iter().filter_map(|listener| listener.proxy.as_ref()).flat_map(|proxy| &proxy.trusted)
}

/// The log line of a ban that is in force.
pub(super) fn log_ban(ban: &Ban) {
    if let Some(suppressed) = BANS.admit(Instant::now()) {
        let ttl = Duration::from_millis(u64::try_from(ban.ttl.as_millis()).unwrap_or(u64::MAX));
        tracing::info!(source = %ban.net, reason = %ban.kind, ?ttl, suppressed, "banned");
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{
        desired::{AcceptProxy, Route, Target},
        firewall::OffenceKind,
    };

    const POLICY: AutoBan = AutoBan { after: 2, within: Duration::from_secs(10), ttl: Duration::from_secs(60) };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn reports_become_bans() {
        let (mut bans, offences) = Bans::new(Some(POLICY));
        let waited = tokio::time::timeout(Duration::from_secs(1), bans.ready()).await;
        assert!(waited.is_err(), "nothing has happened");
        offences.report(ip("192.0.2.1"), OffenceKind::Handshake);
        offences.report(ip("192.0.2.2"), OffenceKind::Rate);
        bans.ready().await;
        // What is ready stays ready.
        bans.ready().await;
        assert_eq!(bans.drain(1, |_| false), []);
        offences.report(ip("192.0.2.1"), OffenceKind::ServerName);
        offences.report(ip("192.0.2.1"), OffenceKind::Timeout);
        bans.ready().await;
        let ban = Ban { net: "192.0.2.1/32".parse().unwrap(), kind: OffenceKind::ServerName, ttl: POLICY.ttl };
        assert_eq!(bans.drain(2, |_| false), [ban]);
        bans.forget(ban.net);
        offences.report(ip("192.0.2.1"), OffenceKind::Timeout);
        assert_eq!(bans.drain(3, |_| false), []);
    }

    #[tokio::test]
    async fn backends_are_exempt() {
        let (mut bans, offences) = Bans::new(Some(POLICY));
        let target = |backend: &str| Target::passthrough(backend.parse().unwrap());
        let route =
            Route { hostname: "a.example".parse().unwrap(), alpn: Vec::new(), target: target("[2001:db8::80]:443") };
        let listeners = [
            Listener { routes: vec![route], ..Listener::new(":443".parse().unwrap()) },
            Listener { default: Some(target("localhost:80")), ..Listener::new(":80".parse().unwrap()) },
        ];
        let resolver = Resolver::default();
        let exempt = |net: &IpNet| has_backend(&backend_addresses(&listeners, &resolver), net);
        let loopback = ["127.0.0.0/8", "::1/128"].map(|net| net.parse::<IpNet>().unwrap());
        assert_eq!(loopback.map(|net| exempt(&net)), [false, false]);
        resolver.lookup("localhost").await.unwrap();
        assert!(loopback.iter().any(exempt));
        for source in ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "2001:db8:0:1::1"] {
            offences.report(ip(source), OffenceKind::Policy);
        }
        let banned: Vec<_> = bans.drain(1, exempt).iter().map(|ban| ban.net.to_string()).collect();
        assert_eq!(banned, ["2001:db8:0:1::/64"]);
    }

    #[test]
    fn proxies_are_exempt() {
        let proxy = AcceptProxy { trusted: vec!["192.0.2.0/25".parse().unwrap()], trust_any: false };
        let any = AcceptProxy { trusted: Vec::new(), trust_any: true };
        let listeners = [
            Listener { proxy: Some(proxy), ..Listener::new(":443".parse().unwrap()) },
            Listener { proxy: Some(any), ..Listener::new(":444".parse().unwrap()) },
            Listener::new(":80".parse().unwrap()),
        ];
        let exempt = |net: &str| has_proxy(&listeners, &net.parse().unwrap());
        assert_eq!(["192.0.2.1/32", "192.0.2.0/24"].map(exempt), [true, true]);
        assert_eq!(["192.0.2.128/32", "2001:db8::/64"].map(exempt), [false, false]);
    }

    #[test]
    fn a_full_queue_loses_and_counts() {
        let (mut bans, offences) = Bans::new(Some(POLICY));
        for _ in 0..BATCH + 5 {
            offences.report(ip("192.0.2.1"), OffenceKind::Rate);
        }
        assert_eq!(offences.lost(), 5);
        assert_eq!(bans.drain(1, |_| false).len(), 1, "one ban, however many offences");
        offences.report(ip("192.0.2.1"), OffenceKind::Rate);
        assert_eq!(offences.lost(), 5, "there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn switched_off() {
        let (mut bans, offences) = Bans::new(None);
        offences.report(ip("192.0.2.1"), OffenceKind::Rate);
        assert!(tokio::time::timeout(Duration::from_secs(1), bans.ready()).await.is_err());
        assert_eq!((bans.drain(1, |_| false), offences.lost()), (Vec::new(), 0));
    }
}
