//! One direction of a pair that is spliced in the kernel: who carries its bytes, and how it changes hands.
//!
//! ```text
//!        no credit, the source's end, or a kind of stream that user space is better for
//!   Redirecting ───────────────► Draining ──the target has written what was redirected──► Pumping
//!        ▲                                                                                  │
//!        └────────────────────── everything that was passed has been carried over ──────────┘
//! ```
//! A direction begins with pumping, without credit: what its source had received before is carried over first.

use std::{
    io,
    os::fd::AsFd as _,
    task::{Context, Poll},
};

use super::pair::{Slot, written, written_in_all};
use crate::net::{
    relay::{
        Splice,
        direction::{Direction, Side},
        policy,
    },
    socket::Socket,
};
use mc_proxy_common::user::tcp::{self, TcpInfo};

/// Bytes that a direction may have redirected and its target not yet written, beyond the target's own send buffer.
const WINDOW: u64 = 256 * 1024;

/// With less, every message would find itself beyond the limit.
const SMALLEST_CREDIT: u64 = 4 * 1024;

/// What a direction takes part with, in one look.
pub(super) struct Look<'a, 'cx> {
    pub(super) cx: &'a mut Context<'cx>,
    pub(super) slot: Slot<'a>,
    pub(super) source: &'a mut Socket,
    pub(super) target: &'a mut Socket,
    pub(super) buffer: &'a mut [u8],
    /// Bytes that user space has carried over.
    pub(super) moved: &'a mut u64,
    pub(super) slots: &'a super::slots::Slots,
    pub(super) mode: Splice,
}

#[derive(Debug)]
pub(super) struct Spliced {
    state: State,
    /// What the target had written when the pair was handed over.
    base: u64,
    /// Carried over by user space since then. `pumped <= passed`.
    pumped: u64,
    /// Credit that is given out for it.
    credit: u64,
    /// The mark that was set with it.
    mark: u64,
    /// The target had not written what it could have when credit was last given.
    is_behind: bool,
    /// What the target had written at the last look.
    seen: u64,
    /// Whether the source is known to have ended.
    has_ended: bool,
    latched: u64,
    /// Wants another look soon, though nothing may wake it.
    is_waiting: bool,
    flow: policy::Flow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Redirecting,
    Draining,
    Pumping,
}

impl Spliced {
    /// The direction to `target`, which is about to become one.
    pub(super) fn new(target: &Socket) -> io::Result<Self> {
        Ok(Self {
            state: State::Pumping,
            base: written_in_all(target.as_fd())?,
            pumped: 0,
            credit: 0,
            mark: u64::MAX,
            is_behind: false,
            seen: 0,
            has_ended: false,
            latched: 0,
            is_waiting: false,
            flow: policy::Flow::default(),
        })
    }

    /// The source sends no more.
    pub(super) fn note_end(&mut self) {
        self.has_ended = true;
    }

    /// Whether the kernel carries the bytes, and nobody has to be registered for reading or writing.
    pub(super) fn is_redirecting(&self) -> bool {
        self.state == State::Redirecting
    }

    /// Whether user space carries the bytes, and the kernel has none under way.
    pub(super) fn is_pumping(&self) -> bool {
        self.state == State::Pumping
    }

    /// How often it was taken back into user space.
    pub(super) fn latched(&self) -> u64 {
        self.latched
    }

    /// Whether to look again soon.
    pub(super) fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Whether the target has written something since the last question.
    pub(super) fn has_moved(&mut self, target: &Socket) -> bool {
        let written = self.written(target).unwrap_or(self.seen);
        written != std::mem::replace(&mut self.seen, written)
    }

    /// Bytes of the stream that have left through the target by way of the kernel.
    pub(super) fn carried(&self, slot: Slot<'_>, target: &Socket) -> u64 {
        let written = self.written(target).unwrap_or(u64::MAX);
        slot.redirected().min(written.saturating_sub(self.pumped))
    }

    /// Gives the credit back, when the pair ends.
    pub(super) fn release(&mut self, slots: &super::slots::Slots) {
        slots.credit(self.credit, 0);
        self.credit = 0;
    }

    /// Sees to what has to be done by hand. `Ready(Ok)`: the target has everything up to the source's end.
    pub(super) fn poll(&mut self, pump: &mut Direction, look: &mut Look<'_, '_>) -> Poll<Result<(), Side>> {
        self.is_waiting = false;
        let mut is_renewed = false;
        loop {
            match self.state {
                State::Redirecting => {
                    let is_passing = look.slot.passed() != self.pumped;
                    if !is_passing && !is_renewed && (self.is_behind || look.slot.redirected() > self.mark) {
                        self.flow.note_redirected(look.slot.redirected(), look.slot.pieces());
                        self.renew(look)?;
                    }
                    if !is_passing && !self.has_ended && !self.stays_in_userspace(look.mode) {
                        return Poll::Pending;
                    }
                    self.freeze(look)?;
                    self.latched += 1;
                    self.state = State::Draining;
                }
                State::Draining => {
                    if self.written(look.target)?.saturating_sub(self.pumped) < look.slot.redirected() {
                        self.is_waiting = true;
                        return Poll::Pending;
                    }
                    self.state = State::Pumping;
                }
                State::Pumping => match self.pump(pump, look)? {
                    Pumped::Ended => return Poll::Ready(Ok(())),
                    Pumped::Waiting => return Poll::Pending,
                    // What was passed before the new limit was seen is found there.
                    Pumped::Even => {
                        is_renewed = true;
                        self.state = State::Redirecting;
                    }
                },
            }
        }
    }

    /// Carries over what was passed.
    fn pump(&mut self, pump: &mut Direction, look: &mut Look<'_, '_>) -> Result<Pumped, Side> {
        let mut moved = 0;
        let ended = pump.poll(look.cx, look.source, look.target, look.buffer, &mut moved);
        *look.moved += moved;
        self.pumped += moved;
        self.flow.note_pumped(moved);
        look.slot.set_drained(self.pumped);
        let is_even = look.slot.passed() == self.pumped && !pump.holds_bytes();
        match ended {
            Poll::Ready(Err(side)) => Err(side),
            Poll::Ready(Ok(())) if is_even || pump.is_told() => Ok(Pumped::Ended),
            // The end has overtaken bytes that wait behind what the kernel has still to send the other way.
            Poll::Ready(Ok(())) => {
                pump.reopen();
                self.is_waiting = true;
                Ok(Pumped::Waiting)
            }
            Poll::Pending => {
                if !is_even || self.has_ended || !pump.is_open() || self.stays_in_userspace(look.mode) {
                    return Ok(Pumped::Waiting);
                }
                // What came before the program was there is judged only when it is asked for, and the reactor may not have
                // told of it yet: without this question it would lie there until more comes.
                if !look.source.has_nothing_to_read().map_err(|_| Side::Source)? {
                    self.is_waiting = true;
                    return Ok(Pumped::Waiting);
                }
                self.renew(look)?;
                Ok(if self.credit == 0 { Pumped::Waiting } else { Pumped::Even })
            }
        }
    }

    fn stays_in_userspace(&self, mode: Splice) -> bool {
        match mode {
            Splice::Userspace => true,
            Splice::Auto => self.flow.is_bulk(),
            Splice::Sockmap => false,
        }
    }

    /// Moves the limit on by what the target has written, and to what it can take at once: what the kernel cannot put into
    /// the send buffer waits in a queue of the target, behind which what the target itself says would wait too.
    fn renew(&mut self, look: &Look<'_, '_>) -> Result<(), Side> {
        let written = self.written(look.target)?.saturating_sub(self.pumped);
        let room = tcp::send_room(look.target.as_fd()).map_err(|_| Side::Target)?;
        let backlog = look.slot.redirected().saturating_sub(written);
        let wanted = WINDOW.min(room);
        self.credit = look.slots.credit(self.credit, if wanted < SMALLEST_CREDIT { 0 } else { wanted });
        let limit = written + self.credit;
        self.mark = limit - self.credit / 2;
        // The target may have caught up when there is more to send, and nothing tells.
        self.is_behind = self.credit > 0 && backlog > self.credit / 2;
        self.is_waiting |= self.is_behind;
        look.slot.set_limit(limit, self.mark);
        Ok(())
    }

    /// No byte is redirected from here on.
    fn freeze(&mut self, look: &Look<'_, '_>) -> Result<(), Side> {
        look.slot.set_limit(0, u64::MAX);
        self.credit = look.slots.credit(self.credit, 0);
        // A verdict that was under way with the old limit runs below the socket's lock, for which this question waits.
        TcpInfo::of(look.source.as_fd()).map(drop).map_err(|_| Side::Source)
    }

    /// Bytes that the target has written since the pair was handed over.
    fn written(&self, target: &Socket) -> Result<u64, Side> {
        written(target.as_fd()).map(|written| written.saturating_sub(self.base)).map_err(|_| Side::Target)
    }
}

/// What came of carrying over.
enum Pumped {
    /// The source has ended, and the target has everything.
    Ended,
    /// There may be more.
    Waiting,
    /// Nothing is left, and there is credit for what comes.
    Even,
}
