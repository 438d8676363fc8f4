//! Transparent mode: the connection to a backend carries the address and the port of the client.
//!
//! `IP_TRANSPARENT` (ip(7)) lets a socket have an address that is not this host's. The backend answers to the client, and
//! the answer has to come back to this socket: that takes a rule and a route, which the operator sets up
//! (docs/transparent.md). Where the backend is on this host, packets to it carry a mark, the backend's socket takes it
//! over (`net.ipv4.tcp_fwmark_accept`), and the rule sends what is marked to a table in which every address is local.
//! A backend elsewhere gets no mark: the rule would keep the connection's own packets on this host. Its answers are
//! recognised by where they come from.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::BorrowedFd,
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::time::Instant;

use super::{
    addr::{BackendAddr, ClientAddr},
    fib,
};

/// How long it is remembered whether an address is this host's.
const FRESH: Duration = Duration::from_secs(5);

/// Addresses that are remembered, for each worker; there are only so many as routes have backends.
const MAX_REMEMBERED: usize = 1024;

/// Why a connection cannot carry its client's address.
#[derive(Debug, thiserror::Error)]
pub enum TransparentError {
    /// An IPv4 packet has no room for an IPv6 address, and there is no honest translation.
    #[error(
        "the client {client} and the backend {backend} are not of one address family, which transparent mode needs"
    )]
    Family {
        /// Whose address it would be.
        client: ClientAddr,
        /// As configured.
        backend: String,
    },
    /// Nobody can be connected from there: a multicast, broadcast, unspecified or link-local address.
    #[error("{0} is no address that a connection can come from")]
    Address(ClientAddr),
    /// The client's address and port are in use on this host, or for another connection to this backend.
    #[error("there is a connection or a listener with the client's address and port {0} already")]
    InUse(ClientAddr),
    /// A right is missing.
    #[error("transparent mode needs CAP_NET_ADMIN, which the unit file grants")]
    Privilege(#[source] io::Error),
    /// The system has no sockets to give.
    #[error("a socket for transparent mode cannot be made")]
    System(#[source] io::Error),
}

impl From<TransparentError> for io::Error {
    fn from(error: TransparentError) -> Self {
        let kind = match &error {
            TransparentError::Family { .. } | TransparentError::Address(_) => io::ErrorKind::InvalidInput,
            TransparentError::InUse(_) => io::ErrorKind::AddrInUse,
            TransparentError::Privilege(_) => io::ErrorKind::PermissionDenied,
            TransparentError::System(cause) => cause.kind(),
        };
        Self::new(kind, error)
    }
}

/// Whether a connection to a backend may carry a client's address at all. Of a name that has yet to be resolved, it may.
pub fn is_possible(client: ClientAddr, backend: &BackendAddr) -> bool {
    match backend {
        BackendAddr::Ip(addr) => is_one_family(client.ip(), addr.ip()),
        BackendAddr::Name { .. } => true,
        BackendAddr::Unix(_) => false,
    }
}

/// Whether a socket for an address can carry a client's.
pub fn is_one_family(client: IpAddr, backend: IpAddr) -> bool {
    client.is_ipv4() == backend.is_ipv4()
}

/// Gives a socket that is about to be connected to `backend` the address and the port of the client. `mark` goes onto
/// its packets if the backend is on this host.
///
/// The port is the client's own, or the backend's log would blame whoever else is behind the same address. Two
/// connections with one client address and port are possible as long as they lead to different backends. If a program
/// on this host is the client, it has the port itself: then any other is taken.
///
/// # Errors
/// A [`TransparentError`] inside, or whatever the system says.
pub fn bind(fd: BorrowedFd<'_>, backend: SocketAddr, client: ClientAddr, mark: Option<u32>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    check(client, backend)?;
    let source = client.socket();
    set_transparent(&socket, source.is_ipv4()).map_err(named)?;
    if let Some(mark) = mark
        && is_local(backend.ip())?
    {
        socket.set_mark(mark).map_err(named)?;
    }
    if source.port() == 0 {
        return socket.bind(&source.into());
    }
    // Else a connection of the same client to another backend, or one that has just ended, would be in the way.
    socket.set_reuse_address(true)?;
    match socket.bind(&source.into()) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_local(source.ip())? => {
            socket.set_reuse_address(false)?;
            socket.bind(&SocketAddr::new(source.ip(), 0).into())
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(TransparentError::InUse(client).into()),
        result => result,
    }
}

/// That no address of a backend is of the client's family.
pub fn other_family(client: ClientAddr, backend: &BackendAddr) -> TransparentError {
    TransparentError::Family { client, backend: backend.to_string() }
}

/// Whether this process may do all that transparent mode needs.
///
/// # Errors
/// [`TransparentError::Privilege`] or [`TransparentError::System`].
pub fn probe(mark: u32) -> Result<(), TransparentError> {
    let tried = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|socket| {
        set_transparent(&socket, true)?;
        socket.set_mark(mark)
    });
    tried.map_err(|error| {
        let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
        if is_denied { TransparentError::Privilege(error) } else { TransparentError::System(error) }
    })
}

fn check(client: ClientAddr, backend: SocketAddr) -> io::Result<()> {
    let ip = client.ip();
    if !is_one_family(ip, backend.ip()) {
        return Err(other_family(client, &BackendAddr::Ip(backend)).into());
    }
    let is_nobodys = match ip {
        IpAddr::V4(ip) => ip == Ipv4Addr::UNSPECIFIED || ip == Ipv4Addr::BROADCAST || ip.is_multicast(),
        // A link-local address without its link leads nowhere.
        IpAddr::V6(ip) => ip == Ipv6Addr::UNSPECIFIED || ip.is_multicast() || ip.is_unicast_link_local(),
    };
    if is_nobodys {
        return Err(TransparentError::Address(client).into());
    }
    Ok(())
}

fn set_transparent(socket: &Socket, is_ipv4: bool) -> io::Result<()> {
    if is_ipv4 { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

fn named(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return TransparentError::Privilege(error).into();
    }
    error
}

thread_local! {
    static LOCAL: RefCell<HashMap<IpAddr, (bool, Instant)>> = RefCell::new(HashMap::new());
}

/// Whether an address is one of this host's. Asking the kernel takes some microseconds, which most connections do
/// without.
///
/// # Errors
/// The kernel's, but that there is no route.
fn is_local(ip: IpAddr) -> io::Result<bool> {
    if ip.is_loopback() {
        return Ok(true);
    }
    let now = Instant::now();
    let known = LOCAL.with_borrow(|known| known.get(&ip).copied());
    if let Some((is_local, _)) = known.filter(|(_, at)| now.saturating_duration_since(*at) < FRESH) {
        return Ok(is_local);
    }
    let is_local = match fib::toward(ip) {
        Ok(hop) => hop.is_local,
        // `connect` says the same, in its own words.
        Err(error) if is_unreachable(&error) => false,
        Err(error) => return Err(error),
    };
    LOCAL.with_borrow_mut(|known| {
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(ip, (is_local, now));
    });
    Ok(is_local)
}

fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable)
}

#[cfg(test)]
mod tests;
