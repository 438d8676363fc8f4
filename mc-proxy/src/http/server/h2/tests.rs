//! Clients of HTTP/2 over real sockets, and backends that they are served from.

use std::{net::SocketAddr, os::fd::OwnedFd};

use ::h2::client;
use ::http::{HeaderMap, Method, Request, StatusCode, header};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc::Receiver,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    config::Proxy,
    conn::{Counters, Edge, Listening, Local, Offence, Offences},
    desired::{BackendProtocol, Listener, Mode, Route, Target},
    firewall::Firewall,
    http::{access, websocket},
    net::{
        addr::{ClientAddr, PeerAddr},
        memory, relay,
        resolve::Resolver,
        socket::Socket,
    },
};

mod abuse;
mod requests;

const PATIENCE: Duration = Duration::from_secs(10);

type Served = JoinHandle<(Outcome, u64, u64)>;

struct Bench {
    site: Site,
    edge: Arc<Edge>,
    offences: Receiver<Offence>,
    drain: relay::Drain,
}

/// Limits that tests need not wait for.
fn limits() -> HttpLimits {
    HttpLimits { max_resets: 10, max_control_frames: 20, ..HttpLimits::default() }
}

impl Bench {
    /// A client's connection on a route to `backend`.
    fn new(backend: SocketAddr, protocol: BackendProtocol, http: HttpLimits) -> Self {
        let (reporter, offences) = Offences::queue();
        let drain = relay::Drain::new(CancellationToken::new(), Duration::MAX);
        let edge = Arc::new(Edge {
            firewall: Firewall::default(),
            resolver: Resolver::default(),
            counters: Counters::default(),
            offences: reporter,
            drops: crate::control::drops(),
            proxy: Proxy { connect_timeout: PATIENCE, idle_timeout: PATIENCE, ..Proxy::default() },
            splicing: relay::Splicing::userspace(),
            memory: memory::Budget::new(0),
            geoip: Default::default(),
            http,
            http_trusted: Default::default(),
            http_counters: Default::default(),
            redact_clients: false,
            access: None,
        });
        let mut target = Target::passthrough(backend.to_string().parse().unwrap());
        (target.mode, target.backend_protocol) = (Mode::L7, protocol);
        let route = Route { hostname: "a.example".parse().unwrap(), alpn: Vec::new(), target };
        let listener = Listener { routes: vec![route], ..Listener::new(":443".parse().unwrap()) };
        let client = ClientAddr::from_peer(PeerAddr::new("192.0.2.1:5000".parse().unwrap()));
        let site = Site::new(
            Arc::new(Local { edge: Arc::clone(&edge), drain: drain.clone() }),
            Arc::new(Listening::new(&listener)),
            client,
            false,
            false,
            Some("a.example".parse().unwrap()),
            Default::default(),
            None,
            Some("1.3"),
            Box::default(),
        );
        Self { site, edge, offences, drain }
    }

    /// Serves a connection whose other end is returned.
    async fn serve(self) -> (Served, TcpStream, Around) {
        let (near, far) = pair().await;
        let served = tokio::spawn(serve_over(Arc::new(self.site), near));
        (served, far, Around { edge: self.edge, offences: self.offences, drain: self.drain })
    }
}

/// What is left to look at.
struct Around {
    edge: Arc<Edge>,
    offences: Receiver<Offence>,
    drain: relay::Drain,
}

/// Where nobody listens.
fn nowhere() -> SocketAddr {
    "127.0.0.1:9".parse().unwrap()
}

async fn pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (near, _) = listener.accept().await.unwrap();
    (Socket::new(OwnedFd::from(near.into_std().unwrap())), far)
}

/// A backend of HTTP/1.1 that answers one request, whose head it hands over, with `answer`, and then echoes until the end.
async fn backend(answer: impl FnOnce(&str) -> String + Send + 'static) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        socket.write_all(answer(&head).as_bytes()).await.unwrap();
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        head
    });
    (addr, task)
}

/// A client of HTTP/2, with its connection.
async fn client(far: TcpStream) -> (client::SendRequest<Bytes>, JoinHandle<Result<(), ::h2::Error>>) {
    let (sender, connection) = client::handshake(far).await.unwrap();
    (sender.ready().await.unwrap(), tokio::spawn(connection))
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("https://a.example{path}")).body(()).unwrap()
}

/// All of a response's content, and its trailers.
async fn read(mut body: RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    (bytes, body.trailers().await.unwrap())
}

async fn soon<T>(wait: impl Future<Output = T>) -> T {
    timeout(PATIENCE, wait).await.unwrap()
}
