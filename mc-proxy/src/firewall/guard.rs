//! The firewall in user space: what every connection is asked, wherever the kernel has or has not looked before.

use arc_swap::{ArcSwap, ArcSwapOption};

use super::{Action, GeoIp, RuleSet};
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
    /// Judges a client: allow, then blocked address, blocked prefix, blocked country.
    pub fn judge(&self, client: ClientAddr) -> Judgement {
        let rules = self.rules.load();
        let ip = client.ip();
        if rules.is_empty() || rules.covering(Action::Allow, ip).is_some() {
            return Judgement::Pass;
        }
        match rules.covering(Action::Block, ip) {
            Some(net) if net.prefix_len() == net.max_prefix_len() => return Judgement::BlockedAddress,
            Some(_) => return Judgement::BlockedPrefix,
            None => {}
        }
        if rules.has_countries()
            && let Some(geoip) = &*self.geoip.load()
            && geoip.country(ip).is_some_and(|code| rules.blocks_country(code))
        {
            return Judgement::BlockedCountry;
        }
        Judgement::Pass
    }
}
