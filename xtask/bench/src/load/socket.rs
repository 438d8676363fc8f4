//! Sockets, an epoll loop and the two bulk operations, as cheap as the kernel allows.
//!
//! Bulk bytes are never copied in user space (sendfile from a memfd, `MSG_TRUNC` on receipt), so that the proxy in the
//! middle is what limits a figure.

use std::cell::Cell;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{Timespec, epoll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::counters::Published;

/// Bytes offered to one sendfile, or asked of one discarding receive.
const BULK: usize = 1 << 20;
/// Bulk calls on one socket before the others have their turn.
const BULK_TURNS: usize = 4;
/// A receive under this means that the socket is drained, more likely than not.
const NEARLY_EMPTY: usize = 64 << 10;
const EVENTS: usize = 256;
const LONGEST_WAIT: Duration = Duration::from_millis(200);
const WAIT_TO_PUBLISH: Duration = Duration::from_millis(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a turn on a socket came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) bytes: u64,
    /// The peer is gone.
    pub(super) is_over: bool,
}

/// Opens a listening socket with the longest backlog the namespace permits.
pub(super) fn listen(addr: SocketAddrV4) -> anyhow::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &addr).with_context(|| format!("binding {addr}"))?;
    rustix::net::listen(&socket, 65_535).with_context(|| format!("listening on {addr}"))?;
    Ok(socket)
}

/// Connects, or begins to when `flags` say not to block.
pub(super) fn connect(addr: SocketAddrV4, flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &addr) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Sends all of a small message in one call.
pub(super) fn send_whole(socket: impl AsFd, message: &[u8]) -> anyhow::Result<()> {
    let sent = rustix::net::send(socket, message, SendFlags::NOSIGNAL)?;
    anyhow::ensure!(sent == message.len(), "sent {sent} of {} bytes", message.len());
    Ok(())
}

/// Bytes to send, kept in the page cache.
#[derive(Debug)]
pub(super) struct Source(OwnedFd);

impl Source {
    pub(super) fn new() -> anyhow::Result<Self> {
        let memfd = rustix::fs::memfd_create("load", MemfdFlags::CLOEXEC).context("memfd_create")?;
        let file = std::fs::File::from(memfd);
        std::os::unix::fs::FileExt::write_all_at(&file, &pattern(BULK), 0).context("filling the memfd")?;
        Ok(Self(file.into()))
    }

    /// Sends until the socket is full, at most a few MiB.
    pub(super) fn pour(&self, socket: impl AsFd) -> Turn {
        self.pour_at_most(socket, u64::MAX)
    }

    /// Sends until the socket is full, at most a few MiB and at most `limit` bytes.
    pub(super) fn pour_at_most(&self, socket: impl AsFd, limit: u64) -> Turn {
        let mut turn = Turn { bytes: 0, is_over: false };
        for _ in 0..BULK_TURNS {
            let offered = usize::try_from(limit - turn.bytes).map_or(BULK, |left| left.min(BULK));
            if offered == 0 {
                break;
            }
            match rustix::fs::sendfile(&socket, &self.0, Some(&mut 0), offered) {
                Ok(sent) => {
                    turn.bytes += sent as u64;
                    if sent < offered {
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    turn.is_over = true;
                    break;
                }
            }
        }
        turn
    }

    /// Sends from `bytes` by copying them, in one call and at most `limit`.
    pub(super) fn copy(socket: impl AsFd, bytes: &[u8], limit: u64) -> Turn {
        let offered = usize::try_from(limit).map_or(bytes.len(), |limit| limit.min(bytes.len()));
        match rustix::net::send(socket, &bytes[..offered], SendFlags::NOSIGNAL) {
            Ok(sent) => Turn { bytes: sent as u64, is_over: false },
            Err(error) => Turn { bytes: 0, is_over: error != Errno::AGAIN },
        }
    }
}

/// Where received bytes would go if `MSG_TRUNC` did not discard them in the kernel: its pages are never touched.
#[derive(Debug)]
pub(super) struct Sink(Vec<u8>);

impl Sink {
    pub(super) fn new() -> Self {
        Self(vec![0; BULK])
    }

    /// Discards what has come, at most a few MiB.
    pub(super) fn drain(&mut self, socket: impl AsFd) -> Turn {
        let mut turn = Turn { bytes: 0, is_over: false };
        for _ in 0..BULK_TURNS {
            let step = self.discard(&socket, BULK);
            turn.bytes += step.bytes;
            turn.is_over = step.is_over;
            if step.is_over || step.bytes < NEARLY_EMPTY as u64 {
                break;
            }
        }
        turn
    }

    /// Discards at most `limit` bytes in one call.
    pub(super) fn discard(&mut self, socket: impl AsFd, limit: usize) -> Turn {
        let limit = limit.min(self.0.len());
        match rustix::net::recv(socket, &mut self.0[..limit], RecvFlags::TRUNC) {
            Ok((_, 0)) => Turn { bytes: 0, is_over: true },
            Ok((_, received)) => Turn { bytes: received as u64, is_over: false },
            Err(error) => Turn { bytes: 0, is_over: error != Errno::AGAIN },
        }
    }
}

/// Bytes that do not repeat with a short period, so that a shift or a swap in a proxy shows.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 131) >> 3) as u8).collect()
}

/// An epoll instance that ends at a deadline, or when told to, and publishes counters as it goes.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: OwnedFd,
    deadline: Instant,
    /// Ends the loop as soon as it exists.
    stop: Option<PathBuf>,
    looked_at: Cell<Instant>,
}

impl Poller {
    pub(super) fn new(lifetime: Duration) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create")?;
        let now = Instant::now();
        Ok(Self { epoll, deadline: now + lifetime, stop: None, looked_at: Cell::new(now) })
    }

    /// Ends the loop when there is a file of this name, too.
    pub(super) fn stop_at(mut self, stop: Option<&Path>) -> Self {
        self.stop = stop.map(Path::to_owned);
        self
    }

    fn is_stopped(&self, now: Instant) -> bool {
        let Some(stop) = &self.stop else { return false };
        if now.duration_since(self.looked_at.get()) < LOOK_EVERY {
            return false;
        }
        self.looked_at.set(now);
        stop.exists()
    }

    pub(super) fn add(&self, socket: impl AsFd, token: usize, flags: epoll::EventFlags) -> anyhow::Result<()> {
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token as u64), flags).context("epoll_ctl add")
    }

    pub(super) fn modify(&self, socket: impl AsFd, token: usize, flags: epoll::EventFlags) -> anyhow::Result<()> {
        epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(token as u64), flags).context("epoll_ctl mod")
    }

    pub(super) fn remove(&self, socket: impl AsFd) -> anyhow::Result<()> {
        epoll::delete(&self.epoll, socket).context("epoll_ctl del")
    }

    /// Publishes `counters`, waits, and fills `ready` with tokens and what happened to them; false at the deadline.
    pub(super) fn wait(&self, counters: &mut Published, ready: &mut Ready) -> anyhow::Result<bool> {
        let now = Instant::now();
        if now >= self.deadline || self.is_stopped(now) {
            counters.flush(now)?;
            return Ok(false);
        }
        let longest = match (counters.publish(now)?, &self.stop) {
            (true, _) => WAIT_TO_PUBLISH,
            (false, Some(_)) => LOOK_EVERY,
            (false, None) => LONGEST_WAIT,
        };
        let timeout = Timespec::try_from(longest).context("epoll timeout")?;
        ready.len = match epoll::wait(&self.epoll, &mut ready.events[..], Some(&timeout)) {
            Ok(len) => len,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error).context("epoll_wait"),
        };
        Ok(true)
    }
}

/// What one wait of a [`Poller`] found.
pub(super) struct Ready {
    events: [epoll::Event; EVENTS],
    len: usize,
}

impl Ready {
    pub(super) fn new() -> Self {
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        Self { events: [none; EVENTS], len: 0 }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, epoll::EventFlags)> {
        self.events[..self.len].iter().map(|event| {
            let (data, flags) = (event.data, event.flags);
            (data.u64() as usize, flags)
        })
    }
}
