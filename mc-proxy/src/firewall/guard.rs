//! The firewall in user space: what every connection is asked, wherever the kernel has or has not looked before.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use mc_proxy_common::{
    maps::{GROUPS_MAX, PortFlags, Scope},
    rate::RateLimit,
    reason::Reason,
    source::Source,
    table::{ClauseWords, Geometry, Line, Tables},
    verdict::{Host, Verdict, judge_connection},
};

use super::{
    Group, RateLimiter,
    tables::{Reading, Sizes, TableMemory},
};
use crate::net::addr::{ClientAddr, PeerAddr};

/// The rules in force and the rate limit, as connections see them. Asking takes no lock.
#[derive(Debug)]
pub struct Firewall {
    /// The tables that the kernel decides by. A change writes into them; when they have become too small, others take
    /// their place.
    pub tables: ArcSwap<TableMemory>,
    /// New connections of a source.
    pub limiter: RateLimiter,
    /// Connections by rule group.
    pub groups: GroupCounters,
}

/// What the firewall says of a client, with the number of the group whose rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Let in: no rule speaks against it.
    Pass,
    /// Let in by a rule.
    Allowed,
    /// The address itself is blocked.
    BlockedAddress(u32),
    /// A prefix of the address is blocked.
    BlockedPrefix(u32),
    /// The daemon has banned the client for a time.
    Banned(u32),
    /// The address's country is blocked.
    BlockedCountry(u32),
    /// No rule speaks against it, but it is one too many.
    RateLimited,
}

/// Connections by the group whose rules refused them, in numbers of groups as the tables have them.
pub struct GroupCounters {
    counts: Box<[GroupCounter]>,
    names: ArcSwap<Vec<Group>>,
}

#[derive(Default)]
struct GroupCounter {
    dropped: AtomicU64,
    would_drop: AtomicU64,
}

/// Connections of one group since the group got its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupCount {
    /// Refused.
    pub dropped: u64,
    /// That rules which only count would have refused.
    pub would_drop: u64,
}

impl Firewall {
    /// With rules in `tables`.
    pub fn new(tables: Arc<TableMemory>, limit: RateLimit) -> Self {
        Self { tables: ArcSwap::new(tables), limiter: RateLimiter::new(limit), groups: GroupCounters::default() }
    }

    /// What the rules say of a connection, without counting it.
    pub fn ask(&self, source: std::net::IpAddr, port: u16, now: u64) -> Verdict {
        let tables = self.tables.load();
        judge_connection(&Asked { tables: tables.reading(), groups: None, now }, source.into(), port)
    }

    /// Judges a connection of `client` to a listener's `port` by the verdict that the kernel uses, at `now` of the
    /// boot-time clock. A client that a rule lets in or refuses spends nothing of its rate.
    pub fn judge(&self, client: ClientAddr, port: u16, now: u64) -> Judgement {
        self.limited(self.judge_by_rules(client.ip(), port, now), || self.limiter.admit(client.ip(), now))
    }

    /// The same for a client that a PROXY header names, of whom the kernel has seen nothing.
    pub fn judge_named(&self, client: ClientAddr, port: u16, now: u64) -> Judgement {
        self.limited(self.judge_by_rules(client.ip(), port, now), || self.limiter.admit_named(client.ip(), now))
    }

    /// Judges a peer on a listener behind PROXY protocol: by the rules alone, as the kernel does, since its connections
    /// are those of many clients.
    pub fn judge_peer(&self, peer: PeerAddr, port: u16, now: u64) -> Judgement {
        self.judge_by_rules(peer.ip(), port, now)
    }

    fn limited(&self, judgement: Judgement, admit: impl FnOnce() -> bool) -> Judgement {
        if judgement == Judgement::Pass && !admit() {
            // As in the kernel: a drop of no rule's is number 0's.
            self.groups.count_dropped(0);
            return Judgement::RateLimited;
        }
        judgement
    }

    fn judge_by_rules(&self, source: std::net::IpAddr, port: u16, now: u64) -> Judgement {
        let verdict = {
            let tables = self.tables.load();
            let reading = tables.reading();
            judge_connection(&Asked { tables: reading, groups: Some(&self.groups), now }, source.into(), port)
        };
        let judgement = Judgement::from(verdict);
        match judgement {
            Judgement::BlockedAddress(group)
            | Judgement::BlockedPrefix(group)
            | Judgement::Banned(group)
            | Judgement::BlockedCountry(group) => self.groups.count_dropped(group),
            Judgement::Pass | Judgement::Allowed | Judgement::RateLimited => {}
        }
        judgement
    }
}

/// Without rules and without a limit.
impl Default for Firewall {
    fn default() -> Self {
        let sizes = Sizes { nodes: 1, lines4: 1, lines6: 1, lines_long6: 1, clauses: 1 };
        Self::new(Arc::new(TableMemory::heap(&sizes, 0)), RateLimit::OFF)
    }
}

/// A verdict without the limit, which follows it.
impl From<Verdict> for Judgement {
    fn from(verdict: Verdict) -> Self {
        let group = verdict.group;
        match Reason::from_index(verdict.reason) {
            Some(Reason::Allowed) => Self::Allowed,
            Some(Reason::BlockedAddress) => Self::BlockedAddress(group),
            Some(Reason::BlockedPrefix) => Self::BlockedPrefix(group),
            Some(Reason::Banned) => Self::Banned(group),
            Some(Reason::BlockedCountry) => Self::BlockedCountry(group),
            Some(Reason::RateLimited) => Self::RateLimited,
            Some(
                Reason::NoRule
                | Reason::OutOfScope
                | Reason::NotIp
                | Reason::Malformed
                | Reason::NeighborDiscovery
                | Reason::LaterFragment
                | Reason::Expired,
            ) => Self::Pass,
            // A clause that says that it drops, for a reason of which nothing is known here, drops all the same.
            None => Self::BlockedPrefix(group),
        }
    }
}

impl Judgement {
    /// The number of the group whose rule refused the client.
    pub fn group(self) -> Option<u32> {
        match self {
            Self::BlockedAddress(group)
            | Self::BlockedPrefix(group)
            | Self::Banned(group)
            | Self::BlockedCountry(group) => Some(group),
            Self::Pass | Self::Allowed | Self::RateLimited => None,
        }
    }
}

impl GroupCounters {
    /// Makes the names known by which the log tells groups: of number 0, 1, and so on.
    pub fn set_names(&self, names: Vec<Group>) {
        self.names.store(Arc::new(names));
    }

    /// Groups whose names are known.
    pub fn len(&self) -> usize {
        self.names.load().len()
    }

    /// Whether no name is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of a group.
    pub fn name(&self, group: u32) -> Option<Group> {
        self.names.load().get(group as usize).copied()
    }

    /// What was counted for a group.
    pub fn count(&self, group: u32) -> GroupCount {
        let Some(counter) = self.counter(group) else { return GroupCount::default() };
        GroupCount { dropped: counter.dropped.load(Relaxed), would_drop: counter.would_drop.load(Relaxed) }
    }

    /// Begins anew, for a number that is given to another group.
    pub fn reset(&self, group: u32) {
        if let Some(counter) = self.counter(group) {
            counter.dropped.store(0, Relaxed);
            counter.would_drop.store(0, Relaxed);
        }
    }

    fn count_dropped(&self, group: u32) {
        if let Some(counter) = self.counter(group) {
            counter.dropped.fetch_add(1, Relaxed);
        }
    }

    fn count_would_drop(&self, group: u32) {
        if let Some(counter) = self.counter(group) {
            counter.would_drop.fetch_add(1, Relaxed);
        }
    }

    /// There are no more than [`GROUPS_MAX`] numbers.
    fn counter(&self, group: u32) -> Option<&GroupCounter> {
        self.counts.get(group as usize)
    }
}

impl Default for GroupCounters {
    fn default() -> Self {
        let counts = std::iter::repeat_with(GroupCounter::default).take(GROUPS_MAX as usize).collect();
        Self { counts, names: ArcSwap::default() }
    }
}

impl fmt::Debug for GroupCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupCounters").field("names", &self.names).finish_non_exhaustive()
    }
}

/// The tables, and what the verdict asks beside them.
struct Asked<'a> {
    tables: Reading<'a>,
    groups: Option<&'a GroupCounters>,
    now: u64,
}

impl Host for Asked<'_> {
    /// A connection to a listener is in every scope but that of another listener.
    fn scope(&self) -> Scope {
        Scope::Listeners
    }

    /// A connection has come to a listener.
    fn port(&self, _port: u16) -> PortFlags {
        PortFlags::LISTENER
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn would_drop(&self, group: u32) {
        if let Some(groups) = self.groups {
            groups.count_would_drop(group);
        }
    }

    /// [`Firewall::judge`] limits what the verdict lets pass.
    fn limits(&self) -> bool {
        false
    }

    fn admit(&self, _source: Source) -> bool {
        true
    }
}

impl Tables for Asked<'_> {
    fn tree4(&self, index: u32) -> Option<&AtomicU64> {
        self.tables.tree4(index)
    }

    fn tree6(&self, index: u32) -> Option<&AtomicU64> {
        self.tables.tree6(index)
    }

    fn node(&self, index: u32) -> Option<&AtomicU64> {
        self.tables.node(index)
    }

    fn line4(&self, index: u32) -> Option<&Line> {
        self.tables.line4(index)
    }

    fn line6(&self, index: u32) -> Option<&Line> {
        self.tables.line6(index)
    }

    fn line_long6(&self, index: u32) -> Option<&Line> {
        self.tables.line_long6(index)
    }

    fn clause(&self, id: u32) -> Option<&ClauseWords> {
        self.tables.clause(id)
    }

    fn geometry(&self) -> Geometry {
        self.tables.geometry()
    }
}

#[cfg(test)]
pub(crate) mod tests;
