//! HTTP: what a request and a response are allowed to be, and what becomes of them on the way through.
//!
//! The crate of the same name is written `::http` here.

pub mod access;
pub mod authority;
pub mod counters;
pub mod date;
pub mod deadline;
pub mod error;
pub mod exchange;
pub mod fields;
pub mod h1;
pub mod h2;
pub mod limits;
pub mod message;
pub mod policy;
pub mod server;
pub mod site;
pub mod transport;
pub mod upstream;
pub mod websocket;
pub mod wire;
