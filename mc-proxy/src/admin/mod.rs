//! The admin API: `mc_proxy.v1.ProxyAdminService`, health and reflection on a Unix socket.
//!
//! Who may connect may administer: the permissions of the socket file are the access control. Still no client can
//! hold the API for ever or make the daemon grow without bound; see [`incoming`] for the limits.

mod convert;
mod deadline;
mod incoming;
mod server;
mod service;
mod socket;
mod upload;
mod watch;

#[cfg(test)]
pub(crate) mod tests;

pub use incoming::Caller;
pub use server::serve;
pub use service::Admin;
pub use socket::{AdminSocket, SocketError};

pub(crate) use convert::{action_to_proto, rule_to_proto};
