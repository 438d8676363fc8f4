//! TLS towards backends: verified against the system's roots, or the route's own.
//!
//! The name that the backend is asked for, and that its certificate has to be for, is `backend_server_name`; without it that
//! of the route, and on a wildcard or default route the one that the client asked for (else the backend's own host). There the
//! connections are each client's own, so that none that was verified for one name is used for another.
//!
//! Nothing is read from files here: who builds a route's backends, the control thread, brings what they are verified against.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::{TLS12, TLS13},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    desired::Target,
    net::{addr::BackendAddr, socket::Socket},
    tls::{
        self,
        certs::{Roots, provider, system_roots},
    },
};

/// Why TLS with a backend failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file that `backend_ca` names could never be used.
    #[error("backend_ca could not be loaded; the log tells why, and a reload tries it again")]
    Ca,
    /// The system has no roots.
    #[error("the system has no root certificates; install ca-certificates or set backend_ca")]
    NoRoots,
    /// rustls does not take the configuration.
    #[error(transparent)]
    Config(#[from] rustls::Error),
    /// A Unix socket has no name to be verified.
    #[error("backend_server_name is required with a backend that has no name")]
    NoName,
    /// The handshake.
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[source] std::io::Error),
}

/// Names for ALPN.
pub(super) type Offer = &'static [&'static [u8]];

/// How TLS is spoken with a route's backends.
#[derive(Debug)]
pub(super) struct ClientTls {
    trust: Trust,
    /// None: the client's.
    server_name: Option<ServerName<'static>>,
    /// By ALPN offer.
    configs: Mutex<Vec<(Offer, Arc<ClientConfig>)>>,
}

/// Whose word for who a backend is counts.
#[derive(Debug)]
enum Trust {
    /// Everybody's: `backend_insecure`, or there is no TLS.
    Anybody,
    /// Theirs.
    Roots(Roots),
    /// `backend_ca` could not be loaded.
    NoCa,
    /// The system has no roots.
    NoSystem,
}

impl ClientTls {
    /// `hostname`: of an exact route. `authorities`: what is in the file that `backend_ca` names.
    pub(super) fn of(target: &Target, hostname: Option<&tls::ServerName>, authorities: Option<Roots>) -> Self {
        let server_name = target.backend_server_name.as_ref().or(hostname).map(|name| name.as_str().to_owned());
        let trust = match authorities {
            _ if !target.backend_tls || target.backend_insecure => Trust::Anybody,
            Some(roots) => Trust::Roots(roots),
            None if target.backend_ca.is_some() => Trust::NoCa,
            None => system_roots().map_or(Trust::NoSystem, Trust::Roots),
        };
        // A DNS name, which it is, is always one for rustls too.
        Self {
            trust,
            server_name: server_name.and_then(|name| ServerName::try_from(name).ok()),
            configs: Mutex::default(),
        }
    }

    /// Whether the name is another one for another client.
    pub(super) fn is_clients_name(&self) -> bool {
        self.server_name.is_none()
    }

    /// Whether backends are verified against these authorities, if there are any. What lacks its roots is to be built anew.
    pub(super) fn is_of(&self, authorities: Option<&Roots>) -> bool {
        match (&self.trust, authorities) {
            (Trust::Anybody, None) => true,
            (Trust::Roots(known), Some(roots)) => Arc::ptr_eq(known, roots),
            // The system's.
            (Trust::Roots(_), None) => true,
            (Trust::Anybody, Some(_)) | (Trust::NoCa | Trust::NoSystem, _) => false,
        }
    }

    /// `asked`: the name that the client asked for.
    pub(super) async fn connect(
        &self,
        socket: Socket,
        backend: &BackendAddr,
        asked: Option<&tls::ServerName>,
        alpn: Offer,
    ) -> Result<TlsStream<Socket>, TlsError> {
        let name = self.name(backend, asked)?;
        let connector = TlsConnector::from(self.config(alpn)?);
        connector.connect(name, socket).await.map_err(TlsError::Handshake)
    }

    fn name(&self, backend: &BackendAddr, asked: Option<&tls::ServerName>) -> Result<ServerName<'static>, TlsError> {
        if let Some(name) = &self.server_name {
            return Ok(name.clone());
        }
        let named = |name: &str| ServerName::try_from(name.to_owned()).map_err(|_| TlsError::NoName);
        match (asked, backend) {
            (Some(asked), _) => named(asked.as_str()),
            (None, BackendAddr::Name { host, .. }) => named(host),
            (None, BackendAddr::Ip(addr)) => Ok(ServerName::IpAddress(addr.ip().into())),
            (None, BackendAddr::Unix(_)) if matches!(self.trust, Trust::Anybody) => named("localhost"),
            (None, BackendAddr::Unix(_)) => Err(TlsError::NoName),
        }
    }

    fn config(&self, alpn: Offer) -> Result<Arc<ClientConfig>, TlsError> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, config)) = configs.iter().find(|(known, _)| *known == alpn) {
            return Ok(Arc::clone(config));
        }
        let provider = Arc::new(provider());
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[&TLS13, &TLS12])?;
        let mut config = match &self.trust {
            Trust::Anybody => {
                let verifier = Arc::new(Unverified(provider));
                builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
            }
            Trust::Roots(roots) => {
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider).build();
                let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
                builder.with_webpki_verifier(verifier).with_no_client_auth()
            }
            Trust::NoCa => return Err(TlsError::Ca),
            Trust::NoSystem => return Err(TlsError::NoRoots),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let config = Arc::new(config);
        configs.push((alpn, Arc::clone(&config)));
        Ok(config)
    }
}

/// `backend_insecure`: whoever answers is believed. That the key belongs to the certificate is still checked.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_a_backend_is_verified_for() {
        let name = |own: Option<&str>, route: Option<&str>, backend: &str, asked: Option<&str>| {
            let parse = |name: Option<&str>| name.map(|name| name.parse::<tls::ServerName>().unwrap());
            let backend = backend.parse::<BackendAddr>().unwrap();
            let mut target = Target::passthrough(backend.clone());
            target.backend_server_name = parse(own);
            let tls = ClientTls::of(&target, parse(route).as_ref(), None);
            assert_eq!(tls.is_clients_name(), own.is_none() && route.is_none());
            tls.name(&backend, parse(asked).as_ref()).map(|name| name.to_str().into_owned()).ok()
        };
        let (ip, named) = ("192.0.2.1:443", "app.internal:443");
        for (own, route, backend, asked, expected) in [
            (Some("own.example"), Some("a.example"), named, Some("a.example"), "own.example"),
            (None, Some("a.example"), named, Some("a.example"), "a.example"),
            (None, Some("a.example"), ip, None, "a.example"),
            (None, None, named, Some("x.example"), "x.example"),
            (None, None, ip, Some("x.example"), "x.example"),
            (None, None, "unix:/run/app", Some("x.example"), "x.example"),
            (None, None, named, None, "app.internal"),
            (None, None, ip, None, "192.0.2.1"),
        ] {
            assert_eq!(
                name(own, route, backend, asked).as_deref(),
                Some(expected),
                "{own:?} {route:?} {backend} {asked:?}"
            );
        }
    }

    #[test]
    fn a_backend_without_a_name() {
        let backend = "unix:/run/app".parse::<BackendAddr>().unwrap();
        let mut target = Target::passthrough(backend.clone());
        (target.backend_tls, target.backend_ca) = (true, Some("/absent".into()));
        let tls = ClientTls::of(&target, None, None);
        assert!(matches!(tls.name(&backend, None), Err(TlsError::NoName)));
        assert!(matches!(tls.config(&[b"h2"]), Err(TlsError::Ca)) && !tls.is_of(None));
        target.backend_insecure = true;
        let tls = ClientTls::of(&target, None, None);
        assert!(tls.name(&backend, None).is_ok() && tls.config(&[b"h2"]).is_ok() && tls.is_of(None));
    }
}
