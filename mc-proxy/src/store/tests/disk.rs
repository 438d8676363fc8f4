//! Disks that are full, read-only or broken.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    process::Command,
};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::*;

/// Something mounted, until the end of the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(e) = rustix::mount::unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {e}", self.0.display());
        }
    }
}

/// Runs `body` if this process may mount; says so loudly if not.
fn mounting(body: impl FnOnce()) {
    if rustix::process::geteuid().is_root() {
        return body();
    }
    println!("skipped: mounting a file system needs root");
    assert!(std::env::var_os("MC_PROXY_REQUIRE_KERNEL").is_none_or(|v| v != "1"), "skipped: not root");
}

fn small_tmpfs(at: &Path) -> Mounted {
    let mount = rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, c"size=1m");
    mount.unwrap();
    Mounted(at.to_owned())
}

/// Takes every byte that is left, and gives it back when removed.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    path
}

fn add_until_error(store: &mut Store, from: u32) -> (u32, StoreError) {
    for n in from..from + 100_000 {
        let subject = std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string();
        if let Err(e) = store.put(&block(&subject)) {
            return (n, e);
        }
    }
    panic!("100,000 rules fit into a full disk");
}

#[test]
fn a_full_disk_fails_writes_and_nothing_else() {
    mounting(|| {
        let (dir, path) = place();
        let _mounted = small_tmpfs(dir.path());
        let mut store = seeded(&path, &one_listener(vec![route("a.test", "a:1")]));
        let filler = fill(dir.path());
        // The WAL has room left that it got earlier; then the disk decides.
        let (stored, error) = add_until_error(&mut store, 0);
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        assert!(error.to_string().contains("no space left"), "{error}");
        for _ in 0..3 {
            assert!(matches!(store.upsert_route(":443", &route("b.test", "b:1")), Err(StoreError::Full { .. })));
            assert_eq!(store.load().unwrap().rules.len(), stored as usize, "reading goes on");
        }
        assert!(matches!(snapshot(&path, None), Err(StoreError::Full { .. })));

        fs::remove_file(filler).unwrap();
        store.upsert_route(":443", &route("b.test", "b:1")).unwrap();
        let (after, error) = add_until_error(&mut store, stored);
        assert!(after > stored && matches!(error, StoreError::Full { .. }), "{stored} {after} {error:?}");
        let last = store.load().unwrap();
        assert_eq!((last.listeners[0].routes.len(), last.rules.len()), (2, after as usize));
        drop(store);
        assert_eq!(Store::open(&path).unwrap().load().unwrap(), last, "nothing lost, nothing half done");
    });
}

#[test]
fn a_change_of_many_rules_that_does_not_fit_is_not_made() {
    mounting(|| {
        let (dir, path) = place();
        let _mounted = small_tmpfs(dir.path());
        let mut store = seeded(&path, &Desired { rules: rules(100), ..one_listener(Vec::new()) });
        let before = store.load().unwrap();
        let many = rules(100_000);
        let puts = || many.iter().map(|rule| Change::Put(*rule, Some("listed".to_owned())));
        let pending = Pending { id: 1, deadline: std::time::SystemTime::UNIX_EPOCH };
        for _ in 0..2 {
            let error = store.apply(puts()).unwrap_err();
            assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
            let error = store.apply_with_pending(puts().take(10), pending, puts()).unwrap_err();
            assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
            assert_eq!((store.load().unwrap(), store.pending().unwrap()), (before.clone(), None));
        }
        store.apply_with_pending(puts().take(200), pending, [Change::Remove(many[0].key)]).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!((store.load().unwrap().rules.len(), store.pending().unwrap()), (200, Some(pending)));
    });
}

#[test]
fn a_full_disk_at_start() {
    mounting(|| {
        let (dir, path) = place();
        let _mounted = small_tmpfs(dir.path());
        let filler = fill(dir.path());
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        fs::remove_file(filler).unwrap();
        assert!(Store::open(&path).unwrap().is_empty().unwrap());
    });
}

#[test]
fn a_read_only_file_or_file_system_at_start() {
    mounting(|| {
        let (dir, path) = place();
        drop(seeded(&path, &one_listener(Vec::new())));
        let bind = |what: &Path| {
            rustix::mount::mount_bind(what, what).unwrap();
            let mounted = Mounted(what.to_owned());
            rustix::mount::mount_change(what, MountPropagationFlags::PRIVATE).unwrap();
            rustix::mount::mount_remount(what, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
            mounted
        };
        for what in [path.as_path(), dir.path()] {
            let _mounted = bind(what);
            let error = Store::open(&path).unwrap_err();
            assert!(matches!(error, StoreError::ReadOnly { .. }), "{}: {error:?}", what.display());
        }
        drop(Store::open(&path).unwrap());
    });
}

/// An open file cannot be made read-only from outside (the kernel answers EBUSY); `query_only` makes SQLite itself
/// answer SQLITE_READONLY, as it does when the disk fails and is remounted.
#[test]
fn a_database_that_turns_read_only_fails_writes_and_nothing_else() {
    let (_dir, path) = place();
    let mut store = seeded(&path, &one_listener(Vec::new()));
    store.conn.pragma_update(None, "query_only", true).unwrap();
    let error = store.put(&block("192.0.2.1")).unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error:?}");
    assert_eq!(store.load().unwrap(), one_listener(Vec::new()));
    let pending = Pending { id: 1, deadline: std::time::SystemTime::UNIX_EPOCH };
    for error in [
        store.apply_with_pending([], pending, []).unwrap_err(),
        store.revert_pending().unwrap_err(),
        store.delete_expired(std::time::SystemTime::now()).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::ReadOnly { .. }), "{error:?}");
    }
    store.conn.pragma_update(None, "query_only", false).unwrap();
    store.put(&block("192.0.2.1")).unwrap();
}

#[test]
fn a_lock_of_another_program_is_waited_for_and_named() {
    let (_dir, path) = place();
    let mut store = seeded(&path, &one_listener(Vec::new()));
    store.conn.busy_timeout(std::time::Duration::from_millis(50)).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.put(&block("192.0.2.1")).unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }), "{error:?}");
    other.execute_batch("ROLLBACK").unwrap();
    store.put(&block("192.0.2.1")).unwrap();
}

#[test]
fn damage_is_refused_with_the_way_back() {
    for damage in ["pages", "header", "truncated", "index"] {
        let (_dir, path) = place();
        let content = Desired { rules: rules(5_000), ..one_listener(vec![route("a.test", "a:1")]) };
        let mut store = seeded(&path, &content);
        let older = snapshot(&path, None).unwrap();
        store.put(&block("192.0.2.1")).unwrap();
        let backup = snapshot(&path, None).unwrap();
        assert_ne!(older, backup);
        drop(store);

        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        match damage {
            "pages" => file.write_all_at(&[0xa5; 3 * 4096], length / 2 / 4096 * 4096).unwrap(),
            "header" => file.write_all_at(b"no database at all", 0).unwrap(),
            "truncated" => file.set_len(length / 2 + 100).unwrap(),
            _ => {
                drop(file);
                let conn = Connection::open(&path).unwrap();
                // An index that lacks a row of its table: every page is well formed.
                conn.execute_batch(
                    "PRAGMA writable_schema = ON;
                     UPDATE sqlite_schema SET sql = replace(sql, '(name)', '(name) WHERE id > 9')
                     WHERE name = 'rule_groups_name';",
                )
                .unwrap();
                drop(conn);
                let conn = Connection::open(&path).unwrap();
                conn.execute_batch("INSERT INTO rule_groups VALUES (5, 'x'); PRAGMA writable_schema = ON;").unwrap();
                conn.execute_batch(
                    "UPDATE sqlite_schema SET sql = replace(sql, ' WHERE id > 9', '')
                     WHERE name = 'rule_groups_name';",
                )
                .unwrap();
            }
        }
        let before = fs::read(&path).unwrap();
        let error = Store::open(&path).unwrap_err();
        let StoreError::Corrupt { restore, .. } = &error else { panic!("{damage}: {error:?}") };
        println!("{damage}: {error}");
        assert_eq!(fs::read(&path).unwrap(), before, "{damage}: the file was left as it is");
        if damage != "index" {
            // A copy reads the tables and builds its indexes anew: damage of an index alone is healed in it.
            let error = snapshot(&path, Some(&path.with_extension("copy"))).unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{damage}: {error:?}");
            assert_eq!(fs::read(&path).unwrap(), before, "{damage}: the snapshot changed nothing");
        }
        assert!(restore.contains(&format!("cp -p {} {}", backup.display(), path.display())), "{restore}");

        let command = restore.split_once("with: ").unwrap().1;
        assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
        assert_eq!(Store::open(&path).unwrap().load().unwrap().rules.len(), 5_001);
        assert_eq!(fs::read(restore::beside(&path, ".damaged")).unwrap(), before);
    }
}

#[test]
fn damage_that_comes_with_a_wal_keeps_the_wal() {
    let (_dir, path) = place();
    let mut store = seeded(&path, &one_listener(Vec::new()));
    store.conn.pragma_update_and_check(None, "wal_checkpoint", "TRUNCATE", |_| Ok(())).unwrap();
    store.put(&block("192.0.2.1")).unwrap();
    // As a crash leaves it: the change is in the WAL alone.
    let wal = restore::beside(&path, "-wal");
    let kept = (fs::read(&path).unwrap(), fs::read(&wal).unwrap());
    drop(store);
    let mut damaged = kept.0;
    // The listeners, which the WAL does not touch.
    damaged[4096..2 * 4096].fill(0xa5);
    fs::write(&path, &damaged).unwrap();
    fs::write(&wal, &kept.1).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("mv --backup=numbered {}", wal.display())), "{error}");
    assert_eq!(fs::read(&path).unwrap(), damaged);
    assert_eq!(fs::read(&wal).unwrap(), kept.1);
}

#[test]
fn somebody_elses_database_is_refused() {
    let (_dir, path) = place();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE listeners (id INTEGER)").unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");
}

#[test]
fn what_cannot_be_a_database_is_said_so() {
    let (dir, path) = place();
    let missing = dir.path().join("none/mc-proxy.db");
    let error = Store::open(&missing).unwrap_err();
    assert!(matches!(error, StoreError::NoDirectory { .. }), "{error:?}");
    assert!(error.to_string().contains("none does not exist; create it"), "{error}");
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Io { .. })));
    fs::write(&path, "[database]\npath = \"x\"\n".repeat(100)).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Corrupt { .. })));
}

#[test]
fn a_file_that_was_replaced_underneath_takes_no_changes() {
    let (dir, path) = place();
    let mut store = seeded(&path, &one_listener(Vec::new()));
    let aside = dir.path().join("aside.db");
    fs::rename(&path, &aside).unwrap();
    let error = store.put(&block("192.0.2.1")).unwrap_err();
    assert!(matches!(error, StoreError::Moved { .. }), "{error:?}");
    fs::write(&path, "").unwrap();
    assert!(matches!(store.put(&block("192.0.2.1")), Err(StoreError::Moved { .. })));
    fs::rename(&aside, &path).unwrap();
    store.put(&block("192.0.2.1")).unwrap();
}
