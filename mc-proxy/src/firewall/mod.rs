//! The firewall: rules, and what they say of an address.

mod rule;
mod set;

pub use rule::{Action, CountryCode, Rule, RuleError, Subject};
pub use set::RuleSet;
