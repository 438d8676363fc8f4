//! Certificates that routes terminate TLS with: read from files, checked, replaced while connections are served.
//!
//! ```text
//! files --load--> Pair --server_config--> ServerConfig --store--> Certificate <--shared-- route tables
//! ```
//!
//! A [`Certificate`] is what a route table holds: whoever gets a connection takes the configuration that is current, with
//! no lock and no look-up. [`Certificates`] is the one writer: it loads, compares and swaps. Whatever fails, what was in
//! force stays in force.
//!
//! No private key is in any message, log line or `Debug` output.

mod authorities;
mod config;
mod leaf;
mod pair;
mod roots;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod watch;

pub use self::{
    authorities::StagedRoots,
    config::{H2, HTTP_1_1, provider, server_config},
    leaf::{Leaf, LeafError},
    pair::{CertError, CertFiles, Pair},
    roots::{Roots, RootsError, roots, system_roots},
    store::{CertStatus, Certificate, Certificates, Expiry, Figures, Reloaded, Staged},
};
