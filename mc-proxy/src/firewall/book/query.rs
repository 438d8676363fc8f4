//! Questions to the book.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{OwnRule, RuleBook, RuleChange};
use crate::firewall::{
    Action, Expiry, Group, Rule, RuleKey, RuleScope, Subject, Tier,
    prefix::{Family, Prefix, V4, V6},
};

/// A rule that is about an address, whether or not it holds at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covering {
    /// The rule.
    pub rule: Rule,
    /// The prefix by which the address is meant: one of the country's, for a country.
    pub net: IpNet,
}

/// What makes a group equal to a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replacement {
    /// In no particular order.
    pub changes: Vec<RuleChange>,
    /// Rules that stay as they are.
    pub unchanged: u64,
}

impl RuleBook {
    /// The rule with a key.
    pub fn get(&self, key: &RuleKey) -> Option<Rule> {
        let group = self.groups.id(&key.group)?;
        let wanted = OwnRule { tier: key.tier(), action: key.action, scope: key.scope, group, expires_at: None };
        self.find(key, &wanted).map(|own| Rule { key: *key, expires_at: own.expires_at })
    }

    /// The rules with a subject, in whatever group.
    pub fn about(&self, subject: Subject) -> Vec<Rule> {
        let rules = match subject {
            Subject::Net(net) => self.entries.get(net).map(|own| self.own.rules(own)),
            Subject::Country(code) => self.countries.rules.get(&code).map(Vec::as_slice),
        };
        let is_of_country = matches!(subject, Subject::Country(_));
        let rules = rules.unwrap_or_default().iter().filter(|own| (own.tier == Tier::Country) == is_of_country);
        rules.filter_map(|own| self.rule(subject, own)).collect()
    }

    /// The rules that are about an address, in the order of evaluation.
    pub fn covering(&self, address: IpAddr) -> Vec<Covering> {
        let address = address.to_canonical();
        let mut found = match address {
            IpAddr::V4(_) => self.on_the_way_to::<V4>(Prefix::address(address)),
            IpAddr::V6(_) => self.on_the_way_to::<V6>(Prefix::address(address)),
        };
        // Longest first; what is at one prefix is in order already.
        found.sort_by_key(|(net, own)| (own.tier, std::cmp::Reverse(net.prefix_len())));
        let rule = |(net, own): &(IpNet, OwnRule)| {
            let subject = match own.tier {
                Tier::Country => Subject::Country(self.countries.country(*net)?),
                Tier::Allow | Tier::Block | Tier::Ban => Subject::Net(*net),
            };
            Some(Covering { rule: self.rule(subject, own)?, net: *net })
        };
        found.iter().filter_map(rule).collect()
    }

    fn on_the_way_to<F: Family>(&self, address: Prefix) -> Vec<(IpNet, OwnRule)> {
        let exact = F::entries(&self.entries).get(&F::key(address)).map(|own| (address, *own));
        let at = |(prefix, own)| self.own.rules(own).iter().map(move |rule| (F::net(prefix), *rule));
        self.above::<F>(address).chain(exact).flat_map(at).collect()
    }

    /// All rules, sorted by subject.
    pub fn rules(&self) -> impl Iterator<Item = Rule> + '_ {
        let nets = self.live().flat_map(move |(net, own)| {
            let rules = self.own.rules(own).iter().filter(|own| own.tier != Tier::Country);
            rules.filter_map(move |own| self.rule(Subject::Net(net), own))
        });
        let countries =
            self.countries.rules.iter().flat_map(move |(code, rules)| {
                rules.iter().filter_map(move |own| self.rule(Subject::Country(*code), own))
            });
        nets.chain(countries)
    }

    /// The rules of a group, sorted by subject.
    pub fn group(&self, group: &Group) -> impl Iterator<Item = Rule> + '_ {
        let id = self.groups.id(group);
        let is_of_group = move |own: &&OwnRule| Some(own.group) == id;
        let nets = self.live().flat_map(move |(net, own)| {
            let rules = self.own.rules(own).iter().filter(is_of_group).filter(|own| own.tier != Tier::Country);
            rules.filter_map(move |own| self.rule(Subject::Net(net), own))
        });
        let countries = self.countries.rules.iter().flat_map(move |(code, rules)| {
            rules.iter().filter(is_of_group).filter_map(move |own| self.rule(Subject::Country(*code), own))
        });
        nets.chain(countries)
    }

    /// The changes after which the group's rules are those with `nets` and nothing else.
    pub fn replacement(
        &self,
        group: Group,
        action: Action,
        scope: RuleScope,
        expires_at: Option<Expiry>,
        mut nets: Vec<IpNet>,
    ) -> Replacement {
        nets.sort_unstable();
        nets.dedup();
        let key = |net| RuleKey { group, action, subject: Subject::Net(net), scope };
        let mut replacement = Replacement::default();
        let mut kept = vec![false; nets.len()];
        for rule in self.group(&group) {
            let place = match rule.key.subject {
                Subject::Net(net) if rule.key == key(net) => nets.binary_search(&net).ok(),
                Subject::Net(_) | Subject::Country(_) => None,
            };
            match place.and_then(|place| kept.get_mut(place)) {
                Some(kept) if rule.expires_at == expires_at => {
                    *kept = true;
                    replacement.unchanged += 1;
                }
                // Put again below, with the other expiry.
                Some(_) => {}
                None => replacement.changes.push(RuleChange::Remove(rule.key)),
            }
        }
        let new = nets.iter().zip(&kept).filter(|(_, is_kept)| !**is_kept);
        replacement.changes.extend(new.map(|(net, _)| RuleChange::Put(Rule { key: key(*net), expires_at })));
        replacement
    }
}
