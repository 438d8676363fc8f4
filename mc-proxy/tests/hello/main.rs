//! The ClientHello reader: cases, hellos captured from real clients, properties, and the corpora of the fuzz targets.

#[path = "../../fuzz/src/check/mod.rs"]
pub mod check;

mod captured;
mod cases;
mod facts;
mod properties;
mod wire;

// The checks are shared with the fuzz package and name these modules from its root.
use mc_proxy::{firewall, route, tls};
