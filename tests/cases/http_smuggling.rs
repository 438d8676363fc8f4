//! Requests that two readers could take for different ones: each is refused, and of what hides behind it the backend sees
//! nothing.

use anyhow::{Result, ensure};
use mc_proxy_tests::http::{Client, Edge, Ended, HOST, Origin, get, ok};

/// What must never arrive.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nHost: app.example.com\r\n\r\n";

struct Site {
    origin: Origin,
    edge: Edge,
}

impl Site {
    fn new() -> Result<Self> {
        let origin = Origin::answering(|request| ok(&request.line))?;
        let edge = Edge::to(origin.addr(), "")?;
        Ok(Self { origin, edge })
    }

    /// An error unless a request, with another one behind it, is refused for this reason.
    fn refuses(&self, request: &str, reason: &str) -> Result<()> {
        let mut client = self.edge.client()?;
        client.send(format!("{request}{HIDDEN}"))?;
        let response = client.response()?;
        ensure!((400..600).contains(&response.status) && response.status != 502, "{request:?}: {response:?}");
        ensure!(response.field("connection") == Some("close"), "{request:?}: {response:?}");
        Self::ends(&mut client, request)?;
        self.edge.logs(&["a request was malformed", reason])?;
        self.hides(request)
    }

    /// Nothing more, and the end.
    fn ends(client: &mut Client, request: &str) -> Result<()> {
        let ended = client.end()?;
        ensure!(ended == Ended::Closed, "{request:?}: {ended:?}");
        Ok(())
    }

    fn hides(&self, request: &str) -> Result<()> {
        let bytes = self.origin.bytes();
        let text = String::from_utf8_lossy(&bytes);
        ensure!(!text.contains("smuggled"), "{request:?}: the backend has got {text:?}");
        Ok(())
    }
}

/// A POST with these lines, and a body.
fn post(lines: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n\r\n{body}")
}

#[test]
fn lengths_and_codings() -> Result<()> {
    let site = Site::new()?;
    for (lines, reason) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", "http_length_and_coding"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", "http_length_and_coding"),
        ("Transfer-Encoding: identity\r\nContent-Length: 5", "http_transfer_encoding"),
        ("Content-Length: 0\r\nContent-Length: 5", "http_content_length"),
        ("Content-Length: 5\r\nContent-Length: 5", "http_content_length"),
        ("Content-Length: 5, 5", "http_content_length"),
        ("Content-Length: +5", "http_content_length"),
        ("Content-Length: -1", "http_content_length"),
        ("Content-Length: 0x5", "http_content_length"),
        ("Content-Length: 5 5", "http_content_length"),
        ("Content-Length: ", "http_content_length"),
        ("Content-Length: 18446744073709551616", "http_content_length"),
        ("Content-Length: \u{665}", "http_content_length"),
        ("Transfer-Encoding: xchunked", "http_transfer_encoding"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: x", "http_transfer_encoding"),
        ("Transfer-Encoding: x\r\nTransfer-Encoding: chunked", "http_transfer_encoding"),
        ("Transfer-Encoding: chunked, chunked", "http_transfer_encoding"),
        ("Transfer-Encoding: chunked, identity", "http_transfer_encoding"),
        ("Transfer-Encoding: \"chunked\"", "http_transfer_encoding"),
        ("Transfer-Encoding: chunked;x=y", "http_transfer_encoding"),
        ("Transfer-Encoding: ", "http_transfer_encoding"),
        ("Transfer-Encoding: gzip, chunked", "http_transfer_coding"),
    ] {
        site.refuses(&post(lines, "0\r\n\r\n"), reason)?;
    }
    ensure!(site.origin.accepts() == 0, "not even a connection");
    Ok(())
}

#[test]
fn odd_field_lines() -> Result<()> {
    let site = Site::new()?;
    for (lines, reason) in [
        ("Content-Length : 5", "http_field_name"),
        ("Transfer-Encoding : chunked", "http_field_name"),
        ("Transfer-Encoding\t: chunked", "http_field_name"),
        ("Transfer Encoding: chunked", "http_field_name"),
        (": x", "http_field_name"),
        ("no colon", "http_field_name"),
        ("X\u{e9}: y", "http_field_name"),
        ("X\0: y", "http_field_name"),
        ("X: y\r\n Transfer-Encoding: chunked", "http_obs_fold"),
        ("X: y\r\n\tz", "http_obs_fold"),
        ("X: a\0b", "http_field_value"),
        ("X: a\rTransfer-Encoding: chunked", "http_field_value"),
        ("X: a\u{b}b", "http_field_value"),
        ("Transfer-Encoding: \u{b}chunked", "http_field_value"),
        ("X: y\nTransfer-Encoding: chunked", "http_bare_lf"),
        ("X: y\n\nGET /smuggled HTTP/1.1", "http_bare_lf"),
    ] {
        site.refuses(&post(lines, "0\r\n\r\n"), reason)?;
    }
    for (request, reason) in [
        (format!("GET / HTTP/1.1\r\n Host: {HOST}\r\n\r\n"), "http_obs_fold"),
        (format!("GET / HTTP/1.1\nHost: {HOST}\n\n"), "http_bare_lf"),
        (format!("GET  / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), "http_request_line"),
        (format!("GET / x HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), "http_request_line"),
        (format!("GET\t/\tHTTP/1.1\r\nHost: {HOST}\r\n\r\n"), "http_request_line"),
        (format!("GET / HTTP/1.1 \r\nHost: {HOST}\r\n\r\n"), "http_request_line"),
        (format!("GET / http/1.1\r\nHost: {HOST}\r\n\r\n"), "http_request_line"),
        (format!("GET /\r\nHost: {HOST}\r\n\r\n"), "http_request_line"),
        (format!("G(T / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), "http_method"),
        (format!("GET /\u{e9} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), "http_target"),
        (format!("\r\n\r\nGET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), "http_request_line"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), "http_host"),
        (format!("GET / HTTP/1.1\r\nHost: {HOST},x\r\n\r\n"), "http_host"),
    ] {
        site.refuses(&request, reason)?;
    }
    ensure!(site.origin.accepts() == 0);
    Ok(())
}

/// The beginning of a request may have gone to the backend then; its end, and what is behind it, may not.
#[test]
fn odd_chunks() -> Result<()> {
    let site = Site::new()?;
    for body in [
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-1\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
        "g\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff1\r\n",
        "5\r\nhello\r\n0\r\nX: y\n\r\n",
        "5\r\nhello\r\n0\r\nX : y\r\n\r\n",
        "5\r\nhello\r\n0\r\n x\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
    ] {
        let request = post("Transfer-Encoding: chunked", body);
        let mut client = site.edge.client()?;
        client.send(format!("{request}{HIDDEN}"))?;
        let response = client.response()?;
        ensure!(response.status == 400 && response.field("connection") == Some("close"), "{body:?}: {response:?}");
        Site::ends(&mut client, body)?;
        site.hides(body)?;
        ensure!(site.origin.requests().is_empty(), "{body:?} has arrived whole");
    }
    Ok(())
}

#[test]
fn a_flood_of_chunk_extensions() -> Result<()> {
    let site = Site::new()?;
    let long = format!("1;{}\r\nx\r\n", "e".repeat(300));
    let many = format!("1;{}\r\nx\r\n", "e".repeat(100)).repeat(50);
    let endless = format!("1;{}", "e".repeat(10_000));
    for body in [long, many, endless] {
        let mut client = site.edge.client()?;
        client.send(post("Transfer-Encoding: chunked", &body))?;
        let response = client.response()?;
        ensure!(response.status == 400 && response.field("connection") == Some("close"), "{response:?}");
        Site::ends(&mut client, &body[..100])?;
    }
    ensure!(site.origin.requests().is_empty());
    site.edge.serves()
}

/// What is no request for one is none for the other either: the connection to the backend is not used again.
#[test]
fn what_was_begun_is_not_gone_on_with() -> Result<()> {
    let site = Site::new()?;
    for _ in 0..5 {
        let mut client = site.edge.client()?;
        client.send(post("Content-Length: 100", "not a hundred"))?;
        drop(client);
        let response = site.edge.ask(get("/next"))?.expect(200)?;
        ensure!(response.text() == "GET /next HTTP/1.1", "{response:?}");
    }
    // A body that looks like a request is a body.
    let mut client = site.edge.client()?;
    let body = get("/inner");
    client.ask(post(&format!("Content-Length: {}", body.len()), &body))?.expect(200)?;
    ensure!(site.origin.last()?.body == body.as_bytes());
    client.ask(get("/outer"))?.expect(200)?;
    ensure!(site.origin.requests().iter().all(|request| !request.line.contains("inner")));
    Ok(())
}

/// The other way round: responses that could be read in two ways.
#[test]
fn responses_that_are_ambiguous() -> Result<()> {
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "hello\r\n\r\n",
        "",
    ] {
        let origin = Origin::new(move |conn| {
            conn.request()?;
            conn.send(response)
        })?;
        let edge = Edge::to(origin.addr(), "")?;
        let mut client = edge.client()?;
        let got = client.ask(get("/"))?;
        ensure!(got.status == 502, "{response:?}: {got:?}");
    }
    // A head without end is given up.
    let origin = Origin::new(|conn| {
        conn.request()?;
        conn.send("HTTP/1.1 200 OK\r\n")?;
        loop {
            conn.send(format!("X: {}\r\n", "x".repeat(1_000)))?;
        }
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    ensure!(edge.ask(get("/"))?.status == 502);
    // What a backend says unasked is not the response to the next request.
    let origin = Origin::new(|conn| {
        while let Some(request) = conn.request()? {
            conn.send([ok(&request.line), ok("unasked")].concat())?;
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    for path in ["/1", "/2", "/3"] {
        ensure!(client.ask(get(path))?.expect(200)?.text() == format!("GET {path} HTTP/1.1"));
    }
    Ok(())
}
