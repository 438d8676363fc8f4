//! Transparent mode: the backend sees the client's own address and port, on this host and behind it, over IPv4 and IPv6.
//! The rules and routes come from the script in `deploy/`, and `mc-proxy check` has to agree with what then happens.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_proto::v1::{AddRouteRequest, Route};
use mc_proxy_tests::{
    backend::Backend,
    client::{End, ask, connect, end_of, is_reset},
    daemon::Installation,
    hello::Hello,
    privilege::{can_run, find_program, missing_for_namespaces},
    topology::{Leaf, Namespace, Topology},
    wait::SOON,
};

const PORT: u16 = 2222;
const EXIT_RIGHTS: i32 = 77;

/// A backend that says who it is connected to, then echoes.
fn who_is_it(namespace: &Namespace, addr: IpAddr) -> Result<Backend> {
    let listener = namespace.run(|| TcpListener::bind((addr, 0)))?.with_context(|| format!("binding {addr}"))?;
    Backend::on(listener, |mut stream| {
        // Of an IPv4 client on a dual-stack socket this would be the mapped form.
        writeln!(stream, "{}", stream.peer_addr()?)?;
        mc_proxy_tests::backend::echo(stream)
    })
}

/// An address of the edge's loopback.
fn loopback(is_ipv4: bool) -> IpAddr {
    if is_ipv4 { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() }
}

/// A listener that reads nothing, with a transparent route.
fn plain(backends: &[SocketAddr]) -> String {
    let backends = backends.iter().map(|addr| format!("\"{addr}\"")).collect::<Vec<_>>().join(", ");
    format!(
        "[[listeners]]\naddr = \":{PORT}\"\nprotocol = \"tcp\"\n[listeners.default]\nbackends = [{backends}]\n\
         transparent = true\n"
    )
}

/// The same behind a load balancer that sends a PROXY header.
fn behind_proxy(backends: &[SocketAddr]) -> String {
    plain(backends)
        .replace("protocol = \"tcp\"\n", "protocol = \"tcp\"\nproxy_protocol = true\nproxy_trust_any = true\n")
}

/// Runs `deploy/transparent-routes.sh` in a namespace; `backends` are those behind it.
fn routes(namespace: &Namespace, action: &str, backends: &str) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/transparent-routes.sh");
    let output = namespace.run(|| Command::new(&script).arg(action).env("BACKENDS", backends).output())??;
    ensure!(output.status.success(), "{action}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What `mc-proxy check` prints about transparent mode, and whether the daemon would start.
fn check(edge: &Installation) -> Result<(Vec<String>, bool)> {
    let output = edge.run("check")?;
    let text = String::from_utf8(output.stdout)?;
    let about = ["VERIFIED", "missing:", "connection from", "transparent"];
    let lines = text.lines().filter(|line| about.iter().any(|word| line.contains(word)));
    Ok((lines.map(str::to_owned).collect(), output.status.success()))
}

/// Half-closes after a word, and gets back who the backend says it is, and the word. That has to be the client's socket.
fn is_seen(leaf: &Leaf, proxy: SocketAddr) -> Result<()> {
    leaf.namespace.run(|| {
        let mut stream = connect(proxy)?;
        stream.write_all(b"word")?;
        stream.shutdown(Shutdown::Write)?;
        let own = stream.local_addr()?;
        let end = end_of(&mut stream)?;
        ensure!(end == End::Closed(format!("{own}\nword").into_bytes()), "{own} got {end:?}");
        Ok(())
    })?
}

fn edge_addr(net: &Topology, is_ipv4: bool) -> SocketAddr {
    SocketAddr::new(if is_ipv4 { net.edge.v4 } else { net.edge.v6 }, PORT)
}

#[test]
fn a_backend_on_this_host_sees_the_client() -> Result<()> {
    if !can_run("a_backend_on_this_host_sees_the_client", missing_for_namespaces())? {
        return Ok(());
    }
    let net = Topology::new()?;
    let v4 = who_is_it(&net.edge.namespace, loopback(true))?;
    let v6 = who_is_it(&net.edge.namespace, loopback(false))?;
    let edge = Installation::new(&plain(&[v4.addr(), v6.addr()]))?.within(&net.edge.namespace);

    let (lines, would_start) = check(&edge)?;
    ensure!(would_start, "{lines:#?}");
    for command in [
        "ip rule add fwmark 0x6d70 lookup 28016",
        "ip -6 rule add fwmark 0x6d70 lookup 28016",
        "ip route add local 0.0.0.0/0 dev lo table 28016",
        "ip -6 route add local ::/0 dev lo table 28016",
        "sysctl -w net.ipv4.tcp_fwmark_accept=1",
    ] {
        let line = format!("[~] missing: {command}");
        ensure!(lines.contains(&line), "no {line} in {lines:#?}");
    }
    for client in ["198.51.100.1", "2001:db8::1"] {
        let part = format!("answers this host, but not a connection from {client}");
        ensure!(lines.iter().any(|line| line.starts_with("[~] ") && line.contains(&part)), "{lines:#?}");
    }

    // What it says is missing is all that is missing.
    for line in &lines {
        let Some(command) = line.strip_prefix("[~] missing: ") else { continue };
        let command = command.split(" (").next().unwrap_or_default();
        let mut words = command.split(' ');
        let program = find_program(words.next().unwrap_or_default()).with_context(|| format!("running {command}"))?;
        let status = net.edge.namespace.run(|| Command::new(program).args(words).output())??;
        ensure!(status.status.success(), "{command}: {}", String::from_utf8_lossy(&status.stderr));
    }
    let (lines, _) = check(&edge)?;
    ensure!(lines.iter().all(|line| line.starts_with("[+] VERIFIED ")), "{lines:#?}");
    for part in [
        format!("backend {} answers a connection from 198.51.100.1", v4.addr()),
        format!("backend {} answers", v6.addr()),
    ] {
        ensure!(lines.iter().any(|line| line.contains(&part)), "{lines:#?}");
    }

    // The script has nothing to add, and takes everything away.
    routes(&net.edge.namespace, "up", "")?;
    ensure!(check(&edge)?.0 == lines);
    let daemon = edge.start()?;
    for round in 0..3 {
        for is_ipv4 in [true, false] {
            is_seen(&net.client, edge_addr(&net, is_ipv4)).with_context(|| format!("round {round}, IPv4 {is_ipv4}"))?;
        }
    }
    daemon.stop()?;
    routes(&net.edge.namespace, "down", "")?;
    let (lines, _) = check(&edge)?;
    ensure!(lines.contains(&"[~] missing: ip rule add fwmark 0x6d70 lookup 28016".to_owned()), "{lines:#?}");
    Ok(())
}

#[test]
fn a_backend_on_an_outside_address_of_this_host_is_one_of_this_host() -> Result<()> {
    if !can_run("a_backend_on_an_outside_address_of_this_host_is_one_of_this_host", missing_for_namespaces())? {
        return Ok(());
    }
    let net = Topology::new()?;
    let backends = [who_is_it(&net.edge.namespace, net.edge.v4)?, who_is_it(&net.edge.namespace, net.edge.v6)?];
    let edge = Installation::new(&plain(&[backends[0].addr(), backends[1].addr()]))?.within(&net.edge.namespace);
    routes(&net.edge.namespace, "up", "")?;
    let (lines, _) = check(&edge)?;
    ensure!(lines.iter().all(|line| line.starts_with("[+] VERIFIED ")), "{lines:#?}");
    let daemon = edge.start()?;
    for is_ipv4 in [true, false] {
        is_seen(&net.client, edge_addr(&net, is_ipv4))?;
        // The mark is what tells these answers apart: whoever comes without the proxy is served as ever.
        is_seen(&net.client, backends[usize::from(!is_ipv4)].addr())?;
    }
    daemon.stop()
}

/// A host whose way to the world leads through the edge.
fn behind(edge: &Leaf) -> Result<(Namespace, [IpAddr; 2])> {
    let namespace = Namespace::new("server")?;
    edge.namespace.ip(&format!(
        "link add eth1 type veth peer name eth0 netns {}\naddr add 10.77.0.1/24 dev eth1\n\
         addr add fd00:77::1/64 dev eth1 nodad\nlink set eth1 up\n",
        namespace.name()
    ))?;
    namespace.ip("addr add 10.77.0.2/24 dev eth0\naddr add fd00:77::2/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via 10.77.0.1\nroute add default via fd00:77::1\n")?;
    Ok((namespace, ["10.77.0.2".parse()?, "fd00:77::2".parse()?]))
}

#[test]
fn a_backend_behind_this_host_sees_the_client() -> Result<()> {
    if !can_run("a_backend_behind_this_host_sees_the_client", missing_for_namespaces())? {
        return Ok(());
    }
    let net = Topology::new()?;
    let (server, addrs) = behind(&net.edge)?;
    let backends = [who_is_it(&server, addrs[0])?, who_is_it(&server, addrs[1])?];
    let [v4, v6] = [backends[0].addr(), backends[1].addr()];
    let edge = Installation::new(&plain(&[v4, v6]))?.within(&net.edge.namespace);
    // Strict: what comes back has to come from where its source is.
    net.edge.namespace.run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth1/rp_filter", "1"))??;

    let (lines, _) = check(&edge)?;
    let (rule_v4, rule_v6) = (
        format!("ip rule add iif eth1 from 10.77.0.2 ipproto tcp sport {} lookup 28016", v4.port()),
        format!("ip -6 rule add iif eth1 from fd00:77::2 ipproto tcp sport {} lookup 28016", v6.port()),
    );
    for command in [&rule_v4, &rule_v6] {
        ensure!(lines.contains(&format!("[~] missing: {command}")), "{lines:#?}");
    }
    ensure!(!lines.iter().any(|line| line.contains("fwmark")), "a mark would keep the SYN on the host: {lines:#?}");

    routes(&net.edge.namespace, "up", &format!("eth1:{v4} eth1:{v6}"))?;
    let (lines, _) = check(&edge)?;
    ensure!(lines.iter().all(|line| line.starts_with("[+] VERIFIED ")), "{lines:#?}");
    for command in [&rule_v4, &rule_v6] {
        ensure!(lines.contains(&format!("[+] VERIFIED {command}")), "{lines:#?}");
    }
    let daemon = edge.start()?;
    for is_ipv4 in [true, false] {
        is_seen(&net.client, edge_addr(&net, is_ipv4))?;
        is_seen(&net.attacker, edge_addr(&net, is_ipv4))?;
    }
    daemon.stop()
}

#[test]
fn other_families_and_ports_in_use_are_refused_by_name() -> Result<()> {
    if !can_run("other_families_and_ports_in_use_are_refused_by_name", missing_for_namespaces())? {
        return Ok(());
    }
    let net = Topology::new()?;
    routes(&net.edge.namespace, "up", "")?;
    let v6 = who_is_it(&net.edge.namespace, loopback(false))?;
    let edge = Installation::new(&format!("{}[log]\nlevel = \"debug\"\n", plain(&[v6.addr()])))?;
    let edge = edge.within(&net.edge.namespace);
    let daemon = edge.start()?;
    let end = net.client.namespace.run(|| ask(edge_addr(&net, true), b""))??;
    ensure!(end == End::Reset(Vec::new()), "{end:?}");
    let line = daemon.log().wait_for(&["level=WARN", "dial failed"], SOON)?;
    ensure!(line.contains("not of one address family") && line.contains(&v6.addr().to_string()), "{line}");
    daemon.log().wait_for(&["reason=transparent_family"], SOON)?;
    ensure!(v6.accepts() == 0);

    // A listener on every address has its port on the client's, too.
    let taken = net.edge.namespace.run(|| TcpListener::bind(("::", 0)))??;
    let port = taken.local_addr()?.port();
    let end = net.client.namespace.run(|| -> Result<_> {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(net.client.v6, port).into())?;
        match socket.connect_timeout(&edge_addr(&net, false).into(), SOON) {
            Ok(()) => end_of(&mut TcpStream::from(socket)),
            // The refusal may come before this has returned.
            Err(error) if is_reset(&error) => Ok(End::Reset(Vec::new())),
            Err(error) => Err(error).context("connecting"),
        }
    })??;
    ensure!(end == End::Reset(Vec::new()), "{end:?}");
    daemon.log().wait_for(&["reason=transparent_in_use"], SOON)?;
    is_seen(&net.client, edge_addr(&net, false))?;
    daemon.stop()
}

#[test]
fn a_backend_that_is_down_is_noticed_at_once() -> Result<()> {
    if !can_run("a_backend_that_is_down_is_noticed_at_once", missing_for_namespaces())? {
        return Ok(());
    }
    let net = Topology::new()?;
    routes(&net.edge.namespace, "up", "")?;
    let down = [loopback(true), loopback(false)]
        .map(|addr| net.edge.namespace.run(|| TcpListener::bind((addr, 0))?.local_addr()));
    let [v4, v6] = down;
    let [v4, v6] = [v4??, v6??];
    let edge = Installation::new(&format!("{}[proxy]\nconnect_timeout = \"1h\"\n", plain(&[v4, v6])))?;
    let edge = edge.within(&net.edge.namespace);
    let daemon = edge.start()?;
    for (is_ipv4, addr) in [(true, v4), (false, v6)] {
        let end = net.client.namespace.run(|| ask(edge_addr(&net, is_ipv4), b""))??;
        ensure!(end == End::Reset(Vec::new()), "{end:?}");
        daemon.log().wait_for(&["dial failed", &addr.to_string(), "refused"], SOON)?;
    }
    let (lines, _) = check(&edge)?;
    let refused = lines.iter().filter(|line| line.contains("the refusal came back as it should")).count();
    ensure!(refused == 2, "{lines:#?}");
    daemon.stop()
}

#[test]
fn without_the_right_nothing_starts_and_no_route_is_added() -> Result<()> {
    let missing = missing_for_namespaces()
        .or_else(|| find_program("setpriv").is_none().then(|| "`setpriv` of util-linux is not there".to_owned()));
    if !can_run("without_the_right_nothing_starts_and_no_route_is_added", missing)? {
        return Ok(());
    }
    let net = Topology::new()?;
    let backend = who_is_it(&net.edge.namespace, loopback(true))?;
    let edge = Installation::new(&plain(&[backend.addr()]))?.within(&net.edge.namespace).as_nobody_with(&[])?;
    let output = edge.start_and_fail()?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(EXIT_RIGHTS), "{}: {words}", output.status);
    ensure!(words.contains("CAP_NET_ADMIN"), "{words}");

    edge.configure("[[listeners]]\naddr = \":4443\"\n")?;
    let daemon = edge.start()?;
    let admin = edge.admin()?;
    let route = Route {
        hostname: "app.example.com".to_owned(),
        backend: backend.addr().to_string(),
        transparent: true,
        ..Route::default()
    };
    let request = AddRouteRequest { listener_addr: ":4443".to_owned(), route: Some(route) };
    let refused = admin.call(async |mut client| client.add_route(request).await).expect_err("the right is missing");
    ensure!(refused.code() == tonic::Code::FailedPrecondition, "{refused:?}");
    ensure!(refused.message().contains("CAP_NET_ADMIN"), "{refused:?}");
    ensure!(admin.routes(":4443")?.routes.is_empty());
    daemon.stop()?;

    // The right of the unit file is enough.
    let edge = Installation::new(&plain(&[backend.addr()]))?.within(&net.edge.namespace);
    let edge = edge.as_nobody_with(&["net_admin"])?;
    routes(&net.edge.namespace, "up", "")?;
    let daemon = edge.start()?;
    is_seen(&net.client, edge_addr(&net, true))?;
    daemon.stop()
}

#[test]
fn a_tls_route_is_transparent_too() -> Result<()> {
    if !can_run("a_tls_route_is_transparent_too", missing_for_namespaces())? {
        return Ok(());
    }
    let net = Topology::new()?;
    routes(&net.edge.namespace, "up", "")?;
    let hello = Hello::to("app.example.com").bytes();
    let length = hello.len();
    let listener = net.edge.namespace.run(|| TcpListener::bind("127.0.0.1:0"))??;
    let backend = Backend::on(listener, move |mut stream| {
        let mut begin = vec![0; length];
        stream.read_exact(&mut begin)?;
        writeln!(stream, "{}", stream.peer_addr()?)?;
        Ok(())
    })?;
    let edge = Installation::new(&format!(
        "[[listeners]]\naddr = \":443\"\n[[listeners.routes]]\nhostname = \"app.example.com\"\nbackend = \"{}\"\n\
         transparent = true\n",
        backend.addr()
    ))?
    .within(&net.edge.namespace);
    let daemon = edge.start()?;
    net.client.namespace.run(|| -> Result<()> {
        let mut stream = connect(SocketAddr::new(net.edge.v4, 443))?;
        let own = stream.local_addr()?;
        stream.write_all(&hello)?;
        let end = end_of(&mut stream)?;
        ensure!(end == End::Closed(format!("{own}\n").into_bytes()), "{own} got {end:?}");
        Ok(())
    })??;
    daemon.stop()
}

/// The example of mmproxy's README: whoever comes with a header is, to a plain server, who the header says.
#[test]
fn what_mmproxy_does() -> Result<()> {
    if !can_run("what_mmproxy_does", missing_for_namespaces())? {
        return Ok(());
    }
    let net = Topology::new()?;
    routes(&net.edge.namespace, "up", "")?;
    let v4 = who_is_it(&net.edge.namespace, loopback(true))?;
    let v6 = who_is_it(&net.edge.namespace, loopback(false))?;
    let edge = Installation::new(&format!("{}[log]\nlevel = \"debug\"\n", behind_proxy(&[v4.addr(), v6.addr()])))?;
    let edge = edge.within(&net.edge.namespace);
    let daemon = edge.start()?;
    for (header, seen) in [
        ("PROXY TCP4 1.2.3.4 1.2.3.4 11 11\r\n", "1.2.3.4:11\nHello World!"),
        ("PROXY TCP4 203.0.113.7 192.0.2.10 50000 2222\r\n", "203.0.113.7:50000\nHello World!"),
        ("PROXY TCP6 2001:db8:7::7 2001:db8::10 50000 2222\r\n", "[2001:db8:7::7]:50000\nHello World!"),
        // The mapped form is an IPv4 address.
        ("PROXY TCP6 ::ffff:203.0.113.8 ::ffff:192.0.2.10 50001 2222\r\n", "203.0.113.8:50001\nHello World!"),
    ] {
        // The load balancer's own family says nothing about the client's.
        for to in [net.edge.v4, net.edge.v6] {
            let sent = format!("{header}Hello World!");
            let end = net.client.namespace.run(|| ask(SocketAddr::new(to, PORT), sent.as_bytes()))??;
            ensure!(end == End::Closed(seen.as_bytes().to_vec()), "{header}: {end:?}");
        }
    }
    for (header, reason) in [
        ("PROXY TCP4 224.0.0.1 192.0.2.10 50000 2222\r\n", "reason=transparent_address"),
        ("PROXY TCP6 fe80::1 2001:db8::10 50000 2222\r\n", "reason=transparent_address"),
    ] {
        let end = net.client.namespace.run(|| ask(SocketAddr::new(net.edge.v4, PORT), header.as_bytes()))??;
        ensure!(end == End::Reset(Vec::new()), "{header}: {end:?}");
        daemon.log().wait_for(&[reason, header.split(' ').nth(2).unwrap_or_default()], SOON)?;
    }
    // One client, port and all, that comes over two load balancers at once, is refused the second time.
    let header = b"PROXY TCP4 203.0.113.9 192.0.2.10 50000 2222\r\n";
    net.client.namespace.run(|| -> Result<()> {
        let mut first = connect(SocketAddr::new(net.edge.v4, PORT))?;
        first.write_all(header)?;
        let mut who = vec![0; b"203.0.113.9:50000\n".len()];
        first.read_exact(&mut who)?;
        let end = ask(SocketAddr::new(net.edge.v4, PORT), header)?;
        ensure!(end == End::Reset(Vec::new()), "{end:?}");
        daemon.log().wait_for(&["reason=transparent_in_use", "203.0.113.9:50000"], SOON)?;
        first.shutdown(Shutdown::Write)?;
        ensure!(end_of(&mut first)? == End::Closed(Vec::new()));
        Ok(())
    })??;
    daemon.stop()
}
