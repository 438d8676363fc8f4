//! Countries as prefixes, for planes that know no countries.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{GeoIp, GeoIpError};
use crate::firewall::CountryCode;

/// Most prefixes that countries can have, which bounds the memory of a list; a whole country database has fewer than a
/// million networks.
pub(super) const MAX_PREFIXES: usize = 1 << 22;

impl GeoIp {
    /// The addresses of countries as the fewest prefixes per country, in ascending order, IPv4 first; found in one walk.
    ///
    /// An address is in a prefix of a country exactly when [`Self::country`] says so. Prefixes do not overlap; a database
    /// that knows one country only can yield `0.0.0.0/0`. A country that the database does not know has no prefix.
    ///
    /// # Errors
    /// [`GeoIpError::Damaged`], [`GeoIpError::TooManyPrefixes`].
    pub fn prefixes(&self, countries: &BTreeSet<CountryCode>) -> Result<Vec<(IpNet, CountryCode)>, GeoIpError> {
        let mut found = Vec::new();
        for leaf in self.tree.leaves() {
            let leaf = leaf.map_err(|defect| self.damaged(defect))?;
            let Some(code) = self.country_of(leaf.record).filter(|code| countries.contains(code)) else { continue };
            append(&mut found, leaf.net, code);
            if found.len() > MAX_PREFIXES {
                return Err(GeoIpError::TooManyPrefixes { path: self.path.clone() });
            }
        }
        Ok(found)
    }
}

/// Appends a prefix that is above all others; two halves of a prefix become the prefix.
fn append(found: &mut Vec<(IpNet, CountryCode)>, mut net: IpNet, code: CountryCode) {
    while let Some(whole) = net.supernet()
        && found.last().is_some_and(|(last, of)| *of == code && is_half(*last, whole))
    {
        found.pop();
        net = whole;
    }
    found.push((net, code));
}

fn is_half(net: IpNet, of: IpNet) -> bool {
    net.supernet() == Some(of)
}
