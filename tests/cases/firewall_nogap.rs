//! Nothing that is blocked before and after a change passes during it: a flood of blocked sources, and not one packet of
//! it at the receiver, which sees those of others.

use std::{fmt::Write as _, fs, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use mc_proxy_tests::{
    daemon::Installation,
    leak::LeakTest,
    mmdb,
    site::Site,
    wait::{SOON, pass, until},
};
use rustix::process::Signal;

/// Blocked by address.
const ADDRESSES: [&str; 2] = ["203.0.113.50", "2001:db8:0:3::50"];
/// Blocked by prefix only.
const WITHIN: [&str; 2] = ["203.0.113.66", "2001:db8:0:3:a::1"];
const PREFIXES: [&str; 2] = ["203.0.113.64/28", "2001:db8:0:3:a::/80"];

/// All of the attacker's addresses that are blocked, which he has from now on.
fn sources(site: &Site) -> Result<Vec<IpAddr>> {
    for source in WITHIN {
        site.net.attacker.add(source.parse()?)?;
    }
    ADDRESSES.iter().chain(&WITHIN).map(|source| Ok(source.parse()?)).collect()
}

/// A list with the attacker in it, and `count` other entries from number `first` on: addresses of both families, and
/// prefixes of several lengths, that do not merge.
fn list(edge: &Installation, name: &str, first: u32, count: u32) -> Result<PathBuf> {
    let mut text = ADDRESSES.iter().chain(&PREFIXES).fold(String::new(), |text, entry| text + entry + "\n");
    for number in first..first + count {
        // An odd factor spreads the numbers without repeating one.
        let spread = number.wrapping_mul(0x9e37_79b1);
        let _ = match number % 8 {
            0 => writeln!(text, "2a00:{:x}:{:x}::1", spread >> 16, spread & 0xffff),
            1 => writeln!(text, "2a01:{:x}:{:x}::/48", spread >> 16, spread & 0xffff),
            2 => writeln!(text, "{}/31", std::net::Ipv4Addr::from_bits(0x0b00_0000 | number << 2 & 0x00ff_fffc)),
            _ => writeln!(text, "{}", std::net::Ipv4Addr::from_bits(0x1400_0000 | spread >> 6 << 1 & 0x0fff_ffff)),
        };
    }
    let path = edge.directory().join(name);
    fs::write(&path, text)?;
    Ok(path)
}

fn import(edge: &Installation, path: &std::path::Path) -> Result<String> {
    edge.ctl(&["firewall", "import", "--group", "flood", path.to_str().context("a path of UTF-8")?])
}

/// The tests below would see a packet that gets through.
#[test]
fn a_leak_of_a_moment_is_seen() -> Result<()> {
    let Some(site) = Site::for_test("a_leak_of_a_moment_is_seen", "host", "")? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let sources: Vec<IpAddr> = ADDRESSES.iter().map(|source| source.parse()).collect::<Result<_, _>>()?;
    for (address, other) in [(ADDRESSES[0], ADDRESSES[1]), (ADDRESSES[1], ADDRESSES[0])] {
        admin.block(address)?;
        admin.block(other)?;
        let test = LeakTest::start(&site, &sources)?;
        let leak = test.during("a moment without the rule", || {
            admin.unblock(address)?;
            pass(Duration::from_millis(20));
            admin.block(address).context("blocking again")
        });
        let words = format!("{:#}", leak.err().context("the leak was not seen")?);
        ensure!(words.contains("arrived") && words.contains(address), "{words}");
        test.stop()?;
    }
    Ok(())
}

#[test]
fn replacing_and_growing_a_list() -> Result<()> {
    let Some(site) = Site::for_test("replacing_and_growing_a_list", "host", "")? else { return Ok(()) };
    let edge = &site.edge;
    let small = list(edge, "small.txt", 0, 10)?;
    let first = list(edge, "first.txt", 0, 100_000)?;
    let second = list(edge, "second.txt", 50_000, 100_000)?;
    let large = list(edge, "large.txt", 0, 200_000)?;
    let _daemon = edge.start()?;
    let admin = edge.admin()?;
    import(edge, &small)?;
    let generation = || -> Result<u64> { Ok(admin.status()?.kernel.context("no kernel plane")?.generation) };

    let test = LeakTest::start(&site, &sources(&site)?)?;
    let before = generation()?;
    test.during("from 10 entries to 100,000", || import(edge, &first))?;
    ensure!(generation()? > before, "the tables have not grown");
    test.during("100,000 entries by 100,000 of which half are new", || import(edge, &second))?;
    test.during("to 200,000 entries", || import(edge, &large))?;
    ensure!(admin.group("flood")?.rules > 190_000, "{:?}", admin.group("flood")?);
    test.during("back to 10 entries", || import(edge, &small))?;
    ensure!(admin.group("flood")?.rules == 14, "{:?}", admin.group("flood")?);
    test.stop()
}

#[test]
fn a_block_moves_from_an_address_to_a_prefix_and_back() -> Result<()> {
    let test = "a_block_moves_from_an_address_to_a_prefix_and_back";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let edge = &site.edge;
    let file = |name: &str, entries: &[&str]| -> Result<PathBuf> {
        let path = edge.directory().join(name);
        fs::write(&path, entries.join("\n") + "\n")?;
        Ok(path)
    };
    let addresses = file("addresses.txt", &ADDRESSES)?;
    let wider = ["203.0.113.0/24", "2001:db8:0:3::/64"];
    let prefixes = file("prefixes.txt", &wider)?;
    let both = file("both.txt", &["203.0.113.48/30", "203.0.113.50/31", "2001:db8:0:3::/64", "2001:db8:0:3::40/122"])?;
    let _daemon = edge.start()?;
    import(edge, &addresses)?;
    let sources: Vec<IpAddr> = ADDRESSES.iter().map(|source| source.parse()).collect::<Result<_, _>>()?;
    let test = LeakTest::start(&site, &sources)?;
    for round in 0..4 {
        for (what, path) in [("prefixes", &prefixes), ("prefixes in each other", &both), ("addresses", &addresses)] {
            test.during(&format!("round {round}: to {what}, as a list"), || import(edge, path))?;
        }
    }
    let admin = edge.admin()?;
    for (address, prefix) in ADDRESSES.into_iter().zip(wider) {
        admin.block(address)?;
        test.during(&format!("{address}, one rule by one"), || {
            for _ in 0..100 {
                admin.block(prefix)?;
                admin.unblock(address)?;
                admin.block(address)?;
                admin.unblock(prefix)?;
            }
            Ok(())
        })?;
    }
    test.stop()
}

#[test]
fn the_daemon_is_killed_restarted_and_upgraded() -> Result<()> {
    let test = "the_daemon_is_killed_restarted_and_upgraded";
    let Some(mut site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let path = list(&site.edge, "list.txt", 0, 20_000)?;
    let mut daemon = site.edge.start()?;
    import(&site.edge, &path)?;
    let test = LeakTest::start(&site, &sources(&site)?)?;
    for round in 0..2 {
        (daemon, _) = test.during(&format!("round {round}: SIGKILL and start"), || {
            daemon.kill()?;
            pass(Duration::from_millis(200));
            site.edge.start()
        })?;
        ensure!(
            site.edge.admin()?.status()?.kernel.is_some_and(|kernel| kernel.active && kernel.interfaces[0].adopted)
        );
        (daemon, _) = test.during(&format!("round {round}: stop and start"), || {
            daemon.stop()?;
            pass(Duration::from_millis(200));
            site.edge.start()
        })?;
    }
    site.edge.upgrade()?;
    (daemon, _) = test.during("another copy of the daemon takes over", || {
        daemon.stop()?;
        site.edge.start()
    })?;
    let running = fs::read_link(format!("/proc/{}/exe", daemon.pid()))?;
    ensure!(running.ends_with("mc-proxy-upgraded"), "{} runs", running.display());
    (daemon, _) = test.during("a change by the new one, and SIGKILL in the middle of another", || {
        import(&site.edge, &path)?;
        let larger = list(&site.edge, "larger.txt", 0, 60_000)?;
        std::thread::scope(|scope| -> Result<_> {
            // How the command ends is open: its daemon dies.
            let importing = scope.spawn(|| import(&site.edge, &larger));
            pass(Duration::from_millis(700));
            daemon.kill()?;
            let _ = importing.join().expect("it returns its error");
            site.edge.start()
        })
    })?;
    let rules = site.edge.admin()?.group("flood")?.rules;
    ensure!(rules == 20_004 || rules == 60_004, "half a list is in force: {rules} rules");
    daemon.stop()?;
    test.during("without a daemon", || {
        pass(Duration::from_millis(300));
        Ok(())
    })?;
    test.stop()
}

#[test]
fn the_geoip_database_is_reloaded() -> Result<()> {
    let test = "the_geoip_database_is_reloaded";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let path = site.edge.directory().join("country.mmdb");
    let write = |seed: u64, attacker: &[&str]| -> Result<()> {
        let attacker: Vec<IpNet> = attacker.iter().map(|net| net.parse()).collect::<Result<_, _>>()?;
        let near: [IpNet; 2] = ["203.0.113.0/24".parse()?, "2001:db8:0:3::/64".parse()?];
        let is_apart = |net: &IpNet| near.iter().all(|near| !near.contains(net) && !net.contains(near));
        let mut places = mmdb::registry(seed, 30_000, 6_000);
        places.retain(|(net, _)| is_apart(net));
        places.extend(attacker.into_iter().map(|net| (net, "RU")));
        // Published as it should be: whole, under another name, and then renamed.
        let new = path.with_extension("new");
        fs::write(&new, mmdb::write(mmdb::Style::nested(), &places))?;
        Ok(fs::rename(&new, &path)?)
    };
    write(1, &["203.0.113.0/24", "2001:db8:0:3::/64"])?;
    let firewall = format!("[firewall]\ngeoip_db = \"{}\"\nblocked_countries = [\"RU\", \"CN\"]\n", path.display());
    site.configure("host", &firewall)?;
    let daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let test = LeakTest::start(&site, &sources(&site)?)?;
    let prefixes = || -> Result<u64> { Ok(admin.kernel_count("blocked_country")?) };
    ensure!(prefixes()? > 0);

    let halves = ["203.0.113.0/25", "203.0.113.128/25", "2001:db8:0:3::/65", "2001:db8:0:3:8000::/65"];
    test.during("SIGHUP with another database", || {
        write(2, &halves)?;
        daemon.signal(Signal::HUP)?;
        // The line comes when it begins; a change that is made afterwards waits for its end.
        daemon.log().wait_for(&["received SIGHUP, reloading GeoIP database"], SOON)?;
        admin.block("192.0.2.200").context("a change after the reload")
    })?;
    test.during("a file that has changed", || {
        write(3, &["203.0.113.0/24", "2001:db8:0:3::/64"])?;
        daemon.log().wait_for(&["the GeoIP database has changed, reloading it"], SOON)?;
        admin.unblock("192.0.2.200").context("a change after the reload")
    })?;
    test.during("a country more, and one less", || {
        admin.block("US")?;
        admin.unblock("CN").context("CN")
    })?;
    until("country drops", SOON, || Ok(prefixes()? > 1_000))?;
    test.stop()
}
