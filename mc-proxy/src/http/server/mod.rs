//! Clients whose TLS has been terminated.

pub mod client;
mod h1;
mod h2;
#[cfg(test)]
mod tests;

use super::site::Site;
use crate::{
    conn::Outcome,
    net::socket::Socket,
    tls::{Alpn, TlsStream},
};

/// Serves a client in the protocol that the handshake has come to: HTTP/1.1 where it has come to none. How the connection
/// ended.
pub async fn serve(site: Site, stream: TlsStream, alpn: Option<Alpn>) -> Outcome {
    match alpn {
        Some(Alpn::H2) => h2::serve(site, stream).await,
        Some(Alpn::Http11) | None => h1::serve(&site, stream, &[], h1::Service::Proxy).await,
    }
}

/// Serves a client that speaks HTTP without TLS: all that it is told is where to go. `begun`: what has been read already.
pub async fn redirect(site: Site, socket: Socket, begun: &[u8]) -> Outcome {
    h1::serve(&site, socket, begun, h1::Service::Redirect).await
}
