//! One direction of a pair that is spliced in the kernel: who carries its bytes, and how it changes hands.
//!
//! ```text
//!               credit used up, or the source's end, or too much for the kernel
//!   Redirecting ────────────────► Draining ──the target has written──► Pumping ──► Flushed ──► PassedOn
//!        ▲                                   what was redirected          │  the source's end
//!        └────────────── everything that was passed has been carried over ┘
//! ```
//! A direction begins with pumping, without credit: what its source had received before is carried over first.

use std::{
    io,
    task::{Context, Poll},
};

use super::pair::{Slot, written};
use crate::{
    config::Splice,
    net::{
        relay::{
            direction::{Direction, Side},
            policy,
        },
        socket::Socket,
    },
};

/// Bytes that a direction may have redirected and its target not yet written, beyond the target's own send buffer.
const WINDOW: u64 = 256 * 1024;

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
    pump: Direction,
    /// Whether the source is known to have ended.
    has_ended: bool,
    /// Wants another look soon, though nothing may wake it.
    is_waiting: bool,
    flow: policy::Flow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Redirecting,
    Draining,
    Pumping,
    Flushed,
    PassedOn,
}

impl Spliced {
    /// The direction to `target`, which is about to become one.
    pub(super) fn new(target: &Socket) -> io::Result<Self> {
        Ok(Self {
            state: State::Pumping,
            base: written(std::os::fd::AsFd::as_fd(target))?,
            pumped: 0,
            credit: 0,
            mark: u64::MAX,
            pump: Direction::copying(),
            has_ended: false,
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

    /// Whether everything up to the source's end has been passed on, and the end too.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::PassedOn
    }

    /// Whether to look again soon.
    pub(super) fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Whether pumping has become a stream that the kernel is the wrong place for.
    pub(super) fn is_bulk(&self) -> bool {
        self.flow.is_bulk()
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

    /// Sees what has to be done. `Ready(Ok)`: the target has everything up to the source's end.
    pub(super) fn poll(&mut self, look: &mut Look<'_, '_>) -> Poll<Result<(), Side>> {
        self.is_waiting = false;
        loop {
            match self.state {
                State::Redirecting => {
                    let is_passing = look.slot.passed() != self.pumped;
                    if !is_passing && look.slot.redirected() > self.mark {
                        self.flow.note_redirected(look.slot.redirected(), look.slot.pieces());
                        self.renew(look)?;
                    }
                    let leaves = look.mode == Splice::Userspace || (look.mode == Splice::Auto && self.is_bulk());
                    if !is_passing && !self.has_ended && !leaves {
                        return Poll::Pending;
                    }
                    self.freeze(look);
                    self.state = State::Draining;
                }
                State::Draining => {
                    let kernel = self.written(look.target).map_err(|_| Side::Target)?.saturating_sub(self.pumped);
                    if kernel < look.slot.redirected() {
                        self.is_waiting = true;
                        return Poll::Pending;
                    }
                    look.source.register().map_err(|_| Side::Source)?;
                    self.state = State::Pumping;
                }
                State::Pumping => {
                    let is_pumped = self.pump(look)?;
                    if is_pumped.is_pending() {
                        return Poll::Pending;
                    }
                }
                State::Flushed | State::PassedOn => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Tells the target, once, that there is no more.
    pub(super) fn pass_on_end(&mut self, target: &Socket) -> Result<(), Side> {
        if self.state == State::Flushed {
            target.shutdown_write().map_err(|_| Side::Target)?;
            self.state = State::PassedOn;
        }
        Ok(())
    }

    /// Carries over what was passed. `Ready` when the state has changed.
    fn pump(&mut self, look: &mut Look<'_, '_>) -> Result<Poll<()>, Side> {
        let mut moved = 0;
        let ended = self.pump.poll(look.cx, look.source, look.target, look.buffer, &mut moved);
        *look.moved += moved;
        self.pumped += moved;
        self.flow.note_pumped(moved);
        look.slot.set_drained(self.pumped);
        let is_even = look.slot.passed() == self.pumped && !self.pump.holds_bytes();
        match ended {
            Poll::Ready(Err(side)) => Err(side),
            Poll::Ready(Ok(())) if is_even => {
                self.state = State::Flushed;
                Ok(Poll::Ready(()))
            }
            // Behind what the kernel still has to send the other way: the end has overtaken bytes.
            Poll::Ready(Ok(())) => {
                self.pump = Direction::copying();
                self.is_waiting = true;
                Ok(Poll::Pending)
            }
            Poll::Pending => {
                let stays = match look.mode {
                    Splice::Userspace => true,
                    Splice::Auto => self.is_bulk(),
                    Splice::Sockmap => false,
                };
                if !is_even || stays || self.has_ended {
                    return Ok(Poll::Pending);
                }
                self.renew(look)?;
                if self.credit == 0 {
                    return Ok(Poll::Pending);
                }
                self.state = State::Redirecting;
                // What was passed before the new limit was seen is found there.
                Ok(Poll::Ready(()))
            }
        }
    }

    /// Moves the limit on by what the target has written.
    fn renew(&mut self, look: &Look<'_, '_>) -> Result<(), Side> {
        let written = self.written(look.target).map_err(|_| Side::Target)?.saturating_sub(self.pumped);
        self.credit = look.slots.credit(self.credit, WINDOW);
        let limit = written + self.credit;
        self.mark = limit - self.credit / 2;
        if self.mark <= look.slot.redirected() {
            // The target is behind. It may have caught up when there is more to send, and nothing tells.
            self.mark = look.slot.redirected();
            self.is_waiting = limit > self.mark;
        }
        look.slot.set_limit(limit, self.mark);
        Ok(())
    }

    /// No byte is redirected from here on.
    fn freeze(&mut self, look: &Look<'_, '_>) {
        look.slot.set_limit(0, u64::MAX);
        self.credit = look.slots.credit(self.credit, 0);
    }

    /// Bytes that the target has written since the pair was handed over.
    fn written(&self, target: &Socket) -> io::Result<u64> {
        Ok(written(std::os::fd::AsFd::as_fd(target))?.saturating_sub(self.base))
    }
}
