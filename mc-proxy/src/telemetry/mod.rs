//! What the daemon tells about itself.

pub mod limit;
pub mod log;
