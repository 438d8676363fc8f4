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
use crate::{
    http::{transport::Transport, wire::CHARGED},
    net::memory::Charge,
};

/// What [`Guarded::poll_shutdown`] reads of what still comes, in bytes at a time.
const DISCARD: usize = 4 * 1024;

/// Frames are gathered up to so many bytes, and leave in one write: in few records of TLS, and one packet where they fit.
const GATHERED: usize = 32 * 1024;

/// As many at once are not gathered, unless there are others before them.
const LARGE: usize = 8 * 1024;

/// Bytes that are read before the streams have their turn with them: the crate would go on as long as the peer does, and each
/// frame waits in it.
const TURN: usize = 64 * 1024;

/// What passes is shown to a [`Guard`]. Once that has seen too much, nothing more is read; what is written goes on, as the peer is
/// to be told.
#[derive(Debug)]
pub struct Guarded<S> {
    line: Arc<Mutex<Line<S>>>,
    state: Arc<Mutex<State>>,
    /// Bytes that are discarded behind our end of the stream.
    linger: usize,
    has_shut: bool,
}

/// Where what was gathered leaves by: whoever polls the connection also polls this, each time that it has come to rest.
///
/// The crate flushes behind every frame of DATA. With an outlet such a flush does nothing, so that the frames of all streams
/// that have something to say leave together.
#[derive(Debug)]
pub struct Outlet<S> {
    line: Arc<Mutex<Line<S>>>,
    state: Arc<Mutex<State>>,
}

/// The stream, and what is still to be written to it.
#[derive(Debug)]
struct Line<S> {
    io: S,
    gathered: BytesMut,
    /// For the memory in which frames are gathered.
    charge: Charge,
    /// What is flushed waits for the [`Outlet`].
    is_held: bool,
    /// Bytes that were read in this turn, which ends when the connection comes to rest.
    turn: usize,
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
        let line = Arc::new(Mutex::new(Line {
            io,
            gathered: BytesMut::new(),
            charge: Charge::default(),
            is_held: false,
            turn: 0,
        }));
        (Self { line, state: Arc::clone(&state), linger, has_shut: false }, Watch(state))
    }

    /// For whoever will poll the connection. Until it [holds](Outlet::hold) what is written, flushes are obeyed: the preface, which
    /// is sent while nobody polls this, must not wait.
    pub fn outlet(&self) -> Outlet<S> {
        Outlet { line: Arc::clone(&self.line), state: Arc::clone(&self.state) }
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
}

impl<S> Line<S> {
    fn gather(&mut self, slices: &[IoSlice<'_>], total: usize) {
        let before = self.gathered.capacity();
        self.gathered.reserve(total);
        if self.gathered.capacity() != before {
            self.charge.force((self.gathered.capacity() / CHARGED * CHARGED) as u64);
        }
        for slice in slices {
            self.gathered.extend_from_slice(slice);
        }
    }
}

impl<S: AsyncWrite + Unpin> Line<S> {
    fn poll_gathered(&mut self, cx: &mut Context<'_>, state: &Mutex<State>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let result = Pin::new(&mut self.io).poll_write(cx, &self.gathered);
            note(state, &result);
            match ready!(result)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => {
                    lock(state).written += count as u64;
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

    fn poll_flush(&mut self, cx: &mut Context<'_>, state: &Mutex<State>) -> Poll<io::Result<()>> {
        ready!(self.poll_gathered(cx, state))?;
        let result = Pin::new(&mut self.io).poll_flush(cx);
        note(state, &result);
        result
    }
}

impl<S: AsyncWrite + Unpin> Outlet<S> {
    /// From now on nothing leaves but by this, and what is too much to be gathered.
    pub fn hold(&self) {
        lock(&self.line).is_held = true;
    }

    /// Writes what was gathered, and lets more be read. While this is pending the connection need not be polled for it: the next
    /// poll of either goes on with it.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut line = lock(&self.line);
        line.turn = 0;
        line.poll_flush(cx, &self.state)
    }

    /// Gives back the memory in which frames are gathered, if there are none.
    pub fn rest(&self) {
        let mut line = lock(&self.line);
        if line.gathered.is_empty() {
            line.gathered = BytesMut::new();
            line.charge.force(0);
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
        let mut line = lock(&this.line);
        if line.is_held && line.turn >= TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(Pin::new(&mut line.io).poll_read(cx, buf))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        line.turn += read.len();
        drop(line);
        let mut state = lock(&this.state);
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
        let mut line = lock(&this.line);
        if line.gathered.len() + total > GATHERED {
            ready!(line.poll_gathered(cx, &this.state))?;
        }
        let count = if line.gathered.is_empty() && total >= LARGE {
            let result = Pin::new(&mut line.io).poll_write_vectored(cx, slices);
            note(&this.state, &result);
            let count = ready!(result)?;
            lock(&this.state).written += count as u64;
            count
        } else {
            line.gather(slices, total);
            total
        };
        drop(line);
        this.sends(count, slices.iter().map(|slice| &**slice));
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut line = lock(&self.line);
        if line.is_held { Poll::Ready(Ok(())) } else { line.poll_flush(cx, &self.state) }
    }

    /// Ends our side, and waits for the peer's end or for so many bytes as are put up with.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut line = lock(&this.line);
        if !this.has_shut {
            ready!(line.poll_gathered(cx, &this.state))?;
            ready!(Pin::new(&mut line.io).poll_shutdown(cx))?;
            line.io.socket_mut().complete();
            this.has_shut = true;
        }
        let mut bytes = [0; DISCARD];
        while this.linger > 0 {
            let mut buf = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut line.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => this.linger = this.linger.saturating_sub(buf.filled().len()),
                Ok(()) | Err(_) => this.linger = 0,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Notes whether the peer takes what is written.
fn note<T>(state: &Mutex<State>, result: &Poll<io::Result<T>>) {
    let stalled = &mut lock(state).stalled_since;
    if result.is_pending() {
        stalled.get_or_insert_with(Instant::now);
    } else {
        *stalled = None;
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, os::fd::OwnedFd};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::net::socket::Socket;

    /// Counts the writes that reach it.
    struct Counting {
        socket: Socket,
        writes: Arc<Mutex<Vec<usize>>>,
    }

    impl Transport for Counting {
        fn socket_mut(&mut self) -> &mut Socket {
            &mut self.socket
        }
    }

    impl AsyncRead for Counting {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().socket).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counting {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let written = ready!(Pin::new(&mut this.socket).poll_write(cx, bytes))?;
            lock(&this.writes).push(written);
            Poll::Ready(Ok(written))
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().socket).poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
        }
    }

    async fn pair() -> (Counting, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let socket = Socket::new(OwnedFd::from(near.into_std().unwrap()));
        (Counting { socket, writes: Arc::default() }, far)
    }

    #[tokio::test]
    async fn what_is_flushed_waits_for_the_outlet() {
        let (io, mut far) = pair().await;
        let writes = Arc::clone(&io.writes);
        let (mut guarded, watch) = Guarded::new(io, Guard::of_backends(), 0);
        let outlet = guarded.outlet();
        guarded.write_all(b"preface").await.unwrap();
        guarded.flush().await.unwrap();
        assert_eq!(*lock(&writes), [7], "nobody polls the outlet yet");

        outlet.hold();
        for _ in 0..3 {
            guarded.write_all(&[b'x'; 100]).await.unwrap();
            guarded.flush().await.unwrap();
        }
        assert_eq!(*lock(&writes), [7]);
        outlet.rest();
        poll_fn(|cx| outlet.poll_flush(cx)).await.unwrap();
        assert_eq!(*lock(&writes), [7, 300]);
        assert_eq!(watch.transferred(), (0, 307));
        outlet.rest();
        assert_eq!(lock(&outlet.line).gathered.capacity(), 0);

        // No more than so much waits for it.
        for _ in 0..2 * GATHERED / 4096 {
            guarded.write_all(&[b'y'; 4096]).await.unwrap();
        }
        assert_eq!(*lock(&writes), [7, 300, GATHERED]);
        guarded.write_all(b"z").await.unwrap();
        guarded.shutdown().await.unwrap();
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), 7 + 300 + 2 * GATHERED + 1);
        assert!(all.ends_with(b"yz"), "what waits leaves before the end");
    }
}
