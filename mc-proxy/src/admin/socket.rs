//! The socket file of the admin API.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use nix::unistd::Group;
use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::Grpc;

const BACKLOG: i32 = 64;

/// A listening Unix socket, and the file that goes with it: dropping this removes the file, if it is still the one that
/// was made here.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// Why there is no socket; what to do about it is part of the message.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process accepts connections there.
    #[error(
        "grpc.addr: another process is listening on {}; stop it (`ss -xlp` shows it) or choose another path",
        .0.display()
    )]
    InUse(PathBuf),
    /// There is a file that is not a socket, and it stays.
    #[error("grpc.addr: {} exists and is not a socket; move it away or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The group of `grpc.socket_group` does not exist.
    #[error("grpc.socket_group: there is no group \"{0}\"; create it (`groupadd --system {0}`) or name another")]
    UnknownGroup(String),
    /// The socket file could not be given to the group.
    #[error(
        "grpc.socket_group: cannot give {} to group \"{group}\"; the daemon's user must be a member of it",
        .path.display()
    )]
    Group {
        /// The socket file.
        path: PathBuf,
        /// As configured.
        group: String,
        /// What the kernel or the name service said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("grpc.addr: cannot {what} {}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl AdminSocket {
    /// Makes the socket file and listens. A socket that nobody listens on is replaced. The file is never more open than
    /// `grpc.mode`, nor open to a group before it is `grpc.group`.
    ///
    /// Two daemons that start in the same instant are told apart by the lock on their database, not here.
    ///
    /// # Errors
    /// See [`SocketError`]; then there is no new file.
    pub fn bind(grpc: &Grpc) -> Result<Self, SocketError> {
        let path = grpc.path.as_path();
        let failed = |what| move |source| SocketError::Io { what, path: path.to_owned(), source };
        let group = grpc.group.as_deref().map(|name| lookup(name, path)).transpose()?;
        let address = SockAddr::unix(path).map_err(failed("use as the path of a socket"))?;
        remove_stale(path)?;

        let socket = bind_closed(&address).map_err(|source| {
            if source.kind() == io::ErrorKind::AddrInUse {
                SocketError::InUse(path.to_owned())
            } else {
                failed("bind")(source)
            }
        })?;
        let file = SocketFile::new(path).map_err(failed("inspect"))?;

        if let Some(group) = group {
            std::os::unix::fs::lchown(path, None, Some(group.gid.as_raw())).map_err(|source| SocketError::Group {
                path: path.to_owned(),
                group: group.name,
                source,
            })?;
        }
        let mode = fs::Permissions::from_mode(grpc.mode & 0o777);
        fs::set_permissions(path, mode).map_err(failed("set the mode of"))?;
        // Until here a connect(2) was refused.
        socket.listen(BACKLOG).map_err(failed("listen on"))?;
        Ok(Self { listener: socket.into(), file })
    }

    /// Where clients connect.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The two halves; the file is removed when the second is dropped.
    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// A socket file that is removed with this value.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: another daemon may have put its own file at the path.
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let removed = match identity(&self.path) {
            Ok(identity) if identity == self.identity => fs::remove_file(&self.path),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "cannot remove the admin socket");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// Makes the file with mode 0600, less the umask: bind(2) gives it the mode that the socket itself has.
fn bind_closed(address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(address)?;
    Ok(socket)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn lookup(name: &str, path: &Path) -> Result<Group, SocketError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group),
        Ok(None) => Err(SocketError::UnknownGroup(name.to_owned())),
        Err(error) => Err(SocketError::Group { path: path.to_owned(), group: name.to_owned(), source: error.into() }),
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |what| move |source| SocketError::Io { what, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("inspect")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    // On a full backlog a blocking connect would wait for the other daemon; that it waits tells enough.
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("make a socket for"))?;
    probe.set_nonblocking(true).map_err(failed("make a socket for"))?;
    let address = SockAddr::unix(path).map_err(failed("use as the path of a socket"))?;
    match probe.connect(&address) {
        Ok(()) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the socket that an earlier daemon has left");
            fs::remove_file(path).map_err(failed("remove the stale socket"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("find out who listens on")(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn at(path: PathBuf) -> Grpc {
        Grpc { path, mode: 0o660, group: None }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_file_has_the_mode_and_goes_with_the_value() {
        let dir = tempfile::tempdir().unwrap();
        for bits in [0o660, 0o600, 0o666] {
            let path = dir.path().join("admin.sock");
            let socket = AdminSocket::bind(&Grpc { mode: bits, ..at(path.clone()) }).unwrap();
            assert_eq!(socket.path(), path);
            assert_eq!(mode(&path), bits);
            UnixStream::connect(&path).unwrap();
            drop(socket);
            assert!(!path.exists());
        }
    }

    #[test]
    fn the_file_is_born_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let socket = bind_closed(&SockAddr::unix(&path).unwrap()).unwrap();
        assert_eq!(mode(&path) & !0o600, 0);
        // Bound, and not yet listening: nobody gets in before mode and group are what they should be.
        assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        drop(socket);
    }

    #[test]
    fn a_stale_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = AdminSocket::bind(&at(path.clone())).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(socket);
    }

    #[test]
    fn a_live_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = AdminSocket::bind(&at(path.clone())).unwrap();
        let error = AdminSocket::bind(&at(path.clone())).unwrap_err();
        assert!(matches!(&error, SocketError::InUse(p) if *p == path), "{error:?}");
        UnixStream::connect(first.path()).unwrap();
        assert!(path.exists());
    }

    #[test]
    fn another_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        let error = AdminSocket::bind(&at(path.clone())).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket(_)), "{error:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");

        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(AdminSocket::bind(&at(link)), Err(SocketError::NotASocket(_))));
    }

    #[test]
    fn the_file_of_a_successor_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = AdminSocket::bind(&at(path.clone())).unwrap();
        fs::remove_file(&path).unwrap();
        let second = AdminSocket::bind(&at(path.clone())).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn groups() {
        let dir = tempfile::tempdir().unwrap();
        let own = Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
        let path = dir.path().join("admin.sock");
        let grpc = Grpc { group: Some(own.name), ..at(path.clone()) };
        let socket = AdminSocket::bind(&grpc).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().gid(), own.gid.as_raw());
        drop(socket);

        let error = AdminSocket::bind(&Grpc { group: Some("no-such-group".into()), ..at(path.clone()) }).unwrap_err();
        assert!(error.to_string().contains("there is no group \"no-such-group\""), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn a_path_that_no_socket_can_have() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("x".repeat(120)), dir.path().join("missing/admin.sock")] {
            let error = AdminSocket::bind(&at(path.clone())).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
}
