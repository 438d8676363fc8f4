//! A stream with what has been read of it and not been looked at, and what is still to be written to it.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use crate::net::memory::{self, Charge};

/// Bytes that the first read of a message has room for: most heads.
const READ_MIN: usize = 4 * 1024;

/// Bytes that most heads are written into.
const HEAD: usize = 1024;

/// Bytes that a read has room for where reads have been filling what they had.
const READ_MAX: usize = 64 * 1024;

/// Up to so many bytes are copied behind what is waiting already; more are written from where they are.
const COPY_MAX: usize = 2 * 1024;

/// Bytes that the connection's fixed charge covers, and the steps in which more are charged.
pub const CHARGED: usize = 8 * 1024;

/// Slices in one write.
const SLICES: usize = 16;

/// Waiting bytes with which no more are taken before some have been written.
pub const WAITING_MAX: usize = 64 * 1024;

/// A buffered stream.
#[derive(Debug)]
pub struct Wire<S> {
    io: S,
    input: BytesMut,
    read_size: usize,
    has_ended: bool,
    has_shut: bool,
    full: VecDeque<Bytes>,
    tail: BytesMut,
    /// Bytes in `full` and `tail`.
    waiting: usize,
    read: u64,
    written: u64,
    charge: Charge,
}

impl<S> Wire<S> {
    /// Of `io`, `begun` has been read.
    pub fn new(io: S, begun: &[u8]) -> Self {
        Self {
            io,
            input: BytesMut::from(begun),
            read_size: READ_MIN,
            has_ended: false,
            has_shut: false,
            full: VecDeque::new(),
            tail: BytesMut::new(),
            waiting: 0,
            read: 0,
            written: 0,
            charge: Charge::default(),
        }
    }

    /// The stream below.
    pub fn io(&mut self) -> &mut S {
        &mut self.io
    }

    /// What has been read, and is taken from its front.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// Bytes that were taken to be written, and have not been.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Bytes that have been read and written so far.
    pub fn transferred(&self) -> (u64, u64) {
        (self.read, self.written)
    }

    /// Takes its buffers off the account of this thread, which may not be the one that uses them next.
    pub fn settle(&self) {
        self.charge.force(0);
    }

    /// Gives back the memory of buffers that are empty.
    pub fn release(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
            self.read_size = READ_MIN;
        }
        if self.waiting == 0 {
            self.tail = BytesMut::new();
        }
        self.account();
    }

    /// Writes heads and other small things behind what is waiting.
    pub fn write(&mut self, write: impl FnOnce(&mut BytesMut)) {
        if self.tail.capacity() < HEAD {
            self.tail.reserve(HEAD);
        }
        let before = self.tail.len();
        write(&mut self.tail);
        self.waiting += self.tail.len() - before;
    }

    /// Puts bytes behind what is waiting.
    pub fn push(&mut self, bytes: Bytes) {
        self.waiting += bytes.len();
        if bytes.len() <= COPY_MAX {
            self.tail.extend_from_slice(&bytes);
            return;
        }
        if !self.tail.is_empty() {
            self.full.push_back(self.tail.split().freeze());
        }
        self.full.push_back(bytes);
    }

    /// Charges what the buffers hold. It has been taken already; [`Self::poll_fill`] asks before it takes much.
    fn account(&self) {
        let held = self.input.capacity() + self.waiting;
        self.charge.force((held / CHARGED * CHARGED) as u64);
    }

    fn advance(&mut self, mut count: usize) {
        self.waiting -= count;
        self.written += count as u64;
        while let Some(first) = self.full.front_mut() {
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.full.pop_front();
        }
        if count == self.tail.len() {
            // Keeps the memory for the next head.
            self.tail.clear();
        } else {
            self.tail.advance(count);
        }
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// Reads what there is behind what has been read; 0 at the end.
    ///
    /// # Errors
    /// As the stream's.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.has_ended {
            return Poll::Ready(Ok(0));
        }
        // What is left of the memory behind the last head may do.
        if self.input.capacity() - self.input.len() < self.read_size / 4 {
            // When memory is short, connections go on, and take no more.
            if self.read_size > READ_MIN && !memory::has_room(self.read_size) {
                self.read_size = READ_MIN;
            }
            self.input.reserve(self.read_size);
        }
        let room = self.input.capacity() - self.input.len();
        let read = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input))?;
        if read == 0 {
            self.has_ended = true;
        } else if read == room {
            self.read_size = (self.read_size * 4).min(READ_MAX);
        }
        self.read += read as u64;
        self.account();
        Poll::Ready(Ok(read))
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    /// Writes all that is waiting.
    ///
    /// # Errors
    /// As the stream's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.waiting > 0 {
            let written = if self.full.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let parts = self.full.iter().map(Bytes::as_ref).chain([self.tail.as_ref()]);
                let mut count = 0;
                for (slice, part) in slices.iter_mut().zip(parts.filter(|part| !part.is_empty())) {
                    *slice = IoSlice::new(part);
                    count += 1;
                }
                let slices = slices.get(..count).unwrap_or_default();
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
            self.account();
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Ends our side of the stream, after all that is waiting.
    ///
    /// # Errors
    /// As the stream's.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_shut {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_flush(cx))?;
        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        self.has_shut = true;
        Poll::Ready(Ok(()))
    }
}
