//! A stream whose frames are counted.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::guard::{Guard, Violation};
use crate::http::transport::Transport;

/// What [`Guarded::poll_shutdown`] reads of what still comes, in bytes at a time.
const DISCARD: usize = 4 * 1024;

/// Frames are gathered up to so many bytes, and leave in one write: in one record of TLS, and one packet where they fit.
const GATHERED: usize = 32 * 1024;

/// As many at once are not gathered, unless there are others before them.
const LARGE: usize = 8 * 1024;

/// What passes is shown to a [`Guard`]. Once that has seen too much, nothing more is read; what is written goes on, as the peer is
/// to be told.
#[derive(Debug)]
pub struct Guarded<S> {
    io: S,
    state: Arc<Mutex<State>>,
    /// What waits for the next flush.
    gathered: BytesMut,
    /// Bytes that are discarded behind our end of the stream.
    linger: usize,
    has_shut: bool,
}

/// What a [`Guarded`] has seen, for whoever has given it away.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    guard: Guard,
    read: u64,
    written: u64,
    stalled_since: Option<Instant>,
    unanswered_since: Option<Instant>,
}

impl<S> Guarded<S> {
    /// `linger`: how many bytes that come after the end of our side are discarded, so that the end does not become a reset which
    /// overtakes what was said before.
    pub fn new(io: S, guard: Guard, linger: usize) -> (Self, Watch) {
        let state =
            Arc::new(Mutex::new(State { guard, read: 0, written: 0, stalled_since: None, unanswered_since: None }));
        (Self { io, state: Arc::clone(&state), gathered: BytesMut::new(), linger, has_shut: false }, Watch(state))
    }

    /// Shows the guard what is being sent.
    fn sends<'a>(&self, count: usize, slices: impl Iterator<Item = &'a [u8]>) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let asked = state.guard.asked();
        let mut left = count;
        for slice in slices {
            let sent = slice.get(..left.min(slice.len())).unwrap_or_default();
            state.guard.sent(sent, now);
            left -= sent.len();
        }
        if state.guard.asked() > asked {
            state.unanswered_since.get_or_insert(now);
        }
    }

    /// Notes whether the peer takes what is written.
    fn note<T>(&self, result: &Poll<io::Result<T>>) {
        let stalled = &mut lock(&self.state).stalled_since;
        if result.is_pending() {
            stalled.get_or_insert_with(Instant::now);
        } else {
            *stalled = None;
        }
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
    fn poll_gathered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let result = Pin::new(&mut self.io).poll_write(cx, &self.gathered);
            self.note(&result);
            match ready!(result)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => {
                    lock(&self.state).written += count as u64;
                    if count == self.gathered.len() {
                        self.gathered.clear();
                    } else {
                        self.gathered.advance(count);
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Watch {
    /// What the peer has done too much of.
    pub fn violation(&self) -> Option<Violation> {
        lock(&self.0).guard.violation()
    }

    /// Whether the peer has sent its SETTINGS.
    pub fn has_settings(&self) -> bool {
        lock(&self.0).guard.has_settings()
    }

    /// Since when a field block has been on its way.
    pub fn block_since(&self) -> Option<Instant> {
        lock(&self.0).guard.block_since()
    }

    /// Since when the peer has taken nothing of what is to be written.
    pub fn stalled_since(&self) -> Option<Instant> {
        lock(&self.0).stalled_since
    }

    /// Since when nothing has come although something was sent.
    pub fn unanswered_since(&self) -> Option<Instant> {
        lock(&self.0).unanswered_since
    }

    /// Bytes that have been read and written so far.
    pub fn transferred(&self) -> (u64, u64) {
        let state = lock(&self.0);
        (state.read, state.written)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if lock(&this.state).guard.violation().is_some() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let mut state = lock(&this.state);
        let read = buf.filled().get(before..).unwrap_or_default();
        state.read += read.len() as u64;
        state.unanswered_since = None;
        state.guard.received(read, Instant::now());
        if state.guard.violation().is_some() {
            // Nothing of it is worth the work. Whoever polls is to look at the violation.
            buf.set_filled(before);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Transport> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let total = slices.iter().map(|slice| slice.len()).sum::<usize>();
        if this.gathered.len() + total > GATHERED {
            ready!(this.poll_gathered(cx))?;
        }
        let count = if this.gathered.is_empty() && total >= LARGE {
            let result = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
            this.note(&result);
            let count = ready!(result)?;
            lock(&this.state).written += count as u64;
            count
        } else {
            this.gathered.reserve(total);
            for slice in slices {
                this.gathered.extend_from_slice(slice);
            }
            total
        };
        this.sends(count, slices.iter().map(|slice| &**slice));
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_gathered(cx))?;
        let result = Pin::new(&mut this.io).poll_flush(cx);
        this.note(&result);
        result
    }

    /// Ends our side, and waits for the peer's end or for so many bytes as are put up with.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.has_shut {
            ready!(this.poll_gathered(cx))?;
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            this.io.socket_mut().complete();
            this.has_shut = true;
        }
        let mut bytes = [0; DISCARD];
        while this.linger > 0 {
            let mut buf = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut this.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => this.linger = this.linger.saturating_sub(buf.filled().len()),
                Ok(()) | Err(_) => this.linger = 0,
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
