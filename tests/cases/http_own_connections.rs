//! Routes whose backends are told of the client by the connection itself: no other client's request may go that way.

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy::proxy_header::{Endpoints, Header, write_v2};
use mc_proxy_tests::{
    client::connect,
    http::{Client, Edge, HOST, Origin, Plan, get, ok},
    privilege::{can_run, find_program, missing_for_namespaces, skip},
    topology::{Leaf, Topology},
    wait::{SOON, pass, until},
};

/// What a backend was told at the beginning of each connection, with the paths that it was then asked for.
type Told = Arc<Mutex<Vec<(Header, Vec<String>)>>>;

/// A backend behind PROXY headers, and how many of its connections have ended.
fn origin() -> Result<(Origin, Told, Arc<AtomicUsize>)> {
    let (told, ended) = (Told::default(), Arc::<AtomicUsize>::default());
    let origin = Origin::new({
        let (told, ended) = (Arc::clone(&told), Arc::clone(&ended));
        move |conn| {
            let header = conn.proxy_header()?;
            let at = {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                told.push((header, Vec::new()));
                told.len() - 1
            };
            while let Some(request) = conn.request()? {
                let path = request.line.split(' ').nth(1).unwrap_or_default().to_owned();
                told.lock().unwrap_or_else(PoisonError::into_inner)[at].1.push(path);
                conn.send(ok(""))?;
            }
            ended.fetch_add(1, SeqCst);
            Ok(())
        }
    })?;
    Ok((origin, told, ended))
}

/// Asks for a path that names the client.
fn ask(client: &mut Client) -> Result<()> {
    let path = format!("/{}", client.local());
    client.ask(get(&path))?.expect(200).map(drop)
}

/// An error unless every request went by a connection that names its client.
fn is_right(told: &Told, edge: &Edge, requests: usize) -> Result<()> {
    let told = told.lock().unwrap_or_else(PoisonError::into_inner);
    for (header, paths) in told.iter() {
        for path in paths {
            let client = path.trim_start_matches('/').parse()?;
            ensure!(header.endpoints == Header::forwarded(client, edge.addr).endpoints, "{path} came with {header:?}");
        }
    }
    let count = told.iter().map(|(_, paths)| paths.len()).sum::<usize>();
    ensure!(count == requests, "{count} requests");
    Ok(())
}

#[test]
fn interleaved_clients() -> Result<()> {
    for version in ["v1", "v2"] {
        let (origin, told, ended) = origin()?;
        let lines = format!("send_proxy_protocol = true\nproxy_protocol_version = \"{version}\"");
        let edge = Plan::new()?.route(HOST, &[origin.addr()], &lines).start()?;
        let mut clients = (0..4).map(|_| edge.client()).collect::<Result<Vec<_>>>()?;
        for _ in 0..5 {
            for client in &mut clients {
                ask(client)?;
            }
        }
        is_right(&told, &edge, 20)?;
        ensure!(origin.accepts() == 4, "one for each client, used again: {}", origin.accepts());
        if version == "v2" {
            let told = told.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(told.iter().all(|(header, _)| header.tlvs.authority.as_deref() == Some(HOST)), "{told:?}");
        }
        // With the client its connections end, and are nobody else's.
        drop(clients);
        until("the end of a client's own connections", SOON, || Ok(ended.load(SeqCst) == 4))?;
        let mut next = edge.client()?;
        ask(&mut next)?;
        is_right(&told, &edge, 21)?;
        ensure!(origin.accepts() == 5);
    }
    Ok(())
}

/// The client's own connection has become stale: another one is made, with its header.
#[test]
fn a_stale_connection_of_ones_own() -> Result<()> {
    let headers = Arc::<Mutex<Vec<Endpoints>>>::default();
    let origin = Origin::new({
        let headers = Arc::clone(&headers);
        move |conn| {
            let header = conn.proxy_header()?;
            headers.lock().unwrap_or_else(PoisonError::into_inner).push(header.endpoints);
            conn.request()?;
            conn.send(ok(""))
        }
    })?;
    let edge = Plan::new()?.route(HOST, &[origin.addr()], "send_proxy_protocol = true").start()?;
    let mut client = edge.client()?;
    for _ in 0..4 {
        ask(&mut client)?;
        pass(Duration::from_millis(20));
    }
    let headers = headers.lock().unwrap_or_else(PoisonError::into_inner);
    let expected = Header::forwarded(client.local(), edge.addr).endpoints;
    ensure!(headers.len() == 4 && headers.iter().all(|known| *known == expected), "{headers:?}");
    Ok(())
}

#[test]
fn whom_a_proxy_in_front_has_named() -> Result<()> {
    let (origin, told, _) = origin()?;
    let edge = Plan::new()?
        .listener("proxy_protocol = true\nproxy_trusted = [\"127.0.0.0/8\"]")
        .route(HOST, &[origin.addr()], "send_proxy_protocol = true")
        .start()?;
    for client in ["203.0.113.7:1007", "[2001:db8::7]:1008"] {
        let to = if client.starts_with('[') { "[2001:db8::443]:443" } else { "198.51.100.2:443" };
        let header = Header::forwarded(client.parse()?, to.parse()?);
        let mut stream = connect(edge.addr)?;
        std::io::Write::write_all(&mut stream, &write_v2(&header)?)?;
        let mut speaker = Client::new(stream, edge.authority.client_config()?, HOST)?;
        speaker.ask(get("/"))?.expect(200)?;
        let ip = client.parse::<std::net::SocketAddr>()?.ip().to_string();
        ensure!(origin.last()?.field("x-forwarded-for") == Some(&ip), "{:?}", origin.last()?);
        let told = told.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(told.last().context("nothing was told")?.0.endpoints == header.endpoints, "{told:?}");
    }
    Ok(())
}

/// The limit is the backend's, whoever its connections belong to: one that is unused gives way to another client's, one that is
/// in use does not.
#[test]
fn the_limit_holds_for_all_clients_together() -> Result<()> {
    let (origin, told, ended) = origin()?;
    let edge = Plan::new()?
        .http("max_backend_connections = 2")
        .route(HOST, &[origin.addr()], "send_proxy_protocol = true")
        .start()?;
    let mut clients = (0..6).map(|_| edge.client()).collect::<Result<Vec<_>>>()?;
    for count in 0..18 {
        ask(&mut clients[count % 6]).with_context(|| format!("request {count}"))?;
        until("a connection to give way", SOON, || Ok(origin.accepts() - ended.load(SeqCst) as u64 <= 2))?;
        // The response is out a little before the connection is back.
        pass(Duration::from_millis(10));
    }
    is_right(&told, &edge, 18)?;
    ensure!(origin.accepts() > 6, "{} connections", origin.accepts());

    let (mut three, in_use) = (edge.client()?, &mut clients[..2]);
    for client in &mut *in_use {
        client.send(format!("POST /{} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\n", client.local()))?;
    }
    let heads = || String::from_utf8_lossy(&origin.bytes()).matches("POST /").count();
    until("requests that are under way", SOON, || Ok(heads() == 2))?;
    three.ask(get("/"))?.expect(503)?;
    for client in in_use {
        client.send("hi")?;
        client.response()?.expect(200)?;
    }
    until("a place", SOON, || Ok(three.ask(get("/"))?.status == 200))
}

/// Whom the backend sees is who its requests say they are of.
fn is_seen(leaf: &Leaf, edge: &Edge) -> Result<()> {
    leaf.namespace.run(|| -> Result<()> {
        let mut clients = (0..2).map(|_| edge.client()).collect::<Result<Vec<_>>>()?;
        for _ in 0..3 {
            for client in &mut clients {
                let response = client.ask(get("/"))?.expect(200)?;
                ensure!(response.text() == client.local().to_string(), "{} is seen as {response:?}", client.local());
            }
        }
        Ok(())
    })?
}

/// Requests of one client of HTTP/2 at the same time: the backend sees its address with each, and its port with one at most.
fn side_by_side(leaf: &Leaf, edge: &Edge) -> Result<()> {
    if find_program("curl").is_none() {
        return skip("transparent_routes (HTTP/2)", "curl is not installed");
    }
    let (port, ip) = (edge.addr.port(), edge.addr.ip());
    let url = format!("https://{HOST}:{port}/slow");
    let output = leaf.namespace.run(|| {
        Command::new("timeout")
            .args(["20", "curl", "-sS", "-k", "--http2", "-Z", "--resolve", &format!("{HOST}:{port}:{ip}")])
            .args(["-w", " %{http_code} %{local_ip} %{local_port}\\n", &url, &url, &url, &url])
            .output()
    })??;
    let text = String::from_utf8(output.stdout)?;
    // What curl writes of several transfers is mixed.
    let count = |part: &str| text.matches(part).count();
    let port = text.split_whitespace().last().context("no port")?;
    ensure!(count(" 200 ") == 4 && count(&format!("{}:", leaf.v4)) == 4, "{text}");
    ensure!(count(&format!("{}:{port} ", leaf.v4)) < 4, "not at the same time: {text}");
    Ok(())
}

#[test]
fn transparent_routes() -> Result<()> {
    if !can_run("transparent_routes", missing_for_namespaces())? {
        return Ok(());
    }
    let net = Topology::new()?;
    let origin = Origin::within(&net.edge.namespace, |conn| {
        let peer = conn.peer.to_string();
        conn.answer(|request| {
            if request.line.contains("/slow") {
                pass(Duration::from_millis(300));
            }
            ok(&peer)
        })
    })?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/transparent-routes.sh");
    let output = net.edge.namespace.run(|| Command::new(&script).arg("up").env("BACKENDS", "").output())??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let edge = Plan::new()?
        .at(std::net::SocketAddr::new(net.edge.v4, 443))
        .within(&net.edge.namespace)
        .route(HOST, &[origin.addr()], "transparent = true")
        .start()?;
    for _ in 0..2 {
        is_seen(&net.client, &edge)?;
        is_seen(&net.attacker, &edge)?;
    }
    ensure!(origin.accepts() == 8, "one for each client, used again: {}", origin.accepts());
    side_by_side(&net.client, &edge)?;
    edge.daemon.stop()
}
