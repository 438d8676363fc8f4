//! A writer that dies.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
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
