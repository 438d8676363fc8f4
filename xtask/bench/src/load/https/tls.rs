//! One TLS connection of a client, without blocking, and with as few copies and calls as rustls permits.
//!
//! All proxies get the same offer, which leaves them nothing to choose: TLS 1.3, `TLS_AES_128_GCM_SHA256`, X25519.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, Resumption, UnbufferedClientConnection};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme};

use super::super::hello::SERVER_NAME;
use super::super::socket::connect;

/// What one receive may bring; the rest of a record that came in parts is kept in front of it.
pub(super) const RECEIVE: usize = 128 << 10;
/// Bytes that a record takes beyond its content, and more.
const RECORD_OVERHEAD: usize = 64;
const RECORD: usize = 16 << 10;
const TICKETS: usize = 8;

/// Which sessions a client keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sessions {
    /// Every handshake is a full one.
    Forget,
    /// Every handshake but the first ones resumes.
    Resume,
}

/// What every connection of a client offers. Only the certificate of `certificate` (PEM) is taken.
pub(super) fn config(certificate: &Path, alpn: &[u8]) -> anyhow::Result<ClientConfig> {
    let provider = CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let certificate = CertificateDer::from_pem_file(certificate)
        .with_context(|| format!("reading the certificate {}", certificate.display()))?;
    let mut config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { certificate, schemes }))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// The same with sessions of its own: in a store that is shared by many connections, the tickets that come first to one
/// push out those of the others.
pub(super) fn with_sessions(config: &ClientConfig, sessions: Sessions) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.resumption = match sessions {
        Sessions::Forget => Resumption::disabled(),
        Sessions::Resume => Resumption::store(Arc::new(ClientSessionMemoryCache::new(TICKETS))),
    };
    config.into()
}

/// Takes one certificate and no other.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *presented == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("not the benchmark's certificate".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 was not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // The proxy has signed, which is what is measured. To verify would cost the load's CPU as much again.
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

/// What the peer has left to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Speaks,
    /// Has closed, by an alert or by the end of the stream.
    Closed,
}

/// A connection: the socket, the state of TLS, and what is on its way in either direction.
pub(super) struct Secured {
    pub(super) socket: OwnedFd,
    tls: UnbufferedClientConnection,
    /// The beginning of a record whose end has not come.
    rest: Vec<u8>,
    outgoing: Vec<u8>,
    sent: usize,
}

impl Secured {
    /// Begins to connect; the hello waits for [`Self::flush`].
    pub(super) fn open(addr: SocketAddrV4, config: &Arc<ClientConfig>) -> anyhow::Result<Self> {
        let name = ServerName::try_from(SERVER_NAME).context("the server's name")?;
        let tls = UnbufferedClientConnection::new(Arc::clone(config), name).context("preparing a handshake")?;
        let socket = connect(addr, SocketFlags::NONBLOCK)?;
        let mut secured = Self { socket, tls, rest: Vec::new(), outgoing: Vec::new(), sent: 0 };
        secured.process(&mut [], 0, &mut |_| Ok(()))?;
        Ok(secured)
    }

    /// Whether the handshake is done, as far as this end is concerned, and how; `None` before.
    pub(super) fn handshake(&self) -> Option<HandshakeKind> {
        if self.tls.is_handshaking() { None } else { self.tls.handshake_kind() }
    }

    /// The application protocol agreed on.
    pub(super) fn alpn(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// Receives once and gives `take` the plaintext of every record that is whole.
    pub(super) fn receive(
        &mut self,
        scratch: &mut Vec<u8>,
        take: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Peer> {
        let kept = self.rest.len();
        if scratch.len() < kept + RECEIVE {
            scratch.resize(kept + RECEIVE, 0);
        }
        scratch[..kept].copy_from_slice(&self.rest);
        match rustix::net::recv(&self.socket, &mut scratch[kept..kept + RECEIVE], RecvFlags::empty()) {
            Ok((_, 0)) => Ok(Peer::Closed),
            Ok((_, received)) => self.process(scratch, kept + received, take),
            Err(Errno::AGAIN) => Ok(Peer::Speaks),
            Err(error) => Err(error).context("receiving"),
        }
    }

    /// Encrypts a message to be sent by [`Self::flush`].
    pub(super) fn seal(&mut self, message: &[u8]) -> anyhow::Result<()> {
        loop {
            let UnbufferedStatus { state, .. } = self.tls.process_tls_records(&mut []);
            match state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let room = message.len() + RECORD_OVERHEAD * (1 + message.len() / RECORD);
                    return append(&mut self.outgoing, room, |place| match traffic.encrypt(message, place) {
                        Ok(written) => Ok(Ok(written)),
                        Err(EncryptError::InsufficientSize(size)) => Ok(Err(size.required_size)),
                        Err(error @ EncryptError::EncryptExhausted) => Err(error.into()),
                    });
                }
                ConnectionState::EncodeTlsData(data) => encode(&mut self.outgoing, data)?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                state @ (ConnectionState::ReadTraffic(_)
                | ConnectionState::ReadEarlyData(_)
                | ConnectionState::BlockedHandshake
                | ConnectionState::PeerClosed
                | ConnectionState::Closed
                | _) => bail!("nothing can be sent: {state:?}"),
            }
        }
    }

    /// Sends what the socket takes; true when nothing is left.
    pub(super) fn flush(&mut self) -> anyhow::Result<bool> {
        while self.sent < self.outgoing.len() {
            match rustix::net::send(&self.socket, &self.outgoing[self.sent..], SendFlags::NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                // Also while it connects.
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error).context("sending"),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(true)
    }

    fn process(
        &mut self,
        bytes: &mut [u8],
        filled: usize,
        take: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Peer> {
        let (mut at, mut peer) = (0, Peer::Speaks);
        loop {
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(&mut bytes[at..filled]);
            at += discard;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        at += record.discard;
                        take(record.payload)?;
                    }
                }
                ConnectionState::EncodeTlsData(data) => encode(&mut self.outgoing, data)?,
                // Sent by the next flush, in order.
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => peer = Peer::Closed,
                ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) | ConnectionState::Closed => break,
                state @ (ConnectionState::ReadEarlyData(_) | _) => bail!("not the state of a client: {state:?}"),
            }
        }
        self.rest.clear();
        self.rest.extend_from_slice(&bytes[at..filled]);
        Ok(peer)
    }
}

fn encode<Data>(outgoing: &mut Vec<u8>, mut data: rustls::unbuffered::EncodeTlsData<'_, Data>) -> anyhow::Result<()> {
    append(outgoing, 1024, |place| match data.encode(place) {
        Ok(written) => Ok(Ok(written)),
        Err(EncodeError::InsufficientSize(size)) => Ok(Err(size.required_size)),
        Err(error @ EncodeError::AlreadyEncoded) => Err(error.into()),
    })
}

/// Appends what `write` writes; where `room` is not enough for it, it says how much is.
fn append(
    outgoing: &mut Vec<u8>,
    room: usize,
    mut write: impl FnMut(&mut [u8]) -> anyhow::Result<Result<usize, usize>>,
) -> anyhow::Result<()> {
    let at = outgoing.len();
    outgoing.resize(at + room, 0);
    let written = match write(&mut outgoing[at..])? {
        Ok(written) => written,
        Err(required) => {
            outgoing.resize(at + required, 0);
            let written = write(&mut outgoing[at..])?;
            ensure!(written.is_ok(), "rustls asks for more room each time");
            written.unwrap_or_default()
        }
    };
    outgoing.truncate(at + written);
    Ok(())
}
