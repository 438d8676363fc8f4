//! Firewall rules, and how they are changed.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use mc_proxy_proto::v1;
use prost_types::Timestamp;
use tonic::Status;

use super::{invalid, parse};
use crate::{
    control::{
        ChangeOptions, ChangeSummary, Considered, DropEvent, ExplainRequest, Explanation, GroupStatus, KernelAnswer,
        ListedRule, NewRule, RuleFilter,
    },
    firewall::{Action, Expiry, Group, Rule, RuleKey, RuleScope, Subject, check_comment},
};

/// Rules of one request.
pub(in crate::admin) const RULES_MAX: usize = 1000;
/// Longest time to live; what is meant to last longer has no end.
const TTL_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);
const CONFIRM_MIN: Duration = Duration::from_secs(1);
const CONFIRM_MAX: Duration = Duration::from_secs(24 * 3600);
const CALLERS_MAX: usize = 16;

/// The rules of a request that adds them, and the one of a request that adds one.
pub(in crate::admin) fn new_rules(
    given: Vec<v1::FirewallRule>,
    ttl: Option<prost_types::Duration>,
) -> Result<Vec<NewRule>, Status> {
    check_number(given.len())?;
    let end = self::ttl("ttl", ttl)?;
    let mut known = HashMap::with_capacity(given.len());
    let mut rules = Vec::with_capacity(given.len());
    for (index, rule) in given.into_iter().enumerate() {
        let rule = new_rule(&format!("rules[{index}]"), Some(rule), end)?;
        if let Some(first) = known.insert(rule.rule.key, index) {
            return Err(invalid(format_args!("rules[{index}]"), format_args!("is the same rule as rules[{first}]")));
        }
        rules.push(rule);
    }
    Ok(rules)
}

/// A rule that is added, with the `ttl` of the request.
pub(in crate::admin) fn one_new_rule(
    rule: Option<v1::FirewallRule>,
    ttl: Option<prost_types::Duration>,
) -> Result<NewRule, Status> {
    if ttl.is_some() && rule.as_ref().is_some_and(|rule| rule.expires_at.is_some()) {
        return Err(invalid("ttl", "is instead of rule.expires_at, not beside it"));
    }
    new_rule("rule", rule, self::ttl("ttl", ttl)?)
}

/// The rules of a request that removes them.
pub(in crate::admin) fn keys(given: Vec<v1::FirewallRule>) -> Result<Vec<RuleKey>, Status> {
    check_number(given.len())?;
    let mut keys = Vec::with_capacity(given.len());
    for (index, rule) in given.into_iter().enumerate() {
        let key = key(&format!("rules[{index}]"), Some(&rule))?;
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// What makes a rule one. An operator may remove a rule of an automatic group.
pub(in crate::admin) fn key(field: &str, given: Option<&v1::FirewallRule>) -> Result<RuleKey, Status> {
    let given = given.ok_or_else(|| invalid(field, "is required"))?;
    let subject = match v1::FirewallRuleType::try_from(given.r#type).unwrap_or_default() {
        v1::FirewallRuleType::Ip => Subject::ip(&given.value),
        v1::FirewallRuleType::Cidr => Subject::cidr(&given.value),
        v1::FirewallRuleType::Country => Subject::country(&given.value),
        v1::FirewallRuleType::Unspecified => {
            let expected = "is required: FIREWALL_RULE_TYPE_IP, FIREWALL_RULE_TYPE_CIDR or FIREWALL_RULE_TYPE_COUNTRY";
            return Err(invalid(format_args!("{field}.type"), expected));
        }
    };
    let subject = subject.map_err(|error| invalid(format_args!("{field}.value"), error))?;
    let action = action(format_args!("{field}.action"), given.action)?.unwrap_or(Action::Block);
    let group = group(format_args!("{field}.group"), &given.group)?.unwrap_or_default();
    let scope = scope(format_args!("{field}.scope"), &given.scope)?;
    RuleKey::new(group, action, subject, scope).map_err(|error| invalid(format_args!("{field}.action"), error))
}

/// The message with the canonical text of the rule.
pub(crate) fn rule_to_proto(rule: &Rule) -> v1::FirewallRule {
    let RuleKey { group, action, subject, scope } = rule.key;
    let kind = match (subject, subject.as_ip()) {
        (Subject::Country(_), _) => v1::FirewallRuleType::Country,
        (Subject::Net(_), Some(_)) => v1::FirewallRuleType::Ip,
        (Subject::Net(_), None) => v1::FirewallRuleType::Cidr,
    };
    v1::FirewallRule {
        r#type: kind.into(),
        value: subject.to_string(),
        action: action_to_proto(action).into(),
        group: group.to_string(),
        scope: scope.to_string(),
        expires_at: rule.expires_at.map(|expiry| SystemTime::from(expiry).into()),
        comment: String::new(),
        created_at: None,
    }
}

pub(crate) fn action_to_proto(action: Action) -> v1::FirewallAction {
    match action {
        Action::Block => v1::FirewallAction::Block,
        Action::Allow => v1::FirewallAction::Allow,
        Action::Count => v1::FirewallAction::Count,
    }
}

pub(in crate::admin) fn listed_to_proto(listed: ListedRule) -> v1::FirewallRule {
    v1::FirewallRule {
        comment: listed.comment.unwrap_or_default(),
        created_at: Some(listed.created_at.into()),
        ..rule_to_proto(&listed.rule)
    }
}

pub(in crate::admin) fn options(given: Option<v1::FirewallChangeOptions>) -> Result<ChangeOptions, Status> {
    let v1::FirewallChangeOptions { dry_run, force, confirm, callers } = given.unwrap_or_default();
    let confirm = match confirm {
        None => None,
        Some(confirm) => match Duration::try_from(confirm) {
            Ok(confirm) if (CONFIRM_MIN..=CONFIRM_MAX).contains(&confirm) => Some(confirm),
            Ok(_) | Err(_) => return Err(invalid("options.confirm", "is not a time from 1 s to 24 h")),
        },
    };
    if callers.len() > CALLERS_MAX {
        return Err(invalid("options.callers", format_args!("are more than {CALLERS_MAX}")));
    }
    let callers = callers.iter().enumerate().map(|(index, text)| {
        let caller: IpAddr = parse(format_args!("options.callers[{index}]"), text)?;
        Ok(caller.to_canonical())
    });
    Ok(ChangeOptions { dry_run, force, confirm, callers: callers.collect::<Result<_, Status>>()? })
}

pub(in crate::admin) fn summary_to_proto(summary: ChangeSummary, dry_run: bool) -> v1::FirewallChangeSummary {
    v1::FirewallChangeSummary {
        added: summary.added,
        replaced: summary.replaced,
        removed: summary.removed,
        unchanged: summary.unchanged,
        confirm_by: summary.confirm_by.map(Timestamp::from),
        confirm_id: summary.confirm_id.unwrap_or_default(),
        dry_run,
    }
}

pub(in crate::admin) fn filter(request: &v1::ListFirewallRulesRequest) -> Result<RuleFilter, Status> {
    let covers = match request.covers.as_str() {
        "" => None,
        text => Some(parse::<IpAddr>("covers", text)?.to_canonical()),
    };
    Ok(RuleFilter { group: group("group", &request.group)?, action: action("action", request.action)?, covers })
}

pub(in crate::admin) fn group_to_proto(status: GroupStatus) -> v1::FirewallGroup {
    v1::FirewallGroup {
        name: status.group.to_string(),
        rules: status.rules,
        dropped_packets: status.dropped_packets,
        dropped_bytes: status.dropped_bytes,
        shadow_packets: status.shadow_packets,
        shadow_bytes: status.shadow_bytes,
    }
}

pub(in crate::admin) fn explain_request(given: v1::ExplainFirewallRequest) -> Result<ExplainRequest, Status> {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    if given.source.is_empty() {
        return Err(invalid("source", "is required"));
    }
    Ok(ExplainRequest {
        source: parse::<IpAddr>("source", &given.source)?.to_canonical(),
        listener: some(given.listener_addr),
        server_name: some(given.server_name),
        alpn: super::alpn("alpn", given.alpn)?,
    })
}

pub(in crate::admin) fn explanation_to_proto(explanation: Explanation) -> v1::ExplainFirewallResponse {
    let considered = explanation.covering.into_iter().map(|Considered { rule, holds, why }| v1::ConsideredRule {
        tier: rule.rule.tier().as_str().to_owned(),
        rule: Some(listed_to_proto(rule)),
        holds,
        why,
    });
    v1::ExplainFirewallResponse {
        verdict: explanation.verdict.as_str().to_owned(),
        reason: explanation.reason,
        decisive: explanation.decisive.map(listed_to_proto),
        considered: considered.collect(),
        country: explanation.country.map(|code| code.to_string()).unwrap_or_default(),
        kernel: Some(match explanation.kernel {
            KernelAnswer::Ran { drop, reason } => {
                v1::KernelAnswer { ran: true, drop, reason, not_attached: String::new() }
            }
            KernelAnswer::NotAttached(why) => {
                v1::KernelAnswer { ran: false, drop: false, reason: String::new(), not_attached: why }
            }
        }),
        user: explanation.user,
        route: explanation.route.unwrap_or_default(),
    }
}

/// Which drops a watcher wants to see.
#[derive(Clone, Copy, Debug)]
pub(in crate::admin) struct DropFilter {
    group: Option<Group>,
    source: Option<IpNet>,
}

impl DropFilter {
    pub(in crate::admin) fn lets_through(&self, event: &DropEvent) -> bool {
        self.group.is_none_or(|group| group == event.group)
            && self.source.is_none_or(|source| source.contains(&event.source))
    }
}

pub(in crate::admin) fn drop_filter(request: &v1::WatchDropsRequest) -> Result<DropFilter, Status> {
    let source = match request.source.as_str() {
        "" => None,
        text => match text.parse::<Subject>() {
            Ok(Subject::Net(net)) => Some(net),
            Ok(Subject::Country(_)) => return Err(invalid("source", "is an address or a CIDR, not a country")),
            Err(error) => return Err(invalid("source", error)),
        },
    };
    Ok(DropFilter { group: group("group", &request.group)?, source })
}

pub(in crate::admin) fn drop_to_proto(event: DropEvent) -> v1::DropEvent {
    v1::DropEvent {
        at: Some(event.at.into()),
        interface: event.interface,
        reason: event.reason.to_owned(),
        group: event.group.to_string(),
        source: event.source.to_string(),
        port: event.port.into(),
        bytes: event.bytes,
        plane: event.plane.as_str().to_owned(),
        sampled: event.sampled,
    }
}

/// The group of rules that an operator adds or replaces.
pub(in crate::admin) fn own_group(field: impl fmt::Display, group: Group) -> Result<Group, Status> {
    if group.is_automatic() {
        return Err(invalid(field, format_args!("\"{group}\" is for the daemon's own bans; take another name")));
    }
    Ok(group)
}

/// `None` when it is empty.
pub(in crate::admin) fn group(field: impl fmt::Display, text: &str) -> Result<Option<Group>, Status> {
    if text.is_empty() { Ok(None) } else { parse(field, text).map(Some) }
}

pub(in crate::admin) fn scope(field: impl fmt::Display, text: &str) -> Result<RuleScope, Status> {
    if text.is_empty() { Ok(RuleScope::Default) } else { parse(field, text) }
}

/// `None` when it is unspecified.
pub(in crate::admin) fn action(field: impl fmt::Display, given: i32) -> Result<Option<Action>, Status> {
    match v1::FirewallAction::try_from(given) {
        Ok(v1::FirewallAction::Unspecified) => Ok(None),
        Ok(v1::FirewallAction::Block) => Ok(Some(Action::Block)),
        Ok(v1::FirewallAction::Allow) => Ok(Some(Action::Allow)),
        Ok(v1::FirewallAction::Count) => Ok(Some(Action::Count)),
        Err(_) => {
            Err(invalid(field, "is none of FIREWALL_ACTION_BLOCK, FIREWALL_ACTION_ALLOW and FIREWALL_ACTION_COUNT"))
        }
    }
}

/// The moment at which something of that time to live ends.
pub(in crate::admin) fn ttl(
    field: impl fmt::Display,
    given: Option<prost_types::Duration>,
) -> Result<Option<Expiry>, Status> {
    let Some(given) = given else { return Ok(None) };
    match Duration::try_from(given) {
        Ok(ttl) if !ttl.is_zero() && ttl <= TTL_MAX => Ok(Some(Expiry::after(SystemTime::now(), ttl))),
        Ok(_) | Err(_) => {
            Err(invalid(field, "is not a time above 0 and up to 10 years; without one a rule stays for good"))
        }
    }
}

pub(in crate::admin) fn expires_at(
    field: impl fmt::Display,
    given: Option<Timestamp>,
) -> Result<Option<Expiry>, Status> {
    let Some(given) = given else { return Ok(None) };
    let at =
        SystemTime::try_from(given).map_err(|_| invalid(&field, "is not a moment between the years 1 and 9999"))?;
    let expiry = Expiry::from(at);
    if expiry.is_past(SystemTime::now()) {
        return Err(invalid(field, "is in the past"));
    }
    Ok(Some(expiry))
}

fn new_rule(field: &str, given: Option<v1::FirewallRule>, end: Option<Expiry>) -> Result<NewRule, Status> {
    let key = key(field, given.as_ref())?;
    own_group(format_args!("{field}.group"), key.group)?;
    let v1::FirewallRule { expires_at, comment, .. } = given.unwrap_or_default();
    check_comment(&comment).map_err(|error| invalid(format_args!("{field}.comment"), error))?;
    let expires_at = self::expires_at(format_args!("{field}.expires_at"), expires_at)?.or(end);
    Ok(NewRule { rule: Rule { key, expires_at }, comment: Some(comment).filter(|comment| !comment.is_empty()) })
}

fn check_number(rules: usize) -> Result<(), Status> {
    match rules {
        0 => Err(invalid("rules", "is empty")),
        1..=RULES_MAX => Ok(()),
        _ => Err(invalid("rules", format_args!("has more than {RULES_MAX} rules; ReplaceFirewallGroup takes lists"))),
    }
}
