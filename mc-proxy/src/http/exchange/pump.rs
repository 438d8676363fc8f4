//! Content of one direction, on its way.

use std::task::{Context, Poll, ready};

use ::http::HeaderMap;
use bytes::Bytes;

use crate::http::message::{Broken, Part, Sink, Source};

/// Parts that are moved before the other connections of the worker have their turn.
const TURN: u32 = 32;

/// Moves the content of one message.
#[derive(Debug)]
pub(super) struct Pump {
    data: Bytes,
    is_last: bool,
    is_empty: bool,
    stage: Stage,
    waits_for: End,
    bytes: u64,
    max: u64,
    parts: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Moving,
    /// All has been taken, and is not written yet.
    Flushing,
    Done,
}

/// An end of a [`Pump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Sink,
}

/// Why content did not get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// One of the ends broke off.
    By(End, Broken),
    /// It is longer than it may be.
    TooLong,
}

impl Pump {
    /// At the beginning of content of `max` bytes at most. `is_empty`: there is none, and only what was written before, the
    /// head, is flushed.
    pub(super) fn new(is_empty: bool, max: u64) -> Self {
        let mut pump = Self {
            data: Bytes::new(),
            is_last: false,
            is_empty,
            stage: Stage::Done,
            waits_for: End::Source,
            bytes: 0,
            max,
            parts: 0,
        };
        pump.restart();
        pump
    }

    /// Goes to another sink, which has a head to be flushed as well. Nothing may [have been taken](Self::has_begun).
    pub(super) fn restart(&mut self) {
        self.stage = if self.is_empty { Stage::Flushing } else { Stage::Moving };
    }

    /// Moves what can be moved; ready when all of it has been written. `strip` is for trailers.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Source,
        to: &mut impl Sink,
        strip: fn(&mut HeaderMap),
    ) -> Poll<Result<(), Stopped>> {
        let mut turn = 0;
        let failed = |broken| Stopped::By(End::Sink, broken);
        loop {
            match self.stage {
                Stage::Done => return Poll::Ready(Ok(())),
                Stage::Flushing => {
                    self.waits_for = End::Sink;
                    ready!(to.poll_flush(cx)).map_err(failed)?;
                    self.stage = Stage::Done;
                }
                Stage::Moving => {
                    self.waits_for = End::Sink;
                    if !self.data.is_empty() {
                        let Poll::Ready(taken) = to.poll_data(cx, &mut self.data, self.is_last) else {
                            from.gather(cx);
                            return Poll::Pending;
                        };
                        taken.map_err(failed)?;
                        if self.is_last {
                            self.stage = Stage::Flushing;
                            continue;
                        }
                    }
                    turn += 1;
                    if turn > TURN {
                        // There has been room all the time, and there may still be.
                        self.waits_for = End::Source;
                        from.gather(cx);
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    let part = match from.poll_part(cx) {
                        Poll::Ready(part) => part.map_err(|broken| Stopped::By(End::Source, broken))?,
                        Poll::Pending => {
                            if to.poll_flush(cx).map_err(failed)?.is_ready() {
                                self.waits_for = End::Source;
                            }
                            return Poll::Pending;
                        }
                    };
                    self.parts += 1;
                    match part {
                        Some(Part::Data(data)) => {
                            self.bytes += data.len() as u64;
                            if self.bytes > self.max {
                                return Poll::Ready(Err(Stopped::TooLong));
                            }
                            self.data = data;
                            self.is_last = from.is_ended();
                        }
                        Some(Part::Trailers(mut trailers)) => {
                            strip(&mut trailers);
                            to.end((!trailers.is_empty()).then_some(trailers)).map_err(failed)?;
                            self.stage = Stage::Flushing;
                        }
                        None => {
                            to.end(None).map_err(failed)?;
                            self.stage = Stage::Flushing;
                        }
                    }
                }
            }
        }
    }

    /// Whether all of it has been written.
    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Moves no more.
    pub(super) fn stop(&mut self) {
        self.stage = Stage::Done;
    }

    /// Whether a part has been taken from the source, which cannot be had again.
    pub(super) fn has_begun(&self) -> bool {
        self.parts > 0
    }

    /// Bytes of content so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Grows with every part.
    pub(super) fn parts(&self) -> u64 {
        self.parts
    }

    /// Whom it waits for, if it is not done.
    pub(super) fn waits_for(&self) -> End {
        self.waits_for
    }
}
