//! PROXY headers byte by byte: who may send one, what becomes of the client in it, and what is refused.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy::proxy_header::{Endpoints, Header, Progress, Tlvs, parse, write_v1, write_v2};
use mc_proxy_tests::{
    backend::{Backend, Received, echo},
    client::{End, ask, ask_and_stay, ask_from, connect, end_of, exchange},
    config::loopback,
    daemon::{Daemon, Installation},
    hello::Hello,
    wait::SOON,
};

/// A daemon behind PROXY protocol, with a backend that keeps what it got.
struct Edge {
    addr: SocketAddr,
    backend: Backend,
    received: Received,
    _installation: Installation,
    daemon: Daemon,
}

impl Edge {
    /// `listener` is more of the listener's table, `rest` more tables.
    fn new(listener: &str, rest: &str) -> Result<Self> {
        let (backend, received) = Backend::named("app")?;
        let addr = loopback();
        let installation = Installation::new(&format!(
            "[log]\nlevel = \"debug\"\n[[listeners]]\naddr = \"{addr}\"\nproxy_protocol = true\n{listener}
             [[listeners.routes]]\nhostname = \"app.example.com\"\nbackend = \"{}\"\n{rest}",
            backend.addr()
        ))?;
        let daemon = installation.start()?;
        Ok(Self { addr, backend, received, _installation: installation, daemon })
    }

    fn trusting_loopback(rest: &str) -> Result<Self> {
        Self::new("proxy_trusted = [\"127.0.0.0/8\"]", rest)
    }

    /// The log line of a connection's end.
    fn line(&self, parts: &[&str]) -> Result<String> {
        self.daemon.log().wait_for(&[&["connection "], parts].concat(), SOON)
    }

    /// An error unless the connection is served as `client`'s, which `peer` brings.
    fn serves(&self, head: &[u8], client: &str) -> Result<()> {
        let wire = [head, &hello()].concat();
        let end = ask(self.addr, &wire)?;
        ensure!(end == served(), "{client}: {end:?}");
        let line = self.line(&[&format!("client={client} "), "reason=closed"])?;
        ensure!(line.contains(&format!("client_bytes={} ", hello().len())), "{line}");
        Ok(())
    }

    /// An error unless the connection is reset for this reason, and the backend has not seen it.
    fn refuses(&self, wire: &[u8], reason: &str) -> Result<()> {
        let accepts = self.backend.accepts();
        let end = ask_and_stay(self.addr, wire)?;
        ensure!(end == End::Reset(Vec::new()), "{reason}: {end:?}");
        self.line(&[&format!("reason={reason} ")])?;
        ensure!(self.backend.accepts() == accepts);
        Ok(())
    }
}

fn hello() -> Vec<u8> {
    Hello::to("app.example.com").bytes()
}

fn served() -> End {
    End::Closed(b"app\n".to_vec())
}

fn from(client: &str) -> Result<Header> {
    let to = if client.starts_with('[') { "[2001:db8::443]:443" } else { "198.51.100.2:443" };
    Ok(Header::forwarded(client.parse()?, to.parse()?))
}

fn v1(client: &str) -> Result<Vec<u8>> {
    Ok(write_v1(&from(client)?.endpoints))
}

fn v2(client: &str) -> Result<Vec<u8>> {
    Ok(write_v2(&from(client)?)?)
}

#[test]
fn the_header_names_the_client() -> Result<()> {
    let edge = Edge::trusting_loopback("")?;
    edge.serves(&v1("203.0.113.1:1001")?, "203.0.113.1:1001")?;
    edge.serves(&v2("203.0.113.2:1002")?, "203.0.113.2:1002")?;
    edge.serves(&v1("[2001:db8::3]:1003")?, "[2001:db8::3]:1003")?;
    edge.serves(&v2("[2001:db8::4]:1004")?, "[2001:db8::4]:1004")?;
    edge.serves(b"PROXY TCP6 ::ffff:203.0.113.5 ::1 1005 443\r\n", "203.0.113.5:1005")?;
    let tlvs = Tlvs { unique_id: Some(b"id\n6".as_slice().into()), authority: Some("six".into()), ..Tlvs::default() };
    edge.serves(&write_v2(&Header { tlvs, ..from("203.0.113.6:1006")? })?, "203.0.113.6:1006")?;
    let line = edge.line(&["client=203.0.113.6:1006 "])?;
    ensure!(
        line.contains("peer=127.0.0.1:") && line.contains("id=\"id\\\\n6\"") && line.contains("authority=six"),
        "{line}"
    );
    ensure!(edge.received.all().iter().all(|bytes| *bytes == hello()), "the backend gets no header unless told to");
    Ok(())
}

/// Health checks, and what a proxy knows no addresses of: the peer is the client.
#[test]
fn without_addresses_it_is_the_peer() -> Result<()> {
    let edge = Edge::trusting_loopback("")?;
    let local = write_v2(&Header { endpoints: Endpoints::Local, tlvs: Tlvs::default() })?;
    let unknown = write_v2(&Header { endpoints: Endpoints::Unknown, tlvs: Tlvs::default() })?;
    let unix = Endpoints::Unix { transport: mc_proxy::proxy_header::Transport::Stream, paths: Box::new([[0; 108]; 2]) };
    let unix = write_v2(&Header { endpoints: unix, tlvs: Tlvs::default() })?;
    for (number, head) in
        [&local, &unknown, &unix, b"PROXY UNKNOWN\r\n".as_slice(), b"PROXY UNKNOWN x y\r\n"].into_iter().enumerate()
    {
        let source = IpAddr::from([127, 9, 9, number as u8 + 1]);
        ensure!(ask_from(source, edge.addr, &[head, &hello()].concat())? == served(), "{head:?}");
        let line = edge.line(&[&format!("client={source}:"), "reason=closed"])?;
        ensure!(!line.contains("peer="), "{line}");
    }
    Ok(())
}

#[test]
fn in_pieces() -> Result<()> {
    let edge = Edge::trusting_loopback("")?;
    for (number, head) in [v1("203.0.113.1:1001")?, v2("203.0.113.2:1002")?].into_iter().enumerate() {
        let wire = [head, hello()].concat();
        let mut stream = connect(edge.addr)?;
        for byte in &wire {
            stream.write_all(&[*byte])?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        ensure!(end_of(&mut stream)? == served(), "{number}");
    }
    let wire = [v2("203.0.113.3:1003")?, hello()].concat();
    for at in 1..wire.len().min(80) {
        let (head, tail) = wire.split_at(at);
        let mut stream = connect(edge.addr)?;
        stream.write_all(head)?;
        std::thread::yield_now();
        stream.write_all(tail)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        ensure!(end_of(&mut stream)? == served(), "cut at {at}");
    }
    ensure!(edge.received.all().iter().all(|bytes| *bytes == hello()));
    Ok(())
}

#[test]
fn no_header_is_no_service() -> Result<()> {
    let edge = Edge::trusting_loopback("")?;
    edge.refuses(&hello(), "proxy_missing")?;
    edge.refuses(b"GET / HTTP/1.1\r\n\r\n", "proxy_missing")?;
    edge.refuses(b"PROXY TCP4 203.0.113.1 198.51.100.2 01 443\r\n", "proxy_v1_port")?;
    edge.refuses(b"PROXY TCP4 203.0.113.256 198.51.100.2 1 443\r\n", "proxy_v1_address")?;
    edge.refuses(b"PROXY TCP4 203.0.113.1\r\n", "proxy_v1_line")?;
    edge.refuses(format!("PROXY UNKNOWN {}", "x".repeat(200)).as_bytes(), "proxy_v1_too_long")?;
    let good = v2("203.0.113.1:1001")?;
    for (at, byte, reason) in [
        (12, 0x31, "proxy_v2_version"),
        (12, 0x22, "proxy_v2_command"),
        (13, 0x10, "proxy_v2_family"),
        (15, 0x0b, "proxy_v2_too_short"),
        (14, 0xff, "proxy_v2_too_long"),
        (16, 0xff, "proxy_v2_checksum"),
        (28, 0xe0, "closed"),
        (30, 0x05, "proxy_v2_tlv_framing"),
    ] {
        let mut wire = good.clone();
        wire[at] = byte;
        // Another type in place of the checksum's is a header without one.
        if reason != "closed" {
            edge.refuses(&[wire, hello()].concat(), reason)?;
        }
    }
    edge.daemon.log().wait_for(&["level=WARN", "no PROXY header is accepted"], SOON)?;
    Ok(())
}

#[test]
fn late_headers() -> Result<()> {
    let edge = Edge::trusting_loopback("[proxy]\nhandshake_timeout = \"500ms\"\n")?;
    edge.refuses(b"", "proxy_timeout")?;
    edge.refuses(&v2("203.0.113.1:1001")?[..20], "proxy_timeout")?;
    edge.refuses(b"PROXY TCP4 203.0.1", "proxy_timeout")?;
    // The header does not begin the time of the hello anew, and the client in it is who is late.
    edge.refuses(&[v1("203.0.113.2:1002")?, hello()[..20].to_vec()].concat(), "handshake_timeout")?;
    edge.line(&["client=203.0.113.2:1002 ", "reason=handshake_timeout"])?;
    Ok(())
}

#[test]
fn only_trusted_peers_are_heard() -> Result<()> {
    let edge = Edge::new("proxy_trusted = [\"127.1.0.0/16\"]", "")?;
    let wire = [v2("203.0.113.1:1001")?, hello()].concat();
    ensure!(ask_from([127, 1, 2, 3].into(), edge.addr, &wire)? == served());
    for wire in [wire.as_slice(), &hello(), b""] {
        let end = ask_from([127, 2, 0, 1].into(), edge.addr, wire)?;
        ensure!(end == End::Reset(Vec::new()), "{end:?}");
    }
    let line = edge.line(&["reason=proxy_untrusted"])?;
    ensure!(line.contains("client=127.2.0.1:"), "{line}");
    ensure!(edge.backend.accepts() == 1);

    let any = Edge::new("proxy_trust_any = true", "")?;
    any.serves(&v1("203.0.113.1:1001")?, "203.0.113.1:1001")
}

#[test]
fn rules_and_limits_are_for_the_client() -> Result<()> {
    let edge = Edge::trusting_loopback(
        "[firewall]\nblocked_ips = [\"203.0.113.9\", \"127.6.6.6\"]\nrate_limit = 2\nrate_window = \"1h\"\n",
    )?;
    edge.refuses(&[v1("203.0.113.9:1009")?, hello()].concat(), "blocked_address")?;
    let line = edge.line(&["client=203.0.113.9:1009 "])?;
    ensure!(line.contains("peer=127.0.0.1:"), "{line}");

    // A blocked peer brings nobody, as with the kernel's rules.
    let end = ask_from([127, 6, 6, 6].into(), edge.addr, &[v1("203.0.113.1:1001")?, hello()].concat())?;
    ensure!(end == End::Reset(Vec::new()), "{end:?}");
    edge.line(&["client=127.6.6.6:", "reason=blocked_address"])?;

    for client in ["203.0.113.1", "203.0.113.2", "203.0.113.3"] {
        edge.serves(&v1(&format!("{client}:1"))?, &format!("{client}:1"))?;
        edge.serves(&v1(&format!("{client}:2"))?, &format!("{client}:2"))?;
    }
    edge.refuses(&[v1("203.0.113.2:3")?, hello()].concat(), "rate_limited")?;
    // The proxy's own connections are not a client's.
    for _ in 0..4 {
        ensure!(ask(edge.addr, &[b"PROXY UNKNOWN\r\n".as_slice(), &hello()].concat())? == served());
    }
    Ok(())
}

#[test]
fn bans_are_for_the_client() -> Result<()> {
    let bans = "[firewall.auto_ban]\nafter = 2\nwithin = \"1h\"\nttl = \"1h\"\n";
    let edge = Edge::trusting_loopback(bans)?;
    // What the peer does itself, and what it may say of itself, is not held against it.
    for head in [b"PROXY UNKNOWN\r\n".to_vec(), v1("127.0.0.1:5")?, v1("127.8.8.8:5")?] {
        for _ in 0..4 {
            edge.refuses(&[&head, b"GET / HTTP/1.1\r\n\r\n".as_slice()].concat(), "not_tls")?;
        }
    }
    for _ in 0..4 {
        edge.refuses(b"GET / HTTP/1.1\r\n\r\n", "proxy_missing")?;
    }
    for port in 1..=2 {
        edge.refuses(&[v1(&format!("203.0.113.1:{port}"))?, b"GET /".to_vec()].concat(), "not_tls")?;
    }
    let line = edge.daemon.log().wait_for(&["msg=\"banned\""], SOON)?;
    ensure!(line.contains("source=203.0.113.1/32"), "{line}");
    edge.refuses(&[v1("203.0.113.1:3")?, hello()].concat(), "banned")?;
    edge.serves(&v1("203.0.113.2:1")?, "203.0.113.2:1")?;
    ensure!(edge.daemon.log().matching(&["msg=\"banned\""]).len() == 1);

    // A header that anybody may have written bans nobody.
    let any = Edge::new("proxy_trust_any = true", bans)?;
    for port in 1..=6 {
        any.refuses(&[v1(&format!("203.0.113.1:{port}"))?, b"GET /".to_vec()].concat(), "not_tls")?;
    }
    any.serves(&v1("203.0.113.1:7")?, "203.0.113.1:7")
}

/// Nothing of the client is needed, and what is there already is not lost.
#[test]
fn a_server_that_speaks_first() -> Result<()> {
    let backend = Backend::start(|mut stream| {
        stream.write_all(b"220 hi\r\n")?;
        echo(stream)
    })?;
    let addr = loopback();
    let installation = Installation::new(&format!(
        "[[listeners]]\naddr = \"{addr}\"\nprotocol = \"tcp\"\nproxy_protocol = true\nproxy_trusted = [\"127.0.0.0/8\"]
         [listeners.default]\nbackend = \"{}\"\n",
        backend.addr()
    ))?;
    let daemon = installation.start()?;
    for early in [b"".as_slice(), b"EHLO x\r\n", &[7; 9_000]] {
        let mut stream = connect(addr)?;
        stream.write_all(&[&v2("203.0.113.1:25")?, early].concat())?;
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting)?;
        ensure!(&greeting == b"220 hi\r\n");
        let mut back = vec![0; early.len()];
        stream.read_exact(&mut back)?;
        ensure!(back == early);
        ensure!(exchange(&mut stream, b"NOOP\r\n")? == b"NOOP\r\n");
        stream.shutdown(std::net::Shutdown::Write)?;
        ensure!(end_of(&mut stream)? == End::Closed(Vec::new()));
    }
    daemon.log().wait_for(&["client=203.0.113.1:25 ", "reason=closed"], SOON)?;
    daemon.stop()
}

/// What a backend gets of the routes that send a header, from a client and by way of another proxy.
#[test]
fn what_is_sent() -> Result<()> {
    let (backend, received) = Backend::named("app")?;
    let [direct, behind] = [loopback(), loopback()];
    let routes = format!(
        "[[listeners.routes]]\nhostname = \"one.example.com\"\nbackend = \"{0}\"\nsend_proxy_protocol = true
         proxy_protocol_version = \"v1\"
         [[listeners.routes]]\nhostname = \"two.example.com\"\nbackend = \"{0}\"\nsend_proxy_protocol = true\n",
        backend.addr()
    );
    let installation = Installation::new(&format!(
        "[[listeners]]\naddr = \"{direct}\"\n{routes}
         [[listeners]]\naddr = \"{behind}\"\nproxy_protocol = true\nproxy_trusted = [\"127.0.0.0/8\"]\n{routes}"
    ))?;
    let daemon = installation.start()?;
    let sent_offering = |name: &str, alpn: &[&str], wire: &[u8], to: SocketAddr| -> Result<(Header, SocketAddr)> {
        let hello = Hello::to(name).offering(alpn).bytes();
        let mut stream = connect(to)?;
        let local = stream.local_addr()?;
        stream.write_all(&[wire, &hello].concat())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        ensure!(end_of(&mut stream)? == served());
        let bytes = received.all().pop().context("the backend has got nothing")?;
        let Progress::Complete { header, consumed } = parse(&bytes) else { anyhow::bail!("{bytes:?}") };
        ensure!(bytes[consumed..] == hello, "behind the header");
        Ok((header, local))
    };
    let sent = |name: &str, wire: &[u8], to: SocketAddr| sent_offering(name, &[], wire, to);

    let (header, client) = sent("one.example.com", b"", direct)?;
    ensure!(header == Header::forwarded(client, direct), "{header:?}");
    let (header, client) = sent("two.example.com", b"", direct)?;
    ensure!(header.endpoints == Header::forwarded(client, direct).endpoints, "{header:?}");
    ensure!(header.tlvs.authority.as_deref() == Some("two.example.com"));
    let id = String::from_utf8(header.tlvs.unique_id.context("no id")?.into_vec())?;
    ensure!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    daemon.log().wait_for(&[&format!("client={client} "), &format!("id={id} ")], SOON)?;
    ensure!(header.tlvs.alpn.is_none(), "nothing is offered");
    let alpn = |offer: &[&str], wire: &[u8], to| -> Result<Option<Box<[u8]>>> {
        Ok(sent_offering("two.example.com", offer, wire, to)?.0.tlvs.alpn)
    };
    ensure!(alpn(&["h2"], b"", direct)?.as_deref() == Some(b"h2".as_slice()));
    ensure!(alpn(&["h2", "http/1.1"], b"", direct)?.is_none(), "which of them is used is the backend's choice");
    let tlvs = Tlvs { alpn: Some(b"http/1.1".as_slice().into()), ..Tlvs::default() };
    let told = write_v2(&Header { tlvs, ..from("203.0.113.1:1001")? })?;
    ensure!(alpn(&["h2", "http/1.1"], &told, behind)?.as_deref() == Some(b"http/1.1".as_slice()), "what was told");

    let tlvs = Tlvs {
        unique_id: Some(b"from-afar".as_slice().into()),
        authority: Some("other.example.com".into()),
        ..Tlvs::default()
    };
    let head = Header { tlvs, ..from("203.0.113.1:1001")? };
    let (header, _) = sent("two.example.com", &write_v2(&head)?, behind)?;
    ensure!(header.endpoints == head.endpoints, "the destination is the client's too: {header:?}");
    ensure!(header.tlvs.unique_id.as_deref() == Some(b"from-afar".as_slice()));
    ensure!(header.tlvs.authority.as_deref() == Some("two.example.com"), "what was read here, not what was told");
    let (header, _) = sent("one.example.com", &v1("[2001:db8::1]:1001")?, behind)?;
    ensure!(header.endpoints == from("[2001:db8::1]:1001")?.endpoints, "{header:?}");
    let (header, peer) = sent("one.example.com", b"PROXY UNKNOWN\r\n", behind)?;
    ensure!(header == Header::forwarded(peer, behind), "{header:?}");
    daemon.stop()
}

/// A hello that fills the time it may take is not waited for twice.
#[test]
fn a_header_alone_holds_its_place_no_longer() -> Result<()> {
    let edge = Edge::trusting_loopback("[proxy]\nhandshake_timeout = \"1s\"\n")?;
    let begin = std::time::Instant::now();
    edge.refuses(&v2("203.0.113.1:1001")?, "handshake_timeout")?;
    ensure!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    Ok(())
}
