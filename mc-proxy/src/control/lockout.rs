//! Whom a change of the rules would cut off.

use std::{collections::BTreeMap, net::IpAddr, time::SystemTime};

use crate::firewall::{Action, Covering, Rule, RuleChange, RuleKey, Subject};

/// Who must not be cut off without being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protected {
    /// Whoever asks for the change.
    Caller,
    /// Where a route leads.
    Backend,
}

/// The first of the protected addresses that the changes would have refused and that is not refused now, with what it
/// is. `covering` tells the rules about an address, `country` whether a country's rule is about it.
pub(super) fn cut_off(
    protected: &BTreeMap<IpAddr, Protected>,
    changes: &[RuleChange],
    now: SystemTime,
    covering: impl Fn(IpAddr) -> Vec<Covering>,
    is_about: impl Fn(&RuleKey, IpAddr) -> bool,
) -> Option<(IpAddr, Protected)> {
    protected.iter().find_map(|(address, who)| {
        let mut rules: BTreeMap<RuleKey, Rule> =
            covering(*address).into_iter().map(|covering| (covering.rule.key, covering.rule)).collect();
        let before = is_refused(rules.values(), now);
        for change in changes {
            match change {
                RuleChange::Put(rule) if is_about(&rule.key, *address) => {
                    rules.insert(rule.key, *rule);
                }
                RuleChange::Remove(key) if is_about(key, *address) => {
                    rules.remove(key);
                }
                RuleChange::Put(_) | RuleChange::Remove(_) => {}
            }
        }
        (!before && is_refused(rules.values(), now)).then_some((*address, *who))
    })
}

/// Whether a rule with the subject is about an address; a country's, when `country` is the address's.
pub(super) fn is_about(
    key: &RuleKey,
    address: IpAddr,
    country: impl FnOnce() -> Option<crate::firewall::CountryCode>,
) -> bool {
    match key.subject {
        Subject::Net(net) => net.contains(&address),
        Subject::Country(code) => country() == Some(code),
    }
}

fn is_refused<'a>(rules: impl Iterator<Item = &'a Rule> + Clone, now: SystemTime) -> bool {
    let holds = |rule: &&Rule| rule.expires_at.is_none_or(|expiry| !expiry.is_past(now));
    let mut holding = rules.filter(holds);
    let mut is_blocked = false;
    holding.all(|rule| {
        is_blocked |= rule.key.action == Action::Block;
        rule.key.action != Action::Allow
    }) && is_blocked
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::firewall::Expiry;

    fn rule(action: Action, subject: &str) -> Rule {
        Rule::permanent(action, subject.parse().unwrap()).unwrap()
    }

    fn ask(there: &[Rule], changes: &[RuleChange]) -> Option<IpAddr> {
        let caller: IpAddr = "192.0.2.7".parse().unwrap();
        let protected = BTreeMap::from([(caller, Protected::Caller)]);
        let covering = |address: IpAddr| {
            let about = there.iter().filter(|rule| is_about(&rule.key, address, || None));
            about.map(|rule| Covering { rule: *rule, net: "192.0.2.0/24".parse().unwrap() }).collect()
        };
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        cut_off(&protected, changes, now, covering, |key, address| is_about(key, address, || "RU".parse().ok()))
            .map(|(address, _)| address)
    }

    #[test]
    fn a_caller_is_cut_off_by_what_blocks_him_and_by_what_no_longer_allows_him() {
        let caller = Some("192.0.2.7".parse().unwrap());
        let block = rule(Action::Block, "192.0.2.0/24");
        let allow = rule(Action::Allow, "192.0.2.7");
        let put = RuleChange::Put;
        assert_eq!(ask(&[], &[put(block)]), caller);
        assert_eq!(ask(&[], &[put(rule(Action::Block, "198.51.100.0/24"))]), None);
        assert_eq!(ask(&[], &[put(rule(Action::Count, "192.0.2.0/24"))]), None);
        assert_eq!(ask(&[], &[put(rule(Action::Block, "RU"))]), caller);
        assert_eq!(ask(&[], &[put(rule(Action::Block, "DE"))]), None);
        assert_eq!(ask(&[allow], &[put(block)]), None);
        assert_eq!(ask(&[], &[put(block), put(allow)]), None);
        assert_eq!(ask(&[allow, block], &[RuleChange::Remove(allow.key)]), caller);
        // Already cut off: nothing gets worse.
        assert_eq!(ask(&[block], &[put(rule(Action::Block, "192.0.2.7"))]), None);
        let past = Rule { expires_at: Some(Expiry::from_millis(5)), ..block };
        assert_eq!(ask(&[], &[put(past)]), None);
    }
}
