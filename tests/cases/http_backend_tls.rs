//! TLS towards backends: who they are is verified, and by what.

use anyhow::{Result, ensure};
use mc_proxy_tests::{
    backend::{Backend, echo},
    http::{Edge, Ended, HOST, Origin, Plan, get, ok},
    tls::Authority,
};

/// A backend whose certificate of `authority` is for `names`; it tells the name that it was asked for.
fn origin(authority: &Authority, names: &[&str]) -> Result<Origin> {
    Origin::tls(authority.issue(names)?.server_config()?, |conn| {
        while conn.request()?.is_some() {
            let name = conn.server_name().unwrap_or_else(|| "(none)".to_owned());
            conn.send(ok(name))?;
        }
        Ok(())
    })
}

/// A daemon whose route has `backend_tls`, and these lines.
fn edge(plan: Plan, origin: &Origin, lines: &str) -> Result<Edge> {
    plan.route(HOST, &[origin.addr()], &format!("backend_tls = true\n{lines}")).start()
}

/// The line that trusts the certificates of a plan's authority, which has signed the daemon's own too.
fn trusting(plan: &Plan) -> String {
    format!("backend_ca = \"{}\"", plan.file("ca.crt").display())
}

#[test]
fn a_backend_that_is_who_it_should_be() -> Result<()> {
    let plan = Plan::new()?;
    let origin = origin(plan.authority(), &["app.internal"])?;
    let lines = format!("{}\nbackend_server_name = \"app.internal\"", trusting(&plan));
    let edge = edge(plan, &origin, &lines)?;
    let mut client = edge.client()?;
    for _ in 0..5 {
        ensure!(client.ask(get("/"))?.expect(200)?.text() == "app.internal", "it is asked for by its name");
    }
    let body = "x".repeat(200_000);
    let post = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    client.ask(post)?.expect(200)?;
    ensure!(origin.last()?.body == body.as_bytes() && origin.accepts() == 1, "and kept");
    ensure!(origin.last()?.field("x-forwarded-proto") == Some("https"));
    Ok(())
}

/// Without a name of its own the backend has the route's; where that is none, the client's; and at last its host.
#[test]
fn the_name_that_a_backend_has() -> Result<()> {
    let plan = Plan::new()?;
    let origin = origin(plan.authority(), &["*.example.com", "127.0.0.1"])?;
    let lines = format!("backend_tls = true\n{}", trusting(&plan));
    let edge = plan
        .route(HOST, &[origin.addr()], &lines)
        .route("*.example.com", &[origin.addr()], &lines)
        .default_route(&[origin.addr()], &lines)
        .start()?;
    for name in [HOST, "one.example.com", "two.example.com"] {
        let mut client = edge.client_of(name)?;
        for _ in 0..2 {
            ensure!(client.ask(get("/").replace(HOST, name))?.expect(200)?.text() == name);
        }
    }
    ensure!(origin.accepts() == 3, "none is used for two names: {}", origin.accepts());
    ensure!(edge.client_without_name()?.ask(get("/"))?.expect(200)?.text() == "(none)", "an address is no SNI");
    Ok(())
}

/// A 502, without a word about why, and the request is not sent.
fn is_refused(edge: &Edge, origin: &Origin, reason: &str) -> Result<()> {
    let mut client = edge.client()?;
    for _ in 0..2 {
        let response = client.ask(get("/"))?.expect(502)?;
        ensure!(response.text().starts_with("502 Bad Gateway\nrequest id: "), "{response:?}");
        ensure!(!response.text().to_lowercase().contains("cert"), "{response:?}");
    }
    ensure!(origin.requests().is_empty(), "the request was sent all the same");
    edge.logs(&["level=WARN", "dial failed", "the TLS handshake failed", reason])?;
    Ok(())
}

#[test]
fn a_backend_of_another_name() -> Result<()> {
    for (names, name) in [(&["other.internal"], "backend_server_name = \"app.internal\""), (&["app.internal"], "")] {
        let plan = Plan::new()?;
        let origin = origin(plan.authority(), names)?;
        let lines = format!("{}\n{name}", trusting(&plan));
        is_refused(&edge(plan, &origin, &lines)?, &origin, "certificate")?;
    }
    Ok(())
}

#[test]
fn a_backend_of_another_authority() -> Result<()> {
    let stranger = Authority::new()?;
    let plan = Plan::new()?;
    let origin = origin(&stranger, &["app.internal"])?;
    let lines = format!("{}\nbackend_server_name = \"app.internal\"", trusting(&plan));
    is_refused(&edge(plan, &origin, &lines)?, &origin, "certificate")?;
    // The system's roots do not know it either.
    is_refused(&edge(Plan::new()?, &origin, "backend_server_name = \"app.internal\"")?, &origin, "")?;
    Ok(())
}

#[test]
fn whoever_it_is() -> Result<()> {
    let stranger = Authority::new()?;
    let origin = origin(&stranger, &["whoever.example"])?;
    let edge = edge(Plan::new()?, &origin, "backend_insecure = true")?;
    edge.ask(get("/"))?.expect(200)?;
    Ok(())
}

#[test]
fn a_backend_without_tls() -> Result<()> {
    let plain = Origin::new(|conn| {
        conn.exactly(1)?;
        conn.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    })?;
    is_refused(&edge(Plan::new()?, &plain, "backend_insecure = true")?, &plain, "")?;
    let echo = Backend::start(echo)?;
    let edge = Plan::new()?.route(HOST, &[echo.addr()], "backend_tls = true\nbackend_insecure = true").start()?;
    edge.ask(get("/"))?.expect(502)?;
    // And the other way round.
    let authority = Authority::new()?;
    let tls = origin(&authority, &["app.internal"])?;
    let edge = Edge::to(tls.addr(), "")?;
    edge.ask(get("/"))?.expect(502)?;
    Ok(())
}

/// Without `close_notify` somebody may have cut a response short that ends with the connection.
#[test]
fn a_response_that_was_cut_off() -> Result<()> {
    let authority = Authority::new()?;
    let origin = Origin::tls(authority.issue(&["x"])?.server_config()?, |conn| {
        let Some(request) = conn.request()? else { return Ok(()) };
        conn.send("HTTP/1.1 200 OK\r\n\r\nhello")?;
        if request.line.contains("/cut") {
            conn.socket().shutdown(std::net::Shutdown::Write)?;
        }
        Ok(())
    })?;
    let edge = edge(Plan::new()?, &origin, "backend_insecure = true")?;
    ensure!(edge.ask(get("/whole"))?.expect(200)?.text() == "hello");
    let mut client = edge.client()?;
    client.send(get("/cut"))?;
    let (ended, bytes) = client.rest()?;
    ensure!(
        ended == Ended::Reset && !bytes.ends_with(b"0\r\n\r\n"),
        "{ended:?}: {:?}",
        String::from_utf8_lossy(&bytes)
    );
    Ok(())
}
