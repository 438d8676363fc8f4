//! The kernel plane of the real daemon, packet by packet: clients, an attacker and the edge in namespaces.

use std::{
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use mc_proxy_tests::{
    admin::Admin,
    bpffs::Bpffs,
    client::{connect, exchange},
    config::{listener, xdp},
    daemon::Installation,
    flood::{Flood, drain, receive},
    hello::Hello,
    site::{PROBE_PORT, Site, begin_connect},
    topology::Leaf,
    wait::{SOON, pass, until},
};

#[test]
fn a_rule_is_in_force_in_the_kernel_when_the_call_returns_a_thousand_times() -> Result<()> {
    const BLOCKED: u8 = 1;
    const FENCE: u8 = 2;
    let test = "a_rule_is_in_force_in_the_kernel_when_the_call_returns_a_thousand_times";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    let outbox = attacker.namespace.run(|| UdpSocket::bind((attacker.v4, 0)))??;
    let drops_before = admin.kernel_drops()?;

    let mut buffer = [0; 64];
    for round in 0..1_000_u32 {
        admin.block(&attacker.v4.to_string())?;
        outbox.send_to(&message(BLOCKED, round), site.v4(PROBE_PORT))?;
        admin.unblock(&attacker.v4.to_string())?;
        outbox.send_to(&message(FENCE, round), site.v4(PROBE_PORT))?;
        let Some((length, _)) = receive(&inbox, &mut buffer)? else {
            bail!("round {round}: the source was unblocked and its packet did not arrive");
        };
        ensure!(buffer[..length] == message(FENCE, round), "round {round}: {:?} arrived", &buffer[..length]);
    }
    ensure!(drain(&inbox)? == 0, "a packet of a blocked source arrived late");
    let drops = admin.kernel_drops()? - drops_before;
    ensure!(drops == 1_000, "the kernel dropped {drops} packets of 1,000");
    Ok(())
}

#[test]
fn a_blocked_source_reaches_no_listener_over_ipv4_or_ipv6() -> Result<()> {
    let test = "a_blocked_source_reaches_no_listener_over_ipv4_or_ipv6";
    let Some(site) = Site::for_test(test, "listeners", "")? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let attacker = &site.net.attacker;
    for (source, to) in [(attacker.v4, site.v4(443)), (attacker.v6, site.v6(443))] {
        site.serve(attacker, to)?;
        for round in 0..100 {
            admin.block(&source.to_string())?;
            let accepted = admin.accepted()?;
            let drops = admin.kernel_drops()?;
            let knock = attacker.namespace.run(|| begin_connect(to))??;
            until("the drop of a SYN", SOON, || Ok(admin.kernel_drops()? > drops))?;
            drop(knock);
            ensure!(admin.accepted()? == accepted, "round {round}: a SYN of {source} was accepted");
            admin.unblock(&source.to_string())?;
            site.serve(attacker, to)?;
        }
    }
    site.serve(&site.net.client, site.v4(443))?;
    site.serve(&site.net.client, site.v6(443))?;
    ensure!(site.backend.accepts() == 2 * 101 + 2);
    Ok(())
}

#[test]
fn scope_listeners_leaves_the_rest_of_the_host_alone() -> Result<()> {
    let test = "scope_listeners_leaves_the_rest_of_the_host_alone";
    let Some(site) = Site::for_test(test, "listeners", "")? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let attacker = &site.net.attacker;
    admin.block(&attacker.v4.to_string())?;

    let inbox = site.probe()?;
    let outbox = attacker.namespace.run(|| UdpSocket::bind((attacker.v4, 0)))??;
    outbox.send_to(b"to another port", site.v4(PROBE_PORT))?;
    let mut buffer = [0; 64];
    ensure!(receive(&inbox, &mut buffer)?.is_some(), "a port that is no listener's is judged");

    // The edge's own connection to a blocked source: its answers come from port 80, to no listener.
    let server = attacker.namespace.run(|| std::net::TcpListener::bind((attacker.v4, 80)))??;
    let mut outgoing = site.net.edge.namespace.run(|| connect(server.local_addr()?))??;
    let (served, _) = server.accept()?;
    let echo = std::thread::spawn(move || mc_proxy_tests::backend::echo(served));
    ensure!(exchange(&mut outgoing, b"an update")? == b"an update");
    drop(outgoing);
    echo.join().expect("the echo returns its error")?;
    Ok(())
}

#[test]
fn prefixes_block_and_an_allowed_address_within_them_passes() -> Result<()> {
    let test = "prefixes_block_and_an_allowed_address_within_them_passes";
    let Some(site) = Site::for_test(test, "listeners", "")? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let attacker = &site.net.attacker;
    for (prefix, exception, to) in
        [("203.0.113.0/24", attacker.v4, site.v4(443)), ("2001:db8:0:3::/64", attacker.v6, site.v6(443))]
    {
        admin.block(prefix)?;
        ensure!(is_dropped(&admin, attacker, to)?, "{prefix}");
        admin.allow(&exception.to_string())?;
        site.serve(attacker, to).with_context(|| format!("{exception} is allowed within {prefix}"))?;
        site.serve(&site.net.client, to)?;
    }
    Ok(())
}

#[test]
fn sigkill_under_flood_lets_not_one_packet_through() -> Result<()> {
    let test = "sigkill_under_flood_lets_not_one_packet_through";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;

    let datagrams = Flood::udp(&attacker.namespace, site.v4(PROBE_PORT));
    let knocks = Flood::connections(&attacker.namespace, site.v4(443), Hello::to("app.example.com").bytes());
    until("the flood at the edge", SOON, || Ok(drain(&inbox)? > 0 && knocks.connected() > 0))?;
    admin.block(&attacker.v4.to_string())?;
    // What had passed the program before the rule was there may still be queued.
    pass(Duration::from_millis(200));
    let queued = drain(&inbox)?;
    let program = program_id(&admin)?;
    let (drops, sent) = (admin.kernel_drops()?, datagrams.sent());
    let (connected, accepts) = (knocks.connected(), site.backend.accepts());
    drop(admin);

    let mut daemon = daemon;
    for round in 0..5 {
        pass(Duration::from_millis(200));
        daemon.kill()?;
        pass(Duration::from_millis(500));
        ensure!(drain(&inbox)? == 0, "round {round}: packets of a blocked source arrived while no daemon ran");
        daemon = site.edge.start().context("after SIGKILL")?;
        let admin = site.edge.admin()?;
        ensure!(drain(&inbox)? == 0, "round {round}: packets of a blocked source arrived during adoption");
        let kernel = admin.status()?.kernel.context("no kernel plane")?;
        ensure!(kernel.active && kernel.interfaces[0].adopted, "round {round}: {kernel:?}");
        site.serve(&site.net.client, site.v4(443)).with_context(|| format!("round {round}"))?;
        ensure!(admin.accepted()? == 1, "round {round}: someone else was accepted");
    }
    let admin = site.edge.admin()?;
    ensure!(drain(&inbox)? == 0);
    let dropped = admin.kernel_drops()? - drops;
    let sent = datagrams.sent() - sent;
    ensure!(sent > 10_000, "a flood of {sent} packets is none");
    ensure!(dropped >= sent / 2, "of {sent} datagrams only {dropped} met the program");
    ensure!(knocks.connected() == connected, "a connection of the flood was accepted");
    ensure!(site.backend.accepts() - accepts == 5);
    println!("{sent} datagrams sent, {dropped} packets dropped, 0 arrived; {queued} had been queued before the rule");
    ensure!(program_id(&admin)? != 0 && program != 0);

    admin.unblock(&attacker.v4.to_string())?;
    until("the flood at the edge again", SOON, || Ok(drain(&inbox)? > 0 && knocks.connected() > connected))?;
    datagrams.stop()?;
    knocks.stop()
}

#[test]
fn a_restart_keeps_the_firewall_and_on_exit_detach_removes_it() -> Result<()> {
    let test = "a_restart_keeps_the_firewall_and_on_exit_detach_removes_it";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    let outbox = attacker.namespace.run(|| UdpSocket::bind((attacker.v4, 0)))??;
    let knock = || -> Result<bool> {
        outbox.send_to(b"knock", site.v4(PROBE_PORT))?;
        let client = site.net.client.namespace.run(|| UdpSocket::bind((site.net.client.v4, 0)))??;
        client.send_to(b"fence", site.v4(PROBE_PORT))?;
        let mut buffer = [0; 64];
        let mut has_passed = false;
        while let Some((length, _)) = receive(&inbox, &mut buffer)? {
            if &buffer[..length] == b"fence" {
                return Ok(has_passed);
            }
            has_passed = true;
        }
        bail!("the fence did not arrive")
    };

    let daemon = site.edge.start()?;
    ensure!(knock()?);
    site.edge.admin()?.block(&attacker.v4.to_string())?;
    ensure!(!knock()?);
    daemon.stop()?;
    ensure!(!knock()?, "`on_exit = \"keep\"` keeps");

    site.edge.configure(&format!(
        "{}{}on_exit = \"detach\"\n",
        listener(":443", &[("app.example.com", site.backend.addr())], None),
        xdp(&site.bpffs, "host")
    ))?;
    let daemon = site.edge.start()?;
    ensure!(!knock()?);
    daemon.stop()?;
    ensure!(knock()?, "`on_exit = \"detach\"` removes");
    ensure!(!site.bpffs.pin_path().exists() || site.bpffs.pin_path().read_dir()?.next().is_none(), "pins are left");
    Ok(())
}

#[test]
fn on_exit_detach_goes_on_dropping_across_a_takeover() -> Result<()> {
    let test = "on_exit_detach_goes_on_dropping_across_a_takeover";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    site.configure_xdp("host", "on_exit = \"detach\"\n")?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    let mut daemon = site.edge.start()?;
    let flood = Flood::udp(&attacker.namespace, site.v4(PROBE_PORT));
    until("the flood at the edge", SOON, || Ok(drain(&inbox)? > 0))?;
    site.edge.admin()?.block(&attacker.v4.to_string())?;
    // What had passed the program before the rule was there may still be queued.
    pass(Duration::from_millis(200));
    drain(&inbox)?;

    let before = flood.sent();
    for round in 0..3 {
        let successor = site.edge.take_over()?;
        let status = daemon.wait(SOON)?;
        ensure!(status.success(), "{status}");
        ensure!(drain(&inbox)? == 0, "round {round}: packets of a blocked source arrived");
        let kernel = site.edge.admin()?.status()?.kernel.context("no kernel plane")?;
        ensure!(kernel.active && kernel.interfaces[0].adopted, "round {round}: {kernel:?}");
        daemon = successor;
    }
    drop(site.edge.ask_for_place()?);
    daemon.log().wait_for(&["everything has been taken back"], SOON)?;
    ensure!(drain(&inbox)? == 0, "packets of a blocked source arrived while nobody took over");
    let kernel = site.edge.admin()?.status()?.kernel.context("no kernel plane")?;
    ensure!(kernel.active && kernel.interfaces[0].adopted, "{kernel:?}");
    let sent = flood.sent() - before;
    ensure!(sent > 1_000, "a flood of {sent} packets is none");
    daemon.stop()?;
    until("the flood at the edge again", SOON, || Ok(drain(&inbox)? > 0))?;
    flood.stop()
}

#[test]
fn a_syn_flood_is_counted_in_the_kernel_and_does_not_disturb_others() -> Result<()> {
    let test = "a_syn_flood_is_counted_in_the_kernel_and_does_not_disturb_others";
    let Some(site) = Site::for_test(test, "listeners", "")? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let attacker = &site.net.attacker;
    admin.block(&attacker.v4.to_string())?;
    let (drops, accepted) = (admin.kernel_drops()?, admin.accepted()?);
    let (SocketAddr::V4(to), std::net::IpAddr::V4(source)) = (site.v4(443), attacker.v4) else {
        bail!("these are IPv4 addresses")
    };
    let flood = Flood::syn(&attacker.namespace, source, SocketAddrV4::new(*to.ip(), 443));
    until("5,000 drops", SOON, || Ok(admin.kernel_drops()? - drops > 5_000))?;
    for _ in 0..50 {
        site.serve(&site.net.client, site.v4(443))?;
    }
    ensure!(admin.accepted()? == accepted + 50);
    ensure!(admin.kernel_drops()? - drops <= flood.sent());
    flood.stop()
}

#[test]
fn a_foreign_program_on_the_interface_is_reported_and_left_alone() -> Result<()> {
    let test = "a_foreign_program_on_the_interface_is_reported_and_left_alone";
    let Some(site) = Site::for_test(test, "listeners", "")? else { return Ok(()) };
    // Another daemon's program, with other pins, is as foreign as any.
    let first = site.edge.start()?;
    let owner = program_id(&site.edge.admin()?)?;
    let elsewhere = Bpffs::mount()?;
    let second = Installation::new(&format!(
        "{}{}",
        listener(":4443", &[("app.example.com", site.backend.addr())], None),
        xdp(&elsewhere, "listeners").replace("required = true", "required = false")
    ))?
    .within(&site.net.edge.namespace);
    let guest = second.start()?;
    let kernel = second.admin()?.status()?.kernel.context("no kernel plane")?;
    ensure!(!kernel.active, "{kernel:?}");
    ensure!(kernel.interfaces[0].error.contains(&owner.to_string()), "the id {owner} is not named: {kernel:?}");
    guest.stop()?;
    ensure!(program_id(&site.edge.admin()?)? == owner);
    first.stop()?;

    second.configure(&format!("{}{}", listener(":4443", &[], None), xdp(&elsewhere, "listeners")))?;
    let output = second.start_and_fail().context("with xdp.required")?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && words.contains(&owner.to_string()), "{}: {words}", output.status);
    Ok(())
}

fn message(kind: u8, round: u32) -> Vec<u8> {
    [&[kind][..], &round.to_be_bytes()].concat()
}

fn program_id(admin: &Admin) -> Result<u32> {
    let kernel = admin.status()?.kernel.context("no kernel plane")?;
    Ok(kernel.interfaces.first().context("no interface")?.program_id)
}

/// Whether a SYN of `leaf` raises the drop counter and nothing else.
fn is_dropped(admin: &Admin, leaf: &Leaf, to: SocketAddr) -> Result<bool> {
    let (drops, accepted) = (admin.kernel_drops()?, admin.accepted()?);
    let _knock = leaf.namespace.run(|| begin_connect(to))??;
    until("the drop of a SYN", SOON, || Ok(admin.kernel_drops()? > drops))?;
    Ok(admin.accepted()? == accepted)
}
