//! Pools of connections over real sockets.

use std::{
    future::Future as _,
    os::fd::OwnedFd,
    pin::pin,
    task::{Context, Waker},
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::coop::{consume_budget, has_budget_remaining},
};

use super::*;
use crate::{
    http::{h1::HeadLimits, limits::HttpLimits, upstream::io::Io},
    net::socket::Socket,
};

const LONG: Duration = Duration::from_secs(60);

/// An unused connection to backend 0, and its other end.
async fn kept(idle: &Arc<Idle>) -> (h1::Backend, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (near, _) = listener.accept().await.unwrap();
    let io = Io::Plain(Socket::new(OwnedFd::from(near.into_std().unwrap())));
    let limits = HeadLimits::of_responses(&HttpLimits::default());
    (h1::Backend::new(io, limits, idle.open(0, 0).unwrap()), far)
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
        let (backend, end) = kept(&idle).await;
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
