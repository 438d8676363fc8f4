//! The clients: bulk streams, short connections, round trips, idle connections, and a probe for correctness.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, sockopt};
use serde::{Deserialize, Serialize};

use super::counters::Published;
use super::hello::{Service, client_hello};
use super::histogram::Histogram;
use super::socket::{Poller, Ready, Sink, Source, connect, pattern, send_whole};

const SCRATCH: usize = 256 << 10;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections on their way up at the same time.
const OPENING: usize = 128;
const PROBE_BYTES: usize = 200 << 10;
const PROBE_MESSAGE: usize = 4096;
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(1);
const PAUSE_BETWEEN_PROBES: Duration = Duration::from_millis(50);

/// Which way the bytes of a stream go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Direction {
    /// Client to backend.
    Up,
    /// Backend to client.
    Down,
}

/// Where to, how many, and for how long.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) addr: SocketAddrV4,
    pub(super) connections: usize,
    pub(super) lifetime: Duration,
    /// Latencies of the first while are not counted.
    pub(super) warm_up: Duration,
    /// Ends a client before its lifetime does, as soon as there is such a file.
    pub(super) stop: Option<PathBuf>,
}

impl Plan {
    pub(super) fn poller(&self) -> anyhow::Result<Poller> {
        Ok(Poller::new(self.lifetime)?.stop_at(self.stop.as_deref()))
    }
}

/// Latencies of what a client did after its warm-up.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Latencies {
    pub(crate) done: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

/// Keeps every connection full, or drained, until the deadline.
pub(super) fn stream(plan: &Plan, direction: Direction, mut counters: Published) -> anyhow::Result<()> {
    let (service, interest) = match direction {
        Direction::Up => (Service::Sink, EventFlags::OUT),
        Direction::Down => (Service::Source, EventFlags::IN),
    };
    let poller = plan.poller()?;
    let mut sockets = Vec::with_capacity(plan.connections);
    for token in 0..plan.connections {
        let socket = greeted(plan.addr, &client_hello(service))?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        poller.add(&socket, token, interest)?;
        sockets.push(Some(socket));
        counters.now.open += 1;
    }
    counters.now.ready = 1;

    let (source, mut sink) = (Source::new()?, Sink::new());
    let mut ready = Ready::new();
    while counters.now.open > 0 && poller.wait(&mut counters, &mut ready)? {
        for (token, _) in ready.iter() {
            let Some(socket) = &sockets[token] else { continue };
            let turn = match direction {
                Direction::Up => source.pour(socket),
                Direction::Down => sink.drain(socket),
            };
            match direction {
                Direction::Up => counters.now.bytes_sent += turn.bytes,
                Direction::Down => counters.now.bytes_received += turn.bytes,
            }
            if turn.is_over {
                sockets[token] = None;
                counters.now.errors += 1;
                counters.now.open -= 1;
            }
        }
    }
    counters.flush(Instant::now())
}

/// Connects, sends the hello, reads `size` bytes until the peer closes, and begins anew, on every connection.
pub(super) fn rate(plan: &Plan, size: u32, mut counters: Published) -> anyhow::Result<Latencies> {
    let hello = client_hello(Service::Answer(size));
    let poller = plan.poller()?;
    let mut slots = Vec::with_capacity(plan.connections);
    for token in 0..plan.connections {
        slots.push(Some(Slot::open(plan.addr, &poller, token, &mut counters)?));
    }
    counters.now.ready = 1;

    let mut latencies = Warmed::new(plan.warm_up);
    let mut scratch = vec![0; SCRATCH];
    let mut ready = Ready::new();
    while poller.wait(&mut counters, &mut ready)? {
        for (token, flags) in ready.iter() {
            let Some(slot) = &mut slots[token] else { continue };
            let is_whole = if flags.contains(EventFlags::OUT) && !slot.is_greeted {
                slot.is_greeted = true;
                if send_whole(&slot.socket, &hello).is_ok() {
                    poller.modify(&slot.socket, token, EventFlags::IN)?;
                    continue;
                }
                false
            } else {
                match rustix::net::recv(&slot.socket, &mut scratch[..], RecvFlags::empty()) {
                    Ok((_, 0)) => slot.received == size as usize,
                    Ok((_, received)) => {
                        slot.received += received;
                        continue;
                    }
                    Err(Errno::AGAIN) => continue,
                    Err(_) => false,
                }
            };
            let began = slot.began;
            slots[token] = None;
            let now = Instant::now(); // closing is part of a connection's life
            if is_whole {
                counters.now.done += 1;
                latencies.add(now, began);
            } else {
                counters.now.errors += 1;
            }
            slots[token] = Some(Slot::open(plan.addr, &poller, token, &mut counters)?);
        }
    }
    Ok(latencies.summary())
}

/// Keeps one message of `size` bytes in flight on each connection.
pub(super) fn ping(plan: &Plan, size: usize, mut counters: Published) -> anyhow::Result<Latencies> {
    ensure!((1..=SCRATCH).contains(&size), "a message has 1 to {SCRATCH} bytes");
    let poller = plan.poller()?;
    let message = pattern(size);
    let mut slots = Vec::with_capacity(plan.connections);
    for token in 0..plan.connections {
        let socket = greeted(plan.addr, &client_hello(Service::Echo))?;
        // One round trip first, so that whatever a proxy sets up after the hello is in place.
        send_whole(&socket, b"x").context("first message")?;
        let (_, received) = rustix::net::recv(&socket, &mut [0; 1], RecvFlags::empty()).context("first echo")?;
        ensure!(received == 1, "closed before the first echo");
        rustix::io::ioctl_fionbio(&socket, true)?;
        poller.add(&socket, token, EventFlags::IN)?;
        slots.push(Slot { socket, began: Instant::now(), is_greeted: true, received: 0 });
    }
    for slot in &mut slots {
        slot.began = Instant::now();
        send_whole(&slot.socket, &message)?;
    }
    counters.now.open = plan.connections as u64;
    counters.now.ready = 1;

    let mut latencies = Warmed::new(plan.warm_up);
    let mut scratch = vec![0; SCRATCH];
    let mut ready = Ready::new();
    while poller.wait(&mut counters, &mut ready)? {
        for (token, _) in ready.iter() {
            let slot = &mut slots[token];
            match rustix::net::recv(&slot.socket, &mut scratch[..], RecvFlags::empty()) {
                Ok((_, 0)) => bail!("a connection was closed after {} round trips", counters.now.done),
                Ok((_, received)) => slot.received += received,
                Err(Errno::AGAIN) => continue,
                Err(error) => return Err(error).context("waiting for an echo"),
            }
            if slot.received < size {
                continue;
            }
            let now = Instant::now();
            counters.now.done += 1;
            latencies.add(now, slot.began);
            (slot.began, slot.received) = (now, 0);
            send_whole(&slot.socket, &message)?;
        }
    }
    Ok(latencies.summary())
}

/// Opens connections that get one byte and then stay silent until the deadline.
pub(super) fn idle(plan: &Plan, mut counters: Published) -> anyhow::Result<()> {
    let hello = client_hello(Service::Hold);
    let poller = plan.poller()?;
    let mut slots: Vec<Option<Slot>> = Vec::with_capacity(plan.connections);
    let mut ready = Ready::new();
    loop {
        let settled = (counters.now.open + counters.now.errors) as usize;
        while slots.len() < plan.connections && slots.len().saturating_sub(settled) < OPENING {
            let slot = Slot::open(plan.addr, &poller, slots.len(), &mut counters)?;
            slots.push(Some(slot));
        }
        counters.now.done = counters.now.open;
        counters.now.ready = u64::from(settled >= plan.connections);
        if !poller.wait(&mut counters, &mut ready)? {
            return Ok(());
        }
        for (token, flags) in ready.iter() {
            let Some(slot) = &mut slots[token] else { continue };
            if flags.contains(EventFlags::OUT) && !slot.is_greeted {
                slot.is_greeted = true;
                if send_whole(&slot.socket, &hello).is_ok() {
                    poller.modify(&slot.socket, token, EventFlags::IN)?;
                    continue;
                }
            } else if slot.received == 0
                && matches!(rustix::net::recv(&slot.socket, &mut [0; 1], RecvFlags::empty()), Ok((_, 1)))
            {
                slot.received = 1;
                counters.now.open += 1;
                continue;
            }
            if slot.received == 1 {
                counters.now.open -= 1;
            }
            counters.now.errors += 1;
            slots[token] = None;
        }
    }
}

/// Ends well once 200 KiB have come back unharmed; tries until the deadline.
pub(super) fn probe(plan: &Plan) -> anyhow::Result<()> {
    let deadline = Instant::now() + plan.lifetime;
    loop {
        match echo_once(plan.addr) {
            Ok(is_unharmed) => {
                ensure!(is_unharmed, "the bytes came back changed");
                return Ok(());
            }
            Err(error) if Instant::now() >= deadline => return Err(error).context("no answer through the proxy"),
            Err(_) => pause(PAUSE_BETWEEN_PROBES)?,
        }
    }
}

fn echo_once(addr: SocketAddrV4) -> anyhow::Result<bool> {
    let socket = greeted(addr, &client_hello(Service::Echo))?;
    let mut back = [0; PROBE_MESSAGE];
    for message in pattern(PROBE_BYTES).chunks_exact(PROBE_MESSAGE) {
        send_whole(&socket, message)?;
        let mut got = 0;
        while got < back.len() {
            let (_, received) = rustix::net::recv(&socket, &mut back[got..], RecvFlags::empty())?;
            ensure!(received > 0, "closed in the middle of an echo");
            got += received;
        }
        if back != message {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A connection of a client that opens many without blocking.
#[derive(Debug)]
struct Slot {
    socket: OwnedFd,
    began: Instant,
    is_greeted: bool,
    received: usize,
}

impl Slot {
    /// Begins a connection, again and again while the kernel refuses to (ports run out).
    fn open(addr: SocketAddrV4, poller: &Poller, token: usize, counters: &mut Published) -> anyhow::Result<Self> {
        let began = Instant::now();
        loop {
            match connect(addr, SocketFlags::NONBLOCK) {
                Ok(socket) => {
                    poller.add(&socket, token, EventFlags::OUT)?;
                    return Ok(Self { socket, began, is_greeted: false, received: 0 });
                }
                Err(error) if began.elapsed() > ANSWER_TIMEOUT => return Err(error).context("connecting"),
                Err(_) => {
                    counters.now.errors += 1;
                    pause(PAUSE_AFTER_FAILURE)?;
                }
            }
        }
    }
}

/// Connects, sends the hello and bounds how long an answer may take.
pub(super) fn greeted(addr: SocketAddrV4, hello: &[u8]) -> anyhow::Result<OwnedFd> {
    let socket = connect(addr, SocketFlags::empty()).with_context(|| format!("connecting to {addr}"))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    let sent = rustix::net::send(&socket, hello, SendFlags::NOSIGNAL).context("sending the hello")?;
    ensure!(sent == hello.len(), "the hello did not fit the socket");
    Ok(socket)
}

pub(super) fn pause(duration: Duration) -> anyhow::Result<()> {
    let duration = rustix::time::Timespec::try_from(duration).context("pause")?;
    let _woken_early_does_no_harm = rustix::thread::nanosleep(&duration);
    Ok(())
}

/// A histogram that leaves out what ended before the warm-up did.
#[derive(Debug)]
pub(super) struct Warmed {
    histogram: Histogram,
    warm_at: Instant,
}

impl Warmed {
    pub(super) fn new(warm_up: Duration) -> Self {
        Self { histogram: Histogram::new(), warm_at: Instant::now() + warm_up }
    }

    pub(super) fn add(&mut self, now: Instant, began: Instant) {
        if now >= self.warm_at {
            self.histogram.add(now.duration_since(began));
        }
    }

    pub(super) fn summary(&self) -> Latencies {
        Latencies {
            done: self.histogram.count(),
            p50_us: self.histogram.quantile_us(0.5),
            p99_us: self.histogram.quantile_us(0.99),
            p999_us: self.histogram.quantile_us(0.999),
            max_us: self.histogram.max_us(),
        }
    }
}
