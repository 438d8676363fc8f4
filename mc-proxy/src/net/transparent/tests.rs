use std::net::{TcpListener, TcpStream};

use rustix::fd::AsFd as _;

use super::*;
use crate::net::addr::PeerAddr;

fn client(addr: &str) -> ClientAddr {
    ClientAddr::from_peer(PeerAddr::new(addr.parse().unwrap()))
}

fn try_bind(source: &str, backend: SocketAddr) -> Result<Socket, TransparentError> {
    let socket = Socket::new(Domain::for_address(backend), Type::STREAM, None).unwrap();
    match bind(socket.as_fd(), backend, client(source), Some(28_016)) {
        Ok(()) => Ok(socket),
        Err(error) => Err(error.downcast().unwrap()),
    }
}

#[test]
fn families_do_not_mix() {
    for (source, backend) in [("192.0.2.1:5000", "[::1]:22"), ("[2001:db8::1]:5000", "127.0.0.1:22")] {
        let error = try_bind(source, backend.parse().unwrap()).unwrap_err();
        assert!(matches!(error, TransparentError::Family { .. }), "{error:?}");
        assert!(error.to_string().contains(source) && error.to_string().contains(backend), "{error}");
        assert!(!is_possible(client(source), &backend.parse().unwrap()));
    }
    // An IPv4 client on a dual-stack listener is an IPv4 client.
    assert!(is_possible(client("[::ffff:192.0.2.1]:5000"), &"127.0.0.1:22".parse().unwrap()));
    assert!(is_possible(client("192.0.2.1:5000"), &"backend.internal:22".parse().unwrap()));
    assert!(!is_possible(client("192.0.2.1:5000"), &"unix:/run/a.sock".parse().unwrap()));
}

#[test]
fn nobody_connects_from_there() {
    for source in ["0.0.0.0:1", "255.255.255.255:1", "224.0.0.1:1"] {
        let error = try_bind(source, "127.0.0.1:22".parse().unwrap()).unwrap_err();
        assert!(matches!(error, TransparentError::Address(_)), "{source}: {error:?}");
    }
    for source in ["[::]:1", "[ff02::1]:1", "[fe80::1]:1"] {
        let error = try_bind(source, "[::1]:22".parse().unwrap()).unwrap_err();
        assert!(matches!(error, TransparentError::Address(_)), "{source}: {error:?}");
    }
}

#[test]
fn a_foreign_address_can_be_had_or_a_right_is_missing() {
    let allowed = probe(28_016);
    let bound = try_bind("198.51.100.77:4711", "127.0.0.1:22".parse().unwrap());
    match (allowed, bound) {
        (Ok(()), Ok(socket)) => {
            assert_eq!(socket.local_addr().unwrap().as_socket(), Some("198.51.100.77:4711".parse().unwrap()));
            assert_eq!(socket.mark().unwrap(), 28_016);
            // Another backend's connection may have the same one, as long as both say so.
            try_bind("198.51.100.77:4711", "127.0.0.1:23".parse().unwrap()).unwrap();
            let elsewhere = try_bind("198.51.100.77:0", "127.0.0.1:23".parse().unwrap()).unwrap();
            assert_ne!(elsewhere.local_addr().unwrap().as_socket().unwrap().port(), 0);
        }
        (Err(TransparentError::Privilege(_)), Err(TransparentError::Privilege(error))) => {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
        (allowed, bound) => panic!("{allowed:?}, {bound:?}"),
    }
}

#[test]
fn a_client_of_this_host_keeps_its_port_and_the_backend_sees_another() {
    if probe(1).is_err() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap().local_addr().unwrap();
    let own = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_ne!(own.local_addr().unwrap(), here);
    let socket = try_bind(&own.local_addr().unwrap().to_string(), listener.local_addr().unwrap()).unwrap();
    let given = socket.local_addr().unwrap().as_socket().unwrap();
    assert_eq!(given.ip(), own.local_addr().unwrap().ip());
    assert!(given.port() != 0 && given != own.local_addr().unwrap());
}

#[test]
fn a_listener_on_every_address_has_the_port_of_every_client() {
    if probe(1).is_err() {
        return;
    }
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = try_bind(&format!("198.51.100.77:{port}"), "127.0.0.1:22".parse().unwrap()).unwrap_err();
    assert!(matches!(error, TransparentError::InUse(_)), "{error:?}");
}

#[test]
fn what_is_local_is_remembered() {
    let backend: IpAddr = "127.0.0.1".parse().unwrap();
    assert!(is_local(backend).unwrap());
    // A documentation address is nobody's here; whether there is a route to it or not.
    let elsewhere: IpAddr = "203.0.113.250".parse().unwrap();
    assert!(!is_local(elsewhere).unwrap());
    assert!(LOCAL.with_borrow(|known| known.contains_key(&elsewhere)));
    assert!(!is_local(elsewhere).unwrap());
}
