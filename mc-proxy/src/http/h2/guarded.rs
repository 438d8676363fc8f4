//! A stream whose frames are counted.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::guard::{Guard, Violation};
use crate::http::transport::Transport;

/// What [`Guarded::poll_shutdown`] reads of what still comes, in bytes at a time.
const DISCARD: usize = 4 * 1024;

/// What passes is shown to a [`Guard`]. Once that has seen too much, nothing more is read; what is written goes on, as the peer is
/// to be told.
#[derive(Debug)]
pub struct Guarded<S> {
    io: S,
    state: Arc<Mutex<State>>,
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
}

impl<S> Guarded<S> {
    /// `linger`: how many bytes that come after the end of our side are discarded, so that the end does not become a reset which
    /// overtakes what was said before.
    pub fn new(io: S, guard: Guard, linger: usize) -> (Self, Watch) {
        let state = Arc::new(Mutex::new(State { guard, read: 0, written: 0, stalled_since: None }));
        (Self { io, state: Arc::clone(&state), linger, has_shut: false }, Watch(state))
    }

    fn wrote<'a>(
        &self,
        result: Poll<io::Result<usize>>,
        slices: impl Iterator<Item = &'a [u8]>,
    ) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.state);
        match result {
            Poll::Ready(Ok(count)) => {
                let now = Instant::now();
                let mut left = count;
                for slice in slices {
                    let written = slice.get(..left.min(slice.len())).unwrap_or_default();
                    state.guard.sent(written, now);
                    left -= written.len();
                }
                state.written += count as u64;
                state.stalled_since = None;
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                state.stalled_since.get_or_insert_with(Instant::now);
                Poll::Pending
            }
        }
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
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.wrote(result, std::iter::once(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        this.wrote(result, slices.iter().map(|slice| &**slice))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_flush(cx);
        let stalled = &mut lock(&this.state).stalled_since;
        if result.is_pending() {
            stalled.get_or_insert_with(Instant::now);
        } else {
            *stalled = None;
        }
        result
    }

    /// Ends our side, and waits for the peer's end or for so many bytes as are put up with.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.has_shut {
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
