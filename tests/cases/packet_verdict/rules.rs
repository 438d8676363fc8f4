//! Random rules, and what a list of them says when they are judged one by one.

use std::net::IpAddr;

use ipnet::IpNet;
use mc_proxy::firewall::{Action, Expiry, Group, Rule, RuleKey, RuleScope, Subject, Tier};
use mc_proxy_common::{frames::Dice, maps::Scope, reason::Reason};

use crate::{PORTS, random_v4, random_v6};

const HOUR: u64 = 3_600_000;

/// At most five, on addresses and prefixes that meet; no two with the same key, so that all of them are there.
pub(crate) fn random(dice: &mut Dice) -> Vec<Rule> {
    let mut rules = Vec::<Rule>::new();
    for _ in 0..dice.below(6) {
        let group: Group = ["default", "office", "auto/rate"][dice.below(3) as usize].parse().unwrap();
        let is_automatic = group.as_str().starts_with("auto/");
        let action = match dice.below(6) {
            0 if !is_automatic => Action::Allow,
            1 if !is_automatic => Action::Count,
            _ => Action::Block,
        };
        let scope = match dice.below(4) {
            0 => RuleScope::Host,
            1 => RuleScope::Listener(PORTS[dice.below(2) as usize]),
            _ => RuleScope::Default,
        };
        let address: IpAddr = if dice.below(2) == 0 { random_v4(dice).into() } else { random_v6(dice).into() };
        let address = address.to_canonical();
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let length = longest - [0, 0, 1, 3, 8, 16][dice.below(6) as usize];
        let subject = Subject::Net(IpNet::new(address, length).unwrap().trunc());
        let wall = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
        let expires_at = match dice.below(4) {
            // Puts are dated back by more than that.
            0 => Some(Expiry::from_millis(wall - 10_000)),
            1 => Some(Expiry::from_millis(wall + HOUR)),
            _ if is_automatic => Some(Expiry::from_millis(wall + HOUR)),
            _ => None,
        };
        let key = RuleKey { group, action, subject, scope };
        if rules.iter().all(|rule| rule.key != key) {
            rules.push(Rule { key, expires_at });
        }
    }
    rules
}

/// Why a TCP packet is dropped; `None` when it passes.
pub(crate) fn judge(rules: &[Rule], source: IpAddr, port: u16, scope: Scope, wall: u64) -> Option<Reason> {
    let holds = |rule: &&Rule| {
        let Subject::Net(net) = rule.key.subject else { return false };
        let is_in_scope = match rule.key.scope {
            RuleScope::Default => scope == Scope::Host || PORTS.contains(&port),
            RuleScope::Host => true,
            RuleScope::Listener(only) => only == port,
        };
        net.contains(&source)
            && is_in_scope
            && rule.key.action != Action::Count
            && rule.expires_at.is_none_or(|at| at.as_millis() > wall)
    };
    let length = |rule: &Rule| match rule.key.subject {
        Subject::Net(net) => net.prefix_len(),
        Subject::Country(_) => 0,
    };
    let best = rules.iter().filter(holds).min_by_key(|rule| (rule.tier(), std::cmp::Reverse(length(rule))))?;
    match best.tier() {
        Tier::Allow => None,
        Tier::Block if length(best) == if source.is_ipv4() { 32 } else { 128 } => Some(Reason::BlockedAddress),
        Tier::Block => Some(Reason::BlockedPrefix),
        Tier::Ban => Some(Reason::Banned),
        Tier::Country => Some(Reason::BlockedCountry),
    }
}
