//! Streams that HTTP is spoken over.

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{net::socket::Socket, tls::TlsStream};

/// A stream with a socket below it.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send {
    /// The socket, for its options and its state.
    fn socket_mut(&mut self) -> &mut Socket;
}

impl Transport for Socket {
    fn socket_mut(&mut self) -> &mut Socket {
        self
    }
}

impl Transport for TlsStream {
    fn socket_mut(&mut self) -> &mut Socket {
        Self::socket_mut(self)
    }
}
