//! Connecting to a backend.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt},
};
use tokio::time::timeout;

use super::{addr::BackendAddr, resolve::Resolver, socket::Socket};

/// Why a backend was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Within the connect timeout nothing was heard.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The name has no address.
    #[error("the name could not be resolved")]
    Resolve(#[source] io::Error),
    /// Refused, unreachable, or out of local resources.
    #[error("{0}")]
    Connect(#[source] io::Error),
}

/// Connects and sends `first`, which are the first bytes of the stream. They usually leave before the connection is
/// waited for: a backend that is near has answered by the time `connect` returns.
///
/// # Errors
/// See [`DialError`]. A backend that accepted and then failed may have seen some of `first`.
pub async fn dial(
    backend: &BackendAddr,
    resolver: &Resolver,
    first: &[u8],
    deadline: Duration,
) -> Result<Socket, DialError> {
    match timeout(deadline, dial_any(backend, resolver, first)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout(deadline)),
    }
}

async fn dial_any(backend: &BackendAddr, resolver: &Resolver, first: &[u8]) -> Result<Socket, DialError> {
    match backend {
        BackendAddr::Ip(addr) => dial_ip(*addr, first).await.map_err(DialError::Connect),
        BackendAddr::Unix(path) => dial_unix(path, first).await.map_err(DialError::Connect),
        BackendAddr::Name { host, port } => {
            let mut failure = io::Error::from(io::ErrorKind::NotFound);
            for ip in resolver.lookup(host).await.map_err(DialError::Resolve)?.iter() {
                match dial_ip(SocketAddr::new(*ip, *port), first).await {
                    Ok(socket) => return Ok(socket),
                    Err(error) => failure = error,
                }
            }
            Err(DialError::Connect(failure))
        }
    }
}

async fn dial_ip(addr: SocketAddr, first: &[u8]) -> io::Result<Socket> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    if !first.is_empty() {
        // The last acknowledgement of the handshake goes out with the first bytes, and not as a packet of its own.
        sockopt::set_tcp_quickack(&fd, false)?;
    }
    let result = connect(&fd, &addr);
    finish(Socket::new(fd), result, first).await
}

async fn dial_unix(path: &Path, first: &[u8]) -> io::Result<Socket> {
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    // EAGAIN would mean a full backlog, which no event tells the end of: it is an error like a refusal.
    let result = connect(&fd, &SocketAddrUnix::new(path)?);
    finish(Socket::new(fd), result, first).await
}

async fn finish(mut socket: Socket, connected: Result<(), Errno>, first: &[u8]) -> io::Result<Socket> {
    match connected {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    if first.is_empty() {
        socket.connected().await?;
    } else {
        // While the connection is being made, a send would block; a failure to connect is the send's error.
        socket.send_all(first).await?;
    }
    Ok(socket)
}
