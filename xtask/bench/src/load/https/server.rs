//! The loop under the backends behind the proxies: plaintext, without blocking, with answers that are made beforehand.

use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::Context;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, sockopt};

use super::super::counters::Published;
use super::super::socket::{Poller, Ready, listen};

/// Connections accepted before those already open have their turn.
const ACCEPT_TURNS: usize = 64;
const RECEIVE: usize = 64 << 10;

/// What one connection of a backend says to what it hears.
pub(super) trait Answers {
    /// Takes what has come and appends what is said to it; `None` when that makes no sense.
    fn receive(&mut self, data: &[u8], out: &mut Vec<u8>) -> Option<Tail>;
}

/// What follows the bytes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    Nothing,
    /// The file of large bodies, which are not copied.
    File,
}

/// Serves connections to `addr` for `lifetime`.
pub(super) fn serve<A: Answers>(
    addr: SocketAddrV4,
    lifetime: Duration,
    large: &Large,
    mut counters: Published,
    answers: impl Fn() -> A,
) -> anyhow::Result<()> {
    let listener = listen(addr)?;
    let poller = Poller::new(lifetime)?;
    let listener_token = listener.as_raw_fd() as usize;
    poller.add(&listener, listener_token, EventFlags::IN)?;
    counters.now.ready = 1;

    let mut connections: Vec<Option<Connection<A>>> = Vec::new();
    let mut scratch = vec![0; RECEIVE];
    let mut ready = Ready::new();
    while poller.wait(&mut counters, &mut ready)? {
        for (token, flags) in ready.iter() {
            if token == listener_token {
                for _ in 0..ACCEPT_TURNS {
                    // Whatever else goes wrong, the client sees it.
                    let Ok(socket) = rustix::net::accept_with(&listener, SocketFlags::NONBLOCK) else { break };
                    sockopt::set_tcp_nodelay(&socket, true)?;
                    let token = socket.as_raw_fd() as usize;
                    poller.add(&socket, token, EventFlags::IN)?;
                    if connections.len() <= token {
                        connections.resize_with(token + 1, || None);
                    }
                    connections[token] = Some(Connection::new(socket, answers()));
                    counters.now.open += 1;
                }
                continue;
            }
            let Some(connection) = connections.get_mut(token).and_then(Option::as_mut) else { continue };
            let waits_for = connection.waits_for;
            match connection.turn(flags, large, &mut scratch) {
                Some(wanted) if wanted != waits_for => {
                    poller.modify(&connection.socket, token, wanted)?;
                    connection.waits_for = wanted;
                }
                Some(_) => {}
                None => {
                    connections[token] = None;
                    counters.now.open -= 1;
                }
            }
        }
    }
    Ok(())
}

/// A body in the page cache.
#[derive(Debug)]
pub(super) struct Large {
    file: File,
    len: u64,
}

impl Large {
    pub(super) fn new(body: &[u8]) -> anyhow::Result<Self> {
        let memfd = rustix::fs::memfd_create("body", rustix::fs::MemfdFlags::CLOEXEC).context("memfd_create")?;
        let file = File::from(memfd);
        std::os::unix::fs::FileExt::write_all_at(&file, body, 0).context("filling the memfd")?;
        Ok(Self { file, len: body.len() as u64 })
    }
}

#[derive(Debug)]
struct Connection<A> {
    socket: OwnedFd,
    answers: A,
    out: Vec<u8>,
    sent: usize,
    /// How far the large body is sent that follows.
    large: Option<u64>,
    waits_for: EventFlags,
}

impl<A: Answers> Connection<A> {
    fn new(socket: OwnedFd, answers: A) -> Self {
        Self { socket, answers, out: Vec::new(), sent: 0, large: None, waits_for: EventFlags::IN }
    }

    /// Does what the socket permits now, and says what to wait for; `None` when the connection is over.
    fn turn(&mut self, flags: EventFlags, large: &Large, scratch: &mut [u8]) -> Option<EventFlags> {
        if flags.contains(EventFlags::ERR) {
            return None;
        }
        // What comes next waits until this is answered.
        if self.waits_for == EventFlags::IN {
            match rustix::net::recv(&self.socket, &mut *scratch, RecvFlags::empty()) {
                Ok((_, 0)) => return None,
                Ok((_, received)) => {
                    if self.answers.receive(&scratch[..received], &mut self.out)? == Tail::File {
                        self.large = Some(0);
                    }
                }
                Err(Errno::AGAIN) => {}
                Err(_) => return None,
            }
        }
        Some(if self.flush(large)? { EventFlags::IN } else { EventFlags::OUT })
    }

    /// Sends what the socket takes; true when nothing is left, `None` when the peer is gone.
    fn flush(&mut self, large: &Large) -> Option<bool> {
        let more = if self.large.is_some() { SendFlags::MORE } else { SendFlags::empty() };
        while self.sent < self.out.len() {
            match rustix::net::send(&self.socket, &self.out[self.sent..], SendFlags::NOSIGNAL | more) {
                Ok(sent) => self.sent += sent,
                Err(Errno::AGAIN) => return Some(false),
                Err(_) => return None,
            }
        }
        self.out.clear();
        self.sent = 0;
        while let Some(at) = &mut self.large {
            let left = usize::try_from(large.len - *at).ok()?;
            match rustix::fs::sendfile(&self.socket, &large.file, Some(at), left) {
                Ok(sent) if sent == left => self.large = None,
                Ok(_) => {}
                Err(Errno::AGAIN) => return Some(false),
                Err(_) => return None,
            }
        }
        Some(true)
    }
}
