//! A target as connections see it.

use std::{ops::Deref, sync::Arc};

use crate::{
    desired::Target,
    tls::certs::{Certificate, Certificates},
};

/// A target with what it needs at run time. What it holds may change under it; a table is built anew when the target
/// itself changes.
#[derive(Clone, Debug)]
pub struct Destination {
    target: Target,
    /// What TLS is terminated with; none on a route that does not.
    pub certificate: Option<Arc<Certificate>>,
}

impl Destination {
    /// With its certificate, when `certificates` has it.
    pub fn new(target: Target, certificates: Option<&Certificates>) -> Self {
        let files = target.cert_files();
        let certificate = files.and_then(|files| certificates?.get(&files));
        Self { target, certificate }
    }
}

impl Deref for Destination {
    type Target = Target;

    fn deref(&self) -> &Target {
        &self.target
    }
}

/// Of their targets: a certificate follows from its target.
impl PartialEq for Destination {
    fn eq(&self, other: &Self) -> bool {
        self.target == other.target
    }
}

impl Eq for Destination {}
