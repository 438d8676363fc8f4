//! What rules can be besides blocks of one address: countries, rules with an end, lists. All of it acts in the kernel.

use std::{
    fs,
    net::{IpAddr, SocketAddr, SocketAddrV4, TcpStream},
    process::Output,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use mc_proxy_proto::v1::{FirewallGroup, ListFirewallGroupsRequest};
use mc_proxy_tests::{
    daemon::{Daemon, Installation},
    flood::Flood,
    mmdb::{self, Style},
    wait::{SOON, pass, until},
};
use rustix::process::Signal;

use crate::{
    kernel::{Site, kernel},
    report::Figures,
};

const ATTACKER: &str = "203.0.113.50";
/// Where the database of the demonstration places the attacker. Nobody else is there.
const COUNTRY: &str = "AQ";
const TTL: Duration = Duration::from_secs(3);
/// For one attempt to connect: what is dropped is not answered.
const PATIENCE: Duration = Duration::from_millis(100);
const GROUP: &str = "feeds/demo";

/// The part of the configuration that countries need, and the database that it names.
pub(crate) fn geoip(edge: &Installation) -> Result<String> {
    let path = edge.directory().join("countries.mmdb");
    let places = [("198.51.100.0/24", "NZ"), ("203.0.113.0/24", COUNTRY), ("2001:db8:0:3::/64", COUNTRY)];
    let places = places.map(|(net, country)| (net.parse().expect("a literal"), country));
    let style = Style { built_at: SystemTime::now(), ..Style::nested() };
    fs::write(&path, mmdb::write(style, &places)).context("writing the GeoIP database")?;
    Ok(format!("\n[firewall]\ngeoip_db = \"{}\"\n", path.display()))
}

pub(crate) fn country(site: &Site, figures: &mut Figures) -> Result<()> {
    ensure!(site.reaches()?, "{ATTACKER} is dropped before the block");
    let before = site.dropped_for("blocked_country")?;
    site.ctl(figures, &["firewall", "add", COUNTRY])?;
    site.flood(figures, Duration::from_secs(1))?;
    ensure!(!site.reaches()?, "{ATTACKER} is let in");
    let dropped = site.dropped_for("blocked_country")? - before;
    figures.add(format!("the kernel's counter blocked_country rose by {dropped}; {ATTACKER} gets no answer"));
    ensure!(dropped > 100, "the counter rose by {dropped} only");
    site.explain(figures, &["decided by: block AQ", "kernel: drops (blocked_country)"])?;
    site.ctl(figures, &["firewall", "remove", COUNTRY])?;
    ensure!(site.reaches()?, "{ATTACKER} is dropped after the rule is gone");
    figures.add(format!("{ATTACKER} gets an answer again"));
    Ok(())
}

/// The daemon is stopped while the rule ends: whoever takes it out of force, it is not the daemon.
pub(crate) fn ban(site: &Site, daemon: &Daemon, figures: &mut Figures) -> Result<()> {
    let begin = Instant::now();
    site.ctl(figures, &["firewall", "add", ATTACKER, "--ttl", "3s", "--comment", "scans"])?;
    ensure!(!site.reaches()?, "{ATTACKER} is let in");
    site.explain(figures, &["decided by: block 203.0.113.50", "expires=", "kernel: drops (blocked_address)"])?;
    daemon.signal(Signal::STOP)?;
    figures.add(format!("$ kill -STOP {}     (the daemon does nothing from here on)", daemon.pid()));
    let outcome = until_let_in(site, begin);
    daemon.signal(Signal::CONT)?;
    let (attempts, after) = outcome?;
    figures.add(format!("{attempts} attempts of {ATTACKER} to connect were not answered, the next one was:"));
    figures.add(format!("{:.2} s after the command was given", after.as_secs_f64()));
    ensure!(attempts > 0 && after >= TTL, "the rule held for {after:?} only");
    figures.add(format!("$ kill -CONT {}", daemon.pid()));
    until("the end of the rule in the database", SOON, || {
        Ok(!site.edge.ctl(&["firewall", "list"])?.contains(ATTACKER))
    })?;
    figures.add("the rule is gone from the list as well");
    Ok(())
}

/// Attempts that were not answered, and when one was.
fn until_let_in(site: &Site, begin: Instant) -> Result<(u32, Duration)> {
    let mut attempts = 0;
    while begin.elapsed() < TTL + SOON {
        if site.reaches()? {
            return Ok((attempts, begin.elapsed()));
        }
        attempts += 1;
    }
    bail!("{ATTACKER} is still dropped {:?} after the rule should have ended", begin.elapsed() - TTL)
}

pub(crate) fn list(site: &Site, figures: &mut Figures) -> Result<()> {
    let path = site.edge.directory().join("list.netset");
    let name = path.to_str().context("the directory has no name in UTF-8")?;
    let entries = [
        "# what publishers write: addresses, networks, ranges, JSON",
        "192.0.2.128/25",
        "198.18.0.0-198.19.255.255   # RFC 2544",
        "203.0.113.0/26              ; the attacker's network",
        "2001:db8:bad::/48",
        "{\"cidr\":\"198.51.100.128/25\",\"sblid\":\"SBL0\"}",
    ];
    fs::write(&path, entries.join("\n") + "\n")?;
    site.ctl(figures, &["firewall", "import", name, "--group", GROUP])?;
    let before = site.group()?.context("there is no such group")?;
    ensure!(before.rules == 5, "{} rules instead of 5", before.rules);
    site.flood(figures, Duration::from_secs(1))?;
    let dropped = site.group()?.unwrap_or_default().dropped_packets - before.dropped_packets;
    ensure!(dropped > 100, "the group's counter rose by {dropped} only");
    figures.quote("mcproxyctl firewall groups", &site.edge.ctl(&["firewall", "groups"])?);

    // A list that has a bad line changes nothing; one without the attacker lets him in.
    fs::write(&path, "192.0.2.128/25\n203.0.113.0/33\n")?;
    let refused = site.edge.ctl_output(&["firewall", "import", name, "--group", GROUP])?;
    ensure!(!refused.status.success(), "a bad list was taken");
    figures.add("the next version of the list has a bad line, and changes nothing:");
    figures.quote(&shown(&["firewall", "import", name, "--group", GROUP]), &told(&refused));
    ensure!(site.group()?.unwrap_or_default().rules == 5, "a bad list has changed the group");
    fs::write(&path, "192.0.2.128/25\n")?;
    site.ctl(figures, &["firewall", "import", name, "--group", GROUP])?;
    ensure!(site.reaches()?, "{ATTACKER} is dropped, and not on the list");
    figures.add(format!("{ATTACKER}, which is no longer listed, gets an answer again"));
    Ok(())
}

impl Site {
    /// Runs `mcproxyctl` and shows what it says.
    fn ctl(&self, figures: &mut Figures, arguments: &[&str]) -> Result<()> {
        let output = self.edge.ctl_output(arguments)?;
        figures.quote(&shown(arguments), &told(&output));
        ensure!(output.status.success(), "mcproxyctl {}: {}", arguments.join(" "), output.status);
        Ok(())
    }

    fn explain(&self, figures: &mut Figures, expected: &[&str]) -> Result<()> {
        let text = self.edge.ctl(&["firewall", "explain", ATTACKER, "shop.example.com"])?;
        figures.quote(&shown(&["firewall", "explain", ATTACKER, "shop.example.com"]), &text);
        for words in expected {
            ensure!(text.contains(words), "the explanation does not say \"{words}\"");
        }
        Ok(())
    }

    /// Whether a SYN of the attacker is answered.
    fn reaches(&self) -> Result<bool> {
        let to = self.proxy();
        Ok(self.net.attacker.namespace.run(|| TcpStream::connect_timeout(&to, PATIENCE))?.is_ok())
    }

    /// SYNs of the attacker for some time.
    fn flood(&self, figures: &mut Figures, duration: Duration) -> Result<()> {
        let (SocketAddr::V4(to), IpAddr::V4(source)) = (self.proxy(), self.net.attacker.v4) else {
            bail!("the demonstration attacks over IPv4");
        };
        let flood = Flood::syn(&self.net.attacker.namespace, source, SocketAddrV4::new(*to.ip(), to.port()));
        pass(duration);
        let sent = flood.sent();
        flood.stop()?;
        figures.add(format!("{ATTACKER} sends {sent} SYNs in {:.0} s", duration.as_secs_f64()));
        Ok(())
    }

    fn dropped_for(&self, reason: &str) -> Result<u64> {
        let counters = kernel(&self.edge.admin()?)?.counters;
        let counter = counters.iter().find(|counter| counter.reason == reason);
        Ok(counter.with_context(|| format!("there is no counter {reason}"))?.packets)
    }

    fn group(&self) -> Result<Option<FirewallGroup>> {
        let groups = self
            .edge
            .admin()?
            .call(async |mut client| client.list_firewall_groups(ListFirewallGroupsRequest {}).await)?;
        Ok(groups.groups.into_iter().find(|group| group.name == GROUP))
    }
}

/// A command as one would type it.
pub(crate) fn shown(arguments: &[&str]) -> String {
    let words = arguments
        .iter()
        .map(|word| word.rsplit_once('/').filter(|_| word.starts_with('/')).map_or(*word, |(_, name)| name));
    format!("mcproxyctl {}", words.collect::<Vec<_>>().join(" "))
}

/// What a command said, on both streams.
pub(crate) fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
