//! One attacker for each limit: what it gets, what is told of it, and that good clients are served meanwhile.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    client::{End, connect, end_of, is_reset},
    hello::Hello,
    http::{Edge, Ended, HOST, Origin, Plan, Response, get, ok},
    privilege::{find_program, skip},
    wait::{SOON, pass, until},
};

fn post(more: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n")
}

/// A backend that answers what is whole.
fn origin() -> Result<Origin> {
    Origin::answering(|request| ok(&request.body))
}

/// An error unless the time since `begun` is about `expected`.
fn about(begun: Instant, expected: Duration) -> Result<()> {
    let after = begun.elapsed();
    ensure!(
        (expected * 8 / 10..expected + Duration::from_secs(4)).contains(&after),
        "after {after:?}, not {expected:?}"
    );
    Ok(())
}

/// A refusal that ends the connection and names nothing.
fn is_refusal(response: &Response, status: u16) -> Result<()> {
    ensure!(response.status == status && response.field("connection") == Some("close"), "{response:?}");
    ensure!(response.text().starts_with(&format!("{status} ")) && response.body.len() < 100, "{response:?}");
    Ok(())
}

#[test]
fn slow_heads() -> Result<()> {
    let origin = origin()?;
    let edge = Edge::to(origin.addr(), "header_timeout = \"700ms\"\nkeepalive_timeout = \"20s\"")?;
    // One that stops, and one that drips.
    let mut stops = edge.client()?;
    let begun = Instant::now();
    stops.send("GET / HTTP/1.1\r\nHost: app.exam")?;
    let mut drips = edge.client()?;
    let mut sent = 0;
    for byte in get("/").replace("\r\n\r\n", &format!("\r\nX-Own: {}\r\n\r\n", "x".repeat(500))).bytes() {
        // Who goes on behind the response loses it by the RST that follows.
        if !drips.is_silent_for(Duration::from_millis(25))? || begun.elapsed() > Duration::from_secs(6) {
            break;
        }
        drips.send([byte])?;
        sent += 1;
        if sent == 10 {
            edge.serves()?;
        }
    }
    ensure!(begun.elapsed() < Duration::from_secs(6), "every byte has a time of its own");
    is_refusal(&stops.response()?, 408)?;
    ensure!(stops.end()? == Ended::Closed);
    is_refusal(&drips.response()?, 408)?;
    ensure!(drips.end()? == Ended::Closed);
    ensure!(sent < 500, "a head of any length");
    // The second request has its own time, from its first byte.
    let mut client = edge.client()?;
    client.ask(get("/"))?.expect(200)?;
    pass(Duration::from_millis(900));
    let begun = Instant::now();
    client.send("G")?;
    is_refusal(&client.response()?, 408)?;
    about(begun, Duration::from_millis(700))?;
    ensure!(origin.requests().len() == 2, "only good requests are forwarded");
    Ok(())
}

#[test]
fn slow_bodies() -> Result<()> {
    let origin = origin()?;
    let edge = Edge::to(origin.addr(), "body_timeout = \"1500ms\"")?;
    for (head, part) in [("Content-Length: 10\r\n", "half"), ("Transfer-Encoding: chunked\r\n", "5\r\nhal")] {
        let mut client = edge.client()?;
        let begun = Instant::now();
        client.send(post(head) + part)?;
        edge.serves()?;
        is_refusal(&client.response()?, 408)?;
        about(begun, Duration::from_millis(1_500))?;
        ensure!(client.end()? == Ended::Closed);
    }
    // Slow, but not too slow: without min_body_rate that is as it may be.
    let mut client = edge.client()?;
    client.send(post("Content-Length: 10\r\n"))?;
    for _ in 0..10 {
        pass(Duration::from_millis(250));
        client.send("x")?;
    }
    ensure!(client.response()?.expect(200)?.text() == "x".repeat(10));

    let edge = Edge::to(origin.addr(), "body_timeout = \"500ms\"\nmin_body_rate = 100")?;
    let mut client = edge.client()?;
    let begun = Instant::now();
    client.send(post("Content-Length: 1000\r\n"))?;
    while begun.elapsed() < Duration::from_secs(4) && client.try_send("x").is_ok() {
        if !client.is_silent_for(Duration::from_millis(100))? {
            break;
        }
    }
    ensure!(begun.elapsed() < Duration::from_secs(4), "a byte every 100 ms is not 100 bytes a second");
    edge.serves()
}

#[test]
fn slow_readers() -> Result<()> {
    let origin = Origin::new(|conn| {
        while let Some(request) = conn.request()? {
            let length = if request.line.contains("/big") { 64 << 20 } else { 2 };
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"))?;
            for _ in 0..length / (1 << 20) {
                conn.send(vec![b'x'; 1 << 20])?;
            }
            conn.send(vec![b'x'; length % (1 << 20)])?;
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "write_timeout = \"2s\"")?;
    let admin = edge.installation.admin()?;
    let mut client = edge.client()?;
    client.send(get("/big"))?;
    client.head_of("GET")?;
    edge.serves()?;
    let begun = Instant::now();
    until("the end of a slow reader", SOON, || Ok(admin.status()?.total_connections == 0))?;
    ensure!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let (ended, bytes) = client.rest()?;
    ensure!(ended == Ended::Reset && bytes.len() < 60 << 20, "{ended:?} after {}", bytes.len());
    edge.logs(&["connection closed", "reason=client_reset"])?;

    // Who takes a little now and then is served.
    let mut client = edge.client()?;
    client.send(get("/big"))?;
    client.head_of("GET")?;
    // Socket buffers hold some MiB, of which a part has to be free before the daemon sees that anything moves.
    for _ in 0..12 {
        client.exactly(4 << 20)?;
        pass(Duration::from_millis(300));
    }
    client.exactly(16 << 20)?;
    client.ask(get("/"))?.expect(200)?;
    Ok(())
}

#[test]
fn idle_connections() -> Result<()> {
    let origin = origin()?;
    let edge = Edge::to(origin.addr(), "keepalive_timeout = \"1500ms\"\nheader_timeout = \"20s\"")?;
    let mut silent = edge.client()?;
    let mut idle = edge.client()?;
    let begun = Instant::now();
    idle.ask(get("/"))?.expect(200)?;
    edge.serves()?;
    ensure!(silent.end()? == Ended::Closed, "without a word");
    ensure!(idle.end()? == Ended::Closed);
    about(begun, Duration::from_millis(1_500))?;
    edge.logs(&["connection closed", "reason=idle"])?;
    // An empty line is no request.
    let mut client = edge.client()?;
    client.send("\r\n")?;
    ensure!(client.end()? == Ended::Closed);
    // A response that takes longer is none that is idle.
    let slow = Origin::answering(|_| {
        pass(Duration::from_millis(2_500));
        ok("slow")
    })?;
    let edge = Edge::to(slow.addr(), "keepalive_timeout = \"1500ms\"")?;
    ensure!(edge.ask(get("/"))?.expect(200)?.text() == "slow");
    Ok(())
}

#[test]
fn heads_that_are_too_long() -> Result<()> {
    let origin = origin()?;
    let edge = Edge::to(origin.addr(), "max_head_bytes = 4096\nmax_fields = 20\nmax_target_bytes = 2048")?;
    let fields = |count: usize| (0..count).map(|number| format!("X-{number}: x\r\n")).collect::<String>();
    let good = get("/").replace("\r\n\r\n", "\r\n");
    for (bad, status, reason) in [
        (format!("{good}{}\r\n", fields(20)), 431, "http_too_many_fields"),
        (format!("{good}X: {}\r\n\r\n", "x".repeat(5_000)), 431, "http_head_too_long"),
        (format!("{good}{}", "X: y\r\n".repeat(2_000)), 431, "http_head_too_long"),
        (format!("{good}X: {}", "x".repeat(50_000)), 431, "http_head_too_long"),
        ("x".repeat(20_000), 431, "http_head_too_long"),
        (get(&format!("/{}", "x".repeat(2_048))), 414, "http_target_too_long"),
        (post("Transfer-Encoding: chunked\r\n") + "0\r\n" + &fields(21) + "\r\n", 400, ""),
        (post("Transfer-Encoding: chunked\r\n") + "0\r\nX: " + &"x".repeat(5_000), 400, ""),
    ] {
        let mut client = edge.client()?;
        let response = client.ask(&bad)?;
        ensure!(client.end()? == Ended::Closed, "{reason}");
        if !reason.is_empty() {
            is_refusal(&response, status)?;
            edge.logs(&["a request was malformed", "client=127.0.0.1:", reason])?;
        } else {
            // Trailers are not the head.
            ensure!([400, 431].contains(&response.status), "{response:?}");
        }
    }
    let mut client = edge.client()?;
    client.ask(format!("{good}{}\r\n", fields(19)))?.expect(200)?;
    client.ask(get(&format!("/{}", "x".repeat(2_047))))?.expect(200)?;
    client.ask(format!("{good}X: {}\r\n\r\n", "x".repeat(3_900)))?.expect(200)?;
    Ok(())
}

#[test]
fn bodies_that_are_too_long() -> Result<()> {
    let origin = origin()?;
    let edge = Edge::to(origin.addr(), "max_body_bytes = 100000")?;
    let mut client = edge.client()?;
    is_refusal(&client.ask(post("Content-Length: 100001\r\nExpect: 100-continue\r\n"))?, 413)?;
    ensure!(client.end()? == Ended::Closed && origin.accepts() == 0, "by its length it is known before");
    let mut client = edge.client()?;
    is_refusal(&client.ask(post("Content-Length: 18446744073709551615\r\n"))?, 413)?;

    let chunk = format!("c350\r\n{}\r\n", "x".repeat(50_000));
    let mut client = edge.client()?;
    client.send(post("Transfer-Encoding: chunked\r\n") + &chunk + &chunk + "1\r\nx\r\n")?;
    is_refusal(&client.response()?, 413)?;
    ensure!(client.end()? == Ended::Closed);
    ensure!(origin.requests().is_empty(), "none of them is whole");

    let mut client = edge.client()?;
    ensure!(client.ask(post("Content-Length: 100000\r\n") + &"x".repeat(100_000))?.expect(200)?.body.len() == 100_000);
    let response = client.ask(post("Transfer-Encoding: chunked\r\n") + &chunk + &chunk + "0\r\n\r\n")?.expect(200)?;
    ensure!(response.body.len() == 100_000);
    Ok(())
}

#[test]
fn so_many_requests_and_no_more() -> Result<()> {
    let origin = origin()?;
    let edge = Edge::to(origin.addr(), "max_requests = 3")?;
    let mut client = edge.client()?;
    client.send(get("/").repeat(5))?;
    for number in 1..=3 {
        let response = client.response()?.expect(200)?;
        ensure!(response.field("connection") == (number == 3).then_some("close"), "{number}: {response:?}");
    }
    ensure!(client.end()? == Ended::Closed);
    ensure!(origin.requests().len() == 3);
    edge.serves()
}

#[test]
fn handshakes_that_are_not_finished() -> Result<()> {
    let origin = origin()?;
    let edge = Plan::to(origin.addr())?.section("[proxy]\nhandshake_timeout = \"1500ms\"").start()?;
    let hello = Hello::to(HOST).bytes();
    let begun = Instant::now();
    let mut open = Vec::new();
    for part in [&b""[..], &hello[..20], &hello] {
        let mut stream = connect(edge.addr)?;
        stream.write_all(part)?;
        open.push(stream);
    }
    edge.serves()?;
    for (number, mut stream) in open.into_iter().enumerate() {
        let end = end_of(&mut stream)?;
        match end {
            End::Reset(_) => {}
            // A hello that is no whole one for rustls gets an alert.
            End::Closed(bytes) if number == 2 => ensure!(bytes.first() == Some(&21), "{bytes:?}"),
            end @ (End::Closed(_) | End::Silent(_)) => anyhow::bail!("{number}: {end:?}"),
        }
    }
    ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // One that has got the server's part, and says no more.
    let mut stream = connect(edge.addr)?;
    let name = rustls::pki_types::ServerName::try_from(HOST)?;
    let mut tls = rustls::ClientConnection::new(std::sync::Arc::new(edge.authority.client_config()?), name)?;
    tls.write_tls(&mut stream)?;
    let begun = Instant::now();
    let end = end_of(&mut stream)?;
    ensure!(matches!(&end, End::Reset(bytes) if bytes.first() == Some(&22)), "{end:?}");
    about(begun, Duration::from_millis(1_500))?;
    // Without a word in the configuration it would be 5 s.
    ensure!(begun.elapsed() < Duration::from_millis(4_900), "{:?}", begun.elapsed());
    edge.serves()
}

/// Requests without end, whose responses nobody reads: they are not answered in memory.
#[test]
fn who_asks_and_never_reads() -> Result<()> {
    let origin = Origin::answering(|_| ok("x".repeat(2_000)))?;
    let edge = Edge::to(origin.addr(), "write_timeout = \"700ms\"\nmax_requests = 0")?;
    edge.serves()?;
    let before = edge.daemon.resident_bytes()?;
    let mut client = edge.client()?;
    client.socket().set_write_timeout(Some(Duration::from_millis(200)))?;
    let many = get("/").repeat(200);
    let begun = Instant::now();
    let mut most = before;
    loop {
        let sent = client.try_send(&many);
        most = most.max(edge.daemon.resident_bytes()?);
        if sent.is_err_and(|error| is_reset(&error)) {
            break;
        }
        ensure!(begun.elapsed() < SOON, "it goes on");
    }
    ensure!(most < before + (8 << 20), "{} KiB more", (most - before) >> 10);
    edge.logs(&["connection closed", "reason=client_reset"])?;
    edge.serves()
}

/// A reader that is slow, but never stops: 4 MiB a second, where nothing may stand still for 700 ms.
#[test]
#[ignore = "progress is what the socket takes: with megabytes in its buffer it takes nothing for longer than the client stands still"]
fn a_slow_reader_that_goes_on() -> Result<()> {
    let origin = Origin::new(|conn| {
        conn.request()?;
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20))?;
        (0..64).try_for_each(|_| conn.send(vec![b'x'; 1 << 20]))
    })?;
    let edge = Edge::to(origin.addr(), "write_timeout = \"700ms\"")?;
    let mut client = edge.client()?;
    client.send(get("/"))?;
    client.head_of("GET")?;
    for _ in 0..16 {
        client.exactly(1 << 20)?;
        pass(Duration::from_millis(250));
    }
    client.exactly(48 << 20)?;
    Ok(())
}

/// A client of TLS 1.2 that asks for another handshake (RFC 5746) gets none, and has no more time for it than anybody who is
/// silent.
#[test]
fn renegotiation() -> Result<()> {
    if find_program("openssl").is_none() {
        return skip("renegotiation", "openssl is not installed");
    }
    let origin = origin()?;
    let edge = Edge::to(origin.addr(), "keepalive_timeout = \"1s\"")?;
    let begun = Instant::now();
    let mut client = Command::new("timeout")
        .args(["20", "openssl", "s_client", "-tls1_2", "-servername", HOST, "-connect", &edge.addr.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut asks = client.stdin.take().context("no input")?;
    // What its users type.
    asks.write_all(b"R\n")?;
    edge.serves()?;
    let output = client.wait_with_output()?;
    drop(asks);
    about(begun, Duration::from_secs(1))?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(text.contains("RENEGOTIATING") && text.matches("BEGIN CERTIFICATE").count() == 1, "{text}");
    ensure!(edge.daemon.log().matching(&["level=WARN", "NoRenegotiation"]).is_empty(), "a line for each attempt");
    edge.serves()
}
