//! New connections of a source are limited, in the kernel and without it, and who goes on too long is banned.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    admin::Admin,
    backend::Backend,
    client::{End, ask, ask_from, connect, end_of},
    config::{listener, loopback},
    daemon::Installation,
    flood::receive,
    hello::Hello,
    site::{PROBE_PORT, Site},
    topology::Leaf,
    wait::{SOON, pass, until},
};

/// Connections in a minute: none is given back during a test but the first, after 12 s.
const LIMIT: u64 = 5;
const LIMITED: &str = "[firewall]\nrate_limit = 5\nrate_window = \"60s\"\n";

/// Whether a whole connection of an address is served. The address must belong to the namespace.
fn is_served(leaf: &Leaf, source: IpAddr, to: SocketAddr) -> Result<bool> {
    let hello = Hello::to("app.example.com").bytes();
    let end = leaf.namespace.run(|| ask_from(source, to, &hello))??;
    Ok(end == End::Closed(b"app\n".to_vec()))
}

fn limited(admin: &Admin) -> Result<u64> {
    Ok(admin.kernel_count("rate_limited")?)
}

#[test]
fn the_kernel_answers_so_many_syns_of_a_source_and_drops_the_rest() -> Result<()> {
    let test = "the_kernel_answers_so_many_syns_of_a_source_and_drops_the_rest";
    let Some(site) = Site::for_test(test, "listeners", LIMITED)? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let (attacker, client) = (&site.net.attacker, &site.net.client);
    let others: [IpAddr; 2] = ["203.0.113.51".parse()?, "2001:db8:0:3::51".parse()?];
    for other in others {
        attacker.add(other)?;
    }
    for (source, to) in [(attacker.v4, site.v4(443)), (attacker.v6, site.v6(443))] {
        // Blocked sources spend nothing.
        admin.block(&source.to_string())?;
        for number in 1..=2 * LIMIT {
            let reason = site.drop_of_syn(&admin, attacker, to)?;
            ensure!(reason.as_deref() == Some("blocked_address"), "{source}, blocked, SYN {number}: {reason:?}");
        }
        admin.unblock(&source.to_string())?;
        let before = limited(&admin)?;

        // One connection is kept, and is used when the limit is reached.
        let mut kept = attacker.namespace.run(|| connect(to))??;
        for number in 2..=LIMIT {
            ensure!(is_served(attacker, source, to)?, "{source}: connection {number} of {LIMIT}");
        }
        ensure!(limited(&admin)? == before);
        let accepted = admin.accepted()?;
        for number in 1..=LIMIT {
            let reason = site.drop_of_syn(&admin, attacker, to)?;
            ensure!(reason.as_deref() == Some("rate_limited"), "{source}, {number} too many: {reason:?}");
        }
        ensure!(limited(&admin)? >= before + LIMIT && admin.accepted()? == accepted);
        use std::io::Write as _;
        kept.write_all(&Hello::to("app.example.com").bytes())?;
        kept.shutdown(std::net::Shutdown::Write)?;
        ensure!(end_of(&mut kept)? == End::Closed(b"app\n".to_vec()), "{source}: what is established goes on");

        for number in 1..=3 {
            site.serve(client, to).with_context(|| format!("connection {number} of somebody else"))?;
        }
    }
    // An IPv4 source is an address, an IPv6 source a /64.
    ensure!(is_served(attacker, others[0], site.v4(443))?, "the neighbour's IPv4 address");
    let before = limited(&admin)?;
    let knock = attacker.namespace.run(|| -> Result<_> {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(others[1], 0).into())?;
        socket.set_nonblocking(true)?;
        let _ = socket.connect(&site.v6(443).into());
        Ok(socket)
    })??;
    until("the drop of a SYN of the same /64", SOON, || Ok(limited(&admin)? > before))?;
    drop(knock);

    // Neither is a rule's opinion spent on: who is allowed is not limited.
    admin.allow("203.0.113.0/24")?;
    for _ in 0..2 * LIMIT {
        ensure!(is_served(attacker, attacker.v4, site.v4(443))?, "allowed and limited");
    }
    Ok(())
}

#[test]
fn without_a_kernel_plane_the_figures_are_the_same() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge =
        Installation::new(&format!("{LIMITED}{}", listener(proxy, &[("app.example.com", backend.addr())], None)))?;
    let _daemon = edge.start()?;
    let admin = edge.admin()?;
    let hello = Hello::to("app.example.com").bytes();
    let (source, other) = (loopback().ip(), loopback().ip());
    admin.block(&source.to_string())?;
    for _ in 0..2 * LIMIT {
        ensure!(ask_from(source, proxy, &hello)? == End::Reset(Vec::new()), "blocked");
    }
    admin.unblock(&source.to_string())?;
    for number in 1..=LIMIT {
        let end = ask_from(source, proxy, &hello)?;
        ensure!(end == End::Closed(b"app\n".to_vec()), "connection {number} of {LIMIT}: {end:?}");
    }
    for number in 1..=LIMIT {
        let end = ask_from(source, proxy, &hello)?;
        ensure!(end == End::Reset(Vec::new()), "{number} too many: {end:?}");
    }
    ensure!(ask_from(other, proxy, &hello)? == End::Closed(b"app\n".to_vec()), "somebody else");
    let outcomes = admin.status()?.outcomes;
    let refused = outcomes.iter().find(|outcome| outcome.outcome == "rate_limited").context("not counted")?;
    ensure!(refused.connections == LIMIT, "{outcomes:?}");
    Ok(())
}

#[test]
fn who_goes_on_is_banned_in_the_kernel_and_the_ban_ends() -> Result<()> {
    let policy = "[firewall.auto_ban]\nafter = 4\nwithin = \"60s\"\nttl = \"4s\"\n";
    let test = "who_goes_on_is_banned_in_the_kernel_and_the_ban_ends";
    let Some(site) = Site::for_test(test, "listeners", &format!("{LIMITED}{policy}"))? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let attacker = &site.net.attacker;
    for (source, to) in [(attacker.v4, site.v4(443)), (attacker.v6, site.v6(443))] {
        for _ in 0..LIMIT {
            ensure!(is_served(attacker, source, to)?);
        }
        let reason = || site.drop_of_syn(&admin, attacker, to)?.context("a SYN was accepted");
        ensure!(reason()? == "rate_limited", "{source}");
        until("a ban", SOON, || Ok(reason()? == "banned"))?;
        let begin = Instant::now();
        let status = admin.status()?.firewall.unwrap_or_default();
        ensure!(status.bans == 1 && status.groups.iter().any(|group| group.name == "auto/rate"), "{status:?}");
        ensure!(site.serve(&site.net.client, to).is_ok());
        until("the end of the ban", SOON, || Ok(reason()? == "rate_limited"))?;
        let held = begin.elapsed();
        ensure!(held > Duration::from_millis(3_000) && held < Duration::from_secs(6), "{source}: {held:?}");
        until("the ban's end in the list", SOON, || Ok(admin.status()?.firewall.unwrap_or_default().bans == 0))?;
    }
    Ok(())
}

#[test]
fn a_ban_outlives_the_daemon_and_holds_without_a_kernel_plane() -> Result<()> {
    let policy = "[firewall.auto_ban]\nafter = 1\nwithin = \"60s\"\nttl = \"1m\"\n";
    let test = "a_ban_outlives_the_daemon_and_holds_without_a_kernel_plane";
    let Some(site) = Site::for_test(test, "listeners", policy)? else { return Ok(()) };
    let daemon = site.edge.start()?;
    let attacker = &site.net.attacker;
    let bans = || -> Result<u64> { Ok(site.edge.admin()?.status()?.firewall.unwrap_or_default().bans) };
    for to in [site.v4(443), site.v6(443)] {
        site.serve(attacker, to)?;
        attacker.namespace.run(|| ask(to, b"this is no handshake"))??;
    }
    until("two bans", SOON, || Ok(bans()? == 2))?;
    let expiries = || -> Result<Vec<_>> { Ok(site.edge.admin()?.rules()?.into_iter().map(|r| r.expires_at).collect()) };
    until("the bans in the database", SOON, || Ok(expiries()?.len() == 2))?;
    let before = expiries()?;
    daemon.kill()?;
    let daemon = site.edge.start()?;
    ensure!(bans()? == 2 && expiries()? == before, "{before:?} became {:?}", expiries()?);
    for to in [site.v4(443), site.v6(443)] {
        let reason = site.drop_of_syn(&site.edge.admin()?, attacker, to)?;
        ensure!(reason.as_deref() == Some("banned"), "{reason:?}");
        site.serve(&site.net.client, to)?;
    }
    daemon.stop()?;

    site.edge.configure(&format!("{policy}{}", listener(":443", &[("app.example.com", site.backend.addr())], None)))?;
    // With the interface goes the program on it: what is refused from now on, user space refuses.
    site.net.unplug_edge()?;
    site.net.plug_edge()?;
    let _daemon = site.edge.start()?;
    for to in [site.v4(443), site.v6(443)] {
        let end = attacker.namespace.run(|| ask(to, &Hello::to("app.example.com").bytes()))??;
        ensure!(end == End::Reset(Vec::new()), "banned, without a kernel plane: {end:?}");
        site.serve(&site.net.client, to)?;
    }
    let outcomes = site.edge.admin()?.status()?.outcomes;
    ensure!(outcomes.iter().any(|outcome| outcome.outcome == "banned" && outcome.connections == 2), "{outcomes:?}");
    Ok(())
}

#[test]
fn garbage_and_unknown_names_are_banned_at_once() -> Result<()> {
    const ROUNDS: u8 = 10;
    let policy = "[firewall.auto_ban]\nafter = 3\nwithin = \"60s\"\nttl = \"1m\"\n";
    let test = "garbage_and_unknown_names_are_banned_at_once";
    let Some(site) = Site::for_test(test, "host", policy)? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let (source, to, probe): (IpAddr, _, _) = if round % 2 == 0 {
            (format!("203.0.113.{}", 100 + round).parse()?, site.v4(443), site.v4(PROBE_PORT))
        } else {
            // Each in a /64 of its own: that is what is banned.
            (format!("2001:db8:0:{:x}::66", 0x300 + u16::from(round)).parse()?, site.v6(443), site.v6(PROBE_PORT))
        };
        attacker.add(source)?;
        if source.is_ipv6() {
            site.net.route_to_attacker(source)?;
        }
        let bytes = match round % 4 {
            0 | 1 => b"\x05\x01\x00 this is no handshake".to_vec(),
            _ => Hello::to("unknown.example.com").bytes(),
        };
        inbox.set_read_timeout(Some(SOON))?;
        ensure!(site.passes(&inbox, attacker, source)?, "{source} cannot be told from a banned one");
        let bans = admin.status()?.firewall.unwrap_or_default().bans;
        let (ended, sent) = attacker.namespace.run(|| -> Result<_> {
            let outbox = UdpSocket::bind((source, 0))?;
            for _ in 0..3 {
                let end = ask_from(source, to, &bytes)?;
                ensure!(end == End::Reset(Vec::new()), "{source}: {end:?}");
            }
            let ended = Instant::now();
            let mut sent = Vec::new();
            while ended.elapsed() < Duration::from_millis(150) {
                sent.push(Instant::now());
                outbox.send_to(&(sent.len() as u32 - 1).to_be_bytes(), probe)?;
                thread::park_timeout(Duration::from_micros(100));
            }
            Ok((ended, sent))
        })??;
        inbox.set_read_timeout(Some(Duration::from_millis(300)))?;
        let mut arrived = 0;
        while receive(&inbox, &mut [0; 64])?.is_some() {
            arrived += 1;
        }
        ensure!(arrived < sent.len(), "{source} is not banned: {arrived} of {} arrived", sent.len());
        times.push(sent[arrived].duration_since(ended));
        ensure!(admin.status()?.firewall.unwrap_or_default().bans == bans + 1, "{source}");
    }
    times.sort();
    println!("from the end of the offence to the first drop: median {:?}, all {times:?}", times[times.len() / 2]);
    ensure!(times[0] < Duration::from_millis(10) && times[times.len() / 2] < Duration::from_millis(50), "{times:?}");
    let groups = admin.status()?.firewall.unwrap_or_default().groups;
    for name in ["auto/handshake", "auto/server_name"] {
        let group = groups.iter().find(|group| group.name == name).with_context(|| format!("{name}: {groups:?}"))?;
        ensure!(group.rules == 5 || group.rules == 4 || group.rules == 6, "{group:?}");
        ensure!(group.dropped_packets > 0, "{group:?}");
    }
    // One offence less than it takes is none.
    for _ in 0..2 {
        let end = attacker.namespace.run(|| ask(site.v4(443), b"no handshake"))??;
        ensure!(end == End::Reset(Vec::new()), "{end:?}");
    }
    pass(Duration::from_millis(100));
    site.serve(attacker, site.v4(443))
}
