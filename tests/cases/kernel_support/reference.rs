//! Rules as a list that is read from top to bottom: what the program is compared with.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use mc_proxy::firewall::{
    Action, CountryCode, Expiry, GroupIds, Moment, Rule, RuleChange, RuleKey, RuleScope, Subject, Tier,
};
use mc_proxy_common::{
    packet::{Packet, Transport, Unjudged},
    rate::RateLimit,
    reason::Reason,
};

use crate::{CONNECTIONS, LIMITED, LISTENER, limit};

/// Expiries are kept as multiples of this, rounded up; in milliseconds, and one for the clocks.
const ROUNDING: u64 = 101;

/// All rules.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub(crate) rules: BTreeMap<RuleKey, Option<Expiry>>,
    pub(crate) countries: Vec<(IpNet, CountryCode)>,
    is_host: bool,
    is_limited: bool,
}

/// What may become of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// One that decides; or, for a frame about which nothing decides, those that may be given for it: which rules can
    /// be left out of a decision list, and with them their reasons not to hold, is the compiler's business.
    reasons: Vec<Reason>,
    dropped: Option<u32>,
    would_drop: BTreeMap<u32, u64>,
    /// Whose rate it is counted against.
    pub(crate) spends: Option<u64>,
}

impl Outcome {
    fn of(reason: Reason) -> Self {
        Self { reasons: vec![reason], dropped: None, would_drop: BTreeMap::new(), spends: None }
    }

    pub(crate) fn agrees(&self, reason: Reason, dropped: Option<u32>, would_drop: &BTreeMap<u32, u64>) -> bool {
        // The limit is no rule's: its drops are counted for the group with the number 0.
        let is_same_group = self.dropped == dropped || (reason == Reason::RateLimited && dropped == Some(0));
        self.reasons.contains(&reason) && is_same_group && self.would_drop == *would_drop
    }
}

impl Reference {
    pub(crate) fn new(is_host: bool, is_limited: bool) -> Self {
        Self { rules: BTreeMap::new(), countries: Vec::new(), is_host, is_limited }
    }

    pub(crate) fn apply(&mut self, changes: &[RuleChange]) {
        for change in changes {
            match change {
                RuleChange::Put(Rule { key, expires_at }) => {
                    let old = self.rules.insert(*key, *expires_at);
                    // A ban is never shortened.
                    if let Some(old) = old.filter(|_| key.tier() == Tier::Ban) {
                        let longer = old.zip(*expires_at).map(|(a, b)| a.max(b));
                        self.rules.insert(*key, longer);
                    }
                }
                RuleChange::Remove(key) => {
                    self.rules.remove(key);
                }
            }
        }
    }

    /// What may become of a frame that is judged at some time from `begun` to `ended`: one outcome, or, when a rule
    /// expires just then, that with it and that without.
    pub(crate) fn judge_between(
        &self,
        frame: &[u8],
        begun: Moment,
        ended: Moment,
        groups: &GroupIds,
        spent: &BTreeMap<u64, u32>,
    ) -> Vec<Outcome> {
        let mut edges: Vec<u64> = self.rules.values().flatten().map(|expiry| expiry.as_millis()).collect();
        let (first, last) = (begun.wall.saturating_sub(ROUNDING), ended.wall + 1);
        edges.retain(|edge| (first..=last).contains(edge));
        edges.push(first);
        edges.sort_unstable();
        let mut outcomes = Vec::new();
        for edge in edges {
            let outcome = self.judge(frame, edge, groups, spent);
            if !outcomes.contains(&outcome) {
                outcomes.push(outcome);
            }
        }
        outcomes
    }

    fn judge(&self, frame: &[u8], wall: u64, groups: &GroupIds, spent: &BTreeMap<u64, u32>) -> Outcome {
        let packet = match Packet::parse(frame) {
            Ok(packet) => packet,
            Err(Unjudged::NotIp) => return Outcome::of(Reason::NotIp),
            Err(Unjudged::Malformed) => return Outcome::of(Reason::Malformed),
        };
        let (source, transport) = (packet.source(), packet.transport());
        let mut outcome = Outcome::of(Reason::NoRule);
        for (rule, net) in self.covering(source.addr(), groups) {
            let miss = if rule.expires_at.is_some_and(|at| at.as_millis() <= wall) {
                Some(Reason::Expired)
            } else {
                self.miss(&rule.key, transport)
            };
            if let Some(miss) = miss {
                outcome.reasons.push(miss);
                continue;
            }
            let group = u32::from(groups.id(&rule.key.group).unwrap());
            let reason = match rule.tier() {
                Tier::Allow => Reason::Allowed,
                Tier::Block if net.prefix_len() == net.max_prefix_len() => Reason::BlockedAddress,
                Tier::Block => Reason::BlockedPrefix,
                Tier::Ban => Reason::Banned,
                Tier::Country => Reason::BlockedCountry,
            };
            match rule.key.action {
                Action::Count => *outcome.would_drop.entry(group).or_insert(0) += 1,
                Action::Allow => return Outcome { reasons: vec![reason], ..outcome },
                Action::Block => return Outcome { reasons: vec![reason], dropped: Some(group), ..outcome },
            }
        }
        if self.is_limited && matches!(transport, Transport::Tcp { destination: LIMITED, is_opening: true }) {
            let key = RateLimit::key(&limit(), source);
            if spent.get(&key).is_some_and(|spent| *spent >= CONNECTIONS) {
                return Outcome { reasons: vec![Reason::RateLimited], ..outcome };
            }
            outcome.spends = Some(key);
        }
        outcome
    }

    /// Why a rule with a scope is not about a packet.
    fn miss(&self, key: &RuleKey, transport: Transport) -> Option<Reason> {
        let scope = key.scope;
        let everything = (transport == Transport::NeighborDiscovery).then_some(Reason::NeighborDiscovery);
        let of_listeners = |only: Option<u16>| match transport {
            Transport::Tcp { destination, .. } => {
                let is_listener = destination == LIMITED || destination == LISTENER;
                (!is_listener || only.is_some_and(|only| only != destination)).then_some(Reason::OutOfScope)
            }
            // What lets in for ports has to know the port.
            Transport::Hidden if key.action == Action::Allow => Some(Reason::OutOfScope),
            Transport::Hidden => None,
            Transport::Other => Some(Reason::OutOfScope),
            Transport::LaterFragment => Some(Reason::LaterFragment),
            Transport::Truncated => Some(Reason::Malformed),
            Transport::NeighborDiscovery => Some(Reason::NeighborDiscovery),
        };
        match scope {
            RuleScope::Host => everything,
            RuleScope::Default if self.is_host => everything,
            RuleScope::Default => of_listeners(None),
            RuleScope::Listener(port) => of_listeners(Some(port)),
        }
    }

    /// The rules about an address with the prefix by which they are, in the order of precedence.
    fn covering(&self, source: IpAddr, groups: &GroupIds) -> Vec<(Rule, IpNet)> {
        let mut found = Vec::new();
        for (key, expires_at) in &self.rules {
            let rule = Rule { key: *key, expires_at: *expires_at };
            match key.subject {
                Subject::Net(net) if net.contains(&source) => found.push((rule, net)),
                Subject::Net(_) => {}
                Subject::Country(code) => {
                    let nets = self.countries.iter().filter(|(net, of)| *of == code && net.contains(&source));
                    found.extend(nets.map(|(net, _)| (rule, *net)));
                }
            }
        }
        found.sort_by_key(|(rule, net)| {
            let scope = match rule.key.scope {
                RuleScope::Host => (0, 0),
                RuleScope::Default => (1, 0),
                RuleScope::Listener(port) => (2, port),
            };
            let until = Reverse(rule.expires_at.map_or(u64::MAX, Expiry::as_millis));
            let is_decisive = rule.key.action != Action::Count;
            (rule.tier(), Reverse(net.prefix_len()), is_decisive, scope, until, groups.id(&rule.key.group))
        });
        found
    }
}
