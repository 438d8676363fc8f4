//! HTTP/1.1 as it is meant: requests and responses one after the other, each with its own way to end.

use std::time::Duration;

use anyhow::{Result, ensure};
use mc_proxy_tests::{
    client::connect,
    http::{Client, Edge, Ended, Framing, HOST, Origin, Request, get, ok},
};

/// Asks with a method on a connection of its own.
fn request(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n")
}

#[test]
fn one_request_after_the_other() -> Result<()> {
    let origin = Origin::telling()?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    for path in ["/", "/a?b=c", "/%C3%A9/../x//y", "/~!$&'()*+,;=:@", "/?", "/x?y?z"] {
        let response = client.ask(get(path))?.expect(200)?;
        ensure!(response.text() == format!("GET {path} HTTP/1.1"), "{response:?}");
        ensure!(response.framing == Framing::Length(response.body.len()) && response.reason == "OK");
        ensure!(response.field("connection").is_none(), "{response:?}");
    }
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "x-own!"] {
        let response = client.ask(request(method, "/m", ""))?.expect(200)?;
        ensure!(response.text() == format!("{method} /m HTTP/1.1"), "{response:?}");
    }
    ensure!(client.is_silent_for(Duration::from_millis(50))?, "something is behind the last response");
    ensure!(origin.accepts() == 1, "{} connections", origin.accepts());

    let response = client.ask(request("GET", "/last", "Connection: x, CLOSE\r\n"))?.expect(200)?;
    ensure!(response.field("connection") == Some("close"));
    ensure!(client.end()? == Ended::Closed);
    edge.logs(&["connection closed", "reason=closed"])?;
    edge.daemon.stop()
}

#[test]
fn pipelined_requests_are_answered_in_their_order() -> Result<()> {
    let origin = Origin::answering(|request| {
        let number = request.line.split(['/', ' ']).nth(2).and_then(|text| text.parse::<usize>().ok());
        ok([request.line.as_bytes(), b" ", &vec![b'x'; number.unwrap_or(0) * 100]].concat())
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    let mut all = String::new();
    for number in 0..50 {
        match number % 3 {
            0 => all.push_str(&get(&format!("/{number}"))),
            1 => all.push_str(
                &request("POST", &format!("/{number}"), "Content-Length: 5\r\n").replace("\r\n\r\n", "\r\n\r\nhello"),
            ),
            _ => all.push_str(
                &request("PUT", &format!("/{number}"), "Transfer-Encoding: chunked\r\n")
                    .replace("\r\n\r\n", "\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            ),
        }
    }
    client.send(&all)?;
    for number in 0..50 {
        let method = ["GET", "POST", "PUT"][number % 3];
        let response = client.response()?.expect(200)?;
        ensure!(response.text().starts_with(&format!("{method} /{number} HTTP/1.1 ")), "{number}: {}", response.text());
        ensure!(response.text().ends_with(&"x".repeat(number * 100)));
    }
    let requests = origin.requests();
    ensure!(requests.len() == 50);
    for (number, request) in requests.iter().enumerate() {
        ensure!(request.body == [&b""[..], b"hello", b"abc"][number % 3], "{request:?}");
    }
    // Byte by byte it is the same.
    for byte in request("POST", "/51", "Content-Length: 2\r\n").into_bytes().into_iter().chain(*b"hi") {
        client.send([byte])?;
    }
    ensure!(client.response()?.text().starts_with("POST /51 "));
    ensure!(origin.last()?.body == b"hi");
    Ok(())
}

/// TLS and TCP know half of an end, too.
#[test]
fn a_client_that_has_said_all() -> Result<()> {
    let origin = Origin::answering(|request| {
        mc_proxy_tests::wait::pass(Duration::from_millis(200));
        ok(&request.line)
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    client.send(get("/1") + &get("/2"))?;
    client.finish()?;
    for number in 1..=2 {
        ensure!(client.response()?.expect(200)?.text() == format!("GET /{number} HTTP/1.1"));
    }
    ensure!(client.end()? == Ended::Closed);
    edge.logs(&["connection closed", "reason=closed"])?;
    Ok(())
}

#[test]
fn by_alpn() -> Result<()> {
    let origin = Origin::telling()?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut config = edge.authority.client_config()?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut client = Client::new(connect(edge.addr)?, config.clone(), HOST)?;
    client.ask(get("/"))?.expect(200)?;
    let mut stream = client.into_stream()?;
    ensure!(stream.conn.alpn_protocol() == Some(b"http/1.1".as_slice()));
    stream.conn.send_close_notify();
    config.alpn_protocols = vec![b"spdy/3".to_vec()];
    ensure!(Client::new(connect(edge.addr)?, config, HOST).is_err(), "nothing that is spoken here was offered");
    Ok(())
}

/// What a backend says, by path.
fn by_path(request: &Request) -> Vec<u8> {
    let path = request.line.split(' ').nth(1).unwrap_or_default();
    let head = match path {
        "/length" => "200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "/empty" => "200 OK\r\nContent-Length: 0\r\n\r\n",
        "/chunked" => "200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        "/head" => "200 OK\r\nContent-Length: 1234\r\nETag: \"x\"\r\n\r\n",
        "/head-chunked" => "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "/head-none" => "200 OK\r\n\r\n",
        "/204" => "204 No Content\r\nX-Own: 1\r\n\r\n",
        "/204-length" => "204 No Content\r\nContent-Length: 0\r\n\r\n",
        "/304" => "304 Not Modified\r\nContent-Length: 99\r\nETag: \"x\"\r\n\r\n",
        "/304-chunked" => "304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
        "/reason" => "299 Something Of One's Own\r\nContent-Length: 0\r\n\r\n",
        "/no-reason" => "200\r\nContent-Length: 2\r\n\r\nhi",
        "/fields" => {
            "200 OK\r\nServer: mine\r\nVia: 1.1 x\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n"
        }
        _ => "404 Not Found\r\nContent-Length: 0\r\n\r\n",
    };
    format!("HTTP/1.1 {head}").into_bytes()
}

#[test]
fn responses_end_where_they_say() -> Result<()> {
    let origin = Origin::answering(by_path)?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    for (method, path, status, framing, body) in [
        ("GET", "/length", 200, Framing::Length(5), "hello"),
        ("GET", "/empty", 200, Framing::Length(0), ""),
        ("GET", "/chunked", 200, Framing::Chunked, "hello"),
        ("HEAD", "/head", 200, Framing::None, ""),
        ("HEAD", "/head-chunked", 200, Framing::None, ""),
        ("HEAD", "/head-none", 200, Framing::None, ""),
        ("GET", "/204", 204, Framing::None, ""),
        ("GET", "/204-length", 204, Framing::None, ""),
        ("GET", "/304", 304, Framing::None, ""),
        ("GET", "/304-chunked", 304, Framing::None, ""),
        ("GET", "/no-reason", 200, Framing::Length(2), "hi"),
        ("GET", "/reason", 299, Framing::Length(0), ""),
        ("GET", "/unknown", 404, Framing::Length(0), ""),
    ] {
        let response = client.ask(request(method, path, ""))?.expect(status)?;
        ensure!(response.framing == framing && response.text() == body, "{path}: {response:?}");
        match path {
            "/head" => {
                ensure!(response.field("content-length") == Some("1234") && response.field("etag") == Some("\"x\""))
            }
            "/304" => ensure!(response.field("content-length") == Some("99"), "{response:?}"),
            "/204" => ensure!(response.field("x-own") == Some("1")),
            _ => {}
        }
    }
    let response = client.ask(get("/fields"))?.expect(200)?;
    ensure!(response.field("server") == Some("mine") && response.field("via") == Some("1.1 x"), "{response:?}");
    ensure!(response.field("date") == Some("Mon, 01 Jan 2024 00:00:00 GMT"), "the backend's own: {response:?}");
    ensure!(client.is_silent_for(Duration::from_millis(50))? && origin.accepts() == 1);
    Ok(())
}

#[test]
fn responses_that_end_with_the_connection() -> Result<()> {
    let origin = Origin::new(|conn| {
        let Some(request) = conn.request()? else { return Ok(()) };
        let version = if request.line.contains("old") { "1.0" } else { "1.1" };
        conn.send(format!("HTTP/{version} 200 OK\r\nX-Own: 1\r\n\r\nfirst "))?;
        conn.send("second")
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    for (number, path) in ["/new", "/old", "/new"].iter().enumerate() {
        let response = client.ask(get(path))?.expect(200)?;
        ensure!(response.framing == Framing::Chunked && response.text() == "first second", "{response:?}");
        ensure!(origin.accepts() == number as u64 + 1);
    }
    let response = edge.ask(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\nConnection: keep-alive\r\n\r\n"))?;
    ensure!(response.framing == Framing::UntilClose && response.text() == "first second", "{response:?}");
    Ok(())
}

/// A response that breaks off must not look like a whole one.
#[test]
fn responses_that_break_off() -> Result<()> {
    let origin = Origin::new(|conn| {
        let Some(request) = conn.request()? else { return Ok(()) };
        conn.send(match request.line.split(' ').nth(1) {
            Some("/length") => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
            Some("/chunk") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhello",
            Some("/chunks") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            Some("/malformed") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nx\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        })
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    for path in ["/length", "/chunk", "/chunks", "/malformed"] {
        let mut client = edge.client()?;
        client.send(get(path))?;
        let (ended, bytes) = client.rest()?;
        ensure!(ended == Ended::Reset, "{path}: {ended:?} after {:?}", String::from_utf8_lossy(&bytes));
        ensure!(!bytes.ends_with(b"0\r\n\r\n"), "{path}");
    }
    edge.serves()
}

#[test]
fn clients_of_http_1_0() -> Result<()> {
    let origin = Origin::answering(|request| match request.line.split(' ').nth(1) {
        Some("/chunked") => {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n".into()
        }
        Some("/early") => [&b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"[..], &ok("hi")].concat(),
        _ => ok(&request.line),
    })?;
    let edge = Edge::to(origin.addr(), "")?;

    let mut client = edge.client()?;
    let response = client.ask("GET / HTTP/1.0\r\n\r\n")?.expect(200)?;
    ensure!(response.text() == "GET / HTTP/1.1" && response.field("connection") == Some("close"), "{response:?}");
    ensure!(client.end()? == Ended::Closed);
    ensure!(origin.last()?.field("host") == Some(HOST), "what the handshake has named: {:?}", origin.last()?);

    let mut client = edge.client()?;
    let stays = |path: &str| format!("GET {path} HTTP/1.0\r\nHost: {HOST}\r\nConnection: Keep-Alive\r\n\r\n");
    for _ in 0..2 {
        let response = client.ask(stays("/"))?.expect(200)?;
        ensure!(response.field("connection") == Some("keep-alive"), "{response:?}");
    }
    ensure!(client.ask(stays("/early"))?.expect(200)?.text() == "hi", "without what it would take for the response");
    let response = client.ask(stays("/chunked"))?.expect(200)?;
    ensure!(response.framing == Framing::UntilClose && response.text() == "hello", "{response:?}");

    let response = edge.ask("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")?;
    ensure!(response.status == 400, "{response:?}");
    let response = edge.ask(format!("POST / HTTP/1.0\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\nhi"))?;
    ensure!(response.status == 200 && origin.last()?.body == b"hi");
    Ok(())
}

#[test]
fn the_other_forms_of_a_target() -> Result<()> {
    let origin = Origin::telling()?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    for (target, seen) in [
        (format!("https://{HOST}/a?b"), "/a?b"),
        ("HTTP://APP.example.com./a".to_owned(), "/a"),
        (format!("https://{HOST}"), "/"),
        (format!("https://{HOST}?q"), "/?q"),
    ] {
        let response = client.ask(request("GET", &target, ""))?;
        ensure!(response.text() == format!("GET {seen} HTTP/1.1"), "{target}: {response:?}");
        ensure!(origin.last()?.field("host") == Some(HOST));
    }
    let response = client.ask(request("OPTIONS", "*", ""))?.expect(200)?;
    ensure!(response.text() == "OPTIONS * HTTP/1.1", "{response:?}");
    let response = client.ask(request("OPTIONS", &format!("https://{HOST}"), ""))?.expect(200)?;
    ensure!(response.text() == "OPTIONS * HTTP/1.1", "RFC 9112 §3.2.4: {response:?}");
    let requests = origin.requests().len();
    for bad in [
        format!("GET https://other.example.com/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET * HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET x HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET ftp://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET https://u@{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET /#x HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: {HOST}\r\n\r\n"),
    ] {
        let mut client = edge.client()?;
        let response = client.ask(&bad)?;
        ensure!(response.status == 400 && response.field("connection") == Some("close"), "{bad:?}: {response:?}");
        ensure!(client.end()? == Ended::Closed);
    }
    for (bad, status) in [
        (format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), 501),
        (format!("GET / HTTP/1.2\r\nHost: {HOST}\r\n\r\n"), 505),
        (format!("GET / HTTP/2.0\r\nHost: {HOST}\r\n\r\n"), 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
    ] {
        ensure!(edge.ask(&bad)?.status == status, "{bad:?}");
    }
    ensure!(origin.requests().len() == requests, "a bad request has come through");
    Ok(())
}
