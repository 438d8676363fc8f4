//! A target as connections see it.

use std::{ops::Deref, sync::Arc};

use super::MatchedRule;
use crate::{
    desired::{Mode, Target},
    http::{policy::Policies, upstream::Backends},
    net::rotation::Rotation,
    tls::certs::{Certificate, Certificates},
};

/// A target with what it needs at run time. What it holds may change under it; a table is built anew when the target
/// itself changes.
#[derive(Debug)]
pub struct Destination {
    target: Target,
    /// The hostname of its route, or `(default)`.
    pub name: Arc<str>,
    /// What TLS is terminated with; none on a route that does not.
    pub certificate: Option<Arc<Certificate>>,
    /// What HTTP requests are refused for.
    pub policies: Policies,
    /// Where HTTP requests go; none on a route that passes TLS through.
    pub upstream: Option<Arc<Backends>>,
    /// Which of the backends the next connection is passed through to.
    pub rotation: Rotation,
}

impl Destination {
    /// Of the route `rule`, with its certificate and its backends' authorities, when `certificates` has them. `previous` is what
    /// its route had before: it goes on where nothing
    /// has changed, and the counters of its policies do in any case.
    pub fn new(
        rule: MatchedRule<'_>,
        target: &Target,
        certificates: Option<&Certificates>,
        previous: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let certificate = target.cert_files().and_then(|files| certificates?.get(&files));
        // Found by the same file, they are others when its content is.
        let authorities = target.backend_roots().and_then(|path| certificates?.authorities(path));
        let is_same = |previous: &&Arc<Self>| {
            let certificates = [&previous.certificate, &certificate].map(|one| one.as_ref().map(Arc::as_ptr));
            let upstream = previous.upstream.as_ref();
            previous.target == *target
                && certificates[0] == certificates[1]
                && upstream.is_none_or(|upstream| upstream.is_of(target, authorities.as_ref()))
        };
        if let Some(same) = previous.filter(is_same) {
            return Arc::clone(same);
        }
        let policies = Policies::compile(&target.l7_policies, previous.map(|previous| &previous.policies));
        let upstream = match target.mode {
            Mode::L4 => None,
            Mode::L7 => {
                let before = previous.and_then(|previous| previous.upstream.as_ref());
                // Connections do not end because a policy has come.
                let same = before.filter(|upstream| upstream.is_of(target, authorities.as_ref())).map(Arc::clone);
                let hostname = match rule {
                    MatchedRule::Exact(name) => Some(name),
                    MatchedRule::Wildcard(_) | MatchedRule::Default => None,
                };
                Some(same.unwrap_or_else(|| Backends::new(target, hostname, authorities)))
            }
        };
        let (name, rotation) = (rule.to_string().into(), Rotation::default());
        Arc::new(Self { target: target.clone(), name, certificate, policies, upstream, rotation })
    }
}

impl Deref for Destination {
    type Target = Target;

    fn deref(&self) -> &Target {
        &self.target
    }
}

/// Of their targets: the rest follows from its target.
impl PartialEq for Destination {
    fn eq(&self, other: &Self) -> bool {
        self.target == other.target
    }
}

impl Eq for Destination {}
