//! Requests of HTTP/2 to backends of HTTP/1.1, of HTTP/2 with prior knowledge and of HTTP/2 over TLS: the same things are the same
//! for all three.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use ::http::{HeaderMap, HeaderValue, Method, Request, Response};
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use h2::{Reason, client, server};
use mc_proxy_tests::{
    http::{
        Conn, Edge, HOST, Origin, Plan,
        h2::{
            Good, H2Origin, Incoming,
            good::{content, get, read, request, run, soon},
            origin::{echo, write},
        },
        ok,
    },
    wait::{SOON, until},
};
use rustix::process::Signal;

/// What a stream, or both sides of one, may have on their way, in bytes.
const WINDOWS: usize = 16 << 20;

/// One of the backends.
enum Backend {
    Http1(Origin),
    H2(H2Origin),
}

impl Backend {
    fn accepts(&self) -> u64 {
        match self {
            Self::Http1(origin) => origin.accepts(),
            Self::H2(origin) => origin.accepts() as u64,
        }
    }
}

/// What all backends do, in HTTP/1.1.
fn http1(conn: &mut Conn) -> Result<()> {
    while let Some(request) = conn.head()? {
        let path = request.line.split(' ').nth(1).unwrap_or_default();
        match path {
            "/204" => conn.send("HTTP/1.1 204 No Content\r\nX-Own: 1\r\n\r\n")?,
            "/304" => conn.send("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 5\r\n\r\n")?,
            "/early" => {
                conn.send(
                    "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </y>\r\n\r\n",
                )?;
                conn.send(ok("hello"))?;
            }
            "/cookies" => {
                let cookies = request.fields.all("cookie");
                conn.send(ok(format!("{}: {}", cookies.len(), cookies.join("|"))))?;
            }
            "/big" => {
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                for _ in 0..BIG / 65_536 {
                    conn.send([b"10000\r\n".as_slice(), &[b'x'; 65_536], b"\r\n"].concat())?;
                }
                conn.send("0\r\n\r\n")?;
            }
            "/hold" => return conn.rest().map(drop),
            _ if request.line.starts_with("HEAD") => conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")?,
            "/echo" => {
                let (body, trailers) = conn.body(request.framing)?;
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                for piece in body.chunks(50_000) {
                    conn.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())?;
                }
                let lines = trailers.0.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
                conn.send(format!("0\r\n{}\r\n", lines.collect::<String>()))?;
            }
            _ => {
                conn.body(request.framing)?;
                conn.send(ok("hello"))?;
            }
        }
    }
    Ok(())
}

/// Of the response to `/big`, in bytes.
const BIG: usize = 8 << 20;

/// The same in HTTP/2.
async fn http2(mut incoming: Incoming) -> Result<()> {
    let (method, path) = (incoming.request.method().clone(), incoming.request.uri().path().to_owned());
    let respond = &mut incoming.respond;
    let head = |status: u16| Response::builder().status(status);
    match path.as_str() {
        "/204" => respond.send_response(head(204).header("x-own", "1").body(())?, true).map(drop)?,
        "/304" => {
            let response = head(304).header("etag", "\"x\"").header("content-length", "5").body(())?;
            respond.send_response(response, true)?;
        }
        "/early" => {
            for link in ["</x>", "</y>"] {
                respond.send_informational(head(103).header("link", link).body(())?)?;
            }
            let mut send = respond.send_response(head(200).body(())?, false)?;
            send.send_data(Bytes::from_static(b"hello"), true)?;
        }
        "/cookies" => {
            let cookies =
                incoming.request.headers().get_all("cookie").iter().map(|value| value.to_str().unwrap_or("?"));
            let cookies = cookies.collect::<Vec<_>>();
            let mut send = respond.send_response(head(200).body(())?, false)?;
            send.send_data(format!("{}: {}", cookies.len(), cookies.join("|")).into(), true)?;
        }
        "/big" => {
            let mut send = respond.send_response(head(200).body(())?, false)?;
            for _ in 0..BIG / 65_536 {
                write(&mut send, vec![b'x'; 65_536].into()).await?;
            }
            send.send_data(Bytes::new(), true)?;
        }
        "/hold" => {
            let body = incoming.request.into_body();
            poll_fn(|cx| respond.poll_reset(cx)).await?;
            drop(body);
        }
        _ if method == Method::HEAD => {
            respond.send_response(head(200).header("content-length", "5").body(())?, true)?;
        }
        "/echo" => return echo(incoming).await,
        _ => {
            let seen = format!("{method} {}", incoming.request.uri());
            let has_host = incoming.request.headers().contains_key("host");
            content(incoming.request.into_body()).await?;
            let response = head(200).header("x-seen", seen).header("x-has-host", has_host.to_string()).body(())?;
            let mut send = respond.send_response(response, false)?;
            send.send_data(Bytes::from_static(b"hello"), true)?;
        }
    }
    Ok(())
}

/// The daemon in front of each of the backends, and lines of `[http]`.
fn each(lines: &str, test: impl AsyncFn(&Edge, &Backend) -> Result<()>) -> Result<()> {
    let origin = Origin::new(http1)?;
    let edge = Edge::to(origin.addr(), lines)?;
    run(test(&edge, &Backend::Http1(origin))).context("HTTP/1.1")?;

    let origin = H2Origin::new(http2)?;
    let edge = h2c(&origin, lines)?;
    run(test(&edge, &Backend::H2(origin))).context("HTTP/2 with prior knowledge")?;

    let plan = Plan::new()?;
    let config = plan.authority().issue(&[HOST])?.server_config()?;
    let origin = H2Origin::with(Some(config), server::Builder::new(), http2)?;
    let ca = plan.file("ca.crt");
    let edge = plan
        .http(lines)
        .route(
            HOST,
            &[origin.addr()],
            &format!("backend_tls = true\nbackend_server_name = \"{HOST}\"\nbackend_ca = \"{}\"", ca.display()),
        )
        .start()?;
    run(test(&edge, &Backend::H2(origin))).context("HTTP/2 over TLS")
}

fn h2c(origin: &H2Origin, lines: &str) -> Result<Edge> {
    Plan::new()?.http(lines).route(HOST, &[origin.addr()], "backend_protocol = \"h2\"").start()
}

fn with(mut request: Request<()>, fields: &[(&'static str, &str)]) -> Result<Request<()>> {
    for (name, value) in fields {
        request.headers_mut().append(*name, HeaderValue::from_str(value)?);
    }
    Ok(request)
}

fn bytes(length: usize) -> Bytes {
    (0..length).map(|at| (at * 7 % 251) as u8).collect::<Vec<_>>().into()
}

#[test]
fn requests_and_responses() -> Result<()> {
    each("", async |edge, backend| {
        let good = Good::new(edge).await?;
        let reply = good.ask(get("/a?b=c")).await?.expect(200)?;
        ensure!(reply.body == b"hello" && !reply.field("date").is_empty(), "{reply:?}");
        for name in ["connection", "transfer-encoding", "keep-alive"] {
            ensure!(!reply.headers.contains_key(name), "{reply:?}");
        }
        match backend {
            Backend::Http1(origin) => {
                let request = origin.last()?;
                ensure!(request.line == "GET /a?b=c HTTP/1.1" && request.field("host") == Some(HOST), "{request:?}");
                ensure!(request.field("x-forwarded-proto") == Some("https"), "{request:?}");
            }
            Backend::H2(_) => {
                let seen = reply.field("x-seen");
                ensure!(seen.ends_with(&format!("://{HOST}/a?b=c")) && reply.field("x-has-host") == "false", "{seen}");
            }
        }
        let reply = good.ask(request(Method::HEAD, "/")).await?.expect(200)?;
        ensure!(reply.body.is_empty() && reply.field("content-length") == "5", "{reply:?}");
        let reply = good.ask(get("/204")).await?.expect(204)?;
        ensure!(reply.body.is_empty() && !reply.headers.contains_key("content-length"), "{reply:?}");
        let reply = good.ask(get("/304")).await?.expect(304)?;
        ensure!(reply.body.is_empty() && reply.field("etag") == "\"x\"", "{reply:?}");
        let reply = good.ask(get("/early")).await?.expect(200)?;
        let links = reply.early.iter().map(|(status, headers)| (status.as_u16(), headers["link"].clone()));
        ensure!(links.collect::<Vec<_>>() == [(103, "</x>".parse()?), (103, "</y>".parse()?)], "{reply:?}");
        ensure!(reply.body == b"hello");
        let reply =
            good.ask(with(get("/cookies"), &[("cookie", "a=b"), ("cookie", "c=d"), ("cookie", "e=f")])?).await?;
        ensure!(reply.body == b"1: a=b; c=d; e=f", "{reply:?}");
        Ok(())
    })
}

#[test]
fn content_both_ways() -> Result<()> {
    each("", async |edge, _| {
        let good = Good::new(edge).await?;
        for length in [0, 1, 16_384, 65_536, 1 << 20] {
            let sent = bytes(length);
            let reply = good.send(request(Method::POST, "/echo"), sent.clone(), None).await?.expect(200)?;
            ensure!(reply.body == sent, "{length} bytes have become {}", reply.body.len());
            let head = with(request(Method::POST, "/echo"), &[("content-length", &length.to_string())])?;
            let reply = good.send(head, sent.clone(), None).await?.expect(200)?;
            ensure!(reply.body == sent, "{length} bytes of that length have become {}", reply.body.len());
        }
        let trailers =
            HeaderMap::from_iter([("x-sum".parse()?, "7".parse()?), ("x-forwarded-for".parse()?, "x".parse()?)]);
        let reply = good.send(request(Method::POST, "/echo"), bytes(10_000), Some(trailers)).await?.expect(200)?;
        let trailers = reply.trailers.context("no trailers")?;
        ensure!(trailers.len() == 1 && trailers["x-sum"] == "7" && reply.body == bytes(10_000), "{trailers:?}");
        Ok(())
    })
}

#[test]
fn a_hundred_streams_at_a_time() -> Result<()> {
    each("", async |edge, backend| {
        let good = Good::new(edge).await?;
        let mut all = Vec::new();
        for at in 0..100 {
            let (response, mut send) = good.begin(request(Method::POST, "/echo"), false).await?;
            send.send_data(bytes(at * 997), true)?;
            all.push(tokio::spawn(read(response)));
        }
        for (at, one) in all.into_iter().enumerate() {
            let reply = one.await??.expect(200)?;
            ensure!(reply.body == bytes(at * 997), "{at}");
        }
        if let Backend::H2(_) = backend {
            // One for each worker; others have a share in it.
            ensure!(backend.accepts() <= 4, "{} connections", backend.accepts());
        }
        Ok(())
    })
}

/// Neither the backend's connection, which all share, nor the client's is held up by one that takes nothing.
#[test]
fn a_slow_stream_holds_up_nobody() -> Result<()> {
    each("", async |edge, _| {
        let mut builder = client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 24);
        let good = Good::with(edge, &builder).await?;
        let before = edge.daemon.resident_bytes()?;
        let (response, _send) = good.begin(get("/big"), true).await?;
        let mut slow = soon(response).await??.into_body();
        let first = soon(slow.data()).await?.context("no data")??;
        for at in 0..30 {
            let sent = bytes(20_000);
            let reply = good.send(request(Method::POST, "/echo"), sent.clone(), None).await?.expect(200)?;
            ensure!(reply.body == sent, "{at}");
        }
        let after = edge.daemon.resident_bytes()?;
        ensure!(after < before + WINDOWS as u64, "{before} bytes have become {after}");
        slow.flow_control().release_capacity(first.len())?;
        let (rest, _) = soon(content(slow)).await??;
        ensure!(first.len() + rest.len() == BIG && rest.iter().all(|byte| *byte == b'x'), "{} bytes", rest.len());
        Ok(())
    })
}

/// A backend that takes nothing stops its client, and nobody else.
#[test]
fn a_backend_that_takes_nothing() -> Result<()> {
    let origin = H2Origin::new(async |mut incoming: Incoming| {
        if incoming.request.uri().path() != "/hold" {
            return http2(incoming).await;
        }
        // The window is not given back.
        poll_fn(|cx| incoming.respond.poll_reset(cx)).await?;
        Ok(())
    })?;
    let edge = h2c(&origin, "")?;
    run(async {
        let good = Good::new(&edge).await?;
        let (_response, mut send) = good.begin(request(Method::POST, "/hold"), false).await?;
        let mut sent = 0;
        let begun = Instant::now();
        loop {
            send.reserve_capacity(16_384);
            match tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| send.poll_capacity(cx))).await {
                Ok(Some(Ok(room))) => {
                    sent += room;
                    send.send_data(vec![0; room].into(), false)?;
                }
                Ok(other) => bail!("{other:?}"),
                // The window is shut; before the first one has been used up there has only been a pause.
                Err(_) if sent >= 65_535 => break,
                Err(_) => ensure!(begun.elapsed() < SOON, "no more than {sent} bytes"),
            }
            ensure!(sent < WINDOWS, "{sent} bytes are somewhere");
        }
        for _ in 0..20 {
            good.ask(get("/")).await?.expect(200)?;
        }
        Ok(())
    })
}

#[test]
fn a_reset_of_the_client_ends_the_exchange() -> Result<()> {
    let gone = Arc::new(AtomicUsize::new(0));
    let origin = Origin::new({
        let gone = Arc::clone(&gone);
        move |conn| {
            conn.head()?;
            let _ = conn.rest();
            gone.fetch_add(1, SeqCst);
            Ok(())
        }
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let h2 = H2Origin::new({
        let gone = Arc::clone(&gone);
        move |mut incoming: Incoming| {
            let gone = Arc::clone(&gone);
            async move {
                let reason = poll_fn(|cx| incoming.respond.poll_reset(cx)).await?;
                ensure!(reason == Reason::CANCEL, "{reason:?}");
                gone.fetch_add(1, SeqCst);
                Ok(())
            }
        }
    })?;
    for edge in [edge, h2c(&h2, "")?] {
        let before = gone.load(SeqCst);
        run(async {
            let good = Good::new(&edge).await?;
            let (response, mut send) = good.begin(get("/"), true).await?;
            until("the request", SOON, || Ok(origin.requests().len() + h2.requests() > before))?;
            send.send_reset(Reason::CANCEL);
            ensure!(soon(response).await?.is_err());
            until("the end of the exchange", SOON, || Ok(gone.load(SeqCst) > before))
        })?;
    }
    Ok(())
}

#[test]
fn streams_are_finished_on_sigterm() -> Result<()> {
    each("", async |edge, _| {
        let mut good = Good::new(edge).await?;
        let (response, mut send) = good.begin(request(Method::POST, "/echo"), false).await?;
        send.send_data(bytes(1_000), false)?;
        good.ask(get("/")).await?.expect(200)?;
        edge.daemon.signal(Signal::TERM)?;
        // It has said GOAWAY when no other stream can be opened.
        soon(async {
            while good.begin(get("/"), true).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await?;
        send.send_data(bytes(500_000), true)?;
        let reply = read(response).await?.expect(200)?;
        ensure!(reply.body.len() == 501_000, "{}", reply.body.len());
        soon(&mut good.connection).await???;
        until("the end of the log", SOON, || Ok(!edge.daemon.log().matching(&["stopped"]).is_empty()))
    })
}

#[test]
fn the_last_request_of_a_connection() -> Result<()> {
    each("max_requests = 3", async |edge, _| {
        let mut good = Good::new(edge).await?;
        for _ in 0..3 {
            good.ask(get("/")).await?.expect(200)?;
        }
        soon(&mut good.connection).await???;
        ensure!(good.ask(get("/")).await.is_err());
        Good::new(edge).await?.ask(get("/")).await?.expect(200).map(drop)
    })
}

#[test]
fn whom_a_request_is_for() -> Result<()> {
    each("", async |edge, backend| {
        let good = Good::new(edge).await?;
        let mut other = get("/");
        *other.uri_mut() = "https://other.example.com/".parse()?;
        good.ask(other).await?.expect(421)?;
        let both = with(get("/"), &[("host", "other.example.com")])?;
        let refused = good.ask(both).await;
        let reason =
            refused.err().and_then(|error| error.downcast::<h2::Error>().ok()).and_then(|error| error.reason());
        ensure!(reason == Some(Reason::PROTOCOL_ERROR), "{reason:?}");
        ensure!(backend.accepts() == 0, "it has come through");
        let mut port = get("/");
        *port.uri_mut() = format!("https://{HOST}:8443/").parse()?;
        good.ask(port).await?.expect(200).map(drop)
    })
}

/// RFC 9113 §8.7: what was refused has not been looked at, and may be sent again.
#[test]
fn a_stream_that_a_backend_refuses() -> Result<()> {
    let count = Arc::new(AtomicUsize::new(0));
    let origin = H2Origin::new({
        let count = Arc::clone(&count);
        move |mut incoming: Incoming| {
            let is_first = count.fetch_add(1, SeqCst) == 0;
            async move {
                if is_first {
                    incoming.respond.send_reset(Reason::REFUSED_STREAM);
                    return Ok(());
                }
                http2(incoming).await
            }
        }
    })?;
    let edge = h2c(&origin, "")?;
    run(async {
        let good = Good::new(&edge).await?;
        ensure!(good.ask(get("/")).await?.expect(200)?.body == b"hello");
        ensure!(count.load(SeqCst) == 2);
        Ok(())
    })
}

#[test]
fn a_backend_that_takes_one_stream_at_a_time() -> Result<()> {
    let mut builder = server::Builder::new();
    builder.max_concurrent_streams(1);
    let origin = H2Origin::with(None, builder, http2)?;
    let edge = h2c(&origin, "")?;
    run(async {
        let good = Good::new(&edge).await?;
        let mut all = Vec::new();
        for _ in 0..10 {
            let (response, _) = good.begin(get("/"), true).await?;
            all.push(tokio::spawn(read(response)));
        }
        for one in all {
            one.await??.expect(200)?;
        }
        Ok(())
    })
}

#[test]
fn backends_that_fail() -> Result<()> {
    let origin = H2Origin::new(async |mut incoming: Incoming| {
        match incoming.request.uri().path() {
            "/reset" => incoming.respond.send_reset(Reason::INTERNAL_ERROR),
            "/half" => {
                let mut send = incoming.respond.send_response(Response::new(()), false)?;
                send.send_data(Bytes::from_static(b"half"), false)?;
                tokio::time::sleep(Duration::from_millis(100)).await;
                send.send_reset(Reason::INTERNAL_ERROR);
            }
            "/length" => {
                let response = Response::builder().header("content-length", "10").body(())?;
                let mut send = incoming.respond.send_response(response, false)?;
                send.send_data(Bytes::from_static(b"short"), true)?;
            }
            _ => return http2(incoming).await,
        }
        Ok(())
    })?;
    // The others have more time than that.
    let hasty = h2c(&origin, "response_timeout = \"700ms\"")?;
    let edge = h2c(&origin, "")?;
    run(async {
        let good = Good::new(&edge).await?;
        good.ask(get("/reset")).await?.expect(502)?;
        for path in ["/half", "/length"] {
            let reply = good.ask(get(path)).await;
            ensure!(reply.is_err(), "{path} is taken for whole: {reply:?}");
        }
        good.ask(get("/")).await?.expect(200)?;
        let good = Good::new(&hasty).await?;
        let begun = Instant::now();
        good.ask(get("/hold")).await?.expect(504)?;
        ensure!(begun.elapsed() < Duration::from_secs(5));
        good.ask(get("/")).await?.expect(200).map(drop)
    })?;
    drop(origin);
    run(async {
        let good = Good::new(&edge).await?;
        good.ask(get("/")).await?.expect(502).map(drop)
    })
}

/// RFC 9113 §8.1: a response that is whole is not discarded for NO_ERROR behind it.
#[test]
fn a_backend_that_does_not_need_the_request() -> Result<()> {
    let origin = H2Origin::new(async |mut incoming: Incoming| {
        let mut send = incoming.respond.send_response(Response::builder().status(413).body(())?, false)?;
        send.send_data(vec![b'x'; 30_000].into(), true)?;
        // The request is dropped, of which no more is read.
        Ok(())
    })?;
    let edge = h2c(&origin, "")?;
    run(async {
        let good = Good::new(&edge).await?;
        for at in 0..20 {
            let (response, mut send) = good.begin(request(Method::POST, "/"), false).await?;
            send.send_data(bytes(10_000), false)?;
            let reply = read(response).await.with_context(|| format!("request {at}"))?.expect(413)?;
            ensure!(reply.body.len() == 30_000, "{at}: {} bytes", reply.body.len());
        }
        good.ask(get("/")).await?.expect(413).map(drop)
    })
}

/// A backend that is to speak HTTP/2 and does not.
#[test]
fn a_backend_of_another_protocol() -> Result<()> {
    let origin = Origin::telling()?;
    let edge = Plan::new()?.route(HOST, &[origin.addr()], "backend_protocol = \"h2\"").start()?;
    run(async {
        let good = Good::new(&edge).await?;
        good.ask(get("/")).await?.expect(502)?;
        Ok(())
    })?;
    ensure!(origin.requests().is_empty());
    // By ALPN there is a choice.
    let plan = Plan::new()?;
    let mut config = plan.authority().issue(&[HOST])?.server_config()?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let origin = Origin::tls(config, http1)?;
    let lines = format!(
        "backend_tls = true\nbackend_server_name = \"{HOST}\"\nbackend_ca = \"{}\"",
        plan.file("ca.crt").display()
    );
    let edge = plan.route(HOST, &[origin.addr()], &lines).start()?;
    run(async { Good::new(&edge).await?.ask(get("/")).await?.expect(200).map(drop) })?;
    ensure!(origin.last()?.line == "GET / HTTP/1.1");
    Ok(())
}

/// Clients of both versions are served from the same backend.
#[test]
fn clients_of_http1_to_backends_of_http2() -> Result<()> {
    let origin = H2Origin::new(http2)?;
    let edge = h2c(&origin, "")?;
    for length in [0, 5, 100_000] {
        // The response may begin before the request has ended, and then it is the connection's last.
        let mut client = edge.client()?;
        let head = format!("POST /echo HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n");
        let response = client.ask([head.as_bytes(), &bytes(length)].concat())?.expect(200)?;
        ensure!(response.body == bytes(length), "{length}");
    }
    let mut client = edge.client()?;
    let response = client.ask(format!("GET /204 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?.expect(204)?;
    ensure!(response.field("x-own") == Some("1"), "{response:?}");
    let chunked = format!("POST /echo HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n");
    let response = client.ask(chunked + "3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n")?.expect(200)?;
    ensure!(response.text() == "abc" && response.trailers.get("x-sum") == Some("6"), "{response:?}");
    Ok(())
}
