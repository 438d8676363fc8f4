//! One check per target: takes any bytes, panics when what has to hold of them does not.

pub mod client_hello;
pub mod list;
pub mod route_pattern;
