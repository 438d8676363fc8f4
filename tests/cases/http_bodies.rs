//! Content and trailers both ways, and what is said before the response.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    http::{Edge, Ended, Fields, Framing, HOST, Origin, Plan, get, ok},
    wait::pass,
};

const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

/// The head of a POST.
fn post(path: &str, more: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n")
}

fn fields(given: &[(&str, &str)]) -> Fields {
    Fields(given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

#[test]
fn bodies_arrive_as_they_were() -> Result<()> {
    let origin = Origin::answering(|request| ok(&request.body))?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    for length in [0, 1, 4_095, 4_096, 65_535, 65_537, 300_000] {
        let body = (0..length).map(|at| (at * 7 % 251) as u8).collect::<Vec<_>>();
        let head = post("/", &format!("Content-Length: {length}\r\n"));
        let response = client.ask([head.as_bytes(), &body].concat())?.expect(200)?;
        ensure!(response.body == body, "{length}");
        ensure!(origin.last()?.framing == Framing::Length(length));

        let mut wire = post("/", "Transfer-Encoding: chunked\r\n").into_bytes();
        for chunk in body.chunks(10_007) {
            wire.extend(format!("{:X}\r\n", chunk.len()).bytes());
            wire.extend(chunk);
            wire.extend(b"\r\n");
        }
        wire.extend(b"0\r\n\r\n");
        let response = client.ask(&wire)?.expect(200)?;
        ensure!(response.body == body && origin.last()?.framing == Framing::Chunked, "{length} in chunks");
    }
    let response = client.ask(post("/", ""))?.expect(200)?;
    ensure!(response.body.is_empty() && origin.last()?.framing == Framing::None, "no length is no length");
    // A chunk's extension is for the next hop, and its zeros mean nothing.
    let chunks = "0003;a=\"b\"\r\nabc\r\n001\r\nd\r\n000\r\n\r\n";
    let response = client.ask(post("/", "Transfer-Encoding: chunked\r\n") + chunks)?.expect(200)?;
    ensure!(response.text() == "abcd");
    ensure!(origin.accepts() == 1);
    Ok(())
}

#[test]
fn trailers_both_ways() -> Result<()> {
    let origin = Origin::new(|conn| {
        while conn.request()?.is_some() {
            conn.send(
                "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\
                 Grpc-Status: 0\r\nSet-Cookie: a=b\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n",
            )?;
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    let head = post("/", "TE: gzip, trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n");
    let body = "3\r\nabc\r\n0\r\nX-Sum: 6\r\nX-Forwarded-For: 1.2.3.4\r\nX_Real_IP: 1.2.3.4\r\nHost: x\r\n\
                Content-Length: 7\r\nTransfer-Encoding: x\r\nAuthorization: x\r\n\r\n";
    let response = client.ask(head + body)?.expect(200)?;
    ensure!(response.trailers == fields(&[("x-sum", "1"), ("grpc-status", "0")]), "{response:?}");
    ensure!(response.field("trailer") == Some("X-Sum") && response.text() == "hi");
    let request = origin.last()?;
    ensure!(request.trailers == fields(&[("x-sum", "6")]), "{request:?}");
    ensure!(request.field("te") == Some("trailers") && request.field("connection") == Some("te"), "{request:?}");
    ensure!(request.field("trailer") == Some("X-Sum") && request.body == b"abc");

    let response = edge.ask(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n"))?;
    ensure!(response.text() == "hi" && response.trailers.0.is_empty(), "{response:?}");
    // Of a client that has not asked for them they are forwarded all the same, as they came.
    let response = client.ask(get("/"))?.expect(200)?;
    ensure!(response.trailers.get("x-sum") == Some("1") && origin.last()?.field("te").is_none());
    Ok(())
}

#[test]
fn informational_responses() -> Result<()> {
    let origin = Origin::new(|conn| {
        while let Some(request) = conn.request()? {
            let hints = if request.line.contains("/many") { 40 } else { 2 };
            for number in 0..hints {
                let fields = format!("Link: </{number}>; rel=preload\r\nKeep-Alive: x\r\nX-Own: {number}");
                conn.send(format!("HTTP/1.1 103 Early Hints\r\n{fields}\r\n\r\n"))?;
            }
            conn.send(ok("done"))?;
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    for _ in 0..2 {
        client.send(get("/"))?;
        for number in 0..2 {
            let hint = client.response()?.expect(103)?;
            ensure!(hint.field("link") == Some(&format!("</{number}>; rel=preload")), "{hint:?}");
            ensure!(hint.field("keep-alive").is_none() && hint.field("x-own") == Some(&number.to_string()));
        }
        ensure!(client.response()?.expect(200)?.text() == "done");
    }
    client.send(get("/many"))?;
    let last = loop {
        let response = client.response()?;
        if response.status != 103 {
            break response;
        }
    };
    ensure!(last.status == 502, "no end of hints: {last:?}");
    edge.serves().err().context("the hints of another connection were not seen")?;
    Ok(())
}

#[test]
fn hints_come_before_the_response() -> Result<()> {
    let (told, waits) = std::sync::mpsc::channel::<()>();
    let waits = std::sync::Mutex::new(waits);
    let origin = Origin::new(move |conn| {
        conn.request()?;
        conn.send("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")?;
        waits.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.recv()?;
        conn.send(ok("done"))
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    client.send(get("/"))?;
    client.response()?.expect(103)?;
    told.send(())?;
    client.response()?.expect(200)?;
    Ok(())
}

#[test]
fn the_backend_says_when_to_go_on() -> Result<()> {
    let origin = Origin::new(|conn| {
        while let Some(request) = conn.head()? {
            pass(Duration::from_millis(50));
            conn.send(CONTINUE)?;
            let (body, _) = conn.body(request.framing)?;
            conn.send(ok(body))?;
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    for (framing, body) in [("Content-Length: 5", "hello"), ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n")] {
        client.send(post("/", &format!("{framing}\r\nExpect: 100-Continue\r\n")))?;
        client.response()?.expect(100)?;
        ensure!(origin.last()?.field("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")));
        client.send(body)?;
        ensure!(client.response()?.expect(200)?.text() == "hello");
    }
    ensure!(origin.accepts() == 1);
    // Nobody waits where there is nothing to wait for.
    client.send(post("/", "Content-Length: 0\r\nExpect: 100-continue\r\n"))?;
    client.response()?.expect(100)?;
    client.response()?.expect(200)?;
    ensure!(origin.last()?.field("expect").is_none(), "{:?}", origin.last()?);
    Ok(())
}

#[test]
fn another_expectation() -> Result<()> {
    let origin = Origin::telling()?;
    let edge = Edge::to(origin.addr(), "")?;
    let response = edge.ask(post("/", "Content-Length: 1\r\nExpect: a-miracle\r\n"))?;
    ensure!(response.status == 417 && origin.accepts() == 0, "{response:?}");
    Ok(())
}

/// A client that does not wait for it gets through as well.
#[test]
fn who_does_not_wait_for_100() -> Result<()> {
    let origin = Origin::answering(|request| ok(&request.body))?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    for _ in 0..2 {
        let response = client.ask(post("/", "Content-Length: 5\r\nExpect: 100-continue\r\n") + "hello")?;
        ensure!(response.expect(200)?.text() == "hello");
    }
    Ok(())
}

/// The client is told that the connection ends, as the content that it keeps back would be taken for a request.
#[test]
fn a_response_instead_of_100() -> Result<()> {
    let origin = Origin::new(|conn| {
        conn.head()?;
        conn.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")?;
        conn.rest().map(drop)
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    let response = client.ask(post("/", "Content-Length: 5\r\nExpect: 100-continue\r\n"))?.expect(401)?;
    ensure!(response.text() == "no" && response.field("connection") == Some("close"), "{response:?}");
    ensure!(client.end()? == Ended::Closed);
    Ok(())
}

/// It is the backend that is late, and not the client, which waits to be told.
#[test]
fn a_backend_that_never_says_100() -> Result<()> {
    let origin = Origin::new(|conn| {
        conn.head()?;
        conn.rest().map(drop)
    })?;
    let edge = Edge::to(origin.addr(), "body_timeout = \"400ms\"\nresponse_timeout = \"800ms\"")?;
    let response = edge.ask(post("/", "Content-Length: 5\r\nExpect: 100-continue\r\n"))?;
    ensure!(response.status == 504, "{response:?}");
    Ok(())
}

#[test]
fn a_response_while_the_body_is_still_coming() -> Result<()> {
    let origin = Origin::new(|conn| {
        let Some(request) = conn.head()? else { return Ok(()) };
        conn.exactly(1_000)?;
        let Framing::Length(length) = request.framing else { anyhow::bail!("{request:?}") };
        match request.line.split(' ').nth(1) {
            // It says what it has to say, and reads on.
            Some("/reads-on") => {
                conn.send(ok("early"))?;
                conn.exactly(length - 1_000).map(drop)
            }
            // It answers, and the rest may go wherever it likes.
            _ => conn.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nearly"),
        }
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    for (path, status) in [("/reads-on", 200), ("/closes", 413)] {
        let mut client = edge.client()?;
        client.send(post(path, "Content-Length: 100000\r\n"))?;
        client.send(vec![b'x'; 1_000])?;
        let response = client.response()?.expect(status)?;
        ensure!(response.text() == "early" && response.field("connection") == Some("close"), "{response:?}");
        // What it still sends does not make a reset overtake the response.
        client.send(vec![b'x'; 9_000])?;
        ensure!(client.end()? == Ended::Closed, "{path}");
    }
    Ok(())
}

/// Both directions of one exchange go on at the same time.
#[test]
fn content_answers_content() -> Result<()> {
    let origin = Origin::new(|conn| {
        conn.head()?;
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        loop {
            let chunk = conn.exactly(8)?;
            if chunk.starts_with(b"0\r\n\r\n") {
                break;
            }
            conn.send(&chunk)?;
            if chunk == b"3\r\nend\r\n" {
                conn.exactly(5)?;
                break;
            }
        }
        conn.send("0\r\n\r\n")
    })?;
    let edge = Plan::to(origin.addr())?.start()?;
    let mut client = edge.client()?;
    client.send(post("/", "Transfer-Encoding: chunked\r\n"))?;
    client.head_of("POST")?;
    for word in ["one", "two", "six", "end"] {
        let chunk = format!("3\r\n{word}\r\n");
        client.send(&chunk)?;
        ensure!(client.exactly(8)? == chunk.as_bytes(), "{word}");
    }
    client.send("0\r\n\r\n")?;
    ensure!(client.exactly(5)? == b"0\r\n\r\n");
    Ok(())
}
