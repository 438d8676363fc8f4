//! What the backend sees of a request's fields, and the client of a response's; whose word about the client counts; and
//! whether host and handshake agree.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use mc_proxy_tests::{
    client::connect,
    http::{Edge, Ended, HOST, Origin, Plan, Request, get, ok},
};

/// What clients make up about themselves.
const LIES: &str = "X-Forwarded-For: 203.0.113.1\r\nX-Forwarded-For: 203.0.113.2\r\nX-Forwarded-Proto: http\r\n\
                    X-Forwarded-Host: evil.example\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Anything: x\r\n\
                    X-Real-IP: 203.0.113.3\r\nForwarded: for=203.0.113.4\r\nX-Request-Id: mine\r\n\
                    CF-Connecting-IP: 203.0.113.5\r\nTrue-Client-IP: 203.0.113.6\r\nX-Original-URL: /admin\r\n\
                    X-Rewrite-Url: /admin\r\nX-Client-Cert: x\r\nSsl-Client-Verify: SUCCESS\r\n";

fn with(fields: &str) -> String {
    get("/").replace("\r\n\r\n", &format!("\r\n{fields}\r\n"))
}

/// The fields of a request without those that are written here.
fn own(request: &Request) -> Vec<(String, String)> {
    let written =
        ["host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "forwarded", "x-request-id"];
    let fields = request.fields.0.iter().filter(|(name, _)| !written.contains(&name.as_str()));
    fields.cloned().collect()
}

#[test]
fn what_the_backend_is_told_of_the_client() -> Result<()> {
    let origin = Origin::telling()?;
    let edge = Edge::to(origin.addr(), "")?;
    let source = IpAddr::from([127, 7, 7, 7]);
    for request in [get("/"), with(LIES)] {
        let mut client = edge.client_from(source)?;
        client.ask(request.replace(HOST, "APP.Example.com:8443"))?.expect(200)?;
        let port = client.local().port();
        let seen = origin.last()?;
        ensure!(seen.field("x-forwarded-for") == Some("127.7.7.7"), "{seen:?}");
        ensure!(seen.field("x-real-ip") == Some("127.7.7.7") && seen.field("x-forwarded-proto") == Some("https"));
        ensure!(seen.field("x-forwarded-host") == Some("app.example.com:8443"), "{seen:?}");
        ensure!(seen.field("host") == Some("APP.Example.com:8443"), "as the client has spelled it: {seen:?}");
        let forwarded = format!("for=\"127.7.7.7:{port}\";host=\"app.example.com:8443\";proto=https");
        ensure!(seen.field("forwarded") == Some(&forwarded), "{seen:?}");
        let id = seen.field("x-request-id").unwrap_or_default();
        ensure!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{seen:?}");
        ensure!(own(&seen).is_empty(), "{seen:?}");
    }
    let ids = origin.requests().into_iter().map(|request| request.field("x-request-id").map(str::to_owned));
    let [first, second] = ids.collect::<Vec<_>>().try_into().map_err(|_| anyhow::anyhow!("not two requests"))?;
    ensure!(first != second);
    Ok(())
}

#[test]
fn what_a_trusted_peer_says_is_kept() -> Result<()> {
    let origin = Origin::telling()?;
    let edge = Edge::to(origin.addr(), "trusted_proxies = [\"127.5.0.0/16\"]")?;
    let trusted = IpAddr::from([127, 5, 0, 1]);
    let mut client = edge.client_from(trusted)?;
    client.ask(with(LIES))?.expect(200)?;
    let seen = origin.last()?;
    ensure!(seen.field("x-forwarded-for") == Some("203.0.113.1, 203.0.113.2, 127.5.0.1"), "{seen:?}");
    let port = client.local().port();
    let forwarded = format!("for=203.0.113.4, for=\"127.5.0.1:{port}\";host=\"{HOST}\";proto=https");
    ensure!(seen.field("forwarded") == Some(&forwarded), "{seen:?}");
    for (name, value) in [
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "evil.example"),
        ("x-real-ip", "203.0.113.3"),
        ("x-request-id", "mine"),
        ("x-forwarded-port", "1"),
        ("cf-connecting-ip", "203.0.113.5"),
    ] {
        ensure!(seen.field(name) == Some(value), "{name}: {seen:?}");
    }
    // Nonsense is replaced, also from there.
    client
        .ask(with("X-Real-IP: nobody\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: a b\r\nX-Request-Id: \r\n"))?;
    let seen = origin.last()?;
    ensure!(
        seen.field("x-real-ip") == Some("127.5.0.1") && seen.field("x-forwarded-proto") == Some("https"),
        "{seen:?}"
    );
    ensure!(
        seen.field("x-forwarded-host") == Some(HOST) && seen.field("x-request-id").is_some_and(|id| id.len() == 32)
    );

    let mut client = edge.client_from([127, 6, 0, 1].into())?;
    client.ask(with(LIES))?.expect(200)?;
    ensure!(origin.last()?.field("x-forwarded-for") == Some("127.6.0.1"), "not of everybody: {:?}", origin.last()?);
    Ok(())
}

#[test]
fn fields_of_requests() -> Result<()> {
    let origin = Origin::telling()?;
    let edge = Edge::to(origin.addr(), "")?;
    let mut client = edge.client()?;
    client
        .ask(with(
            "Connection: keep-alive, X-Gone, Authorization, X-Request-Id\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nTE: gzip\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABk\r\nProxy: http://evil.example\r\nX_Real_IP: 203.0.113.1\r\nX_Own: 1\r\n\
         X.Real.IP: 203.0.113.1\r\n\
         Authorization: Bearer x\r\nCookie: a=b\r\nCookie: c=d\r\nVia: 1.0 x\r\nServer: y\r\nMax-Forwards: 3\r\n\
         Traceparent: 00-1-2-01\r\nAccept: a/b,\t c/d\r\nX-Empty:\r\nX.Own: 2\r\nUser-Agent: \u{e9}t\u{e9}\r\n",
        ))?
        .expect(200)?;
    let expected = [
        ("authorization", "Bearer x"),
        ("cookie", "a=b"),
        ("cookie", "c=d"),
        ("via", "1.0 x"),
        ("server", "y"),
        ("max-forwards", "3"),
        ("traceparent", "00-1-2-01"),
        ("accept", "a/b,\t c/d"),
        ("x-empty", ""),
        ("x.own", "2"),
        ("user-agent", "\u{e9}t\u{e9}"),
    ];
    let mut expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut seen = own(&origin.last()?);
    expected.sort();
    seen.sort();
    ensure!(seen == expected, "{seen:#?}");
    Ok(())
}

#[test]
fn fields_of_responses() -> Result<()> {
    let origin = Origin::answering(|_| {
        let fields = "Connection: X-Gone, Set-Cookie\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\n\
                      Upgrade: h2c\r\nAlt-Svc: h3=\":443\"\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nServer: mine\r\n\
                      Via: 1.1 inner\r\nX_Own: 1\r\nX-Forwarded-For: 1\r\nStrict-Transport-Security: max-age=1";
        format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: 0\r\n\r\n").into_bytes()
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let response = edge.ask(get("/"))?.expect(200)?;
    let mut names = response.fields.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
    names.sort_unstable();
    let expected = [
        "content-length",
        "date",
        "server",
        "set-cookie",
        "set-cookie",
        "strict-transport-security",
        "via",
        "x-forwarded-for",
        "x_own",
    ];
    ensure!(names == expected, "{response:?}");
    ensure!(response.fields.all("set-cookie") == ["a=b", "c=d"] && response.field("server") == Some("mine"));
    Ok(())
}

#[test]
fn a_host_that_the_connection_was_not_made_for() -> Result<()> {
    let (app, other) = (Origin::answering(|_| ok("app"))?, Origin::answering(|_| ok("other"))?);
    let edge = Plan::to(app.addr())?.route("other.example.com", &[other.addr()], "").start()?;
    let mut client = edge.client()?;
    let asked = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    for host in ["other.example.com", "x.app.example.com", "example.com", "127.0.0.1", "[::1]", "other.example.com:443"]
    {
        let response = client.ask(asked(host))?.expect(421)?;
        ensure!(response.field("connection").is_none(), "the connection is good for its own: {response:?}");
        ensure!(response.text().starts_with("421 Misdirected Request\n"), "{response:?}");
    }
    for host in ["app.example.com", "APP.EXAMPLE.COM.", "app.example.com:1"] {
        ensure!(client.ask(asked(host))?.expect(200)?.text() == "app", "{host}");
    }
    ensure!(edge.client_of("other.example.com")?.ask(asked("other.example.com"))?.text() == "other");
    ensure!(app.requests().len() == 3 && other.requests().len() == 1);
    Ok(())
}

#[test]
fn without_a_name_in_the_handshake() -> Result<()> {
    let (app, rest) = (Origin::answering(|_| ok("app"))?, Origin::answering(|_| ok("rest"))?);
    let edge = Plan::to(app.addr())?.default_route(&[rest.addr()], "").start()?;
    let mut client = edge.client_without_name()?;
    for host in [HOST, "anything.example", "192.0.2.1:443"] {
        let response = client.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"))?.expect(200)?;
        ensure!(response.text() == "rest", "its route is the default, whatever it then says: {host}");
        ensure!(rest.last()?.field("host") == Some(host));
    }
    let response = client.ask("GET / HTTP/1.0\r\n\r\n")?;
    ensure!(response.status == 400 && client.end()? == Ended::Closed, "nobody knows whom it is for: {response:?}");
    ensure!(app.accepts() == 0);

    let none = Edge::to(app.addr(), "")?;
    ensure!(none.client_without_name().is_err(), "there is no default route");
    let mut plain = connect(none.addr)?;
    std::io::Write::write_all(&mut plain, get("/").as_bytes())?;
    none.logs(&["reason=not_tls"])?;
    Ok(())
}
