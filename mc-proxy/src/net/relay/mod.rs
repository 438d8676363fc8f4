//! The byte relay of an established pair.
//!
//! Each direction moves bytes in one of two ways, chosen by what it does: small reads are copied through a buffer that
//! all connections of a worker share, a stream of large reads goes through a pipe (`splice(2)`) from the worker's pool.
//! An idle direction holds neither, so an idle connection costs its sockets and its task.
//!
//! The end of one side is passed on when everything before it has been (half-close); a reset of one side becomes a reset
//! of the other, so that nobody takes a cut stream for a whole one.
//!
//! There are two engines behind [`run`]: user space, with which every pair begins, and the kernel ([`kernel`]), which takes
//! over pairs that [`policy`] finds suitable. The ends, the idle timer and the drain are the same code for both.

mod contention;
mod direction;
mod drain;
mod kernel;
mod pipe;
mod policy;
mod splicing;
mod switch;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use self::{
    direction::{Direction, Side},
    kernel::{Both, Carried},
    policy::{Company, Talk},
};
pub use self::{
    drain::Drain,
    kernel::{Figures, Kernel, SpliceError},
    splicing::Splicing,
    switch::{Splice, Switch},
};
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

/// What a relay goes by.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Without a byte in either direction for so long, the pair ends.
    pub idle: Duration,
    /// Begins when the daemon is about to end.
    pub drain: &'a Drain,
    /// What may carry the pair.
    pub splicing: &'a Splicing,
    /// The mode of the pair's route, if it has one of its own.
    pub mode: Option<Splice>,
}

impl Terms<'_> {
    /// What a pair is to be carried by now.
    fn mode_now(&self, is_draining: bool) -> Splice {
        if is_draining { Splice::Userspace } else { self.splicing.mode(self.mode) }
    }
}

/// Relays until both sides have ended, one has failed, or nothing has moved for [`Terms::idle`]. When this is dropped
/// half-way, too, `transferred` says what has been passed on.
///
/// Once the drain has begun, a pair on which nothing has moved for [`Drain::quiet`] is told: each side gets a FIN as soon as
/// it has everything that came before, and is expected to end too. Its last words, such as a TLS `close_notify`, are
/// dropped; more than that ends the pair.
pub async fn run(client: &mut Socket, backend: &mut Socket, terms: Terms<'_>, transferred: &mut Transferred) -> Ended {
    let mut relay = Relay::new(client, backend, terms, transferred);
    if let Err(ended) = relay.begin() {
        return ended;
    }
    let mut deadline = pin!(sleep_until(later(relay.moved_at, terms.idle)));
    let mut begun = pin!(terms.drain.begun());
    let mut is_announced = false;
    poll_fn(|cx| {
        if !is_announced {
            // Once is enough to be woken: a task keeps its waker.
            is_announced = true;
            let _ = begun.as_mut().poll(cx);
        }
        if let Poll::Ready(ended) = relay.poll(cx) {
            return Poll::Ready(ended);
        }
        if terms.drain.has_begun() && !relay.is_draining {
            relay.is_draining = true;
            deadline.as_mut().reset(later(relay.moved_at, terms.idle.min(terms.drain.quiet())));
            if relay.carried.is_some() {
                // In user space from here on.
                cx.waker().wake_by_ref();
            }
        }
        if let Some(soon) = relay.look_again() {
            deadline.as_mut().reset(soon);
        }
        // The timer is moved when it fires, not with every byte.
        while deadline.as_mut().poll(cx).is_ready() {
            match relay.deadline(cx) {
                Ok(next) => deadline.as_mut().reset(next),
                Err(ended) => return Poll::Ready(ended),
            }
        }
        Poll::Pending
    })
    .await
}

/// A pair while it is relayed.
struct Relay<'a> {
    client: &'a mut Socket,
    backend: &'a mut Socket,
    terms: Terms<'a>,
    transferred: &'a mut Transferred,
    up: Direction,
    down: Direction,
    /// The program's part, once it has one.
    carried: Option<Box<Carried>>,
    talk: Talk,
    /// The worker's messages and the time when the pair's proof began.
    proof: (u64, Instant),
    /// After a refusal; [`Splice::Sockmap`] alone asks by the clock.
    may_ask_at: Option<Instant>,
    moved_at: Instant,
    is_draining: bool,
    /// The last wait for what nothing wakes the task for.
    pause: Duration,
}

impl<'a> Relay<'a> {
    fn new(
        client: &'a mut Socket,
        backend: &'a mut Socket,
        terms: Terms<'a>,
        transferred: &'a mut Transferred,
    ) -> Self {
        Self {
            client,
            backend,
            terms,
            transferred,
            up: Direction::default(),
            down: Direction::default(),
            carried: None,
            talk: Talk::default(),
            proof: (0, Instant::now()),
            may_ask_at: None,
            moved_at: Instant::now(),
            is_draining: false,
            pause: Duration::ZERO,
        }
    }

    fn begin(&mut self) -> Result<(), Ended> {
        // The first look would most likely be in vain: the client waits for an answer to what it has sent already.
        self.client.register().map_err(|_| Ended::ClientFailed)?;
        self.backend.register().map_err(|_| Ended::BackendFailed)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let before = *self.transferred;
        if let Poll::Ready(ended) = self.poll_both(cx) {
            let was_told = self.up.is_told() || self.down.is_told();
            return Poll::Ready(if self.up.has_talked_on() || self.down.has_talked_on() {
                Ended::CutOff
            } else if ended == Ended::Closed && was_told {
                Ended::Told
            } else {
                ended
            });
        }
        if *self.transferred != before {
            self.moved_at = Instant::now();
            self.pause = Duration::ZERO;
        }
        if self.carried.is_none() {
            let moved = self.transferred.client - before.client + self.transferred.backend - before.backend;
            let is_wanted = match self.terms.mode_now(self.is_draining) {
                Splice::Auto => self.suits_the_kernel(moved),
                Splice::Sockmap => self.may_ask_at.is_none_or(|at| at <= Instant::now()),
                Splice::Userspace => false,
            };
            if is_wanted && let Err(ended) = self.hand_over(cx) {
                return Poll::Ready(ended);
            }
        }
        Poll::Pending
    }

    /// Whether the pair has proved to be one for the kernel, so many bytes having moved.
    fn suits_the_kernel(&mut self, moved: u64) -> bool {
        if moved == 0 {
            return false;
        }
        let before = self.talk.small();
        self.talk.note_in_userspace(moved);
        if self.talk.small() == 0 {
            return false;
        }
        let messages = MESSAGES.get() + 1;
        MESSAGES.set(messages);
        if before == 0 {
            self.proof = (messages - 1, self.moved_at);
        }
        if !self.talk.is_chatty() {
            return false;
        }
        let (messages_before, since) = self.proof;
        let company = Company { messages: messages - messages_before, time: self.moved_at - since };
        let is_suited = company.is_sparse(self.talk.small()) || contention::is_contended(self.moved_at);
        if !is_suited {
            self.talk.begin();
        }
        is_suited
    }

    /// Lets the kernel carry the pair, if it can be left at this moment.
    fn hand_over(&mut self, cx: &Context<'_>) -> Result<(), Ended> {
        let Ok(kernel) = self.terms.splicing.kernel() else { return Ok(()) };
        // The program must not meet a piece that has been read in part, and there is none in a queue that is empty.
        if !self.up.is_clean()
            || !self.down.is_clean()
            || !self.client.has_nothing_to_read().map_err(|_| Ended::ClientFailed)?
            || !self.backend.has_nothing_to_read().map_err(|_| Ended::BackendFailed)?
        {
            return Ok(());
        }
        match Carried::new(kernel, self.client, self.backend) {
            Ok(carried) => {
                self.carried = Some(Box::new(carried));
                self.up.only_copy();
                self.down.only_copy();
                self.client.bound_unsent();
                self.backend.bound_unsent();
                // What has come in the meantime is carried over by hand.
                cx.waker().wake_by_ref();
            }
            Err(error) => {
                tracing::debug!(%error, "a pair stays in user space");
                self.talk.start_over();
                // Where the kernel does not take such a socket, it will not take it later either.
                let is_final = error.kind() == std::io::ErrorKind::Unsupported;
                self.may_ask_at = Some(later(Instant::now(), if is_final { Duration::MAX } else { ASK_AGAIN }));
            }
        }
        Ok(())
    }

    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let (up_done, down_done) = match BUFFER.with_borrow_mut(|buffer| self.poll_directions(cx, buffer)) {
            // The close that follows tells the ends what is left to tell.
            Ok((Poll::Ready(()), Poll::Ready(()))) => return Poll::Ready(Ended::Closed),
            Ok((up, down)) => (up.is_ready(), down.is_ready()),
            Err(ended) => return Poll::Ready(ended),
        };
        // A side that has ended may still be reset, and then takes nothing from the other any more.
        if up_done {
            if let Err(side) = self.up.pass_on_end(self.backend) {
                return Poll::Ready(client_to_backend(side));
            }
            return self.client.poll_failed(cx).map(|_| Ended::ClientFailed);
        }
        if down_done {
            if let Err(side) = self.down.pass_on_end(self.client) {
                return Poll::Ready(backend_to_client(side));
            }
            return self.backend.poll_failed(cx).map(|_| Ended::BackendFailed);
        }
        Poll::Pending
    }

    fn poll_directions(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Result<(Poll<()>, Poll<()>), Ended> {
        let Self { client, backend, up, down, transferred, terms, is_draining, .. } = self;
        if let Some(carried) = &mut self.carried {
            let (terms, is_draining) = (*terms, *is_draining);
            return carried.poll(&mut Both { cx, client, backend, up, down, buffer, transferred, terms, is_draining });
        }
        let up = up.poll(cx, client, backend, buffer, &mut transferred.client).map_err(client_to_backend);
        let down = down.poll(cx, backend, client, buffer, &mut transferred.backend).map_err(backend_to_client);
        match (up, down) {
            (Poll::Ready(Err(ended)), _) | (_, Poll::Ready(Err(ended))) => Err(ended),
            (up, down) => Ok((up.map(drop), down.map(drop))),
        }
    }

    /// When to look again though nothing may wake the task, if that is so.
    fn look_again(&mut self) -> Option<Instant> {
        let carried = self.carried.as_mut().filter(|carried| carried.is_waiting())?;
        if carried.has_moved(self.client, self.backend) {
            self.pause = Duration::ZERO;
        }
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        Some(Instant::now() + self.pause)
    }

    /// When the timer has fired: its next time, or the end.
    fn deadline(&mut self, cx: &Context<'_>) -> Result<Instant, Ended> {
        let now = Instant::now();
        let is_waiting = self.carried.as_ref().is_some_and(|carried| carried.is_waiting());
        if let Some(carried) = &mut self.carried {
            match carried.quiet_for(self.client, self.backend) {
                Ok(quiet) => self.moved_at = self.moved_at.max(now.checked_sub(quiet).unwrap_or(now)),
                // The connection has failed; the next look finds it.
                Err(error) => tracing::debug!(%error, "a pair could not be asked for its last byte"),
            }
        }
        let mut next = later(self.moved_at, self.terms.idle);
        if next <= now {
            return Err(Ended::Idle);
        }
        if is_waiting {
            cx.waker().wake_by_ref();
        }
        if self.is_draining && (self.up.is_open() || self.down.is_open()) {
            let quiet_at = later(self.moved_at, self.terms.drain.quiet());
            // Before the kernel has sent what it has under way there is nothing to be told.
            if quiet_at <= now && self.carried.as_ref().is_none_or(|carried| carried.is_in_userspace()) {
                self.up.tell(self.backend).map_err(client_to_backend)?;
                self.down.tell(self.client).map_err(backend_to_client)?;
                // To read what the sides say to it.
                cx.waker().wake_by_ref();
            }
            // A direction whose target has not taken everything is told later.
            next = next.min(quiet_at.max(now + TELL_AGAIN));
        }
        Ok(next)
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        if let Some(carried) = self.carried.take() {
            let kernel = carried.end(self.client, self.backend);
            self.transferred.client += kernel.client;
            self.transferred.backend += kernel.backend;
        }
    }
}

fn later(instant: Instant, duration: Duration) -> Instant {
    // As far away as the timer goes.
    const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
    instant + duration.min(FAR)
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

/// How soon, and then how late, a pair is looked at that waits for what the kernel does not tell.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a pair that the kernel has refused is not offered to it.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Bytes that one read may take. With less, bulk pays in system calls; with more, the buffer leaves the cache.
const BUFFER_SIZE: usize = 64 * 1024;

thread_local! {
    /// Small messages that the worker has carried in user space.
    static MESSAGES: Cell<u64> = const { Cell::new(0) };

    /// Filled and emptied within one poll.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_SIZE].into());
}
