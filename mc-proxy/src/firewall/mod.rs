//! The firewall: rules, and what they say of an address.

mod geoip;
mod guard;
mod rule;
mod set;
mod tables;

#[cfg(test)]
pub(crate) use geoip::fixture as geoip_fixture;
pub use geoip::{FileWatch, GeoIp, GeoIpError, Stamp};
pub use guard::{Firewall, Judgement};
pub use rule::{
    Action, COMMENT_MAX_BYTES, CountryCode, Expiry, Group, Rule, RuleError, RuleKey, RuleScope, Subject, Tier,
    check_comment,
};
pub use set::RuleSet;
pub use tables::{Generations, Readers, Reading, Sizes, TableMemory, Words};
