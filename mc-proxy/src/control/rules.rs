//! The firewall's half of the thread: how rules change.
//!
//! A change is written to the database, put in force, and only then made final there: when one of these fails, none has
//! happened. Should the last step fail (a full disk), the tables are made anew from what the database has.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::IpAddr,
    time::SystemTime,
};

use ipnet::IpNet;

use super::{
    ChangeOptions, ChangeSummary, ControlError, FirewallCommand, GroupImport, GroupStatus, ListedRule, NewRule,
    RuleFilter,
    bans::{backend_addresses, trusted_proxies},
    lockout::{self, Protected},
    thread::{Thread, answer, failed, until},
};
use crate::{
    clock,
    firewall::{Engine, EngineError, Expiry, Group, Moment, Rule, RuleChange, RuleKey, RuleScope, Subject, Tier},
    store::{self, PageFilter, Pending, StoreError, StoredRule},
    telemetry::describe,
};

impl Thread {
    pub(super) fn firewall(&mut self, command: FirewallCommand) {
        // Whatever is asked, bans are rules like others.
        self.store_bans();
        match command {
            FirewallCommand::PutRules(rules, options, reply) => answer(reply, self.put_rules(rules, &options)),
            FirewallCommand::RemoveRules(rules, options, reply) => answer(reply, self.remove_rules(&rules, &options)),
            FirewallCommand::ReplaceGroup(import, options, reply) => {
                answer(reply, self.replace_group(import, &options));
            }
            FirewallCommand::List(filter, after, limit, reply) => answer(reply, self.list(&filter, after, limit)),
            FirewallCommand::Groups(reply) => answer(reply, Ok(self.groups())),
            FirewallCommand::Explain(request, reply) => answer(reply, self.explain(&request)),
            FirewallCommand::Confirm(id, reply) => answer(reply, self.confirm(id)),
            FirewallCommand::Revert(id, reply) => answer(reply, self.revert(id)),
        }
    }

    pub(super) fn put_rules(
        &mut self,
        rules: Vec<NewRule>,
        options: &ChangeOptions,
    ) -> Result<ChangeSummary, ControlError> {
        for NewRule { rule, .. } in &rules {
            self.check(&rule.key)?;
            check_expiry(rule.expires_at, &rule.key.subject)?;
        }
        // Of rules with the same key the last counts.
        let rules: BTreeMap<RuleKey, NewRule> = rules.into_iter().map(|new| (new.rule.key, new)).collect();
        let keys: Vec<RuleKey> = rules.keys().copied().collect();
        let there = self.owned.store.stored(&keys).map_err(failed)?;
        let mut plan = Plan::default();
        for (new, there) in rules.into_values().zip(there) {
            match there {
                Some(there) if there.rule == new.rule && there.comment == new.comment => plan.summary.unchanged += 1,
                Some(there) => {
                    plan.summary.replaced += 1;
                    plan.put(new.rule, new.comment);
                    plan.before.insert(there.rule.key, there);
                }
                None => {
                    plan.summary.added += 1;
                    plan.put(new.rule, new.comment);
                }
            }
        }
        self.carry_out(plan, options)
    }

    pub(super) fn remove_rules(
        &mut self,
        keys: &[RuleKey],
        options: &ChangeOptions,
    ) -> Result<ChangeSummary, ControlError> {
        let mut plan = Plan::default();
        for (key, there) in keys.iter().zip(self.owned.store.stored(keys).map_err(failed)?) {
            let there = there.ok_or_else(|| ControlError::NotFound(self.no_rule(key)))?;
            if plan.before.insert(*key, there).is_none() {
                plan.summary.removed += 1;
                plan.changes.push(RuleChange::Remove(*key));
            }
        }
        self.carry_out(plan, options)
    }

    fn replace_group(&mut self, import: GroupImport, options: &ChangeOptions) -> Result<ChangeSummary, ControlError> {
        let GroupImport { group, action, scope, expires_at, entries, comments } = import;
        let key = |net: IpNet| RuleKey { group, action, subject: Subject::Net(net), scope };
        if let Some(net) = entries.first() {
            self.check(&key(*net))?;
            check_expiry(expires_at, &group)?;
        }
        let comments: HashMap<RuleKey, String> = comments
            .into_iter()
            .filter_map(|(index, comment)| Some((key(*entries.get(index as usize)?), comment)))
            .collect();
        let old_comments = self.owned.store.commented(group).map_err(failed)?;
        let wanted = self.owned.engine.book().replacement(group, action, scope, expires_at, entries);
        let mut plan = Plan::default();
        plan.summary.unchanged = wanted.unchanged;
        let book = self.owned.engine.book();
        for change in &wanted.changes {
            match change {
                RuleChange::Put(rule) if book.get(&rule.key).is_some() => plan.summary.replaced += 1,
                RuleChange::Put(_) => plan.summary.added += 1,
                RuleChange::Remove(_) => plan.summary.removed += 1,
            }
        }
        plan.changes = wanted.changes;
        plan.recomment(book, &old_comments, &comments);
        plan.comments = comments;
        if options.confirm.is_some() && !options.dry_run {
            let keys: Vec<RuleKey> = plan.changes.iter().map(change_key).collect();
            for stored in self.owned.store.stored(&keys).map_err(failed)?.into_iter().flatten() {
                plan.before.insert(stored.rule.key, stored);
            }
        }
        self.carry_out(plan, options)
    }

    /// Makes the change, unless it is only asked for what it would be.
    fn carry_out(&mut self, plan: Plan, options: &ChangeOptions) -> Result<ChangeSummary, ControlError> {
        let Plan { changes, comments, before, mut summary } = plan;
        if !options.force {
            self.refuse_lockout(&changes, &options.callers)?;
        }
        if options.dry_run || changes.is_empty() {
            return Ok(summary);
        }
        let pending = options.confirm.map(|patience| {
            let pending = Pending { id: self.next_change_id(), deadline: SystemTime::now() + patience };
            (summary.confirm_id, summary.confirm_by) = (Some(pending.id), Some(pending.deadline));
            let undo = |change: &RuleChange| {
                let key = change_key(change);
                match before.get(&key) {
                    Some(old) => store::Change::Put(old.rule, old.comment.clone()),
                    None => store::Change::Remove(key),
                }
            };
            (pending, changes.iter().rev().map(undo).collect())
        });
        let waiting = pending.as_ref().map(|(pending, _)| *pending);
        self.write_through(&changes, &comments, pending)?;
        if let Some(pending) = waiting {
            (self.pending, self.pending_until) = (waiting, until(pending.deadline));
        }
        Ok(summary)
    }

    /// Database, memory and kernel, or none of them.
    fn write_through(
        &mut self,
        changes: &[RuleChange],
        comments: &HashMap<RuleKey, String>,
        pending: Option<(Pending, Vec<store::Change>)>,
    ) -> Result<(), ControlError> {
        // What the database has not taken yet comes first: the change is later, and has the last word.
        let rows = self.unstored.clone().into_iter().chain(changes.iter().map(|change| match change {
            RuleChange::Put(rule) => store::Change::Put(*rule, comments.get(&rule.key).cloned()),
            RuleChange::Remove(key) => store::Change::Remove(*key),
        }));
        let needs_countries = changes.iter().any(|change| matches!(change_key(change).subject, Subject::Country(_)));
        let Self { owned, .. } = self;
        let (engine, plane, geoip) = (&mut owned.engine, &mut *owned.plane, owned.geoip.as_ref());
        let mut is_in_force = false;
        let mut evicted = Vec::new();
        let outcome = owned.store.apply_then(rows, pending, || {
            let now = moment();
            evicted = engine.apply(changes, now, plane)?.evicted;
            is_in_force = true;
            if needs_countries && let Some(geoip) = geoip {
                let prefixes = geoip.prefixes(engine.book());
                engine.set_countries(prefixes, now, plane)?;
            }
            Ok::<_, EngineError>(())
        });
        let result = match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(not_in_force(&error)),
            Err(error) => Err(refused_or_failed(error)),
        };
        if result.is_ok() {
            self.unstored.clear();
            self.unstored.extend(evicted.into_iter().map(store::Change::Remove));
            self.forget_bans(changes);
        } else if is_in_force {
            self.rebuild("a change that could not be made final");
        }
        self.publish_tables();
        result
    }

    /// An offender whose ban an operator has lifted begins anew.
    fn forget_bans(&mut self, changes: &[RuleChange]) {
        for change in changes {
            if let RuleChange::Remove(key) = change
                && key.tier() == Tier::Ban
                && let Subject::Net(net) = key.subject
            {
                self.owned.bans.forget(net);
            }
        }
    }

    /// Makes the tables say what the database says, from nothing.
    pub(super) fn rebuild(&mut self, why: &str) {
        tracing::warn!(why, "the tables are made anew from the database");
        self.store_bans();
        let mut rules = Vec::new();
        if let Err(error) = self.owned.store.for_each_rule(&mut |rule| rules.push(rule)) {
            tracing::error!(error = describe(&error), "the rules cannot be read; the tables stay as they are");
            self.needs_rebuild = true;
            return;
        }
        // What the database has not taken yet holds all the same.
        let mut unstored: HashMap<RuleKey, Option<Rule>> = HashMap::new();
        for change in &self.unstored {
            match change {
                store::Change::Put(rule, _) => unstored.insert(rule.key, Some(*rule)),
                store::Change::Remove(key) => unstored.insert(*key, None),
            };
        }
        rules.retain(|rule: &Rule| !unstored.contains_key(&rule.key));
        rules.extend(unstored.into_values().flatten());
        let config = self.owned.engine_config();
        let geoip = self.owned.geoip.as_ref();
        let prefixes = geoip.map(|geoip| geoip.prefixes_for(&rules)).unwrap_or_default();
        match Engine::new(rules, prefixes, config, &mut *self.owned.plane, moment()) {
            Ok(engine) => {
                self.owned.engine = engine;
                self.needs_rebuild = false;
            }
            Err(error) => {
                tracing::error!(error = describe(&error), "the tables stay as they are; trying again");
                self.needs_rebuild = true;
            }
        }
    }

    fn refuse_lockout(&self, changes: &[RuleChange], callers: &[IpAddr]) -> Result<(), ControlError> {
        let backends = backend_addresses(&self.owned.listeners, &self.owned.edge.resolver);
        let mut protected: BTreeMap<IpAddr, Protected> =
            backends.into_iter().map(|address| (address, Protected::Backend)).collect();
        protected.extend(callers.iter().map(|address| (address.to_canonical(), Protected::Caller)));
        let proxies: Vec<IpNet> = trusted_proxies(&self.owned.listeners).copied().collect();
        let engine = &self.owned.engine;
        let country = |address: IpAddr| self.owned.geoip.as_ref().and_then(|geoip| geoip.country(address));
        let cut_off = |changes: &[RuleChange]| {
            lockout::cut_off(
                &protected,
                &proxies,
                changes,
                self.owned.is_host_scope,
                SystemTime::now(),
                |address| engine.covering(address),
                country,
            )
        };
        let mut found = cut_off(changes);
        if found.is_none() && self.pending.is_some() {
            // What only the change that waits makes harmless does its harm when that is taken back.
            let inverse = self.inverse()?;
            let both: Vec<RuleChange> = changes.iter().chain(&inverse).copied().collect();
            found = cut_off(&both).filter(|found| cut_off(&inverse) != Some(*found));
        }
        match found {
            None => Ok(()),
            Some((address, Protected::Caller)) => Err(ControlError::Refused(format!(
                "rule: this would cut off {address}, where you come from; use --force if that is meant"
            ))),
            Some((address, Protected::Backend)) => Err(ControlError::Refused(format!(
                "rule: this would cut off the backend {address}; use --force if that is meant"
            ))),
            Some((address, Protected::Proxy)) => Err(ControlError::Refused(format!(
                "rule: this would cut off {address}, which is in proxy_trusted, and whoever comes through it; use --force if \
                 that is meant"
            ))),
        }
    }

    /// Whether a rule can be put in force here.
    fn check(&self, key: &RuleKey) -> Result<(), ControlError> {
        if matches!(key.subject, Subject::Country(_)) && self.owned.geoip.is_none() {
            return Err(ControlError::Refused(
                "firewall: geoip_db is required to block a country; set firewall.geoip_db and restart the daemon"
                    .into(),
            ));
        }
        if let RuleScope::Listener(port) = key.scope
            && !self.owned.listeners.iter().any(|listener| listener.addr.socket().port() == port)
        {
            return Err(ControlError::NotFound(format!("scope: there is no listener with port {port}")));
        }
        Ok(())
    }

    fn no_rule(&self, key: &RuleKey) -> String {
        let (word, subject) = (key.action.as_str(), key.subject);
        let others = self.owned.engine.book().about(subject);
        let missing = format!("rule: there is no {word} rule for {subject} in group \"{}\"", key.group);
        let hint = |rule: &Rule| {
            let RuleKey { group, action, scope, .. } = rule.key;
            if action != key.action {
                format!("an {} rule in group \"{group}\"", action.as_str())
                    .replace("an block", "a block")
                    .replace("an count", "a count")
            } else if group != key.group {
                format!("one in group \"{group}\"")
            } else {
                format!("one with scope {scope}")
            }
        };
        match others.first() {
            Some(other) => format!("{missing}, but {}", hint(other)),
            None => missing,
        }
    }

    fn list(&self, filter: &RuleFilter, after: Option<RuleKey>, limit: usize) -> Result<Vec<ListedRule>, ControlError> {
        let Some(address) = filter.covers else {
            let page = PageFilter { group: filter.group, action: filter.action };
            let rules = self.owned.store.page(after.as_ref(), &page, limit).map_err(failed)?;
            return Ok(rules.into_iter().map(listed).collect());
        };
        let wanted = |key: &RuleKey| {
            filter.group.is_none_or(|group| group == key.group)
                && filter.action.is_none_or(|action| action == key.action)
                && after.is_none_or(|after| *key > after)
        };
        let covering = self.owned.engine.covering(address);
        let mut keys: Vec<RuleKey> = covering.iter().map(|covering| covering.rule.key).filter(wanted).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.truncate(limit);
        Ok(self.listed(&keys)?.into_values().collect())
    }

    /// Rules with what the database knows of them.
    pub(super) fn listed(&self, keys: &[RuleKey]) -> Result<BTreeMap<RuleKey, ListedRule>, ControlError> {
        let stored = self.owned.store.stored(keys).map_err(failed)?;
        Ok(stored.into_iter().flatten().map(|stored| (stored.rule.key, listed(stored))).collect())
    }

    pub(super) fn groups(&self) -> Vec<GroupStatus> {
        let plane = self.owned.plane.status();
        let sizes = self.owned.engine.book().group_sizes();
        let mut groups: Vec<GroupStatus> = self
            .owned
            .engine
            .book()
            .groups()
            .iter()
            .map(|(group, id)| {
                let kernel = plane.groups.iter().find(|count| count.group == u32::from(id));
                let user = self.owned.edge.firewall.groups.count(id.into());
                GroupStatus {
                    group,
                    rules: sizes.get(&group).map_or(0, |size| size.total()),
                    dropped_packets: kernel.map_or(0, |count| count.packets) + user.dropped,
                    dropped_bytes: kernel.map_or(0, |count| count.bytes),
                    shadow_packets: kernel.map_or(0, |count| count.would_packets) + user.would_drop,
                    shadow_bytes: kernel.map_or(0, |count| count.would_bytes),
                }
            })
            .filter(|group| group.rules > 0 || group.dropped_packets > 0 || group.shadow_packets > 0)
            .collect();
        groups.sort_unstable_by_key(|status| status.group);
        groups
    }

    /// Rules that the daemon has made itself.
    pub(super) fn bans_count(&self) -> u64 {
        self.owned.engine.book().group_sizes().values().map(|size| size.of(Tier::Ban)).sum()
    }

    fn confirm(&mut self, id: Option<u64>) -> Result<(), ControlError> {
        self.waiting(id)?;
        self.owned.store.clear_pending().map_err(failed)?;
        self.pending = None;
        Ok(())
    }

    fn revert(&mut self, id: Option<u64>) -> Result<(), ControlError> {
        self.waiting(id)?;
        self.take_back()
    }

    /// The change that waits, which is to be `id`.
    fn waiting(&self, id: Option<u64>) -> Result<Pending, ControlError> {
        let pending = self.owned.store.pending().map_err(failed)?;
        let pending = pending.ok_or_else(|| ControlError::NotFound("no change waits to be confirmed".into()))?;
        match id {
            Some(id) if id != pending.id => {
                Err(ControlError::NotFound(format!("change {id} does not wait; change {} does", pending.id)))
            }
            _ => Ok(pending),
        }
    }

    /// What undoes the change that waits.
    fn inverse(&self) -> Result<Vec<RuleChange>, ControlError> {
        let mut changes = Vec::new();
        let collected = self.owned.store.for_each_pending_change(&mut |change| {
            changes.push(match change {
                store::Change::Put(rule, _) => RuleChange::Put(rule),
                store::Change::Remove(key) => RuleChange::Remove(key),
            });
        });
        collected.map_err(failed)?;
        Ok(changes)
    }

    /// Undoes the change that waits: it is removed from the database and from the tables together.
    pub(super) fn take_back(&mut self) -> Result<(), ControlError> {
        let changes = self.inverse()?;
        self.owned.store.revert_pending().map_err(failed)?;
        self.pending = None;
        let now = moment();
        match self.owned.engine.apply(&changes, now, &mut *self.owned.plane) {
            Ok(applied) => {
                self.unstored.extend(applied.evicted.into_iter().map(store::Change::Remove));
                if changes.iter().any(|change| matches!(change_key(change).subject, Subject::Country(_))) {
                    self.refresh_countries();
                }
            }
            Err(error) => {
                tracing::error!(error = describe(&error), "a change was taken back in the database only");
                self.rebuild("a change that could not be taken back");
            }
        }
        self.publish_tables();
        if self.needs_rebuild {
            let why = "the change is taken back in the database, and the tables could not be made anew; trying again";
            return Err(ControlError::Failed(why.to_owned()));
        }
        Ok(())
    }

    /// Connections see the tables in force and the names of the groups.
    pub(super) fn publish_tables(&mut self) {
        let firewall = &self.owned.edge.firewall;
        let memory = self.owned.engine.memory();
        if !std::sync::Arc::ptr_eq(&memory, &firewall.tables.load()) {
            firewall.tables.store(memory);
        }
        let groups = self.owned.engine.book().groups();
        let known = firewall.groups.len();
        if groups.len() != known {
            let names: Vec<Group> = groups.iter().map(|(group, _)| group).collect();
            for (group, id) in groups.iter().filter(|(_, id)| usize::from(*id) >= known) {
                firewall.groups.reset(id.into());
                if let Err(error) = self.owned.plane.clear_group(id.into()) {
                    tracing::warn!(%group, error = describe(&error), "the group's kernel counters do not begin at zero");
                }
            }
            firewall.groups.set_names(names);
        }
    }

    fn next_change_id(&mut self) -> u64 {
        // Unique while it waits is enough; never 0, and not the one that an operator has just noted.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1) % 1_000_000_000 + 1
    }
}

/// What is to be done.
#[derive(Default)]
struct Plan {
    changes: Vec<RuleChange>,
    comments: HashMap<RuleKey, String>,
    /// Rules that are there and will not be, or not like this.
    before: HashMap<RuleKey, StoredRule>,
    summary: ChangeSummary,
}

impl Plan {
    fn put(&mut self, rule: Rule, comment: Option<String>) {
        self.changes.push(RuleChange::Put(rule));
        if let Some(comment) = comment {
            self.comments.insert(rule.key, comment);
        }
    }

    /// Puts rules again that stay, with another comment or none.
    fn recomment(
        &mut self,
        book: &crate::firewall::RuleBook,
        old: &HashMap<RuleKey, String>,
        new: &HashMap<RuleKey, String>,
    ) {
        let differs = |key: &&RuleKey| old.get(*key) != new.get(*key);
        let changed: std::collections::BTreeSet<RuleKey> =
            old.keys().filter(differs).chain(new.keys().filter(differs)).copied().collect();
        if changed.is_empty() {
            return;
        }
        let touched: std::collections::HashSet<RuleKey> = self.changes.iter().map(change_key).collect();
        for key in changed.iter().filter(|key| !touched.contains(key)) {
            if let Some(rule) = book.get(key) {
                self.changes.push(RuleChange::Put(rule));
                self.summary.unchanged = self.summary.unchanged.saturating_sub(1);
                self.summary.replaced += 1;
            }
        }
    }
}

fn check_expiry(expires_at: Option<Expiry>, whose: &dyn fmt::Display) -> Result<(), ControlError> {
    if expires_at.is_some_and(|expiry| expiry.is_past(SystemTime::now())) {
        return Err(ControlError::Refused(format!("rule: {whose} would have expired already")));
    }
    Ok(())
}

pub(super) fn change_key(change: &RuleChange) -> RuleKey {
    match change {
        RuleChange::Put(rule) => rule.key,
        RuleChange::Remove(key) => *key,
    }
}

/// Now, by both clocks.
pub fn moment() -> Moment {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Moment { boot: clock::since_boot(), wall: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
}

pub(super) fn listed(stored: StoredRule) -> ListedRule {
    ListedRule { rule: stored.rule, comment: stored.comment, created_at: stored.created_at }
}

fn refused_or_failed(error: StoreError) -> ControlError {
    if matches!(error, StoreError::Unconfirmed { .. }) {
        return ControlError::Refused(describe(&error));
    }
    failed(error)
}

/// More than there may be is the caller's to change; the rest is not his fault.
fn not_in_force(error: &EngineError) -> ControlError {
    match error {
        EngineError::Book(_) | EngineError::TooManyRules { .. } | EngineError::TooLarge => {
            ControlError::Refused(format!("rule: {}", describe(error)))
        }
        EngineError::Prepare(_) | EngineError::Commit(_) | EngineError::Settle(_) => {
            ControlError::Failed(describe(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdp::PlaneError;

    #[test]
    fn what_the_caller_can_change_is_refused_and_the_rest_has_failed() {
        let net = "192.0.2.1/32".parse().unwrap();
        let refused = not_in_force(&EngineError::TooManyRules { net, rules: Vec::new() });
        assert!(
            matches!(&refused, ControlError::Refused(text) if text.starts_with("rule: more than 8 rules")),
            "{refused}"
        );
        assert!(matches!(not_in_force(&EngineError::TooLarge), ControlError::Refused(_)));
        let failed = not_in_force(&EngineError::Commit(PlaneError::new("no memory")));
        assert!(matches!(&failed, ControlError::Failed(text) if text.ends_with("no memory")), "{failed}");
    }
}
