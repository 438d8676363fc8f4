//! The client of stalled readers: one side sends all it can, the other has stopped to read.
//!
//! It sets its connections up first, says so, and begins when a file appears: what memory was before is to be looked at
//! in between.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, ensure};
use rustix::event::epoll::EventFlags;
use rustix::net::{RecvFlags, sockopt};

use super::client::{Direction, Plan, greeted};
use super::counters::Published;
use super::hello::{Service, client_hello};
use super::socket::{Poller, Ready, Sink, Source, pattern};
use super::turns::{REQUEST_LEN, Request, ask};

/// What a sender has for each connection: 10 GB.
pub(crate) const OFFERED: u64 = 10_000_000_000;
/// Round trips before a chatty connection stalls: enough for a proxy to take it for one.
const CHATS: u32 = 400;
/// Bytes before a busy connection stalls: enough for buffers to have grown to what they grow to.
const BUSY_BYTES: u64 = 256 << 20;
/// Bytes offered to one send.
const PIECE: usize = 256 << 10;

/// What a connection does before its reader stalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Before {
    /// Nothing.
    Nothing,
    /// Round trips.
    Chats,
    /// Bytes in bulk, in the direction that stalls.
    Bulk,
}

/// Sets connections up, waits for `go`, and lets their readers stall until the deadline.
pub(super) fn stall(
    plan: &Plan,
    (direction, before): (Direction, Before),
    go: &Path,
    mut counters: Published,
) -> anyhow::Result<()> {
    let (source, mut sink, piece) = (Source::new()?, Sink::new(), pattern(PIECE));
    let mut sockets = Vec::with_capacity(plan.connections);
    for _ in 0..plan.connections {
        let socket = greeted(plan.addr, &client_hello(Service::Turns))?;
        // The end is a reset: bytes that nobody reads would keep a connection open that is only closed.
        sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO))?;
        prepare(&socket, direction, before, (&source, &mut sink)).context("before the stall")?;
        sockets.push(socket);
        counters.now.open += 1;
    }
    counters.now.ready = 1;
    // Nothing else stops this loop: it is over when the file is there.
    let gate = Poller::new(plan.lifetime)?.stop_at(Some(go));
    let mut ready = Ready::new();
    while gate.wait(&mut counters, &mut ready)? {}

    let poller = plan.poller()?;
    let mut left = vec![OFFERED; sockets.len()];
    for (token, socket) in sockets.iter().enumerate() {
        let (request, interest) = match direction {
            Direction::Up => (Request { up: OFFERED, down: 0, is_stall: true }, EventFlags::OUT),
            Direction::Down => (Request { up: 0, down: OFFERED, is_stall: true }, EventFlags::empty()),
        };
        ask(socket, request)?;
        rustix::io::ioctl_fionbio(socket, true)?;
        poller.add(socket, token, interest)?;
    }
    while poller.wait(&mut counters, &mut ready)? {
        for (token, flags) in ready.iter() {
            let turn = Source::copy(&sockets[token], &piece, left[token]);
            left[token] -= turn.bytes;
            counters.now.bytes_sent += turn.bytes;
            if turn.is_over || flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                counters.now.errors += 1;
                counters.now.open = counters.now.open.saturating_sub(1);
                poller.remove(&sockets[token])?;
            } else if left[token] == 0 {
                poller.modify(&sockets[token], token, EventFlags::empty())?;
            }
        }
    }
    Ok(())
}

fn prepare(
    socket: &OwnedFd,
    direction: Direction,
    before: Before,
    (source, sink): (&Source, &mut Sink),
) -> anyhow::Result<()> {
    // One round trip at least: the connection through the proxy is to stand.
    let chats = if before == Before::Chats { CHATS } else { 1 };
    for _ in 0..chats {
        ask(socket, Request::CHAT)?;
        receive(socket, REQUEST_LEN as u64, sink)?;
    }
    match (before, direction) {
        (Before::Nothing | Before::Chats, _) => Ok(()),
        (Before::Bulk, Direction::Down) => {
            ask(socket, Request::burst_down(BUSY_BYTES))?;
            receive(socket, BUSY_BYTES, sink)
        }
        (Before::Bulk, Direction::Up) => {
            ask(socket, Request::burst_up(BUSY_BYTES))?;
            let mut left = BUSY_BYTES;
            while left > 0 {
                let turn = source.pour_at_most(socket, left);
                ensure!(!turn.is_over, "the connection was closed");
                left -= turn.bytes;
            }
            let (_, received) = rustix::net::recv(socket, &mut [0; 1], RecvFlags::empty()).context("no answer")?;
            ensure!(received == 1, "the connection was closed");
            Ok(())
        }
    }
}

/// Discards `bytes` from a socket that blocks.
fn receive(socket: &OwnedFd, bytes: u64, sink: &mut Sink) -> anyhow::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let turn = sink.discard(socket, left.try_into().unwrap_or(usize::MAX));
        ensure!(!turn.is_over && turn.bytes > 0, "the connection was closed, or silent for too long");
        left -= turn.bytes;
    }
    Ok(())
}
