//! Sockets: addresses by role, listeners, dialling and the byte relay.

pub mod addr;
pub mod descriptors;
pub mod dial;
pub mod listener;
pub mod memory;
mod race;
pub mod relay;
pub mod resolve;
pub mod socket;
