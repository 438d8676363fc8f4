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
mod drain;
mod pipe;
mod switch;
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
pub use self::{drain::Drain, switch::Switch};
use super::socket::Socket;

/// How a relay ended. Whoever gets this closes the sockets if it [is orderly](Ended::is_orderly), and otherwise drops them.
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
    /// The pair was quiet during the drain, its sides were told so by FIN, and both have ended.
    Told,
    /// The same, but a side went on sending after it was told, and its bytes could not be passed on.
    CutOff,
}

impl Ended {
    /// Whether both sides have ended in order, and the sockets are to be closed in order too.
    pub fn is_orderly(self) -> bool {
        matches!(self, Self::Closed | Self::Told)
    }
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
///
/// Once `drain` has begun, a pair on which nothing has moved for [`Drain::quiet`] is told: each side gets a FIN as soon as
/// it has everything that came before, and is expected to end too. Its last words, such as a TLS `close_notify`, are
/// dropped; more than that ends the pair.
pub async fn run(
    client: &mut Socket,
    backend: &mut Socket,
    idle: Duration,
    drain: &Drain,
    transferred: &mut Transferred,
) -> Ended {
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
    let mut begun = pin!(drain.begun());
    let mut is_announced = false;
    let mut is_draining = false;
    poll_fn(|cx| {
        if !is_announced {
            // Once is enough to be woken: a task keeps its waker.
            is_announced = true;
            let _ = begun.as_mut().poll(cx);
        }
        let before = *transferred;
        if let Poll::Ready(ended) = poll_both(cx, client, backend, &mut up, &mut down, transferred) {
            return Poll::Ready(match ended {
                _ if up.has_talked_on() || down.has_talked_on() => Ended::CutOff,
                Ended::Closed if up.is_told() || down.is_told() => Ended::Told,
                ended => ended,
            });
        }
        if *transferred != before {
            moved_at = Instant::now();
        }
        if drain.has_begun() && !is_draining {
            is_draining = true;
            deadline.as_mut().reset(later(moved_at, idle.min(drain.quiet())));
        }
        // The timer is moved when it fires, not with every byte.
        while deadline.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let mut next = later(moved_at, idle);
            if next <= now {
                return Poll::Ready(Ended::Idle);
            }
            if is_draining && (up.is_open() || down.is_open()) {
                let quiet_at = later(moved_at, drain.quiet());
                if quiet_at <= now {
                    if let Err(side) = up.tell(backend) {
                        return Poll::Ready(client_to_backend(side));
                    }
                    if let Err(side) = down.tell(client) {
                        return Poll::Ready(backend_to_client(side));
                    }
                    // To read what the sides say to it.
                    cx.waker().wake_by_ref();
                }
                // A direction whose target has not taken everything is told later.
                next = next.min(quiet_at.max(now + TELL_AGAIN));
            }
            deadline.as_mut().reset(next);
        }
        Poll::Pending
    })
    .await
}

fn later(instant: Instant, duration: Duration) -> Instant {
    // As far away as the timer goes.
    const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
    instant + duration.min(FAR)
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

/// How long a direction that could not be told yet waits for its target.
const TELL_AGAIN: Duration = Duration::from_millis(250);

/// Bytes that one read may take. With less, bulk pays in system calls; with more, the buffer leaves the cache.
const BUFFER_SIZE: usize = 64 * 1024;

thread_local! {
    /// Filled and emptied within one poll.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_SIZE].into());
}
