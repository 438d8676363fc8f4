//! Connecting to a backend.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt},
};
use tokio::time::{Instant, timeout};

use super::{
    addr::{BackendAddr, ClientAddr},
    resolve::Resolver,
    socket::Socket,
};

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

/// One attempt to reach a backend.
#[derive(Clone, Copy, Debug)]
pub struct Dial<'a> {
    /// Whom.
    pub backend: &'a BackendAddr,
    /// The first bytes of the stream; may be empty.
    pub first: &'a [u8],
    /// Whose address the connection is to carry (transparent mode); the host's own otherwise.
    pub source: Option<ClientAddr>,
    /// The firewall mark (`SO_MARK`) of the connection's packets.
    pub mark: Option<u32>,
    /// How long everything may take, the name's resolution too.
    pub timeout: Duration,
}

/// Connects and sends the first bytes. They usually leave before the connection is waited for: a backend that is near
/// has answered by the time `connect` returns.
///
/// # Errors
/// See [`DialError`]. A backend that accepted and then failed may have seen some of the first bytes.
pub async fn dial(dial: &Dial<'_>, resolver: &Resolver) -> Result<Socket, DialError> {
    match timeout(dial.timeout, dial_any(dial, resolver)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout(dial.timeout)),
    }
}

async fn dial_any(dial: &Dial<'_>, resolver: &Resolver) -> Result<Socket, DialError> {
    let end = Instant::now() + dial.timeout;
    let connected = match dial.backend {
        BackendAddr::Ip(addr) => dial_ip(*addr, dial).await,
        BackendAddr::Unix(path) => dial_unix(path, dial).await,
        BackendAddr::Name { host, port } => {
            let ips = resolver.lookup(host).await.map_err(DialError::Resolve)?;
            dial_first(&ips, *port, dial, end).await
        }
    };
    connected.map_err(|error| {
        let is_silent = error.kind() == io::ErrorKind::TimedOut;
        if is_silent { DialError::Timeout(dial.timeout) } else { DialError::Connect(error) }
    })
}

/// Tries the addresses of a name in order. One that is silent leaves the others their share of the time.
async fn dial_first(ips: &[IpAddr], port: u16, dial: &Dial<'_>, end: Instant) -> io::Result<Socket> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for (ip, left) in ips.iter().zip((1..=ips.len()).rev()) {
        let share = end.saturating_duration_since(Instant::now()) / u32::try_from(left).unwrap_or(u32::MAX);
        match timeout(share, dial_ip(SocketAddr::new(*ip, port), dial)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => failure = error,
            Err(elapsed) => failure = elapsed.into(),
        }
    }
    Err(failure)
}

async fn dial_ip(addr: SocketAddr, dial: &Dial<'_>) -> io::Result<Socket> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    if !dial.first.is_empty() {
        // The last acknowledgement of the handshake goes out with the first bytes, and not as a packet of its own.
        sockopt::set_tcp_quickack(&fd, false)?;
    }
    if let Some(source) = dial.source {
        bind_source(fd.as_fd(), addr, source, dial.mark)?;
    }
    let result = connect(&fd, &addr);
    finish(Socket::new(fd), result, dial.first).await
}

/// Gives a socket that is to be connected to `addr` the client's address as its source.
fn bind_source(_fd: BorrowedFd<'_>, addr: SocketAddr, source: ClientAddr, _mark: Option<u32>) -> io::Result<()> {
    let message =
        format!("a connection to {addr} cannot carry the address of {source}: there is no transparent mode yet");
    Err(io::Error::new(io::ErrorKind::Unsupported, message))
}

async fn dial_unix(path: &Path, dial: &Dial<'_>) -> io::Result<Socket> {
    if let Some(source) = dial.source {
        let message = format!("a connection to a Unix socket cannot carry the address of {source}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    // EAGAIN would mean a full backlog, which no event tells the end of: it is an error like a refusal.
    let result = connect(&fd, &SocketAddrUnix::new(path)?);
    finish(Socket::new(fd), result, dial.first).await
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
        let backend = BackendAddr::Ip(silent.local_addr().unwrap());
        let dial = Dial { backend: &backend, first: b"x", source: None, mark: None, timeout: Duration::from_secs(1) };
        dial_first(&[dead, alive], port, &dial, end()).await.unwrap();
        let error = dial_first(&[dead], port, &dial, end()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
