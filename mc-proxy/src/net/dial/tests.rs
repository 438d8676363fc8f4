use std::{
    net::{IpAddr, TcpListener},
    os::unix::net::{UnixListener, UnixStream},
};

use super::{super::race::tests::Street, *};

const PATIENCE: Duration = Duration::from_secs(20);

fn attempt<'a>(backend: &'a BackendAddr, first: &'a [u8]) -> Dial<'a> {
    Dial { backend, first, source: None, mark: None, timeout: PATIENCE }
}

fn received(mut stream: impl io::Read, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn an_address_that_is_silent_is_overtaken_and_not_tried_first_again() {
    let street = Street::new();
    let listener = street.open(2);
    let [silent, open] = [[127, 0, 0, 1], [127, 0, 0, 2]].map(IpAddr::from);
    let addresses = Addresses::of([silent, open]);
    let backend = BackendAddr::Name { host: "app".into(), port: street.port };
    for _ in 0..2 {
        let _socket = dial_name(&addresses, street.port, &attempt(&backend, b"hello")).await.unwrap();
        assert_eq!(received(listener.accept().unwrap().0, 5), b"hello");
        assert_eq!(addresses.in_order(Instant::now()).next(), Some(open));
    }
    let short = Dial { timeout: Duration::from_millis(300), ..attempt(&backend, b"hello") };
    let only = Addresses::of([silent]);
    let error = timeout(short.timeout, dial_name(&only, street.port, &short)).await;
    assert!(error.is_err(), "{error:?}");
}

#[tokio::test]
async fn a_silent_backend_is_a_timeout_and_a_closed_port_a_refusal() {
    let street = Street::new();
    let backend = BackendAddr::Ip(SocketAddr::from(([127, 0, 0, 1], street.port)));
    let short = Dial { timeout: Duration::from_millis(300), ..attempt(&backend, b"hello") };
    assert!(matches!(dial(&short, &Resolver::default()).await, Err(DialError::Timeout(_))));
    let closed = BackendAddr::Ip(SocketAddr::from(([127, 0, 0, 3], street.port)));
    for first in [&b"hello"[..], b""] {
        let error = dial(&attempt(&closed, first), &Resolver::default()).await.unwrap_err();
        assert!(
            matches!(&error, DialError::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn without_first_bytes_the_connection_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = BackendAddr::Ip(listener.local_addr().unwrap());
    let mut socket = dial(&attempt(&backend, b""), &Resolver::default()).await.unwrap();
    let (accepted, _) = listener.accept().unwrap();
    socket.send_all(b"late").await.unwrap();
    assert_eq!(received(accepted, 4), b"late");

    let street = Street::new();
    let silent = BackendAddr::Ip(SocketAddr::from(([127, 0, 0, 1], street.port)));
    let short = Dial { timeout: Duration::from_millis(300), ..attempt(&silent, b"") };
    assert!(matches!(dial(&short, &Resolver::default()).await, Err(DialError::Timeout(_))));
}

#[tokio::test]
async fn a_unix_socket_whose_queue_is_full_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backend.sock");
    let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(0).unwrap();
    let listener = UnixListener::from(std::os::fd::OwnedFd::from(listener));
    let _queued = UnixStream::connect(&path).unwrap();
    let backend = BackendAddr::Unix(path);

    let short = Dial { timeout: Duration::from_millis(200), ..attempt(&backend, b"hello") };
    assert!(matches!(dial(&short, &Resolver::default()).await, Err(DialError::Timeout(_))));

    let resolver = Resolver::default();
    let patient = attempt(&backend, b"hello");
    let (socket, queued) = tokio::join!(dial(&patient, &resolver), async {
        sleep(Duration::from_millis(100)).await;
        listener.accept().unwrap()
    });
    let _socket = socket.unwrap();
    drop(queued);
    assert_eq!(received(listener.accept().unwrap().0, 5), b"hello");
}

#[tokio::test]
async fn a_unix_socket_that_is_not_there_is_an_error_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let backend = BackendAddr::Unix(directory.path().join("none.sock"));
    let error = dial(&attempt(&backend, b"hello"), &Resolver::default()).await.unwrap_err();
    assert!(matches!(&error, DialError::Connect(error) if error.kind() == io::ErrorKind::NotFound), "{error:?}");
}
