//! The part of `mc_proxy::firewall` under test.

#[path = "../../src/firewall/list/mod.rs"]
pub mod list;
