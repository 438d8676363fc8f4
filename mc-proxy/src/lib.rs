//! mc-proxy: a TLS SNI proxy with an XDP firewall, for edge hosts under attack.

#![forbid(unsafe_code)]

pub mod admin;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod conn;
pub mod control;
pub mod ctl;
pub mod daemon;
pub mod desired;
pub mod exit;
pub mod firewall;
pub mod http;
pub mod net;
pub mod proxy_header;
pub mod route;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod worker;
pub mod xdp;
