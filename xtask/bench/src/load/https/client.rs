//! The loop under every client over TLS: connections that do exchanges until they are told to stop.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::epoll::EventFlags;
use rustls::{ClientConfig, HandshakeKind};
use serde::{Deserialize, Serialize};

use super::super::client::{Latencies, Plan, Warmed, pause};
use super::super::counters::{Counters, Published};
use super::super::socket::{Poller, Ready};
use super::tls::{Peer, Secured, Sessions, with_sessions};

/// How long the kernel may refuse to begin a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(1);

/// What is said on one connection, in plaintext.
pub(super) trait Session {
    /// The handshake is done: appends what the client says first.
    fn begin(&mut self, out: &mut Vec<u8>, now: Instant);

    /// Takes what has come, appends what is to be said, and counts what is done.
    fn receive(&mut self, data: &[u8], out: &mut Vec<u8>, tally: &mut Tally<'_>) -> anyhow::Result<()>;

    /// Whether the client is to close, since the proxy will not take another request.
    fn is_over(&self) -> bool;

    /// The proxy has closed: an error if it should not have.
    fn close(&mut self, tally: &mut Tally<'_>) -> anyhow::Result<()>;
}

/// Counts what is done.
#[derive(Debug)]
pub(super) struct Tally<'a> {
    counters: &'a mut Counters,
    latencies: &'a mut Warmed,
    now: Instant,
}

impl<'a> Tally<'a> {
    pub(super) fn new(counters: &'a mut Counters, latencies: &'a mut Warmed) -> Self {
        Self { counters, latencies, now: Instant::now() }
    }

    /// When the bytes at hand came.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// An exchange that `began` then is done.
    pub(super) fn done(&mut self, began: Instant) {
        self.counters.done += 1;
        self.latencies.add(self.now, began);
    }

    /// So many bytes of a body have come.
    pub(super) fn bytes(&mut self, bytes: usize) {
        self.counters.bytes_received += bytes as u64;
    }
}

/// What a client prints.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) latencies: Latencies,
    /// Handshakes of the whole run, by their kind.
    pub(crate) full: u64,
    pub(crate) resumed: u64,
}

/// What is asked of the connections.
#[derive(Debug)]
pub(super) struct Demand {
    pub(super) config: ClientConfig,
    pub(super) sessions: Sessions,
    pub(super) alpn: &'static [u8],
    /// Ends well as soon as so much is done, and badly if that does not come to pass: a probe.
    pub(super) enough: Option<Enough>,
}

/// What a probe has to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Enough {
    /// As many exchanges as there are connections.
    Exchanges,
    /// The same, and a handshake that resumes a session.
    Resumed,
}

/// Does exchanges on all connections of the plan; those that end are begun anew.
pub(super) fn run<S: Session>(
    plan: &Plan,
    demand: &Demand,
    mut counters: Published,
    mut session: impl FnMut(Instant) -> S,
) -> anyhow::Result<Outcome> {
    let poller = plan.poller()?;
    let mut latencies = Warmed::new(plan.warm_up);
    let mut run = Run { handshakes: Handshakes::default(), scratch: Vec::new(), out: Vec::new(), alpn: demand.alpn };
    let configs: Vec<Arc<ClientConfig>> =
        (0..plan.connections).map(|_| with_sessions(&demand.config, demand.sessions)).collect();
    let mut slots = Vec::with_capacity(plan.connections);
    for (token, config) in configs.iter().enumerate() {
        slots.push(open((plan.addr, config), &poller, token, &mut session, &mut counters)?);
    }
    let mut failure = None;
    let mut ready = Ready::new();
    while poller.wait(&mut counters, &mut ready)? {
        for (token, flags) in ready.iter() {
            let slot = &mut slots[token];
            let mut tally = Tally::new(&mut counters.now, &mut latencies);
            let turn = slot.turn(flags, &mut run, &mut tally);
            let is_over = match turn {
                Ok(Next::Over) => true,
                Ok(Next::Wait { for_room }) if for_room != slot.waits_for_room => {
                    let room = if for_room { EventFlags::OUT } else { EventFlags::empty() };
                    poller.modify(&slot.tls.socket, token, EventFlags::IN | room)?;
                    slot.waits_for_room = for_room;
                    false
                }
                Ok(Next::Wait { .. }) => false,
                Err(error) => {
                    counters.now.errors += 1;
                    failure = Some(error);
                    // Or a proxy that refuses everybody would be asked without end.
                    pause(PAUSE_AFTER_FAILURE)?;
                    true
                }
            };
            if is_over {
                *slot = open((plan.addr, &configs[token]), &poller, token, &mut session, &mut counters)?;
            }
        }
        // All connections are up, or what stands for it where they are short.
        let is_up = counters.now.done >= plan.connections as u64;
        counters.now.ready = is_up.into();
        let is_enough = match demand.enough {
            None => false,
            Some(Enough::Exchanges) => is_up,
            Some(Enough::Resumed) => is_up && run.handshakes.resumed > 0,
        };
        if is_enough {
            counters.flush(Instant::now())?;
            return Ok(run.handshakes.outcome(&latencies));
        }
    }
    if demand.enough.is_some() {
        let Handshakes { full, resumed } = run.handshakes;
        let seen = format!("{} exchanges, {full} full handshakes, {resumed} resumed", counters.now.done);
        return Err(failure.unwrap_or_else(|| anyhow::anyhow!("no answer")).context(seen));
    }
    Ok(run.handshakes.outcome(&latencies))
}

#[derive(Debug, Default)]
struct Handshakes {
    full: u64,
    resumed: u64,
}

impl Handshakes {
    fn outcome(&self, latencies: &Warmed) -> Outcome {
        Outcome { latencies: latencies.summary(), full: self.full, resumed: self.resumed }
    }
}

/// What the connections share.
#[derive(Debug)]
struct Run {
    handshakes: Handshakes,
    scratch: Vec<u8>,
    out: Vec<u8>,
    alpn: &'static [u8],
}

/// One connection after the other.
struct Slot<S> {
    tls: Secured,
    session: S,
    is_begun: bool,
    waits_for_room: bool,
}

enum Next {
    Wait { for_room: bool },
    Over,
}

impl<S: Session> Slot<S> {
    /// Does what the socket permits now.
    fn turn(&mut self, flags: EventFlags, run: &mut Run, tally: &mut Tally<'_>) -> anyhow::Result<Next> {
        run.out.clear();
        let mut peer = Peer::Speaks;
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            let (session, out) = (&mut self.session, &mut run.out);
            peer = self.tls.receive(&mut run.scratch, &mut |data| session.receive(data, out, tally))?;
        }
        if !self.is_begun
            && let Some(kind) = self.tls.handshake()
        {
            self.is_begun = true;
            match kind {
                HandshakeKind::Resumed => run.handshakes.resumed += 1,
                HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest => run.handshakes.full += 1,
            }
            // A proxy may choose no protocol at all, which is HTTP/1.1.
            let alpn = self.tls.alpn().unwrap_or(super::HTTP_1_1);
            ensure!(alpn == run.alpn, "the protocol is {:?}", String::from_utf8_lossy(alpn));
            self.session.begin(&mut run.out, tally.now());
        }
        if peer == Peer::Closed {
            ensure!(self.is_begun, "closed in the handshake");
            self.session.close(tally)?;
            return Ok(Next::Over);
        }
        if self.session.is_over() {
            return Ok(Next::Over);
        }
        if !run.out.is_empty() {
            self.tls.seal(&run.out)?;
        }
        Ok(Next::Wait { for_room: !self.tls.flush()? })
    }
}

/// Begins a connection, again and again while the kernel refuses to (ports run out).
fn open<S: Session>(
    (addr, config): (SocketAddrV4, &Arc<ClientConfig>),
    poller: &Poller,
    token: usize,
    session: &mut impl FnMut(Instant) -> S,
    counters: &mut Published,
) -> anyhow::Result<Slot<S>> {
    let began = Instant::now();
    loop {
        match Secured::open(addr, config).and_then(|mut tls| Ok((tls.flush()?, tls))) {
            Ok((is_sent, tls)) => {
                let room = if is_sent { EventFlags::empty() } else { EventFlags::OUT };
                poller.add(&tls.socket, token, EventFlags::IN | room)?;
                return Ok(Slot { tls, session: session(began), is_begun: false, waits_for_room: !is_sent });
            }
            Err(error) if began.elapsed() > CONNECT_LIMIT => return Err(error).context("connecting"),
            Err(_) => {
                counters.now.errors += 1;
                pause(PAUSE_AFTER_FAILURE)?;
            }
        }
    }
}
