//! `[firewall]`.

use std::{collections::HashSet, time::Duration};

use super::{
    super::{
        AutoBan, Firewall, RateLimit,
        file::{self, Given},
    },
    Lower, section,
};
use crate::firewall::{Action, Rule, RuleError, Subject};

/// Over a longer time than this nobody expects a limit of connections to reach, and a counter would stay that long.
const WINDOW_MAX: Duration = Duration::from_secs(3_600);

impl Lower<'_, '_> {
    pub(super) fn firewall(&mut self, mut given: file::Firewall) -> (Vec<Rule>, Firewall) {
        let firewall = Firewall {
            geoip_db: self.path_or_none(given.geoip_db.take(), "firewall.geoip_db"),
            rate_limit: self.rate_limit(&mut given),
            auto_ban: self.auto_ban(section(given.auto_ban.take()).0),
            max_bans: self.within(given.max_bans.take(), "firewall.max_bans", 1..=1 << 20, 1 << 16),
        };
        if let Some(countries) = given.blocked_countries.as_ref().filter(|list| !list.value.is_empty())
            && firewall.geoip_db.is_none()
        {
            let text = "firewall: geoip_db is required by blocked_countries; write geoip_db = \
                        \"/srv/mc-proxy/GeoLite2-Country.mmdb\"";
            self.report.error(&countries.at, text);
        }
        (self.rules(given), firewall)
    }

    fn rate_limit(&mut self, given: &mut file::Firewall) -> Option<RateLimit> {
        let connections = self.within(given.rate_limit.take(), "firewall.rate_limit", 0..=u32::MAX, 0);
        let limit = RateLimit {
            connections,
            window: self.window(given.rate_window.take(), "firewall.rate_window", Duration::from_secs(10)),
            prefix_v4: self.prefix(given.rate_prefix_v4.take(), "firewall.rate_prefix_v4", 8, 32),
            prefix_v6: self.prefix(given.rate_prefix_v6.take(), "firewall.rate_prefix_v6", 16, 64),
        };
        (connections > 0).then_some(limit)
    }

    fn auto_ban(&mut self, given: file::AutoBan) -> Option<AutoBan> {
        let after = self.within(given.after, "firewall.auto_ban.after", 0..=u32::MAX, 0);
        let ban = AutoBan {
            after,
            within: self.window(given.within, "firewall.auto_ban.within", Duration::from_secs(60)),
            ttl: self.deadline(given.ttl, "firewall.auto_ban.ttl", Duration::from_secs(600)),
        };
        (after > 0).then_some(ban)
    }

    /// A prefix length; the longest is the default.
    fn prefix(&mut self, given: Option<Given<i64>>, key: &str, least: u8, most: u8) -> u8 {
        let length = self.within(given, key, least.into()..=most.into(), most.into());
        u8::try_from(length).unwrap_or(most)
    }

    fn window(&mut self, given: Option<Given<Duration>>, key: &str, default: Duration) -> Duration {
        if let Some(given) = given.as_ref().filter(|given| given.value > WINDOW_MAX) {
            self.report.error(&given.at, format!("{key} must be at most 1h; write \"{}s\"", default.as_secs()));
        }
        self.deadline(given, key, default)
    }

    fn rules(&mut self, firewall: file::Firewall) -> Vec<Rule> {
        type Parse = fn(&str) -> Result<Subject, RuleError>;
        let lists: [(_, _, _, Parse); 4] = [
            (firewall.blocked_ips, "firewall.blocked_ips", Action::Block, Subject::ip),
            (firewall.blocked_cidrs, "firewall.blocked_cidrs", Action::Block, Subject::cidr),
            (firewall.blocked_countries, "firewall.blocked_countries", Action::Block, Subject::country),
            (firewall.allowed_cidrs, "firewall.allowed_cidrs", Action::Allow, Subject::cidr),
        ];
        let mut rules = Vec::new();
        let mut seen = HashSet::new();
        for (list, key, action, parse) in lists {
            for given in list.map(|list| list.value).unwrap_or_default() {
                let rule = parse(&given.value).and_then(|subject| Rule::permanent(action, subject));
                match rule {
                    Ok(rule) if seen.insert(rule) => rules.push(rule),
                    Ok(rule) => {
                        let text = format!("{key}: \"{}\" is listed twice; remove one", rule.key.subject);
                        self.report.warn(&given.at, text);
                    }
                    Err(error) => self.report.error(&given.at, format!("{key}: {error}")),
                }
            }
        }
        rules
    }
}
