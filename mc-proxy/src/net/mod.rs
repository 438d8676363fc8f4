//! Sockets: addresses by role, listeners, dialling and the byte relay.

pub mod addr;
