//! A connected stream socket with as few system calls as a proxy can do with.
//!
//! A socket is registered with the reactor only when it first has to be waited for, and for writing only when a write
//! first blocks: most short connections never need the second, and some not even the first. A TLS stream, which reads and
//! writes by turns or from two tasks, is registered for both from the start.

mod stream;

use std::{
    future::poll_fn,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{self, RecvFlags, SendFlags, Shutdown, sockopt},
};
use socket2::SockRef;
use tokio::io::{Interest, unix::AsyncFd};

/// What a reader is woken for: urgent data too, which stops a read short (tcp(7)).
const READ: Interest = Interest::READABLE.add(Interest::PRIORITY);

/// Bytes that wait in a socket's send queue beyond what is on its way to the peer. As much as a pipe holds: with less, bulk
/// pays in wake-ups.
const UNSENT_MAX: u32 = 256 * 1024;

/// A non-blocking stream socket, TCP or Unix. Dropped without [`Self::close`] it is reset, so that whatever goes wrong,
/// the peer never takes a part for the whole.
#[derive(Debug)]
pub struct Socket {
    state: State,
    is_complete: bool,
    is_ending: bool,
    has_bound: bool,
}

#[derive(Debug)]
enum State {
    Unregistered(OwnedFd),
    /// Reported readable, closed and failed.
    Readable(AsyncFd<OwnedFd>),
    /// Reported writable too.
    Both(AsyncFd<OwnedFd>),
    /// Only while one of the others becomes another.
    Moving,
}

impl Socket {
    /// Takes a socket that is already non-blocking.
    pub fn new(fd: OwnedFd) -> Self {
        Self { state: State::Unregistered(fd), is_complete: false, is_ending: false, has_bound: false }
    }

    /// Registers for reading without having tried to read: for a socket that most likely has nothing yet.
    ///
    /// # Errors
    /// When the reactor cannot take it.
    pub fn register(&mut self) -> io::Result<()> {
        match self.state {
            State::Unregistered(_) => self.register_for(READ, State::Readable),
            State::Readable(_) | State::Both(_) | State::Moving => Ok(()),
        }
    }

    /// Registers for reading and writing at once: whoever waits to read keeps waiting when a write blocks, also in another
    /// task.
    ///
    /// # Errors
    /// When the reactor cannot take it.
    pub fn register_both(&mut self) -> io::Result<()> {
        match self.state {
            State::Unregistered(_) | State::Readable(_) => self.register_for(READ | Interest::WRITABLE, State::Both),
            State::Both(_) | State::Moving => Ok(()),
        }
    }

    /// Takes the socket from the reactor until it is next waited for; nobody is woken for it meanwhile.
    pub fn deregister(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Moving) {
            State::Readable(io) | State::Both(io) => State::Unregistered(io.into_inner()),
            state @ (State::Unregistered(_) | State::Moving) => state,
        };
    }

    /// Reads into `buffer`: 0 at the end.
    ///
    /// # Errors
    /// As `recv(2)`; `ECONNRESET` is the usual one.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let capacity = buffer.len();
        // A stream that gave less than there was room for is empty: the next edge tells when that changes.
        self.poll_read_with(
            cx,
            |fd| net::recv(fd, &mut *buffer, RecvFlags::empty()).map(|(read, _)| read),
            |read| read < capacity,
        )
    }

    /// Whether the peer is known to send no more than what can be read already.
    pub fn is_ending(&self) -> bool {
        self.is_ending
    }

    /// Reads with another call than `recv`; `is_drained` tells from its result that there was no more to get.
    ///
    /// # Errors
    /// As the call.
    pub fn poll_read_with(
        &mut self,
        cx: &mut Context<'_>,
        mut read: impl FnMut(BorrowedFd<'_>) -> Result<usize, Errno>,
        is_drained: impl Fn(usize) -> bool,
    ) -> Poll<io::Result<usize>> {
        if let State::Unregistered(fd) = &self.state {
            match retry(|| read(fd.as_fd())) {
                Err(Errno::AGAIN) => self.register_for(READ, State::Readable)?,
                result => return Poll::Ready(result.map_err(Into::into)),
            }
        }
        loop {
            let mut guard = ready!(self.reactor()?.poll_read_ready(cx))?;
            match retry(|| read(guard.get_inner().as_fd())) {
                Err(Errno::AGAIN) => guard.clear_ready(),
                Ok(count) => {
                    let is_ending = guard.ready().is_read_closed();
                    // A read stops short of urgent data, and there may be more behind it. A peer that has closed stays readable,
                    // or its end would never be seen.
                    if is_drained(count) && !is_ending && !guard.ready().is_priority() {
                        guard.clear_ready();
                    }
                    self.is_ending = is_ending;
                    return Poll::Ready(Ok(count));
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Whether there is neither a byte nor an end to be read.
    ///
    /// # Errors
    /// When the connection has failed, which the kernel tells but once.
    pub fn has_nothing_to_read(&self) -> io::Result<bool> {
        match retry(|| net::recv(self, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT)) {
            Ok(_) => Ok(false),
            Err(Errno::AGAIN) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads with another call than `recv`, without waiting and without noting what came of it.
    ///
    /// # Errors
    /// As the call; `EAGAIN` among them.
    pub fn try_read_with(&self, mut read: impl FnMut(BorrowedFd<'_>) -> Result<usize, Errno>) -> Result<usize, Errno> {
        retry(|| read(self.as_fd()))
    }

    /// Writes as much as the kernel takes: at least one byte, if there is one. Before the socket is connected it takes
    /// nothing, and writing nothing waits for the connection.
    ///
    /// # Errors
    /// As `send(2)`; `EPIPE` and `ECONNRESET` are the usual ones.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |fd| net::send(fd, bytes, SendFlags::NOSIGNAL))
    }

    /// The same with more to come at once, be it the end of the stream: the kernel holds a last small packet back for it.
    ///
    /// # Errors
    /// As [`Self::poll_send`].
    pub fn poll_send_more(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |fd| net::send(fd, bytes, SendFlags::NOSIGNAL | SendFlags::MORE))
    }

    /// Writes with another call than `send`.
    ///
    /// # Errors
    /// As the call.
    pub fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(BorrowedFd<'_>) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        // Most writes find room; what the reactor last heard is asked only after one that did not.
        match retry(|| write(self.as_fd())) {
            Err(Errno::AGAIN) if matches!(self.state, State::Both(_)) => {}
            Err(Errno::AGAIN) => {
                let was_waited_for = matches!(self.state, State::Readable(_));
                self.register_for(READ | Interest::WRITABLE, State::Both)?;
                if was_waited_for {
                    // Whoever waits to read was waiting on the registration that is gone, and has to wait anew.
                    cx.waker().wake_by_ref();
                }
            }
            result => return Poll::Ready(result.map_err(Into::into)),
        }
        loop {
            let mut guard = ready!(self.reactor()?.poll_write_ready(cx))?;
            match retry(|| write(guard.get_inner().as_fd())) {
                Err(Errno::AGAIN) => guard.clear_ready(),
                result => return Poll::Ready(result.map_err(Into::into)),
            }
        }
    }

    /// After the peer has ended its side: `Ready` when the connection has failed since.
    pub fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Err(error) = self.register() {
            return Poll::Ready(error);
        }
        loop {
            let mut guard = match self.reactor().map(|io| io.poll_write_ready(cx)) {
                Ok(Poll::Ready(Ok(guard))) => guard,
                Ok(Poll::Ready(Err(error))) | Err(error) => return Poll::Ready(error),
                Ok(Poll::Pending) => return Poll::Pending,
            };
            if !guard.ready().is_write_closed() {
                guard.clear_ready();
                continue;
            }
            return match sockopt::socket_error(guard.get_inner()) {
                Ok(Err(error)) | Err(error) => Poll::Ready(error.into()),
                // Both sides have ended in order.
                Ok(Ok(())) => Poll::Pending,
            };
        }
    }

    /// Reads, waiting if there is nothing; 0 at the end.
    ///
    /// # Errors
    /// As [`Self::poll_recv`].
    pub async fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_recv(cx, buffer)).await
    }

    /// Writes everything.
    ///
    /// # Errors
    /// As [`Self::poll_send`].
    pub async fn send_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = poll_fn(|cx| self.poll_send(cx, bytes)).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Lets the kernel hold no more than [`UNSENT_MAX`] for a peer that does not take it (`TCP_NOTSENT_LOWAT`, Linux 3.12):
    /// for a socket that gets a stream which is faster than its peer may be. Otherwise the kernel's limit holds, which is
    /// megabytes (`net.ipv4.tcp_wmem`).
    pub fn bound_unsent(&mut self) {
        if !self.has_bound {
            self.has_bound = true;
            // Not every stream socket is TCP's; the others have a fixed limit.
            let _ = SockRef::from(&*self).set_tcp_notsent_lowat(UNSENT_MAX);
        }
    }

    /// Ends our side of the stream (FIN).
    ///
    /// # Errors
    /// When the connection has failed.
    pub fn shutdown_write(&self) -> io::Result<()> {
        Ok(net::shutdown(self, Shutdown::Write)?)
    }

    /// Closes the socket in order: what has been written still arrives, then the end.
    pub fn close(mut self) {
        self.complete();
    }

    /// From now on it is closed in order when it is dropped.
    pub fn complete(&mut self) {
        self.is_complete = true;
    }

    fn register_for(&mut self, interest: Interest, state: fn(AsyncFd<OwnedFd>) -> State) -> io::Result<()> {
        let fd = match std::mem::replace(&mut self.state, State::Moving) {
            State::Unregistered(fd) => fd,
            State::Readable(io) | State::Both(io) => io.into_inner(),
            State::Moving => return Err(not_registered()),
        };
        #[expect(deprecated, reason = "its successor is unsafe for the sake of types that lie about their descriptor")]
        let registered = AsyncFd::try_with_interest(fd, interest);
        match registered {
            Ok(io) => {
                self.state = state(io);
                Ok(())
            }
            Err(error) => {
                let (fd, error) = error.into_parts();
                self.state = State::Unregistered(fd);
                Err(error)
            }
        }
    }

    fn reactor(&mut self) -> io::Result<&mut AsyncFd<OwnedFd>> {
        match &mut self.state {
            State::Readable(io) | State::Both(io) => Ok(io),
            State::Unregistered(_) | State::Moving => Err(not_registered()),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.is_complete
            && let Err(error) = sockopt::set_socket_linger(&*self, Some(Duration::ZERO))
        {
            tracing::debug!(%error, "a connection could not be reset");
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.state {
            State::Unregistered(fd) => fd.as_fd(),
            State::Readable(io) | State::Both(io) => io.as_fd(),
            State::Moving => unreachable!("`register` puts a state back before it returns"),
        }
    }
}

fn not_registered() -> io::Error {
    io::Error::other("the socket is not registered with the reactor")
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
