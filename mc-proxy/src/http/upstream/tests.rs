//! Backends over real sockets, as requests find them.

use std::{net::SocketAddr, num::NonZeroUsize, thread::available_parallelism};

use ::h2::server;
use ::http::{HeaderValue, Method, Version};
use tokio::{
    net::TcpListener,
    time::{advance, pause, resume},
};

use super::*;
use crate::{
    desired::BackendProtocol,
    http::{authority::Authority, h1, h2::STREAM_WINDOW, message::Content},
    net::{addr::PeerAddr, memory},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A backend of HTTP/2 whose connections take so many streams at a time.
async fn backend(streams: u32) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut builder = server::Builder::new();
                builder.max_concurrent_streams(streams).max_pending_accept_reset_streams(1_000);
                let mut server = builder.handshake::<_, Bytes>(stream).await.unwrap();
                while let Some(Ok(_)) = server.accept().await {}
            });
        }
    });
    addr
}

/// Requests of one client for a route to `backend`.
struct Bench {
    backends: Arc<Backends>,
    resolver: Resolver,
    limits: HttpLimits,
}

impl Bench {
    fn new(backend: SocketAddr, limits: HttpLimits) -> Self {
        let mut target = Target::passthrough(backend.to_string().parse().unwrap());
        target.backend_protocol = BackendProtocol::H2;
        Self { backends: Backends::new(&target, None, None), resolver: Resolver::default(), limits }
    }

    async fn connect(&self, is_fresh: bool) -> Result<Connected, ConnectError> {
        let terms =
            Terms { resolver: &self.resolver, limits: &self.limits, connect_timeout: PATIENCE, transparent_mark: 0 };
        let wanted = Wanted {
            client: ClientAddr::from_peer(PeerAddr::new("192.0.2.1:5000".parse().unwrap())),
            server_name: None,
            announced: None,
            is_grpc: false,
            is_upgrade: false,
            own: None,
            is_fresh,
            terms,
        };
        self.backends.connect(&wanted).await.map_err(|(error, _)| error)
    }
}

fn request() -> Request {
    Request {
        method: Method::OPTIONS,
        target: h1::Target::Asterisk,
        authority: Authority::parse(b"a.example").unwrap(),
        host: HeaderValue::from_static("a.example"),
        version: Version::HTTP_11,
        headers: HeaderMap::new(),
        content: Content::None,
        expects_continue: false,
        upgrade: None,
    }
}

/// After a failure none is taken that may have failed likewise, and one that has been made since serves all.
#[tokio::test]
async fn connections_after_a_failure() {
    let bench = Bench::new(backend(1).await, HttpLimits::default());
    let is_new = async |is_fresh| bench.connect(is_fresh).await.unwrap().connecting.is_some();
    assert!(is_new(false).await && !is_new(false).await);
    pause();
    advance(connect::RECENT).await;
    resume();
    assert!(is_new(true).await && !is_new(true).await && !is_new(false).await);
}

/// What may wait in a stream is charged from the beginning to its end.
#[tokio::test]
async fn memory_for_streams() {
    let budget = memory::Budget::new(2 * u64::from(STREAM_WINDOW) + 1);
    budget.open_account();
    let bench = Bench::new(backend(1).await, HttpLimits::default());
    let (one, two) = (bench.connect(false).await.unwrap(), bench.connect(false).await.unwrap());
    assert_eq!(budget.used(), 2 * u64::from(STREAM_WINDOW));
    assert!(matches!(bench.connect(false).await, Err(ConnectError::Memory)));
    let exchanging = one.send(&request(), 0, PATIENCE).await.unwrap();
    assert!(matches!(bench.connect(false).await, Err(ConnectError::Memory)));
    drop(exchanging);
    assert!(bench.connect(false).await.is_ok());
    drop(two);
    assert_eq!(budget.used(), 0);
}

/// At the limit workers share a connection instead of taking its place from each other; one with all its streams in use is
/// not shared, and does not give way.
#[tokio::test]
async fn workers_at_the_limit() {
    let limits = HttpLimits { max_backend_connections: 1, ..HttpLimits::default() };
    let bench = Bench::new(backend(1).await, limits);
    assert!(bench.connect(false).await.unwrap().connecting.is_some());
    let shared_by = async |worker| {
        pool::set_home(worker);
        bench.backends.idle.take_h2(0, Duration::MAX).is_none()
            && bench.connect(false).await.is_ok_and(|connected| connected.connecting.is_none())
    };
    for worker in 1..available_parallelism().map_or(1, NonZeroUsize::get) {
        assert!(shared_by(worker).await, "worker {worker}");
    }
    let used = bench.connect(false).await.unwrap();
    assert!(matches!(bench.connect(false).await, Err(ConnectError::Full)));
    assert!(matches!(bench.connect(true).await, Err(ConnectError::Full)));
    drop(used);
    pause();
    advance(connect::RECENT).await;
    resume();
    // After a failure it gives way.
    pool::set_home(0);
    let is_new = bench.connect(true).await.unwrap().connecting.is_some();
    assert!(is_new && bench.connect(false).await.is_ok());
}

/// Where there can be no other connection, one on which much was given up serves still.
#[tokio::test]
async fn a_connection_out_of_favour() {
    for (max, is_shared) in [(1, true), (2, false)] {
        let bench =
            Bench::new(backend(100).await, HttpLimits { max_backend_connections: max, ..HttpLimits::default() });
        let kept = bench.connect(false).await.unwrap().send(&request(), 0, PATIENCE).await.unwrap();
        for _ in 0..=h2::RESETS_MAX {
            let given_up = bench.connect(false).await.unwrap();
            assert!(given_up.connecting.is_none());
            drop(given_up.send(&request(), 0, PATIENCE).await.unwrap());
        }
        assert_eq!(bench.connect(false).await.unwrap().connecting.is_none(), is_shared, "{max} connections at most");
        drop(kept);
    }
}
