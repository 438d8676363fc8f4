//! Rules as a list, judged one by one: what the tables are compared with.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use mc_proxy_common::reason::Reason;

use super::support::{Outcome, Packet};
use crate::firewall::{Action, CountryCode, Expiry, GroupIds, Rule, RuleChange, RuleKey, RuleScope, Subject, Tier};

#[derive(Clone, Debug, Default)]
pub(super) struct Reference {
    pub(super) rules: BTreeMap<RuleKey, Option<Expiry>>,
    pub(super) countries: Vec<(IpNet, CountryCode)>,
    pub(super) bans_max: usize,
}

impl Reference {
    pub(super) fn apply(&mut self, changes: &[RuleChange]) {
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
        let bans = |rules: &BTreeMap<RuleKey, Option<Expiry>>| {
            let mut bans: Vec<(Expiry, RuleKey)> = rules
                .iter()
                .filter(|(key, _)| key.tier() == Tier::Ban)
                .map(|(key, at)| (at.unwrap_or(Expiry::MAX), *key))
                .collect();
            bans.sort();
            bans
        };
        let bans = bans(&self.rules);
        for (_, key) in bans.iter().take(bans.len().saturating_sub(self.bans_max)) {
            self.rules.remove(key);
        }
    }

    pub(super) fn expire(&mut self, wall: u64) {
        self.rules.retain(|_, at| at.is_none_or(|at| at.as_millis() > wall));
    }

    /// The rules about an address with the prefix by which they are, in order.
    pub(super) fn covering(&self, source: IpAddr, groups: &GroupIds) -> Vec<(Rule, IpNet)> {
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
            let length = Reverse(net.prefix_len());
            (
                rule.tier(),
                length,
                rule.key.action != Action::Count,
                scope,
                until,
                groups.id(&rule.key.group),
                rule.key.action,
            )
        });
        found
    }

    pub(super) fn judge(&self, source: IpAddr, packet: Packet, is_host: bool, wall: u64, groups: &GroupIds) -> Outcome {
        let mut outcome = Outcome::default();
        for (rule, net) in self.covering(source, groups) {
            let is_past = rule.expires_at.is_some_and(|at| at.as_millis() <= wall);
            let is_out = match rule.key.scope {
                RuleScope::Default => !(is_host || packet.is_for_listener),
                RuleScope::Host => false,
                RuleScope::Listener(port) => packet.port != port,
            };
            if is_past || is_out {
                continue;
            }
            let group = groups.id(&rule.key.group).unwrap();
            let reason = match rule.tier() {
                Tier::Allow => Reason::Allowed,
                Tier::Block if net.prefix_len() == net.max_prefix_len() => Reason::BlockedAddress,
                Tier::Block => Reason::BlockedPrefix,
                Tier::Ban => Reason::Banned,
                Tier::Country => Reason::BlockedCountry,
            };
            if rule.key.action == Action::Count {
                outcome.counted.push(group);
            } else {
                outcome.decision = Some((rule.key.action == Action::Block, reason, group));
                return outcome;
            }
        }
        outcome
    }
}
