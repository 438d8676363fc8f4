//! Connections of HTTP/2 to backends, which many requests share: what one of them does or suffers is not the others'.

use std::{
    collections::VecDeque,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use ::http::{Method, Response};
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use h2::{Reason, RecvStream, client, server};
use mc_proxy_tests::{
    backend::Backend,
    http::{
        Ended, HOST, Plan, get as get1,
        h2::{
            Good, H2Origin, Incoming,
            frame::{Frame, PREFACE, data, flag, frame, headers, kind, settings},
            good::{get, read, request, run, soon},
            origin::write,
        },
    },
    wait::{SOON, until},
};
use tokio::time::{Duration, Instant, sleep};

/// A plan for routes to backends of HTTP/2, and where its records are.
fn plan(http: &str) -> Result<(Plan, PathBuf)> {
    let plan = Plan::new()?;
    let path = plan.file("access.log");
    // `[log]` is there already; the key goes on in it.
    Ok((plan.section(&format!("access = \"{}\"", path.display())).http(http), path))
}

/// The next piece of content, of a response that is not at its end.
async fn piece(body: &mut RecvStream) -> Result<Bytes> {
    let data = soon(body.data()).await?.context("an end")??;
    body.flow_control().release_capacity(data.len())?;
    Ok(data)
}

/// A backend whose responses to `/flow` have no end.
async fn flowing(mut incoming: Incoming) -> Result<()> {
    let path = incoming.request.uri().path().to_owned();
    let mut send = incoming.respond.send_response(Response::new(()), false)?;
    match path.as_str() {
        "/flow" => loop {
            // In small frames: there are many of them.
            write(&mut send, Bytes::from_static(&[b'x'; 512])).await?;
        },
        _ => Ok(send.send_data(Bytes::from_static(b"hello"), true)?),
    }
}

/// A response of which half has come is not whole because its stream was reset without an error.
#[test]
fn half_a_response() -> Result<()> {
    let origin = H2Origin::new(async |mut incoming: Incoming| {
        let mut send = incoming.respond.send_response(Response::new(()), false)?;
        send.send_data(Bytes::from_static(b"half"), false)?;
        // The client has it, and says so.
        incoming.request.into_body().data().await.context("no content")??;
        send.send_reset(Reason::NO_ERROR);
        Ok(())
    })?;
    let (plan, records) = plan("")?;
    let edge = plan.route(HOST, &[origin.addr()], "backend_protocol = \"h2\"").start()?;
    let failed = |count: usize| {
        until("records of what failed", SOON, || {
            let text = fs::read_to_string(&records)?;
            Ok(text.matches("\"outcome\":\"backend_failed\"").count() == count)
        })
    };
    run(async {
        let good = Good::new(&edge).await?;
        let (response, mut send) = good.begin(request(Method::POST, "/"), false).await?;
        let mut body = soon(response).await??.into_body();
        ensure!(piece(&mut body).await? == "half");
        send.send_data(Bytes::from_static(b"go"), false)?;
        let error = soon(body.data()).await?.context("a whole response")?.err().context("more content")?;
        ensure!(error.is_reset() && error.reason() != Some(Reason::NO_ERROR), "{error}");
        Ok(())
    })?;
    failed(1)?;
    let mut client = edge.client()?;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"))?;
    client.head_of("POST")?;
    ensure!(client.exactly(9)? == b"4\r\nhalf\r\n");
    client.send("2\r\ngo\r\n")?;
    ensure!(client.end()? == Ended::Reset, "the client takes it for all of the response");
    failed(2)
}

/// A backend of HTTP/2 with few connections serves the clients of all workers, also while there is a stream that does not end.
#[test]
fn the_limit_of_connections() -> Result<()> {
    let origin = H2Origin::new(flowing)?;
    let lines = "backend_protocol = \"h2\"";
    let edge = Plan::new()?.http("max_backend_connections = 1").route(HOST, &[origin.addr()], lines).start()?;
    run(async {
        for has_stream in [false, true] {
            let holder = Good::new(&edge).await?;
            let held = if has_stream { Some(holder.begin(get("/flow"), true).await?) } else { None };
            for number in 0..12 {
                // Each is some worker's.
                let good = Good::new(&edge).await?;
                good.ask(get("/")).await?.expect(200).with_context(|| format!("client {number}, {has_stream}"))?;
            }
            drop(held);
        }
        Ok(())
    })?;
    ensure!(origin.accepts() == 1, "{} connections", origin.accepts());
    Ok(())
}

/// Clients' own connections of HTTP/2 give way when they are unused.
#[test]
fn the_limit_of_clients_own_connections() -> Result<()> {
    let plan = Plan::new()?;
    let config = plan.authority().issue(&[HOST])?.server_config()?;
    let origin = H2Origin::with(Some(config), server::Builder::new(), flowing)?;
    // Without a name of its own the backend is verified for each client's.
    let lines = format!("backend_tls = true\nbackend_ca = \"{}\"", plan.file("ca.crt").display());
    let edge = plan.http("max_backend_connections = 2").default_route(&[origin.addr()], &lines).start()?;
    run(async {
        let mut clients = Vec::new();
        for _ in 0..6 {
            clients.push(Good::new(&edge).await?);
        }
        for turn in 0..3 {
            for (number, client) in clients.iter().enumerate() {
                let reply = client.ask(get("/")).await?;
                reply.expect(200).with_context(|| format!("client {number}, {turn}"))?;
            }
        }
        let mut held = Vec::new();
        for client in &clients[..2] {
            let (response, _send) = client.begin(get("/flow"), true).await?;
            held.push(soon(response).await??.into_body());
        }
        clients[2].ask(get("/")).await?.expect(503)?;
        held.pop();
        soon(async {
            while clients[2].ask(get("/")).await?.status != 200 {}
            anyhow::Ok(())
        })
        .await??;
        Ok(())
    })?;
    ensure!(origin.accepts() > 6, "{} connections", origin.accepts());
    Ok(())
}

/// What a backend of [`a_client_that_gives_up_much`] is to do with requests.
#[derive(Default)]
struct Stages {
    /// From then on they are answered, late.
    gives_up: AtomicBool,
    /// And from then on those that came before.
    answers: AtomicBool,
}

/// Answers requests, late, and whatever has become of them meanwhile: it has not heard of it yet.
fn late(mut stream: TcpStream, stages: &Stages) -> Result<()> {
    let (mut input, mut held, mut late) = (Vec::new(), Vec::new(), VecDeque::new());
    stream.set_read_timeout(Some(Duration::from_millis(5)))?;
    stream.write_all(&settings(&[]))?;
    let mut skip = PREFACE.len();
    loop {
        let mut bytes = [0; 16 << 10];
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => input.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if input.len() < skip {
            continue;
        }
        input.drain(..std::mem::take(&mut skip));
        while let Some((next, length)) = Frame::parse(&input) {
            input.drain(..length);
            match next.kind {
                kind::SETTINGS if !next.has(flag::ACK) => stream.write_all(&frame(kind::SETTINGS, flag::ACK, 0, ""))?,
                kind::HEADERS if stages.gives_up.load(SeqCst) => late.push_back((Instant::now(), next.stream)),
                kind::HEADERS => held.push(next.stream),
                _ => {}
            }
        }
        // The status 200 (RFC 7541 §A).
        let answer = |stream| [headers(stream, false, [0x88]), data(stream, true, "hello")].concat();
        while let Some((_, id)) = late.pop_front_if(|(at, _)| at.elapsed() > Duration::from_millis(100)) {
            stream.write_all(&answer(id))?;
        }
        if stages.answers.load(SeqCst) {
            held.drain(..).try_for_each(|id| stream.write_all(&answer(id)))?;
        }
    }
}

/// One client gives up very many requests, whose answers are on their way; the streams of others go on.
#[test]
fn a_client_that_gives_up_much() -> Result<()> {
    let stages = Arc::<Stages>::default();
    let backend = Backend::start({
        let stages = Arc::clone(&stages);
        move |stream| late(stream, &stages)
    })?;
    let http = "max_resets = 100000\nmax_requests = 0\nmax_control_frames = 100000";
    let edge = Plan::new()?.http(http).route(HOST, &[backend.addr()], "backend_protocol = \"h2\"").start()?;
    run(async {
        // Of every worker: some of them share the connection.
        let mut quiet = Vec::new();
        for _ in 0..8 {
            let client = Good::new(&edge).await?;
            let (response, _send) = client.begin(get("/"), true).await?;
            quiet.push((client, response));
        }
        sleep(Duration::from_millis(100)).await;
        stages.gives_up.store(true, SeqCst);
        let hasty = Good::with(&edge, client::Builder::new().max_local_error_reset_streams(None)).await?;
        for _ in 0..40 {
            let mut given_up = Vec::new();
            for _ in 0..60 {
                given_up.push(hasty.begin(get("/"), true).await?);
            }
            sleep(Duration::from_millis(20)).await;
        }
        sleep(Duration::from_millis(200)).await;
        stages.answers.store(true, SeqCst);
        for (_client, response) in quiet {
            read(response).await?.expect(200)?;
        }
        Ok(())
    })
}

/// A response may wait in its stream: without memory for it the request is refused, and those that are under way are not.
#[test]
fn memory_is_used_up() -> Result<()> {
    let goes_on = Arc::<AtomicBool>::default();
    let origin = H2Origin::new({
        let goes_on = Arc::clone(&goes_on);
        move |mut incoming: Incoming| {
            let goes_on = Arc::clone(&goes_on);
            async move {
                while !goes_on.load(SeqCst) {
                    sleep(Duration::from_millis(10)).await;
                }
                incoming.respond.send_response(Response::new(()), true)?;
                Ok(())
            }
        }
    })?;
    let (plan, records) = plan("")?;
    let plan = plan.section("[proxy]\nmemory_limit = \"1MiB\"");
    let edge = plan.route(HOST, &[origin.addr()], "backend_protocol = \"h2\"").start()?;
    // Of HTTP/1.1: they take little themselves, and come before there is anything to be refused for.
    let mut clients = (0..16).map(|_| edge.client()).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        client.send(get1("/"))?;
    }
    let is_refused = || Ok(fs::read_to_string(&records).unwrap_or_default().contains("\"outcome\":\"overload\""));
    until("a request that is refused", SOON, is_refused)?;
    goes_on.store(true, SeqCst);
    let mut counts = [0; 2];
    for mut client in clients {
        match client.response()?.status {
            200 => counts[0] += 1,
            503 => counts[1] += 1,
            other => bail!("{other}"),
        }
    }
    ensure!(counts[0] >= 5 && counts[1] >= 2, "{counts:?}");
    edge.ask(get1("/"))?.expect(200).map(drop)
}
