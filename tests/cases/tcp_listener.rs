//! `protocol = "tcp"`: whatever the protocol and whoever speaks first, every connection takes the default route.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixListener,
    sync::mpsc::Receiver,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use mc_proxy_tests::{
    backend::{Backend, echo, limit},
    bytes,
    client::{End, ask, ask_and_stay, ask_from, connect, connect_from, end_of, exchange, reset},
    config::loopback,
    daemon::{Daemon, Installation},
    hello::Hello,
    wait::{SOON, until},
};
use socket2::SockRef;

const BANNER: &[u8] = b"SSH-2.0-test\r\n";

struct Edge {
    proxy: SocketAddr,
    edge: Installation,
    daemon: Daemon,
}

impl Edge {
    /// `backends` as in the file; `listener` are more of the listener's lines, `rest` comes before it.
    fn new(backends: &str, listener: &str, rest: &str) -> Result<Self> {
        let proxy = loopback();
        let edge = Installation::new(&format!(
            "{rest}\n[[listeners]]\naddr = \"{proxy}\"\nprotocol = \"tcp\"\n{listener}\n\
             [listeners.default]\nbackends = [{backends}]\n"
        ))?;
        let daemon = edge.start()?;
        Ok(Self { proxy, edge, daemon })
    }

    fn to(backend: &Backend) -> Result<Self> {
        Self::new(&quoted(backend.addr()), "", "")
    }

    /// Both ends of one connection, of which nobody has said anything.
    fn pair(&self, accepted: &Receiver<TcpStream>) -> Result<(TcpStream, TcpStream)> {
        let client = connect(self.proxy)?;
        let backend = accepted.recv_timeout(SOON).context("a silent client has no backend")?;
        limit(&backend)?;
        Ok((client, backend))
    }

    fn outcome(&self, reason: &str) -> Result<()> {
        self.daemon.log().wait_for(&[&format!("reason={reason}")], SOON).map(|_| ())
    }
}

fn quoted(addr: impl std::fmt::Display) -> String {
    format!("\"{addr}\"")
}

#[test]
fn the_server_speaks_first() -> Result<()> {
    let (backend, accepted) = Backend::handing_over()?;
    let edge = Edge::to(&backend)?;
    let (mut client, mut server) = edge.pair(&accepted)?;
    server.write_all(BANNER)?;
    let mut banner = [0; BANNER.len()];
    client.read_exact(&mut banner)?;
    ensure!(banner == *BANNER);
    client.write_all(b"SSH-2.0-client\r\n")?;
    let mut answer = [0; 16];
    server.read_exact(&mut answer)?;
    ensure!(&answer == b"SSH-2.0-client\r\n");
    drop(client);
    ensure!(end_of(&mut server)? == End::Closed(Vec::new()));
    Ok(())
}

#[test]
fn the_client_speaks_first_be_it_tls_or_not() -> Result<()> {
    let backend = Backend::start(echo)?;
    let edge = Edge::to(&backend)?;
    // A server name is not looked at, and neither is what would be refused elsewhere.
    for said in [Hello::to("app.example.com").bytes(), b"GET / HTTP/1.0\r\n\r\n".to_vec(), vec![0], vec![0x16, 3, 1]] {
        let mut client = connect(edge.proxy)?;
        ensure!(exchange(&mut client, &said)? == said);
        client.shutdown(Shutdown::Write)?;
        ensure!(end_of(&mut client)? == End::Closed(Vec::new()));
    }
    ensure!(edge.daemon.log().matching(&["sni="]).is_empty());
    Ok(())
}

#[test]
fn either_side_half_closes_first_and_megabytes_follow() -> Result<()> {
    let (backend, accepted) = Backend::handing_over()?;
    let edge = Edge::to(&backend)?;
    for client_first in [true, false] {
        let (client, server) = edge.pair(&accepted)?;
        let (mut first, mut second) = if client_first { (client, server) } else { (server, client) };
        first.write_all(b"that is all")?;
        first.shutdown(Shutdown::Write)?;
        ensure!(end_of(&mut second)? == End::Closed(b"that is all".to_vec()));
        let sender = thread::spawn(move || -> Result<_> {
            let digest = bytes::send(&mut second, 7, 2_000_000)?;
            second.shutdown(Shutdown::Write)?;
            Ok(digest)
        });
        let got = bytes::receive(&mut first, 7, 2_000_000)?;
        ensure!(got == sender.join().map_err(|_| anyhow!("the sender panicked"))??);
        ensure!(end_of(&mut first)? == End::Closed(Vec::new()));
    }
    Ok(())
}

#[test]
fn a_client_that_leaves_without_a_word_takes_its_backend_connection_along() -> Result<()> {
    let (backend, accepted) = Backend::handing_over()?;
    let edge = Edge::to(&backend)?;
    let (client, mut server) = edge.pair(&accepted)?;
    drop(client);
    ensure!(end_of(&mut server)? == End::Closed(Vec::new()));
    drop(server);
    let (client, mut server) = edge.pair(&accepted)?;
    reset(client)?;
    ensure!(end_of(&mut server)? == End::Reset(Vec::new()));
    Ok(())
}

/// A backend whose queue is full: it does not answer, however long one waits.
fn silent() -> Result<(TcpListener, TcpStream)> {
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    silent.listen(0)?;
    let silent = TcpListener::from(silent);
    let queued = TcpStream::connect(silent.local_addr()?)?;
    Ok((silent, queued))
}

#[test]
fn a_client_that_resets_while_its_backend_is_dialled_ends_the_dial() -> Result<()> {
    let (silent, _queued) = silent()?;
    let rest = "[log]\nlevel = \"debug\"\n[proxy]\nconnect_timeout = \"1h\"";
    let edge = Edge::new(&quoted(silent.local_addr()?), "", rest)?;
    let admin = edge.edge.admin()?;
    let client = connect(edge.proxy)?;
    until("a connection", SOON, || Ok(admin.status()?.total_connections == 1))?;
    reset(client)?;
    edge.outcome("client_gone")?;
    until("the end of the connection", SOON, || Ok(admin.status()?.total_connections == 0))
}

#[test]
fn what_a_client_says_and_ends_before_its_backend_is_there_arrives() -> Result<()> {
    let (silent, queued) = silent()?;
    let edge = Edge::new(&quoted(silent.local_addr()?), "", "[proxy]\nconnect_timeout = \"1m\"")?;
    let mut client = connect(edge.proxy)?;
    client.write_all(b"early")?;
    client.shutdown(Shutdown::Write)?;
    let admin = edge.edge.admin()?;
    until("a connection", SOON, || Ok(admin.status()?.total_connections == 1))?;
    // Makes room for it.
    drop((silent.accept()?, queued));
    let (mut server, _) = silent.accept()?;
    limit(&server)?;
    ensure!(end_of(&mut server)? == End::Closed(b"early".to_vec()));
    server.write_all(b"late")?;
    drop(server);
    ensure!(end_of(&mut client)? == End::Closed(b"late".to_vec()));
    Ok(())
}

#[test]
fn a_backend_that_is_silent_is_given_up_at_the_deadline() -> Result<()> {
    let (silent, _queued) = silent()?;
    let edge = Edge::new(&quoted(silent.local_addr()?), "", "[proxy]\nconnect_timeout = \"300ms\"")?;
    let begin = Instant::now();
    ensure!(ask_and_stay(edge.proxy, b"")? == End::Reset(Vec::new()));
    ensure!(begin.elapsed() < SOON, "after {:?}", begin.elapsed());
    edge.daemon.log().wait_for(&["level=WARN", "dial failed", "no answer within 300ms"], SOON)?;
    Ok(())
}

#[test]
fn the_firewall_blocks_before_a_backend_is_dialled() -> Result<()> {
    let backend = Backend::start(echo)?;
    let edge = Edge::to(&backend)?;
    let attacker = loopback().ip();
    let admin = edge.edge.admin()?;
    admin.block(&attacker.to_string())?;
    ensure!(ask_from(attacker, edge.proxy, b"hello")? == End::Reset(Vec::new()));
    ensure!(backend.accepts() == 0);
    admin.unblock(&attacker.to_string())?;
    ensure!(exchange(&mut connect_from(attacker, edge.proxy)?, b"hello")? == b"hello");
    Ok(())
}

#[test]
fn a_full_listener_refuses() -> Result<()> {
    let backend = Backend::start(echo)?;
    let edge = Edge::new(&quoted(backend.addr()), "max_connections = 1", "")?;
    let mut first = connect(edge.proxy)?;
    ensure!(exchange(&mut first, b"first")? == b"first");
    ensure!(ask(edge.proxy, b"second")? == End::Reset(Vec::new()));
    ensure!(backend.accepts() == 1);
    drop(first);
    let admin = edge.edge.admin()?;
    until("the end of the first", SOON, || Ok(admin.status()?.total_connections == 0))?;
    ensure!(exchange(&mut connect(edge.proxy)?, b"third")? == b"third");
    Ok(())
}

#[test]
fn several_backends_take_turns_and_stand_in_for_each_other() -> Result<()> {
    let (one, two) = (Backend::start(echo)?, Backend::start(echo)?);
    let down = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let edge = Edge::new(&[quoted(one.addr()), quoted(down), quoted(two.addr())].join(", "), "", "")?;
    // Each worker has its own turn, and there may be many.
    let rounds = 12 * thread::available_parallelism()?.get() as u64;
    for _ in 0..rounds {
        ensure!(exchange(&mut connect(edge.proxy)?, b"hello")? == b"hello");
    }
    let accepts = [one.accepts(), two.accepts()];
    ensure!(accepts.iter().sum::<u64>() == rounds && accepts.iter().all(|count| *count > 0), "{accepts:?}");
    Ok(())
}

#[test]
fn silence_of_both_sides_ends_at_the_idle_timeout_and_not_at_the_handshake_timeout() -> Result<()> {
    let (backend, accepted) = Backend::handing_over()?;
    let rest = "[proxy]\nhandshake_timeout = \"100ms\"\nidle_timeout = \"1500ms\"";
    let edge = Edge::new(&quoted(backend.addr()), "", rest)?;
    let begin = Instant::now();
    let (mut client, mut server) = edge.pair(&accepted)?;
    ensure!(end_of(&mut client)? == End::Reset(Vec::new()));
    ensure!(begin.elapsed() > Duration::from_secs(1), "after {:?}", begin.elapsed());
    ensure!(end_of(&mut server)? == End::Reset(Vec::new()));
    edge.outcome("idle_timeout")
}

#[test]
fn the_backend_may_be_a_unix_socket_that_is_busy_at_first() -> Result<()> {
    let directory = tempfile::TempDir::new()?;
    let path = directory.path().join("backend.sock");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.bind(&socket2::SockAddr::unix(&path)?)?;
    socket.listen(0)?;
    let queued = std::os::unix::net::UnixStream::connect(&path)?;
    let listener = UnixListener::from(std::os::fd::OwnedFd::from(socket));
    let edge = Edge::new(&quoted(format!("unix:{}", path.display())), "", "")?;
    let mut client = connect(edge.proxy)?;
    let admin = edge.edge.admin()?;
    until("a connection", SOON, || Ok(admin.status()?.total_connections == 1))?;
    drop((listener.accept()?, queued));
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(SOON))?;
    server.write_all(BANNER)?;
    let mut banner = [0; BANNER.len()];
    client.read_exact(&mut banner)?;
    ensure!(banner == *BANNER);
    client.write_all(b"bye")?;
    drop(client);
    let mut bye = Vec::new();
    server.read_to_end(&mut bye)?;
    ensure!(bye == b"bye");
    Ok(())
}

#[test]
fn a_tcp_listener_without_a_default_does_not_start() -> Result<()> {
    let edge = Installation::new(&format!("[[listeners]]\naddr = \"{}\"\nprotocol = \"tcp\"\n", loopback()))?;
    let output = edge.start_and_fail()?;
    ensure!(output.status.code() == Some(78), "{}", output.status);
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(error.contains("default"), "{error}");
    Ok(())
}

#[test]
fn a_route_by_name_is_refused_where_no_name_is_read() -> Result<()> {
    let backend = Backend::start(echo)?;
    let edge = Edge::to(&backend)?;
    let admin = edge.edge.admin()?;
    let listener = edge.proxy.to_string();
    let refused = admin.add_route(&listener, "app.example.com", "127.0.0.1:1").expect_err("it would never be used");
    ensure!(refused.code() == tonic::Code::FailedPrecondition && refused.message().contains("tcp"), "{refused}");
    let routes = admin.routes(&listener)?;
    ensure!(routes.routes.is_empty() && routes.default_route.is_some(), "{routes:?}");
    Ok(())
}

#[test]
fn tiny_segments_arrive_in_order() -> Result<()> {
    let backend = Backend::start(echo)?;
    let edge = Edge::to(&backend)?;
    let mut client = connect(edge.proxy)?;
    SockRef::from(&client).set_tcp_nodelay(true)?;
    for number in 0..500_u32 {
        let message = &number.to_be_bytes()[..1 + number as usize % 4];
        ensure!(exchange(&mut client, message)? == message);
    }
    Ok(())
}
