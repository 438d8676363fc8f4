//! What the rule maps ought to hold, and what has to be done to maps that hold something else. Nothing here asks the
//! kernel.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use mc_proxy_common::maps::{Address4, Address6, Prefix4, Prefix6, RuleValue};

use crate::firewall::{Action, Rule, RuleSet, Subject};

/// One entry of one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Allow4(Prefix4),
    Allow6(Prefix6),
    Block4(Address4),
    Block6(Address6),
    Net4(Prefix4),
    Net6(Prefix6),
}

/// The contents of all rule maps.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    pub(super) allow4: HashMap<Prefix4, RuleValue>,
    pub(super) allow6: HashMap<Prefix6, RuleValue>,
    pub(super) block4: HashMap<Address4, RuleValue>,
    pub(super) block6: HashMap<Address6, RuleValue>,
    pub(super) net4: HashMap<Prefix4, RuleValue>,
    pub(super) net6: HashMap<Prefix6, RuleValue>,
}

/// The way from one content to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Diff<K> {
    /// Keys that are missing or have another value.
    pub(super) upsert: Vec<K>,
    /// Their values.
    pub(super) values: Vec<RuleValue>,
    /// Keys that nobody wants.
    pub(super) stale: Vec<K>,
}

impl Entry {
    /// Where a rule is kept; nowhere when it is about a country or only counts.
    pub(super) fn of(rule: &Rule) -> Option<Self> {
        let Subject::Net(net) = rule.key.subject else { return None };
        (rule.key.action != Action::Count).then(|| Self::of_net(rule.key.action, net))
    }

    fn of_net(action: Action, net: IpNet) -> Self {
        match (action, net) {
            (Action::Allow, IpNet::V4(net)) => Self::Allow4(Prefix4::new(net.network(), net.prefix_len())),
            (Action::Allow, IpNet::V6(net)) => Self::Allow6(Prefix6::new(net.network(), net.prefix_len())),
            (Action::Block | Action::Count, IpNet::V4(net)) if net.prefix_len() == Ipv4Addr::BITS as u8 => {
                Self::Block4(net.addr().into())
            }
            (Action::Block | Action::Count, IpNet::V6(net)) if net.prefix_len() == Ipv6Addr::BITS as u8 => {
                Self::Block6(net.addr().into())
            }
            (Action::Block | Action::Count, IpNet::V4(net)) => {
                Self::Net4(Prefix4::new(net.network(), net.prefix_len()))
            }
            (Action::Block | Action::Count, IpNet::V6(net)) => {
                Self::Net6(Prefix6::new(net.network(), net.prefix_len()))
            }
        }
    }
}

impl Entries {
    /// Those that enforce `rules`.
    pub(super) fn of(rules: &RuleSet) -> Self {
        let mut entries = Self::default();
        for action in [Action::Allow, Action::Block] {
            for net in rules.nets(action) {
                entries.insert(Entry::of_net(action, net));
            }
        }
        entries
    }

    pub(super) fn len(&self) -> u64 {
        let lengths = [
            self.allow4.len(),
            self.allow6.len(),
            self.block4.len(),
            self.block6.len(),
            self.net4.len(),
            self.net6.len(),
        ];
        lengths.iter().sum::<usize>() as u64
    }

    fn insert(&mut self, entry: Entry) {
        let value = RuleValue::PERMANENT;
        match entry {
            Entry::Allow4(key) => drop(self.allow4.insert(key, value)),
            Entry::Allow6(key) => drop(self.allow6.insert(key, value)),
            Entry::Block4(key) => drop(self.block4.insert(key, value)),
            Entry::Block6(key) => drop(self.block6.insert(key, value)),
            Entry::Net4(key) => drop(self.net4.insert(key, value)),
            Entry::Net6(key) => drop(self.net6.insert(key, value)),
        }
    }
}

impl<K: Copy + Eq + Hash> Diff<K> {
    /// From what a map holds to what it ought to.
    pub(super) fn between(current: &[(K, RuleValue)], desired: &HashMap<K, RuleValue>) -> Self {
        let current: HashMap<K, RuleValue> = current.iter().copied().collect();
        let (upsert, values) = desired
            .iter()
            .filter(|(key, value)| current.get(key) != Some(value))
            .map(|(key, value)| (*key, *value))
            .unzip();
        let stale = current.into_keys().filter(|key| !desired.contains_key(key)).collect();
        Self { upsert, values, stale }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(action: Action, text: &str) -> Rule {
        Rule::permanent(action, text.parse().unwrap()).unwrap()
    }

    #[test]
    fn every_rule_has_its_map() {
        let entry = |action, text: &str| Entry::of(&rule(action, text));
        let v4 = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        assert_eq!(entry(Action::Block, "203.0.113.50"), Some(Entry::Block4(v4("203.0.113.50").into())));
        assert_eq!(entry(Action::Block, "2001:db8::1"), Some(Entry::Block6(v6("2001:db8::1").into())));
        assert_eq!(entry(Action::Block, "0.0.0.0/0"), Some(Entry::Net4(Prefix4::new(v4("0.0.0.0"), 0))));
        assert_eq!(entry(Action::Block, "2001:db8::/32"), Some(Entry::Net6(Prefix6::new(v6("2001:db8::"), 32))));
        assert_eq!(entry(Action::Allow, "203.0.113.50"), Some(Entry::Allow4(Prefix4::new(v4("203.0.113.50"), 32))));
        assert_eq!(entry(Action::Allow, "2001:db8::/32"), Some(Entry::Allow6(Prefix6::new(v6("2001:db8::"), 32))));
        assert_eq!(entry(Action::Block, "RU"), None);
    }

    #[test]
    fn all_rules_but_countries_are_entries() {
        let rules: RuleSet = ["203.0.113.50", "198.51.100.0/24", "2001:db8::1", "2001:db8::/32", "RU"]
            .map(|text| rule(Action::Block, text))
            .into_iter()
            .chain([rule(Action::Allow, "203.0.113.0/24"), rule(Action::Allow, "::/0")])
            .collect();
        let entries = Entries::of(&rules);
        assert_eq!(entries.len(), 6);
        assert_eq!(entries.allow6.len(), 1);
    }

    proptest! {
        #[test]
        fn a_diff_leads_from_one_to_the_other(
            current in prop::collection::hash_map(0_u32..12, 0_u64..3, 0..12),
            desired in prop::collection::hash_map(0_u32..12, 0_u64..3, 0..12),
        ) {
            let values = |map: HashMap<u32, u64>| {
                map.into_iter().map(|(key, at)| (key, RuleValue::PERMANENT.until(at))).collect::<HashMap<_, _>>()
            };
            let (mut current, desired) = (values(current), values(desired));
            let diff = Diff::between(&current.iter().map(|(key, value)| (*key, *value)).collect::<Vec<_>>(), &desired);
            prop_assert!(diff.stale.iter().all(|key| !desired.contains_key(key)));
            current.extend(diff.upsert.iter().copied().zip(diff.values));
            // Before anything is removed, all that is wanted is there.
            prop_assert!(desired.iter().all(|(key, value)| current.get(key) == Some(value)));
            current.retain(|key, _| !diff.stale.contains(key));
            prop_assert_eq!(current, desired);
        }
    }
}
