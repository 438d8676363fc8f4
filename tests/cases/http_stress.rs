//! Many clients and a backend that behave in every way that is allowed, and some that are not: each gets the response to its
//! own request, or none.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use mc_proxy_tests::{
    http::{Client, Edge, Framing, HOST, Origin, Plan, Request},
    traffic::{Pattern, Random},
    wait::{SOON, until},
};

const CLIENTS: u64 = 6;
const REQUESTS: u64 = 150;

/// How a response ends, and what becomes of its connection.
const WAYS: [&str; 6] = ["length", "chunked", "close", "vanish", "until-close", "break-off"];

/// The content of a response, which only that request has.
fn content(id: u64) -> Vec<u8> {
    let mut bytes = vec![0; (Random::of(id).below(40_000)) as usize];
    Pattern::of(id).fill(0, &mut bytes);
    bytes
}

/// Whether the connection goes on.
fn answer(request: &Request) -> Result<(Vec<u8>, bool)> {
    let id = request.field("x-id").context("no id")?.parse::<u64>()?;
    if request.framing != Framing::None {
        ensure!(request.body == content(id), "the body of {id} is another one");
    }
    let way = request.field("x-way").context("no way")?;
    let (body, is_head) = (content(id), request.line.starts_with("HEAD "));
    let mut response = format!("HTTP/1.1 200 OK\r\nX-Id: {id}\r\n").into_bytes();
    match way {
        "chunked" => {
            response.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            if !is_head {
                for chunk in body.chunks(7_777) {
                    response.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    response.extend([chunk, b"\r\n"].concat());
                }
                response.extend(b"0\r\nX-End: 1\r\n\r\n");
            }
        }
        "until-close" => {
            response.extend(b"\r\n");
            response.extend(if is_head { &[] } else { body.as_slice() });
        }
        _ => {
            let close = if way == "close" { "Connection: close\r\n" } else { "" };
            response.extend(format!("{close}Content-Length: {}\r\n\r\n", body.len()).bytes());
            let length = if way == "break-off" { body.len() / 2 } else { body.len() };
            response.extend(if is_head { &[] } else { &body[..length] });
        }
    }
    Ok((response, way == "length" || way == "chunked"))
}

#[derive(Debug, Default)]
struct Counts {
    whole: AtomicU64,
    broken: AtomicU64,
    unavailable: AtomicU64,
    given_up: AtomicU64,
}

/// One request after the other, on connections that last for some of them.
fn visit(edge: &Edge, number: u64, counts: &Counts) -> Result<()> {
    let mut random = Random::of(number);
    let mut client = None;
    for count in 0..REQUESTS {
        let id = number * 1_000_000 + count;
        let way = WAYS[random.below(WAYS.len() as u64) as usize];
        let method = ["GET", "HEAD", "POST", "PUT"][random.below(4) as usize];
        let body = if method.starts_with('P') { content(id) } else { Vec::new() };
        let mut wire =
            format!("{method} /{id} HTTP/1.1\r\nHost: {HOST}\r\nX-Id: {id}\r\nX-Way: {way}\r\n").into_bytes();
        match method {
            "POST" => wire.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes()),
            "PUT" => {
                wire.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                for chunk in body.chunks(9_999) {
                    wire.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    wire.extend([chunk, b"\r\n"].concat());
                }
                wire.extend(b"0\r\n\r\n");
            }
            _ => wire.extend(b"\r\n"),
        }
        if method == "POST" {
            wire.extend(&body);
        }
        let mut speaker: Client = match client.take() {
            Some(client) => client,
            None => edge.client()?,
        };
        match random.below(20) {
            // Gone in the middle of the request, or right behind it.
            0 => {
                speaker.send(&wire[..random.below(wire.len() as u64) as usize])?;
                counts.given_up.fetch_add(1, Relaxed);
                continue;
            }
            1 => {
                speaker.send(&wire)?;
                counts.given_up.fetch_add(1, Relaxed);
                continue;
            }
            _ => speaker.send(&wire)?,
        }
        match speaker.response_to(method) {
            Ok(response) if response.status == 502 => {
                // Only what may not be sent twice, to a connection that had just been closed.
                ensure!(method.starts_with('P'), "{method} {id} {way}: {response:?}");
                counts.unavailable.fetch_add(1, Relaxed);
                if response.field("connection").is_none() {
                    client = Some(speaker);
                }
            }
            Ok(response) => {
                ensure!(response.status == 200, "{method} {id} {way}: {response:?}");
                ensure!(response.field("x-id") == Some(&id.to_string()), "{method} {id} {way}: {response:?}");
                ensure!(way != "break-off" || method == "HEAD" || content(id).len() < 2, "{id} is whole by half");
                let expected = if method == "HEAD" { Vec::new() } else { content(id) };
                ensure!(response.body == expected, "{method} {id} {way}: the body is another one");
                counts.whole.fetch_add(1, Relaxed);
                if response.field("connection").is_none() && random.below(8) > 0 {
                    client = Some(speaker);
                }
            }
            Err(error) => {
                if way != "break-off" {
                    bail!("{method} {id} {way}: {error:#}");
                }
                counts.broken.fetch_add(1, Relaxed);
            }
        }
    }
    Ok(())
}

#[test]
fn no_response_is_somebody_elses() -> Result<()> {
    let origin = Origin::new(|conn| {
        while let Some(request) = conn.request()? {
            let (response, goes_on) = answer(&request)?;
            conn.send(response)?;
            if !goes_on {
                break;
            }
        }
        Ok(())
    })?;
    let edge = Plan::to(origin.addr())?.start()?;
    let counts = Counts::default();
    thread::scope(|scope| {
        let clients = (0..CLIENTS).map(|number| {
            let (edge, counts) = (&edge, &counts);
            scope.spawn(move || visit(edge, number + 1, counts))
        });
        let clients = clients.collect::<Vec<_>>();
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    println!("{counts:?} by {} connections", origin.accepts());
    ensure!(counts.whole.load(Relaxed) > CLIENTS * REQUESTS / 2, "{counts:?}");
    // Of requests that were not retried most have found a good connection.
    ensure!(counts.unavailable.load(Relaxed) < CLIENTS * REQUESTS / 10, "{counts:?}");
    let admin = edge.installation.admin()?;
    until("the end of all connections", SOON, || Ok(admin.status()?.total_connections == 0))?;
    edge.daemon.stop()
}
