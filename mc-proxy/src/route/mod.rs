//! Routes: which backend a server name belongs to.

mod pattern;

pub use pattern::{Pattern, PatternError};
