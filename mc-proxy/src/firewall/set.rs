//! All rules, ready to be asked: an immutable value of which a changed copy is cheap.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Action, CountryCode, Rule, RuleKey, Subject};

/// The rules in force. Cloning shares everything; adding or removing a rule copies a path of the trees, so a set of a
/// million rules changes in microseconds while connections go on reading the old one.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    allow: Nets,
    block: Nets,
    countries: imbl::OrdSet<CountryCode>,
}

/// Prefixes of both families. For each prefix length that occurs one look-up is made, longest first.
#[derive(Clone, Debug, Default)]
struct Nets {
    entries: imbl::HashSet<IpNet>,
    v4_lengths: imbl::OrdMap<u8, usize>,
    v6_lengths: imbl::OrdMap<u8, usize>,
}

impl RuleSet {
    /// Adds a rule; `false` if it was there, or only counts.
    pub fn insert(&mut self, rule: Rule) -> bool {
        match (rule.key.action, rule.key.subject) {
            (Action::Allow, Subject::Net(net)) => self.allow.insert(net),
            (Action::Block, Subject::Net(net)) => self.block.insert(net),
            (Action::Count, _) => false,
            (_, Subject::Country(code)) => self.countries.insert(code).is_none(),
        }
    }

    /// Removes a rule; `false` if it was not there.
    pub fn remove(&mut self, rule: &Rule) -> bool {
        match (rule.key.action, rule.key.subject) {
            (Action::Allow, Subject::Net(net)) => self.allow.remove(net),
            (Action::Block, Subject::Net(net)) => self.block.remove(net),
            (Action::Count, _) => false,
            (_, Subject::Country(code)) => self.countries.remove(&code).is_some(),
        }
    }

    /// Whether exactly this rule is in the set.
    pub fn contains(&self, rule: &Rule) -> bool {
        match (rule.key.action, rule.key.subject) {
            (Action::Allow, Subject::Net(net)) => self.allow.entries.contains(&net),
            (Action::Block, Subject::Net(net)) => self.block.entries.contains(&net),
            (Action::Count, _) => false,
            (_, Subject::Country(code)) => self.countries.contains(&code),
        }
    }

    /// Rules of every kind.
    pub fn len(&self) -> usize {
        self.allow.entries.len() + self.block.entries.len() + self.countries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every rule, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = Rule> + '_ {
        let nets = |action, nets: &'_ Nets| {
            let rule = |net: &IpNet| {
                let block = Rule::block(Subject::Net(*net));
                Rule { key: RuleKey { action, ..block.key }, ..block }
            };
            nets.entries.iter().map(rule).collect::<Vec<_>>()
        };
        nets(Action::Allow, &self.allow)
            .into_iter()
            .chain(nets(Action::Block, &self.block))
            .chain(self.countries.iter().map(|code| Rule::block(Subject::Country(*code))))
    }

    /// The prefixes with an action; single addresses have their full length.
    pub fn nets(&self, action: Action) -> impl Iterator<Item = IpNet> + '_ {
        match action {
            Action::Allow => Some(&self.allow),
            Action::Block => Some(&self.block),
            Action::Count => None,
        }
        .into_iter()
        .flat_map(|nets| nets.entries.iter().copied())
    }

    /// The longest prefix with `action` that covers `addr`.
    pub fn covering(&self, action: Action, addr: IpAddr) -> Option<IpNet> {
        match action {
            Action::Allow => self.allow.covering(addr),
            Action::Block => self.block.covering(addr),
            Action::Count => None,
        }
    }

    /// Whether any country is blocked; without one, the GeoIP database need not be asked.
    pub fn has_countries(&self) -> bool {
        !self.countries.is_empty()
    }

    /// Whether the country is blocked.
    pub fn blocks_country(&self, code: CountryCode) -> bool {
        self.countries.contains(&code)
    }
}

impl FromIterator<Rule> for RuleSet {
    fn from_iter<I: IntoIterator<Item = Rule>>(rules: I) -> Self {
        let mut set = Self::default();
        for rule in rules {
            set.insert(rule);
        }
        set
    }
}

impl Nets {
    fn insert(&mut self, net: IpNet) -> bool {
        let is_new = self.entries.insert(net).is_none();
        if is_new {
            *self.lengths(net).entry(net.prefix_len()).or_insert(0) += 1;
        }
        is_new
    }

    fn remove(&mut self, net: IpNet) -> bool {
        let was_there = self.entries.remove(&net).is_some();
        if was_there {
            let lengths = self.lengths(net);
            match lengths.get_mut(&net.prefix_len()) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    lengths.remove(&net.prefix_len());
                }
            }
        }
        was_there
    }

    fn lengths(&mut self, net: IpNet) -> &mut imbl::OrdMap<u8, usize> {
        match net {
            IpNet::V4(_) => &mut self.v4_lengths,
            IpNet::V6(_) => &mut self.v6_lengths,
        }
    }

    fn covering(&self, addr: IpAddr) -> Option<IpNet> {
        let prefix = |length: u8| match addr {
            IpAddr::V4(addr) => Ipv4Net::new(addr, length).map(|net| IpNet::V4(net.trunc())).ok(),
            IpAddr::V6(addr) => Ipv6Net::new(addr, length).map(|net| IpNet::V6(net.trunc())).ok(),
        };
        let lengths = if addr.is_ipv4() { &self.v4_lengths } else { &self.v6_lengths };
        lengths.keys().rev().filter_map(|length| prefix(*length)).find(|net| self.entries.contains(net))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(text: &str) -> Rule {
        Rule::block(text.parse().unwrap())
    }

    #[test]
    fn the_longest_prefix_covers() {
        let set: RuleSet = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "2001:db8::/32"].map(block).into_iter().collect();
        let covering = |addr: &str| set.covering(Action::Block, addr.parse().unwrap()).map(|net| net.to_string());
        assert_eq!(covering("10.1.2.3").as_deref(), Some("10.1.2.3/32"));
        assert_eq!(covering("10.1.2.4").as_deref(), Some("10.1.0.0/16"));
        assert_eq!(covering("10.2.0.1").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(covering("2001:db8::1").as_deref(), Some("2001:db8::/32"));
        assert_eq!(covering("11.0.0.1"), None);
        assert_eq!(set.covering(Action::Allow, "10.1.2.3".parse().unwrap()), None);
    }

    proptest! {
        #[test]
        fn agrees_with_a_list(ops in prop::collection::vec((any::<bool>(), 0_u32..16, 24_u8..=32), 0..60), probe in 0_u32..16) {
            let mut set = RuleSet::default();
            let mut list = std::collections::BTreeSet::new();
            for (is_insert, low, length) in ops {
                let net = IpNet::from(Ipv4Net::new((0x0a00_0000 | low).into(), length).unwrap().trunc());
                let rule = Rule::block(Subject::Net(net));
                if is_insert {
                    prop_assert_eq!(set.insert(rule), list.insert(net));
                } else {
                    prop_assert_eq!(set.remove(&rule), list.remove(&net));
                }
            }
            let addr = IpAddr::V4((0x0a00_0000 | probe).into());
            let expected = list.iter().filter(|net| net.contains(&addr)).max_by_key(|net| net.prefix_len()).copied();
            prop_assert_eq!(set.covering(Action::Block, addr), expected);
            prop_assert_eq!(set.len(), list.len());
        }
    }
}
