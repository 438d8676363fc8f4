//! An attacker for each limit of HTTP/2: what it gets, what is told of it, that its limit is what stops it, and that a good client
//! hardly notices.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use mc_proxy_tests::{
    client::{End, connect, end_of},
    http::{
        Edge, HOST, Origin, Plan,
        h2::{
            Event, Raw, code, flag,
            frame::{data, frame, headers, reset, settings, update},
            hpack, kind,
        },
        ok,
    },
    wait::{SOON, pass, until},
};
use rustls::{ClientConnection, pki_types::ServerName};

/// A good client is as fast as that whatever the machine has to do besides.
const FLOOR: Duration = Duration::from_millis(50);

/// How long an attack goes on.
const ATTACK: Duration = Duration::from_millis(1_200);

/// What an attack may cost of the daemon's memory, in bytes; more than what its connections are entitled to.
const MEMORY: u64 = 48 << 20;

/// Of a window that has been opened as far as it can be.
const MAX: u32 = 0x7fff_ffff;

/// Latencies are measured one test at a time.
static MEASURING: Mutex<()> = Mutex::new(());

/// Sends too much of something.
type Attack = fn(&mut Raw) -> Result<()>;

/// What a head has too much of.
type Fields = fn() -> Vec<u8>;

/// What is sent of a ClientHello.
type Cut = fn(&[u8]) -> &[u8];

/// A backend that answers, but not on `/hold`, and at length on `/big`.
fn origin() -> Result<Origin> {
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
fn edge(origin: &Origin, lines: &str) -> Result<Edge> {
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

/// A good client beside somebody who attacks again and again. What the machine does besides may slow down one of three
/// measurements, and two, or make a request fail; an attack does that to all. What the attack itself sees, and what it costs of
/// memory, has to be right each time.
fn besides(edge: &Edge, attack: impl Fn() -> Result<()> + Sync) -> Result<()> {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut failed = Vec::new();
    for _ in 0..3 {
        match measured(edge, &attack)? {
            Ok((quiet, busy)) if busy <= FLOOR.max(3 * quiet) => return Ok(()),
            Ok((quiet, busy)) => failed.push(format!("p99 {quiet:?} alone, {busy:?} besides an attack")),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    bail!("a good client, three times: {}", failed.join("; "))
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
    let (ends, begun) = (AtomicBool::new(false), Instant::now());
    let (busy, rounds) = thread::scope(|scope| -> Result<_> {
        let attacker = scope.spawn(|| -> Result<u32> {
            let mut rounds = 0;
            while !ends.load(Relaxed) {
                attack()?;
                rounds += 1;
            }
            Ok(rounds)
        });
        let busy = p99(&mut good, next, |count| count >= 100 && begun.elapsed() > ATTACK);
        ends.store(true, Relaxed);
        let rounds = attacker.join().map_err(|_| anyhow::anyhow!("the attacker has panicked"))??;
        Ok((busy, rounds))
    })?;
    // The kernel keeps the maximum, so that nothing is missed between two looks.
    let peak = edge.daemon.peak_resident_bytes()?;
    println!("p99 {quiet:?} alone, {busy:?} besides {rounds} attacks; {} KiB more", peak.saturating_sub(before) >> 10);
    ensure!(rounds > 0, "nobody has attacked");
    ensure!(peak < before + MEMORY, "{before} bytes have become {peak}");
    Ok(busy.map(|(busy, _)| (quiet, busy)).context("besides an attack"))
}

/// So many who attack at the same time.
fn many(count: usize, attack: &(dyn Fn() -> Result<()> + Sync)) -> Result<()> {
    thread::scope(|scope| {
        let all = (0..count).map(|_| scope.spawn(attack)).collect::<Vec<_>>();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("an attacker has panicked"))?)
    })
}

/// Whether the connection goes on after an attack.
fn goes_on(raw: &mut Raw) -> Result<bool> {
    raw.send(frame(kind::PING, 0, 0, "are you?"))?;
    loop {
        match raw.event()? {
            Event::Pong => return Ok(true),
            Event::Closed | Event::GoAway(_) => return Ok(false),
            Event::Reset(..) | Event::Head(..) | Event::Ended(_) | Event::Acknowledged => {}
        }
    }
}

/// With `low` the attack is answered by ENHANCE_YOUR_CALM, and told of as `reason`; with `high` it is not, so that it is this limit
/// that counts.
fn calmed(low: &str, high: &str, reason: &str, attack: Attack) -> Result<()> {
    let origin = origin()?;
    let once = |edge: &Edge| {
        let mut raw = Raw::new(edge)?;
        attack(&mut raw)?;
        let end = raw.end()?;
        ensure!(end == Some(code::CALM), "the end: {end:?}");
        Ok(())
    };
    let low = edge(&origin, low)?;
    once(&low)?;
    low.logs(&["HTTP/2 was abused", reason])?;
    besides(&low, || once(&low))?;
    let high = edge(&origin, high)?;
    let mut raw = Raw::new(&high)?;
    attack(&mut raw)?;
    ensure!(goes_on(&mut raw)?, "something else than the limit has stopped it");
    ensure!(high.daemon.log().matching(&["HTTP/2 was abused"]).is_empty());
    Ok(())
}

/// The same frame, often.
fn often(raw: &mut Raw, count: usize, frame: impl AsRef<[u8]>) -> Result<()> {
    raw.send(frame.as_ref().repeat(count))
}

/// So many requests, each of them followed by something.
fn requests(raw: &mut Raw, count: u32, then: impl Fn(u32) -> Vec<u8>) -> Result<()> {
    let of = |stream| [headers(stream, true, hpack::get("/hold")), then(stream)].concat();
    raw.send((0..count).flat_map(|at| of(2 * at + 1)).collect::<Vec<_>>())
}

const RESETS: &str = "max_resets = 20\nmax_control_frames = 1000000\nmax_concurrent_streams = 1000";
const MANY_RESETS: &str = "max_resets = 100000\nmax_control_frames = 1000000\nmax_concurrent_streams = 1000";
const WERE_RESET: &str = "too many streams were reset";

/// CVE-2023-44487: `max_resets`.
#[test]
fn rapid_reset() -> Result<()> {
    calmed(RESETS, MANY_RESETS, WERE_RESET, |raw| requests(raw, 21, |stream| reset(stream, code::CANCEL)))
}

/// CVE-2025-8671: `max_resets`, which counts resets of ours for what the client did wrong. Here its window overflows.
#[test]
fn made_you_reset_by_a_window() -> Result<()> {
    calmed(RESETS, MANY_RESETS, WERE_RESET, |raw| requests(raw, 21, |stream| update(stream, MAX)))
}

/// The same by WINDOW_UPDATE of 0, for which the `h2` crate ends the connection at once.
#[test]
fn made_you_reset_by_nothing() -> Result<()> {
    let origin = origin()?;
    let edge = edge(&origin, MANY_RESETS)?;
    let once = || {
        let mut raw = Raw::new(&edge)?;
        requests(&mut raw, 2, |stream| update(stream, 0))?;
        ensure!(raw.end()? == Some(code::PROTOCOL));
        Ok(())
    };
    once()?;
    besides(&edge, once)
}

/// The same by a stream that depends on itself.
#[test]
fn made_you_reset_by_a_priority() -> Result<()> {
    calmed(RESETS, MANY_RESETS, WERE_RESET, |raw| {
        requests(raw, 21, |stream| frame(kind::PRIORITY, 0, stream, [&stream.to_be_bytes()[..], &[16]].concat()))
    })
}

/// The same by content that is longer than its head says.
#[test]
fn made_you_reset_by_a_length() -> Result<()> {
    calmed(RESETS, MANY_RESETS, WERE_RESET, |raw| {
        let head = hpack::request("POST", "/hold", &[("content-length", "1")]);
        let of = |stream| [headers(stream, false, &head), data(stream, true, "xx")].concat();
        raw.send((0..21).flat_map(|at| of(2 * at + 1)).collect::<Vec<_>>())
    })
}

const CONTROL: &str = "max_control_frames = 20";
const MUCH_CONTROL: &str = "max_control_frames = 1000000";
const WERE_CONTROL: &str = "too many control frames";

/// CVE-2019-9515: `max_control_frames`.
#[test]
fn settings_flood() -> Result<()> {
    calmed(CONTROL, MUCH_CONTROL, WERE_CONTROL, |raw| often(raw, 21, settings(&[(4, 65_535)])))
}

/// CVE-2019-9512: `max_control_frames`.
#[test]
fn ping_flood() -> Result<()> {
    calmed(CONTROL, MUCH_CONTROL, WERE_CONTROL, |raw| often(raw, 21, frame(kind::PING, 0, 0, [0; 8])))
}

/// `max_control_frames`, beyond four for each request and for the connection.
#[test]
fn priority_flood() -> Result<()> {
    calmed(CONTROL, MUCH_CONTROL, WERE_CONTROL, |raw| often(raw, 25, frame(kind::PRIORITY, 0, 1, [0, 0, 0, 0, 1])))
}

/// `max_control_frames`: frames that are to be ignored are not for nothing.
#[test]
fn unknown_frames() -> Result<()> {
    calmed(CONTROL, MUCH_CONTROL, WERE_CONTROL, |raw| often(raw, 21, frame(0xbe, 0, 0, [0; 1_000])))
}

/// CVE-2019-9511: `max_control_frames`, for WINDOW_UPDATE that no DATA accounts for.
#[test]
fn window_update_flood() -> Result<()> {
    calmed(CONTROL, MUCH_CONTROL, WERE_CONTROL, |raw| often(raw, 60, update(0, 1)))
}

/// CVE-2019-9518: `max_control_frames`.
#[test]
fn empty_data() -> Result<()> {
    calmed(CONTROL, MUCH_CONTROL, WERE_CONTROL, |raw| {
        raw.post(1, "/hold", &[])?;
        often(raw, 21, data(1, false, ""))
    })
}

/// 256 for each of `max_control_frames`.
#[test]
fn small_data() -> Result<()> {
    calmed("max_control_frames = 4", MUCH_CONTROL, "too many small DATA frames", |raw| {
        raw.post(1, "/hold", &[])?;
        often(raw, 4 * 256 + 1, data(1, false, "x"))
    })
}

/// CVE-2024-27316: `max_continuations`. Of frames that do not end the block the `h2` crate takes no more than five by itself.
#[test]
fn continuations() -> Result<()> {
    calmed("max_continuations = 2", "max_continuations = 5", "too many CONTINUATION frames", |raw| {
        raw.send(frame(kind::HEADERS, flag::END_STREAM, 1, hpack::get("/")))?;
        often(raw, 2, frame(kind::CONTINUATION, 0, 1, hpack::field("x-own", "y")))?;
        raw.send(frame(kind::CONTINUATION, flag::END_HEADERS, 1, ""))
    })
}

/// The same for as long as somebody listens, with frames that are full.
#[test]
fn continuations_without_end() -> Result<()> {
    let origin = origin()?;
    let edge = edge(&origin, "")?;
    let once = || {
        let mut raw = Raw::new(&edge)?;
        raw.send(frame(kind::HEADERS, flag::END_STREAM, 1, hpack::get("/")))?;
        let full = frame(kind::CONTINUATION, 0, 1, hpack::field("x-own", "y".repeat(16_000)));
        let mut sent = 0;
        while sent < 1_000 && raw.try_send(&full) {
            sent += 1;
        }
        ensure!(sent < 1_000, "16 MB of one block were taken");
        let end = raw.end()?;
        ensure!(matches!(end, Some(code::CALM) | None), "the end: {end:?}");
        Ok(())
    };
    once()?;
    besides(&edge, once)
}

/// One large entry of the table, and requests that are made of it: a byte each.
fn bomb(references: usize) -> Vec<u8> {
    let entry = hpack::indexed("x-own", "y".repeat(4_000));
    [hpack::get("/"), entry, vec![0x80 | 62; references]].concat()
}

/// `max_head_bytes`, beyond which fields are decoded and not kept: 431, or the end when it is far beyond.
#[test]
fn hpack_bomb() -> Result<()> {
    let origin = origin()?;
    let low = edge(&origin, "")?;
    let mut raw = Raw::new(&low)?;
    raw.send(headers(1, true, bomb(20)))?;
    let is = raw.reaction()?;
    ensure!(is == Event::Head(1, 431), "80 KB of fields: {is:?}");
    // The table is what it was.
    raw.send(headers(3, true, [hpack::get("/"), vec![0x80 | 62]].concat()))?;
    ensure!(raw.answer(3)? == 200);
    ensure!(origin.last()?.field("x-own").is_some_and(|value| value.len() == 4_000));
    let once = || {
        let mut raw = Raw::new(&low)?;
        raw.send(headers(1, true, bomb(12_000)))?;
        let is = raw.reaction()?;
        let is_good =
            matches!(is, Event::GoAway(code::CALM) | Event::Closed | Event::Head(1, 431) | Event::Reset(1, _));
        ensure!(is_good, "48 MB of fields: {is:?}");
        Ok(())
    };
    once()?;
    besides(&low, once)?;
    let high = edge(&origin, "max_head_bytes = \"1MiB\"")?;
    let mut raw = Raw::new(&high)?;
    raw.send(headers(1, true, bomb(20)))?;
    ensure!(raw.answer(1)? == 200, "something else than the limit has stopped it");
    Ok(())
}

/// `max_head_bytes` and `max_fields`.
#[test]
fn huge_heads() -> Result<()> {
    let origin = origin()?;
    let attacks: [(&str, &str, Fields); 2] = [
        ("max_head_bytes = \"16KiB\"\nmax_target_bytes = \"4KiB\"", "max_head_bytes = \"64KiB\"", || {
            (0..3).flat_map(|at| hpack::field(format!("x-{at}"), "y".repeat(7_000))).collect()
        }),
        ("max_fields = 20", "max_fields = 1000", || {
            (0..21).flat_map(|at| hpack::field(format!("x-{at}"), "y")).collect()
        }),
    ];
    for (low, high, fields) in attacks {
        let ask = |edge: &Edge| {
            let mut raw = Raw::new(edge)?;
            let block = [hpack::get("/"), fields()].concat();
            let (first, rest) = block.split_at(block.len().min(10_000));
            raw.send(frame(kind::HEADERS, flag::END_STREAM, 1, first))?;
            raw.send(frame(kind::CONTINUATION, flag::END_HEADERS, 1, rest))?;
            raw.answer(1)
        };
        let limited = edge(&origin, low)?;
        let is = ask(&limited)?;
        ensure!(is == 431, "{low}: {is}");
        besides(&limited, || ask(&limited).map(drop))?;
        let is = ask(&edge(&origin, high)?)?;
        ensure!(is == 200, "{high}: {is}");
    }
    Ok(())
}

/// `max_concurrent_streams`, and `body_timeout`, which ends those that never end.
#[test]
fn streams_that_never_end_their_request() -> Result<()> {
    let origin = origin()?;
    let attack = |raw: &mut Raw| -> Result<()> {
        for at in 0..11 {
            raw.post(2 * at + 1, "/", &[])?;
        }
        Ok(())
    };
    let low = edge(&origin, "max_concurrent_streams = 10\nbody_timeout = \"500ms\"")?;
    let once = || {
        let mut raw = Raw::new(&low)?;
        attack(&mut raw)?;
        ensure!(raw.reaction()? == Event::Reset(21, code::REFUSED), "the eleventh");
        let begun = Instant::now();
        let (mut late, mut resets) = (0, 0);
        // Each of them is told, and then to send no more (RFC 9113 §8.1).
        while late < 10 || resets < 10 {
            match raw.event()? {
                Event::Head(_, status) => {
                    ensure!(status == 408, "{status}");
                    late += 1;
                }
                Event::Reset(_, code::NONE) => resets += 1,
                event @ (Event::Ended(_)
                | Event::Reset(..)
                | Event::GoAway(_)
                | Event::Closed
                | Event::Pong
                | Event::Acknowledged) => {
                    ensure!(matches!(event, Event::Ended(_)), "{event:?}");
                }
            }
        }
        ensure!(begun.elapsed() < Duration::from_secs(5), "after {:?}", begun.elapsed());
        ensure!(raw.ask(101, "/")? == 200, "the places are free again");
        Ok(())
    };
    once()?;
    besides(&low, || many(10, &once))?;
    let high = edge(&origin, "max_concurrent_streams = 11\nbody_timeout = \"20s\"")?;
    let mut raw = Raw::new(&high)?;
    attack(&mut raw)?;
    raw.limit(Duration::from_millis(1_200))?;
    let is = raw.reaction();
    ensure!(is.is_err(), "something else than the limits has stopped it: {is:?}");
    Ok(())
}

/// `write_timeout`, and a bound of what waits for a window.
#[test]
fn a_window_that_is_never_opened() -> Result<()> {
    let origin = origin()?;
    let attack = |edge: &Edge| -> Result<Raw> {
        let mut raw = Raw::with(edge, &[(4, 0)])?;
        for at in 0..20 {
            raw.get(2 * at + 1, "/big")?;
        }
        Ok(raw)
    };
    let low = edge(&origin, "write_timeout = \"600ms\"")?;
    let once = || {
        let mut raw = attack(&low)?;
        let mut resets = 0;
        while resets < 20 {
            let event = raw.event()?;
            resets += usize::from(matches!(event, Event::Reset(..)));
            ensure!(matches!(event, Event::Reset(..) | Event::Head(_, 200)), "{event:?}");
        }
        ensure!(goes_on(&mut raw)?);
        Ok(())
    };
    once()?;
    besides(&low, || many(10, &once))?;
    let high = edge(&origin, "write_timeout = \"20s\"")?;
    let mut raw = attack(&high)?;
    raw.limit(Duration::from_millis(1_500))?;
    let is = (0..=20).map(|_| raw.event()).find(|event| !matches!(event, Ok(Event::Head(_, 200))));
    ensure!(matches!(is, Some(Err(_))), "something else than the limit has stopped it: {is:?}");
    Ok(())
}

/// `write_timeout` for all of a connection: its windows are open, and nobody reads.
#[test]
fn a_client_that_does_not_read() -> Result<()> {
    let origin = origin()?;
    let edge = edge(&origin, "write_timeout = \"600ms\"")?;
    let begun = Instant::now();
    let mut raw = Raw::with(&edge, &[(4, MAX)])?;
    raw.send(update(0, MAX - 65_535))?;
    raw.get(1, "/big")?;
    let line = edge.logs(&["connection closed"])?;
    let after = begun.elapsed();
    ensure!(after > Duration::from_millis(500) && after < Duration::from_secs(6), "after {after:?}: {line}");
    ensure!(!matches!(raw.end(), Ok(Some(_))));
    edge.serves()
}

/// `header_timeout`.
#[test]
fn a_field_block_that_does_not_end() -> Result<()> {
    let origin = origin()?;
    let attack = |edge: &Edge| -> Result<Raw> {
        let mut raw = Raw::new(edge)?;
        raw.send(frame(kind::HEADERS, flag::END_STREAM, 1, hpack::get("/")))?;
        Ok(raw)
    };
    let low = edge(&origin, "header_timeout = \"600ms\"")?;
    let once = || {
        let begun = Instant::now();
        let end = attack(&low)?.end()?;
        ensure!(end == Some(code::PROTOCOL) && begun.elapsed() < Duration::from_secs(4), "{end:?}");
        Ok(())
    };
    once()?;
    // Nor does it help to drip.
    let mut raw = attack(&low)?;
    let begun = Instant::now();
    while raw.try_send(frame(kind::CONTINUATION, 0, 1, hpack::field("x", "y"))) {
        pass(Duration::from_millis(250));
        ensure!(begun.elapsed() < Duration::from_secs(5), "it goes on");
    }
    besides(&low, || many(10, &once))?;
    let high = edge(&origin, "header_timeout = \"20s\"")?;
    let mut raw = attack(&high)?;
    raw.limit(Duration::from_millis(1_500))?;
    let is = raw.reaction();
    ensure!(is.is_err(), "something else than the limit has stopped it: {is:?}");
    Ok(())
}

/// `body_timeout`, and `min_body_rate` for those that drip.
#[test]
fn slow_bodies() -> Result<()> {
    let origin = origin()?;
    let low = edge(&origin, "body_timeout = \"600ms\"\nmin_body_rate = 1000")?;
    let stops = || {
        let mut raw = Raw::new(&low)?;
        raw.post(1, "/", &[("content-length", "1000")])?;
        raw.data(1, false, "x")?;
        let begun = Instant::now();
        ensure!(raw.reaction()? == Event::Head(1, 408) && begun.elapsed() < Duration::from_secs(4));
        Ok(())
    };
    stops()?;
    besides(&low, || many(10, &stops))?;
    let drips = |edge: &Edge| -> Result<Event> {
        let mut raw = Raw::new(edge)?;
        raw.post(1, "/", &[("content-length", "1000")])?;
        for _ in 0..15 {
            raw.data(1, false, "x")?;
            pass(Duration::from_millis(100));
        }
        raw.limit(Duration::from_millis(300))?;
        raw.reaction()
    };
    let is = drips(&low)?;
    ensure!(is == Event::Head(1, 408), "{is:?}");
    let is = drips(&edge(&origin, "body_timeout = \"600ms\"\nmin_body_rate = 0")?);
    ensure!(is.is_err(), "something else than the limit has stopped it: {is:?}");
    Ok(())
}

/// `keepalive_timeout`, which PING does not prolong, and `header_timeout` for those that do not even begin.
#[test]
fn idle_connections() -> Result<()> {
    let origin = origin()?;
    let low = edge(&origin, "keepalive_timeout = \"600ms\"\nheader_timeout = \"600ms\"")?;
    let idle = || {
        let begun = Instant::now();
        let mut raw = Raw::new(&low)?;
        let told = loop {
            match raw.frame()? {
                Some(frame) if frame.kind == kind::GOAWAY => break frame.code(),
                Some(_) => {}
                None => bail!("the end without GOAWAY"),
            }
        };
        let after = begun.elapsed();
        ensure!(told == code::NONE && after > Duration::from_millis(500), "{told} after {after:?}");
        ensure!(after < Duration::from_secs(4), "after {after:?}");
        Ok(())
    };
    idle()?;
    let mut raw = Raw::new(&low)?;
    let begun = Instant::now();
    while raw.try_send(frame(kind::PING, 0, 0, [0; 8])) {
        pass(Duration::from_millis(200));
        // It is told first, and has some time to hear it.
        ensure!(begun.elapsed() < Duration::from_secs(12), "it goes on");
    }
    let silent = || {
        let begun = Instant::now();
        let mut raw = Raw::bare(&low)?;
        while raw.frame()?.is_some() {}
        let after = begun.elapsed();
        ensure!(after > Duration::from_millis(500) && after < Duration::from_secs(4), "after {after:?}");
        Ok(())
    };
    silent()?;
    for (attack, many_of) in [(&idle as &(dyn Fn() -> Result<()> + Sync), 20), (&silent, 20)] {
        // The good client has no pause that is as long.
        besides(&low, || many(many_of, attack))?;
    }
    let high = edge(&origin, "keepalive_timeout = \"20s\"\nheader_timeout = \"20s\"")?;
    let mut raw = Raw::new(&high)?;
    raw.limit(Duration::from_millis(1_500))?;
    let is = raw.event();
    ensure!(is.is_err(), "something else than the limits has stopped it: {is:?}");
    Ok(())
}

/// `handshake_timeout`: before and behind the ClientHello.
#[test]
fn half_of_a_handshake() -> Result<()> {
    let origin = origin()?;
    let hello = |edge: &Edge| -> Result<Vec<u8>> {
        let mut config = edge.authority.client_config()?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from(HOST)?)?;
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes)?;
        Ok(bytes)
    };
    let begin = |edge: &Edge, part: Cut| -> Result<TcpStream> {
        let mut stream = connect(edge.addr)?;
        stream.write_all(part(&hello(edge)?))?;
        Ok(stream)
    };
    let plan = |timeout: &str| {
        Plan::to(origin.addr())?
            .http("max_requests = 0")
            .section(&format!("[proxy]\nhandshake_timeout = \"{timeout}\""))
            .start()
    };
    let parts: [Cut; 3] = [|_| b"", |hello| &hello[..hello.len() / 2], |hello| hello];
    let low = plan("600ms")?;
    for part in parts {
        let once = || {
            let begun = Instant::now();
            let end = end_of(&mut begin(&low, part)?)?;
            ensure!(!matches!(end, End::Silent(_)) && begun.elapsed() < Duration::from_secs(4), "{end:?}");
            Ok(())
        };
        once()?;
        besides(&low, || many(10, &once))?;
    }
    let high = plan("20s")?;
    for part in parts {
        let mut stream = begin(&high, part)?;
        stream.set_read_timeout(Some(Duration::from_millis(1_200)))?;
        let mut bytes = [0; 4_096];
        let is = loop {
            match stream.read(&mut bytes) {
                // ServerHello and what follows it.
                Ok(1..) => {}
                end => break end,
            }
        };
        ensure!(is.is_err(), "something else than the limit has stopped it");
    }
    Ok(())
}

/// `[firewall.auto_ban]`: abuse is an offence of the client's, also behind a proxy that is trusted.
#[test]
fn who_goes_on_is_banned() -> Result<()> {
    let origin = origin()?;
    let edge = Plan::to(origin.addr())?
        .http(RESETS)
        .listener("proxy_protocol = true\nproxy_trusted = [\"127.0.0.0/8\"]")
        .section("[firewall.auto_ban]\nafter = 3\nwithin = \"1h\"\nttl = \"1h\"")
        .start()?;
    let visit = |client: &str| -> Result<Raw> {
        let to = "198.51.100.2:443".parse::<SocketAddr>()?;
        let header = mc_proxy::proxy_header::Header::forwarded(client.parse()?, to);
        let mut stream = connect(edge.addr)?;
        stream.write_all(&mc_proxy::proxy_header::write_v2(&header)?)?;
        Raw::over(&edge, stream)?.begin(&[])
    };
    for port in 1..=3 {
        let mut raw = visit(&format!("203.0.113.5:{port}"))?;
        ensure!(raw.ask(1, "/")? == 200);
        let pair = |stream| [headers(stream, true, hpack::get("/hold")), reset(stream, code::CANCEL)].concat();
        raw.send((1..=21).flat_map(|at| pair(2 * at + 1)).collect::<Vec<_>>())?;
        ensure!(raw.end()? == Some(code::CALM));
    }
    until("the ban", SOON, || Ok(visit("203.0.113.5:9").is_err()))?;
    edge.logs(&["msg=\"banned\"", "203.0.113.5/32"])?;
    ensure!(visit("203.0.113.6:1")?.ask(1, "/")? == 200, "another client");
    Ok(())
}
