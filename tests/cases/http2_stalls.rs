//! Whoever begins something over HTTP/2 and does not go on, an attacker for each limit: what it gets, that its limit is what stops it,
//! and that a good client hardly notices.

#[path = "http2_support/mod.rs"]
mod http2_support;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use mc_proxy_tests::{
    client::{End, connect, end_of},
    http::{
        Edge, HOST, Plan,
        h2::{
            Event, Raw, code, flag,
            frame::{frame, headers, update},
            hpack, kind,
        },
    },
    wait::pass,
};
use rustls::{ClientConnection, pki_types::ServerName};

use crate::http2_support::{MAX, besides, edge, goes_on, origin};

/// What is sent of a ClientHello.
type Cut = fn(&[u8]) -> &[u8];

/// So many who attack at the same time.
fn many(count: usize, attack: &(dyn Fn() -> Result<()> + Sync)) -> Result<()> {
    thread::scope(|scope| {
        let all = (0..count).map(|_| scope.spawn(attack)).collect::<Vec<_>>();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("an attacker has panicked"))?)
    })
}

/// `max_concurrent_streams`, and `body_timeout`, which ends those that never end.
#[test]
fn streams_that_never_end_their_request() -> Result<()> {
    let origin = origin()?;
    // All at once, so that none is too late before the last one is there.
    let attack = |raw: &mut Raw| -> Result<()> {
        let head = hpack::request("POST", "/", &[]);
        raw.send((0..11).flat_map(|at| headers(2 * at + 1, false, &head)).collect::<Vec<_>>())
    };
    let low = edge(&origin, "max_concurrent_streams = 10\nbody_timeout = \"1s\"")?;
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
    raw.limit(Duration::from_secs(2))?;
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
    let attack = |edge: &Edge| -> Result<Raw> {
        let mut raw = Raw::with(edge, &[(4, MAX)])?;
        raw.send(update(0, MAX - 65_535))?;
        raw.get(1, "/big")?;
        Ok(raw)
    };
    let low = edge(&origin, "write_timeout = \"600ms\"")?;
    let begun = Instant::now();
    let mut raw = attack(&low)?;
    let line = low.logs(&["connection closed"])?;
    let after = begun.elapsed();
    ensure!(after > Duration::from_millis(500) && after < Duration::from_secs(8), "after {after:?}: {line}");
    ensure!(!matches!(raw.end(), Ok(Some(_))));
    low.serves()?;
    let high = edge(&origin, "write_timeout = \"20s\"")?;
    let mut raw = attack(&high)?;
    pass(Duration::from_secs(3));
    ensure!(goes_on(&mut raw)?, "something else than the limit has stopped it");
    ensure!(high.daemon.log().matching(&["connection closed"]).is_empty());
    high.serves()
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
    let low = edge(&origin, "header_timeout = \"2s\"")?;
    let once = || {
        let begun = Instant::now();
        let end = attack(&low)?.end()?;
        let after = begun.elapsed();
        ensure!(end == Some(code::PROTOCOL) && after < Duration::from_secs(8), "{end:?} after {after:?}");
        Ok(())
    };
    once()?;
    // Nor does it help to drip.
    let mut raw = attack(&low)?;
    let begun = Instant::now();
    while raw.try_send(frame(kind::CONTINUATION, 0, 1, hpack::field("x", "y"))) {
        pass(Duration::from_millis(250));
        ensure!(begun.elapsed() < Duration::from_secs(8), "it goes on");
    }
    besides(&low, || many(10, &once))?;
    let high = edge(&origin, "header_timeout = \"20s\"")?;
    let mut raw = attack(&high)?;
    raw.limit(Duration::from_secs(4))?;
    let is = raw.reaction();
    ensure!(is.is_err(), "something else than the limit has stopped it: {is:?}");
    Ok(())
}

/// `body_timeout`, and `min_body_rate` for those that drip.
#[test]
fn slow_bodies() -> Result<()> {
    let origin = origin()?;
    let low = edge(&origin, "body_timeout = \"1500ms\"\nmin_body_rate = 1000")?;
    let stops = || {
        let mut raw = Raw::new(&low)?;
        raw.post(1, "/", &[("content-length", "1000")])?;
        raw.data(1, false, "x")?;
        let begun = Instant::now();
        let (is, after) = (raw.reaction()?, begun.elapsed());
        ensure!(is == Event::Head(1, 408) && after < Duration::from_secs(6), "{is:?} after {after:?}");
        Ok(())
    };
    stops()?;
    besides(&low, || many(10, &stops))?;
    let drips = |edge: &Edge| -> Result<Event> {
        let mut raw = Raw::new(edge)?;
        raw.post(1, "/", &[("content-length", "1000")])?;
        for _ in 0..15 {
            raw.data(1, false, "x")?;
            // A small part of `body_timeout`, which is only over without a byte.
            pass(Duration::from_millis(200));
        }
        raw.limit(Duration::from_millis(300))?;
        raw.reaction()
    };
    let is = drips(&low)?;
    ensure!(is == Event::Head(1, 408), "{is:?}");
    let is = drips(&edge(&origin, "body_timeout = \"1500ms\"\nmin_body_rate = 0")?);
    ensure!(is.is_err(), "something else than the limit has stopped it: {is:?}");
    Ok(())
}

/// `keepalive_timeout`, which PING does not prolong, and `header_timeout` for those that do not even begin.
#[test]
fn idle_connections() -> Result<()> {
    let origin = origin()?;
    let low = edge(&origin, "keepalive_timeout = \"2s\"\nheader_timeout = \"2s\"")?;
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
        ensure!(told == code::NONE && after > Duration::from_millis(1_900), "{told} after {after:?}");
        ensure!(after < Duration::from_secs(8), "after {after:?}");
        Ok(())
    };
    idle()?;
    let mut raw = Raw::new(&low)?;
    let begun = Instant::now();
    while raw.try_send(frame(kind::PING, 0, 0, [0; 8])) {
        pass(Duration::from_millis(200));
        // It is told first, and has some time to hear it.
        ensure!(begun.elapsed() < Duration::from_secs(15), "it goes on");
    }
    let silent = || {
        let begun = Instant::now();
        let mut raw = Raw::bare(&low)?;
        while raw.frame()?.is_some() {}
        let after = begun.elapsed();
        ensure!(after > Duration::from_millis(1_900) && after < Duration::from_secs(8), "after {after:?}");
        Ok(())
    };
    silent()?;
    for (attack, many_of) in [(&idle as &(dyn Fn() -> Result<()> + Sync), 20), (&silent, 20)] {
        // The good client has no pause that is as long.
        besides(&low, || many(many_of, attack))?;
    }
    let high = edge(&origin, "keepalive_timeout = \"20s\"\nheader_timeout = \"20s\"")?;
    let mut raw = Raw::new(&high)?;
    raw.limit(Duration::from_secs(4))?;
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
    let low = plan("2s")?;
    for part in parts {
        let once = || {
            let begun = Instant::now();
            let end = end_of(&mut begin(&low, part)?)?;
            let after = begun.elapsed();
            // Without a word in the configuration it would be 5 s.
            ensure!(!matches!(end, End::Silent(_)) && after < Duration::from_millis(4_900), "{end:?} after {after:?}");
            Ok(())
        };
        once()?;
        besides(&low, || many(10, &once))?;
    }
    let high = plan("20s")?;
    for part in parts {
        let mut stream = begin(&high, part)?;
        stream.set_read_timeout(Some(Duration::from_secs(4)))?;
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
