//! Routes of both modes on one listener, and daemons behind one another.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixListener,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use mc_proxy_tests::{
    client::connect_from,
    http::{Client, Edge, Ended, HOST, Origin, Plan, Reader, get, ok},
    tls::Authority,
    wait::{SOON, pass, until},
};

#[test]
fn both_modes_on_one_listener() -> Result<()> {
    let behind = Authority::new()?;
    let tls = behind.backend("tls", &["raw.example.com", "other.example.com"])?;
    let origin = Origin::telling()?;
    let edge = Plan::to(origin.addr())?
        .route("*.web.example.com", &[origin.addr()], "")
        .routes(&format!(
            "[[listeners.routes]]\nhostname = \"raw.example.com\"\nbackend = \"{0}\"
             [listeners.default]\nbackend = \"{0}\"",
            tls.addr()
        ))
        .start()?;
    for _ in 0..3 {
        let mut client = edge.client()?;
        client.ask(get("/"))?.expect(200)?;
        client.finish()?;
        ensure!(client.end()? == Ended::Closed);
        for name in ["raw.example.com", "other.example.com"] {
            let mut client = behind.client(edge.addr, name)?;
            ensure!(client.answered_by() == "tls", "{name}");
            client.echo("through")?;
            client.close()?;
        }
        // The certificate of a route that terminates TLS is not shown for one that does not.
        ensure!(edge.client_of("raw.example.com").is_err());
    }
    edge.logs(&["connection closed", "sni=raw.example.com", "reason=closed"])?;
    edge.logs(&["connection closed", "sni=app.example.com", "reason=closed"])?;
    let status = edge.installation.admin()?.status()?;
    ensure!(status.client_bytes > 0 && status.backend_bytes > 0, "{status:?}");
    Ok(())
}

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 9, 9, 9));

/// A daemon that terminates TLS behind another one, and what is in front of it.
struct Chain {
    app: Origin,
    inner: Edge,
    outer: Edge,
    /// Whether the one in front terminates TLS, too.
    is_l7: bool,
}

impl Chain {
    fn new(is_l7: bool) -> Result<Self> {
        let app = Origin::telling()?;
        let inner =
            Plan::to(app.addr())?.listener("proxy_protocol = true\nproxy_trusted = [\"127.0.0.0/8\"]").start()?;
        let outer = Plan::new()?;
        let outer = if is_l7 {
            std::fs::write(outer.file("inner.crt"), inner.authority.pem())?;
            let lines = format!(
                "send_proxy_protocol = true\nbackend_tls = true\nbackend_server_name = \"{HOST}\"\nbackend_protocol = \"http1\"\nbackend_ca = \"{}\"",
                outer.file("inner.crt").display()
            );
            outer.route(HOST, &[inner.addr], &lines).start()?
        } else {
            let route = format!("hostname = \"{HOST}\"\nbackend = \"{}\"\nsend_proxy_protocol = true", inner.addr);
            outer.routes(&format!("[[listeners.routes]]\n{route}")).start()?
        };
        Ok(Self { app, inner, outer, is_l7 })
    }

    /// A client of the outer daemon; whose certificate it is depends on who terminates TLS.
    fn client(&self, source: IpAddr) -> Result<Client> {
        let authority = if self.is_l7 { &self.outer.authority } else { &self.inner.authority };
        Client::new(connect_from(source, self.outer.addr)?, authority.client_config()?, HOST)
    }
}

#[test]
fn the_origin_knows_the_client() -> Result<()> {
    for is_l7 in [false, true] {
        let chain = Chain::new(is_l7)?;
        let mut client = chain.client(CLIENT)?;
        for _ in 0..3 {
            client.ask(get("/"))?.expect(200)?;
        }
        let seen = chain.app.last()?;
        ensure!(seen.field("x-forwarded-for") == Some("127.9.9.9"), "{seen:?}");
        ensure!(seen.field("x-real-ip") == Some("127.9.9.9"), "{seen:?}");
        let forwarded = format!("for=\"{}\";host=\"{HOST}\";proto=https", client.local());
        ensure!(seen.field("forwarded") == Some(&forwarded), "with its port: {seen:?}");
        ensure!(chain.app.accepts() == 1, "the backend is told by fields, so its connections are anybody's");
        drop(client);
        let line = chain.inner.logs(&["connection closed", "client=127.9.9.9:"])?;
        ensure!(line.contains("peer=127."), "{line}");
    }
    Ok(())
}

#[test]
fn the_origin_refuses_the_client() -> Result<()> {
    for is_l7 in [false, true] {
        let chain = Chain::new(is_l7)?;
        chain.client(CLIENT)?.ask(get("/"))?.expect(200)?;
        chain.inner.installation.ctl(&["firewall", "add", "127.9.9.9", "--force"])?;
        let requests = chain.app.requests().len();
        if is_l7 {
            // The edge takes it; what the origin does to it is a backend's failure there.
            chain.client(CLIENT)?.ask(get("/"))?.expect(502)?;
        } else {
            ensure!(chain.client(CLIENT).is_err(), "a blocked client has shaken hands");
        }
        chain.inner.logs(&["reason=blocked_address", "client=127.9.9.9:"])?;
        ensure!(chain.app.requests().len() == requests, "its request has arrived");
        for other in [[127, 9, 9, 8], [127, 0, 0, 1]] {
            chain.client(other.into())?.ask(get("/"))?.expect(200)?;
        }
        chain.inner.installation.ctl(&["firewall", "remove", "127.9.9.9"])?;
        chain.client(CLIENT)?.ask(get("/"))?.expect(200)?;
    }
    Ok(())
}

/// What a client behind a trusted proxy has done is its own, and its ban too.
#[test]
fn bans_are_for_the_client() -> Result<()> {
    let app = Origin::telling()?;
    let inner = Plan::to(app.addr())?
        .listener("proxy_protocol = true\nproxy_trusted = [\"127.0.0.0/8\"]")
        .section("[firewall.auto_ban]\nafter = 3\nwithin = \"1h\"\nttl = \"1h\"")
        .start()?;
    let visit = |client: &str, request: &str| -> Result<u16> {
        let header =
            mc_proxy::proxy_header::Header::forwarded(client.parse()?, "198.51.100.2:443".parse::<SocketAddr>()?);
        let mut stream = mc_proxy_tests::client::connect(inner.addr)?;
        stream.write_all(&mc_proxy::proxy_header::write_v2(&header)?)?;
        let mut client = Client::new(stream, inner.authority.client_config()?, HOST)?;
        Ok(client.ask(request)?.status)
    };
    for port in 1..=3 {
        let bad = "GET / HTTP/1.1\r\nHost: app.example.com\r\nContent-Length: x\r\n\r\n";
        ensure!(visit(&format!("203.0.113.5:{port}"), bad)? == 400);
    }
    until("the ban", SOON, || Ok(visit("203.0.113.5:9", &get("/")).is_err()))?;
    ensure!(visit("203.0.113.6:1", &get("/")).context("another client")? == 200);
    inner.logs(&["msg=\"banned\"", "203.0.113.5/32"])?;
    Ok(())
}

#[test]
fn two_names_of_two_backends() -> Result<()> {
    let (one, two) = (Origin::answering(|_| ok("one"))?, Origin::answering(|_| ok("two"))?);
    let edge =
        Plan::new()?.route("one.example.com", &[one.addr()], "").route("*.example.com", &[two.addr()], "").start()?;
    for (name, text) in [("one.example.com", "one"), ("two.example.com", "two"), ("three.example.com", "two")] {
        let response = edge.client_of(name)?.ask(get("/").replace(HOST, name))?.expect(200)?;
        ensure!(response.text() == text, "{name}: {response:?}");
    }
    Ok(())
}

/// A backend behind a Unix socket.
#[test]
fn a_unix_socket() -> Result<()> {
    let plan = Plan::new()?;
    let path = plan.file("app.sock");
    let listener = UnixListener::bind(&path)?;
    let serving = thread::spawn(move || -> Result<usize> {
        let mut requests = 0;
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(SOON))?;
        let mut reader = Reader::new(stream);
        while let Some(head) = reader.head()? {
            ensure!(head.fields.get("x-forwarded-for") == Some("127.0.0.1"), "{head:?}");
            reader.stream().write_all(&ok(head.line))?;
            requests += 1;
        }
        Ok(requests)
    });
    let certificate =
        format!("tls_cert = \"{}\"\ntls_key = \"{}\"", plan.file("app.crt").display(), plan.file("app.key").display());
    let route = format!("hostname = \"{HOST}\"\nbackend = \"unix:{}\"\nmode = \"l7\"\n{certificate}", path.display());
    let edge = plan.routes(&format!("[[listeners.routes]]\n{route}")).start()?;
    for _ in 0..3 {
        ensure!(edge.ask(get("/"))?.expect(200)?.text() == "GET / HTTP/1.1");
        pass(Duration::from_millis(20));
    }
    edge.daemon.stop()?;
    let requests = serving.join().map_err(|_| anyhow!("the backend panicked"))??;
    ensure!(requests == 3, "by one connection: {requests}");
    Ok(())
}
