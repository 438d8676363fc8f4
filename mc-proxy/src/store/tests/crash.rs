//! A writer that dies.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use super::*;

const CHILD_PATH: &str = "MC_PROXY_TEST_CRASH_DATABASE";

#[test]
fn a_transaction_that_was_cut_off_never_was() {
    let (_dir, path) = place();
    let store = seeded(&path, &one_listener(vec![route("a.test", "a:1")]));
    store.conn.execute_batch("BEGIN IMMEDIATE; DELETE FROM routes; DELETE FROM listeners;").unwrap();
    drop(store);
    assert_eq!(Store::open(&path).unwrap().load().unwrap(), one_listener(vec![route("a.test", "a:1")]));
}

#[test]
fn every_rule_acknowledged_before_sigkill_is_there_after() {
    let (_dir, path) = place();
    for round in 1..=3_usize {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash::writer_for_sigkill", "--ignored", "--nocapture"])
            .env(CHILD_PATH, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut acknowledged = lines.by_ref().filter_map(|line| line.strip_prefix("stored ").map(str::to_owned));
        let mut known = acknowledged.by_ref().take(20 * round).collect::<Vec<_>>();
        assert_eq!(known.len(), 20 * round, "the writer ended early");
        assert!(matches!(Store::open(&path), Err(StoreError::Locked { .. })), "another process has it");
        writer.kill().unwrap();
        writer.wait().unwrap();
        // What it wrote between our last look and its end counts too.
        known.extend(acknowledged);

        let stored = Store::open(&path).unwrap().load().unwrap().rules;
        let stored = stored.iter().map(|rule| rule.key.subject.to_string()).collect::<Vec<_>>();
        let lost = known.iter().filter(|rule| !stored.contains(rule)).collect::<Vec<_>>();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    }
}

#[test]
#[ignore = "the process that the test above kills"]
fn writer_for_sigkill() {
    let Some(path) = std::env::var_os(CHILD_PATH) else { return };
    let mut store = Store::open(Path::new(&path)).unwrap();
    let first = u32::try_from(store.load().unwrap().rules.len()).unwrap();
    for n in first.. {
        let subject = std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string();
        store.put(&block(&subject)).unwrap();
        println!("stored {subject}");
    }
}

const MANY: u32 = 20_000;

/// A change of many rules with what undoes it: whenever the writer dies, there is all of it, or nothing.
#[test]
#[expect(clippy::disallowed_methods, reason = "the moment of the kill is to fall anywhere")]
fn a_pending_change_and_its_rules_live_or_die_together() {
    let (_dir, path) = place();
    let mut states = [0; 2];
    for round in 0..12_u64 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash::pending_writer_for_sigkill", "--ignored", "--nocapture"])
            .env(CHILD_PATH, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines().map(Result::unwrap);
        // Ends with the rules there, and with them undone.
        let count = 2 + usize::from(round % 2 == 0);
        let toggled = lines.by_ref().filter(|line| line == "toggled").take(count).count();
        assert_eq!(toggled, count, "the writer ended early");
        std::thread::sleep(Duration::from_millis(round * 29));
        writer.kill().unwrap();
        writer.wait().unwrap();

        let store = Store::open(&path).unwrap();
        let mut inverse = 0;
        store.for_each_pending_change(&mut |_| inverse += 1).unwrap();
        let rules = u32::try_from(store.load().unwrap().rules.len()).unwrap();
        match store.pending().unwrap() {
            Some(pending) => assert_eq!((pending, rules, inverse), (PENDING, MANY, MANY)),
            None => assert_eq!((rules, inverse), (0, 0)),
        }
        states[usize::from(rules > 0)] += 1;
    }
    println!("found undone {} times, pending {} times", states[0], states[1]);
}

const PENDING: Pending = Pending { id: 7, deadline: SystemTime::UNIX_EPOCH };

#[test]
#[ignore = "the process that the test above kills"]
fn pending_writer_for_sigkill() {
    let Some(path) = std::env::var_os(CHILD_PATH) else { return };
    let mut store = Store::open(Path::new(&path)).unwrap();
    let rules = rules(MANY);
    loop {
        if !store.revert_pending().unwrap() {
            let changes = rules.iter().map(|rule| Change::Put(*rule, None));
            let inverse = rules.iter().map(|rule| Change::Remove(rule.key));
            store.apply_with_pending(changes, PENDING, inverse).unwrap();
        }
        println!("toggled");
    }
}
