//! Listening sockets: one for each worker and listener, all on the same address.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{SocketFlags, acceptfrom_with},
};
use socket2::{Domain, Protocol, SockAddr, Type};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    addr::{ListenAddr, PeerAddr},
    socket::retry,
};

/// Connections that the kernel holds ready for one socket; it lowers this to `net.core.somaxconn`.
pub const BACKLOG: u16 = 65_535;

/// A bound socket that is not yet accepted from.
#[derive(Debug)]
pub struct Bound(OwnedFd);

/// One worker's end of a listener.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

/// Binds `count` sockets to one address; the kernel spreads new connections over them (`SO_REUSEPORT`, Linux 3.9).
///
/// # Errors
/// "address already in use" also when another process shares the port on purpose: two daemons on one port would each
/// get half of the connections.
pub fn bind(addr: &ListenAddr, count: usize) -> io::Result<Vec<Bound>> {
    bind_one(addr, false)?;
    (0..count)
        .map(|_| {
            let socket = bind_one(addr, true)?;
            socket.listen(BACKLOG.into())?;
            Ok(Bound(socket.into()))
        })
        .collect()
}

fn bind_one(addr: &ListenAddr, is_shared: bool) -> io::Result<socket2::Socket> {
    let domain = Domain::for_address(addr.socket());
    let socket = socket2::Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(!addr.is_dual_stack())?;
    }
    // Accepted sockets inherit it, which saves a call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SockAddr::from(addr.socket()))?;
    Ok(socket)
}

impl Bound {
    /// Registers with the reactor of the current runtime.
    ///
    /// # Errors
    /// When the reactor cannot take it.
    pub fn into_listener(self) -> io::Result<Listener> {
        #[expect(deprecated, reason = "its successor is unsafe for the sake of types that lie about their descriptor")]
        AsyncFd::with_interest(self.0, Interest::READABLE).map(Listener)
    }
}

impl Listener {
    /// The next connection: a non-blocking socket.
    ///
    /// # Errors
    /// As `accept4(2)`, without the errors of connections that are gone already.
    pub async fn accept(&self) -> io::Result<(OwnedFd, PeerAddr)> {
        loop {
            let mut guard = self.0.readable().await?;
            match Self::accept_now(guard.get_inner()) {
                Ok(Some(accepted)) => return Ok(accepted),
                Ok(None) => guard.clear_ready(),
                Err(error) => return Err(error),
            }
        }
    }

    /// A connection that is waiting, if there is one.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub fn try_accept(&self) -> io::Result<Option<(OwnedFd, PeerAddr)>> {
        Self::accept_now(self.0.get_ref())
    }

    fn accept_now(listener: &OwnedFd) -> io::Result<Option<(OwnedFd, PeerAddr)>> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match retry(|| acceptfrom_with(listener.as_fd(), flags)) {
                Ok((fd, Some(addr))) => match std::net::SocketAddr::try_from(addr) {
                    Ok(addr) => return Ok(Some((fd, PeerAddr::new(addr)))),
                    Err(error) => return Err(error.into()),
                },
                Ok((_, None)) | Err(Errno::CONNABORTED | Errno::PROTO | Errno::HOSTUNREACH | Errno::NETUNREACH) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
