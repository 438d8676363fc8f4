//! What the attackers of HTTP/2 have in common: whom they attack, and the good client beside them.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use mc_proxy_tests::http::{
    Edge, Origin,
    h2::{Event, Raw, frame::frame, kind},
    ok,
};

/// A good client is as fast as that whatever the machine has to do besides.
const FLOOR: Duration = Duration::from_millis(50);

/// How long an attack goes on at least.
const ATTACK: Duration = Duration::from_millis(1_200);

/// Beside three others that are always busy two of them fail now and then.
const MEASUREMENTS: usize = 5;

/// What an attack may cost of the daemon's memory, in bytes; more than what its connections are entitled to.
const MEMORY: u64 = 48 << 20;

/// Of a window that has been opened as far as it can be.
pub(crate) const MAX: u32 = 0x7fff_ffff;

/// Latencies are measured one test at a time.
static MEASURING: Mutex<()> = Mutex::new(());

/// A backend that answers, but not on `/hold`, and at length on `/big`.
pub(crate) fn origin() -> Result<Origin> {
    Origin::new(|conn| {
        while let Some(request) = conn.head()? {
            match request.line.split(' ').nth(1).unwrap_or_default() {
                "/hold" => return conn.rest().map(drop),
                "/big" => {
                    conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")?;
                    while conn.send([b'x'; 65_536]).is_ok() {}
                    return Ok(());
                }
                _ => {
                    conn.body(request.framing)?;
                    conn.send(ok("hello"))?;
                }
            }
        }
        Ok(())
    })
}

/// A daemon with lines of `[http]`; good clients have no last request.
pub(crate) fn edge(origin: &Origin, lines: &str) -> Result<Edge> {
    Edge::to(origin.addr(), &format!("max_requests = 0\n{lines}"))
}

/// The time that all but one of a hundred requests stay below.
fn p99(raw: &mut Raw, first: u32, until: impl Fn(usize) -> bool) -> Result<(Duration, u32)> {
    let (mut took, mut stream) = (Vec::new(), first);
    while !until(took.len()) {
        let begun = Instant::now();
        ensure!(raw.ask(stream, "/").context("a good client")? == 200);
        took.push(begun.elapsed());
        stream += 2;
    }
    took.sort();
    let at = (took.len() * 99).div_ceil(100).saturating_sub(1);
    Ok((took.get(at).copied().context("no request")?, stream))
}

/// A good client beside somebody who attacks again and again. What the machine does besides may slow down some of the measurements,
/// or make a request fail; an attack does that to all. What the attack itself sees, and what it costs of memory, has to be right
/// each time.
pub(crate) fn besides(edge: &Edge, attack: impl Fn() -> Result<()> + Sync) -> Result<()> {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut failed = Vec::new();
    for _ in 0..MEASUREMENTS {
        match measured(edge, &attack)? {
            Ok((quiet, busy)) if busy <= FLOOR.max(3 * quiet) => return Ok(()),
            Ok((quiet, busy)) => failed.push(format!("p99 {quiet:?} alone, {busy:?} besides an attack")),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    bail!("a good client, each time: {}", failed.join("; "))
}

/// The p99 of a good client, alone and beside an attack, or why it was not served; an error is one of the attack.
fn measured(edge: &Edge, attack: &(impl Fn() -> Result<()> + Sync)) -> Result<Result<(Duration, Duration)>> {
    let alone = || -> Result<_> {
        let mut good = Raw::new(edge)?;
        let (quiet, next) = p99(&mut good, 1, |count| count >= 200)?;
        Ok((good, quiet, next))
    };
    let (mut good, quiet, next) = match alone() {
        Ok(begun) => begun,
        Err(error) => return Ok(Err(error.context("alone"))),
    };
    let before = edge.daemon.resident_bytes()?;
    let (ends, rounds, begun) = (AtomicBool::new(false), AtomicU32::new(0), Instant::now());
    let busy = thread::scope(|scope| -> Result<_> {
        let attacker = scope.spawn(|| -> Result<()> {
            while !ends.load(Relaxed) {
                attack()?;
                rounds.fetch_add(1, Relaxed);
            }
            Ok(())
        });
        // An attack is there from its beginning to its end; one that fails has been there too.
        let is_over = || begun.elapsed() > ATTACK && (rounds.load(Relaxed) > 0 || attacker.is_finished());
        let busy = p99(&mut good, next, |count| count >= 100 && is_over());
        ends.store(true, Relaxed);
        attacker.join().map_err(|_| anyhow::anyhow!("the attacker has panicked"))??;
        Ok(busy.map(|(busy, _)| busy))
    })?;
    let rounds = rounds.into_inner();
    // The kernel keeps the maximum, so that nothing is missed between two looks.
    let peak = edge.daemon.peak_resident_bytes()?;
    println!("p99 {quiet:?} alone, {busy:?} besides {rounds} attacks; {} KiB more", peak.saturating_sub(before) >> 10);
    ensure!(rounds > 0, "nobody has attacked");
    ensure!(peak < before + MEMORY, "{before} bytes have become {peak}");
    Ok(busy.map(|busy| (quiet, busy)).context("besides an attack"))
}

/// Whether the connection goes on after an attack.
pub(crate) fn goes_on(raw: &mut Raw) -> Result<bool> {
    raw.send(frame(kind::PING, 0, 0, "are you?"))?;
    loop {
        match raw.event()? {
            Event::Pong => return Ok(true),
            Event::Closed | Event::GoAway(_) => return Ok(false),
            Event::Reset(..) | Event::Head(..) | Event::Ended(_) | Event::Acknowledged => {}
        }
    }
}
