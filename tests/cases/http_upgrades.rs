//! Upgrades: WebSockets through the proxy, spoken by somebody else's code, and what is not let through.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    http::{Client, Conn, Edge, Ended, HOST, Origin, Plan, Request, get, ok},
    wait::{SOON, pass, until},
};
use tungstenite::{Bytes, Error, Message, WebSocket, protocol::CloseFrame};

/// Asks for an upgrade, with more lines.
fn upgrade(protocol: &str, lines: &str) -> String {
    format!("GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\n{lines}\r\n")
}

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: own/1\r\nX-Own: 1\r\n\r\n";

/// A WebSocket server that says everything back, and a word of its own when asked.
fn echo(conn: &mut Conn) -> Result<()> {
    let mut socket = tungstenite::accept(conn).map_err(|error| anyhow::anyhow!("{error}"))?;
    loop {
        match socket.read() {
            Ok(Message::Text(text)) if text.as_str() == "ping me" => socket.send(Message::Ping(Bytes::from("mine")))?,
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => socket.send(message)?,
            Ok(Message::Pong(payload)) => socket.send(Message::text(format!("pong {payload:?}")))?,
            Ok(Message::Ping(_) | Message::Close(_) | Message::Frame(_)) => {}
            Err(Error::ConnectionClosed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn open(edge: &Edge) -> Result<WebSocket<Client>> {
    let opened = tungstenite::client(format!("wss://{HOST}/ws?x=y"), edge.client()?);
    let (socket, response) = opened.map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(response.status() == 101 && response.headers()["upgrade"] == "websocket", "{response:?}");
    Ok(socket)
}

#[test]
fn websockets() -> Result<()> {
    let origin = Origin::new(echo)?;
    // None of these deadlines is a tunnel's.
    let edge = Edge::to(
        origin.addr(),
        "keepalive_timeout = \"300ms\"\nresponse_timeout = \"300ms\"\nbody_timeout = \"300ms\"\nmax_body_bytes = 1000",
    )?;
    let mut socket = open(&edge)?;
    for text in ["hello", "", "\u{1f980} with umlauts: \u{e4}\u{f6}\u{fc}"] {
        socket.send(Message::text(text))?;
        ensure!(socket.read()? == Message::text(text));
    }
    for length in [1, 125, 126, 65_535, 65_536, 3_000_000] {
        let bytes = (0..length).map(|at| (at * 31 % 253) as u8).collect::<Vec<_>>();
        socket.send(Message::binary(bytes.clone()))?;
        ensure!(socket.read()? == Message::binary(bytes), "{length}");
    }
    socket.send(Message::Ping(Bytes::from("ours")))?;
    ensure!(socket.read()? == Message::Pong(Bytes::from("ours")));
    socket.send(Message::text("ping me"))?;
    ensure!(socket.read()? == Message::Ping(Bytes::from("mine")));
    ensure!(matches!(socket.read()?, Message::Text(text) if text.contains("mine")), "the pong has not arrived");
    pass(Duration::from_millis(1_000));
    socket.send(Message::text("after a pause"))?;
    ensure!(socket.read()? == Message::text("after a pause"));

    let frame = CloseFrame { code: tungstenite::protocol::frame::coding::CloseCode::Normal, reason: "bye".into() };
    socket.close(Some(frame.clone()))?;
    ensure!(socket.read()? == Message::Close(Some(frame)));
    let end = socket.read();
    ensure!(matches!(end, Err(Error::ConnectionClosed)), "{end:?}");
    socket.get_mut().finish()?;
    let line = edge.logs(&["connection closed", "reason=closed"])?;
    ensure!(!line.contains("backend_bytes=0"), "{line}");
    Ok(())
}

#[test]
fn many_websockets_at_once() -> Result<()> {
    let origin = Origin::new(echo)?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut sockets = (0..20).map(|_| open(&edge)).collect::<Result<Vec<_>>>()?;
    for round in 0..5 {
        for (number, socket) in sockets.iter_mut().enumerate() {
            socket.send(Message::text(format!("{round} {number}")))?;
        }
        for (number, socket) in sockets.iter_mut().enumerate() {
            ensure!(socket.read()? == Message::text(format!("{round} {number}")));
        }
    }
    edge.serves().err().context("the backend speaks WebSocket only")?;
    Ok(())
}

#[test]
fn an_idle_tunnel_ends() -> Result<()> {
    let origin = Origin::new(echo)?;
    let edge = Plan::to(origin.addr())?.section("[proxy]\nidle_timeout = \"2s\"").start()?;
    let mut socket = open(&edge)?;
    for _ in 0..4 {
        pass(Duration::from_millis(700));
        socket.send(Message::text("still here"))?;
        ensure!(socket.read()? == Message::text("still here"));
    }
    let begun = Instant::now();
    ensure!(socket.read().is_err());
    ensure!((1_500..7_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    Ok(())
}

/// What the backend sees of an upgrade, and the client of its answer; then bytes, also those that came too early.
#[test]
fn any_protocol() -> Result<()> {
    let origin = Origin::new(|conn| {
        conn.request()?;
        conn.send([SWITCHED.as_bytes(), b"right behind"].concat())?;
        ensure!(conn.exactly(11)? == b"early bytes");
        conn.send("more")?;
        ensure!(conn.rest()? == b"the last");
        conn.send("answer to the end")
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    client.send(upgrade("own/1", "X-Own: 2\r\nSec-WebSocket-Key: x\r\n") + "early bytes")?;
    let response = client.response()?.expect(101)?;
    ensure!(
        response.field("upgrade") == Some("own/1") && response.field("connection") == Some("upgrade"),
        "{response:?}"
    );
    ensure!(response.field("x-own") == Some("1"));
    ensure!(client.exactly(16)? == b"right behindmore");
    client.send("the last")?;
    client.finish()?;
    let (ended, rest) = client.rest()?;
    ensure!(ended == Ended::Closed && rest == b"answer to the end", "{ended:?} {:?}", String::from_utf8_lossy(&rest));
    let seen = origin.last()?;
    ensure!(seen.field("upgrade") == Some("own/1") && seen.field("connection") == Some("upgrade"), "{seen:?}");
    ensure!(seen.field("x-own") == Some("2") && seen.field("sec-websocket-key") == Some("x"));
    ensure!(seen.field("x-forwarded-for") == Some("127.0.0.1"), "{seen:?}");
    edge.logs(&["connection closed", "reason=closed"])?;
    Ok(())
}

#[test]
fn either_end_may_break_off() -> Result<()> {
    let ended = Arc::new(AtomicBool::new(false));
    let origin = Origin::new({
        let ended = Arc::clone(&ended);
        move |conn| {
            let Some(request) = conn.request()? else { return Ok(()) };
            conn.send(SWITCHED)?;
            conn.exactly(2)?;
            if request.field("x-way") == Some("reset") {
                return conn.reset();
            }
            // Whatever way it ends.
            let _ = conn.rest();
            ended.store(true, SeqCst);
            Ok(())
        }
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    client.send(upgrade("own/1", "X-Way: reset\r\n"))?;
    client.response()?.expect(101)?;
    client.send("hi")?;
    ensure!(client.end()? == Ended::Reset);

    let mut client = edge.client()?;
    client.send(upgrade("own/1", ""))?;
    client.response()?.expect(101)?;
    client.send("hi")?;
    pass(Duration::from_millis(50));
    client.reset()?;
    until("the backend to hear of it", SOON, || Ok(ended.load(SeqCst)))
}

#[test]
fn refused_upgrades() -> Result<()> {
    let origin = Origin::answering(|request: &Request| match request.field("x-want") {
        Some("400") => b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno".to_vec(),
        Some("426") => {
            b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n"
                .to_vec()
        }
        _ => ok("as usual"),
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    for (want, status, text) in
        [("200", 200, "as usual"), ("400", 400, "no"), ("426", 426, ""), ("200", 200, "as usual")]
    {
        let response = client.ask(upgrade("websocket", &format!("X-Want: {want}\r\n")))?.expect(status)?;
        ensure!(response.text() == text && response.field("connection").is_none(), "{response:?}");
        ensure!(origin.last()?.field("upgrade") == Some("websocket"));
        ensure!(client.ask(get("/"))?.expect(200)?.text() == "as usual", "the connection goes on as it was");
    }
    ensure!(origin.accepts() == 1);
    Ok(())
}

#[test]
fn upgrades_that_are_not_forwarded() -> Result<()> {
    let origin = Origin::telling()?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    let settings = "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n";
    for request in [
        upgrade("h2c", settings).replace("Upgrade\r\nUpgrade", "Upgrade, HTTP2-Settings\r\nUpgrade"),
        upgrade("H2C", settings),
        upgrade("h2", ""),
        upgrade("TLS/1.0", ""),
        upgrade("HTTP/2.0", ""),
        upgrade("websocket, h2c", ""),
        upgrade("", ""),
        upgrade("web socket", ""),
        // Without the option it is no wish.
        upgrade("websocket", "").replace("keep-alive, Upgrade", "keep-alive"),
        // Content would be on its way where the new protocol begins.
        upgrade("websocket", "Content-Length: 2\r\n") + "hi",
        upgrade("websocket", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n",
    ] {
        let response = client.ask(&request)?.expect(200)?;
        ensure!(response.text() == "GET /ws HTTP/1.1", "{request:?}");
        let seen = origin.last()?;
        for name in ["upgrade", "connection", "http2-settings"] {
            ensure!(seen.field(name).is_none(), "{request:?}: {seen:?}");
        }
    }
    Ok(())
}

/// A 101 that nobody has asked for, or of another protocol, opens no tunnel.
#[test]
fn answers_that_do_not_fit() -> Result<()> {
    let origin = Origin::new(|conn| {
        while conn.request()?.is_some() {
            conn.send(SWITCHED)?;
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    for request in [get("/"), upgrade("other/1", ""), upgrade("h2c", ""), upgrade("own/2", "")] {
        client.ask(&request)?.expect(502)?;
    }
    client.ask(upgrade("OWN/1", ""))?.expect(101)?;
    Ok(())
}
