//! The server's side of a TLS handshake, from a ClientHello that has been read already to a decrypted stream.
//!
//! The certificate is chosen before: the route table did so by the same hello. rustls reads the hello again, and has the
//! last word on whether it is one.

mod error;
mod replay;
mod stream;
#[cfg(test)]
mod tests;

use std::{io, sync::Arc, time::Duration};

use rustls::{HandshakeKind, ServerConfig, ServerConnection};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsAcceptor;

pub use self::error::HandshakeError;
use self::replay::Replay;
use super::{
    ServerName,
    certs::{H2, HTTP_1_1},
};
use crate::net::socket::Socket;

/// Plaintext that waits in a connection for a client that does not read: a few records.
const UNSENT_MAX: usize = 64 * 1024;

/// A client that does not close after an alert is not waited for any longer.
const LINGER: Duration = Duration::from_secs(1);

/// What a client that is refused may still send.
const LINGER_BYTES: usize = 64 * 1024;

/// A connection whose TLS is terminated here. Reads give what the client has sent, decrypted; an end without its
/// `close_notify` is an error of kind `UnexpectedEof`. Dropped without [`Self::close`] the connection is reset.
#[derive(Debug)]
pub struct TlsStream(tokio_rustls::server::TlsStream<Replay>);

/// What a handshake came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// The application protocol.
    pub alpn: Option<Alpn>,
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// As IANA writes it.
    pub cipher_suite: &'static str,
    /// The name that the client has asked for.
    pub server_name: Option<ServerName>,
    /// Whether an earlier session was taken up again.
    pub is_resumed: bool,
}

/// An application protocol that is spoken here (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2.
    H2,
    /// HTTP/1.1.
    Http11,
}

/// Makes a stream of a socket whose ClientHello, and perhaps more, has been read into `begun`.
///
/// The caller drops the future to give up early; the socket is reset then. After an error the client has got the alert
/// that belongs to it, and the connection is closed.
///
/// # Errors
/// See [`HandshakeError`].
pub async fn terminate(
    mut client: Socket,
    begun: Vec<u8>,
    config: Arc<ServerConfig>,
    deadline: Instant,
) -> Result<(TlsStream, TlsFacts), HandshakeError> {
    client.register_both()?;
    let accept = TlsAcceptor::from(config)
        .accept_with(Replay::new(client, begun), |connection| connection.set_buffer_limit(Some(UNSENT_MAX)))
        .into_fallible();
    match timeout_at(deadline, accept).await {
        Err(_) => Err(HandshakeError::Timeout),
        Ok(Ok(stream)) => {
            let facts = TlsFacts::of(stream.get_ref().1);
            Ok((TlsStream(stream), facts))
        }
        Ok(Err((error, replay))) => {
            let error = HandshakeError::from(error);
            if error.has_alert() {
                linger(replay.into_socket(), deadline.min(Instant::now() + LINGER)).await;
            }
            Err(error)
        }
    }
}

/// A reset right behind an alert could overtake it: the client closes first, if it does so in time.
async fn linger(mut client: Socket, deadline: Instant) {
    if client.shutdown_write().is_err() {
        return;
    }
    let mut ignored = [0; 2048];
    let mut left = LINGER_BYTES;
    while let Ok(Ok(read @ 1..)) = timeout_at(deadline, client.recv(&mut ignored)).await {
        let Some(rest) = left.checked_sub(read) else { return };
        left = rest;
    }
}

impl TlsFacts {
    fn of(connection: &ServerConnection) -> Self {
        let version = connection.protocol_version();
        Self {
            alpn: match connection.alpn_protocol() {
                Some(H2) => Some(Alpn::H2),
                Some(HTTP_1_1) => Some(Alpn::Http11),
                Some(_) | None => None,
            },
            version: if version == Some(rustls::ProtocolVersion::TLSv1_3) { "TLSv1.3" } else { "TLSv1.2" },
            cipher_suite: connection
                .negotiated_cipher_suite()
                .and_then(|suite| suite.suite().as_str())
                .map_or("unknown", |name| name.strip_prefix("TLS13_").map_or(name, known_as)),
            server_name: connection.server_name().and_then(|name| name.parse().ok()),
            is_resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }
}

/// rustls names the suites of TLS 1.3 in its own way.
fn known_as(rest: &'static str) -> &'static str {
    match rest {
        "AES_128_GCM_SHA256" => "TLS_AES_128_GCM_SHA256",
        "AES_256_GCM_SHA384" => "TLS_AES_256_GCM_SHA384",
        "CHACHA20_POLY1305_SHA256" => "TLS_CHACHA20_POLY1305_SHA256",
        other => other,
    }
}

impl TlsStream {
    /// Ends the stream in order: `close_notify`, then FIN; what the client still sends is not waited for.
    ///
    /// # Errors
    /// When the client does not take it.
    pub async fn close(mut self) -> io::Result<()> {
        self.0.shutdown().await?;
        self.0.into_inner().0.into_socket().close();
        Ok(())
    }

    /// The socket below, for its options and its state.
    pub fn socket_mut(&mut self) -> &mut Socket {
        self.0.get_mut().0.socket_mut()
    }
}
