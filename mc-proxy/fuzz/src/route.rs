//! The part of `mc_proxy::route` under test.

#[path = "../../src/route/pattern.rs"]
mod pattern;

pub use pattern::{Pattern, PatternError};
