//! Connections of HTTP/2 to backends, which many requests share: what one of them does or suffers is not the others'.

use std::{
    fs,
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
    http::{
        Ended, HOST, Plan, get as get1,
        h2::{
            Good, H2Origin, Incoming,
            good::{get, request, run, soon},
            origin::write,
        },
    },
    wait::{SOON, until},
};
use tokio::time::{Duration, sleep};

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

/// A backend whose responses to `/flow` and `/drip` have no end: one has as much to say as is taken, the other little.
async fn flowing(mut incoming: Incoming) -> Result<()> {
    let path = incoming.request.uri().path().to_owned();
    let mut send = incoming.respond.send_response(Response::new(()), false)?;
    match path.as_str() {
        "/flow" => loop {
            // In small frames: there are many of them.
            write(&mut send, Bytes::from_static(&[b'x'; 512])).await?;
        },
        "/drip" => loop {
            send.send_data(Bytes::from_static(b"drop"), false)?;
            sleep(Duration::from_millis(20)).await;
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

/// One client gives up very many responses, of which more is on its way each time; the stream of another one goes on.
#[test]
fn a_client_that_gives_up_much() -> Result<()> {
    const BATCH: usize = 80;
    let mut builder = server::Builder::new();
    builder.max_concurrent_reset_streams(100_000).max_pending_accept_reset_streams(100_000);
    let origin = H2Origin::with(None, builder, flowing)?;
    let http = "max_resets = 100000\nmax_requests = 0\nmax_control_frames = 100000";
    let edge = Plan::new()?.http(http).route(HOST, &[origin.addr()], "backend_protocol = \"h2\"").start()?;
    run(async {
        let quiet = Good::new(&edge).await?;
        let (response, _send) = quiet.begin(get("/drip"), true).await?;
        let mut dripping = soon(response).await??.into_body();
        piece(&mut dripping).await?;
        // Clients of every worker: some of them share the connection.
        let mut clients = Vec::new();
        for _ in 0..6 {
            let mut builder = client::Builder::new();
            // None of their streams holds up the others, and what comes late for one ends nothing.
            builder.initial_connection_window_size(16 << 20).max_local_error_reset_streams(None);
            clients.push(Good::with(&edge, &builder).await?);
        }
        for _ in 0..24 {
            for client in &clients {
                let mut given_up = Vec::new();
                for _ in 0..BATCH {
                    given_up.push(client.begin(get("/flow"), true).await?);
                }
                for (response, _send) in given_up {
                    piece(&mut soon(response).await??.into_body()).await?;
                }
            }
            piece(&mut dripping).await.context("the stream of a client that gives up nothing")?;
        }
        // What was on its way then is known to have been heard of.
        for _ in 0..10 {
            piece(&mut dripping).await?;
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
