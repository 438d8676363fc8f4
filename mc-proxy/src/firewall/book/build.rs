//! A book from all rules at once.

use super::{BookError, GroupIds, OwnRule, RuleBook, change, is_ghost};
use crate::firewall::{
    Rule, Subject,
    prefix::{Entries, Prefix},
};

impl RuleBook {
    /// A book of `rules`, of which those with the same key are one: the last.
    ///
    /// # Errors
    /// See [`BookError`].
    pub fn build(rules: impl IntoIterator<Item = Rule>, groups: GroupIds, bans_max: usize) -> Result<Self, BookError> {
        let mut book = Self::new(groups, bans_max);
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for rule in rules {
            let own = book.own_rule(&rule)?;
            match rule.key.subject {
                Subject::Country(code) => {
                    let mut rules = book.countries.rules.get(&code).cloned().unwrap_or_default();
                    if let Some(old) = book.find(&rule.key, &own) {
                        book.set_deadline(false, old.expires_at, &old, &rule.key);
                        rules.retain(|rule| !rule.is_same(&old));
                    } else {
                        book.resize(&own, |count| *count += 1);
                    }
                    rules.push(own);
                    book.set_country_rules(code, rules);
                    book.set_deadline(true, own.expires_at, &own, &rule.key);
                }
                Subject::Net(net) => {
                    let list = if net.addr().is_ipv4() { &mut v4 } else { &mut v6 };
                    list.push((Prefix::of(net), book.own.intern(&[own])));
                }
            }
        }
        let (v4, v6) = (book.merge(v4, false), book.merge(v6, true));
        book.entries = Entries::from_sorted(v4, v6);
        for (net, _) in book.entries.iter() {
            let length = usize::from(net.prefix_len());
            let count =
                if net.addr().is_ipv4() { book.lengths4.get_mut(length) } else { book.lengths6.get_mut(length) };
            count.into_iter().for_each(|count| *count += 1);
            book.slots.add(net);
        }
        book.log = change::Log::default();
        Ok(book)
    }

    /// Sorts lists of one rule each by their prefix, and makes those at the same prefix one list.
    fn merge(&mut self, mut singles: Vec<(Prefix, u32)>, is_v6: bool) -> Vec<(Prefix, u32)> {
        singles.sort_by_key(|(prefix, _)| *prefix);
        let mut merged: Vec<(Prefix, u32)> = Vec::with_capacity(singles.len());
        for (prefix, own) in singles {
            match merged.last_mut() {
                Some((last, list)) if *last == prefix => {
                    let added: Vec<OwnRule> = self.own.rules(own).to_vec();
                    let mut rules = self.own.rules(*list).to_vec();
                    rules.retain(|rule| !added.iter().any(|added| added.is_same(rule)));
                    rules.extend(added);
                    rules.sort_by_cached_key(OwnRule::order);
                    let old = std::mem::replace(list, self.own.intern(&rules));
                    self.own.release(old);
                    self.own.release(own);
                }
                _ => merged.push((prefix, own)),
            }
        }
        for (prefix, own) in &merged {
            for rule in self.own.rules(*own).to_vec() {
                self.resize(&rule, |count| *count += 1);
                let is_indexed = rule.expires_at.is_some() || rule.tier == crate::firewall::Tier::Ban;
                if is_indexed && let Some(full) = self.rule(Subject::Net(prefix.to_net(is_v6)), &rule) {
                    self.set_deadline(true, rule.expires_at, &rule, &full.key);
                }
            }
        }
        merged
    }

    /// Prefixes that have rules, with their lists.
    pub(in crate::firewall) fn live(&self) -> impl Iterator<Item = (ipnet::IpNet, u32)> + '_ {
        self.entries.iter().filter(|(_, own)| !is_ghost(*own))
    }
}
