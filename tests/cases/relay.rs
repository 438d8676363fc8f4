//! After the hello, the proxy is a wire: every byte, both ways, and every way in which a connection can end.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixListener,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use mc_proxy_tests::{
    backend::{Backend, limit},
    bytes::{self, megabits},
    client::{End, ask, connect, end_of, exchange, reset},
    config::{listener, loopback},
    daemon::{Daemon, Installation},
    hello::Hello,
    wait::SOON,
};
use socket2::SockRef;

const MB: u64 = 1_000_000;

/// A daemon with one route to a backend that hands its connections to the test.
struct Wire {
    proxy: SocketAddr,
    accepted: Receiver<TcpStream>,
    _backend: Backend,
    _edge: Installation,
    daemon: Daemon,
}

impl Wire {
    fn new() -> Result<Self> {
        let (backend, accepted) = Backend::handing_over()?;
        let proxy = loopback();
        let edge = Installation::new(&listener(proxy, &[("app.example.com", backend.addr())], None))?;
        let daemon = edge.start()?;
        Ok(Self { proxy, accepted, _backend: backend, _edge: edge, daemon })
    }

    /// Both ends of one connection, after the hello.
    fn pair(&self) -> Result<(TcpStream, TcpStream)> {
        let hello = Hello::to("app.example.com").bytes();
        let mut client = connect(self.proxy)?;
        client.write_all(&hello)?;
        let mut backend = self.accepted.recv_timeout(SOON).context("the backend has no connection")?;
        let mut received = vec![0; hello.len()];
        backend.read_exact(&mut received)?;
        ensure!(received == hello);
        Ok((client, backend))
    }
}

#[test]
fn a_hundred_megabytes_both_ways_at_once() -> Result<()> {
    let wire = Wire::new()?;
    let (client, backend) = wire.pair()?;
    let length = 100 * MB;
    let start = Instant::now();
    let (up, down) = thread::scope(|scope| -> Result<_> {
        let send = |stream: &TcpStream, seed| -> Result<_> {
            let mut stream = stream.try_clone()?;
            Ok(scope.spawn(move || -> Result<_> {
                let digest = bytes::send(&mut stream, seed, length)?;
                stream.shutdown(Shutdown::Write)?;
                Ok(digest)
            }))
        };
        let receive = |stream: &TcpStream, seed| -> Result<_> {
            let mut stream = stream.try_clone()?;
            Ok(scope.spawn(move || bytes::receive(&mut stream, seed, length)))
        };
        let (sent_up, got_up) = (send(&client, 1)?, receive(&backend, 1)?);
        let (sent_down, got_down) = (send(&backend, 2)?, receive(&client, 2)?);
        let join = |thread: thread::ScopedJoinHandle<'_, Result<bytes::Digest>>| {
            thread.join().map_err(|_| anyhow!("a stream panicked"))?
        };
        Ok(((join(sent_up)?, join(got_up)?), (join(sent_down)?, join(got_down)?)))
    })?;
    ensure!(up.0 == up.1, "to the backend: {up:?}");
    ensure!(down.0 == down.1, "to the client: {down:?}");
    ensure!(up.0 != down.0);
    println!("{:.0} Mbit/s each way", megabits(length, start));
    Ok(())
}

#[test]
fn small_messages_are_answered_one_by_one() -> Result<()> {
    let wire = Wire::new()?;
    let (mut client, backend) = wire.pair()?;
    let echo = thread::spawn(move || mc_proxy_tests::backend::echo(backend));
    for number in 0..2_000_u32 {
        let message = &number.to_be_bytes()[..1 + number as usize % 4];
        ensure!(exchange(&mut client, message)? == message);
    }
    client.shutdown(Shutdown::Write)?;
    ensure!(end_of(&mut client)? == End::Closed(Vec::new()));
    echo.join().map_err(|_| anyhow!("the backend panicked"))?
}

#[test]
fn the_client_half_closes_and_still_gets_the_answer() -> Result<()> {
    let wire = Wire::new()?;
    let (mut client, mut backend) = wire.pair()?;
    let feed = client.try_clone()?;
    let sender = thread::spawn(move || -> Result<_> {
        let digest = bytes::send(&mut &feed, 3, 3 * MB + 1)?;
        feed.shutdown(Shutdown::Write)?;
        Ok(digest)
    });
    let got = bytes::receive(&mut backend, 3, 3 * MB + 1)?;
    ensure!(got == sender.join().map_err(|_| anyhow!("the client panicked"))??);

    let answer = thread::spawn(move || bytes::send(&mut backend, 4, 2 * MB));
    let got = bytes::receive(&mut client, 4, 2 * MB)?;
    ensure!(got == answer.join().map_err(|_| anyhow!("the backend panicked"))??);
    Ok(())
}

#[test]
fn the_backend_half_closes_and_still_gets_the_request() -> Result<()> {
    let wire = Wire::new()?;
    let (mut client, mut backend) = wire.pair()?;
    backend.write_all(b"goodbye")?;
    backend.shutdown(Shutdown::Write)?;
    ensure!(end_of(&mut client)? == End::Closed(b"goodbye".to_vec()));

    let request = thread::spawn(move || bytes::send(&mut client, 5, 2 * MB));
    let got = bytes::receive(&mut backend, 5, 2 * MB)?;
    ensure!(got == request.join().map_err(|_| anyhow!("the client panicked"))??);
    Ok(())
}

#[test]
fn a_reset_of_the_client_reaches_the_backend() -> Result<()> {
    let wire = Wire::new()?;
    let (mut client, mut backend) = wire.pair()?;
    client.write_all(b"before")?;
    let mut before = [0; 6];
    backend.read_exact(&mut before)?;
    reset(client)?;
    let end = end_of(&mut backend)?;
    ensure!(end == End::Reset(Vec::new()), "{end:?}");
    Ok(())
}

#[test]
fn a_reset_of_the_backend_reaches_the_client() -> Result<()> {
    let wire = Wire::new()?;
    let (mut client, mut backend) = wire.pair()?;
    backend.write_all(b"before")?;
    let mut before = [0; 6];
    client.read_exact(&mut before)?;
    reset(backend)?;
    let end = end_of(&mut client)?;
    ensure!(end == End::Reset(Vec::new()), "{end:?}");
    Ok(())
}

#[test]
fn a_reader_that_stalls_holds_the_sender_back_and_loses_nothing() -> Result<()> {
    let wire = Wire::new()?;
    let (mut client, mut backend) = wire.pair()?;
    let resident = wire.daemon.resident_bytes()?;
    // The kernel's own buffers take tens of megabytes when they may grow; what the daemon adds is what counts.
    SockRef::from(&client).set_recv_buffer_size(64 << 10)?;
    let length = 96 * MB;
    let (stall, stalled) = mpsc::channel();
    let sender = thread::spawn(move || -> Result<_> {
        backend.set_write_timeout(Some(Duration::from_millis(700)))?;
        let mut stream = bytes::Bytes::of(6);
        let mut block = vec![0; 1 << 16];
        let mut sent = 0;
        while sent < length {
            stream.fill(&mut block);
            let mut rest = block.as_slice();
            while !rest.is_empty() {
                match backend.write(rest) {
                    Ok(count) => rest = &rest[count..],
                    // Nobody listens after the first time.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => drop(stall.send(())),
                    Err(error) => return Err(error).context("sending"),
                }
            }
            sent += block.len() as u64;
        }
        Ok(sent)
    });
    stalled.recv_timeout(SOON).context("everything fitted between a sender and a reader that does not read")?;
    let grown = wire.daemon.resident_bytes()?.saturating_sub(resident);
    ensure!(grown < 8 << 20, "the daemon has grown by {grown} bytes for one reader that stalls");
    let total = length.next_multiple_of(1 << 16);
    bytes::receive(&mut client, 6, total)?;
    let sent = sender.join().map_err(|_| anyhow!("the backend panicked"))??;
    ensure!(sent == total);
    Ok(())
}

#[test]
fn a_backend_that_is_down_is_a_reset_and_a_warning() -> Result<()> {
    let down = unused_addr()?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("app.example.com", down)], None))?;
    let daemon = edge.start()?;

    let end = ask(proxy, &Hello::to("app.example.com").bytes())?;
    ensure!(end == End::Reset(Vec::new()), "{end:?}");
    let line = daemon.log().wait_for(&["level=WARN", "dial"], SOON)?;
    ensure!(line.contains(&down.to_string()), "the warning does not name the backend: {line}");
    Ok(())
}

#[test]
fn the_second_backend_stands_in_for_the_first() -> Result<()> {
    let (backend, _) = Backend::named("second")?;
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[[listeners]]\naddr = \"{proxy}\"\n[[listeners.routes]]\nhostname = \"app.example.com\"\n\
         backends = [\"{}\", \"{}\"]\n",
        unused_addr()?,
        backend.addr()
    ))?;
    let _daemon = edge.start()?;
    ensure!(ask(proxy, &Hello::to("app.example.com").bytes())? == End::Closed(b"second\n".to_vec()));
    Ok(())
}

/// Routes that are asked by turns have each of their backends, whatever the others are asked meanwhile.
#[test]
fn routes_have_their_own_turns() -> Result<()> {
    let routes = [["one", "two"], ["three", "four"]];
    let proxy = loopback();
    let mut config = format!("[[listeners]]\naddr = \"{proxy}\"\n");
    let mut backends = Vec::new();
    for (index, names) in routes.iter().enumerate() {
        let (first, second) = (Backend::named(names[0])?.0, Backend::named(names[1])?.0);
        config += &format!(
            "[[listeners.routes]]\nhostname = \"r{index}.example.com\"\nbackends = [\"{}\", \"{}\"]\n",
            first.addr(),
            second.addr()
        );
        backends.extend([first, second]);
    }
    let edge = Installation::new(&config)?;
    let _daemon = edge.start()?;
    for turn in 0..6 {
        for (index, names) in routes.iter().enumerate() {
            let hello = Hello::to(format!("r{index}.example.com")).bytes();
            let expected = format!("{}\n", names[turn % 2]);
            ensure!(ask(proxy, &hello)? == End::Closed(expected.into_bytes()), "turn {turn} of route {index}");
        }
    }
    Ok(())
}

#[test]
fn a_backend_may_be_a_unix_socket() -> Result<()> {
    let edge = Installation::without_config()?;
    let path = edge.directory().join("backend.sock");
    let socket = UnixListener::bind(&path)?;
    let backend = thread::spawn(move || -> Result<_> {
        let (mut stream, _) = socket.accept()?;
        stream.set_read_timeout(Some(SOON))?;
        let mut request = Vec::new();
        stream.read_to_end(&mut request)?;
        stream.write_all(b"unix\n")?;
        Ok(request)
    });
    let proxy = loopback();
    edge.configure(&format!(
        "[[listeners]]\naddr = \"{proxy}\"\n[[listeners.routes]]\nhostname = \"app.example.com\"\n\
         backend = \"unix:{}\"\n",
        path.display()
    ))?;
    let _daemon = edge.start()?;
    let hello = Hello::to("app.example.com").bytes();
    ensure!(ask(proxy, &hello)? == End::Closed(b"unix\n".to_vec()));
    ensure!(backend.join().map_err(|_| anyhow!("the backend panicked"))?? == hello);
    Ok(())
}

#[test]
fn a_tcp_listener_relays_whatever_comes() -> Result<()> {
    let (backend, accepted) = Backend::handing_over()?;
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[[listeners]]\naddr = \"{proxy}\"\nprotocol = \"tcp\"\n[listeners.default]\nbackend = \"{}\"\n",
        backend.addr()
    ))?;
    let _daemon = edge.start()?;
    let mut client = connect(proxy)?;
    let mut server = accepted.recv_timeout(SOON).context("the backend speaks first in some protocols")?;
    limit(&server)?;
    server.write_all(b"SSH-2.0-test\r\n")?;
    let mut banner = [0; 14];
    client.read_exact(&mut banner)?;
    ensure!(&banner == b"SSH-2.0-test\r\n");
    Ok(())
}

/// A port on which nothing listens.
fn unused_addr() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
