//! Changes of the book, and how they are taken back.

use std::{collections::BTreeMap, mem::take};

use ipnet::IpNet;

use super::{BookError, GHOST, Ghosts, GroupSize, OwnRule, RuleBook, is_ghost, is_long};
use crate::firewall::{CountryCode, Expiry, Rule, RuleKey, Subject, Tier};

/// One change of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleChange {
    /// Adds a rule, or gives the one with the same key this expiry; a ban is never shortened.
    Put(Rule),
    /// Removes the rule with the key, if there is one.
    Remove(RuleKey),
}

/// What came of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Rules that were not there.
    pub added: u64,
    /// Rules with another expiry than before.
    pub replaced: u64,
    /// Rules that were there.
    pub removed: u64,
    /// Changes that changed nothing.
    pub unchanged: u64,
    /// Bans that ended early to make room for others.
    pub evicted: Vec<RuleKey>,
}

/// What the book was before the changes that are not settled yet.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Each with what was there; its reference is the log's.
    entries: Vec<(IpNet, Option<u32>)>,
    deadlines: Vec<(bool, Expiry, RuleKey)>,
    sizes: Option<Vec<GroupSize>>,
    /// How many groups had numbers.
    groups: Option<usize>,
    pub(super) country_rules: Option<BTreeMap<CountryCode, Vec<OwnRule>>>,
    pub(super) prefixes: Option<BTreeMap<CountryCode, Vec<IpNet>>>,
}

/// From so many changes on they are made in the order of the prefixes, which is quicker.
const SORTED_FROM: usize = 1_000;

impl RuleBook {
    /// Makes changes, which [`Self::settle`] makes final and [`Self::undo`] takes back.
    pub(in crate::firewall) fn apply(&mut self, changes: &[RuleChange]) -> Result<Applied, BookError> {
        let mut applied = Applied::default();
        if changes.len() < SORTED_FROM {
            for change in changes {
                self.change(change, &mut applied)?;
            }
        } else {
            let mut sorted: Vec<&RuleChange> = changes.iter().collect();
            sorted.sort_by_key(|change| match change {
                RuleChange::Put(rule) => rule.key.subject,
                RuleChange::Remove(key) => key.subject,
            });
            for change in sorted {
                self.change(change, &mut applied)?;
            }
        }
        while self.bans.len() > self.bans_max {
            let Some((_, key)) = self.bans.first().copied() else { break };
            self.remove(&key);
            applied.evicted.push(key);
        }
        Ok(applied)
    }

    fn change(&mut self, change: &RuleChange, applied: &mut Applied) -> Result<(), BookError> {
        let count = match change {
            RuleChange::Put(rule) => match self.put(rule)? {
                None => &mut applied.added,
                Some(old) if old == rule.expires_at => &mut applied.unchanged,
                Some(_) => &mut applied.replaced,
            },
            RuleChange::Remove(key) if self.remove(key) => &mut applied.removed,
            RuleChange::Remove(_) => &mut applied.unchanged,
        };
        *count += 1;
        Ok(())
    }

    /// The expiry of the rule that it replaces.
    fn put(&mut self, rule: &Rule) -> Result<Option<Option<Expiry>>, BookError> {
        let mut own = self.own_rule(rule)?;
        let old = self.find(&rule.key, &own).map(|old| old.expires_at);
        if let Some(old) = old {
            let is_longer = |a: Option<Expiry>, b: Option<Expiry>| b.is_some_and(|b| a.is_none_or(|a| a > b));
            if own.tier == Tier::Ban && is_longer(old, own.expires_at) {
                own.expires_at = old;
            }
            if old == own.expires_at {
                return Ok(Some(rule.expires_at));
            }
        } else {
            self.resize(&own, |count| *count += 1);
        }
        match rule.key.subject {
            Subject::Net(net) => self.modify(net, |list| place(list, own)),
            Subject::Country(code) => {
                let mut rules = self.countries.rules.get(&code).cloned().unwrap_or_default();
                place(&mut rules, own);
                self.set_country_rules(code, rules);
            }
        }
        if let Some(old) = old {
            self.set_deadline(false, old, &own, &rule.key);
        }
        self.set_deadline(true, own.expires_at, &own, &rule.key);
        Ok(old)
    }

    fn remove(&mut self, key: &RuleKey) -> bool {
        let Some(group) = self.groups.id(&key.group) else { return false };
        let wanted = OwnRule { tier: key.tier(), action: key.action, scope: key.scope, group, expires_at: None };
        let Some(old) = self.find(key, &wanted) else { return false };
        match key.subject {
            Subject::Net(net) => self.modify(net, |list| list.retain(|rule| !rule.is_same(&old))),
            Subject::Country(code) => {
                let mut rules = self.countries.rules.get(&code).cloned().unwrap_or_default();
                rules.retain(|rule| !rule.is_same(&old));
                self.set_country_rules(code, rules);
            }
        }
        self.resize(&old, |count| *count -= 1);
        self.set_deadline(false, old.expires_at, &old, key);
        true
    }

    pub(super) fn own_rule(&mut self, rule: &Rule) -> Result<OwnRule, BookError> {
        self.log.groups.get_or_insert(self.groups.len());
        let group = self.groups.assign(rule.key.group)?;
        Ok(OwnRule {
            tier: rule.tier(),
            action: rule.key.action,
            scope: rule.key.scope,
            group,
            expires_at: rule.expires_at,
        })
    }

    pub(super) fn find(&self, key: &RuleKey, wanted: &OwnRule) -> Option<OwnRule> {
        let rules = match key.subject {
            Subject::Net(net) => self.entries.get(net).map(|own| self.own.rules(own)),
            Subject::Country(code) => self.countries.rules.get(&code).map(Vec::as_slice),
        };
        rules?.iter().find(|rule| rule.is_same(wanted)).copied()
    }

    pub(super) fn resize(&mut self, own: &OwnRule, change: impl FnOnce(&mut u64)) {
        self.log.sizes.get_or_insert_with(|| self.sizes.clone());
        let index = usize::from(own.group);
        if self.sizes.len() <= index {
            self.sizes.resize(index + 1, GroupSize::default());
        }
        if let Some(size) = self.sizes.get_mut(index) {
            change(size.of_mut(own.tier));
        }
    }

    pub(super) fn set_deadline(&mut self, is_added: bool, at: Option<Expiry>, own: &OwnRule, key: &RuleKey) {
        let at = match at {
            Some(at) => at,
            // A ban without end ends last.
            None if own.tier == Tier::Ban => Expiry::MAX,
            None => return,
        };
        let set = if own.tier == Tier::Ban { &mut self.bans } else { &mut self.deadlines };
        let is_changed = if is_added { set.insert((at, *key)) } else { set.remove(&(at, *key)) };
        if is_changed {
            self.log.deadlines.push((is_added, at, *key));
        }
    }

    /// Changes the rules at a prefix.
    pub(super) fn modify(&mut self, net: IpNet, change: impl FnOnce(&mut Vec<OwnRule>)) {
        let old = self.entries.get(net);
        let mut rules = old.map(|own| self.own.rules(own).to_vec()).unwrap_or_default();
        change(&mut rules);
        rules.sort_by_cached_key(OwnRule::order);
        let new = match rules.as_slice() {
            [] if old.is_some_and(is_ghost) => old,
            [] if old.is_some() && is_long(net) => Some(GHOST | self.batch),
            [] => None,
            rules => Some(self.own.intern(rules)),
        };
        if new == old {
            new.into_iter().filter(|own| !is_ghost(*own)).for_each(|own| self.own.release(own));
        } else {
            self.set_entry(net, new);
            self.log.entries.push((net, old));
        }
    }

    /// Prefixes that have changed, without those inside others, in order; all of them, if that is simpler to do.
    pub(in crate::firewall) fn touched(&self) -> Vec<IpNet> {
        let mut nets: Vec<IpNet> = self.log.entries.iter().map(|(net, _)| *net).collect();
        nets.sort_unstable();
        nets.dedup_by(|next, kept| kept.contains(&*next));
        nets
    }

    /// Makes the changes final. Prefixes without rules become ghosts until `due`, or go at once if no look-up can be at
    /// their slots.
    pub(in crate::firewall) fn settle(&mut self, due: u64) {
        let log = take(&mut self.log);
        let mark = GHOST | self.batch;
        let mut nets = Vec::new();
        for (net, old) in log.entries {
            old.into_iter().filter(|own| !is_ghost(*own)).for_each(|own| self.own.release(own));
            if self.entries.get(net) == Some(mark) {
                nets.push(net);
            }
        }
        if !nets.is_empty() {
            nets.sort_unstable();
            nets.dedup();
            self.ghosts.push_back(Ghosts { due, mark, nets });
            self.batch = (self.batch + 1) & !GHOST;
        }
    }

    /// Takes the changes back. With `due` the tables have seen some of them: what had no rules before is a ghost until
    /// then.
    pub(in crate::firewall) fn undo(&mut self, due: Option<u64>) {
        let log = take(&mut self.log);
        let mark = GHOST | self.batch;
        let mut nets = Vec::new();
        for (net, old) in log.entries.into_iter().rev() {
            let restored = match old {
                None if due.is_some() && is_long(net) => {
                    nets.push(net);
                    Some(mark)
                }
                old => old,
            };
            let new = self.set_entry(net, restored);
            new.into_iter().filter(|own| !is_ghost(*own)).for_each(|own| self.own.release(own));
        }
        for (was_added, at, key) in log.deadlines.into_iter().rev() {
            let set = if key.tier() == Tier::Ban { &mut self.bans } else { &mut self.deadlines };
            if was_added {
                set.remove(&(at, key));
            } else {
                set.insert((at, key));
            }
        }
        if let Some(sizes) = log.sizes {
            self.sizes = sizes;
        }
        if let Some(known) = log.groups {
            self.groups.truncate(known);
        }
        if let Some(rules) = log.country_rules {
            self.countries.rules = rules;
        }
        if let Some(prefixes) = log.prefixes {
            self.countries.prefixes = prefixes;
        }
        if let Some(due) = due.filter(|_| !nets.is_empty()) {
            nets.sort_unstable();
            nets.dedup();
            self.ghosts.push_back(Ghosts { due, mark, nets });
            self.batch = (self.batch + 1) & !GHOST;
        }
    }

    /// Removes the ghosts that are due, and returns them in order.
    pub(in crate::firewall) fn exorcise(&mut self, now: u64) -> Vec<IpNet> {
        let mut gone = Vec::new();
        while let Some(ghosts) = self.ghosts.pop_front_if(|ghosts| ghosts.due <= now) {
            for net in ghosts.nets {
                // It may have got rules since, or been emptied once more.
                if self.entries.get(net) == Some(ghosts.mark) {
                    self.set_entry(net, None);
                    gone.push(net);
                }
            }
        }
        gone.sort_unstable();
        gone
    }
}

/// Puts a rule in the place of the one with the same key.
fn place(rules: &mut Vec<OwnRule>, own: OwnRule) {
    rules.retain(|rule| !rule.is_same(&own));
    rules.push(own);
    rules.sort_by_cached_key(OwnRule::order);
}
