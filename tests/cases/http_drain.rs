//! The end of the daemon: requests that are on their way get their responses, and nobody is left waiting.

use std::{
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mc_proxy_tests::{
    http::{Edge, Ended, HOST, Origin, Plan, get, ok},
    wait::{SOON, pass, until},
};
use rustix::process::Signal;

/// A backend whose answers to `/slow` come in two parts, each when it is told to go on.
fn origin(parts: &Arc<AtomicUsize>) -> Result<Origin> {
    let parts = Arc::clone(parts);
    let part = move |number| until("the word to go on", SOON, || Ok(parts.load(SeqCst) >= number));
    Origin::new(move |conn| {
        while let Some(request) = conn.request()? {
            if request.line.contains("/slow") {
                part(1)?;
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")?;
                part(2)?;
                conn.send("later")?;
            } else {
                conn.send(ok(&request.body))?;
            }
        }
        Ok(())
    })
}

/// SIGTERM, and no more is accepted from then on.
fn begin(edge: &Edge) -> Result<()> {
    edge.daemon.signal(Signal::TERM)?;
    until("the end of accepting", SOON, || Ok(TcpStream::connect(edge.addr).is_err()))
}

/// An error unless the daemon ends by itself, and soon.
fn ends(mut edge: Edge, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    let status = edge.daemon.wait(SOON)?;
    ensure!(status.success() && begun.elapsed() < limit, "{status} after {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn requests_in_flight_are_served() -> Result<()> {
    let parts = Arc::new(AtomicUsize::new(0));
    let origin = origin(&parts)?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut idle = edge.client()?;
    idle.ask(get("/"))?.expect(200)?;
    let mut silent = edge.client()?;
    let mut slow = edge.client()?;
    slow.send(get("/slow"))?;
    origin.wait_for(2)?;
    // A head that is half there, and a body.
    let mut half = edge.client()?;
    half.send("GET / HTTP/1.1\r\nHo")?;
    let mut upload = edge.client()?;
    upload.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 6\r\n\r\nabc"))?;
    until("the head of the upload", SOON, || Ok(origin.accepts() >= 2))?;
    // The daemon reads what has come before it hears of its end.
    pass(Duration::from_millis(500));
    let begun = Instant::now();
    begin(&edge)?;
    ensure!(idle.end()? == Ended::Closed && silent.end()? == Ended::Closed);
    ensure!(begun.elapsed() < Duration::from_secs(3), "idle connections were kept for {:?}", begun.elapsed());

    half.send(format!("st: {HOST}\r\n\r\n"))?;
    upload.send("def")?;
    parts.store(2, SeqCst);
    for (client, text) in [(&mut slow, "firstlater"), (&mut half, ""), (&mut upload, "abcdef")] {
        let response = client.response()?.expect(200)?;
        ensure!(response.text() == text && response.field("connection") == Some("close"), "{response:?}");
        ensure!(client.end()? == Ended::Closed);
    }
    edge.logs(&["drained connections", "forced=0"])?;
    ends(edge, Duration::from_secs(5))
}

/// A response that has begun already cannot say that the connection ends, but it does.
#[test]
fn a_response_that_has_begun() -> Result<()> {
    let parts = Arc::new(AtomicUsize::new(1));
    let origin = origin(&parts)?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    client.send(get("/slow"))?;
    client.head_of("GET")?;
    begin(&edge)?;
    parts.store(2, SeqCst);
    ensure!(client.exactly(10)? == b"firstlater");
    ensure!(client.end()? == Ended::Closed);
    ends(edge, Duration::from_secs(5))
}

#[test]
fn errors_tell_it_too() -> Result<()> {
    let goes_on = Arc::new(AtomicBool::new(false));
    let origin = Origin::new({
        let goes_on = Arc::clone(&goes_on);
        move |conn| {
            conn.request()?;
            until("the word to go on", SOON, || Ok(goes_on.load(SeqCst)))
        }
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    client.send(get("/"))?;
    origin.wait_for(1)?;
    begin(&edge)?;
    goes_on.store(true, SeqCst);
    let response = client.response()?.expect(502)?;
    ensure!(response.field("connection") == Some("close"), "{response:?}");
    ensure!(client.end()? == Ended::Closed);
    ends(edge, Duration::from_secs(5))
}

#[test]
fn who_does_not_finish_is_cut_off() -> Result<()> {
    let origin = Origin::new(|conn| {
        let Some(request) = conn.request()? else { return Ok(()) };
        if request.line.contains("/ws") {
            conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: own\r\n\r\n")?;
        }
        conn.rest().map(drop)
    })?;
    let edge = Plan::to(origin.addr())?.section("[proxy]\nshutdown_timeout = \"1s\"").start()?;
    let mut waits = edge.client()?;
    waits.send(get("/"))?;
    let mut tunnel = edge.client()?;
    tunnel.send(get("/ws").replace("\r\n\r\n", "\r\nConnection: upgrade\r\nUpgrade: own\r\n\r\n"))?;
    tunnel.response()?.expect(101)?;
    origin.wait_for(2)?;
    let begun = Instant::now();
    begin(&edge)?;
    for client in [&mut waits, &mut tunnel] {
        let (ended, _) = client.rest()?;
        ensure!(ended == Ended::Reset || ended == Ended::Truncated, "{ended:?}");
    }
    ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    edge.logs(&["shutdown timeout exceeded, forcing close"])?;
    ends(edge, Duration::from_secs(5))
}

/// A tunnel goes on for as long as there is patience.
#[test]
fn tunnels_go_on() -> Result<()> {
    let origin = Origin::new(|conn| {
        conn.request()?;
        conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: own\r\n\r\n")?;
        loop {
            let bytes = conn.exactly(4)?;
            conn.send(bytes)?;
        }
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut tunnel = edge.client()?;
    tunnel.send(get("/ws").replace("\r\n\r\n", "\r\nConnection: upgrade\r\nUpgrade: own\r\n\r\n"))?;
    tunnel.response()?.expect(101)?;
    begin(&edge)?;
    for _ in 0..5 {
        tunnel.send("ping")?;
        ensure!(tunnel.exactly(4)? == b"ping");
        pass(Duration::from_millis(50));
    }
    tunnel.finish()?;
    ensure!(tunnel.rest()?.1.is_empty());
    ends(edge, Duration::from_secs(5))
}
