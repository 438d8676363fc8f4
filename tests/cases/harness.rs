//! The harness itself, without the daemon: a test is worth no more than what it stands on.

use std::{
    net::{SocketAddr, UdpSocket},
    panic,
    time::Duration,
};

use anyhow::{Result, ensure};
use mc_proxy_tests::{
    backend::Backend,
    bpffs::Bpffs,
    client::{End, ask, ask_and_stay, connect, reset},
    flood::{Flood, drain},
    hello::Hello,
    privilege::{can_run, missing_for_kernel_plane, missing_for_namespaces},
    tls::Authority,
    topology::{Topology, own_namespaces},
    wait::{SOON, until},
};

#[test]
fn tls_without_a_proxy_in_between() -> Result<()> {
    let authority = Authority::new()?;
    let backend = authority.backend("one", &["one.example.com"])?;
    let mut client = authority.client(backend.addr(), "one.example.com")?;
    ensure!(client.answered_by() == "one");
    client.echo("hello")?;
    client.close()?;
    ensure!(authority.client(backend.addr(), "two.example.com").is_err(), "the certificate is checked");
    ensure!(Authority::new()?.client(backend.addr(), "one.example.com").is_err(), "the authority is checked");
    ensure!(backend.accepts() == 3);
    Ok(())
}

#[test]
fn ends_of_connections_are_told_apart() -> Result<()> {
    let (named, received) = Backend::named("named")?;
    let hello = Hello::to("app.example.com").bytes();
    ensure!(ask(named.addr(), &hello)? == End::Closed(b"named\n".to_vec()));
    ensure!(received.all() == [hello]);
    let resetting = Backend::start(reset)?;
    ensure!(ask_and_stay(resetting.addr(), b"")? == End::Reset(Vec::new()));
    let addr = named.addr();
    drop(named);
    ensure!(connect(addr).is_err(), "a dropped backend still listens");
    Ok(())
}

#[test]
fn the_leaves_of_the_topology_reach_each_other() -> Result<()> {
    if !can_run("the_leaves_of_the_topology_reach_each_other", missing_for_namespaces())? {
        return Ok(());
    }
    let net = Topology::new()?;
    let authority = Authority::new()?;
    for (addr, port) in [(net.edge.v4, 4443), (net.edge.v6, 4444)] {
        let proxy = SocketAddr::new(addr, port);
        let listener = net.edge.namespace.run(|| std::net::TcpListener::bind(proxy))??;
        let backend = Backend::on(listener, mc_proxy_tests::backend::echo)?;
        for leaf in [&net.client, &net.attacker] {
            let mut stream = leaf.namespace.run(|| connect(proxy))??;
            ensure!(mc_proxy_tests::client::exchange(&mut stream, b"ping")? == b"ping");
            ensure!([leaf.v4, leaf.v6].contains(&stream.local_addr()?.ip()));
        }
        ensure!(backend.accepts() == 2);
    }
    let tls = authority.backend_in(&net.edge.namespace, "edge", &["edge.example.com"])?;
    ensure!(connect(tls.addr()).is_err(), "a backend of a namespace is not reachable from the host");
    let addr = tls.addr();
    net.edge.namespace.run(|| authority.client(addr, "edge.example.com"))??.echo("inside")?;
    Ok(())
}

#[test]
fn floods_arrive_and_end() -> Result<()> {
    if !can_run("floods_arrive_and_end", missing_for_namespaces())? {
        return Ok(());
    }
    let net = Topology::new()?;
    let inbox = net.edge.namespace.run(|| UdpSocket::bind((net.edge.v4, 9_999)))??;
    let flood = Flood::udp(&net.attacker.namespace, inbox.local_addr()?);
    until("datagrams", SOON, || Ok(drain(&inbox)? > 0))?;
    flood.stop()?;

    let listener = net.edge.namespace.run(|| std::net::TcpListener::bind((net.edge.v4, 4443)))??;
    let backend = Backend::on(listener, mc_proxy_tests::backend::echo)?;
    let flood = Flood::connections(&net.attacker.namespace, backend.addr(), b"attack".to_vec());
    until("connections", SOON, || Ok(backend.accepts() > 100 && flood.connected() > 0))?;
    flood.stop()?;

    // A SYN with a wrong checksum would not be answered and never count as an open request.
    let (std::net::IpAddr::V4(source), SocketAddr::V4(to)) = (net.attacker.v4, backend.addr()) else {
        anyhow::bail!("these are IPv4 addresses")
    };
    let opens = || -> Result<u64> { net.attacker.namespace.run(resets_sent)? };
    let before = opens()?;
    let flood = Flood::syn(&net.attacker.namespace, source, to);
    until("answers to SYNs, which the attacker's host resets", SOON, || Ok(opens()? > before + 100))?;
    flood.stop()
}

#[test]
fn nothing_is_left_behind_also_after_a_panic() -> Result<()> {
    if !can_run("nothing_is_left_behind_also_after_a_panic", missing_for_kernel_plane())? {
        return Ok(());
    }
    let mut names = Vec::new();
    let mut mount = std::path::PathBuf::new();
    let quiet = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        let net = Topology::new().expect("namespaces");
        let bpffs = Bpffs::mount().expect("a mount");
        names = [&net.edge, &net.client, &net.attacker].map(|leaf| leaf.namespace.name().to_owned()).to_vec();
        mount = bpffs.root().to_owned();
        assert!(names.iter().all(|name| own_namespaces().contains(name)));
        net.edge.namespace.run(|| panic!("on purpose")).expect("never reached");
    }));
    ensure!(quiet.is_err());
    ensure!(names.len() == 3 && names.iter().all(|name| !own_namespaces().contains(name)));
    ensure!(!mount.exists());
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&mount.display().to_string()));
    Ok(())
}

#[test]
fn waiting_has_an_end() {
    let error = until("a thing that never comes", Duration::from_millis(20), || Ok(false)).unwrap_err();
    assert!(error.to_string().contains("a thing that never comes"));
}

/// `OutRsts` of the calling thread's namespace.
fn resets_sent() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: ")).map(str::split_whitespace);
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { anyhow::bail!("no Tcp lines in {text}") };
    let value = names.zip(values).find_map(|(name, value)| (name == "OutRsts").then_some(value));
    Ok(value.unwrap_or_default().parse()?)
}
