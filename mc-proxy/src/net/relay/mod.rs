//! The byte relay of an established pair, in user space.
//!
//! Each direction moves bytes in one of two ways, chosen by what it does: small reads are copied through a buffer that
//! all connections of a worker share, a stream of large reads goes through a pipe (`splice(2)`) from the worker's pool.
//! An idle direction holds neither, so an idle connection costs its sockets and its task.
//!
//! The end of one side is passed on when everything before it has been (half-close); a reset of one side becomes a reset
//! of the other, so that nobody takes a cut stream for a whole one. A kernel relay (SOCKMAP) would take the place of
//! [`run`] for pairs that it suits: it gets the same two sockets and gives the same [`Ended`].

mod direction;
mod pipe;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use self::direction::{Direction, Side};
use super::socket::Socket;

/// How a relay ended. Whoever gets this closes the sockets if it is [`Ended::Closed`], and otherwise drops them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides have ended, and each got everything that the other sent.
    Closed,
    /// The client's side failed or was reset.
    ClientFailed,
    /// The backend's side failed or was reset.
    BackendFailed,
    /// No byte in either direction for the idle timeout.
    Idle,
}

/// Bytes that have been passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transferred {
    /// From the client to the backend.
    pub client: u64,
    /// From the backend to the client.
    pub backend: u64,
}

/// Relays until both sides have ended, one has failed, or nothing has moved for `idle`. `transferred` is kept current,
/// for a relay that is dropped half-way.
pub async fn run(client: &mut Socket, backend: &mut Socket, idle: Duration, transferred: &mut Transferred) -> Ended {
    // The first look would most likely be in vain: the client waits for an answer to what it has sent already.
    if client.register().is_err() {
        return Ended::ClientFailed;
    }
    if backend.register().is_err() {
        return Ended::BackendFailed;
    }
    let mut up = Direction::default();
    let mut down = Direction::default();
    let mut moved_at = Instant::now();
    let mut deadline = pin!(sleep_until(moved_at + idle));
    poll_fn(|cx| {
        let before = *transferred;
        if let Poll::Ready(ended) = poll_both(cx, client, backend, &mut up, &mut down, transferred) {
            return Poll::Ready(ended);
        }
        if *transferred != before {
            moved_at = Instant::now();
        }
        // The timer is moved when it fires, not with every byte.
        while deadline.as_mut().poll(cx).is_ready() {
            let next = moved_at + idle;
            if next <= Instant::now() {
                return Poll::Ready(Ended::Idle);
            }
            deadline.as_mut().reset(next);
        }
        Poll::Pending
    })
    .await
}

fn poll_both(
    cx: &mut Context<'_>,
    client: &mut Socket,
    backend: &mut Socket,
    up: &mut Direction,
    down: &mut Direction,
    transferred: &mut Transferred,
) -> Poll<Ended> {
    let (up_done, down_done) = BUFFER.with_borrow_mut(|buffer| {
        let up_done = up.poll(cx, client, backend, buffer, &mut transferred.client).map_err(client_to_backend);
        let down_done = down.poll(cx, backend, client, buffer, &mut transferred.backend).map_err(backend_to_client);
        (up_done, down_done)
    });
    let (up_done, down_done) = match (up_done, down_done) {
        (Poll::Ready(Err(ended)), _) | (_, Poll::Ready(Err(ended))) => return Poll::Ready(ended),
        // The close that follows tells the ends what is left to tell.
        (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ended::Closed),
        (up_done, down_done) => (up_done.is_ready(), down_done.is_ready()),
    };
    // A side that has ended may still be reset, and then takes nothing from the other any more.
    if up_done {
        if let Err(side) = up.pass_on_end(backend) {
            return Poll::Ready(client_to_backend(side));
        }
        return client.poll_failed(cx).map(|_| Ended::ClientFailed);
    }
    if down_done {
        if let Err(side) = down.pass_on_end(client) {
            return Poll::Ready(backend_to_client(side));
        }
        return backend.poll_failed(cx).map(|_| Ended::BackendFailed);
    }
    Poll::Pending
}

fn client_to_backend(side: Side) -> Ended {
    match side {
        Side::Source => Ended::ClientFailed,
        Side::Target => Ended::BackendFailed,
    }
}

fn backend_to_client(side: Side) -> Ended {
    match side {
        Side::Source => Ended::BackendFailed,
        Side::Target => Ended::ClientFailed,
    }
}

/// Bytes that one read may take. With less, bulk pays in system calls; with more, the buffer leaves the cache.
const BUFFER_SIZE: usize = 64 * 1024;

thread_local! {
    /// Filled and emptied within one poll.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_SIZE].into());
}
