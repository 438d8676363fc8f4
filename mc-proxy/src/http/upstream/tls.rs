//! TLS towards backends: verified against the system's roots, or the route's own.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
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
    tls::certs::{RootsError, provider, roots},
};

/// Why TLS with a backend failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file that `backend_ca` names.
    #[error("backend_ca {0}")]
    Ca(#[from] RootsError),
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
    ca: Option<PathBuf>,
    is_insecure: bool,
    server_name: Option<ServerName<'static>>,
    /// By ALPN offer. What cannot be made is tried again with the next connection.
    configs: Mutex<Vec<(Offer, Arc<ClientConfig>)>>,
}

impl ClientTls {
    pub(super) fn of(target: &Target) -> Self {
        let server_name = target.backend_server_name.as_ref().map(|name| name.as_str().to_owned());
        Self {
            ca: target.backend_ca.clone(),
            is_insecure: target.backend_insecure,
            // A DNS name, which it is, is always one for rustls too.
            server_name: server_name.and_then(|name| ServerName::try_from(name).ok()),
            configs: Mutex::default(),
        }
    }

    pub(super) async fn connect(
        &self,
        socket: Socket,
        backend: &BackendAddr,
        alpn: Offer,
    ) -> Result<TlsStream<Socket>, TlsError> {
        let name = match (&self.server_name, backend) {
            (Some(name), _) => name.clone(),
            (None, BackendAddr::Name { host, .. }) => {
                ServerName::try_from(host.to_string()).map_err(|_| TlsError::NoName)?
            }
            (None, BackendAddr::Ip(addr)) => ServerName::IpAddress(addr.ip().into()),
            (None, BackendAddr::Unix(_)) if self.is_insecure => {
                ServerName::try_from("localhost").map_err(|_| TlsError::NoName)?
            }
            (None, BackendAddr::Unix(_)) => return Err(TlsError::NoName),
        };
        let connector = TlsConnector::from(self.config(alpn)?);
        connector.connect(name, socket).await.map_err(TlsError::Handshake)
    }

    fn config(&self, alpn: Offer) -> Result<Arc<ClientConfig>, TlsError> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, config)) = configs.iter().find(|(known, _)| *known == alpn) {
            return Ok(Arc::clone(config));
        }
        let provider = Arc::new(provider());
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[&TLS13, &TLS12])?;
        let mut config = if self.is_insecure {
            let verifier = Arc::new(Unverified(provider));
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        } else {
            let roots = Arc::new(self.roots()?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
            let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
            builder.with_webpki_verifier(verifier).with_no_client_auth()
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let config = Arc::new(config);
        configs.push((alpn, Arc::clone(&config)));
        Ok(config)
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        if let Some(path) = &self.ca {
            return Ok(roots(path)?);
        }
        let mut roots = RootCertStore::empty();
        // Some systems have roots that are none; the others are good.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() { Err(TlsError::NoRoots) } else { Ok(roots) }
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
