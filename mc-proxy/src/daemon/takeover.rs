//! One daemon takes the place of another that runs: `mc-proxy server --takeover`.
//!
//! The successor connects to a socket beside the database and asks. It gets the listening sockets, and then what only one
//! process may have: the admin socket, the database and the pins. The daemon that runs goes on accepting meanwhile; both
//! processes have the same sockets and the same queues. Only when the successor accepts too, the daemon goes. A successor
//! that is gone, or not there in time, changes nothing: the daemon takes back what it gave.
//!
//! ```text
//! successor                              daemon
//! "mc-proxy takeover 2\n"          ->
//!                                  <-    listening sockets (SCM_RIGHTS), each batch with a byte "s"
//!                                  <-    "r": admin socket, database and pins are free
//! starts; its workers accept
//! "a"                              ->
//!                                  <-    "g": it goes, or "l": too late, it takes everything back
//! ```
//!
//! With "g" the place has changed hands. A successor that gets neither has been left alone by a daemon that has died or
//! was told to stop, and stays.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::{fs::PermissionsExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        recvmsg, sendmsg, sockopt::socket_peercred,
    },
    process::geteuid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::UnixListener,
    time::{sleep, timeout},
};

use super::{inherited::Inherited, notify::Named};

const REQUEST: &[u8] = b"mc-proxy takeover 2\n";
const SOCKETS: u8 = b's';
const RELEASED: u8 = b'r';
const ACCEPTS: u8 = b'a';
const GOES: u8 = b'g';
const LATE: u8 = b'l';

/// Descriptors in one message; the kernel takes 253.
const BATCH: usize = 64;

/// How long the other side may be silent. Until the database is released, what the control thread has begun is finished.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a successor may take from then until it accepts. A million rules and countries take some seconds.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// A successor that has connected says what it wants at once.
const REQUEST_PATIENCE: Duration = Duration::from_secs(1);

/// Where a daemon waits for its successor.
#[derive(Debug)]
pub(super) struct Doorbell {
    path: PathBuf,
    socket: UnixListener,
}

/// A successor that waits for the sockets.
#[derive(Debug)]
pub(super) struct Successor(tokio::net::UnixStream);

/// The daemon whose place is being taken.
#[derive(Debug)]
pub(super) struct Predecessor(UnixStream);

/// The daemon that runs has not waited, and goes on.
#[derive(Debug, thiserror::Error)]
#[error("the daemon that runs has not waited, and goes on")]
pub(super) struct TooLate;

/// Beside the database, since there is one daemon for each.
pub(super) fn path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".takeover");
    path.into()
}

impl Doorbell {
    /// Binds the socket; one that is there is stale, since the database is ours.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub(super) fn bind(path: PathBuf) -> io::Result<Self> {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { path, socket })
    }

    /// Waits for a successor.
    pub(super) async fn rung(&self) -> Successor {
        loop {
            let greeted = match self.socket.accept().await {
                Ok((stream, _)) => Successor::greet(stream).await,
                Err(error) => Err(error),
            };
            match greeted {
                Ok(successor) => return successor,
                Err(error) => {
                    tracing::warn!(%error, "somebody who is no successor has asked for the listening sockets");
                    // An error that lasts, such as want of descriptors, must not keep the thread busy.
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Leaves nothing behind.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the takeover socket is left behind");
        }
    }
}

impl Successor {
    async fn greet(mut stream: tokio::net::UnixStream) -> io::Result<Self> {
        let peer = socket_peercred(&stream)?.uid;
        if peer != geteuid() && !peer.is_root() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("it is user {}", peer.as_raw())));
        }
        let mut request = [0; REQUEST.len()];
        timeout(REQUEST_PATIENCE, stream.read_exact(&mut request)).await??;
        if request != REQUEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not ask as a successor does"));
        }
        Ok(Self(stream))
    }

    /// Passes sockets on.
    ///
    /// # Errors
    /// When the successor has gone.
    pub(super) async fn pass(&self, sockets: &[Named]) -> io::Result<()> {
        for batch in sockets.chunks(BATCH) {
            let batch: Vec<BorrowedFd<'_>> = batch.iter().map(|named| named.fd.as_fd()).collect();
            let send = || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !control.push(SendAncillaryMessage::ScmRights(&batch)) {
                    return Err(io::Error::other("the descriptors do not fit into a message"));
                }
                Ok(sendmsg(&self.0, &[IoSlice::new(&[SOCKETS])], &mut control, SendFlags::NOSIGNAL)?)
            };
            timeout(PATIENCE, self.0.async_io(Interest::WRITABLE, send)).await??;
        }
        Ok(())
    }

    /// Tells that the admin socket, the database and the pins are free.
    ///
    /// # Errors
    /// When the successor has gone.
    pub(super) async fn release(&mut self) -> io::Result<()> {
        self.say(RELEASED).await
    }

    /// Waits until the successor accepts connections.
    ///
    /// # Errors
    /// When it has gone, or takes too long.
    pub(super) async fn accepts(&mut self) -> io::Result<()> {
        let mut byte = [0];
        timeout(START_PATIENCE, self.0.read_exact(&mut byte)).await??;
        match byte {
            [ACCEPTS] => Ok(()),
            [other] => Err(said(other)),
        }
    }

    /// Leaves the place to the successor.
    ///
    /// # Errors
    /// When the successor has gone; then the place has not changed hands.
    pub(super) async fn go(mut self) -> io::Result<()> {
        self.say(GOES).await
    }

    /// Sends the successor away, if it is still there.
    pub(super) async fn send_away(mut self) {
        if let Err(error) = self.say(LATE).await {
            tracing::debug!(%error, "the successor has gone already");
        }
    }

    async fn say(&mut self, byte: u8) -> io::Result<()> {
        timeout(PATIENCE, self.0.write_all(&[byte])).await?
    }
}

impl Predecessor {
    /// Tells that connections are accepted, and waits for the other to go.
    ///
    /// # Errors
    /// When the other goes on instead.
    pub(super) fn confirm(mut self) -> Result<(), TooLate> {
        // To one that has sent its answer already nothing can be said any more.
        let said = self.0.write_all(&[ACCEPTS]);
        let mut byte = [0];
        match self.0.read_exact(&mut byte).map(|()| byte) {
            Ok([GOES]) => {}
            Ok([LATE]) => return Err(TooLate),
            Ok([other]) => tracing::warn!(error = %self::said(other), "the daemon before has gone in disorder"),
            Err(read) => {
                let error = said.err().unwrap_or(read);
                tracing::warn!(%error, "the daemon before has gone without an answer");
            }
        }
        Ok(())
    }
}

fn said(byte: u8) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it has said {byte:#04x}"))
}

/// Asks the daemon that runs on `database` for its place; `None` without one.
///
/// # Errors
/// When there is one and it does not give way.
pub(super) fn ask(database: &Path) -> io::Result<Option<(Inherited, Predecessor)>> {
    let mut stream = match UnixStream::connect(path(database)) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            tracing::info!("there is no daemon to take over from");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST)?;
    let mut inherited = Inherited::default();
    loop {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                received => break received?,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                for fd in fds {
                    inherited.add("taken over".to_owned(), fd)?;
                }
            }
        }
        match byte {
            _ if received.bytes == 0 => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended before it gave way"));
            }
            [SOCKETS] => {}
            [RELEASED] => return Ok(Some((inherited, Predecessor(stream)))),
            [other] => return Err(said(other)),
        }
    }
}

#[cfg(test)]
mod tests;
