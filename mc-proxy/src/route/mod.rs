//! Routes: which backend a server name belongs to.

pub mod alpn;
mod pattern;
mod table;

pub use pattern::{Pattern, PatternError};
pub use table::{MatchedRule, RouteMatch, RouteTable};
