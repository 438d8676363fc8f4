//! The daemon's own responses: in the form that was asked for, traceable, and silent about what is behind.

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    config::loopback,
    http::{Edge, Framing, HOST, Origin, Plan, Response, get},
};

fn with(lines: &str) -> String {
    get("/").replace("\r\n\r\n", &format!("\r\n{lines}\r\n"))
}

/// A daemon whose routes cannot be served: nobody there, nobody who answers, and one that refuses.
struct Site {
    edge: Edge,
    silent: Origin,
}

impl Site {
    fn new() -> Result<Self> {
        let silent = Origin::new(|conn| {
            conn.request()?;
            conn.rest().map(drop)
        })?;
        let policy = "[[listeners.routes.l7_policies]]\ntype = \"require_header\"\nvalue = \"X-Key\"";
        let edge = Plan::new()?
            .http("response_timeout = \"1s\"\nmax_body_bytes = 10")
            .route(HOST, &[loopback()], "")
            .route("silent.example.com", &[silent.addr()], "")
            .route("policy.example.com", &[silent.addr()], policy)
            .start()?;
        Ok(Self { edge, silent })
    }

    /// Asks for a route.
    fn ask(&self, host: &str, request: &str) -> Result<Response> {
        self.edge.client_of(host)?.ask(request.replace(HOST, host))
    }
}

/// The route and the status of each error that needs no broken request.
const ERRORS: [(&str, u16, &str, &str); 3] = [
    (HOST, 502, "Bad Gateway", "14"),
    ("silent.example.com", 504, "Gateway Timeout", "4"),
    ("policy.example.com", 403, "Forbidden", "7"),
];

fn no_secrets(response: &Response) -> Result<()> {
    let all = format!("{:?} {}", response.fields, response.text());
    for secret in ["127.", "localhost", "backend", "mc-proxy", "refused", "Server"] {
        ensure!(!all.contains(secret), "{secret:?} in {all}");
    }
    ensure!(response.field("cache-control") == Some("no-store"), "{all}");
    Ok(())
}

#[test]
fn text() -> Result<()> {
    let site = Site::new()?;
    for (host, status, reason, _) in ERRORS {
        for request in [get("/"), with("Accept: text/html, */*;q=0.8\r\n"), with("X-Request-Id: mine\r\n")] {
            let response = site.ask(host, &request)?.expect(status)?;
            no_secrets(&response)?;
            ensure!(response.field("content-type") == Some("text/plain; charset=utf-8"), "{response:?}");
            let id = response.field("x-request-id");
            if status == 403 {
                ensure!(response.text() == format!("{status} {reason}\n"), "{response:?}");
                continue;
            }
            let id = id.context("no id")?;
            ensure!(
                id.len() == 32 && response.text() == format!("{status} {reason}\nrequest id: {id}\n"),
                "{response:?}"
            );
            if status == 504 {
                ensure!(site.silent.last()?.field("x-request-id") == Some(id), "the backend knows it by another name");
            }
        }
    }
    Ok(())
}

#[test]
fn json() -> Result<()> {
    let site = Site::new()?;
    for (host, status, reason, _) in ERRORS {
        let response = site.ask(host, &with("Accept: application/json\r\n"))?.expect(status)?;
        no_secrets(&response)?;
        ensure!(response.field("content-type") == Some("application/json"), "{response:?}");
        let value = serde_json::from_slice::<serde_json::Value>(&response.body)?;
        let expected = serde_json::json!({
            "status": status, "error": reason, "request_id": response.field("x-request-id")
        });
        ensure!(value == expected, "{value}");
    }
    Ok(())
}

#[test]
fn head() -> Result<()> {
    let site = Site::new()?;
    let mut client = site.edge.client()?;
    for _ in 0..2 {
        let response = client.ask(get("/").replace("GET", "HEAD"))?.expect(502)?;
        ensure!(response.framing == Framing::None && response.field("content-length").is_some(), "{response:?}");
    }
    client.ask(get("/"))?.expect(502)?;
    Ok(())
}

/// gRPC has its own status, in a response that ends.
#[test]
fn grpc() -> Result<()> {
    let site = Site::new()?;
    for (host, _, reason, code) in ERRORS {
        let mut client = site.edge.client_of(host)?;
        for kind in ["application/grpc-web+proto", "application/grpc-web-text"] {
            let fields = format!("Content-Type: {kind}\r\nContent-Length: 0\r\n");
            let request = with(&fields).replace("GET", "POST").replace(HOST, host);
            let response = client.ask(&request)?.expect(200)?;
            no_secrets(&response)?;
            ensure!(response.field("grpc-status") == Some(code), "{response:?}");
            ensure!(response.field("grpc-message") == Some(reason) && response.body.is_empty(), "{response:?}");
            ensure!(response.field("content-type").is_some_and(|value| kind.starts_with(value)), "{response:?}");
        }
    }
    let request = with("Content-Type: application/grpc\r\nContent-Length: 0\r\n").replace("GET", "POST");
    let response = site.ask("policy.example.com", &request)?.expect(200)?;
    ensure!(response.field("grpc-status") == Some("7") && response.framing == Framing::Length(0), "{response:?}");
    Ok(())
}

/// After most errors the connection goes on; after those that leave a doubt about where the next request begins it does not.
#[test]
fn connections_after_errors() -> Result<()> {
    let site = Site::new()?;
    let mut client = site.edge.client()?;
    for _ in 0..5 {
        let response = client.ask(get("/"))?.expect(502)?;
        ensure!(response.field("connection").is_none());
    }
    let long = with("Content-Length: 11\r\n").replace("GET", "POST");
    let response = client.ask(long)?.expect(413)?;
    ensure!(response.field("connection") == Some("close"), "{response:?}");
    client.end()?;
    // A body that nobody has read is none either.
    let mut client = site.edge.client()?;
    client.send(with("Content-Length: 2\r\n").replace("GET", "POST"))?;
    let response = client.response()?.expect(502)?;
    ensure!(response.field("connection") == Some("close"), "{response:?}");
    client.send("hi")?;
    client.end()?;
    Ok(())
}
