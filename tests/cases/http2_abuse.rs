//! Whoever sends too much over HTTP/2, an attacker for each limit: what it gets, what is told of it, that its limit is what stops it,
//! and that a good client hardly notices.

#[path = "http2_support/mod.rs"]
mod http2_support;

use std::{io::Write as _, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use mc_proxy_tests::{
    client::connect,
    http::{
        Edge, Plan,
        h2::{
            Event, Raw, code, flag,
            frame::{data, frame, headers, reset, settings, update},
            hpack, kind,
        },
    },
    wait::{SOON, pass, until},
};

use crate::http2_support::{MAX, besides, edge, goes_on, origin};

/// Sends too much of something.
type Attack = fn(&mut Raw) -> Result<()>;

/// What a head has too much of.
type Fields = fn() -> Vec<u8>;

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

/// The same by WINDOW_UPDATE of 0, for which the `h2` crate ends the connection at once. No limit counts here, so there is none that
/// could be raised: the one of resets is as high as in the other cases, and the connection ends nevertheless.
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

/// The same for as long as somebody listens, with frames that are full. `max_head_bytes` bounds them as well.
#[test]
fn continuations_without_end() -> Result<()> {
    let origin = origin()?;
    let full = frame(kind::CONTINUATION, 0, 1, hpack::field("x-own", "y".repeat(16_000)));
    let low = edge(&origin, "")?;
    let once = || {
        let mut raw = Raw::new(&low)?;
        raw.send(frame(kind::HEADERS, flag::END_STREAM, 1, hpack::get("/")))?;
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
    besides(&low, once)?;
    // A block that does end is a request where there is room for it, and is none where there is not.
    let ends = |edge: &Edge| -> Result<Raw> {
        let mut raw = Raw::new(edge)?;
        raw.send(frame(kind::HEADERS, flag::END_STREAM, 1, hpack::get("/")))?;
        often(&mut raw, 30, &full)?;
        raw.send(frame(kind::CONTINUATION, flag::END_HEADERS, 1, ""))?;
        Ok(raw)
    };
    let end = ends(&low)?.end()?;
    ensure!(matches!(end, Some(code::CALM) | None), "the end: {end:?}");
    let high = edge(&origin, "max_continuations = 1000\nmax_head_bytes = \"1MiB\"")?;
    ensure!(ends(&high)?.answer(1)? == 200, "something else than the limits has stopped it");
    let fields = origin.last()?.fields.all("x-own").len();
    ensure!(fields == 30, "{fields} fields");
    Ok(())
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

/// `[firewall.auto_ban]`: abuse is an offence of the client's, also behind a proxy that is trusted.
#[test]
fn who_goes_on_is_banned() -> Result<()> {
    let origin = origin()?;
    let plan = |resets: &str, after: u32| {
        Plan::to(origin.addr())?
            .http(resets)
            .listener("proxy_protocol = true\nproxy_trusted = [\"127.0.0.0/8\"]")
            .section(&format!("[firewall.auto_ban]\nafter = {after}\nwithin = \"1h\"\nttl = \"1h\""))
            .start()
    };
    let low = plan(RESETS, 3)?;
    for port in 1..=3 {
        ensure!(abuse(&low, port)?.end()? == Some(code::CALM));
    }
    until("the ban", SOON, || Ok(visit(&low, "203.0.113.5:9").is_err()))?;
    low.logs(&["msg=\"banned\"", "203.0.113.5/32"])?;
    ensure!(visit(&low, "203.0.113.6:1")?.ask(1, "/")? == 200, "another client");

    // As many offences are no ban where it takes one more.
    let high = plan(RESETS, 4)?;
    for port in 1..=3 {
        ensure!(abuse(&high, port)?.end()? == Some(code::CALM));
    }
    // A ban would need a moment.
    pass(Duration::from_millis(500));
    ensure!(abuse(&high, 4)?.end()? == Some(code::CALM), "the three were enough");
    until("the ban", SOON, || Ok(visit(&high, "203.0.113.5:9").is_err()))?;
    // Nor is it one where they are no offences.
    let high = plan(MANY_RESETS, 3)?;
    for port in 1..=4 {
        ensure!(goes_on(&mut abuse(&high, port)?)?, "something else than the limit has stopped it");
    }
    pass(Duration::from_millis(500));
    ensure!(visit(&high, "203.0.113.5:9")?.ask(1, "/")? == 200);
    ensure!(high.daemon.log().matching(&["msg=\"banned\""]).is_empty());
    Ok(())
}

/// A connection of a client, as a proxy tells of it.
fn visit(edge: &Edge, client: &str) -> Result<Raw> {
    let to = "198.51.100.2:443".parse::<SocketAddr>()?;
    let header = mc_proxy::proxy_header::Header::forwarded(client.parse()?, to);
    let mut stream = connect(edge.addr)?;
    stream.write_all(&mc_proxy::proxy_header::write_v2(&header)?)?;
    Raw::over(edge, stream)?.begin(&[])
}

/// One that is served, and then has 21 streams reset.
fn abuse(edge: &Edge, port: u16) -> Result<Raw> {
    let mut raw = visit(edge, &format!("203.0.113.5:{port}"))?;
    ensure!(raw.ask(1, "/")? == 200);
    let pair = |stream| [headers(stream, true, hpack::get("/hold")), reset(stream, code::CANCEL)].concat();
    raw.send((1..=21).flat_map(|at| pair(2 * at + 1)).collect::<Vec<_>>())?;
    Ok(raw)
}
