//! `mcproxyctl firewall` against the real daemon and the real kernel.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    backend::Backend,
    config::{listener, loopback},
    daemon::Installation,
    flood::Flood,
    site::{PROBE_PORT, Site},
    wait::{SOON, pass, until},
};
use serde_json::{Value, json};

const LIST: &str = "\
# a list as people write them
198.51.100.7 # the scanner
203.0.113.128/25 ; half a network
2001:db8:ffff::/48
2001:db8::bad
";

#[test]
fn rules_are_added_listed_exported_imported_and_removed() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let edge = Installation::new(&listener(loopback(), &[("app.example.com", backend.addr())], None))?;
    let _daemon = edge.start()?;
    edge.ctl(&["firewall", "add", "203.0.113.50", "198.51.100.0/24", "--comment", "scans us", "--ttl", "1h"])?;
    edge.ctl(&["firewall", "add", "2001:db8::/32", "--allow", "--group", "office"])?;
    let rules = edge.ctl_json(&["firewall", "list"])?;
    let rules = rules[0]["rules"].as_array().context("no rules")?;
    ensure!(rules.len() == 3, "{rules:?}");
    let one = rules.iter().find(|rule| rule["value"] == "203.0.113.50").context("not listed")?;
    ensure!(one["comment"] == "scans us" && one["group"] == "default" && one["expires_at"].is_string(), "{one}");
    let text = edge.ctl(&["firewall", "list", "--group", "office"])?;
    ensure!(text.contains("2001:db8::/32") && text.contains("allow") && !text.contains("198.51.100.0/24"), "{text}");

    let file = edge.directory().join("list.txt");
    let path = file.to_str().context("UTF-8")?;
    fs::write(&file, LIST)?;
    let dry = edge.ctl_json(&["firewall", "import", "--group", "bad", path, "--dry-run"])?;
    ensure!(dry[0]["summary"]["added"] == 4 && dry[0]["summary"]["dry_run"] == true, "{dry:?}");
    ensure!(edge.admin()?.group("bad")?.rules == 0, "a dry run has changed something");
    edge.ctl(&["firewall", "import", "--group", "bad", path])?;
    let exported = edge.ctl(&["firewall", "export", "--group", "bad"])?;
    for line in ["198.51.100.7", "the scanner", "203.0.113.128/25", "half a network", "2001:db8:ffff::/48"] {
        ensure!(exported.contains(line), "{line:?} is not in:\n{exported}");
    }
    // What was exported is what is there: importing it changes nothing.
    let copy = edge.directory().join("copy.txt");
    let copy = copy.to_str().context("UTF-8")?;
    edge.ctl(&["firewall", "export", "--group", "bad", copy])?;
    let again = &edge.ctl_json(&["firewall", "import", "--group", "bad", copy])?[0]["summary"];
    ensure!(again["unchanged"] == 4 && again["added"] == 0 && again["removed"] == 0, "{again}");
    ensure!(again["replaced"] == 0, "{again}");
    // And one entry less is one rule less, with the others' comments kept.
    fs::write(&file, LIST.replace("2001:db8::bad\n", ""))?;
    let less = &edge.ctl_json(&["firewall", "import", "--group", "bad", path])?[0]["summary"];
    ensure!(less["removed"] == 1 && less["unchanged"] == 3, "{less}");

    let before = edge.ctl(&["firewall", "export", "--group", "bad"])?;
    fs::write(&file, "198.51.100.7\n203.0.113.999\n10.0.0.1/8\nhello\n")?;
    let refused = edge.ctl_output(&["firewall", "import", "--group", "bad", path])?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success(), "a bad list was taken");
    for line in ["2", "3", "4"] {
        ensure!(words.contains(&format!("{path}:{line}")) || words.contains(&format!("line {line}")), "{words}");
    }
    ensure!(edge.ctl(&["firewall", "export", "--group", "bad"])? == before, "a bad list has changed the group");
    fs::write(&file, "# nothing\n")?;
    ensure!(!edge.ctl_output(&["firewall", "import", "--group", "bad", path])?.status.success(), "an empty list");
    ensure!(edge.admin()?.group("bad")?.rules == 3);

    edge.ctl(&["firewall", "remove", "203.0.113.50", "198.51.100.0/24"])?;
    let missing = edge.ctl_output(&["firewall", "remove", "2001:db8::/32"])?;
    let words = String::from_utf8_lossy(&missing.stderr).into_owned();
    ensure!(!missing.status.success() && words.contains("office"), "the group is not named: {words}");
    edge.ctl(&["firewall", "remove", "2001:db8::/32", "--allow", "--group", "office"])?;
    ensure!(edge.admin()?.rules()?.len() == 3);
    Ok(())
}

#[test]
fn changes_that_nobody_confirms_are_taken_back_also_after_sigkill() -> Result<()> {
    let test = "changes_that_nobody_confirms_are_taken_back_also_after_sigkill";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let mut daemon = site.edge.start()?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    let passes = || site.passes(&inbox, attacker, attacker.v4);
    let pending = || -> Result<bool> {
        Ok(site.edge.admin()?.status()?.firewall.context("no firewall in status")?.pending.is_some())
    };
    site.edge.ctl(&["firewall", "add", "203.0.113.50", "--confirm", "1s"])?;
    ensure!(!passes()? && pending()?);
    until("the change to be taken back", Duration::from_secs(5), &passes)?;
    ensure!(!pending()? && site.edge.admin()?.rules()?.is_empty());

    let summary = &site.edge.ctl_json(&["firewall", "add", "203.0.113.50", "--confirm", "2s"])?[0]["summary"];
    let id = summary["confirm_id"].as_u64().context("no id")?;
    ensure!(id != 0 && summary["confirm_by"].is_string(), "{summary}");
    ensure!(!site.edge.ctl_output(&["firewall", "add", "203.0.113.51", "--confirm", "2s"])?.status.success(), "two");
    ensure!(!site.edge.ctl_output(&["firewall", "confirm", &(id + 1).to_string()])?.status.success(), "another's id");
    site.edge.ctl(&["firewall", "confirm", &id.to_string()])?;
    pass(Duration::from_millis(2_500));
    ensure!(!passes()? && !pending()?, "what was confirmed stays");

    // What was removed comes back, too.
    site.edge.ctl(&["firewall", "remove", "203.0.113.50", "--confirm", "1m"])?;
    ensure!(passes()?);
    site.edge.ctl(&["firewall", "revert"])?;
    ensure!(!passes()? && site.edge.admin()?.rules()?.len() == 1);

    // Nobody is there when the time is over.
    site.edge.ctl(&["firewall", "remove", "203.0.113.50", "--confirm", "1s"])?;
    daemon.kill()?;
    pass(Duration::from_millis(1_200));
    daemon = site.edge.start()?;
    until("the rule to be back", Duration::from_secs(3), || Ok(!passes()?))?;
    ensure!(site.edge.admin()?.rules()?.len() == 1 && !pending()?);
    // The new daemon takes back what the old one was asked for.
    site.edge.ctl(&["firewall", "add", "2001:db8:0:3::/64", "--confirm", "3s"])?;
    daemon.kill()?;
    let _daemon = site.edge.start()?;
    ensure!(pending()? && !site.passes(&inbox, attacker, attacker.v6)?, "the change waits on");
    until("the change to be taken back", Duration::from_secs(8), || site.passes(&inbox, attacker, attacker.v6))?;
    Ok(())
}

#[test]
fn explain_says_what_happens() -> Result<()> {
    let second = listener(":8443", &[], Some(([192, 0, 2, 10], 80).into()));
    let Some(site) = Site::for_test("explain_says_what_happens", "listeners", &second)? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let attacker = &site.net.attacker;
    let ctl = |args: &[&str]| site.edge.ctl(&[&["firewall"], args].concat());
    for (source, prefix, edge) in
        [(attacker.v4, "203.0.113.0/24", site.net.edge.v4), (attacker.v6, "2001:db8:0:3::/64", site.net.edge.v6)]
    {
        let address = source.to_string();
        let same = |what: &str, port: u16, wanted: Option<&str>| -> Result<Value> {
            let name = format!(":{port}");
            let explained =
                site.edge.ctl_json(&["firewall", "explain", &address, "app.example.com", "--listener", &name])?;
            let explained = explained.into_iter().next().context("no answer")?;
            let real = site.drop_of_syn(&admin, attacker, (edge, port).into())?;
            let context = || format!("{what}, {source} to {port}: {explained:#}, and really {real:?}");
            ensure!(real.as_deref() == wanted, "{}", context());
            let word = if wanted.is_some() { "drop" } else { "pass" };
            ensure!(explained["verdict"] == word, "{}", context());
            ensure!(explained["kernel"]["ran"] == true, "{}", context());
            ensure!(explained["kernel"]["drop"] == wanted.is_some(), "{}", context());
            ensure!(wanted.is_none_or(|wanted| explained["reason"] == wanted), "{}", context());
            Ok(explained)
        };
        let explained = same("no rule", 443, None)?;
        ensure!(explained["decisive"].is_null() && explained["considered"] == json!([]), "{explained:#}");
        ensure!(explained["route"].as_str().is_some_and(|route| route.contains(':')), "{explained:#}");

        ctl(&["add", prefix, "--comment", "noise", "--group", "lists"])?;
        let explained = same("a prefix", 443, Some("blocked_prefix"))?;
        ensure!(explained["decisive"]["value"] == prefix && explained["decisive"]["group"] == "lists", "{explained:#}");
        ensure!(explained["decisive"]["comment"] == "noise", "{explained:#}");
        ctl(&["add", &address, "--ttl", "1h"])?;
        let explained = same("an address", 443, Some("blocked_address"))?;
        ensure!(explained["decisive"]["expires_at"].is_string(), "{explained:#}");
        ensure!(explained["considered"].as_array().is_some_and(|rules| rules.len() == 2), "{explained:#}");
        ctl(&["add", &address, "--allow"])?;
        let explained = same("allowed", 443, None)?;
        ensure!(explained["reason"] == "allowed", "{explained:#}");
        ensure!(explained["considered"].as_array().is_some_and(|rules| rules.len() == 3), "{explained:#}");
        ctl(&["remove", &address, "--allow"])?;
        ctl(&["remove", &address])?;
        ctl(&["remove", prefix, "--group", "lists"])?;

        ctl(&["add", &address, "--scope", "listener:8443"])?;
        let explained = same("out of scope", 443, None)?;
        ensure!(explained["considered"][0]["holds"] == false, "{explained:#}");
        same("in scope", 8443, Some("blocked_address"))?;
        ctl(&["remove", &address, "--scope", "listener:8443"])?;
        ctl(&["add", &address, "--count"])?;
        same("counted", 443, None)?;
        ctl(&["remove", &address, "--count"])?;

        ctl(&["add", &address, "--ttl", "1s"])?;
        same("about to end", 443, Some("blocked_address"))?;
        pass(Duration::from_millis(1_100));
        same("expired", 443, None)?;
        let text = ctl(&["explain", &address])?;
        ensure!(text.contains("pass") && text.contains(&address), "{text}");
    }
    Ok(())
}

#[test]
fn watch_and_top_show_what_the_kernel_drops() -> Result<()> {
    let test = "watch_and_top_show_what_the_kernel_drops";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let attacker = &site.net.attacker;
    site.edge.ctl(&["firewall", "add", "203.0.113.0/24", "--group", "four"])?;
    site.edge.ctl(&["firewall", "add", "2001:db8:0:3::50", "--group", "six"])?;
    let to = [site.v4(PROBE_PORT), site.v6(PROBE_PORT)];
    let sources = vec![attacker.v4, attacker.v6];
    let flood = Flood::udp_of(&attacker.namespace, sources, to, Duration::from_millis(2));
    let admin = site.edge.admin()?;
    // IPv6 neighbours may take a second or two to find each other.
    until("drops of both families", SOON, || {
        Ok(admin.group("four")?.dropped_packets > 0 && admin.group("six")?.dropped_packets > 0)
    })?;
    thread::scope(|scope| -> Result<()> {
        let watched = |args: &'static [&'static str]| {
            let site = &site;
            scope.spawn(move || site.edge.ctl_json(&[&["firewall", "watch", "-n", "6"], args].concat()))
        };
        let (six, four) = (watched(&["--group", "six"]), watched(&["--source", "203.0.113.0/24"]));
        let top = scope.spawn(|| site.edge.ctl_json(&["firewall", "top", "--window", "2s"]));
        for (events, group, source, bytes) in [
            (six.join().expect("it returns its error")?, "six", attacker.v6, 14 + 40 + 8 + 64),
            (four.join().expect("it returns its error")?, "four", attacker.v4, 14 + 20 + 8 + 64),
        ] {
            ensure!(events.len() == 6, "{events:?}");
            for event in events {
                ensure!(event["interface"] == "eth0" && event["plane"] == "kernel", "{event}");
                ensure!(event["group"] == group && event["source"] == source.to_string(), "{event}");
                ensure!(event["bytes"] == bytes && event["at"].is_string(), "{event}");
                ensure!(event["sampled"].as_u64().is_some_and(|number| number >= 1), "{event}");
            }
        }
        let top = top.join().expect("it returns its error")?;
        let names = |list: &str, name: &str| -> Vec<String> {
            let rows = top[0][list].as_array().into_iter().flatten();
            rows.filter_map(|row| Some(row[name].as_str()?.to_owned())).collect()
        };
        let (groups, sources) = (names("groups", "group"), names("sources", "source"));
        ensure!(groups.contains(&"four".to_owned()) && groups.contains(&"six".to_owned()), "{top:?}");
        ensure!(sources.contains(&"203.0.113.0/24".to_owned()), "{top:?}");
        Ok(())
    })?;
    flood.stop()?;
    let groups = site.edge.ctl_json(&["firewall", "groups"])?;
    let groups = groups[0]["groups"].as_array().context("no groups")?;
    for name in ["four", "six"] {
        let group = groups.iter().find(|group| group["name"] == name).context("the group is missing")?;
        ensure!(group["rules"] == 1 && group["dropped_packets"].as_u64() > Some(6), "{group}");
        ensure!(group["dropped_bytes"].as_u64() > Some(6 * 100), "{group}");
    }
    let text = site.edge.ctl(&["firewall", "groups"])?;
    ensure!(text.contains("four") && text.contains("six"), "{text}");
    Ok(())
}

#[test]
fn who_would_be_cut_off_is_asked_for_force() -> Result<()> {
    let test = "who_would_be_cut_off_is_asked_for_force";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let _daemon = site.edge.start()?;
    let edge = &site.edge;
    let caller = site.net.client.v4;
    let list = edge.directory().join("list.txt");
    fs::write(&list, "203.0.113.50\n198.51.100.0/24\n")?;
    let list = list.to_str().context("UTF-8")?;
    for args in [
        &["firewall", "add", "198.51.100.10"][..],
        &["firewall", "add", "203.0.113.50", "198.51.100.0/25"],
        &["firewall", "import", "--group", "bad", list],
        &["firewall", "import", "--group", "bad", list, "--dry-run"],
    ] {
        let refused = edge.ctl_by_ssh(caller, args)?;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && words.contains("198.51.100.10") && words.contains("--force"), "{words}");
        ensure!(edge.admin()?.rules()?.is_empty(), "{args:?} has changed something");
    }
    ensure!(edge.ctl_by_ssh(caller, &["firewall", "add", "198.51.100.0/25", "--count"])?.status.success());
    let forced = edge.ctl_by_ssh(caller, &["firewall", "add", "198.51.100.10", "--force"])?;
    ensure!(forced.status.success(), "{}", String::from_utf8_lossy(&forced.stderr));
    edge.ctl(&["firewall", "remove", "198.51.100.10"])?;
    // An allow rule that protects the caller is not taken away either.
    edge.ctl(&["firewall", "add", "198.51.100.10", "--allow"])?;
    ensure!(edge.ctl_by_ssh(caller, &["firewall", "add", "198.51.100.0/24"])?.status.success());
    let refused = edge.ctl_by_ssh(caller, &["firewall", "remove", "198.51.100.10", "--allow"])?;
    ensure!(!refused.status.success(), "the last allow rule went");
    let begin = Instant::now();
    let backend = edge.ctl_output(&["firewall", "add", "127.0.0.0/8"])?;
    ensure!(String::from_utf8_lossy(&backend.stderr).contains("backend"), "{backend:?}");
    ensure!(begin.elapsed() < SOON);
    Ok(())
}
