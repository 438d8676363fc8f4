//! Connecting to a backend.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt},
};
use tokio::time::{Instant, timeout};

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
    match timeout(deadline, dial_any(backend, resolver, first, deadline)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout(deadline)),
    }
}

async fn dial_any(
    backend: &BackendAddr,
    resolver: &Resolver,
    first: &[u8],
    deadline: Duration,
) -> Result<Socket, DialError> {
    let end = Instant::now() + deadline;
    let connected = match backend {
        BackendAddr::Ip(addr) => dial_ip(*addr, first).await,
        BackendAddr::Unix(path) => dial_unix(path, first).await,
        BackendAddr::Name { host, port } => {
            let ips = resolver.lookup(host).await.map_err(DialError::Resolve)?;
            dial_first(&ips, *port, first, end).await
        }
    };
    connected.map_err(|error| {
        let is_silent = error.kind() == io::ErrorKind::TimedOut;
        if is_silent { DialError::Timeout(deadline) } else { DialError::Connect(error) }
    })
}

/// Tries the addresses of a name in order. One that is silent leaves the others their share of the time.
async fn dial_first(ips: &[IpAddr], port: u16, first: &[u8], end: Instant) -> io::Result<Socket> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for (ip, left) in ips.iter().zip((1..=ips.len()).rev()) {
        let share = end.saturating_duration_since(Instant::now()) / u32::try_from(left).unwrap_or(u32::MAX);
        match timeout(share, dial_ip(SocketAddr::new(*ip, port), first)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => failure = error,
            Err(elapsed) => failure = elapsed.into(),
        }
    }
    Err(failure)
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Connections to it are not answered: its queue of one is full.
    fn silent() -> (TcpListener, std::net::TcpStream) {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let listener = TcpListener::from(listener);
        let queued = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener, queued)
    }

    #[tokio::test]
    async fn an_address_that_is_silent_leaves_time_for_the_next() {
        let (silent, _queued) = silent();
        let port = silent.local_addr().unwrap().port();
        let _other = TcpListener::bind(("127.0.0.2", port)).unwrap();
        let end = || Instant::now() + Duration::from_secs(1);
        let [dead, alive] = [[127, 0, 0, 1], [127, 0, 0, 2]].map(IpAddr::from);
        dial_first(&[dead, alive], port, b"x", end()).await.unwrap();
        let error = dial_first(&[dead], port, b"x", end()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
