//! Every request has exactly one record, which tells what became of it.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    config::loopback,
    http::{Edge, HOST, Origin, Plan, get, ok},
    wait::{SOON, until},
};
use serde_json::Value;

struct Site {
    origin: Origin,
    edge: Edge,
    path: PathBuf,
}

impl Site {
    fn new() -> Result<Self> {
        let origin = Origin::new(|conn| {
            while let Some(request) = conn.request()? {
                match request.line.split(' ').nth(1) {
                    Some("/silent") => return conn.rest().map(drop),
                    Some("/break-off") => return conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"),
                    Some("/big") => {
                        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20))?;
                        for _ in 0..64 {
                            conn.send(vec![0; 1 << 20])?;
                        }
                    }
                    Some("/ws") => {
                        conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: own\r\n\r\n")?;
                        conn.send("four")?;
                        return conn.rest().map(drop);
                    }
                    _ => conn.send(ok(&request.body))?,
                }
            }
            Ok(())
        })?;
        let plan = Plan::new()?;
        let path = plan.file("access.log");
        let policy = "[[listeners.routes.l7_policies]]\ntype = \"require_header\"\nvalue = \"X-Key\"";
        // `[log]` is there already; the keys go on in it.
        let edge = plan
            .section(&format!("access = \"{}\"", path.display()))
            .http("response_timeout = \"400ms\"\nbody_timeout = \"400ms\"\nwrite_timeout = \"400ms\"\nmax_body_bytes = 10")
            .route(HOST, &[origin.addr()], "")
            .route("down.example.com", &[loopback()], "")
            .route("policy.example.com", &[origin.addr()], policy)
            .start()?;
        Ok(Self { origin, edge, path })
    }

    fn records(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let lines = text.lines().filter(|_| text.ends_with('\n'));
        lines.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// The record of the request that has just been made, which is the `count`th.
    fn record(&self, count: usize) -> Result<Value> {
        until("a record", SOON, || Ok(self.records()?.len() >= count))?;
        let mut records = self.records()?;
        ensure!(records.len() == count, "{records:#?}");
        records.pop().context("no record")
    }
}

fn post(host: &str, lines: &str) -> String {
    format!("POST /post?q=1 HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n")
}

#[test]
fn what_became_of_each_request() -> Result<()> {
    let site = Site::new()?;
    let mut client = site.edge.client()?;
    client.ask(post(HOST, "Content-Length: 5\r\nUser-Agent: it \"is\"\\me\r\n") + "hello")?.expect(200)?;
    let record = site.record(1)?;
    let id = site.origin.last()?.field("x-request-id").map(str::to_owned);
    for (key, value) in [
        ("client", Value::from(client.local().to_string())),
        ("sni", HOST.into()),
        ("host", HOST.into()),
        ("route", HOST.into()),
        ("method", "POST".into()),
        ("path", "/post?q=1".into()),
        ("status", 200.into()),
        ("request_bytes", 5.into()),
        ("response_bytes", 5.into()),
        ("backend", site.origin.addr().to_string().into()),
        ("protocol", "HTTP/1.1".into()),
        ("user_agent", "it \"is\"\\me".into()),
        ("request_id", id.into()),
        ("outcome", "completed".into()),
    ] {
        ensure!(record[key] == value, "{key}: {record:#}");
    }
    ensure!(record["total_ms"].as_f64() >= record["first_byte_ms"].as_f64(), "{record:#}");
    client.ask(get("/"))?.expect(200)?;
    ensure!(site.record(2)?["connect_ms"].is_null(), "its connection was there already");
    client.ask("GET / HTTP/1.0\r\n\r\n")?.expect(200)?;
    let record = site.record(3)?;
    ensure!(record["protocol"] == "HTTP/1.0" && record["host"] == HOST, "{record:#}");
    Ok(())
}

#[test]
fn requests_that_come_to_nothing() -> Result<()> {
    let site = Site::new()?;
    let mut count = 0;
    for (host, request, status, outcome) in [
        ("down.example.com", get("/"), 502, "backend_unreachable"),
        ("policy.example.com", get("/"), 403, "policy"),
        (HOST, get("/silent"), 504, "backend_timeout"),
        (HOST, post(HOST, "Content-Length: 11\r\n"), 413, "refused"),
        (HOST, post(HOST, "Content-Length: 10\r\n") + "slow", 408, "refused"),
        (HOST, post(HOST, "Transfer-Encoding: chunked\r\n") + "x\r\n", 400, "refused"),
        (HOST, get("/").replace(HOST, "other.example.com"), 421, "refused"),
    ] {
        let request = if status == 421 { request } else { request.replace(HOST, host) };
        site.edge.client_of(host)?.ask(request)?.expect(status)?;
        count += 1;
        let record = site.record(count)?;
        ensure!(record["status"] == status && record["outcome"] == outcome, "{record:#}");
    }
    Ok(())
}

#[test]
fn responses_that_come_to_nothing() -> Result<()> {
    let site = Site::new()?;
    let mut client = site.edge.client()?;
    client.send(get("/break-off"))?;
    client.rest()?;
    let record = site.record(1)?;
    // Whether the head was on its way before the end came is a matter of time; without it the client has got nothing.
    ensure!(record["status"].is_null() || record["status"] == 200, "{record:#}");
    ensure!(record["outcome"] == "backend_failed", "{record:#}");

    let mut client = site.edge.client()?;
    client.send(get("/big"))?;
    client.head_of("GET")?;
    let record = site.record(2)?;
    ensure!(record["outcome"] == "client_aborted" && record["status"] == 200, "too slow: {record:#}");
    let bytes = record["response_bytes"].as_u64().context("no bytes")?;
    ensure!((1..64 << 20).contains(&bytes), "{record:#}");

    let mut client = site.edge.client()?;
    client.send(get("/silent"))?;
    site.origin.wait_for(3)?;
    client.reset()?;
    let record = site.record(3)?;
    ensure!(record["outcome"] == "client_aborted", "gone: {record:#}");
    Ok(())
}

#[test]
fn a_tunnel_has_one_record() -> Result<()> {
    let site = Site::new()?;
    let mut client = site.edge.client()?;
    client.send(get("/ws").replace("\r\n\r\n", "\r\nConnection: upgrade\r\nUpgrade: own\r\n\r\n"))?;
    client.response()?.expect(101)?;
    ensure!(client.exactly(4)? == b"four");
    client.send("seven77")?;
    ensure!(client.is_silent_for(Duration::from_millis(600))?, "no deadline of a request is its");
    client.finish()?;
    client.end()?;
    let record = site.record(1)?;
    ensure!(record["status"] == 101 && record["outcome"] == "completed", "{record:#}");
    ensure!(record["request_bytes"] == 7 && record["response_bytes"] == 4, "{record:#}");
    Ok(())
}
