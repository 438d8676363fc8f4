//! Routes: which backend a server name belongs to.

pub mod alpn;
mod destination;
mod pattern;
mod table;

pub use destination::Destination;
pub use pattern::{Pattern, PatternError};
pub use table::{MatchedRule, RouteMatch, RouteTable};
