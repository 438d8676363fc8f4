//! The firewall: rules, and what they say of an address.

mod geoip;
mod rule;
mod set;

pub use geoip::{GeoIp, GeoIpError};
pub use rule::{Action, CountryCode, Rule, RuleError, Subject};
pub use set::RuleSet;
