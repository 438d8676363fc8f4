//! mc-proxy: a TLS SNI proxy with an XDP firewall, for edge hosts under attack.

#![forbid(unsafe_code)]

pub mod check;
pub mod config;
pub mod control;
pub mod desired;
pub mod firewall;
pub mod net;
pub mod route;
pub mod store;
pub mod tls;
pub mod xdp;
