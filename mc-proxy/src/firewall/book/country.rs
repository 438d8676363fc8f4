//! Countries: their rules, and the prefixes that these hold for.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{OwnRule, RuleBook};
use crate::firewall::{CountryCode, Tier};

#[derive(Debug, Default)]
pub(super) struct Countries {
    /// By the order of evaluation.
    pub(super) rules: BTreeMap<CountryCode, Vec<OwnRule>>,
    /// Sorted.
    pub(super) prefixes: BTreeMap<CountryCode, Vec<IpNet>>,
}

impl Countries {
    /// The country that has a prefix.
    pub(super) fn country(&self, net: IpNet) -> Option<CountryCode> {
        let mut blocked = self.rules.keys();
        blocked.find(|code| self.prefixes.get(code).is_some_and(|nets| nets.binary_search(&net).is_ok())).copied()
    }
}

impl RuleBook {
    /// Countries that a rule is about.
    pub fn countries(&self) -> impl Iterator<Item = CountryCode> + '_ {
        self.countries.rules.keys().copied()
    }

    /// Replaces the prefixes of all countries. A prefix that is given twice belongs to the first country.
    pub(in crate::firewall) fn set_countries(&mut self, prefixes: impl IntoIterator<Item = (IpNet, CountryCode)>) {
        let mut all: Vec<(IpNet, CountryCode)> = prefixes.into_iter().collect();
        all.sort_by_key(|(net, _)| *net);
        all.dedup_by_key(|(net, _)| *net);
        let mut new: BTreeMap<CountryCode, Vec<IpNet>> = BTreeMap::new();
        for (net, code) in all {
            new.entry(code).or_default().push(net);
        }
        let codes: Vec<CountryCode> = self.countries().collect();
        let old = std::mem::replace(&mut self.countries.prefixes, new);
        // What goes goes first: a prefix may move to another country.
        for code in &codes {
            let kept = self.countries.prefixes.get(code).map(Vec::as_slice).unwrap_or_default();
            let gone = old.get(code).into_iter().flatten().filter(|net| kept.binary_search(net).is_err());
            for net in gone.copied().collect::<Vec<_>>() {
                self.modify(net, |own| own.retain(|rule| rule.tier != Tier::Country));
            }
        }
        for code in &codes {
            let had = old.get(code).map(Vec::as_slice).unwrap_or_default();
            let nets = self.countries.prefixes.get(code).into_iter().flatten();
            let new: Vec<IpNet> = nets.filter(|net| had.binary_search(net).is_err()).copied().collect();
            let rules = self.countries.rules.get(code).cloned().unwrap_or_default();
            for net in new {
                self.modify(net, |own| own.extend(&rules));
            }
        }
        self.log.prefixes.get_or_insert(old);
    }

    /// Puts the rules of a country to all of its prefixes.
    pub(super) fn set_country_rules(&mut self, code: CountryCode, rules: Vec<OwnRule>) {
        self.log.country_rules.get_or_insert_with(|| self.countries.rules.clone());
        for net in self.countries.prefixes.get(&code).cloned().unwrap_or_default() {
            self.modify(net, |own| {
                own.retain(|rule| rule.tier != Tier::Country);
                own.extend(&rules);
            });
        }
        if rules.is_empty() {
            self.countries.rules.remove(&code);
        } else {
            self.countries.rules.insert(code, rules);
        }
    }
}
