//! Sockets: addresses by role, listeners, dialling and the byte relay.

pub mod addr;
pub mod descriptors;
pub mod dial;
pub(crate) mod fib;
pub mod listener;
pub mod memory;
pub(crate) mod netlink;
mod race;
pub mod relay;
pub mod resolve;
pub mod rotation;
pub mod socket;
pub mod transparent;
