//! A change that fails has not happened: not in the database, not in the tables, and not in what is listed.

use std::{fs, path::Path};

use rustix::mount::{MountFlags, UnmountFlags};

use super::support::{Bench, Setup, block, many, new};
use crate::{
    control::{ChangeOptions, ControlError, GroupImport, NewRule},
    firewall::{Action, RuleScope, Subject},
};

/// More than the tables of an empty firewall hold.
const MANY: u32 = 30_000;
const PROBES: [&str; 3] = ["10.0.0.1", "10.0.117.47", "198.51.100.1"];

fn growing() -> Vec<NewRule> {
    many(MANY).into_iter().map(new).collect()
}

fn list() -> GroupImport {
    let net = |subject| match subject {
        Subject::Net(net) => net,
        Subject::Country(_) => unreachable!(),
    };
    GroupImport {
        group: "list".parse().unwrap(),
        action: Action::Block,
        scope: RuleScope::Default,
        expires_at: None,
        entries: many(MANY).into_iter().map(|rule| net(rule.key.subject)).collect(),
        comments: vec![(7, "a comment".to_owned())],
    }
}

#[tokio::test]
async fn tables_that_cannot_grow() {
    let bench = Bench::new();
    bench.put(&[block("198.51.100.0/24")]).await;
    let before = bench.state(&PROBES).await;
    let committed = bench.plane.committed();
    for is_commit in [false, true] {
        let fail = || if is_commit { bench.plane.fail_commits(1) } else { bench.plane.fail_prepares(1) };
        let cause = if is_commit { "the link is gone" } else { "no memory for a map" };
        fail();
        let error = bench.control.put_rules(growing(), ChangeOptions::default()).await.unwrap_err();
        assert!(matches!(&error, ControlError::Failed(text) if text.ends_with(cause)), "{error}");
        assert_eq!(bench.state(&PROBES).await, before);
        fail();
        let error = bench.control.replace_group(list(), ChangeOptions::default()).await.unwrap_err();
        assert!(matches!(&error, ControlError::Failed(text) if text.ends_with(cause)), "{error}");
        assert_eq!(bench.state(&PROBES).await, before);
    }
    assert_eq!(bench.plane.committed(), committed);
    let bench = bench.restarted().await;
    assert_eq!(bench.state(&PROBES).await, before);
    // The same change is made when the kernel takes it, and the tables are other ones then.
    bench.control.put_rules(growing(), ChangeOptions::default()).await.unwrap();
    assert!(bench.plane.committed() > 1);
    assert!(PROBES.iter().all(|source| bench.is_dropped(source)));
    assert_eq!(bench.listed().await.len(), MANY as usize + 1);
}

#[tokio::test]
async fn a_database_that_was_moved_away() {
    let bench = Bench::new();
    bench.put(&[block("198.51.100.0/24")]).await;
    let before = bench.state(&PROBES).await;
    let lost = bench.database.with_extension("lost");
    fs::rename(&bench.database, &lost).unwrap();
    let put = |rules| bench.control.put_rules(rules, ChangeOptions::default());
    assert!(matches!(put(vec![new(block("10.0.0.1"))]).await, Err(ControlError::Failed(_))));
    assert!(matches!(put(growing()).await, Err(ControlError::Failed(_))));
    let keys = vec![block("198.51.100.0/24").key];
    assert!(matches!(bench.control.remove_rules(keys, ChangeOptions::default()).await, Err(ControlError::Failed(_))));
    assert!(matches!(
        bench.control.replace_group(list(), ChangeOptions::default()).await,
        Err(ControlError::Failed(_))
    ));
    assert_eq!(bench.state(&PROBES).await, before);
    fs::rename(&lost, &bench.database).unwrap();
    bench.put(&[block("10.0.0.1")]).await;
    assert!(bench.is_dropped("10.0.0.1"));
    assert_eq!(bench.restarted().await.keys().await, ["block 10.0.0.1", "block 198.51.100.0/24"]);
}

/// Something mounted, until the end of the test.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(self.0, UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.0.display());
        }
    }
}

/// The tables have the change already when the database finds that it has no room for it.
#[tokio::test]
async fn a_disk_that_is_full_when_the_change_is_made_final() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting a file system needs root");
        assert!(std::env::var_os("MC_PROXY_REQUIRE_KERNEL").is_none_or(|v| v != "1"), "skipped: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, c"size=16m").unwrap();
    let mounted = Mounted(dir.path());
    let bench = Bench::with(Setup { database: Some(dir.path().join("mc-proxy.db")), ..Setup::default() });
    bench.put(&[block("198.51.100.0/24")]).await;
    let before = bench.state(&PROBES).await;
    let filler = dir.path().join("filler");
    let committed = bench.plane.committed();
    bench.plane.before_commit({
        let filler = filler.clone();
        move || {
            let mut file = fs::File::create(filler).unwrap();
            while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
        }
    });
    let error = bench.control.put_rules(growing(), ChangeOptions::default()).await.unwrap_err();
    assert!(matches!(&error, ControlError::Failed(text) if text.starts_with("no space left")), "{error}");
    assert_eq!(bench.plane.committed(), committed + 2, "there and back again");
    assert_eq!(bench.state(&PROBES).await, before);
    fs::remove_file(&filler).unwrap();
    bench.control.put_rules(growing(), ChangeOptions::default()).await.unwrap();
    assert!(PROBES.iter().all(|source| bench.is_dropped(source)));
    drop(bench.stopped().await);
    drop(mounted);
}
