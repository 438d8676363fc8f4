//! The thread's certificates: which routes use them, and how they are replaced.

use std::time::{Instant, SystemTime};

use super::{
    ControlError,
    thread::{Owned, Thread},
};
use crate::{
    desired::{Listener, Mode, Route, Target},
    tls::certs::{CertError, CertFiles, CertStatus, Certificates, Reloaded, Staged, StagedRoots},
};

/// A certificate with the routes that use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedCertificate {
    /// What is known of it.
    pub status: CertStatus,
    /// Listener and route of each; `(default)` for a default route.
    pub routes: Vec<(String, String)>,
}

/// Loads the certificates that the listeners' routes need. A route whose certificate cannot be used, or whose backends' cannot
/// be verified, is in the list; its connections fail, and the others' do not.
pub fn open_certificates(listeners: &[Listener]) -> (Certificates, Vec<String>) {
    let mut certificates = Certificates::new(Instant::now());
    let mut problems = Vec::new();
    for (listener, route, target) in listeners.iter().flat_map(targets) {
        if let Some(files) = target.cert_files()
            && let Err(error) = certificates.open(&files, SystemTime::now())
        {
            problems.push(format!("listener {listener}, route {route}: {error}"));
        }
        if let Some(path) = target.backend_roots()
            && let Err(error) = certificates.open_authorities(path)
        {
            problems.push(format!("listener {listener}, route {route}: backend_ca {error}"));
        }
    }
    certificates.retain(|_| true, |_| true);
    // The tables are still to be built.
    certificates.take_rotated();
    (certificates, problems)
}

impl Thread {
    pub(super) fn certificates(&self) -> Vec<ListedCertificate> {
        let Owned { certificates, listeners, .. } = &self.owned;
        let uses = |files: &CertFiles| {
            let users = listeners.iter().flat_map(targets);
            let users = users.filter(|(_, _, target)| target.cert_files().as_ref() == Some(files));
            users.map(|(listener, route, _)| (listener.to_owned(), route)).collect()
        };
        certificates
            .list()
            .into_iter()
            .map(|status| ListedCertificate { routes: uses(&status.files), status })
            .collect()
    }

    pub(super) fn reload_certificates(&mut self) -> Reloaded {
        let reloaded = self.owned.certificates.reload(SystemTime::now());
        self.publish_authorities();
        reloaded
    }

    /// Lets routes verify their backends against authorities that are others now. Connections that were verified against the
    /// old ones take no request any more.
    pub(super) fn publish_authorities(&mut self) {
        if self.owned.certificates.take_rotated() {
            for index in 0..self.owned.listeners.len() {
                self.publish(index, |_| {});
            }
        }
    }

    /// Loads what a new route terminates TLS with, and verifies its backends against; nothing for a route that does not.
    pub(super) fn stage_certificate(
        &self,
        route: &Route,
    ) -> Result<Option<(Staged, Option<StagedRoots>)>, ControlError> {
        match route.target.mode {
            Mode::L4 => return Ok(None),
            Mode::L7 => {}
        }
        let missing =
            || ControlError::Invalid("route.tls_cert: is required with mode \"l7\", and so is tls_key".into());
        let files = route.target.cert_files().ok_or_else(missing)?;
        let invalid = |error: CertError| {
            let field = match error {
                CertError::Cert { .. } => "route.tls_cert",
                CertError::Key { .. } => "route.tls_key",
            };
            ControlError::Invalid(format!("{field}: {error}"))
        };
        let authorities = route.target.backend_roots().map(|path| self.owned.certificates.stage_authorities(path));
        let authorities =
            authorities.transpose().map_err(|error| ControlError::Invalid(format!("route.backend_ca: {error}")))?;
        let staged = self.owned.certificates.stage(&files).map_err(invalid)?;
        let leaf = &staged.pair.leaf;
        if !leaf.covers(&route.hostname.to_string()) {
            let (hostname, names) = (&route.hostname, leaf.names.join(","));
            tracing::warn!(%hostname, cert = %files, names, "the certificate is for other names than the route's");
        }
        Ok(Some((staged, authorities)))
    }

    /// Forgets certificates that no route has any more.
    pub(super) fn retain_certificates(&mut self) {
        let Owned { certificates, listeners, .. } = &mut self.owned;
        let used = listeners.iter().flat_map(targets).filter_map(|(_, _, target)| target.cert_files());
        let used = used.collect::<std::collections::BTreeSet<_>>();
        let authorities = listeners.iter().flat_map(targets).filter_map(|(_, _, target)| target.backend_roots());
        let authorities = authorities.collect::<std::collections::BTreeSet<_>>();
        certificates.retain(|files| used.contains(files), |path| authorities.contains(path));
    }
}

/// With the names of listener and route.
fn targets(listener: &Listener) -> impl Iterator<Item = (&str, String, &Target)> {
    let addr = listener.addr.as_str();
    let default = listener.default.iter().map(move |target| (addr, "(default)".to_owned(), target));
    default.chain(listener.routes.iter().map(move |route| (addr, route.key().to_string(), &route.target)))
}
