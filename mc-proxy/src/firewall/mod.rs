//! The firewall: rules, and what they say of an address.

mod book;
mod compile;
mod engine;
mod geoip;
mod guard;
pub mod list;
mod offence;
mod prefix;
mod rate;
mod rule;
mod tables;

pub use book::{Applied, BookError, Covering, GROUPS_MAX, GroupIds, GroupSize, Replacement, RuleBook, RuleChange};
pub use compile::Usage;
pub use engine::{Engine, EngineConfig, EngineError, EngineStats, Generations, Moment};
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
pub use tables::{Readers, Reading, Sizes, TableMemory, Words};
