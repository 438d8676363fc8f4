//! Every socket that the daemon listens on, and what others are told of them.

use std::{collections::BTreeMap, io, path::Path};

use super::{
    Failure,
    inherited::{self, Inherited},
    notify::Named,
    takeover::{self, Doorbell},
};
use crate::{
    admin::AdminSocket,
    config::Grpc,
    desired::Listener,
    exit::Exit,
    net::listener::{self, Bound},
};

/// Sockets for every listener: a vector of `workers` of them each, or of more that were inherited.
pub(super) fn bind(
    listeners: &[Listener],
    in_file: &[Listener],
    workers: usize,
    inherited: &mut Inherited,
) -> Result<Vec<Vec<Bound>>, Failure> {
    let bind_one = |listener: &Listener| {
        let inherited = inherited.take(&listener.addr);
        if !inherited.is_empty() {
            let (listener, sockets) = (&listener.addr, inherited.len());
            tracing::info!(%listener, sockets, "listening sockets were inherited");
        }
        listener::bind(&listener.addr, workers, inherited).map_err(|error| {
            let port = listener.addr.socket().port();
            let (exit, remedy) = if error.kind() == io::ErrorKind::AddrInUse {
                (Exit::Failure, format!("address already in use; `ss -tlnp | grep ':{port}'` shows by whom"))
            } else if error.kind() == io::ErrorKind::PermissionDenied {
                let remedy = "ports below 1024 need CAP_NET_BIND_SERVICE, which the unit file grants";
                (Exit::NoPermission, format!("{error}; {remedy}"))
            } else {
                (Exit::Failure, error.to_string())
            };
            let origin = if in_file.iter().any(|known| known.addr == listener.addr) {
                ""
            } else {
                "; it comes from the database, which wins over the file: to start from the file, take a snapshot and \
                 move the database away"
            };
            Failure::new(exit, format!("listener {}: {remedy}{origin}", listener.addr))
        })
    };
    listeners.iter().map(bind_one).collect()
}

/// Every listening socket once more, to be kept for the next daemon.
pub(super) fn duplicate(listeners: &[Listener], bound: &[Vec<Bound>]) -> io::Result<Vec<Named>> {
    let each =
        listeners.iter().zip(bound).flat_map(|(listener, sockets)| sockets.iter().map(move |bound| (listener, bound)));
    each.map(|(listener, bound)| Ok(Named { name: inherited::name(&listener.addr), fd: bound.duplicate()? })).collect()
}

pub(super) fn doorbell(database: &Path) -> Option<Doorbell> {
    let path = takeover::path(database);
    match Doorbell::bind(path.clone()) {
        Ok(doorbell) => Some(doorbell),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no other daemon can take over from this one");
            None
        }
    }
}

pub(super) fn admin(grpc: &Grpc) -> Result<AdminSocket, Failure> {
    AdminSocket::bind(grpc).map_err(|error| Failure::because(Exit::Failure, "the admin API", &error))
}

/// The listeners' ports, and whether the kernel limits the rate of new connections to them. Behind PROXY protocol they are
/// the proxy's, and user space limits its clients; so it does for other listeners on such a port.
pub(super) fn ports(listeners: &[Listener], has_limit: bool) -> BTreeMap<u16, bool> {
    let mut ports = BTreeMap::new();
    for listener in listeners {
        *ports.entry(listener.addr.socket().port()).or_insert(has_limit) &= listener.proxy.is_none();
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::AcceptProxy;

    #[test]
    fn the_kernel_does_not_limit_proxies() {
        let listener = |addr: &str| Listener::new(addr.parse().unwrap());
        let behind = |addr: &str| Listener { proxy: Some(AcceptProxy::default()), ..listener(addr) };
        let listeners = [
            listener(":443"),
            behind("10.0.0.1:444"),
            listener("10.0.0.2:444"),
            listener("10.0.0.2:445"),
            behind(":446"),
        ];
        let expected = [(443, true), (444, false), (445, true), (446, false)];
        assert_eq!(ports(&listeners, true), BTreeMap::from(expected));
        assert!(ports(&listeners, false).values().all(|is_limited| !is_limited));
    }
}
