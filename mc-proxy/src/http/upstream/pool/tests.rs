//! Pools of connections over real sockets.

use std::{
    future::{Future as _, poll_fn},
    io::Write as _,
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    pin::pin,
    task::{Context, Waker},
};

use ::http::{HeaderMap, HeaderValue, Method, Version};
use tokio::{
    task::JoinHandle,
    task::coop::{consume_budget, has_budget_remaining},
};

use super::*;
use crate::{
    http::{
        authority::Authority,
        h1::{HeadLimits, Target},
        limits::HttpLimits,
        message::{Content, Request, Sink as _, Upstream as _},
        upstream::io::Io,
    },
    net::socket::Socket,
};

const LONG: Duration = Duration::from_secs(60);

/// A connection, and its other end.
fn pair() -> (Io, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    (Io::Plain(Socket::new(OwnedFd::from(near))), far)
}

/// An unused connection to backend 0, and its other end.
fn connected(idle: &Arc<Idle>) -> (h1::Backend, TcpStream) {
    let (io, far) = pair();
    let limits = HeadLimits::of_responses(&HttpLimits::default());
    (h1::Backend::new(io, limits, idle.open(0, 0).unwrap()), far)
}

/// The same of HTTP/2. The task ends with the connection.
async fn connected_h2(idle: &Arc<Idle>) -> (h2::Handle, JoinHandle<()>) {
    let (io, far) = pair();
    far.set_nonblocking(true).unwrap();
    let far = tokio::net::TcpStream::from_std(far).unwrap();
    let server = tokio::spawn(async move {
        let mut server = ::h2::server::handshake(far).await.unwrap();
        while server.accept().await.is_some() {}
    });
    let handle = h2::Handle::open(io, &HttpLimits::default(), idle.open(0, 0).unwrap()).await.unwrap();
    (handle, server)
}

/// Uses up what a task may do before others have their turn.
fn use_budget() {
    while has_budget_remaining() {
        let _ = pin!(consume_budget()).poll(&mut Context::from_waker(Waker::noop()));
    }
}

/// What is not known of a connection, because the task has had its turn, is nothing against it.
#[tokio::test]
async fn a_task_without_budget() {
    let idle = Idle::new(1);
    let mut far = Vec::new();
    for _ in 0..3 {
        let (backend, end) = connected(&idle);
        idle.keep_h1(backend, 3);
        far.push(end);
    }
    // Registers them with the reactor.
    assert!(idle.sweep(Instant::now(), LONG));
    use_budget();
    assert!(!has_budget_remaining() && idle.sweep(Instant::now(), LONG));
    assert_eq!(lock(idle.part()).h1.len(), 3);
    assert!(idle.take_h1(0, LONG).is_some() && !has_budget_remaining());
    // One that the backend has closed is known as such all the same.
    drop(far);
    tokio::task::yield_now().await;
    use_budget();
    assert!(idle.take_h1(0, LONG).is_none());
}

fn request(method: Method) -> Request {
    Request {
        method,
        target: Target::Asterisk,
        authority: Authority::parse(b"a.example").unwrap(),
        host: HeaderValue::from_static("a.example"),
        version: Version::HTTP_11,
        headers: HeaderMap::new(),
        content: Content::None,
        expects_continue: false,
        upgrade: None,
    }
}

/// Behind a response without content the kernel is asked: the reactor may not have heard yet of what came behind it.
#[tokio::test]
async fn what_the_reactor_has_not_heard_of() {
    for (response, is_suspect) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", true),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false),
    ] {
        let (mut backend, mut far) = connected(&Idle::new(1));
        backend.send(&request(Method::OPTIONS), 0);
        poll_fn(|cx| backend.poll_flush(cx)).await.unwrap();
        far.write_all(response.as_bytes()).unwrap();
        poll_fn(|cx| backend.poll_answer(cx)).await.unwrap();
        assert!(backend.is_reusable() && backend.is_fresh(), "{response}");
        far.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        assert_eq!(backend.is_fresh(), !is_suspect, "{response}");
        tokio::task::yield_now().await;
        assert!(!backend.is_fresh(), "{response}");
    }
}

/// An unused connection gives way, whoever keeps it; one that is in use does not.
#[tokio::test]
async fn who_gives_way() {
    let idle = Idle::new(1);
    let (handle, server) = connected_h2(&idle).await;
    let claim = handle.claim();
    idle.keep_h2(handle);
    assert!(idle.open(0, 1).is_none() && idle.evict(0).is_none());
    drop(claim);
    let open = idle.evict(0).unwrap();
    // The place is taken by the new one, and the old one says goodbye by itself.
    assert!(idle.open(0, 1).is_none() && idle.evict(0).is_none());
    tokio::time::timeout(LONG, server).await.unwrap().unwrap();
    assert!(idle.open(0, 1).is_none());
    drop(open);
    assert!(idle.open(0, 1).is_some());
}

/// Those that are kept for a client alone give way to other clients' too.
#[tokio::test]
async fn who_gives_way_among_clients() {
    const CLIENTS: usize = 50;
    let idle = Idle::new(2);
    let clients = (0..CLIENTS).map(|_| idle.of_client()).collect::<Vec<_>>();
    let mut far = Vec::new();
    for client in &clients {
        let (backend, end) = connected(client);
        client.keep_h1(backend, 1);
        far.push(end);
    }
    // Some have theirs in use.
    let used = clients[..10].iter().map(|client| client.take_h1(0, LONG).unwrap()).collect::<Vec<_>>();
    let next = idle.of_client();
    assert!(next.evict(1).is_none(), "of another backend");
    let mut places = Vec::new();
    while let Some(open) = next.evict(0) {
        places.push(open);
    }
    assert_eq!(places.len(), CLIENTS - used.len());
    assert!(lock(&idle.common.of_clients).is_empty());
    // What is kept again is found again, once.
    for (client, backend) in clients.iter().zip(used) {
        client.keep_h1(backend, 1);
    }
    assert_eq!(lock(&idle.common.of_clients).len(), 10);
    assert!(next.evict(0).is_some() && next.evict(0).is_some());
    // Clients that are gone leave nothing behind.
    clients.iter().for_each(|client| client.clear());
    drop(clients);
    assert!(next.evict(0).is_none() && lock(&idle.common.of_clients).is_empty());
}

/// Of many clients that come and go, those that are there are remembered.
#[tokio::test]
async fn clients_that_are_gone() {
    let idle = Idle::new(1);
    for _ in 0..200 {
        let client = idle.of_client();
        let (backend, _far) = connected(&client);
        client.keep_h1(backend, 1);
        client.clear();
    }
    assert!(lock(&idle.common.of_clients).len() < 10);
}
