//! What rules mean, packet by packet in the kernel: expiry, counting, scope, precedence, countries.

use std::{
    fs,
    net::{IpAddr, UdpSocket},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use mc_proxy_proto::v1::{ExplainFirewallRequest, ExplainFirewallResponse, FirewallAction};
use mc_proxy_tests::{
    admin::{Admin, rule},
    config::listener,
    mmdb,
    site::Site,
    wait::{SOON, pass, until},
};

#[test]
fn expiry_is_the_kernels_also_while_the_daemon_is_dead() -> Result<()> {
    let test = "expiry_is_the_kernels_also_while_the_daemon_is_dead";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let daemon = site.edge.start()?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    for source in [attacker.v4, attacker.v6] {
        ensure!(site.passes(&inbox, attacker, source)?);
    }
    let begin = Instant::now();
    site.edge.ctl(&["firewall", "add", "203.0.113.50", "2001:db8:0:3::/64", "--ttl", "3s"])?;
    for source in [attacker.v4, attacker.v6] {
        ensure!(!site.passes(&inbox, attacker, source)?, "{source} is blocked");
    }
    daemon.kill()?;
    for source in [attacker.v4, attacker.v6] {
        ensure!(!site.passes(&inbox, attacker, source)?, "{source} is blocked without a daemon");
    }
    ensure!(begin.elapsed() < Duration::from_secs(3), "this machine is too busy to tell");
    for source in [attacker.v4, attacker.v6] {
        until("the end of the block", SOON, || site.passes(&inbox, attacker, source))?;
        let after = begin.elapsed();
        ensure!(after > Duration::from_millis(2_900) && after < Duration::from_secs(5), "{source}: {after:?}");
    }
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    until("the rules' end in the list", SOON, || Ok(admin.rules()?.is_empty()))?;
    ensure!(site.passes(&inbox, attacker, attacker.v4)? && site.passes(&inbox, attacker, attacker.v6)?);
    Ok(())
}

#[test]
fn the_remaining_time_survives_restarts_and_is_set_anew_by_adding_again() -> Result<()> {
    let test = "the_remaining_time_survives_restarts_and_is_set_anew_by_adding_again";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let daemon = site.edge.start()?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    let begin = Instant::now();
    site.edge.ctl(&["firewall", "add", "203.0.113.50", "--ttl", "1s"])?;
    site.edge.ctl(&["firewall", "add", "203.0.113.50", "--ttl", "7s"])?;
    site.edge.ctl(&["firewall", "add", "2001:db8:0:3::50", "--ttl", "1h"])?;
    let expiry = |admin: &Admin| -> Result<SystemTime> {
        let rules = admin.rules()?;
        let rule = rules.iter().find(|rule| rule.value == "203.0.113.50").context("the rule is gone")?;
        Ok(SystemTime::try_from(rule.expires_at.context("no expiry")?)?)
    };
    let before = expiry(&site.edge.admin()?)?;
    daemon.kill()?;
    let daemon = site.edge.start()?;
    daemon.stop()?;
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    ensure!(expiry(&admin)? == before, "{before:?} became {:?}", expiry(&admin)?);
    pass(Duration::from_millis(1_200).saturating_sub(begin.elapsed()));
    ensure!(begin.elapsed() < Duration::from_secs(6), "too busy");
    ensure!(!site.passes(&inbox, attacker, attacker.v4)?, "the longer time holds");
    until("the end of the block", SOON, || site.passes(&inbox, attacker, attacker.v4))?;
    let (after, late) = (begin.elapsed(), before.elapsed().unwrap_or_default());
    ensure!(after > Duration::from_millis(6_900) && late < Duration::from_secs(1), "{after:?}, {late:?} late");
    ensure!(SystemTime::now() >= before - Duration::from_millis(50), "early");

    ensure!(!site.passes(&inbox, attacker, attacker.v6)?);
    let begin = Instant::now();
    site.edge.ctl(&["firewall", "add", "2001:db8:0:3::50", "--ttl", "1s"])?;
    until("the end of a block that was made shorter", SOON, || site.passes(&inbox, attacker, attacker.v6))?;
    ensure!(begin.elapsed() > Duration::from_millis(900) && begin.elapsed() < Duration::from_secs(4));
    until("the rules' end in the list", SOON, || Ok(admin.rules()?.is_empty()))
}

#[test]
fn counting_rules_count_and_let_pass() -> Result<()> {
    let Some(site) = Site::for_test("counting_rules_count_and_let_pass", "host", "")? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    let add = ["firewall", "add", "203.0.113.0/24", "2001:db8:0:3::50", "--group", "trial"];
    site.edge.ctl(&[&add[..], &["--count"]].concat())?;
    let drops = admin.kernel_drops()?;
    for round in 1..=10 {
        for source in [attacker.v4, attacker.v6] {
            ensure!(site.passes(&inbox, attacker, source)?, "{source} in round {round}");
        }
    }
    let trial = admin.group("trial")?;
    // A datagram of five bytes has some 47 on the wire, over IPv6 67; the neighbour's words are not judged.
    ensure!(trial.rules == 2 && trial.shadow_packets == 20 && trial.dropped_packets == 0, "{trial:?}");
    ensure!(trial.shadow_bytes == 10 * (14 + 20 + 8 + 5) + 10 * (14 + 40 + 8 + 5), "{trial:?}");
    ensure!(admin.kernel_drops()? == drops);

    site.edge.ctl(&add)?;
    for source in [attacker.v4, attacker.v6] {
        ensure!(!site.passes(&inbox, attacker, source)?, "{source} is blocked beside being counted");
    }
    let trial = admin.group("trial")?;
    ensure!(trial.rules == 4 && trial.dropped_packets == 2 && trial.dropped_bytes > 0, "{trial:?}");
    Ok(())
}

#[test]
fn scopes_are_the_hosts_the_listeners_or_one_listeners() -> Result<()> {
    let second = listener(":8443", &[("app.example.com", ([192, 0, 2, 10], 80).into())], None);
    let test = "scopes_are_the_hosts_the_listeners_or_one_listeners";
    let Some(site) = Site::for_test(test, "listeners", &second)? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    for (scope, blocks) in [
        ("default", [true, true, false]),
        ("listener:443", [true, false, false]),
        ("listener:8443", [false, true, false]),
        ("host", [true, true, true]),
    ] {
        for (source, edge) in [(attacker.v4, site.net.edge.v4), (attacker.v6, site.net.edge.v6)] {
            let subject = source.to_string();
            site.edge.ctl(&["firewall", "add", &subject, "--scope", scope])?;
            for (port, is_blocked) in [443, 8443].into_iter().zip(blocks) {
                let dropped = site.drop_of_syn(&admin, attacker, (edge, port).into())?;
                ensure!(dropped.is_some() == is_blocked, "{scope}, {source} to {port}: {dropped:?}");
            }
            ensure!(site.passes(&inbox, attacker, source)? != blocks[2], "{scope}, {source} to no listener");
            site.edge.ctl(&["firewall", "remove", &subject, "--scope", scope])?;
            ensure!(site.drop_of_syn(&admin, attacker, (edge, 443).into())?.is_none(), "{source} after {scope}");
        }
    }
    let refused = site.edge.ctl_output(&["firewall", "add", "203.0.113.50", "--scope", "listener:444"])?;
    ensure!(!refused.status.success(), "a listener that is not there");
    Ok(())
}

#[test]
fn allow_beats_block_beats_ban_beats_country() -> Result<()> {
    let test = "allow_beats_block_beats_ban_beats_country";
    let Some(site) = Site::for_test(test, "listeners", "")? else { return Ok(()) };
    let path = site.edge.directory().join("country.mmdb");
    let places: [(IpNet, &str); 2] = [("203.0.113.0/24".parse()?, "RU"), ("2001:db8:0:3::/64".parse()?, "RU")];
    fs::write(&path, mmdb::write(mmdb::Style::flat(), &places))?;
    site.configure(
        "listeners",
        &format!(
            "[firewall]\ngeoip_db = \"{}\"\n[firewall.auto_ban]\nafter = 1\nwithin = \"60s\"\nttl = \"10m\"\n",
            path.display()
        ),
    )?;
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let attacker = &site.net.attacker;
    for (source, to, prefix) in
        [(attacker.v4, site.v4(443), "203.0.113.0/24"), (attacker.v6, site.v6(443), "2001:db8:0:3::/64")]
    {
        let reason = || site.drop_of_syn(&admin, attacker, to);
        ensure!(reason()?.is_none());
        admin.block("RU")?;
        ensure!(reason()?.as_deref() == Some("blocked_country"), "{source}: {:?}", reason()?);
        admin.unblock("RU")?;
        ensure!(reason()?.is_none());

        // What is no handshake is a reason for a ban.
        let bans = admin.status()?.firewall.unwrap_or_default().bans;
        attacker.namespace.run(|| mc_proxy_tests::client::ask(to, b"GET / HTTP/1.0\r\n\r\n"))??;
        until("a ban", SOON, || Ok(admin.status()?.firewall.unwrap_or_default().bans > bans))?;
        ensure!(reason()?.as_deref() == Some("banned"), "{source}: {:?}", reason()?);
        admin.block("RU")?;
        ensure!(reason()?.as_deref() == Some("banned"), "{source}, ban and country: {:?}", reason()?);
        admin.block(prefix)?;
        ensure!(reason()?.as_deref() == Some("blocked_prefix"), "{source}, block and ban: {:?}", reason()?);
        admin.block(&source.to_string())?;
        ensure!(reason()?.as_deref() == Some("blocked_address"), "{source}: {:?}", reason()?);
        admin.allow(prefix)?;
        site.serve(attacker, to).with_context(|| format!("{source}: allow beats everything"))?;
        admin.remove_rule(rule(prefix, FirewallAction::Allow))?;
        for subject in [&source.to_string(), prefix, "RU"] {
            admin.unblock(subject)?;
        }
        ensure!(reason()?.as_deref() == Some("banned"), "{source}: the ban is still there");
    }
    Ok(())
}

#[test]
fn a_country_of_a_real_database_is_blocked_in_both_families() -> Result<()> {
    const COUNTRY: &str = "CN";
    const ASKED: usize = 400;
    let test = "a_country_of_a_real_database_is_blocked_in_both_families";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let path = site.edge.directory().join("country.mmdb");
    let near: [IpNet; 2] = ["203.0.113.0/24".parse()?, "2001:db8:0:3::/64".parse()?];
    let mut places = mmdb::registry(7, 150_000, 40_000);
    places.retain(|(net, _)| near.iter().all(|near| !near.contains(net) && !net.contains(near)));
    places.extend(near.map(|net| (net, COUNTRY)));
    fs::write(&path, mmdb::write(mmdb::Style::nested(), &places))?;
    let firewall = format!("[firewall]\ngeoip_db = \"{}\"\nblocked_countries = [\"{COUNTRY}\"]\n", path.display());
    site.configure("host", &firewall)?;
    let daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    ensure!(!site.passes(&inbox, attacker, attacker.v4)? && !site.passes(&inbox, attacker, attacker.v6)?);
    ensure!(admin.kernel_count("blocked_country")? == 2);

    let (mut dropped, mut passed) = (0, 0);
    for (net, country) in places.iter().step_by(places.len() / ASKED) {
        let explained = explain(&admin, net.addr())?;
        let kernel = explained.kernel.clone().context("no answer of the kernel")?;
        let is_blocked = *country == COUNTRY;
        ensure!(kernel.ran && kernel.drop == is_blocked, "{net} of {country}: {explained:?}");
        ensure!((explained.verdict == "drop") == is_blocked && explained.country == *country, "{explained:?}");
        *(if is_blocked { &mut dropped } else { &mut passed }) += 1;
    }
    let prefixes = places.iter().filter(|(_, country)| *country == COUNTRY).count();
    println!("ready after {:?} with {prefixes} prefixes; {dropped} dropped, {passed} passed", daemon.ready_after());
    ensure!(dropped > 20 && passed > 20 && prefixes > 10_000);
    let geoip = admin.status()?.firewall.unwrap_or_default().geoip.context("no GeoIP database in status")?;
    ensure!(geoip.age_seconds > 0, "{geoip:?}");

    admin.unblock(COUNTRY)?;
    ensure!(site.passes(&inbox, attacker, attacker.v4)? && site.passes(&inbox, attacker, attacker.v6)?);
    Ok(())
}

#[test]
fn a_mapped_address_is_its_ipv4_address() -> Result<()> {
    let Some(site) = Site::for_test("a_mapped_address_is_its_ipv4_address", "host", "")? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    for (given, known) in [("::ffff:203.0.113.50", "203.0.113.50"), ("::ffff:203.0.113.0/120", "203.0.113.0/24")] {
        site.edge.ctl(&["firewall", "add", given])?;
        let rules = admin.rules()?;
        ensure!(rules.len() == 1 && rules[0].value == known, "{given}: {rules:?}");
        ensure!(!site.passes(&inbox, attacker, attacker.v4)?, "{given}");
        ensure!(explain(&admin, "::ffff:203.0.113.50".parse()?)?.verdict == "drop", "{given}");
        site.edge.ctl(&["firewall", "remove", known])?;
        ensure!(site.passes(&inbox, attacker, attacker.v4)?, "{given}");
    }
    Ok(())
}

#[test]
fn a_thousand_rules_are_in_force_when_the_call_returns_and_gone_likewise() -> Result<()> {
    let test = "a_thousand_rules_are_in_force_when_the_call_returns_and_gone_likewise";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    let outboxes = [attacker.v4, attacker.v6].map(|source| attacker.namespace.run(|| UdpSocket::bind((source, 0))));
    let [v4, v6] = outboxes.map(|outbox| outbox.map(|socket| socket.context("binding")));
    let outboxes = [v4??, v6??];
    let fences = [site.fence(false)?, site.fence(true)?];
    let passes = |source: IpAddr| {
        let family = usize::from(source.is_ipv6());
        site.arrives(&inbox, &outboxes[family], &fences[family])
    };
    let prefixes = (24..=32).map(|length| (attacker.v4, length)).chain((64..=128).map(|length| (attacker.v6, length)));
    let mut toggles = 0;
    let (begin, limit) = (Instant::now(), Duration::from_secs(17));
    for (source, length) in prefixes.cycle().take(1_000) {
        let net = IpNet::new(source, length)?.trunc();
        let subject = if length == net.max_prefix_len() { source.to_string() } else { net.to_string() };
        admin.block(&subject)?;
        ensure!(!passes(source)?, "{subject} after {toggles} toggles");
        admin.unblock(&subject)?;
        ensure!(passes(source)?, "{subject} after {toggles} toggles");
        toggles += 1;
        ensure!(begin.elapsed() < limit, "only {toggles} toggles within {limit:?}");
    }
    println!("{toggles} toggles in {:?}", begin.elapsed());
    Ok(())
}

fn explain(admin: &Admin, source: IpAddr) -> Result<ExplainFirewallResponse> {
    let request = ExplainFirewallRequest { source: source.to_string(), ..ExplainFirewallRequest::default() };
    Ok(admin.call(async |mut client| client.explain_firewall(request).await)?)
}
