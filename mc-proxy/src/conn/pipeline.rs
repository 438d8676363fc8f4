//! One connection in order (each stage has its deadline and may be the last):
//!
//! ```text
//! accept     worker         socket and PeerAddr; a place under the listener's limit
//! identify   identify       PeerAddr -> ClientAddr, by the PROXY header where the listener wants one
//! firewall   firewall       the client's address against the rules, and a place of its source's; the kernel has dropped
//!                           what it knew
//! greet      tls            the ClientHello is read whole, its bytes are kept
//! route      route          listener, server name and ALPN -> target
//! secure     conn::secure   mode l7: TLS is terminated; mode l4 goes on
//! dial       net::dial      the first backend that answers; the ClientHello goes out with the connect
//! relay      net::relay     every byte, both ways, half-close kept
//! outcome    conn::record   exactly one: log line and counters
//! ```
//!
//! A connection that is refused is reset, and its client has not got one byte, unless `proxy.refuse = "alert"`.

use std::{future::poll_fn, os::fd::OwnedFd, sync::Arc};

use tokio::time::{Instant, timeout_at};

use super::{
    Announced, Local, Outcome, Permit,
    identify::identify,
    record::Record,
    secure::{Secured, secure},
};
use crate::{
    clock,
    config::Refuse,
    desired::{Mode, Protocol},
    firewall::Judgement,
    http::server,
    net::{
        addr::{BackendAddr, ClientAddr, PeerAddr},
        dial::{Dial, DialError, dial},
        memory::{self, Anonymous},
        relay,
        socket::Socket,
        transparent,
    },
    route::Destination,
    tls::{ClientHelloReader, MAX_WIRE, NO_APPLICATION_PROTOCOL_ALERT, Progress, UNRECOGNIZED_NAME_ALERT},
};

/// Takes an accepted connection to its end.
pub async fn run(local: Arc<Local>, permit: Permit, place: Anonymous, fd: OwnedFd, peer: PeerAddr) {
    let mut record = Record::new(local, permit, peer);
    let outcome = serve(Socket::new(fd), &mut record, place).await;
    record.finish(outcome);
}

/// What is not closed in order here is reset.
async fn serve(mut client: Socket, record: &mut Record, place: Anonymous) -> Outcome {
    let met = tokio::select! {
        biased;
        () = place.shed() => Err(Outcome::OverMemory),
        met = meet(&mut client, record, &place) => met,
    };
    let hello = match met {
        Ok(hello) => hello,
        Err(outcome) => return outcome,
    };
    if record.permit().listener().protocol == Protocol::HttpRedirect {
        return Box::pin(redirect(client, &hello, record, place)).await;
    }
    let routes = record.permit().listener().routes.load();
    let Some(target) = routes.lookup(record.server_name.as_ref(), &record.alpn).map(|found| Arc::clone(found.target))
    else {
        let is_known = record.server_name.as_ref().is_some_and(|name| routes.knows(name));
        drop(routes);
        let outcome = if is_known { Outcome::NoAlpn } else { Outcome::NoRoute };
        record.report(outcome);
        let Some(_charge) = place.known() else { return Outcome::OverMemory };
        tell_refusal(&mut client, record, outcome).await;
        return outcome;
    };
    drop(routes);
    match target.mode {
        // Apart: what a handshake takes, the many that are relayed need not have room for.
        Mode::L7 => return Box::pin(terminate(client, hello, &target, record, place)).await,
        Mode::L4 => {}
    }
    let Some(charge) = place.known() else { return Outcome::OverMemory };
    // Not the client's: not counted as such.
    let mut header_bytes = 0;
    let first = match target.send_proxy {
        None => hello,
        Some(version) => {
            let header = Announced::new(&client, record).header(version);
            header_bytes = header.len();
            [header, hello].concat()
        }
    };
    let reached = tokio::select! {
        biased;
        reached = reach(&target, &first, record) => reached,
        _ = poll_fn(|cx| client.poll_failed(cx)) => Err(Outcome::ClientGone),
    };
    let mut backend = match reached {
        Ok(backend) => backend,
        Err(outcome) => return outcome,
    };
    record.transferred.client = (first.len() - header_bytes) as u64;
    drop(first);
    charge.resize(memory::CONNECTION);
    let local = Arc::clone(record.local());
    let terms = relay::Terms {
        idle: local.edge.proxy.idle_timeout,
        drain: &local.drain,
        splicing: &local.edge.splicing,
        mode: target.splice,
    };
    let ended = relay::run(&mut client, &mut backend, terms, &mut record.transferred).await;
    if ended.is_orderly() {
        backend.close();
        client.close();
    }
    ended.into()
}

/// A route of mode `l7`: TLS is terminated, and HTTP spoken inside.
async fn terminate(
    client: Socket,
    hello: Vec<u8>,
    destination: &Destination,
    record: &mut Record,
    place: Anonymous,
) -> Outcome {
    // Whether a backend gets a header is known when it is connected: the route may be another one by then.
    let announced = Announced::new(&client, record);
    let Secured { stream, facts, charge } = match secure(client, hello, destination, record, place).await {
        Ok(secured) => secured,
        Err(outcome) => return outcome,
    };
    tracing::debug!(client = %record.shown_client(), ?facts, "TLS is terminated");
    let site = record.site(Some(facts.version), Some(announced));
    let outcome = server::serve(site, stream, facts.alpn).await;
    drop(charge);
    outcome
}

/// A listener that sends its clients to `https`.
async fn redirect(client: Socket, begun: &[u8], record: &mut Record, place: Anonymous) -> Outcome {
    let Some(charge) = place.known() else { return Outcome::OverMemory };
    let outcome = server::redirect(record.site(None, None), client, begun).await;
    drop(charge);
    outcome
}

/// Who the client is, whether it is let in, and what it says first: while nobody is connected, the connection may be given
/// up for the sake of others.
async fn meet(client: &mut Socket, record: &mut Record, place: &Anonymous) -> Result<Vec<u8>, Outcome> {
    let begun = identify(client, record, place).await.inspect_err(|outcome| record.tell_drop(*outcome))?;
    admit(record).inspect_err(|outcome| record.tell_drop(*outcome))?;
    let source = record.client.ip();
    if !is_proxys_own(record) && !record.permit_mut().admit_source(source) {
        return Err(Outcome::OverSourceLimit);
    }
    greet(client, record, place, begun).await.inspect_err(|outcome| record.report(*outcome))
}

/// Whether it is the connection of a trusted proxy on its own behalf, as for a health check, and not a client's. Where
/// everybody is trusted, everybody could say so.
fn is_proxys_own(record: &Record) -> bool {
    let accept = record.permit().listener().proxy.as_ref();
    accept.is_some_and(|accept| !accept.trust_any) && record.client == ClientAddr::from_peer(record.peer)
}

/// Asks the firewall.
fn admit(record: &mut Record) -> Result<(), Outcome> {
    let port = record.permit().listener().addr.socket().port();
    let firewall = &record.edge().firewall;
    let judgement = match &record.permit().listener().proxy {
        None => firewall.judge(record.client, port, clock::since_boot()),
        // The proxy's own connections have been judged, and a rate is for clients.
        Some(_) if is_proxys_own(record) => return Ok(()),
        Some(_) => firewall.judge_named(record.client, port, clock::since_boot()),
    };
    record.group = judgement.group();
    record.is_allowed = judgement == Judgement::Allowed;
    let Some(outcome) = refusal(judgement) else { return Ok(()) };
    record.report(outcome);
    Err(outcome)
}

/// What a judgement means for a connection that it does not let in.
pub(super) fn refusal(judgement: Judgement) -> Option<Outcome> {
    match judgement {
        Judgement::Pass | Judgement::Allowed => None,
        Judgement::BlockedAddress(_) => Some(Outcome::BlockedAddress),
        Judgement::BlockedPrefix(_) => Some(Outcome::BlockedPrefix),
        Judgement::Banned(_) => Some(Outcome::Banned),
        Judgement::BlockedCountry(_) => Some(Outcome::BlockedCountry),
        Judgement::RateLimited => Some(Outcome::RateLimited),
    }
}

/// Reads the ClientHello, whose beginning may be there already; what was read comes back, and goes to the backend as it is.
async fn greet(
    client: &mut Socket,
    record: &mut Record,
    place: &Anonymous,
    begun: Vec<u8>,
) -> Result<Vec<u8>, Outcome> {
    match record.permit().listener().protocol {
        Protocol::Tls => {}
        Protocol::Tcp | Protocol::HttpRedirect => return Ok(begun),
    }
    let deadline = record.started_at() + record.edge().proxy.handshake_timeout;
    let mut reader = ClientHelloReader::new();
    let mut bytes = begun;
    loop {
        match reader.advance(&bytes) {
            Progress::Complete(hello) => {
                record.server_name = hello.server_name;
                record.alpn = hello.alpn;
                record.tls = hello.versions;
                return Ok(bytes);
            }
            Progress::Invalid(error) => return Err(Outcome::Hello(error)),
            Progress::Incomplete => {}
        }
        receive(client, &mut bytes, place, deadline, Outcome::HandshakeTimeout).await?;
    }
}

/// Most hellos fit; the next sizes are for those that do not.
const FIRST_READ: usize = 2048;

/// Appends what can be read, a byte or more, to `bytes`, which never gets longer than [`MAX_WIRE`] and a read. What it
/// takes beyond [`FIRST_READ`] is charged before it is taken. `late`: what the end of the connection is at the deadline.
pub(super) async fn receive(
    client: &mut Socket,
    bytes: &mut Vec<u8>,
    place: &Anonymous,
    deadline: Instant,
    late: Outcome,
) -> Result<(), Outcome> {
    let known = bytes.len();
    // The reader refuses a hello before it gets longer than this.
    let room = known.clamp(FIRST_READ, 16 * 1024).min(MAX_WIRE + FIRST_READ - known.min(MAX_WIRE));
    charge_for(bytes.capacity().max(known + room), place)?;
    bytes.reserve_exact(room);
    bytes.resize(known + room, 0);
    let free = bytes.get_mut(known..).unwrap_or_default();
    let result = timeout_at(deadline, client.recv(free)).await;
    bytes.truncate(known + result.as_ref().map_or(0, |read| *read.as_ref().unwrap_or(&0)));
    match result {
        Err(_) => Err(late),
        Ok(Ok(1..)) => Ok(()),
        Ok(Ok(0) | Err(_)) => Err(Outcome::ClientGone),
    }
}

/// Gives back what was read beyond the first read's size and is not needed any more.
pub(super) fn give_back(bytes: &mut Vec<u8>, place: &Anonymous) -> Result<(), Outcome> {
    if bytes.capacity() <= FIRST_READ {
        return Ok(());
    }
    bytes.shrink_to(FIRST_READ);
    let beyond = if bytes.capacity() > FIRST_READ { bytes.capacity() } else { 0 };
    if place.hold(beyond) { Ok(()) } else { Err(Outcome::OverMemory) }
}

/// The first read is paid for with the connection.
fn charge_for(capacity: usize, place: &Anonymous) -> Result<(), Outcome> {
    if capacity <= FIRST_READ || place.hold(capacity) { Ok(()) } else { Err(Outcome::OverMemory) }
}

/// Sends the alert for a client that has no route, if it is to get one.
async fn tell_refusal(client: &mut Socket, record: &Record, outcome: Outcome) {
    let alert = if outcome == Outcome::NoAlpn { &NO_APPLICATION_PROTOCOL_ALERT } else { &UNRECOGNIZED_NAME_ALERT };
    let is_tls = record.permit().listener().protocol == Protocol::Tls;
    if is_tls && record.edge().proxy.refuse == Refuse::Alert {
        let deadline = record.started_at() + record.edge().proxy.handshake_timeout;
        // A client that does not take seven bytes gets the reset alone.
        if let Ok(Ok(())) = timeout_at(deadline, client.send_all(alert)).await
            && client.shutdown_write().is_ok()
        {
            // A reset right behind the alert could overtake it: the client closes first.
            let mut ignored = [0; 512];
            while let Ok(Ok(1..)) = timeout_at(deadline, client.recv(&mut ignored)).await {}
        }
    }
}

/// Tries the backends from a rotating start, so that each gets its share and none is a single point of failure.
async fn reach(target: &Destination, hello: &[u8], record: &mut Record) -> Result<Socket, Outcome> {
    let source = target.transparent.then_some(record.client);
    let is_possible = |backend: &&BackendAddr| source.is_none_or(|client| transparent::is_possible(client, backend));
    let backends = target.backends.iter().filter(is_possible);
    let count = backends.clone().count();
    if let (0, Some(client), Some(backend)) = (count, source, target.backends.first()) {
        record.warn_dial(backend, &DialError::Transparent(transparent::other_family(client, backend)));
        return Err(Outcome::TransparentFamily);
    }
    let start = target.rotation.next(count);
    let mut outcome = Outcome::DialFailed;
    for backend in backends.cycle().skip(start).take(count) {
        let edge = record.edge();
        let mark = source.map(|_| edge.proxy.transparent_mark);
        let attempt = Dial { backend, first: hello, source, mark, timeout: edge.proxy.connect_timeout };
        match dial(&attempt, &edge.resolver).await {
            Ok(socket) => {
                record.backend = Some(backend.clone());
                return Ok(socket);
            }
            Err(error) => {
                outcome = match &error {
                    DialError::Timeout(_) => Outcome::DialTimeout,
                    DialError::Transparent(error) => error.into(),
                    DialError::Resolve(_) | DialError::Connect(_) => Outcome::DialFailed,
                };
                record.warn_dial(backend, &error);
            }
        }
    }
    Err(outcome)
}

#[cfg(test)]
mod tests;
