//! Whom a change of the rules would cut off.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::SystemTime,
};

use ipnet::IpNet;

use super::rules::change_key;
use crate::firewall::{Action, CountryCode, Covering, Rule, RuleChange, RuleKey, RuleScope, Subject};

/// Who must not be cut off without being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protected {
    /// Whoever asks for the change.
    Caller,
    /// Where a route leads.
    Backend,
    /// Whose PROXY headers a listener believes: with it all clients behind it would go.
    Proxy,
}

/// The first of the protected addresses of which the changes would have packets refused that are not refused now, with
/// what it is. Of networks of `proxies` the addresses are asked for where what a change is about begins. `is_host_scope`
/// tells what the default scope is, `covering` the rules about an address, and `country` where it is.
pub(super) fn cut_off(
    protected: &BTreeMap<IpAddr, Protected>,
    proxies: &[IpNet],
    changes: &[RuleChange],
    is_host_scope: bool,
    now: SystemTime,
    covering: impl Fn(IpAddr) -> Vec<Covering>,
    country: impl Fn(IpAddr) -> Option<CountryCode>,
) -> Option<(IpAddr, Protected)> {
    let changes = Changes::new(changes);
    let mut suspects = protected.clone();
    for address in proxies.iter().flat_map(|net| changes.addresses_within(net)) {
        suspects.entry(address).or_insert(Protected::Proxy);
    }
    suspects.iter().find_map(|(address, who)| {
        let mut about = changes.about(*address, &country).peekable();
        about.peek()?;
        let mut rules: BTreeMap<RuleKey, Rule> =
            covering(*address).into_iter().map(|covering| (covering.rule.key, covering.rule)).collect();
        let before = refused(&rules, now, is_host_scope);
        for change in about {
            match change {
                RuleChange::Put(rule) => rules.insert(rule.key, *rule),
                RuleChange::Remove(key) => rules.remove(key),
            };
        }
        let is_new = |scope: &RuleScope| !before.iter().any(|known| is_within(*scope, *known, is_host_scope));
        refused(&rules, now, is_host_scope).iter().any(is_new).then_some((*address, *who))
    })
}

/// Changes by what they are about: a list has millions of entries, and a proxy may have thousands of backends.
struct Changes<'a> {
    by_net: HashMap<IpNet, Vec<&'a RuleChange>>,
    by_country: Vec<(CountryCode, &'a RuleChange)>,
    lengths: BTreeSet<u8>,
}

impl<'a> Changes<'a> {
    fn new(changes: &'a [RuleChange]) -> Self {
        let mut sorted = Self { by_net: HashMap::new(), by_country: Vec::new(), lengths: BTreeSet::new() };
        for change in changes {
            match change_key(change).subject {
                Subject::Net(net) => {
                    sorted.lengths.insert(net.prefix_len());
                    sorted.by_net.entry(net).or_default().push(change);
                }
                Subject::Country(code) => sorted.by_country.push((code, change)),
            }
        }
        sorted
    }

    /// Those about an address; of changes with the same key the order is kept.
    fn about(
        &self,
        address: IpAddr,
        country: impl Fn(IpAddr) -> Option<CountryCode>,
    ) -> impl Iterator<Item = &'a RuleChange> {
        let nets = self.lengths.iter().filter_map(move |length| IpNet::new(address, *length).ok());
        let of_nets = nets.filter_map(|net| self.by_net.get(&net.trunc())).flatten();
        let code = if self.by_country.is_empty() { None } else { country(address) };
        let of_country =
            self.by_country.iter().filter(move |(known, _)| Some(*known) == code).map(|(_, change)| change);
        of_nets.chain(of_country).copied()
    }

    /// Where `net` begins, and the parts of it that a change is about.
    fn addresses_within(&self, net: &IpNet) -> impl Iterator<Item = IpAddr> {
        let parts = self.by_net.keys().filter(|part| net.contains(*part)).map(IpNet::network);
        parts.chain([net.network()])
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
        let found = ask_for(&BTreeMap::from([(caller, Protected::Caller)]), &[], there, changes);
        found.map(|(address, _)| address)
    }

    fn ask_for(
        protected: &BTreeMap<IpAddr, Protected>,
        proxies: &[&str],
        there: &[Rule],
        changes: &[RuleChange],
    ) -> Option<(IpAddr, Protected)> {
        let proxies: Vec<IpNet> = proxies.iter().map(|net| net.parse().unwrap()).collect();
        let covering = |address: IpAddr| {
            let about = there.iter().filter_map(|rule| match rule.key.subject {
                Subject::Net(net) => net.contains(&address).then_some(Covering { rule: *rule, net }),
                Subject::Country(_) => None,
            });
            about.collect()
        };
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        cut_off(protected, &proxies, changes, false, now, covering, |_| "RU".parse().ok())
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

    #[test]
    fn a_proxy_is_cut_off_where_its_network_begins_and_where_a_change_names_a_part_of_it() {
        let ask = |there: &[Rule], changes: &[RuleChange]| {
            let found = ask_for(&BTreeMap::new(), &["10.0.0.0/16", "2001:db8::/48"], there, changes);
            found.map(|(address, who)| {
                assert_eq!(who, Protected::Proxy);
                address.to_string()
            })
        };
        let put = |subject| RuleChange::Put(rule(Action::Block, subject));
        assert_eq!(ask(&[], &[put("10.0.0.0/8")]).as_deref(), Some("10.0.0.0"));
        assert_eq!(ask(&[], &[put("10.0.7.7")]).as_deref(), Some("10.0.7.7"));
        assert_eq!(ask(&[], &[put("2001:db8:0:7::/64")]).as_deref(), Some("2001:db8:0:7::"));
        assert_eq!(ask(&[], &[put("RU")]).as_deref(), Some("10.0.0.0"));
        assert_eq!(ask(&[], &[put("10.1.0.0/16"), put("2001:db8:1::/48"), put("DE")]), None);
        let allow = rule(Action::Allow, "10.0.0.0/16");
        assert_eq!(ask(&[allow], &[put("10.0.0.0/8"), put("10.0.7.7")]), None);
        assert_eq!(ask(&[allow, rule(Action::Block, "10.0.7.7")], &[RuleChange::Remove(allow.key)]), None);
        let block = rule(Action::Block, "10.0.0.0/8");
        assert_eq!(ask(&[allow, block], &[RuleChange::Remove(allow.key)]).as_deref(), Some("10.0.0.0"));

        // Whoever is known as more than one is told of what is worse.
        let caller = BTreeMap::from([("10.0.7.7".parse().unwrap(), Protected::Caller)]);
        let found = ask_for(&caller, &["10.0.0.0/16"], &[], &[put("10.0.7.7")]);
        assert_eq!(found.map(|(_, who)| who), Some(Protected::Caller));
    }
}
