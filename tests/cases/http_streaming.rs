//! Content that is larger than any memory: it flows, whole, and nowhere piles up.

use std::{
    env,
    io::{Read, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use mc_proxy_tests::{
    bytes::{Digest, receive, send},
    daemon::Daemon,
    http::{Edge, Framing, HOST, Origin, get, ok},
    traffic::Pattern,
    wait::{SOON, pass, until},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// MiB that each of the longest streams brings, instead of a GiB.
const LENGTH_VARIABLE: &str = "MC_PROXY_STREAM_MIB";

/// What that comes to.
fn length() -> Result<u64> {
    Ok(env::var(LENGTH_VARIABLE).map_or(Ok(1024), |text| text.parse::<u64>())? << 20)
}

/// What the daemon may take for one connection, whatever flows: a few buffers of each side.
const GROWTH: u64 = 12 << 20;

/// Watches the memory of a daemon while `work` is at work.
fn watching<T>(daemon: &Daemon, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = daemon.resident_bytes()?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<u64> {
            let mut most = before;
            while !is_over.load(SeqCst) {
                most = most.max(daemon.resident_bytes()?);
                pass(Duration::from_millis(20));
            }
            Ok(most)
        });
        let done = work();
        is_over.store(true, SeqCst);
        let most = watcher.join().map_err(|_| anyhow!("the watcher panicked"))??;
        println!("memory: {} KiB before, {} KiB at most", before >> 10, most >> 10);
        ensure!(most < before + GROWTH, "{} MiB more", (most - before) >> 20);
        done
    })
}

/// A backend that takes any body and tells its hash, and brings one for `/down`.
fn origin() -> Result<Origin> {
    Origin::new(|conn| {
        while let Some(request) = conn.head()? {
            match request.framing {
                Framing::Length(length) => {
                    let digest = receive(&mut Read::by_ref(conn).take(length as u64), 7, length as u64)?;
                    let text = digest.sha256;
                    conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()))?;
                }
                Framing::None | Framing::Chunked | Framing::UntilClose => {
                    let length = length()?;
                    conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"))?;
                    send(conn, 8, length)?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_long_stream_up() -> Result<()> {
    let length = length()?;
    let origin = origin()?;
    let edge = Edge::to(origin.addr(), "")?;
    edge.ask(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n"))?.expect(200)?;
    let mut client = edge.client()?;
    let (digest, response) = watching(&edge.daemon, || -> Result<(Digest, _)> {
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n"))?;
        let digest = send(&mut client, 7, length)?;
        client.flush()?;
        Ok((digest, client.response()?.expect(200)?))
    })?;
    ensure!(response.text() == digest.sha256, "{digest:?}: {response:?}");
    Ok(())
}

#[test]
fn a_long_stream_down() -> Result<()> {
    let length = length()?;
    let origin = origin()?;
    let edge = Edge::to(origin.addr(), "")?;
    edge.ask(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n"))?.expect(200)?;
    let mut client = edge.client()?;
    let digest = watching(&edge.daemon, || {
        client.send(get("/down"))?;
        let response = client.head_of("GET")?;
        ensure!(response.framing == Framing::Length(length as usize), "{response:?}");
        receive(&mut Read::by_ref(&mut client).take(length), 8, length)
    })?;
    ensure!(digest.length == length);
    client.ask(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n"))?.expect(200)?;
    Ok(())
}

/// Reads a pattern to its end, and checks it.
async fn check(from: &mut (impl tokio::io::AsyncRead + Unpin), pattern: Pattern, length: u64) -> Result<()> {
    let mut buffer = vec![0; 128 << 10];
    let mut at = 0;
    while at < length {
        let read = from.read(&mut buffer).await.with_context(|| format!("at byte {at}"))?;
        ensure!(read > 0, "the end at byte {at}");
        pattern.check(at, &buffer[..read])?;
        at += read as u64;
    }
    ensure!(at == length, "{at} bytes of {length}");
    Ok(())
}

#[test]
fn both_directions_at_once() -> Result<()> {
    const BOTH: u64 = 256 << 20;
    let (up, down) = (Pattern::of(1), Pattern::of(2));
    let origin = Origin::new(move |conn| {
        conn.head()?;
        let mut writer = conn.socket().try_clone()?;
        let sender = thread::spawn(move || -> Result<()> {
            writer.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {BOTH}\r\n\r\n").as_bytes())?;
            let mut buffer = vec![0; 128 << 10];
            for at in (0..BOTH).step_by(buffer.len()) {
                down.fill(at, &mut buffer);
                writer.write_all(&buffer)?;
            }
            Ok(())
        });
        let mut buffer = vec![0; 128 << 10];
        let mut at = 0;
        while at < BOTH {
            let read = conn.read(&mut buffer)?;
            ensure!(read > 0, "the end at byte {at}");
            up.check(at, &buffer[..read])?;
            at += read as u64;
        }
        sender.join().map_err(|_| anyhow!("the sender panicked"))?
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    watching(&edge.daemon, || {
        runtime.block_on(async {
            let config = Arc::new(edge.authority.client_config()?);
            let socket = tokio::net::TcpStream::connect(edge.addr).await?;
            let stream = tokio_rustls::TlsConnector::from(config).connect(HOST.try_into()?, socket).await?;
            let (mut reader, mut writer) = tokio::io::split(stream);
            let sending = tokio::spawn(async move {
                let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {BOTH}\r\n\r\n");
                writer.write_all(head.as_bytes()).await?;
                let mut buffer = vec![0; 128 << 10];
                for at in (0..BOTH).step_by(buffer.len()) {
                    up.fill(at, &mut buffer);
                    writer.write_all(&buffer).await?;
                }
                writer.flush().await?;
                anyhow::Ok(writer)
            });
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(reader.read_u8().await?);
            }
            ensure!(head.starts_with(b"HTTP/1.1 200 OK\r\n"));
            check(&mut reader, down, BOTH).await?;
            sending.await?.map(drop)
        })
    })
}

/// A client that does not read: its backend has to wait, and nothing piles up in between.
#[test]
fn a_slow_reader_holds_its_backend_up() -> Result<()> {
    const MUCH: u64 = 192 << 20;
    let (sent, pattern) = (Arc::<AtomicU64>::default(), Pattern::of(3));
    let origin = Origin::new({
        let sent = Arc::clone(&sent);
        move |conn| {
            conn.head()?;
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {MUCH}\r\n\r\n"))?;
            let mut buffer = vec![0; 64 << 10];
            for at in (0..MUCH).step_by(buffer.len()) {
                pattern.fill(at, &mut buffer);
                conn.write_all(&buffer)?;
                sent.fetch_add(buffer.len() as u64, SeqCst);
            }
            Ok(())
        }
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    watching(&edge.daemon, || {
        client.send(get("/"))?;
        client.head_of("GET")?;
        let mut last = 0;
        until("the backend to be held up", SOON, || {
            let before = std::mem::replace(&mut last, sent.load(SeqCst));
            pass(Duration::from_millis(500));
            Ok(before == last && last > 0)
        })?;
        println!("{} KiB are on their way", last >> 10);
        ensure!(last < 64 << 20, "{} MiB were taken", last >> 20);
        let mut buffer = vec![0; 256 << 10];
        let mut at = 0;
        while at < MUCH {
            let read = client.read(&mut buffer)?;
            ensure!(read > 0, "the end at byte {at}");
            pattern.check(at, &buffer[..read])?;
            at += read as u64;
        }
        Ok(())
    })
}

/// The same the other way round.
#[test]
fn a_slow_backend_holds_its_client_up() -> Result<()> {
    const MUCH: u64 = 128 << 20;
    let (goes_on, pattern) = (Arc::<AtomicBool>::default(), Pattern::of(4));
    let origin = Origin::new({
        let goes_on = Arc::clone(&goes_on);
        move |conn| {
            conn.head()?;
            until("the word to go on", SOON, || Ok(goes_on.load(SeqCst)))?;
            let mut buffer = vec![0; 64 << 10];
            let mut at = 0;
            while at < MUCH {
                let read = conn.read(&mut buffer)?;
                ensure!(read > 0, "the end at byte {at}");
                pattern.check(at, &buffer[..read])?;
                at += read as u64;
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        }
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    let sent = AtomicU64::new(0);
    watching(&edge.daemon, || {
        thread::scope(|scope| {
            let sending = scope.spawn(|| -> Result<()> {
                client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {MUCH}\r\n\r\n"))?;
                let mut buffer = vec![0; 64 << 10];
                for at in (0..MUCH).step_by(buffer.len()) {
                    pattern.fill(at, &mut buffer);
                    client.send(&buffer)?;
                    sent.fetch_add(buffer.len() as u64, SeqCst);
                }
                client.response()?.expect(200).map(drop)
            });
            let mut last = 0;
            until("the client to be held up", SOON, || {
                let before = std::mem::replace(&mut last, sent.load(SeqCst));
                pass(Duration::from_millis(500));
                Ok(before == last && last > 0)
            })?;
            println!("{} KiB are on their way", last >> 10);
            goes_on.store(true, SeqCst);
            ensure!(last < 64 << 20, "{} MiB were taken", last >> 20);
            sending.join().map_err(|_| anyhow!("the client panicked"))?
        })
    })
}

/// A chunk costs a hundred times what it brings: neither memory nor time of others may pay for it.
#[test]
fn many_small_chunks() -> Result<()> {
    const CHUNKS: usize = 50_000;
    let origin = Origin::answering(|request| ok(request.body.len().to_string()))?;
    let edge = Edge::to(origin.addr(), "")?;
    edge.serves()?;
    let mut client = edge.client()?;
    let response = watching(&edge.daemon, || {
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"))?;
        let chunks = "1\r\nx\r\n".repeat(CHUNKS / 100);
        for _ in 0..100 {
            client.send(&chunks)?;
        }
        edge.serves()?;
        client.send("0\r\n\r\n")?;
        client.response()?.expect(200)
    })?;
    ensure!(response.text() == CHUNKS.to_string(), "{response:?}");
    Ok(())
}
