//! The firewall: rules, and what they say of an address.

mod geoip;
mod guard;
pub mod list;
mod rule;
mod set;

#[cfg(test)]
pub(crate) use geoip::tests as geoip_fixture;
pub use geoip::{GeoIp, GeoIpError};
pub use guard::{Firewall, Judgement};
pub use rule::{
    Action, COMMENT_MAX_BYTES, CountryCode, Expiry, Group, Rule, RuleError, RuleKey, RuleScope, Subject, Tier,
    check_comment,
};
pub use set::RuleSet;
