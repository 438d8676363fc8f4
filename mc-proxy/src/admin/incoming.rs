//! Connections to the admin socket, few and mortal.
//!
//! * At most [`OTHERS`] connections at a time, and [`OWN`] more for root and the daemon's own user, so that no member of
//!   the socket's group can lock the operator out. One too many is closed at once.
//! * A connection on which nothing arrives for [`IDLE`] is closed. HTTP/2 pings keep that of a live client going.
//! * None lives longer than [`LIFETIME`]; the client is told [`GRACE`] earlier (GOAWAY) and connects anew.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream, unix::UCred},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

pub(super) const OTHERS: usize = 24;
pub(super) const OWN: usize = 8;
pub(super) const IDLE: Duration = Duration::from_secs(60);
pub(super) const LIFETIME: Duration = Duration::from_secs(15 * 60);
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// Between attempts while the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of the socket, by the kernel's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User of the process that connected.
    pub uid: u32,
    /// The process, where the kernel knows it.
    pub pid: Option<i32>,
}

/// The accepted connections, for as long as it is polled.
pub(super) struct Incoming {
    listener: UnixListener,
    own_uid: u32,
    own: Arc<Semaphore>,
    others: Arc<Semaphore>,
    force_close: CancellationToken,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// Connections end when `force_close` is cancelled.
    pub(super) fn new(listener: UnixListener, force_close: CancellationToken) -> Self {
        Self {
            listener,
            own_uid: rustix::process::geteuid().as_raw(),
            own: Arc::new(Semaphore::new(OWN)),
            others: Arc::new(Semaphore::new(OTHERS)),
            force_close,
            pause: None,
        }
    }

    fn admit(&self, stream: UnixStream) -> Option<Connection> {
        let caller = match stream.peer_cred() {
            Ok(credentials) => Caller::from(credentials),
            Err(error) => {
                tracing::warn!(%error, "an admin connection without credentials is refused");
                return None;
            }
        };
        let is_own = caller.uid == 0 || caller.uid == self.own_uid;
        let mut permit = Arc::clone(&self.others).try_acquire_owned();
        if is_own && permit.is_err() {
            permit = Arc::clone(&self.own).try_acquire_owned();
        }
        let Ok(permit) = permit else {
            tracing::warn!(uid = caller.uid, pid = caller.pid, "too many admin connections; one more is refused");
            return None;
        };
        Some(Connection {
            stream,
            caller,
            idle: Box::pin(sleep(IDLE)),
            lifetime: Box::pin(sleep(LIFETIME)),
            force_close: Box::pin(self.force_close.clone().cancelled_owned()),
            _permit: permit,
        })
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => {
                    if let Some(connection) = self.admit(stream) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin connection");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// One connection; its place is free again when it is dropped.
pub(super) struct Connection {
    stream: UnixStream,
    caller: Caller,
    idle: Pin<Box<Sleep>>,
    lifetime: Pin<Box<Sleep>>,
    force_close: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Asked on reads and writes alike: a connection that is stuck in one does not poll the other.
    fn check_deadlines(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let is_over = self.idle.as_mut().poll(cx).is_ready()
            || self.lifetime.as_mut().poll(cx).is_ready()
            || self.force_close.as_mut().poll(cx).is_ready();
        if is_over { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_deadlines(cx)?;
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.idle.as_mut().reset(Instant::now() + IDLE);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check_deadlines(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_deadlines(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl From<UCred> for Caller {
    fn from(credentials: UCred) -> Self {
        Self { uid: credentials.uid(), pid: credentials.pid() }
    }
}
