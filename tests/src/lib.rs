//! What the end-to-end tests and the demo stand on: namespaces, the real daemon, backends, clients and floods.
//!
//! Everything here cleans up when it is dropped, also while a test panics. Tests that need more rights than they have
//! are skipped by [`privilege`], loudly, and never pass silently.

#![forbid(unsafe_code)]

pub mod admin;
pub mod backend;
pub mod bpffs;
pub mod bytes;
pub mod client;
pub mod config;
pub mod daemon;
pub mod dns;
pub mod flood;
pub mod hello;
pub mod http;
pub mod leak;
pub mod log;
pub mod manager;
pub mod mmdb;
pub mod peer;
pub mod privilege;
pub mod runbook;
pub mod site;
pub mod tls;
pub mod topology;
pub mod traffic;
pub mod wait;
pub mod wire;
