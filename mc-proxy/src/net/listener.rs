//! Listening sockets: one for each worker and listener, all on the same address.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
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
/// `inherited` are sockets that listen on the address already. There may be more of them than `count`: each has its share
/// of the connections, and has to be accepted from. Where there are fewer, and no more can be bound beside them, as beside
/// those of another user, they are had several times: every worker then wakes up for every connection.
///
/// # Errors
/// "address already in use" also when another process shares the port on purpose: two daemons on one port would each
/// get half of the connections.
pub fn bind(addr: &ListenAddr, count: usize, inherited: Vec<OwnedFd>) -> io::Result<Vec<Bound>> {
    if inherited.is_empty() {
        bind_one(addr, false)?;
    }
    let mut sockets = inherited.into_iter().map(adopt).collect::<io::Result<Vec<_>>>()?;
    let known = sockets.len();
    for index in known..count {
        let another = bind_one(addr, true).and_then(|socket| socket.listen(BACKLOG.into()).map(|()| socket));
        let socket = match another {
            Ok(socket) => socket,
            Err(error) if known == 0 => return Err(error),
            Err(_) => sockets[index % known].try_clone()?,
        };
        sockets.push(socket);
    }
    Ok(sockets.into_iter().map(|socket| Bound(socket.into())).collect())
}

/// Makes a socket that somebody else has made like our own.
fn adopt(fd: OwnedFd) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::from(fd);
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    // Urgent data of clients is passed on in line; so is this inherited.
    socket.set_out_of_band_inline(true)?;
    // Of one's own user it lets others be bound beside it from now on.
    socket.set_reuse_port(true)?;
    socket.listen(BACKLOG.into())?;
    Ok(socket)
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
    /// The same socket once more, to pass it on.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Registers with the reactor of the current runtime.
    ///
    /// # Errors
    /// When the reactor cannot take it.
    pub fn into_listener(self) -> io::Result<Listener> {
        #[expect(deprecated, reason = "its successor is unsafe for the sake of types that lie about their descriptor")]
        AsyncFd::with_interest(self.0, Interest::READABLE).map(Listener)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    fn addr_of(socket: &TcpListener) -> ListenAddr {
        socket.local_addr().unwrap().to_string().parse().unwrap()
    }

    /// Connects until every socket has got a connection.
    fn all_are_reached(addr: SocketAddr, sockets: Vec<Bound>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let listeners: Vec<_> = sockets.into_iter().map(|bound| bound.into_listener().unwrap()).collect();
        let mut reached = vec![false; listeners.len()];
        for _ in 0..10_000 {
            drop(TcpStream::connect(addr).unwrap());
            for (listener, reached) in listeners.iter().zip(&mut reached) {
                while listener.try_accept().unwrap().is_some() {
                    *reached = true;
                }
            }
            if reached.iter().all(|reached| *reached) {
                return;
            }
        }
        panic!("{reached:?}");
    }

    #[test]
    fn sockets_are_bound_beside_inherited_ones() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = addr_of(&first);
        let queued = TcpStream::connect(first.local_addr().unwrap()).unwrap();
        let bound = bind(&addr, 3, vec![first.into()]).unwrap();
        assert_eq!(bound.len(), 3);
        drop(queued);
        all_are_reached(addr.socket(), bound);
    }

    #[test]
    fn more_are_inherited_than_there_are_workers() {
        let addr = addr_of(&TcpListener::bind("127.0.0.1:0").unwrap());
        let inherited = bind(&addr, 4, Vec::new()).unwrap().into_iter().map(|bound| bound.0).collect();
        assert!(bind(&addr, 1, Vec::new()).is_err(), "the port is in use");
        all_are_reached(addr.socket(), bind(&addr, 2, inherited).unwrap());
    }
}
