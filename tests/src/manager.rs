//! A service manager as the daemon sees one: it is notified, keeps descriptors (`FDSTORE=1`), and passes them on to the
//! next start (`LISTEN_FDS`).

use std::{
    fs,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    fs::fstat,
    io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};

/// What systemd calls `FileDescriptorStoreMax=`.
const STORE_MAX: usize = 256;

/// Where the daemon's process finds what is passed on: beyond what it has open itself.
const FIRST_COPY: i32 = 200;

/// The manager of one service.
#[derive(Debug)]
pub struct ServiceManager {
    path: PathBuf,
    socket: UnixDatagram,
    store: Vec<(String, OwnedFd)>,
}

impl ServiceManager {
    /// Listens in `directory`.
    pub fn new(directory: &Path) -> Result<Self> {
        let path = directory.join("manager.sock");
        let socket = UnixDatagram::bind(&path).context("binding the notification socket")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self { path, socket, store: Vec::new() })
    }

    /// Descriptors that it keeps.
    pub fn stored(&self) -> usize {
        self.store.len()
    }

    /// A socket of a socket unit, or one that another daemon has left.
    pub fn keep(&mut self, name: &str, fd: OwnedFd) {
        self.store.push((name.to_owned(), fd));
    }

    /// Forgets what it keeps, as systemd does when a service has stopped for good.
    pub fn forget(&mut self) {
        self.store.clear();
    }

    /// The command that starts `command` with everything that is kept; the copies have to live until it runs.
    pub(crate) fn wrap(&self, command: &Command) -> Result<(Command, Vec<OwnedFd>)> {
        let mut copies = Vec::new();
        let mut redirections = String::new();
        for (number, (_, fd)) in (3..).zip(&self.store) {
            let copy = fcntl_dupfd_cloexec(fd, FIRST_COPY)?;
            redirections.push_str(&format!(" {number}<&{}", copy.as_raw_fd()));
            fcntl_setfd(&copy, FdFlags::empty())?;
            copies.push(copy);
        }
        // Only the process itself knows its number before it runs.
        let close = copies.iter().map(|copy| format!(" {}<&-", copy.as_raw_fd())).collect::<String>();
        let script = format!("exec{redirections}{close}; export LISTEN_PID=$$; exec \"$@\"");
        let names = self.store.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(":");
        let mut wrapped = Command::new("bash");
        wrapped.arg("-c").arg(script).arg("bash").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        wrapped.env("NOTIFY_SOCKET", &self.path).env("FDSTORE", STORE_MAX.to_string());
        if !self.store.is_empty() {
            wrapped.env("LISTEN_FDS", self.store.len().to_string()).env("LISTEN_FDNAMES", names);
        }
        Ok((wrapped, copies))
    }

    /// Hears the daemon once, if it says something soon. Whether it has said that it is ready.
    pub(crate) fn hear(&mut self) -> Result<bool> {
        let mut message = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let length =
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => received.bytes,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
                Err(error) => return Err(error).context("hearing the daemon"),
            };
        let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default()).into_owned();
        let mut fds = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        let says = |line: &str| text.lines().any(|known| known == line);
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored").to_owned();
        if says("FDSTORE=1") {
            ensure!(!fds.is_empty(), "nothing came with {text:?}");
            ensure!(!name.contains(':') && name.len() <= 255, "{name:?} is no name for systemd");
            for fd in fds {
                self.keep_once(&name, fd)?;
            }
            ensure!(self.store.len() <= STORE_MAX, "the store is full");
        }
        if says("FDSTOREREMOVE=1") {
            self.store.retain(|(known, _)| *known != name);
        }
        Ok(says("READY=1"))
    }

    /// What it has already is not kept twice.
    fn keep_once(&mut self, name: &str, fd: OwnedFd) -> Result<()> {
        let inode = fstat(&fd)?.st_ino;
        for (_, known) in &self.store {
            if fstat(known)?.st_ino == inode {
                return Ok(());
            }
        }
        self.store.push((name.to_owned(), fd));
        Ok(())
    }
}
