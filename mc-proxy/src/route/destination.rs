//! A target as connections see it.

use std::{ops::Deref, sync::Arc};

use crate::{
    desired::{Mode, Target},
    http::{policy::Policies, upstream::Backends},
    tls::certs::{Certificate, Certificates},
};

/// A target with what it needs at run time. What it holds may change under it; a table is built anew when the target
/// itself changes.
#[derive(Debug)]
pub struct Destination {
    target: Target,
    /// What TLS is terminated with; none on a route that does not.
    pub certificate: Option<Arc<Certificate>>,
    /// What its requests are asked; none on a route that passes TLS through.
    pub policies: Policies,
    /// Where its requests go; none on a route that passes TLS through.
    pub upstream: Option<Arc<Backends>>,
    /// The route's hostname, or `(default)`.
    pub name: Arc<str>,
}

impl Destination {
    /// With its certificate, when `certificates` has it.
    pub fn new(name: &str, target: Target, certificates: Option<&Certificates>) -> Self {
        let files = target.cert_files();
        let certificate = files.and_then(|files| certificates?.get(&files));
        let (policies, upstream) = match target.mode {
            Mode::L4 => (Policies::default(), None),
            Mode::L7 => (Policies::compile(&target.l7_policies, None), Some(Backends::new(&target))),
        };
        Self { target, certificate, policies, upstream, name: name.into() }
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
