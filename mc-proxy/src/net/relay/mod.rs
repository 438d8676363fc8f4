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

/// How a relay ended. The sockets are closed by whoever gets this; see [`Ended::is_clean`].
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

impl Ended {
    /// Whether closing may be orderly; otherwise both sides are to be reset.
    pub fn is_clean(self) -> bool {
        self == Self::Closed
    }
}

/// Relays until both sides have ended, one has failed, or nothing has moved for `idle`. `transferred` is kept current,
/// for a relay that is dropped half-way.
pub async fn run(client: &mut Socket, backend: &mut Socket, idle: Duration, transferred: &mut Transferred) -> Ended {
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
    BUFFER.with_borrow_mut(|buffer| {
        let up = up.poll(cx, client, backend, buffer, &mut transferred.client);
        if let Poll::Ready(Err(side)) = up {
            return Poll::Ready(if side == Side::Source { Ended::ClientFailed } else { Ended::BackendFailed });
        }
        let down = down.poll(cx, backend, client, buffer, &mut transferred.backend);
        if let Poll::Ready(Err(side)) = down {
            return Poll::Ready(if side == Side::Source { Ended::BackendFailed } else { Ended::ClientFailed });
        }
        if up.is_ready() && down.is_ready() { Poll::Ready(Ended::Closed) } else { Poll::Pending }
    })
}

/// Bytes that one read may take. With less, bulk pays in system calls; with more, the buffer leaves the cache.
const BUFFER_SIZE: usize = 64 * 1024;

thread_local! {
    /// Filled and emptied within one poll.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_SIZE].into());
}
