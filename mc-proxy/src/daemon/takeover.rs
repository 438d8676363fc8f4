//! One daemon takes the place of another that runs: `mc-proxy server --takeover`.
//!
//! The successor connects to a socket beside the database and asks. The daemon that runs stops accepting, gives up the
//! admin socket and the database, and passes its listening sockets on. What comes meanwhile waits in their queues, which
//! are the same sockets in both processes, for the successor to accept. The old daemon ends when its connections have.
//!
//! ```text
//! successor                              daemon
//! "mc-proxy takeover 1\n"          ->
//!                                  <-    listening sockets (SCM_RIGHTS), each batch with a byte "s"
//!                                  <-    "r" once everything has been released, and the end
//! ```

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Write as _},
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
    io::AsyncReadExt as _,
    net::UnixListener,
    time::{sleep, timeout},
};

use super::{inherited::Inherited, notify::Named};

const REQUEST: &[u8] = b"mc-proxy takeover 1\n";
const SOCKETS: u8 = b's';
const RELEASED: u8 = b'r';

/// Descriptors in one message; the kernel takes 253.
const BATCH: usize = 64;

/// How long the other side may be silent. Until the database is released, what the control thread has begun is finished.
const PATIENCE: Duration = Duration::from_secs(30);

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
pub(super) struct Successor(UnixStream);

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
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Passes sockets on.
    ///
    /// # Errors
    /// When the successor has gone.
    pub(super) fn pass(&self, sockets: &[Named]) -> io::Result<()> {
        for batch in sockets.chunks(BATCH) {
            let batch: Vec<BorrowedFd<'_>> = batch.iter().map(|named| named.fd.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&batch)) {
                return Err(io::Error::other("the descriptors do not fit into a message"));
            }
            sendmsg(&self.0, &[IoSlice::new(&[SOCKETS])], &mut control, SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    /// Tells that the database and the admin socket are free.
    ///
    /// # Errors
    /// When the successor has gone.
    pub(super) fn release(mut self) -> io::Result<()> {
        self.0.write_all(&[RELEASED])
    }
}

/// Asks the daemon that runs on `database` for its place. Without one nothing is inherited.
///
/// # Errors
/// When there is one and it does not give way.
pub(super) fn ask(database: &Path) -> io::Result<Inherited> {
    let mut stream = match UnixStream::connect(path(database)) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            tracing::info!("there is no daemon to take over from");
            return Ok(Inherited::default());
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
            [RELEASED] => return Ok(inherited),
            [other] => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has said {other:#04x}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    #[tokio::test]
    async fn sockets_change_hands() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("mc-proxy.db");
        assert!(ask(&database).unwrap().close().is_empty(), "nobody is there");
        fs::write(path(&database), "stale").unwrap();
        let doorbell = Doorbell::bind(path(&database)).unwrap();
        let listeners: Vec<_> = (0..BATCH + 6).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addrs: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let sockets: Vec<_> =
            listeners.into_iter().map(|listener| Named { name: String::new(), fd: listener.into() }).collect();
        // Who asks for something else is turned away, and does not keep others from asking.
        UnixStream::connect(path(&database)).unwrap().write_all(b"mc-proxy takeover 2\n").unwrap();
        let asking = thread::spawn({
            let database = database.clone();
            move || ask(&database)
        });
        let successor = doorbell.rung().await;
        successor.pass(&sockets).unwrap();
        drop(sockets);
        successor.release().unwrap();
        let mut inherited = asking.join().unwrap().unwrap();
        for addr in addrs {
            assert_eq!(inherited.take(&addr.to_string().parse().unwrap()).len(), 1);
        }
        doorbell.remove();
        assert!(!path(&database).exists());
    }

    #[tokio::test]
    async fn a_daemon_that_dies_on_the_way_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("mc-proxy.db");
        let doorbell = Doorbell::bind(path(&database)).unwrap();
        let asking = thread::spawn({
            let database = database.clone();
            move || ask(&database)
        });
        drop(doorbell.rung().await);
        assert_eq!(asking.join().unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
