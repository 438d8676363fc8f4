//! Connecting to a backend.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::Path,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    addr::{BackendAddr, ClientAddr},
    race::{Winner, attempt_delay, race},
    resolve::{Addresses, Resolver},
    socket::{Socket, retry},
    transparent::{self, TransparentError},
};

/// Between two attempts at a Unix socket whose queue is full.
const BACKLOG_PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(50);

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
    /// The connection was to carry the client's address, and cannot.
    #[error("{0}")]
    Transparent(#[source] TransparentError),
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
    let connected = match dial.backend {
        BackendAddr::Ip(addr) => dial_ip(*addr, dial).await,
        BackendAddr::Unix(path) => dial_unix(path, dial).await,
        BackendAddr::Name { host, port } => {
            let addresses = resolver.lookup(host).await.map_err(DialError::Resolve)?;
            dial_name(&addresses, *port, dial).await
        }
    };
    connected.map_err(|error| match error.downcast::<TransparentError>() {
        Ok(error) => DialError::Transparent(error),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => DialError::Timeout(dial.timeout),
        Err(error) => DialError::Connect(error),
    })
}

async fn dial_name(addresses: &Addresses, port: u16, dial: &Dial<'_>) -> io::Result<Socket> {
    let now = Instant::now();
    let is_possible = |ip: &IpAddr| dial.source.is_none_or(|source| transparent::is_one_family(source.ip(), *ip));
    let count = addresses.in_order(now).filter(is_possible).count();
    let mut in_order = addresses.in_order(now).filter(is_possible).map(|ip| SocketAddr::new(ip, port));
    if let (0, Some(source)) = (count, dial.source) {
        return Err(transparent::other_family(source, dial.backend).into());
    }
    if count == 1
        && let Some(addr) = in_order.next()
    {
        return dial_ip(addr, dial).await;
    }
    let delay = attempt_delay(dial.timeout, count);
    // Behind a pointer: it is as large as the rest of a connection, and seldom needed.
    let Winner { mut socket, addr, sent, is_late } =
        Box::pin(race(in_order, delay, dial.first, |addr| connecting(addr, dial))).await?;
    if is_late {
        addresses.prefer(addr.ip(), Instant::now());
    }
    socket.send_all(dial.first.get(sent..).unwrap_or_default()).await?;
    Ok(socket)
}

async fn dial_ip(addr: SocketAddr, dial: &Dial<'_>) -> io::Result<Socket> {
    connected(connecting(addr, dial)?, dial.first).await
}

/// A socket that is being connected.
pub(super) fn connecting(addr: SocketAddr, dial: &Dial<'_>) -> io::Result<Socket> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    if !dial.first.is_empty() {
        // The last acknowledgement of the handshake goes out with the first bytes, and not as a packet of its own.
        sockopt::set_tcp_quickack(&fd, false)?;
    }
    if let Some(source) = dial.source {
        transparent::bind(fd.as_fd(), addr, source, dial.mark)?;
    }
    match connect(&fd, &addr) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(Socket::new(fd)),
        Err(error) => Err(match dial.source {
            // The client's address and port are connected to this one already.
            Some(source) if error == Errno::ADDRNOTAVAIL => TransparentError::InUse(source).into(),
            Some(_) | None => error.into(),
        }),
    }
}

/// Sends the first bytes. While the connection is being made a send would block, even one of nothing; a failure to
/// connect is the send's error.
async fn connected(mut socket: Socket, first: &[u8]) -> io::Result<Socket> {
    let sent = poll_fn(|cx| socket.poll_send(cx, first)).await?;
    socket.send_all(first.get(sent..).unwrap_or_default()).await?;
    Ok(socket)
}

async fn dial_unix(path: &Path, dial: &Dial<'_>) -> io::Result<Socket> {
    if let Some(source) = dial.source {
        return Err(transparent::other_family(source, dial.backend).into());
    }
    let addr = SocketAddrUnix::new(path)?;
    let mut pause = *BACKLOG_PAUSE.start();
    loop {
        let fd =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
        match retry(|| connect(&fd, &addr)) {
            Ok(()) => return connected(Socket::new(fd), dial.first).await,
            // The listener's queue is full, and no event tells when that ends. The dial's deadline ends the wait.
            Err(Errno::AGAIN) => sleep(pause).await,
            Err(error) => return Err(error.into()),
        }
        pause = (2 * pause).min(*BACKLOG_PAUSE.end());
    }
}

#[cfg(test)]
mod tests;
