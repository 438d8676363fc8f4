//! WebSockets where at least one side speaks HTTP/2 (RFC 8441).

use ::http::{Method, Request, Response};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::{RecvStream, SendStream, ext::Protocol, server};
use mc_proxy_tests::http::{
    Conn, Edge, HOST, Origin, Plan, get,
    h2::{
        Good, H2Origin, Incoming,
        good::{content, request, run, soon},
    },
    ok,
};
use tungstenite::{Error, Message};

/// A text that a client sends (RFC 6455 §5.2), masked with nothing.
fn masked(text: &str) -> Bytes {
    [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat().into()
}

/// The same of a server.
fn unmasked(text: &str) -> Vec<u8> {
    [&[0x81, text.len() as u8], text.as_bytes()].concat()
}

/// A WebSocket server of HTTP/1.1.
fn http1(conn: &mut Conn) -> Result<()> {
    let mut socket = tungstenite::accept(conn).map_err(|error| anyhow::anyhow!("{error}"))?;
    loop {
        match socket.read() {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => socket.send(message)?,
            Ok(_) => {}
            Err(Error::ConnectionClosed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// One of HTTP/2, for texts that come in one piece.
async fn http2(mut incoming: Incoming) -> Result<()> {
    let request = &incoming.request;
    let is_websocket = request.extensions().get::<Protocol>().is_some_and(|name| name.as_str() == "websocket");
    ensure!(request.method() == Method::CONNECT && is_websocket, "{request:?}");
    ensure!(!request.headers().contains_key("sec-websocket-key") && request.uri().path() == "/ws", "{request:?}");
    ensure!(request.headers().get("sec-websocket-version").is_some_and(|value| value == "13"), "{request:?}");
    let mut send = incoming.respond.send_response(Response::new(()), false)?;
    let mut body = incoming.request.into_body();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
        while let Some((text, rest)) = text(&bytes) {
            send.send_data(unmasked(&text).into(), false)?;
            bytes = rest;
        }
        if bytes.first() == Some(&0x88) {
            // It says goodbye.
            send.send_data(Bytes::from_static(b"\x88\0"), true)?;
            return Ok(());
        }
    }
    send.send_data(Bytes::new(), true)?;
    Ok(())
}

/// The first text of what a client has sent, if all of it has come, and what follows.
fn text(bytes: &[u8]) -> Option<(String, Vec<u8>)> {
    let (head, rest) = bytes.split_at_checked(6)?;
    let length = usize::from(head[1] & 0x7f);
    if head[0] != 0x81 || length > 125 || rest.len() < length {
        return None;
    }
    let text = rest[..length].iter().zip(head[2..].iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Some((String::from_utf8(text).ok()?, rest[length..].to_vec()))
}

fn extended(path: &str) -> Result<Request<()>> {
    let mut head = request(Method::CONNECT, path);
    head.extensions_mut().insert(Protocol::from_static("websocket"));
    head.headers_mut().insert("sec-websocket-version", "13".parse()?);
    Ok(head)
}

async fn exactly(body: &mut RecvStream, length: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let data = soon(body.data()).await?.context("an end")??;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

async fn converse(mut body: RecvStream, mut send: SendStream<Bytes>) -> Result<()> {
    for text in ["hello", "", "another one"] {
        send.send_data(masked(text), false)?;
        let expected = unmasked(text);
        let answer = exactly(&mut body, expected.len()).await?;
        ensure!(answer == expected, "{text}: {answer:?}");
    }
    send.send_data(Bytes::from_static(b"\x88\x80\0\0\0\0"), true)?;
    ensure!(exactly(&mut body, 2).await? == b"\x88\0", "no goodbye");
    let (rest, trailers) = soon(content(body)).await?.context("and no end")?;
    ensure!(rest.is_empty() && trailers.is_none(), "{rest:?}");
    Ok(())
}

fn h2_backend() -> Result<H2Origin> {
    let mut builder = server::Builder::new();
    builder.enable_connect_protocol();
    H2Origin::with(None, builder, http2)
}

fn edge_of_h2(origin: &H2Origin) -> Result<Edge> {
    Plan::new()?.route(HOST, &[origin.addr()], "backend_protocol = \"h2\"").start()
}

/// A client of HTTP/2, among whose streams one is a WebSocket.
fn over_h2(edge: &Edge) -> Result<()> {
    run(async {
        let good = Good::new(edge).await?;
        good.extended().await?;
        for _ in 0..2 {
            let (response, send) = good.begin(extended("/ws")?, false).await?;
            let response = soon(response).await??;
            ensure!(response.status() == 200, "{response:?}");
            for name in ["sec-websocket-accept", "connection", "upgrade", "content-length"] {
                ensure!(!response.headers().contains_key(name), "{name} in {response:?}");
            }
            converse(response.into_body(), send).await?;
        }
        Ok(())
    })
}

#[test]
fn h2_to_http1() -> Result<()> {
    let origin = Origin::new(http1)?;
    let edge = Edge::to(origin.addr(), "response_timeout = \"3s\"\nbody_timeout = \"3s\"")?;
    over_h2(&edge)?;
    ensure!(origin.accepts() == 2);
    Ok(())
}

#[test]
fn h2_to_h2() -> Result<()> {
    let origin = h2_backend()?;
    over_h2(&edge_of_h2(&origin)?)?;
    ensure!(origin.requests() == 2);
    Ok(())
}

#[test]
fn http1_to_h2() -> Result<()> {
    let origin = h2_backend()?;
    let edge = edge_of_h2(&origin)?;
    let opened = tungstenite::client(format!("wss://{HOST}/ws"), edge.client()?);
    let (mut socket, response) = opened.map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(response.status() == 101 && response.headers()["upgrade"] == "websocket", "{response:?}");
    for text in ["hello", "", "another one"] {
        socket.send(Message::text(text))?;
        ensure!(socket.read()? == Message::text(text), "{text}");
    }
    socket.close(None)?;
    let goodbye = socket.read();
    ensure!(matches!(goodbye, Ok(Message::Close(_))), "{goodbye:?}");
    Ok(())
}

/// RFC 8441 §3: who has not said that it takes extended CONNECT is not sent one.
#[test]
fn a_backend_of_h2_that_does_not_take_it() -> Result<()> {
    let origin = H2Origin::echo()?;
    let edge = edge_of_h2(&origin)?;
    run(async {
        let good = Good::new(&edge).await?;
        good.extended().await?;
        let (response, _send) = good.begin(extended("/ws")?, false).await?;
        let status = soon(response).await??.status();
        ensure!(status.is_server_error(), "{status}");
        good.ask(mc_proxy_tests::http::h2::good::get("/")).await?.expect(200)?;
        Ok(())
    })?;
    ensure!(origin.requests() == 1, "{} requests", origin.requests());
    let upgrade = format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let status = edge.ask(upgrade)?.status;
    ensure!(status >= 500, "{status}");
    Ok(())
}

/// A refusal is a response like any other.
#[test]
fn a_backend_that_refuses() -> Result<()> {
    let origin = Origin::answering(|request| match request.field("upgrade") {
        Some(_) => b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_vec(),
        None => ok("hello"),
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    run(async {
        let good = Good::new(&edge).await?;
        good.extended().await?;
        let (response, _send) = good.begin(extended("/ws")?, false).await?;
        let mut response = soon(response).await??;
        ensure!(response.status() == 403, "{response:?}");
        ensure!(exactly(response.body_mut(), 2).await? == b"no");
        Ok(())
    })?;
    edge.ask(get("/"))?.expect(200).map(drop)
}

/// A client that is gone takes its backend's connection with it.
#[test]
fn a_client_that_resets() -> Result<()> {
    let (told, gone) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let origin = Origin::new(move |conn| {
        let served = http1(conn);
        told.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.send(served.is_err())?;
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    run(async {
        let good = Good::new(&edge).await?;
        good.extended().await?;
        let (response, mut send) = good.begin(extended("/ws")?, false).await?;
        let mut response = soon(response).await??;
        send.send_data(masked("hello"), false)?;
        exactly(response.body_mut(), 7).await?;
        send.send_reset(h2::Reason::CANCEL);
        ensure!(gone.recv_timeout(mc_proxy_tests::wait::SOON)?, "the backend is told of an orderly end");
        Ok(())
    })
}
