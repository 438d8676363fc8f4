//! Policies and routes that change while connections are open: the next request of each sees them.

use anyhow::{Result, ensure};
use mc_proxy_proto::v1::L7Policy;
use mc_proxy_tests::{
    admin::Admin,
    backend::Backend,
    http::{Client, Edge, HOST, Origin, Plan, Response, get, ok},
};

fn policy(kind: &str, value: &str, shadow: bool) -> L7Policy {
    L7Policy { r#type: kind.to_owned(), value: value.to_owned(), shadow, hits: 0 }
}

fn of(agent: &str) -> String {
    get("/").replace("\r\n\r\n", &format!("\r\nUser-Agent: {agent}\r\n\r\n"))
}

struct Site {
    origin: Origin,
    edge: Edge,
    admin: Admin,
    name: String,
}

impl Site {
    fn new(lines: &str) -> Result<Self> {
        let origin = Origin::telling()?;
        let edge = Plan::new()?.route(HOST, &[origin.addr()], lines).start()?;
        let (admin, name) = (edge.installation.admin()?, edge.addr.to_string());
        Ok(Self { origin, edge, admin, name })
    }
}

/// A refusal after which the connection goes on.
fn is_refused(response: &Response) -> Result<()> {
    ensure!(response.status == 403 && response.field("connection").is_none(), "{response:?}");
    ensure!(response.text().starts_with("403 Forbidden\n"), "{response:?}");
    Ok(())
}

#[test]
fn policies_of_the_configuration() -> Result<()> {
    let site = Site::new(
        "[[listeners.routes.l7_policies]]\ntype = \"block_user_agent\"\nvalue = \"BadBot\"
         [[listeners.routes.l7_policies]]\ntype = \"require_header\"\nvalue = \"X-Key\"
         [[listeners.routes.l7_policies]]\ntype = \"block_user_agent\"\nvalue = \"curl\"\nshadow = true",
    )?;
    let mut client = site.edge.client()?;
    let with = |agent: &str, lines: &str| of(agent).replace("\r\n\r\n", &format!("\r\n{lines}\r\n"));
    for bad in [
        with("Mozilla badBOT/1.0", "X-Key: 1\r\n"),
        with("good", ""),
        with("good", "X-Key: \r\n"),
        // What ends here is not what was required.
        with("good", "X-Key: 1\r\nConnection: X-Key\r\n"),
        with("good", "User-Agent: badbot\r\nX-Key: 1\r\n"),
    ] {
        is_refused(&client.ask(&bad)?)?;
    }
    ensure!(site.origin.accepts() == 0, "what is refused does not arrive");
    for good in [with("good", "X-Key: 1\r\n"), with("curl/8", "x-key: 1\r\n")] {
        client.ask(&good)?.expect(200)?;
    }
    // A body that comes with it is not taken for the next request.
    let body = get("/smuggled");
    let mut client = site.edge.client()?;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))?;
    ensure!(client.response()?.expect(403)?.field("connection") == Some("close"));
    client.end()?;
    ensure!(!String::from_utf8_lossy(&site.origin.bytes()).contains("smuggled"));
    Ok(())
}

#[test]
fn policies_act_on_the_next_request() -> Result<()> {
    let site = Site::new("")?;
    let mut client = site.edge.client()?;
    client.ask(of("BadBot"))?.expect(200)?;
    let bad = policy("block_user_agent", "badbot", false);
    site.admin.add_policy(&site.name, HOST, bad.clone())?;
    is_refused(&client.ask(of("BadBot"))?)?;
    client.ask(of("good"))?.expect(200)?;
    site.admin.remove_policy(&site.name, HOST, bad)?;
    client.ask(of("BadBot"))?.expect(200)?;

    let hits = || -> Result<Vec<u64>> {
        Ok(site.admin.policies(&site.name, HOST)?.iter().map(|policy| policy.hits).collect())
    };
    let shadow = policy("block_user_agent", "badbot", true);
    site.admin.add_policy(&site.name, HOST, shadow.clone())?;
    for agent in ["BadBot", "good", "BadBot"] {
        client.ask(of(agent))?.expect(200)?;
    }
    ensure!(hits()? == [2], "a shadow counts, and refuses nothing: {:?}", hits()?);
    site.admin.add_policy(&site.name, HOST, policy("require_header", "X-Other", false))?;
    is_refused(&client.ask(of("BadBot"))?)?;
    ensure!(hits()? == [3, 1], "what was counted stays: {:?}", hits()?);
    site.admin.remove_policy(&site.name, HOST, policy("require_header", "X-Other", false))?;
    site.admin.remove_policy(&site.name, HOST, shadow)?;

    site.admin.add_policy(&site.name, HOST, policy("require_header", "X-Key", false))?;
    is_refused(&client.ask(get("/"))?)?;
    ensure!(site.edge.client()?.ask(get("/"))?.status == 403, "a new connection sees it too");
    // They outlive the daemon.
    let Edge { daemon, installation, addr, authority } = site.edge;
    daemon.stop()?;
    let daemon = installation.start()?;
    let edge = Edge { daemon, installation, addr, authority };
    is_refused(&edge.ask(get("/"))?)
}

#[test]
fn a_request_in_flight_is_not_touched() -> Result<()> {
    let origin = Origin::new(|conn| {
        while conn.head()?.is_some() {
            conn.exactly(4)?;
            conn.send(ok("done"))?;
        }
        Ok(())
    })?;
    let edge = Edge::to(origin.addr(), "")?;
    let (admin, name) = (edge.installation.admin()?, edge.addr.to_string());
    let mut client = edge.client()?;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nha"))?;
    origin.wait_for(1)?;
    admin.add_policy(&name, HOST, policy("require_header", "X-Key", false))?;
    client.send("lf")?;
    ensure!(client.response()?.expect(200)?.text() == "done");
    is_refused(&client.ask(get("/"))?)?;
    // Nor does it end with its route.
    admin.remove_policy(&name, HOST, policy("require_header", "X-Key", false))?;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nha"))?;
    origin.wait_for(2)?;
    admin.remove_route(&name, HOST)?;
    client.send("lf")?;
    ensure!(client.response()?.expect(200)?.text() == "done");
    client.ask(get("/"))?.expect(421)?;
    Ok(())
}

fn misdirected(client: &mut Client) -> Result<()> {
    let response = client.ask(get("/"))?.expect(421)?;
    ensure!(response.text().starts_with("421 Misdirected Request\n"), "{response:?}");
    Ok(())
}

#[test]
fn a_route_that_is_removed() -> Result<()> {
    let site = Site::new("")?;
    let route = site.admin.routes(&site.name)?.routes.remove(0);
    let mut client = site.edge.client()?;
    client.ask(get("/"))?.expect(200)?;
    site.admin.remove_route(&site.name, HOST)?;
    misdirected(&mut client)?;
    ensure!(site.edge.client().is_err(), "a new connection has no route");
    // Here again, to another backend.
    let other = Origin::answering(|_| ok("other"))?;
    let route = mc_proxy_proto::v1::Route { backend: other.addr().to_string(), backends: Vec::new(), ..route };
    let request = mc_proxy_proto::v1::AddRouteRequest { listener_addr: site.name.clone(), route: Some(route) };
    site.admin.call(async |mut client| client.add_route(request).await)?;
    ensure!(client.ask(get("/"))?.expect(200)?.text() == "other");
    // It now passes TLS through.
    site.admin.remove_route(&site.name, HOST)?;
    site.admin.add_route(&site.name, HOST, &other.addr().to_string())?;
    misdirected(&mut client)
}

#[test]
fn a_route_that_is_removed_where_there_is_a_default() -> Result<()> {
    let (app, rest) = (Origin::answering(|_| ok("app"))?, Origin::answering(|_| ok("rest"))?);
    let edge = Plan::to(app.addr())?.default_route(&[rest.addr()], "").start()?;
    let mut client = edge.client()?;
    ensure!(client.ask(get("/"))?.expect(200)?.text() == "app");
    edge.installation.admin()?.remove_route(&edge.addr.to_string(), HOST)?;
    ensure!(client.ask(get("/"))?.expect(200)?.text() == "rest", "as a new connection would");

    let (passthrough, _) = Backend::named("tls")?;
    let plan = Plan::to(app.addr())?;
    let edge = plan.routes(&format!("[listeners.default]\nbackend = \"{}\"", passthrough.addr())).start()?;
    let mut client = edge.client()?;
    client.ask(get("/"))?.expect(200)?;
    edge.installation.admin()?.remove_route(&edge.addr.to_string(), HOST)?;
    misdirected(&mut client)
}
