//! The firewall: rules, and what they say of an address.

mod geoip;
mod guard;
mod offence;
mod rate;
mod rule;
mod set;
mod tables;

#[cfg(test)]
pub(crate) use geoip::fixture as geoip_fixture;
pub use geoip::{FileWatch, GeoIp, GeoIpError, Stamp};
#[cfg(test)]
pub(crate) use guard::tests as guard_fixture;
pub use guard::{Firewall, GroupCount, GroupCounters, Judgement};
pub use offence::{AutoBan, Ban, OffenceKind, Offenders};
pub use rate::RateLimiter;
pub use rule::{
    Action, COMMENT_MAX_BYTES, CountryCode, Expiry, Group, Rule, RuleError, RuleKey, RuleScope, Subject, Tier,
    check_comment,
};
pub use set::RuleSet;
pub use tables::{Generations, Readers, Reading, Sizes, TableMemory, Words};
