//! Connections to backends: used again, replaced when they have become stale, limited, and told apart when they fail.

use std::{
    net::{Shutdown, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    backend::Backend,
    config::loopback,
    http::{Edge, HOST, Origin, Plan, get, ok},
    wait::{SOON, pass, until},
};
use socket2::{Domain, Socket, Type};

fn request(method: &str, more: &str) -> String {
    format!("{method} / HTTP/1.1\r\nHost: {HOST}\r\n{more}")
}

#[test]
fn clients_share_connections() -> Result<()> {
    let origin = Origin::telling()?;
    let edge = Edge::to(origin.addr(), "")?;
    for number in 0..20 {
        let mut client = edge.client()?;
        client.ask(get(&format!("/{number}")))?.expect(200)?;
        client.ask(request("POST", "Content-Length: 2\r\n\r\nhi"))?.expect(200)?;
        // The response is out a little before the connection is back.
        pass(Duration::from_millis(10));
    }
    ensure!(origin.accepts() <= 3, "{} connections for 40 requests, one at a time", origin.accepts());
    ensure!(origin.requests().len() == 40);

    // As many as there are requests at a time, and no more.
    let edge = Edge::to(origin.addr(), "")?;
    let before = origin.accepts();
    thread::scope(|scope| {
        let clients = (0..4).map(|_| {
            scope.spawn(|| -> Result<()> {
                let mut client = edge.client()?;
                (0..50).try_for_each(|_| client.ask(get("/"))?.expect(200).map(drop))
            })
        });
        let clients = clients.collect::<Vec<_>>();
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })?;
    ensure!(origin.accepts() - before <= 8, "{} connections for 4 clients", origin.accepts() - before);
    Ok(())
}

#[test]
fn a_connection_that_the_backend_has_closed_is_replaced() -> Result<()> {
    // It closes each connection after its first response, without having said so.
    let closed = Arc::new(AtomicUsize::new(0));
    let origin = Origin::new({
        let closed = Arc::clone(&closed);
        move |conn| {
            conn.request()?;
            conn.send(ok(conn.number.to_string()))?;
            conn.socket().shutdown(Shutdown::Both)?;
            closed.fetch_add(1, SeqCst);
            Ok(())
        }
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    for number in 0..10 {
        let request = if number % 2 == 0 { get("/") } else { request("POST", "Content-Length: 2\r\n\r\nhi") };
        ensure!(client.ask(request)?.expect(200)?.text() == number.to_string());
        // The next request comes after that, and is not the one that is sent again.
        until("the end of the connection", SOON, || Ok(closed.load(SeqCst) == number + 1))?;
        pass(Duration::from_millis(20));
    }
    Ok(())
}

/// The backend closes just as the next request comes: what may be repeated is, and the rest is told.
#[test]
fn a_connection_that_is_closed_under_a_request() -> Result<()> {
    let is_reset = Arc::new(AtomicBool::new(false));
    let origin = Origin::new({
        let is_reset = Arc::clone(&is_reset);
        move |conn| {
            conn.request()?;
            conn.send(ok("first"))?;
            conn.head()?;
            if is_reset.load(SeqCst) { conn.reset() } else { Ok(()) }
        }
    })?;
    for reset in [false, true] {
        is_reset.store(reset, SeqCst);
        for (method, more, status) in [
            ("GET", "\r\n", 200),
            ("HEAD", "\r\n", 200),
            ("DELETE", "\r\n", 200),
            ("OPTIONS", "\r\n", 200),
            ("POST", "\r\n", 502),
            ("PATCH", "\r\n", 502),
            ("POST", "Content-Length: 2\r\n\r\nhi", 502),
            ("POST", "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", 502),
            // It might be repeated, but its content is gone.
            ("PUT", "Content-Length: 2\r\n\r\nhi", 502),
        ] {
            let edge = Edge::to(origin.addr(), "")?;
            let mut client = edge.client()?;
            client.ask(get("/"))?.expect(200)?;
            let before = origin.requests().len();
            let response = client.ask(request(method, more)).with_context(|| format!("{method}, {more:?}, {reset}"))?;
            let response = response.expect(status)?;
            let sent = origin.requests().len() - before;
            ensure!(sent == if status == 200 { 2 } else { 1 }, "{method} was sent {sent} times: {response:?}");
        }
    }
    Ok(())
}

/// A connection of its own that is closed at once is no stale one: nothing is repeated.
#[test]
fn a_backend_that_closes_at_once() -> Result<()> {
    let origin = Origin::new(|conn| conn.request().map(drop))?;
    let edge = Edge::to(origin.addr(), "")?;
    let response = edge.ask(get("/"))?.expect(502)?;
    ensure!(response.field("connection").is_none() && response.text().starts_with("502 Bad Gateway\n"), "{response:?}");
    ensure!(origin.requests().len() == 1, "{} times", origin.requests().len());
    edge.logs(&["dial failed", "the connection ended early"])?;
    Ok(())
}

/// What a backend sends where there is no content, at once or later, is nobody's response.
#[test]
fn content_where_there_is_none() -> Result<()> {
    const LATE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong";
    let origin = Origin::new(|conn| {
        while let Some(request) = conn.request()? {
            let head = match request.line.split(' ').nth(1) {
                Some("/length") => "HTTP/1.1 204 No Content\r\nContent-Length: 43\r\n\r\n",
                Some("/coding") => "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
                Some("/early") => {
                    "HTTP/1.1 103 Early Hints\r\nContent-Length: 43\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
                }
                Some("/304") => "HTTP/1.1 304 Not Modified\r\nContent-Length: 43\r\n\r\n",
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some("/0") => "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
                _ if request.line.starts_with("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 43\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright",
            };
            conn.send(head)?;
            if request.fields.get("x-late").is_some() {
                pass(Duration::from_millis(30));
                conn.send(LATE)?;
            }
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    // Whether there is something more to say, and whether the connection may be used again.
    for (method, path, is_late, is_used_again) in [
        ("GET", "/204", false, true),
        ("GET", "/0", false, true),
        ("GET", "/304", false, true),
        ("HEAD", "/", false, true),
        ("GET", "/length", false, false),
        ("GET", "/coding", false, false),
        ("GET", "/early", false, false),
        ("GET", "/204", true, false),
        ("GET", "/304", true, false),
        ("HEAD", "/", true, false),
    ] {
        let late = if is_late { "X-Late: 1\r\n" } else { "" };
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{late}\r\n"))?;
        while client.response_to(method)?.status < 200 {}
        let first = origin.last()?.connection;
        pass(Duration::from_millis(80));
        let response = client.ask(get("/right"))?.expect(200)?;
        ensure!(response.text() == "right", "{method} {path}, {is_late}: {response:?}");
        let is_same = origin.last()?.connection == first;
        ensure!(is_same == is_used_again, "{method} {path}, {is_late}: used again: {is_same}");
    }
    Ok(())
}

#[test]
fn unused_connections_are_closed() -> Result<()> {
    let ended = Arc::new(AtomicUsize::new(0));
    let origin = Origin::new({
        let ended = Arc::clone(&ended);
        move |conn| {
            conn.answer(|request| ok(&request.line))?;
            ended.fetch_add(1, SeqCst);
            Ok(())
        }
    })?;
    let edge = Edge::to(origin.addr(), "pool_idle_timeout = \"600ms\"")?;
    let mut client = edge.client()?;
    let begun = Instant::now();
    client.ask(get("/"))?.expect(200)?;
    until("the end of an unused connection", SOON, || Ok(ended.load(SeqCst) == 1))?;
    ensure!((500..4_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    client.ask(get("/"))?.expect(200)?;
    ensure!(origin.accepts() == 2);

    let edge = Edge::to(origin.addr(), "pool_max_idle = 0")?;
    let mut client = edge.client()?;
    for _ in 0..3 {
        client.ask(get("/"))?.expect(200)?;
    }
    ensure!(origin.accepts() == 5, "none is kept");
    until("the end of connections that are not kept", SOON, || Ok(ended.load(SeqCst) == 5))
}

#[test]
fn so_many_connections_and_no_more() -> Result<()> {
    let goes_on = Arc::new(AtomicBool::new(false));
    let origin = Origin::new({
        let goes_on = Arc::clone(&goes_on);
        move |conn| {
            while let Some(request) = conn.request()? {
                if request.line.contains("/slow") {
                    until("the word to go on", SOON, || Ok(goes_on.load(SeqCst)))?;
                }
                conn.send(ok(&request.line))?;
            }
            Ok(())
        }
    })?;
    let edge = Edge::to(origin.addr(), "max_backend_connections = 1")?;
    let mut slow = edge.client()?;
    slow.send(get("/slow"))?;
    origin.wait_for(1)?;
    let mut client = edge.client()?;
    let response = client.ask(get("/"))?.expect(503)?;
    ensure!(response.text().starts_with("503 Service Unavailable\nrequest id: "), "{response:?}");
    ensure!(response.field("x-request-id").is_some_and(|id| id.len() == 32), "{response:?}");
    goes_on.store(true, SeqCst);
    slow.response()?.expect(200)?;
    // The response is out a little before the connection is back.
    until("a free connection", SOON, || Ok(client.ask(get("/"))?.status == 200))?;
    ensure!(origin.accepts() == 1, "it is used again, also by another worker's client");
    Ok(())
}

#[test]
fn several_backends() -> Result<()> {
    // Of connections that are kept a backend would not be gone.
    let close = |name: &str| format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\n{name}");
    let serve = |name: &'static str| {
        Origin::new(move |conn| {
            conn.request()?;
            conn.send(close(name))
        })
    };
    let (one, two) = (serve("one")?, serve("two")?);
    let gone = loopback();
    let edge = Plan::new()?.route(HOST, &[one.addr(), gone, two.addr()], "").start()?;
    let mut client = edge.client()?;
    for _ in 0..12 {
        client.ask(get("/"))?.expect(200)?;
    }
    ensure!(one.requests().len() >= 3 && two.requests().len() >= 3, "each has its share");
    drop(one);
    for _ in 0..6 {
        ensure!(client.ask(get("/"))?.expect(200)?.text() == "two", "whoever is there answers");
    }
    drop(two);
    client.ask(get("/"))?.expect(502)?;
    Ok(())
}

/// Routes that are asked by turns have each of their backends, whatever the others are asked meanwhile.
#[test]
fn routes_have_their_own_turns() -> Result<()> {
    let backends = (0..4).map(|_| Origin::telling()).collect::<Result<Vec<_>>>()?;
    let addrs = backends.iter().map(Origin::addr).collect::<Vec<_>>();
    let other = "other.example.com";
    let edge = Plan::new()?.route(HOST, &addrs[..2], "").route(other, &addrs[2..], "").start()?;
    for turn in 1..10 {
        // Clients of any worker.
        edge.ask(get("/"))?.expect(200)?;
        edge.client_of(other)?.ask(format!("GET / HTTP/1.1\r\nHost: {other}\r\n\r\n"))?.expect(200)?;
        let counts = backends.iter().map(|backend| backend.requests().len()).collect::<Vec<_>>();
        let (first, second) = (turn - turn / 2, turn / 2);
        ensure!(counts == [first, second, first, second], "turn {turn}: {counts:?}");
    }
    Ok(())
}

#[test]
fn a_backend_that_is_down() -> Result<()> {
    let addr = loopback();
    let edge = Edge::to(addr, "")?;
    let mut client = edge.client()?;
    let begun = Instant::now();
    for _ in 0..3 {
        let response = client.ask(get("/"))?.expect(502)?;
        ensure!(
            !response.text().contains("127.") && !format!("{:?}", response.fields).contains("127."),
            "{response:?}"
        );
    }
    ensure!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    edge.logs(&["level=WARN", "dial failed", &addr.to_string(), "sni=app.example.com"])?;
    Ok(())
}

#[test]
fn a_backend_that_says_nothing() -> Result<()> {
    let origin = Origin::new(|conn| {
        let Some(request) = conn.request()? else { return Ok(()) };
        if request.line.contains("/part") {
            conn.send("HTTP/1.1 200 OK\r\nContent-")?;
        }
        conn.rest().map(drop)
    })?;
    let edge = Edge::to(origin.addr(), "response_timeout = \"600ms\"")?;
    let mut client = edge.client()?;
    for path in ["/", "/part"] {
        let begun = Instant::now();
        client.ask(get(path))?.expect(504)?;
        ensure!((500..4_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }
    client.ask(request("POST", "Content-Length: 2\r\n\r\nhi"))?.expect(504)?;
    ensure!(origin.accepts() == 3, "a connection that owes a response is not used again");
    Ok(())
}

/// A listening socket whose queue is full: it answers no SYN.
fn full() -> Result<(Socket, Vec<std::net::TcpStream>, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(0)?;
    let addr = socket.local_addr()?.as_socket().ok_or_else(|| anyhow::anyhow!("no address"))?;
    let mut waiting = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(300)) {
        waiting.push(stream);
        ensure!(waiting.len() < 10, "its queue has no end");
    }
    Ok((socket, waiting, addr))
}

#[test]
fn a_backend_that_does_not_accept() -> Result<()> {
    let (_socket, _waiting, addr) = full()?;
    let good = Origin::answering(|_| ok("good"))?;
    let edge = Plan::to(addr)?
        .route("both.example.com", &[addr, good.addr()], "")
        .section("[proxy]\nconnect_timeout = \"600ms\"")
        .start()?;
    let begun = Instant::now();
    edge.ask(get("/"))?.expect(504)?;
    ensure!((500..4_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    let mut client = edge.client_of("both.example.com")?;
    let response = client.ask("GET / HTTP/1.1\r\nHost: both.example.com\r\n\r\n")?.expect(200)?;
    ensure!(response.text() == "good");

    // One that accepts, and never shakes hands.
    let (silent, accepted) = Backend::handing_over()?;
    let edge = Plan::new()?
        .route(HOST, &[silent.addr()], "backend_tls = true\nbackend_insecure = true")
        .section("[proxy]\nconnect_timeout = \"600ms\"")
        .start()?;
    edge.ask(get("/"))?.expect(504)?;
    drop(accepted);
    Ok(())
}

/// A client that is gone is not waited for, and its backend is told so.
#[test]
fn a_client_that_gives_up() -> Result<()> {
    let ended = Arc::new(AtomicBool::new(false));
    let origin = Origin::new({
        let ended = Arc::clone(&ended);
        move |conn| {
            conn.request()?;
            // Whatever way it ends.
            let _ = conn.rest();
            ended.store(true, SeqCst);
            Ok(())
        }
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    client.send(get("/"))?;
    origin.wait_for(1)?;
    client.reset()?;
    until("the backend to be told", Duration::from_secs(5), || Ok(ended.load(SeqCst)))?;
    Ok(())
}

/// Routes and policies of others come and go; the connections stay.
#[test]
fn a_change_elsewhere_keeps_connections() -> Result<()> {
    let origin = Origin::telling()?;
    let edge = Edge::to(origin.addr(), "")?;
    let admin = edge.installation.admin()?;
    let mut client = edge.client()?;
    for number in 0..3 {
        client.ask(get("/"))?.expect(200)?;
        pass(Duration::from_millis(20));
        admin.add_route(&edge.addr.to_string(), &format!("r{number}.example.com"), "127.0.0.1:1")?;
    }
    ensure!(origin.accepts() == 1, "{} connections", origin.accepts());
    Ok(())
}
