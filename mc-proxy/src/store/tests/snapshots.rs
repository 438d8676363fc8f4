//! Copies of a live database.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::*;

#[test]
fn a_snapshot_beside_a_writer_is_of_one_moment() {
    let (dir, path) = place();
    let mut store = seeded(&path, &Desired { rules: rules(2_000), ..Desired::default() });
    let is_done = AtomicBool::new(false);
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0_u32;
            while !is_done.load(Ordering::Relaxed) {
                let subject = std::net::Ipv4Addr::from(0x0b00_0000 + written).to_string();
                store.put(&block(&subject)).unwrap();
                written += 1;
            }
            written
        });
        let mut least = 0;
        for n in 0..10 {
            let out = dir.path().join(format!("copy-{n}.db"));
            assert_eq!(snapshot(&path, Some(&out)).unwrap(), out);
            assert_eq!(mode(&out), 0o600);
            let copied = Store::open(&out).unwrap().load().unwrap().rules;
            assert!(copied.len() >= least, "snapshots do not go back in time");
            least = copied.len();
            // The writer's rules come in order: a moment has all up to one, and none after.
            let added = copied[2_000..].iter().zip(0_u32..);
            for (rule, n) in added {
                assert_eq!(*rule, block(&std::net::Ipv4Addr::from(0x0b00_0000 + n).to_string()));
            }
        }
        is_done.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    println!("{written} rules were added during 10 snapshots");
    assert!(written > 0);
    assert_eq!(store.load().unwrap().rules.len(), 2_000 + written as usize, "the lock on the database held");
}

#[test]
fn the_default_place_is_private_and_nothing_is_overwritten() {
    let (dir, path) = place();
    let store = seeded(&path, &one_listener(vec![route("a.test", "a:1")]));
    let first = snapshot(&path, None).unwrap();
    let second = snapshot(&path, None).unwrap();
    assert_ne!(first, second);
    let backups = dir.path().canonicalize().unwrap().join("backups");
    assert_eq!((mode(&backups), mode(&first)), (0o700, 0o600));
    let name = first.file_name().unwrap().to_str().unwrap();
    assert!(
        name.starts_with("mc-proxy-20")
            && name.ends_with("Z.db")
            && name.len() == "mc-proxy-20260102T030405678Z.db".len(),
        "{name}"
    );

    let error = snapshot(&path, Some(&first)).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error:?}");
    let error = snapshot(&path, Some(&dir.path().join("none/x.db"))).unwrap_err();
    assert!(matches!(error, StoreError::NoDirectory { .. }), "{error:?}");
    assert!(matches!(snapshot(&dir.path().join("none.db"), None), Err(StoreError::Sqlite { .. })));
    let expected = [first.clone(), second].map(|path| path.file_name().unwrap().to_owned());
    let mut left = fs::read_dir(&backups).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    left.sort();
    assert_eq!(left, expected, "no partial file stays");
    assert_eq!(Store::open(&first).unwrap().load().unwrap(), store.load().unwrap());
}

#[test]
fn a_snapshot_needs_no_daemon_and_leaves_no_trace() {
    let (dir, path) = place();
    drop(seeded(&path, &one_listener(Vec::new())));
    let out = dir.path().join("copy.db");
    snapshot(&path, Some(&out)).unwrap();
    let mut left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    left.sort();
    assert_eq!(left, ["copy.db", "mc-proxy.db", "mc-proxy.db.lock"]);
}
