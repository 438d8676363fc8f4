//! One direction of a relay: a small state machine that is polled.

use std::task::{Context, Poll, ready};

use rustix::io::Errno;

use super::pipe::Pipe;
use crate::net::{
    memory::{self, Charge, LEAN_READ},
    socket::Socket,
};

/// Large reads in a row, after which a direction is bulk.
const BULK_AFTER: u32 = 4;

/// Small fills of the pipe in a row, after which a direction is no longer bulk.
const CHATTY_AFTER: u32 = 8;

/// Bytes in one read below which copying is cheaper than two system calls on a pipe.
const SMALL: usize = 16 * 1024;

/// Bytes that one direction may move before other connections get their turn.
const BUDGET: usize = 1024 * 1024;

/// Bytes that a side may send after it has been told of the end, and that are dropped: a TLS record.
const LAST_WORDS: usize = 16 * 1024;

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The end that is read from.
    Source,
    /// The end that is written to.
    Target,
}

#[derive(Debug, Default)]
pub(super) struct Direction {
    state: State,
    /// Read, and not yet taken by the target. Without memory while the source is silent.
    pending: Pending,
    is_bulk: bool,
    /// Whether the kernel carries the stream at times, and what is left to user space has to be copied.
    only_copies: bool,
    /// On loan while there is something to move.
    pipe: Option<Pipe>,
    /// In copy mode large reads in a row, in bulk mode small fills in a row.
    streak: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The source has ended; what was read may still have to be written.
    Ended,
    /// The target has taken everything.
    Flushed,
    /// The target has been told that there is no more.
    PassedOn,
    /// The same, though the source has not ended; it has sent so many bytes since.
    Told(usize),
    /// The source has ended after its target was told.
    ToldAndEnded,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    charge: Charge,
    /// 0 <= written <= bytes.len()
    written: usize,
}

impl Direction {
    /// Moves what can be moved. `Ready(Ok)` once the target has taken everything up to the source's end.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Socket,
        target: &mut Socket,
        buffer: &mut [u8],
        transferred: &mut u64,
    ) -> Poll<Result<(), Side>> {
        let mut budget = BUDGET;
        while self.state == State::Open {
            if budget == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let moved = if self.is_bulk {
                ready!(self.poll_splice(cx, source, target, transferred))?
            } else {
                ready!(self.poll_copy(cx, source, target, buffer, transferred))?
            };
            budget = budget.saturating_sub(moved);
        }
        if let State::Told(_) = self.state {
            ready!(self.poll_last_words(cx, source, buffer))?;
        }
        if self.state == State::Ended {
            ready!(self.poll_flush(cx, target, transferred))?;
            self.pending = Pending::default();
            self.pipe = None;
            self.state = State::Flushed;
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the target, once, that the source has ended and that it has everything.
    pub(super) fn pass_on_end(&mut self, target: &Socket) -> Result<(), Side> {
        if self.state == State::Flushed {
            target.shutdown_write().map_err(|_| Side::Target)?;
            self.state = State::PassedOn;
        }
        Ok(())
    }

    /// Tells the target that there will be no more, if it has everything so far.
    pub(super) fn tell(&mut self, target: &Socket) -> Result<(), Side> {
        if self.state == State::Open && !self.holds_bytes() {
            target.shutdown_write().map_err(|_| Side::Target)?;
            self.state = State::Told(0);
            self.pending = Pending::default();
            self.pipe = None;
        }
        Ok(())
    }

    /// Whether something was read that is not written yet.
    pub(super) fn holds_bytes(&self) -> bool {
        self.pending.rest().is_some() || self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0)
    }

    /// Whether everything that was read is written, and there will be more.
    pub(super) fn is_clean(&self) -> bool {
        self.state == State::Open && !self.is_bulk && !self.holds_bytes()
    }

    /// From here on the kernel carries the stream at times.
    pub(super) fn only_copy(&mut self) {
        self.only_copies = true;
        self.streak = 0;
    }

    /// The source's end was seen too early.
    pub(super) fn reopen(&mut self) {
        self.state = State::Open;
    }

    /// Whether the source has not ended, and the target has not been told that it has.
    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether the target was told before the source had ended.
    pub(super) fn is_told(&self) -> bool {
        matches!(self.state, State::Told(_) | State::ToldAndEnded)
    }

    /// Whether the source sent more than its last words after that.
    pub(super) fn has_talked_on(&self) -> bool {
        matches!(self.state, State::Told(said) if said > LAST_WORDS)
    }

    fn poll_last_words(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Socket,
        buffer: &mut [u8],
    ) -> Poll<Result<(), Side>> {
        while let State::Told(said) = self.state {
            match ready!(source.poll_recv(cx, buffer)).map_err(|_| Side::Source)? {
                0 => self.state = State::ToldAndEnded,
                read => self.state = State::Told(said + read),
            }
            if self.has_talked_on() {
                return Poll::Ready(Err(Side::Source));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Socket,
        target: &mut Socket,
        buffer: &mut [u8],
        transferred: &mut u64,
    ) -> Poll<Result<usize, Side>> {
        ready!(self.poll_flush(cx, target, transferred))?;
        // What the target does not take has to be held.
        let room = if memory::has_room(buffer.len()) { buffer.len() } else { LEAN_READ.min(buffer.len()) };
        let Poll::Ready(read) = source.poll_recv(cx, buffer.get_mut(..room).unwrap_or_default()) else {
            self.pending = Pending::default();
            return Poll::Pending;
        };
        let read = read.map_err(|_| Side::Source)?;
        if read == 0 {
            self.state = State::Ended;
            return Poll::Ready(Ok(0));
        }
        let bytes = buffer.get(..read).unwrap_or_default();
        // What follows at once is the end, which then needs no packet of its own.
        let sent = if source.is_ending() { target.poll_send_more(cx, bytes) } else { target.poll_send(cx, bytes) };
        let written = match sent {
            Poll::Ready(written) => written.map_err(|_| Side::Target)?,
            Poll::Pending => 0,
        };
        *transferred += written as u64;
        self.pending.keep(bytes.get(written..).unwrap_or_default());
        self.streak = if read >= SMALL { self.streak + 1 } else { 0 };
        if self.streak >= BULK_AFTER && !self.only_copies {
            self.streak = 0;
            self.is_bulk = true;
        }
        Poll::Ready(Ok(read))
    }

    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Socket,
        target: &mut Socket,
        transferred: &mut u64,
    ) -> Poll<Result<usize, Side>> {
        ready!(self.poll_flush_pending(cx, target, transferred))?;
        // What is left of the time before it was bulk.
        self.pending = Pending::default();
        if self.pipe.is_none() {
            target.bound_unsent();
            self.pipe = Pipe::take();
        }
        let Some(pipe) = &mut self.pipe else {
            self.is_bulk = false;
            return Poll::Ready(Ok(0));
        };
        if pipe.held() == 0 {
            let Poll::Ready(filled) = source.poll_read_with(cx, |fd| pipe.fill(fd), |_| false) else {
                self.pipe = None;
                return Poll::Pending;
            };
            self.filled(filled.map_err(|_| Side::Source)?);
        } else if pipe.has_room() {
            // While the target is busy the pipe takes more. "Would block" may mean the pipe or the source here, so it
            // says nothing of the source.
            match source.try_read_with(|fd| pipe.fill(fd)) {
                Ok(filled) => self.filled(filled),
                Err(Errno::AGAIN) => {}
                Err(_) => return Poll::Ready(Err(Side::Source)),
            }
        }
        let written = ready!(self.poll_empty_pipe(cx, target, transferred))?;
        if self.streak >= CHATTY_AFTER && self.pipe.as_ref().is_some_and(|pipe| pipe.held() == 0) {
            self.streak = 0;
            self.is_bulk = false;
            self.pipe = None;
        }
        Poll::Ready(Ok(written))
    }

    fn filled(&mut self, bytes: usize) {
        if bytes == 0 {
            self.state = State::Ended;
        }
        self.streak = if bytes < SMALL { self.streak + 1 } else { 0 };
    }

    /// Writes everything that has been read.
    fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        target: &mut Socket,
        transferred: &mut u64,
    ) -> Poll<Result<(), Side>> {
        ready!(self.poll_flush_pending(cx, target, transferred))?;
        while ready!(self.poll_empty_pipe(cx, target, transferred))? > 0 {}
        Poll::Ready(Ok(()))
    }

    fn poll_flush_pending(
        &mut self,
        cx: &mut Context<'_>,
        target: &mut Socket,
        transferred: &mut u64,
    ) -> Poll<Result<(), Side>> {
        while let Some(bytes) = self.pending.rest() {
            let written = ready!(target.poll_send(cx, bytes)).map_err(|_| Side::Target)?;
            *transferred += written as u64;
            self.pending.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Moves what the target takes at once; 0 when the pipe is empty.
    fn poll_empty_pipe(
        &mut self,
        cx: &mut Context<'_>,
        target: &mut Socket,
        transferred: &mut u64,
    ) -> Poll<Result<usize, Side>> {
        let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0) else { return Poll::Ready(Ok(0)) };
        let written = ready!(target.poll_write_with(cx, |fd| pipe.empty(fd))).map_err(|_| Side::Target)?;
        if written == 0 {
            return Poll::Ready(Err(Side::Target));
        }
        *transferred += written as u64;
        Poll::Ready(Ok(written))
    }
}

#[cfg(test)]
impl Direction {
    /// Whether it is bulk, and what it holds beyond itself: bytes of memory, and whether a pipe.
    pub(super) fn holds(&self) -> (bool, usize, bool) {
        (self.is_bulk, self.pending.bytes.capacity(), self.pipe.is_some())
    }
}

impl Pending {
    fn keep(&mut self, bytes: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.written = 0;
        let capacity = self.bytes.capacity();
        // A lean read is paid with the connection.
        self.charge.force(if capacity > LEAN_READ { capacity as u64 } else { 0 });
    }

    fn rest(&self) -> Option<&[u8]> {
        self.bytes.get(self.written..).filter(|rest| !rest.is_empty())
    }

    fn advance(&mut self, written: usize) {
        self.written += written;
    }
}
