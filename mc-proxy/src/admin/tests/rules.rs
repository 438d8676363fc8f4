//! The firewall of the control thread that keeps everything in memory. It judges by address alone.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use crate::{
    control::{
        ChangeOptions, ChangeSummary, Considered, ControlError, Explanation, FirewallCommand, FirewallStatus,
        GeoIpStatus, GroupImport, GroupStatus, KernelAnswer, ListedRule, NewRule, Pending, RuleFilter, Verdict,
    },
    firewall::{Action, Rule, RuleKey, Subject},
};

/// The id of the change that waits.
pub(crate) const PENDING: u64 = 7;

type Book = BTreeMap<RuleKey, (Rule, Option<String>)>;

#[derive(Default)]
pub(super) struct Rules {
    book: Book,
    pending: Option<(Book, Duration)>,
    /// The options of every change, for the test to look at.
    pub(super) asked: Arc<Mutex<Vec<ChangeOptions>>>,
}

impl Rules {
    pub(super) fn one(&mut self, command: FirewallCommand) {
        // A caller that has gone does not wait for its answer.
        match command {
            FirewallCommand::PutRules(rules, options, reply) => {
                let _ = reply.send(self.change(options, |book, summary| put(book, rules, summary)));
            }
            FirewallCommand::RemoveRules(keys, options, reply) => {
                let _ = reply.send(self.change(options, |book, summary| {
                    for key in keys {
                        book.remove(&key)
                            .ok_or_else(|| ControlError::NotFound(format!("rule: there is no rule {key}")))?;
                        summary.removed += 1;
                    }
                    Ok(())
                }));
            }
            FirewallCommand::ReplaceGroup(import, options, reply) => {
                let _ = reply.send(self.change(options, |book, summary| replace(book, import, summary)));
            }
            FirewallCommand::List(filter, after, limit, reply) => {
                let _ = reply.send(Ok(self.list(&filter, after, limit)));
            }
            FirewallCommand::Groups(reply) => {
                let _ = reply.send(Ok(self.groups()));
            }
            FirewallCommand::Explain(request, reply) => {
                let filter = RuleFilter { covers: Some(request.source), ..RuleFilter::default() };
                let covering = self.list(&filter, None, usize::MAX);
                let decisive = covering.first().cloned();
                let explanation = Explanation {
                    verdict: if decisive.is_some() { Verdict::Drop } else { Verdict::Pass },
                    reason: "by the first rule".to_owned(),
                    decisive,
                    covering: covering
                        .into_iter()
                        .map(|rule| Considered { rule, holds: true, why: "in scope".into() })
                        .collect(),
                    country: "RU".parse().ok(),
                    kernel: match request.listener {
                        None => KernelAnswer::NotAttached("there is no interface".to_owned()),
                        Some(_) => KernelAnswer::Ran { drop: true, reason: "blocked_ip".to_owned() },
                    },
                    user: "refused".to_owned(),
                    route: request.server_name,
                };
                let _ = reply.send(Ok(explanation));
            }
            FirewallCommand::Confirm(id, reply) => {
                let _ = reply.send(self.take_pending(id).map(|_| ()));
            }
            FirewallCommand::Revert(id, reply) => {
                let _ = reply.send(self.take_pending(id).map(|before| self.book = before));
            }
        }
    }

    pub(super) fn status(&self) -> FirewallStatus {
        FirewallStatus {
            geoip: Some(GeoIpStatus { database_type: "DBIP-Country-Lite".to_owned(), built_at: SystemTime::now() }),
            groups: self.groups(),
            pending: self.pending.as_ref().map(|(_, confirm)| Pending { id: PENDING, confirm_by: by(*confirm) }),
            bans: 0,
            rules: self.book.len() as u64,
        }
    }

    fn change(
        &mut self,
        options: ChangeOptions,
        change: impl FnOnce(&mut Book, &mut ChangeSummary) -> Result<(), ControlError>,
    ) -> Result<ChangeSummary, ControlError> {
        let mut after = self.book.clone();
        let mut summary = ChangeSummary::default();
        change(&mut after, &mut summary)?;
        self.asked.lock().unwrap().push(options.clone());
        let lockout = after.values().any(|(rule, _)| {
            let is_caller =
                |subject| matches!(subject, Subject::Net(net) if options.callers.iter().any(|ip| net.contains(ip)));
            rule.key.action == Action::Block && is_caller(rule.key.subject)
        });
        if lockout && !options.force {
            return Err(ControlError::Refused("this would cut off your own address; --force does it".to_owned()));
        }
        if options.dry_run {
            return Ok(summary);
        }
        let before = std::mem::replace(&mut self.book, after);
        if let Some(confirm) = options.confirm {
            self.pending = Some((before, confirm));
            summary.confirm_by = Some(by(confirm));
            summary.confirm_id = Some(PENDING);
        }
        Ok(summary)
    }

    fn take_pending(&mut self, id: Option<u64>) -> Result<Book, ControlError> {
        let pending = self.pending.take_if(|_| id.is_none_or(|id| id == PENDING));
        pending.map(|(before, _)| before).ok_or_else(|| ControlError::NotFound("no such change waits".to_owned()))
    }

    fn list(&self, filter: &RuleFilter, after: Option<RuleKey>, limit: usize) -> Vec<ListedRule> {
        let covers = |subject| match (filter.covers, subject) {
            (None, _) => true,
            (Some(addr), Subject::Net(net)) => net.contains(&addr),
            (Some(_), Subject::Country(_)) => false,
        };
        let rules = self.book.values().filter(|(rule, _)| {
            after.is_none_or(|after| rule.key > after)
                && filter.group.is_none_or(|group| rule.key.group == group)
                && filter.action.is_none_or(|action| rule.key.action == action)
                && covers(rule.key.subject)
        });
        let listed = |(rule, comment): &(Rule, Option<String>)| ListedRule {
            rule: *rule,
            comment: comment.clone(),
            created_at: SystemTime::UNIX_EPOCH,
        };
        rules.take(limit).map(listed).collect()
    }

    fn groups(&self) -> Vec<GroupStatus> {
        let mut groups = BTreeMap::new();
        for key in self.book.keys() {
            *groups.entry(key.group).or_insert(0) += 1;
        }
        let status = |(group, rules)| GroupStatus {
            group,
            rules,
            dropped_packets: 5,
            dropped_bytes: 300,
            shadow_packets: 1,
            shadow_bytes: 60,
        };
        groups.into_iter().map(status).collect()
    }
}

fn by(confirm: Duration) -> SystemTime {
    SystemTime::UNIX_EPOCH + confirm
}

fn put(book: &mut Book, rules: Vec<NewRule>, summary: &mut ChangeSummary) -> Result<(), ControlError> {
    for NewRule { rule, comment } in rules {
        let new = (rule, comment);
        match book.insert(rule.key, new.clone()) {
            None => summary.added += 1,
            Some(old) if old == new => summary.unchanged += 1,
            Some(_) => summary.replaced += 1,
        }
    }
    Ok(())
}

fn replace(book: &mut Book, import: GroupImport, summary: &mut ChangeSummary) -> Result<(), ControlError> {
    let GroupImport { group, action, scope, expires_at, entries, comments } = import;
    let comments = comments.into_iter().collect::<BTreeMap<_, _>>();
    let new = entries.into_iter().zip(0_u32..).map(|(net, index)| {
        let key = RuleKey { group, action, subject: Subject::Net(net), scope };
        (key, (Rule { key, expires_at }, comments.get(&index).cloned()))
    });
    let new = new.collect::<Book>();
    let before = book.len();
    book.retain(|key, _| key.group != group || new.contains_key(key));
    summary.removed = (before - book.len()) as u64;
    put(book, new.into_values().map(|(rule, comment)| NewRule { rule, comment }).collect(), summary)
}
