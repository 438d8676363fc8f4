//! Every command on firewall rules, against a served API.

use std::{fs, time::Duration};

use crate::{
    admin::tests::{PENDING, Served},
    control::{DropEvent, Plane},
    ctl::tests::{json, ok, refused, run_on},
    exit::Exit,
    firewall::Group,
};

#[tokio::test]
async fn add_list_and_remove() {
    let served = Served::start();
    let add = ["firewall", "add", "203.0.113.50", "198.51.100.0/24", "ru", "RU"];
    assert_eq!(
        ok(&served, &add).await,
        (String::new(), "blocked 203.0.113.50\nblocked 198.51.100.0/24\nblocked RU\n".to_owned())
    );
    ok(&served, &["firewall", "add", "--allow", "2001:db8::/32", "--group", "office", "--scope", "host"]).await;
    let count = ["firewall", "add", "--count", "10.0.0.1", "--comment", "on trial", "--scope", "listener:443"];
    assert_eq!(ok(&served, &count).await.1, "counting 10.0.0.1\n");
    let (table, _) = ok(&served, &["firewall", "list"]).await;
    assert_eq!(
        table,
        "ACTION  TYPE     VALUE            GROUP    SCOPE         EXPIRES  COMMENT\n\
         block   cidr     198.51.100.0/24  default  default       never\n\
         block   ip       203.0.113.50     default  default       never\n\
         block   country  RU               default  default       never\n\
         count   ip       10.0.0.1         default  listener:443  never    on trial\n\
         allow   cidr     2001:db8::/32    office   host          never\n"
    );
    assert_eq!(ok(&served, &["firewall", "list", "--group", "none"]).await.0, "");
    let found = ok(&served, &["firewall", "list", "--covers", "198.51.100.7", "--action", "block"]).await.0;
    assert_eq!(found.lines().count(), 2);

    let removed = json(&served, &["firewall", "remove", "RU"]).await;
    assert_eq!(removed["rules"][0]["type"], "FIREWALL_RULE_TYPE_COUNTRY");
    assert_eq!((&removed["rules"][0]["value"], &removed["summary"]["removed"]), (&"RU".into(), &1.into()));
    let listed = json(&served, &["firewall", "list"]).await;
    assert_eq!(listed["rules"].as_array().unwrap().len(), 4);
    assert_eq!(listed["rules"][2]["comment"], "on trial");
    assert_eq!(json(&served, &["firewall", "list", "--group", "x"]).await, serde_json::json!({"rules": []}));

    assert_eq!(
        refused(&served, &["firewall", "remove", "RU"]).await,
        ("rule: there is no rule block RU".to_owned(), Exit::Failure)
    );
    // One that is not there, and none is removed.
    let (text, _) = refused(&served, &["firewall", "remove", "203.0.113.50", "RU"]).await;
    assert_eq!(text, "rule: there is no rule block RU");
    assert_eq!(json(&served, &["firewall", "list"]).await["rules"].as_array().unwrap().len(), 4);
    assert_eq!(
        ok(&served, &["firewall", "remove", "203.0.113.50", "198.51.100.0/24"]).await.1,
        "block 203.0.113.50 removed\nblock 198.51.100.0/24 removed\n"
    );
    let (text, exit) = refused(&served, &["firewall", "add", "--allow", "RU"]).await;
    assert_eq!(
        (text.as_str(), exit),
        ("rule.action: a country cannot be allowed; allow its prefixes instead", Exit::Failure)
    );
}

#[tokio::test]
async fn a_ttl_is_an_end_and_confirm_is_a_way_back() {
    let served = Served::start();
    let added = json(&served, &["firewall", "add", "10.0.0.1", "--ttl", "1h"]).await;
    assert_eq!(added["summary"]["added"], 1);
    let listed = json(&served, &["firewall", "list"]).await;
    assert!(listed["rules"][0]["expires_at"].as_str().unwrap().ends_with('Z'), "{listed}");

    let dry = ok(&served, &["firewall", "add", "10.0.0.2", "--dry-run"]).await.1;
    assert_eq!(dry, "would block 10.0.0.2\nnothing has been changed (--dry-run)\n");
    let talk = ok(&served, &["firewall", "add", "10.0.0.2", "--confirm", "60s", "--force"]).await.1;
    assert_eq!(
        talk,
        "blocked 10.0.0.2\ntaken back at 1970-01-01T00:01:00Z unless confirmed: mcproxyctl firewall confirm 7\n"
    );
    let asked = served.last_options();
    assert_eq!((asked.confirm, asked.force, asked.dry_run), (Some(Duration::from_secs(60)), true, false));
    assert_eq!(refused(&served, &["firewall", "confirm", "9"]).await.0, "no such change waits");
    assert_eq!(ok(&served, &["firewall", "revert"]).await.1, "the change is taken back\n");
    assert_eq!(json(&served, &["firewall", "list"]).await["rules"].as_array().unwrap().len(), 1);
    ok(&served, &["firewall", "add", "10.0.0.2", "--confirm", "60s"]).await;
    let confirmed = json(&served, &["firewall", "confirm", &PENDING.to_string()]).await;
    assert_eq!(confirmed["confirmed"], true);
    assert_eq!(refused(&served, &["firewall", "revert"]).await.1, Exit::Failure);
}

#[tokio::test]
async fn what_is_exported_is_imported_as_it_was() {
    let served = Served::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let list = path("drop.txt");
    let text =
        "; a list\n1.10.16.0/20 ; SBL256894\n10.0.0.0/25\n10.0.0.128/25\n10.0.0.7\n2001:db8::-2001:db8::1 # two\n";
    fs::write(&list, text).unwrap();
    let (_, talk) = ok(&served, &["firewall", "import", &list, "--group", "drop"]).await;
    assert_eq!(
        talk,
        "6 lines, 3 entries, 1 covered by wider ones, 1 merged with a sibling\n\
         group drop: 3 added, 0 replaced, 0 removed, 0 unchanged\n"
    );
    let (exported, talk) = ok(&served, &["firewall", "export", "--group", "drop"]).await;
    let lines = exported.lines().collect::<Vec<_>>();
    assert!(lines[0].starts_with("# mc-proxy firewall group drop, exported 20"), "{exported}");
    assert_eq!(lines[1], "# mcproxyctl firewall import FILE --group drop");
    assert_eq!(lines[2..], ["1.10.16.0/20 # SBL256894", "10.0.0.0/24", "2001:db8::/127 # two"]);
    assert_eq!(talk, "");

    let copy = path("copy.txt");
    let (_, talk) = ok(&served, &["firewall", "export", "--group", "drop", &copy]).await;
    assert_eq!(talk, format!("3 rules written to {copy}\n"));
    let again = json(&served, &["firewall", "import", &copy, "--group", "drop"]).await;
    assert_eq!((&again["summary"]["unchanged"], &again["summary"]["added"]), (&3.into(), &0.into()));
    assert_eq!((&again["entries"], &again["list"]["lines"]), (&3.into(), &5.into()));

    // What a list has no words for is told.
    ok(&served, &["firewall", "add", "--group", "drop", "RU"]).await;
    ok(&served, &["firewall", "add", "--group", "drop", "--allow", "10.9.9.9"]).await;
    ok(&served, &["firewall", "add", "--group", "drop", "10.9.9.8", "--ttl", "1d"]).await;
    let (_, talk) = ok(&served, &["firewall", "export", "--group", "drop"]).await;
    assert_eq!(
        talk,
        "1 rules are left out: their action is not block or their scope not default (--allow, --count, --scope)\n\
         1 countries are left out: a list has addresses only\n1 rules have an end, which a list cannot say\n"
    );
    let told = json(&served, &["firewall", "export", "--group", "drop", &copy]).await;
    assert_eq!((&told["written"], &told["countries"]), (&4.into(), &1.into()));
    let allowed = ok(&served, &["firewall", "export", "--group", "drop", "--allow"]).await.0;
    assert!(allowed.ends_with("import FILE --group drop --allow\n10.9.9.9\n"), "{allowed}");
}

#[tokio::test]
async fn a_bad_list_changes_nothing_and_names_its_lines() {
    let served = Served::start();
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    let list_text = list.to_str().unwrap();
    ok(&served, &["firewall", "add", "--group", "g", "10.0.0.1"]).await;
    fs::write(&list, "10.0.0.2\n10.0.0.300\n10.0.0.7/24\n").unwrap();
    let import = ["firewall", "import", list_text, "--group", "g"];
    let (text, exit) = refused(&served, &import).await;
    assert_eq!(exit, Exit::Failure);
    assert_eq!(
        text,
        format!(
            "{list_text}: nothing has been changed\nline 2: \"10.0.0.300\" is not an address, a CIDR or a range\n\
             line 3: \"10.0.0.7/24\" has host bits set; the canonical CIDR is \"10.0.0.0/24\""
        )
    );
    fs::write(&list, "# the download failed\n").unwrap();
    let (text, _) = refused(&served, &import).await;
    assert_eq!(text, format!("{list_text} has no entries; nothing has been changed (--allow-empty empties the group)"));
    assert_eq!(json(&served, &["firewall", "list"]).await["rules"][0]["value"], "10.0.0.1");
    let (_, talk) = ok(&served, &[&import[..], &["--allow-empty"]].concat()).await;
    assert!(talk.ends_with("group g: 0 added, 0 replaced, 1 removed, 0 unchanged\n"), "{talk}");

    fs::write(&list, "10.0.0.7/24 # x\n10.0.0.1\n").unwrap();
    let fixed = [&import[..], &["--fix-host-bits", "--no-aggregate", "--no-comments", "--dry-run"]].concat();
    let (_, talk) = ok(&served, &fixed).await;
    assert_eq!(
        talk,
        "2 lines, 2 entries, 1 with host bits cleared\ngroup g: 2 added, 0 replaced, 0 removed, 0 unchanged\n\
         nothing has been changed (--dry-run)\n"
    );
    let missing = refused(&served, &["firewall", "import", "/nonexistent/list", "--group", "g"]).await;
    assert!(missing.0.starts_with("/nonexistent/list: No such file"), "{missing:?}");
    // The file is judged first, so that it can be checked without a daemon.
    fs::write(&list, "nope\n").unwrap();
    let error = run_on(&dir.path().join("no.sock"), &import).await.result.unwrap_err();
    assert_eq!(error.exit(), Exit::Failure);
}

#[tokio::test]
async fn a_long_list_goes_in_chunks() {
    let served = Served::start();
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    let lines = (0..60_000_u32).map(|n| {
        let addr = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n * 2);
        if n % 3 == 0 { format!("{addr} # {}\n", "x".repeat(n as usize % 150)) } else { format!("{addr}\n") }
    });
    fs::write(&list, lines.collect::<String>() + "2001:db8::1 # last\n").unwrap();
    let imported = json(&served, &["firewall", "import", list.to_str().unwrap(), "--group", "long"]).await;
    assert_eq!((&imported["summary"]["added"], &imported["entries"]), (&60_001.into(), &60_001.into()));
    let (exported, _) = ok(&served, &["firewall", "export", "--group", "long"]).await;
    let find = |entry: &str| exported.lines().find(|line| line.starts_with(entry)).map(str::to_owned);
    assert_eq!(find("2001").as_deref(), Some("2001:db8::1 # last"));
    // Entry 59,997 of a late chunk: its comment has 147 characters.
    assert_eq!(find("10.1.212.186 ").unwrap(), format!("10.1.212.186 # {}", "x".repeat(147)));
    assert_eq!(exported.lines().count(), 60_003);
}

#[tokio::test]
async fn groups_and_explain() {
    let served = Served::start();
    ok(&served, &["firewall", "add", "10.0.0.1", "--comment", "scans"]).await;
    assert_eq!(
        ok(&served, &["firewall", "groups"]).await.0,
        "GROUP    RULES  DROPPED  BYTES  WOULD-DROP  WOULD-BYTES\ndefault  1      5        300    1           60\n"
    );
    assert_eq!(json(&served, &["firewall", "groups"]).await["groups"][0]["dropped_bytes"], 300);
    assert_eq!(
        ok(&served, &["firewall", "explain", "10.0.0.1"]).await.0,
        "10.0.0.1: drop (by the first rule)\ndecided by: block 10.0.0.1 group=default scope=default (scans)\n\
         \x20 block: block 10.0.0.1 group=default scope=default (scans) holds: in scope\ncountry: RU\n\
         kernel: not asked (there is no interface)\nuser space: refused\n"
    );
    let told = json(&served, &["firewall", "explain", "10.0.0.2", "app.example.com", "--listener", ":443"]).await;
    assert_eq!((&told["verdict"], &told["decisive"]), (&"pass".into(), &serde_json::Value::Null));
    assert_eq!((&told["kernel"]["drop"], &told["route"]), (&true.into(), &"app.example.com".into()));
}

fn event(source: &str, group: &str) -> DropEvent {
    DropEvent {
        at: std::time::SystemTime::UNIX_EPOCH,
        interface: "eth0".into(),
        reason: "blocked_ip",
        group: group.parse::<Group>().unwrap(),
        source: source.parse().unwrap(),
        port: 443,
        bytes: 60,
        plane: Plane::Kernel,
        sampled: 100,
    }
}

/// Sends drops until the command has ended.
async fn with_drops<T>(served: &Served, command: impl Future<Output = T>) -> T {
    let send = async {
        loop {
            // Nobody listens before the command does, and after it.
            let _ = served.drops.send(event("10.0.0.1", "drop"));
            let _ = served.drops.send(event("10.0.1.1", "other"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = command => result,
        () = send => unreachable!("it has no end"),
    }
}

#[tokio::test]
async fn watch() {
    let served = Served::start();
    let line = ["firewall", "watch", "-n", "3", "--group", "drop"];
    let (data, _) = with_drops(&served, Box::pin(ok(&served, &line))).await;
    let expected = "1970-01-01T00:00:00Z kernel eth0 10.0.0.1 -> :443 blocked_ip group=drop bytes=60 (one of 100)\n";
    assert_eq!(data, expected.repeat(3));
    let line = ["firewall", "watch", "-n", "2", "--source", "10.0.1.0/24", "--json"];
    let (data, _) = with_drops(&served, Box::pin(ok(&served, &line))).await;
    let objects = data.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect::<Vec<_>>();
    assert_eq!(objects.len(), 2);
    assert_eq!((&objects[0]["source"], &objects[0]["group"]), (&"10.0.1.1".into(), &"other".into()));
    let (text, exit) = refused(&served, &["firewall", "watch", "--source", "RU"]).await;
    assert_eq!((text.as_str(), exit), ("source: is an address or a CIDR, not a country", Exit::Failure));
}

/// The daemon ends a watch after 10 minutes, and its connection a little later.
#[tokio::test(start_paused = true)]
async fn watch_goes_on_over_the_end_of_a_call() {
    let served = Served::start();
    let line = ["firewall", "watch", "-n", "1"];
    let late = async {
        tokio::time::sleep(Duration::from_secs(25 * 60)).await;
        served.drops.send(event("10.0.0.1", "drop")).unwrap();
    };
    let ((data, _), ()) = tokio::join!(Box::pin(ok(&served, &line)), late);
    assert_eq!(data.lines().count(), 1);
}

#[tokio::test]
async fn top() {
    let served = Served::start();
    let line = ["firewall", "top", "--window", "1s", "--rows", "1", "--json"];
    let (data, _) = with_drops(&served, Box::pin(ok(&served, &line))).await;
    let object = serde_json::from_str::<serde_json::Value>(&data).unwrap();
    assert_eq!(object["sources"].as_array().unwrap().len(), 1);
    assert!(object["groups"][0]["drops_per_second"].as_f64().unwrap() > 100.0, "{object}");
    let line = ["firewall", "top", "--window", "1s", "--refresh", "1s", "-n", "1"];
    let (data, _) = with_drops(&served, Box::pin(ok(&served, &line))).await;
    assert!(data.starts_with("drops per second over 1 s: "), "{data}");
    for expected in ["DROPS/S", "GROUP", "drop", "SOURCE", "10.0.0.0/24", "10.0.1.0/24"] {
        assert!(data.contains(expected), "{expected}: {data}");
    }
    assert!(!data.contains('\x1b'));
}
