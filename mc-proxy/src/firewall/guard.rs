//! The firewall in user space: what every connection is asked, wherever the kernel has or has not looked before.

use std::net::IpAddr;

use arc_swap::{ArcSwap, ArcSwapOption};
use mc_proxy_common::{
    maps::RuleValue,
    verdict_v1::{Lookup, SourceVerdict, judge_source},
};

use super::{Action, GeoIp, Rule, RuleSet, Subject};
use crate::net::addr::ClientAddr;

/// The rules in force and the GeoIP database. Reading takes no lock.
#[derive(Debug, Default)]
pub struct Firewall {
    /// Replaced as a whole with every change.
    pub rules: ArcSwap<RuleSet>,
    /// Replaced as a whole when it is reloaded.
    pub geoip: ArcSwapOption<GeoIp>,
}

/// What the rules say of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Let in.
    Pass,
    /// The address itself is blocked.
    BlockedAddress,
    /// A prefix of the address is blocked.
    BlockedPrefix,
    /// The address's country is blocked.
    BlockedCountry,
}

impl Firewall {
    /// Judges a client by the verdict that the kernel uses, and by country, which it does not know.
    pub fn judge(&self, client: ClientAddr) -> Judgement {
        let rules = self.rules.load();
        if rules.is_empty() {
            return Judgement::Pass;
        }
        match judge_source(&UserRules(&rules), client.ip()) {
            SourceVerdict::Allowed => Judgement::Pass,
            SourceVerdict::BlockedAddress(_) => Judgement::BlockedAddress,
            SourceVerdict::BlockedPrefix(_) => Judgement::BlockedPrefix,
            SourceVerdict::NoRule | SourceVerdict::Expired => self.judge_country(&rules, client.ip()),
        }
    }

    fn judge_country(&self, rules: &RuleSet, ip: IpAddr) -> Judgement {
        if !rules.has_countries() {
            return Judgement::Pass;
        }
        let country = self.geoip.load().as_ref().and_then(|geoip| geoip.country(ip));
        if country.is_some_and(|code| rules.blocks_country(code)) { Judgement::BlockedCountry } else { Judgement::Pass }
    }
}

/// The rule set as the verdict asks it. Its rules do not expire.
struct UserRules<'a>(&'a RuleSet);

impl UserRules<'_> {
    fn covering(&self, action: Action, source: IpAddr) -> Option<RuleValue> {
        self.0.covering(action, source).map(|_| RuleValue::PERMANENT)
    }
}

impl Lookup for UserRules<'_> {
    fn allowed(&self, source: IpAddr) -> Option<RuleValue> {
        self.covering(Action::Allow, source)
    }

    fn blocked_address(&self, source: IpAddr) -> Option<RuleValue> {
        let rule = Rule::block(Subject::Net(source.into()));
        self.0.contains(&rule).then_some(RuleValue::PERMANENT)
    }

    fn blocked_prefix(&self, source: IpAddr) -> Option<RuleValue> {
        self.covering(Action::Block, source)
    }

    /// A connection has come to a listener.
    fn is_listener_port(&self, _port: u16) -> bool {
        true
    }

    fn now(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::net::addr::PeerAddr;

    fn rule(action: Action, subject: &str) -> Rule {
        Rule::permanent(action, subject.parse().unwrap()).unwrap()
    }

    #[test]
    fn allow_beats_address_beats_prefix() {
        let firewall = Firewall::default();
        let judge = |ip: &str| {
            let peer = PeerAddr::new(format!("{ip}:1").parse().unwrap());
            firewall.judge(ClientAddr::from_peer(peer))
        };
        assert_eq!(judge("10.0.0.1"), Judgement::Pass);
        let rules = [
            rule(Action::Block, "10.0.0.0/8"),
            rule(Action::Block, "10.0.0.1"),
            rule(Action::Block, "10.9.0.1"),
            rule(Action::Allow, "10.9.0.0/16"),
            rule(Action::Block, "2001:db8::/32"),
        ];
        firewall.rules.store(Arc::new(rules.into_iter().collect()));
        assert_eq!(judge("10.0.0.1"), Judgement::BlockedAddress);
        assert_eq!(judge("10.0.0.2"), Judgement::BlockedPrefix);
        assert_eq!(judge("10.9.0.1"), Judgement::Pass);
        assert_eq!(judge("11.0.0.1"), Judgement::Pass);
        assert_eq!(judge("[2001:db8::1]"), Judgement::BlockedPrefix);
        assert_eq!(judge("[::ffff:10.0.0.1]"), Judgement::BlockedAddress);
    }
}
