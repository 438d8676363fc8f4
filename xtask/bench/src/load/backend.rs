//! The server behind every proxy: serves each connection as its hello asks.

use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, sockopt};

use super::counters::{Counters, Published};
use super::hello::{HEAD_LEN, Head, Service};
use super::socket::{Poller, Ready, Sink, Source, listen, pattern};
use super::turns::{Next, Turns};

/// Connections accepted before those already open have their turn.
const ACCEPT_TURNS: usize = 64;
/// Bytes of one echo, and the most that a connection can be answered with.
const SCRATCH: usize = 256 << 10;

/// Serves connections to `addr` for `lifetime`. When the file `release` appears, connections with stalled readers are
/// closed and the file is removed.
pub(super) fn serve(
    addr: SocketAddrV4,
    lifetime: Duration,
    release: Option<&Path>,
    mut counters: Published,
) -> anyhow::Result<()> {
    let listener = listen(addr)?;
    let poller = Poller::new(lifetime)?;
    let listener_token = listener.as_raw_fd() as usize;
    poller.add(&listener, listener_token, EventFlags::IN)?;
    counters.now.ready = 1;

    let mut bulk = Bulk { source: Source::new()?, sink: Sink::new(), scratch: pattern(SCRATCH) };
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut ready = Ready::new();
    while poller.wait(&mut counters, &mut ready)? {
        // Only an idle moment: a look at the file system has no place in a measurement.
        if let Some(release) = release.filter(|release| ready.iter().next().is_none() && release.exists()) {
            close_stalled(&mut connections, &mut counters.now);
            std::fs::remove_file(release).with_context(|| format!("removing {}", release.display()))?;
        }
        for (token, flags) in ready.iter() {
            if token == listener_token {
                accept(&listener, &poller, &mut connections, &mut counters.now)?;
                continue;
            }
            let Some(connection) = connections.get_mut(token).and_then(Option::as_mut) else { continue };
            if connection.turn(flags, &poller, &mut bulk, &mut counters.now)? {
                connections[token] = None;
                counters.now.open -= 1;
            }
        }
    }
    Ok(())
}

fn close_stalled(connections: &mut [Option<Connection>], counters: &mut Counters) {
    for place in connections {
        if let Some(Connection { stage: Stage::Turns { turns, .. }, .. }) = place
            && turns.is_stalled()
        {
            *place = None;
            counters.open -= 1;
        }
    }
}

fn accept(
    listener: &OwnedFd,
    poller: &Poller,
    connections: &mut Vec<Option<Connection>>,
    counters: &mut Counters,
) -> anyhow::Result<()> {
    for _ in 0..ACCEPT_TURNS {
        let socket = match rustix::net::accept_with(listener, SocketFlags::NONBLOCK) {
            Ok(socket) => socket,
            Err(Errno::AGAIN) => break,
            Err(_) => {
                counters.errors += 1;
                break;
            }
        };
        sockopt::set_tcp_nodelay(&socket, true)?;
        let token = socket.as_raw_fd() as usize;
        poller.add(&socket, token, EventFlags::IN)?;
        if connections.len() <= token {
            connections.resize_with(token + 1, || None);
        }
        connections[token] = Some(Connection { socket, stage: Stage::Greeting { head: [0; HEAD_LEN], got: 0 } });
        counters.open += 1;
    }
    Ok(())
}

/// What all connections send from and receive into.
#[derive(Debug)]
struct Bulk {
    source: Source,
    sink: Sink,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The hello has come as far as `got` bytes; its head is kept.
    Greeting {
        head: [u8; HEAD_LEN],
        got: usize,
    },
    Serving(Service),
    Turns {
        turns: Turns,
        waits_for: EventFlags,
    },
}

/// What reading the hello came to.
enum Greeting {
    Incomplete,
    Gone,
    Complete(Option<Service>),
}

impl Connection {
    /// Does what the socket permits now; true when the connection is over.
    fn turn(
        &mut self,
        flags: EventFlags,
        poller: &Poller,
        bulk: &mut Bulk,
        counters: &mut Counters,
    ) -> anyhow::Result<bool> {
        let service = match &mut self.stage {
            Stage::Serving(service) => *service,
            Stage::Turns { turns, waits_for } => {
                if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                    return Ok(true);
                }
                // A stalled reader, and a sender that is not read, look for nothing but the end.
                let seeks_end = waits_for.contains(EventFlags::RDHUP);
                if seeks_end && flags.contains(EventFlags::RDHUP) {
                    return Ok(true);
                }
                let next = turns.go(&self.socket, (&bulk.source, &mut bulk.sink, &bulk.scratch), counters);
                let Next::Wait(wanted) = next else { return Ok(true) };
                if wanted != *waits_for {
                    poller.modify(&self.socket, self.socket.as_raw_fd() as usize, wanted)?;
                    *waits_for = wanted;
                }
                return Ok(false);
            }
            Stage::Greeting { head, got } => match greet(&self.socket, head, got, &mut bulk.sink) {
                Greeting::Incomplete => return Ok(false),
                Greeting::Gone => return Ok(true),
                Greeting::Complete(None) => {
                    counters.errors += 1;
                    return Ok(true);
                }
                Greeting::Complete(Some(Service::Turns)) => {
                    self.stage = Stage::Turns { turns: Turns::default(), waits_for: EventFlags::IN };
                    return Ok(false);
                }
                Greeting::Complete(Some(service)) => {
                    self.stage = Stage::Serving(service);
                    return self.begin(service, poller, bulk, counters);
                }
            },
        };
        Ok(match service {
            Service::Sink => {
                let turn = bulk.sink.drain(&self.socket);
                counters.bytes_received += turn.bytes;
                turn.is_over
            }
            Service::Source if flags.intersects(EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP) => true,
            Service::Source => {
                let turn = bulk.source.pour(&self.socket);
                counters.bytes_sent += turn.bytes;
                turn.is_over
            }
            Service::Echo | Service::Answer(_) | Service::Hold | Service::Turns => self.echo(bulk, counters),
        })
    }

    /// What a service does once, right after the hello; true when the connection is over.
    fn begin(&self, service: Service, poller: &Poller, bulk: &Bulk, counters: &mut Counters) -> anyhow::Result<bool> {
        let answer = match service {
            Service::Answer(bytes) => bytes as usize,
            Service::Hold => 1,
            Service::Source => {
                let token = self.socket.as_raw_fd() as usize;
                poller.modify(&self.socket, token, EventFlags::OUT | EventFlags::RDHUP)?;
                return Ok(false);
            }
            Service::Sink | Service::Echo | Service::Turns => return Ok(false),
        };
        let Some(answer) = bulk.scratch.get(..answer) else {
            counters.errors += 1;
            return Ok(true);
        };
        let is_sent = rustix::net::send(&self.socket, answer, SendFlags::NOSIGNAL) == Ok(answer.len());
        counters.done += 1;
        Ok(!is_sent || matches!(service, Service::Answer(_)))
    }

    /// Sends back what has come; true when the peer is gone.
    fn echo(&self, bulk: &mut Bulk, counters: &mut Counters) -> bool {
        let received = match rustix::net::recv(&self.socket, &mut bulk.scratch[..], RecvFlags::empty()) {
            Ok((_, 0)) => return true,
            Ok((_, received)) => received,
            Err(error) => return error != Errno::AGAIN,
        };
        counters.bytes_received += received as u64;
        let mut rest = &bulk.scratch[..received];
        // Echoes are small and answered before the next: a full socket is rare and brief enough to spin on.
        while !rest.is_empty() {
            match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::AGAIN) => {}
                Err(_) => return true,
            }
        }
        counters.bytes_sent += received as u64;
        false
    }
}

/// Reads the head of the hello, then discards exactly the rest of its record.
fn greet(socket: impl AsFd, head: &mut [u8; HEAD_LEN], got: &mut usize, sink: &mut Sink) -> Greeting {
    if *got < HEAD_LEN {
        match rustix::net::recv(&socket, &mut head[*got..], RecvFlags::empty()) {
            Ok((_, 0)) => return Greeting::Gone,
            Ok((_, received)) => *got += received,
            Err(Errno::AGAIN) => return Greeting::Incomplete,
            Err(_) => return Greeting::Gone,
        }
        if *got < HEAD_LEN {
            return Greeting::Incomplete;
        }
    }
    let parsed = Head::parse(head);
    let left = parsed.hello_len.saturating_sub(*got);
    if left > 0 {
        let turn = sink.discard(socket, left);
        *got += turn.bytes as usize;
        if turn.is_over {
            return Greeting::Gone;
        }
    }
    if *got < parsed.hello_len { Greeting::Incomplete } else { Greeting::Complete(parsed.service) }
}
