//! Whom a change of the rules would cut off.

use std::{collections::BTreeMap, net::IpAddr, time::SystemTime};

use super::rules::change_key;
use crate::firewall::{Action, Covering, Rule, RuleChange, RuleKey, RuleScope, Subject};

/// Who must not be cut off without being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protected {
    /// Whoever asks for the change.
    Caller,
    /// Where a route leads.
    Backend,
}

/// The first of the protected addresses of which the changes would have packets refused that are not refused now, with
/// what it is. `is_host_scope` tells what the default scope is, `covering` the rules about an address, and `is_about`
/// whether another would be one of these.
pub(super) fn cut_off(
    protected: &BTreeMap<IpAddr, Protected>,
    changes: &[RuleChange],
    is_host_scope: bool,
    now: SystemTime,
    covering: impl Fn(IpAddr) -> Vec<Covering>,
    is_about: impl Fn(&RuleKey, IpAddr) -> bool,
) -> Option<(IpAddr, Protected)> {
    // A list has millions of entries, and a proxy may have thousands of backends.
    let is_near = |change: &&RuleChange| match change_key(change).subject {
        Subject::Net(net) => protected.range(net.network()..=net.broadcast()).next().is_some(),
        Subject::Country(_) => true,
    };
    let changes: Vec<&RuleChange> = changes.iter().filter(is_near).collect();
    protected.iter().find_map(|(address, who)| {
        let mut rules: BTreeMap<RuleKey, Rule> =
            covering(*address).into_iter().map(|covering| (covering.rule.key, covering.rule)).collect();
        let before = refused(&rules, now, is_host_scope);
        for change in &changes {
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
        let is_new = |scope: &RuleScope| !before.iter().any(|known| is_within(*scope, *known, is_host_scope));
        refused(&rules, now, is_host_scope).iter().any(is_new).then_some((*address, *who))
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

/// The scopes of blocks that no allow outweighs.
fn refused(rules: &BTreeMap<RuleKey, Rule>, now: SystemTime, is_host_scope: bool) -> Vec<RuleScope> {
    let scopes = |action: Action| -> Vec<RuleScope> {
        let holds =
            |rule: &&Rule| rule.key.action == action && rule.expires_at.is_none_or(|expiry| !expiry.is_past(now));
        rules.values().filter(holds).map(|rule| rule.key.scope).collect()
    };
    let allowed = scopes(Action::Allow);
    let mut blocked = scopes(Action::Block);
    blocked.retain(|scope| !allowed.iter().any(|allowed| is_within(*scope, *allowed, is_host_scope)));
    blocked
}

/// Whether all packets of one scope are of another, too.
fn is_within(inner: RuleScope, outer: RuleScope, is_host_scope: bool) -> bool {
    match (inner, outer) {
        (_, RuleScope::Host) | (RuleScope::Default | RuleScope::Listener(_), RuleScope::Default) => true,
        (RuleScope::Host, RuleScope::Default) => is_host_scope,
        (RuleScope::Listener(inner), RuleScope::Listener(outer)) => inner == outer,
        (RuleScope::Host | RuleScope::Default, RuleScope::Listener(_)) => false,
    }
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
        cut_off(&protected, changes, false, now, covering, |key, address| is_about(key, address, || "RU".parse().ok()))
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
        let scoped = |rule: Rule, scope| Rule { key: RuleKey { scope, ..rule.key }, ..rule };
        let (host, web) = (RuleScope::Host, RuleScope::Listener(443));
        assert_eq!(ask(&[scoped(allow, web)], &[put(scoped(block, host))]), caller);
        assert_eq!(ask(&[scoped(allow, web)], &[put(scoped(block, web))]), None);
        assert_eq!(ask(&[scoped(block, web)], &[put(scoped(block, host))]), caller);
        assert_eq!(ask(&[scoped(block, host)], &[put(scoped(block, web))]), None);
        let past = Rule { expires_at: Some(Expiry::from_millis(5)), ..block };
        assert_eq!(ask(&[], &[put(past)]), None);
    }
}
