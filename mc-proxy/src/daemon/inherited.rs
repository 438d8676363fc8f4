//! Listening sockets that this process did not make: from the service manager (`LISTEN_FDS`, sd_listen_fds(3)), which
//! has them from a socket unit or from an earlier daemon, or from the daemon whose place this one takes.
//!
//! A listening socket that never closes loses nothing: what the kernel has queued for one daemon, the next one accepts.

use std::{io, net::SocketAddr, os::fd::OwnedFd};

use listenfd::ListenFd;
use rustix::net::sockopt;
use socket2::SockRef;

use crate::net::addr::ListenAddr;

/// Begins the names that this daemon gives to what it stores.
const PREFIX: &str = "mc-proxy.";

/// What has been inherited and not been taken.
#[derive(Debug, Default)]
pub(super) struct Inherited(Vec<Socket>);

#[derive(Debug)]
struct Socket {
    /// As the service manager calls it.
    name: String,
    addr: SocketAddr,
    is_v6_only: bool,
    fd: OwnedFd,
}

impl Inherited {
    /// What the service manager has passed on. What is no listening TCP socket is left where it is, with a warning.
    pub(super) fn from_env() -> Self {
        // The names are for this process only if the descriptors are.
        let names = match sd_notify::listen_fds_with_names() {
            Ok(passed) => passed.map(|(_, name)| name).collect::<Vec<_>>(),
            Err(error) => {
                tracing::warn!(%error, "what the service manager says of its descriptors is not understood");
                Vec::new()
            }
        };
        if names.is_empty() {
            return Self::default();
        }
        let mut passed = ListenFd::from_env();
        let mut inherited = Self::default();
        for (index, name) in names.into_iter().enumerate() {
            let taken = passed.take_tcp_listener(index).and_then(|socket| match socket {
                Some(socket) => inherited.add(name.clone(), socket.into()),
                None => Ok(()),
            });
            if let Err(error) = taken {
                tracing::warn!(name, %error, "the service manager has passed on what is of no use here");
            }
        }
        inherited
    }

    /// Adds a socket.
    ///
    /// # Errors
    /// When it does not listen for TCP.
    pub(super) fn add(&mut self, name: String, fd: OwnedFd) -> io::Result<()> {
        let is_tcp = sockopt::socket_protocol(&fd)? == Some(rustix::net::ipproto::TCP);
        if !is_tcp || !sockopt::socket_acceptconn(&fd)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a TCP socket that listens"));
        }
        let addr = SockRef::from(&fd).local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let is_v6_only = addr.is_ipv6() && SockRef::from(&fd).only_v6()?;
        self.0.push(Socket { name, addr, is_v6_only, fd });
        Ok(())
    }

    /// The sockets of a listener.
    pub(super) fn take(&mut self, listener: &ListenAddr) -> Vec<OwnedFd> {
        let is_v6_only = listener.socket().is_ipv6() && !listener.is_dual_stack();
        let is_its = |socket: &mut Socket| socket.addr == listener.socket() && socket.is_v6_only == is_v6_only;
        self.0.extract_if(.., is_its).map(|socket| socket.fd).collect()
    }

    /// Closes what no listener has taken. The names come back, of what has to be taken out of the store too, or it would
    /// go on listening there.
    pub(super) fn close(self) -> Vec<String> {
        for Socket { name, addr, .. } in &self.0 {
            tracing::warn!(%addr, name, "an inherited socket is closed, for no listener has its address");
        }
        let mut names: Vec<_> = self.0.into_iter().map(|socket| socket.name).collect();
        names.retain(|name| name.starts_with(PREFIX));
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// What a listener's sockets are called in the store: a name must not have colons, and at most 255 characters.
pub(super) fn name(listener: &ListenAddr) -> String {
    format!("{PREFIX}{}", listener.as_str().replace(':', "."))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_listener_takes_what_has_its_address() {
        let [first, second] = ["127.0.0.1:0", "[::1]:0"].map(|addr| TcpListener::bind(addr).unwrap());
        let addrs = [&first, &second].map(|socket| socket.local_addr().unwrap());
        let mut inherited = Inherited::default();
        inherited.add("a".into(), first.try_clone().unwrap().into()).unwrap();
        inherited.add("a".into(), first.into()).unwrap();
        SockRef::from(&second).set_only_v6(true).unwrap_or(());
        inherited.add(format!("{PREFIX}x"), second.into()).unwrap();
        assert_eq!(inherited.take(&addrs[0].to_string().parse().unwrap()).len(), 2);
        assert_eq!(inherited.take(&addrs[0].to_string().parse().unwrap()).len(), 0);
        assert_eq!(inherited.take(&format!(":{}", addrs[1].port()).parse().unwrap()).len(), 0, "another address");
        assert_eq!(inherited.close(), ["mc-proxy.x"]);
    }

    #[test]
    fn what_does_not_listen_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(Inherited::default().add(String::new(), client.into()).is_err());
        let other = std::os::unix::net::UnixDatagram::unbound().unwrap();
        assert!(Inherited::default().add(String::new(), other.into()).is_err());
    }

    #[test]
    fn names_have_no_colons() {
        assert_eq!(name(&"[2001:db8::1]:443".parse().unwrap()), "mc-proxy.[2001.db8..1].443");
    }
}
