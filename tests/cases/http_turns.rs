//! Time counts for whoever could do something and does not, and nobody loses what was said before somebody broke off.

use std::{
    io::Read as _,
    time::{Duration, Instant},
};

use ::http::Method;
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::client::Builder;
use mc_proxy_tests::{
    http::{
        Conn, Edge, Ended, Framing, HOST, Origin, Plan, get,
        h2::{
            Good, H2Origin,
            good::{content, read, request, run, soon},
            origin::write,
        },
        ok,
    },
    wait::{SOON, pass},
};

/// Longer than the limits that do not apply.
const PAUSE: Duration = Duration::from_secs(1);

/// They are to apply to nobody here.
const SHORT: &str = "write_timeout = \"400ms\"\nbody_timeout = \"400ms\"";

fn post(more: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n")
}

/// Parts that are read in one piece, more than are moved in one turn.
fn parts() -> String {
    "1\r\nx\r\n".repeat(100)
}

fn pausing(conn: &mut Conn) -> Result<()> {
    while conn.request()?.is_some() {
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for _ in 0..2 {
            pass(PAUSE);
            conn.send(parts())?;
        }
        pass(PAUSE);
        conn.send("0\r\n\r\n")?;
    }
    Ok(())
}

#[test]
fn a_backend_that_pauses() -> Result<()> {
    let origin = Origin::new(pausing)?;
    let edge = Edge::to(origin.addr(), SHORT)?;
    let mut client = edge.client()?;
    ensure!(client.ask(get("/"))?.expect(200)?.body == [b'x'; 200]);
    run(async {
        let good = Good::new(&edge).await?;
        let reply = good.ask(request(Method::GET, "/")).await?.expect(200)?;
        ensure!(reply.body == [b'x'; 200]);
        Ok(())
    })
}

#[test]
fn a_backend_of_http2_that_pauses() -> Result<()> {
    let origin = H2Origin::new(|mut incoming| async move {
        let mut send = incoming.respond.send_response(::http::Response::new(()), false)?;
        for _ in 0..2 {
            tokio::time::sleep(PAUSE).await;
            for _ in 0..100 {
                write(&mut send, Bytes::from_static(b"x")).await?;
            }
        }
        tokio::time::sleep(PAUSE).await;
        Ok(send.send_data(Bytes::new(), true)?)
    })?;
    let edge = Plan::new()?.http(SHORT).route(HOST, &[origin.addr()], "backend_protocol = \"h2\"").start()?;
    ensure!(edge.ask(get("/"))?.expect(200)?.body == [b'x'; 200]);
    run(async {
        let good = Good::new(&edge).await?;
        ensure!(good.ask(request(Method::GET, "/")).await?.expect(200)?.body == [b'x'; 200]);
        Ok(())
    })
}

/// A client may wait for 100 as long as its backend needs for it, whatever is said before.
#[test]
fn a_backend_that_lets_the_content_wait() -> Result<()> {
    let origin = Origin::new(|conn| {
        while let Some(request) = conn.head()? {
            if request.line.contains("/hints") {
                conn.send("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")?;
            }
            pass(PAUSE);
            conn.send("HTTP/1.1 100 Continue\r\n\r\n")?;
            let (body, _) = conn.body(request.framing)?;
            conn.send(ok(body))?;
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), SHORT)?;
    for path in ["/", "/hints"] {
        let mut client = edge.client()?;
        client
            .send(post("Content-Length: 5\r\nExpect: 100-continue\r\n").replace("POST /", &format!("POST {path}")))?;
        if path == "/hints" {
            client.head_of("POST")?.expect(103)?;
        }
        client.head_of("POST")?.expect(100)?;
        client.send("hello")?;
        ensure!(client.response()?.expect(200)?.text() == "hello");
        run(async {
            let good = Good::new(&edge).await?;
            let mut head = request(Method::POST, path);
            head.headers_mut().insert("expect", "100-continue".parse()?);
            let (mut response, mut send) = good.begin(head, false).await?;
            loop {
                let early = std::future::poll_fn(|cx| response.poll_informational(cx));
                let early = soon(early).await?.context("no 100")??;
                if early.status() == 100 {
                    break;
                }
            }
            send.send_data(Bytes::from_static(b"hello"), true)?;
            ensure!(read(response).await?.expect(200)?.body == b"hello");
            Ok(())
        })?;
    }
    Ok(())
}

/// While the backend does not want it, the client cannot send.
#[test]
fn a_client_is_as_fast_as_it_may_be() -> Result<()> {
    let origin = Origin::new(|conn| {
        while let Some(request) = conn.head()? {
            pass(2 * PAUSE);
            conn.send("HTTP/1.1 100 Continue\r\n\r\n")?;
            let (body, _) = conn.body(request.framing)?;
            conn.send(ok(body))?;
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "body_timeout = \"1s\"\nmin_body_rate = 100")?;
    let mut client = edge.client()?;
    client.send(post("Content-Length: 10\r\nExpect: 100-continue\r\n"))?;
    client.head_of("POST")?.expect(100)?;
    client.send("hello")?;
    pass(Duration::from_millis(100));
    client.send("again")?;
    ensure!(client.response()?.expect(200)?.text() == "helloagain");
    Ok(())
}

/// The response is whole, and the backend goes on reading: what it gets is whole, too.
#[test]
fn a_response_before_the_end_of_its_request() -> Result<()> {
    const LENGTH: usize = 8 << 20;
    let (tell, told) = std::sync::mpsc::channel();
    let origin = Origin::new(move |conn| {
        while let Some(request) = conn.head()? {
            conn.send(ok("early"))?;
            // Neither the socket buffers nor the daemon's hold so much.
            let mut count = 0;
            let mut piece = vec![0; 64 << 10];
            while count < LENGTH {
                let read = conn.read(&mut piece)?;
                ensure!(read > 0, "the end after {count} bytes");
                count += read;
            }
            ensure!(request.framing == Framing::Length(LENGTH) && count == LENGTH);
            tell.send(count)?;
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    client.send(post(&format!("Content-Length: {LENGTH}\r\n")))?;
    ensure!(client.response()?.expect(200)?.text() == "early");
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..LENGTH / piece.len() {
        pass(Duration::from_millis(50));
        client.send(&piece)?;
    }
    ensure!(told.recv_timeout(SOON)? == LENGTH);
    ensure!(client.end()? == Ended::Closed);
    run(async {
        let good = Good::new(&edge).await?;
        let mut head = request(Method::POST, "/");
        head.headers_mut().insert("content-length", LENGTH.to_string().parse()?);
        let (response, mut send) = good.begin(head, false).await?;
        ensure!(read(response).await?.expect(200)?.body == b"early");
        soon(write(&mut send, vec![b'x'; LENGTH].into())).await??;
        send.send_data(Bytes::new(), true)?;
        // Of the connection another thread takes care.
        ensure!(told.recv_timeout(SOON)? == LENGTH);
        Ok(())
    })
}

/// What is wrong with the rest of a request does not take away the response.
#[test]
fn a_response_before_the_mistake_of_its_request() -> Result<()> {
    let origin = Origin::new(|conn| {
        while conn.head()?.is_some() {
            conn.send(ok("early"))?;
            conn.rest()?;
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "max_body_bytes = 1000")?;
    for rest in ["zz\r\n".to_owned(), format!("3e9\r\n{}\r\n", "x".repeat(1001))] {
        let mut client = edge.client()?;
        client.send(post("Transfer-Encoding: chunked\r\n") + "1\r\nx\r\n")?;
        let head = client.head_of("POST")?.expect(200)?;
        client.send(&rest)?;
        ensure!(head.framing == Framing::Length(5) && client.exactly(5)? == b"early");
        ensure!(client.end()? == Ended::Closed, "{}", &rest[..4]);
    }
    Ok(())
}

/// It has answered and reads no more: it is not waited for without an end, and the client has its response.
#[test]
fn a_backend_that_leaves_its_request_alone() -> Result<()> {
    let origin = Origin::new(|conn| {
        conn.head()?;
        conn.send(ok("early"))?;
        pass(8 * PAUSE);
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    let begun = Instant::now();
    client.send(post("Content-Length: 1000000000\r\n"))?;
    ensure!(client.response()?.expect(200)?.text() == "early");
    let piece = vec![b'x'; 1 << 20];
    while client.try_send(&piece).is_ok() {
        ensure!(begun.elapsed() < 30 * PAUSE, "it goes on");
    }
    ensure!(begun.elapsed() >= 4 * PAUSE, "{:?}", begun.elapsed());
    Ok(())
}

/// What came before a connection broke off is still the client's.
#[test]
fn the_last_words_of_a_backend() -> Result<()> {
    let origin = Origin::new(|conn| {
        let Some(request) = conn.request()? else { return Ok(()) };
        if request.field("upgrade").is_some() {
            conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: own\r\n\r\nlast words")?;
        } else {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nlast words")?;
        }
        // Until it has left; then RST.
        pass(Duration::from_millis(100));
        conn.reset()
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    for more in ["", "Connection: upgrade\r\nUpgrade: own\r\n"] {
        let mut client = edge.client()?;
        client.send(get("/").replace("\r\n\r\n", &format!("\r\n{more}\r\n")))?;
        client.head_of("GET")?;
        ensure!(client.exactly(10)? == b"last words", "{more:?}");
        ensure!(client.end()? == Ended::Reset, "{more:?}");
    }
    Ok(())
}

/// To a head that does not come there is an answer, and it is not one to the request before.
#[test]
fn a_head_that_stops_behind_a_head_request() -> Result<()> {
    let origin = Origin::answering(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_vec())?;
    let edge = Edge::to(origin.addr(), "header_timeout = \"700ms\"")?;
    let mut client = edge.client()?;
    client.ask(get("/").replace("GET", "HEAD"))?.expect(200)?;
    client.send("GET / HT")?;
    let response = client.response()?.expect(408)?;
    ensure!(!response.body.is_empty() && response.framing == Framing::Length(response.body.len()), "{response:?}");
    ensure!(client.end()? == Ended::Closed);
    Ok(())
}

/// Streams that a client does not take: of what comes in small pieces nothing costs more than it is.
#[test]
fn small_pieces_that_nobody_takes() -> Result<()> {
    const STREAMS: usize = 100;
    const PIECES: usize = 4_000;
    let origin = H2Origin::new(|mut incoming| async move {
        let mut send = incoming.respond.send_response(::http::Response::new(()), false)?;
        for number in 0..PIECES {
            write(&mut send, Bytes::from(format!("{number:013}"))).await?;
            if number % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(send.send_data(Bytes::new(), true)?)
    })?;
    let edge = Plan::new()?.http("").route(HOST, &[origin.addr()], "backend_protocol = \"h2\"").start()?;
    run(async {
        let good = Good::with(
            &edge,
            Builder::new()
                .initial_window_size(1_000)
                .initial_connection_window_size(1 << 20)
                .data_frame_budget(usize::MAX),
        )
        .await?;
        let before = edge.daemon.resident_bytes()?;
        let mut bodies = Vec::new();
        for _ in 0..STREAMS {
            let (response, _) = good.begin(request(Method::GET, "/"), true).await?;
            bodies.push(soon(response).await??.into_body());
        }
        tokio::time::sleep(PAUSE).await;
        let growth = edge.daemon.resident_bytes()?.saturating_sub(before);
        println!("{} KiB for {STREAMS} streams", growth >> 10);
        // The windows are 6.4 MB; each piece with 250 bytes about it would be 100.
        ensure!(growth < 32 << 20, "{} MiB more", growth >> 20);
        for body in bodies {
            let (bytes, _) = soon(content(body)).await??;
            let whole = (0..PIECES).map(|number| format!("{number:013}")).collect::<String>();
            ensure!(bytes == whole.as_bytes(), "{} bytes", bytes.len());
        }
        Ok(())
    })
}

/// Many small messages to a backend that does not take them yet are no attack.
#[test]
fn small_messages_that_have_to_wait() -> Result<()> {
    const STREAMS: usize = 12;
    const MESSAGES: usize = 20_000;
    let origin = Origin::new(|conn| {
        while let Some(request) = conn.head()? {
            pass(2 * PAUSE);
            let (body, _) = conn.body(request.framing)?;
            conn.send(ok(body.len().to_string()))?;
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "max_concurrent_streams = 20")?;
    run(async {
        let good = Good::new(&edge).await?;
        let mut calls = Vec::new();
        for _ in 0..STREAMS {
            let (response, mut send) = good.begin(request(Method::POST, "/"), false).await?;
            calls.push(tokio::spawn(async move {
                for _ in 0..MESSAGES {
                    write(&mut send, Bytes::from_static(&[b'x'; 20])).await?;
                }
                send.send_data(Bytes::new(), true)?;
                read(response).await
            }));
        }
        for call in calls {
            let reply = call.await??.expect(200)?;
            ensure!(reply.body == (MESSAGES * 20).to_string().as_bytes(), "{reply:?}");
        }
        Ok(())
    })
}
