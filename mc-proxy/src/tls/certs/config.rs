//! How TLS is spoken with a certificate.

use std::sync::Arc;

use rustls::{
    ServerConfig,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, Ticketer, kx_group::X25519MLKEM768},
    },
    server::NoServerSessionStorage,
    sign::SingleCertAndKey,
    version::{TLS12, TLS13},
};

use super::Pair;

/// HTTP/2 over TLS (RFC 9113 §3.2).
pub const H2: &[u8] = b"h2";

/// HTTP/1.1 (RFC 7301 §6).
pub const HTTP_1_1: &[u8] = b"http/1.1";

/// TLS 1.2 and 1.3 with `pair`; ALPN `h2`, then `http/1.1`.
///
/// Sessions are resumed by tickets alone, so that clients cost no memory between their connections. The ticket keys are
/// this configuration's own and change every six hours; all workers share them, no other certificate has them. A ticket is
/// therefore good for its certificate, and rustls takes it for the server name only that it was made for.
///
/// Early data (0-RTT) is not accepted: whoever has recorded it can send it again (RFC 8446 §8), and neither a proxy nor
/// most of what is behind it can tell a request that was repeated from one that was not.
///
/// # Errors
/// When the system has no randomness to give.
pub fn server_config(pair: &Pair) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&pair.certified))));
    config.alpn_protocols = vec![H2.to_vec(), HTTP_1_1.to_vec()];
    config.ticketer = Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// aws-lc-rs with the hybrid group first, whatever features other crates switch on: who offers it gets a key that a later
/// quantum computer does not find out.
pub fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let is_hybrid = |name| name == X25519MLKEM768.name();
    provider.kx_groups.retain(|group| !is_hybrid(group.name()));
    provider.kx_groups.insert(0, X25519MLKEM768);
    provider
}
