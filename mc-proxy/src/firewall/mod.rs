//! The firewall: rules, and what they say of an address.

mod book;
mod compile;
mod engine;
mod geoip;
mod guard;
mod prefix;
mod rule;
mod set;
mod tables;

pub use book::{Applied, BookError, Covering, GROUPS_MAX, GroupIds, GroupSize, Replacement, RuleBook, RuleChange};
pub use compile::Usage;
pub use engine::{Engine, EngineConfig, EngineError, EngineStats, Generations, Moment};
#[cfg(test)]
pub(crate) use geoip::tests as geoip_fixture;
pub use geoip::{GeoIp, GeoIpError};
pub use guard::{Firewall, Judgement};
pub use rule::{
    Action, COMMENT_MAX_BYTES, CountryCode, Expiry, Group, Rule, RuleError, RuleKey, RuleScope, Subject, Tier,
    check_comment,
};
pub use set::RuleSet;
pub use tables::{Readers, Reading, Sizes, TableMemory, Words};
