//! The store against real files.

mod crash;
mod disk;
mod rules;
mod sample;
mod snapshots;

use std::{
    os::unix::{ffi::OsStringExt, fs::PermissionsExt},
    path::PathBuf,
    time::Instant,
};

use proptest::prelude::*;
use tempfile::TempDir;

use self::sample::{allow, block, desired, key, policy, route, rules};
use super::*;
use crate::{
    desired::{L7Policy, L7PolicyKind, Protocol, ProxyVersion, Target},
    firewall::Rule,
};

impl Store {
    /// All of it.
    pub(crate) fn load(&self) -> Result<Desired, StoreError> {
        let mut desired = Desired { listeners: self.listeners()?, rules: Vec::new() };
        self.for_each_rule(&mut |rule| desired.rules.push(rule))?;
        Ok(desired)
    }

    fn put(&mut self, rule: &Rule) -> Result<(), StoreError> {
        self.apply([Change::Put(*rule, None)])
    }
}

/// A directory that goes away with the test, and a database path in it.
fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("mc-proxy.db");
    (dir, path)
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn one_listener(routes: Vec<Route>) -> Desired {
    Desired { listeners: vec![Listener { routes, ..Listener::new(":443".parse().unwrap()) }], rules: Vec::new() }
}

fn seeded(path: &Path, desired: &Desired) -> Store {
    let mut store = Store::open(path).unwrap();
    store.seed(desired).unwrap();
    store
}

#[test]
fn a_new_database_is_private_durable_and_empty() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    assert!(store.is_empty().unwrap());
    assert_eq!(store.load().unwrap(), Desired::default());
    for suffix in ["", "-wal", "-shm", ".lock"] {
        assert_eq!(mode(&restore::beside(&path, suffix)), 0o600, "{suffix}");
    }
    let pragma = |name: &str| store.conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!((pragma("synchronous"), pragma("foreign_keys")), (2, 1));
}

#[test]
fn wide_rights_of_a_restored_file_are_narrowed() {
    let (_dir, path) = place();
    drop(Store::open(&path).unwrap());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let _store = Store::open(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_seeded_is_what_is_loaded(mut desired in desired()) {
        let (_dir, path) = place();
        drop(seeded(&path, &desired));
        desired.rules.sort_unstable();
        let store = Store::open(&path).unwrap();
        prop_assert_eq!(&store.load().unwrap(), &desired);
        prop_assert_eq!(store.is_empty().unwrap(), desired.listeners.is_empty());
        prop_assert_eq!(store.diff(&desired).unwrap(), []);
    }
}

#[test]
fn only_an_empty_database_is_seeded() {
    let (_dir, path) = place();
    let first = Desired { rules: vec![block("192.0.2.1")], ..one_listener(Vec::new()) };
    let mut store = seeded(&path, &first);
    let second = Desired { rules: vec![block("192.0.2.2")], ..Desired::default() };
    assert!(matches!(store.seed(&second), Err(StoreError::NotEmpty { .. })));
    assert_eq!(store.load().unwrap(), first);
}

#[test]
fn rules_alone_do_not_keep_the_file_from_being_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mc-proxy.db");
    let mut store = seeded(&path, &Desired { listeners: Vec::new(), rules: vec![block("192.0.2.1")] });
    assert!(store.is_empty().unwrap());
    let completed = Desired { rules: vec![block("192.0.2.1"), block("192.0.2.2")], ..one_listener(Vec::new()) };
    store.seed(&completed).unwrap();
    assert_eq!(store.load().unwrap(), completed);
}

#[test]
fn a_seed_that_fails_in_the_middle_leaves_nothing() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    let mut bad = route("b.test", "b:1");
    bad.target.tls_cert = Some(std::ffi::OsString::from_vec(b"/\xff".to_vec()).into());
    let mut seed = one_listener(vec![route("a.test", "a:1"), bad]);
    let error = store.seed(&seed).unwrap_err();
    assert!(matches!(error, StoreError::Unstorable { .. }), "{error}");
    seed.listeners[0].routes.truncate(1);
    seed.listeners[0].max_connections = u64::MAX;
    assert!(matches!(store.seed(&seed), Err(StoreError::Unstorable { .. })));
    assert!(store.is_empty().unwrap());
}

#[test]
fn a_replaced_route_keeps_its_place() {
    let (_dir, path) = place();
    let mut store = seeded(&path, &one_listener(vec![route("a.test", "a:1"), route("b.test", "b:1")]));
    let mut replaced = route("a.test", "other:9");
    replaced.target.backends.push("second:9".parse().unwrap());
    replaced.target.l7_policies = vec![policy(L7PolicyKind::RequireHeader, "x-a")];
    store.upsert_route(":443", &replaced).unwrap();
    store.upsert_route(":443", &route("*.c.test", "c:1")).unwrap();
    let routes = |store: &Store| store.load().unwrap().listeners.remove(0).routes;
    assert_eq!(routes(&store), [replaced, route("b.test", "b:1"), route("*.c.test", "c:1")]);

    assert!(store.delete_route(":443", &key("a.test")).unwrap());
    assert!(!store.delete_route(":443", &key("a.test")).unwrap());
    assert_eq!(routes(&store), [route("b.test", "b:1"), route("*.c.test", "c:1")]);
    let left: i64 = store
        .conn
        .query_row("SELECT (SELECT count(*) FROM backends) + (SELECT count(*) FROM l7_policies)", [], |row| row.get(0))
        .unwrap();
    assert_eq!(left, 2, "backends and policies go with their route");
    let error = store.upsert_route(":8443", &route("a.test", "a:1")).unwrap_err();
    assert_eq!(error.to_string(), "the database has no listener \":8443\"");
}

#[test]
fn routes_of_one_name_differ_in_alpn() {
    let (_dir, path) = place();
    let alpn = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let with = |names, backend| Route { alpn: alpn(names), ..route("a.test", backend) };
    let mut store = seeded(&path, &one_listener(vec![with(&["acme-tls/1"], "acme:1"), route("a.test", "a:1")]));
    store.upsert_route(":443", &with(&["h2", "http/1.1"], "web:1")).unwrap();
    store.upsert_route(":443", &with(&["acme-tls/1"], "acme:2")).unwrap();
    let expected = [with(&["acme-tls/1"], "acme:2"), route("a.test", "a:1"), with(&["h2", "http/1.1"], "web:1")];
    assert_eq!(store.load().unwrap().listeners[0].routes, expected);
    assert!(!store.delete_route(":443", &with(&["h2"], "x:1").key()).unwrap());
    assert!(store.delete_route(":443", &key("a.test")).unwrap());
    assert!(store.delete_route(":443", &expected[2].key()).unwrap());
    assert_eq!(store.load().unwrap().listeners[0].routes, expected[..1]);
}

#[test]
fn policies_keep_their_order() {
    let (_dir, path) = place();
    let mut store = seeded(&path, &one_listener(vec![route("a.test", "a:1")]));
    let host = key("a.test");
    let [first, second, third] = ["curl", "wget", "bot"].map(|value| policy(L7PolicyKind::BlockUserAgent, value));
    for policy in [&first, &second] {
        assert!(store.insert_policy(":443", &host, policy).unwrap());
    }
    assert!(!store.insert_policy(":443", &host, &first).unwrap());
    assert!(store.delete_policy(":443", &host, &first).unwrap());
    assert!(!store.delete_policy(":443", &host, &first).unwrap());
    assert!(store.insert_policy(":443", &host, &third).unwrap());
    assert!(store.insert_policy(":443", &host, &first).unwrap());
    assert_eq!(
        store.load().unwrap().listeners[0].routes[0].target.l7_policies,
        [&second, &third, &first].map(Clone::clone)
    );
    let shadow = L7Policy { shadow: true, ..second.clone() };
    assert!(store.insert_policy(":443", &host, &shadow).unwrap());
    assert!(!store.insert_policy(":443", &host, &shadow).unwrap());
    let stored = &store.load().unwrap().listeners[0].routes[0].target.l7_policies;
    assert_eq!(stored, &[shadow, third, first.clone()], "it keeps its place");
    let error = store.insert_policy(":443", &key("b.test"), &first).unwrap_err();
    assert!(matches!(error, StoreError::UnknownRoute { .. }), "{error}");
}

#[test]
fn rules_and_limits() {
    let (_dir, path) = place();
    let mut store = seeded(&path, &one_listener(Vec::new()));
    let allow = allow("192.0.2.1");
    for rule in [block("192.0.2.1"), allow, block("2001:db8::/32"), block("RU")] {
        store.put(&rule).unwrap();
        store.put(&rule).unwrap();
    }
    for _ in 0..2 {
        store.apply([Change::Remove(block("192.0.2.1").key)]).unwrap();
    }
    assert_eq!(store.load().unwrap().rules, [block("2001:db8::/32"), block("RU"), allow]);

    store.set_max_connections(":443", 9).unwrap();
    assert!(matches!(store.set_max_connections(":443", u64::MAX), Err(StoreError::Unstorable { .. })));
    assert!(matches!(store.set_max_connections(":1", 9), Err(StoreError::UnknownListener { .. })));
    assert_eq!(store.load().unwrap().listeners[0].max_connections, 9);
}

#[test]
fn a_row_that_the_api_would_refuse_is_named() {
    for (sql, expected) in [
        ("UPDATE rule_groups SET name = 'A'", "table rule_groups, row 1: \"A\" is not a group"),
        (
            "UPDATE rules SET addr = x'0a000001', prefix_len = 8",
            "row with action = 0 AND kind = 4 AND addr = x'0A000001' AND prefix_len = 8 AND scope = 0: \"10.0.0.1/8\" is \
             not in canonical form; it is \"10.0.0.0/8\"",
        ),
        (
            "UPDATE rules SET kind = 6, addr = x'00000000000000000000ffff0a000000', prefix_len = 104",
            "it is \"10.0.0.0/8\"",
        ),
        ("UPDATE rules SET kind = 9, prefix_len = 0, addr = x'7275'", "must be written \"RU/0\""),
        ("UPDATE rules SET kind = 9, prefix_len = 0, addr = x'ff00'", "is not an ISO 3166-1"),
        ("UPDATE rules SET kind = 9, prefix_len = 0, addr = x'5255', action = 1", "a country cannot be allowed"),
        ("UPDATE rules SET scope = 65536", "\"listener:0\" is not a scope"),
        ("UPDATE rules SET scope = 2", "scope 2 is not one"),
        ("UPDATE rules SET action = 3", "action 3 is none of"),
        ("UPDATE rules SET kind = 5", "kind 5 is none of"),
        ("UPDATE rules SET addr = x'00'", "does not have 1 bytes"),
        ("UPDATE rules SET prefix_len = 33", "prefix_len 33"),
        ("UPDATE rules SET expires_at = -1", "expires_at -1 is not a moment"),
        ("UPDATE listeners SET addr = 'nowhere'", "table listeners, row 1: \"nowhere\" is not a listen address"),
        ("UPDATE listeners SET protocol = 'udp'", "\"udp\" is not one of \"tls\", \"tcp\""),
        ("UPDATE routes SET alpn = 'b,a'", "table routes, row 1: alpn \"b,a\" must be written \"a,b\""),
        ("UPDATE routes SET alpn = ','", "table routes, row 1: alpn \",\" is not 1 to 255 bytes long"),
        ("UPDATE routes SET splice = 'fast'", "table routes, row 1: \"fast\" is not one of \"auto\", \"sockmap\""),
        ("UPDATE routes SET proxy_protocol_version = 'v3'", "table routes, row 1: \"v3\" is not one of \"v1\", \"v2\""),
        (
            "UPDATE listeners SET proxy_protocol = 1",
            "table listeners, row 1: proxy_protocol is on, and proxy_trusted is empty",
        ),
        (
            "UPDATE listeners SET proxy_protocol = 1, proxy_trusted = '10.0.0.1/8'",
            "table listeners, row 1: proxy_trusted: \"10.0.0.1/8\"",
        ),
        ("UPDATE routes SET hostname = 'A.test'", "table routes, row 1: \"A.test\" must be written \"a.test\""),
        ("UPDATE routes SET mode = 'l5'", "\"l5\" is not one of"),
        ("UPDATE routes SET backend_protocol = 'h3'", "\"h3\" is not one of \"auto\", \"http1\", \"h2\""),
        ("UPDATE routes SET backend_server_name = 'A.test'", "\"A.test\" must be written \"a.test\""),
        ("UPDATE routes SET backend_server_name = '10.0.0.1'", "table routes, row 1: the name is an IP address"),
        ("UPDATE backends SET addr = 'x'", "\"x\" is not a backend address"),
        ("DELETE FROM backends", "it has no backend"),
        (
            "UPDATE routes SET transparent = 1; UPDATE backends SET addr = 'unix:/run/a'",
            "table routes, row 1: it is transparent, and its backend \"unix:/run/a\" is a Unix socket",
        ),
        (
            "UPDATE listeners SET protocol = 'tcp'",
            "table listeners, row 1: it has protocol \"tcp\", and routes with hostnames",
        ),
        (
            "DELETE FROM routes; UPDATE listeners SET protocol = 'tcp'",
            "table listeners, row 1: it has protocol \"tcp\", and no default route",
        ),
        (
            "UPDATE listeners SET protocol = 'http-redirect'",
            "table listeners, row 1: it has protocol \"http-redirect\", and routes with hostnames",
        ),
        (
            "UPDATE routes SET hostname = NULL; UPDATE listeners SET protocol = 'http-redirect'",
            "table listeners, row 1: it has protocol \"http-redirect\", and a default route",
        ),
        ("INSERT INTO l7_policies VALUES (1, 0, 'x', 'y', 0)", "\"x\" is not one of"),
    ] {
        let (_dir, path) = place();
        let content = Desired { rules: vec![block("192.0.2.1")], ..one_listener(vec![route("a.test", "a:1")]) };
        let store = seeded(&path, &content);
        // What a CHECK refuses, SQLite's own integrity check refuses at the start; this is behind it.
        store.conn.pragma_update(None, "ignore_check_constraints", true).unwrap();
        store.conn.execute_batch(sql).unwrap();
        let error = store.load().unwrap_err();
        assert!(matches!(error, StoreError::BadRow { .. }), "{sql}: {error}");
        assert!(error.to_string().contains(expected), "{sql}: {error}");
    }
}

#[test]
fn a_second_daemon_is_refused_until_the_first_is_gone() {
    let (dir, path) = place();
    let mut first = Store::open(&path).unwrap();
    let link = dir.path().join("other-name.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for name in [&path, &link] {
        let error = Store::open(name).unwrap_err();
        assert!(matches!(error, StoreError::Locked { .. }), "{error}");
        assert!(error.to_string().contains("in use by another mc-proxy"), "{error}");
    }
    first.put(&block("192.0.2.1")).unwrap();
    drop(first);
    assert_eq!(Store::open(&link).unwrap().load().unwrap().rules.len(), 1);
}

/// What version 1 left behind, byte for byte as SQL: this stays when newer versions come.
const VERSION_1: &str = concat!(
    include_str!("../migrations/0001_initial.sql"),
    "PRAGMA application_id = 1835233400; PRAGMA user_version = 1;
     INSERT INTO listeners VALUES (1, ':443', 'tls', 100), (2, '10.0.0.1:25', 'tcp', 0);
     INSERT INTO routes VALUES (1, 1, 'a.test', 'l4', NULL, NULL, 0, 1), (2, 2, NULL, 'l4', NULL, NULL, 0, 0);
     INSERT INTO backends VALUES (1, 0, '127.0.0.1:1'), (1, 1, 'unix:/run/a.sock'), (2, 0, 'mail:25');
     INSERT INTO firewall_rules VALUES (7, 'block', 'ip', '192.0.2.1', 0), (8, 'allow', 'cidr', '2001:db8::/32', 5),
         (9, 'block', 'country', 'RU', 0);"
);

fn version_1_content() -> Desired {
    let mut first = Listener { max_connections: 100, ..Listener::new(":443".parse().unwrap()) };
    first.routes = vec![route("a.test", "127.0.0.1:1")];
    first.routes[0].target.backends.push("unix:/run/a.sock".parse().unwrap());
    first.routes[0].target.send_proxy = Some(ProxyVersion::V2);
    let mut second = Listener::new("10.0.0.1:25".parse().unwrap());
    second.protocol = Protocol::Tcp;
    second.default = Some(Target::passthrough("mail:25".parse().unwrap()));
    Desired { listeners: vec![first, second], rules: vec![block("192.0.2.1"), block("RU"), allow("2001:db8::/32")] }
}

#[test]
fn version_1_is_read() {
    let (_dir, path) = place();
    Connection::open(&path).unwrap().execute_batch(VERSION_1).unwrap();
    assert_eq!(Store::open(&path).unwrap().load().unwrap(), version_1_content());
}

/// Rebuilding a table that others refer to: the kind of change that SQLite makes hard.
const NEXT: &str = "
    ALTER TABLE rules ADD COLUMN hits INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE rebuilt (id INTEGER PRIMARY KEY, addr TEXT NOT NULL, protocol TEXT NOT NULL,
        max_connections INTEGER NOT NULL, max_connections_per_source INTEGER NOT NULL, proxy_protocol INTEGER NOT NULL,
        proxy_trusted TEXT NOT NULL, proxy_trust_any INTEGER NOT NULL, backlog INTEGER NOT NULL) STRICT;
    INSERT INTO rebuilt SELECT *, 0 FROM listeners;
    DROP TABLE listeners;
    ALTER TABLE rebuilt RENAME TO listeners;";

fn with(sql: &'static str) -> Vec<Migration> {
    migrate::MIGRATIONS.iter().copied().chain([Migration { sql, code: None }]).collect()
}

#[test]
fn a_migration_carries_the_data_on() {
    let (_dir, path) = place();
    Connection::open(&path).unwrap().execute_batch(VERSION_1).unwrap();
    let next = with(NEXT);
    assert_eq!(Store::open_with(&path, &next).unwrap().load().unwrap(), version_1_content());
    assert_eq!(Store::open_with(&path, &next).unwrap().load().unwrap(), version_1_content());

    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::TooNew { found: 6, supported: 5, .. }), "{error}");
    assert!(error.to_string().contains("schema version 6, this mc-proxy knows versions up to 5"), "{error}");
    assert_eq!(Store::open_with(&path, &next).unwrap().load().unwrap(), version_1_content());
}

#[test]
fn a_migration_that_fails_changes_nothing() {
    let (_dir, path) = place();
    Connection::open(&path).unwrap().execute_batch(VERSION_1).unwrap();
    for broken in ["DELETE FROM rules; SELECT nonsense;", "DELETE FROM listeners WHERE id = 1;"] {
        let error = Store::open_with(&path, &with(broken)).unwrap_err();
        assert!(matches!(error, StoreError::Sqlite { .. } | StoreError::Corrupt { .. }), "{error}");
        assert_eq!(Store::open(&path).unwrap().load().unwrap(), version_1_content());
    }
}

#[test]
fn a_thousand_routes_and_a_hundred_thousand_rules() {
    let (_dir, path) = place();
    let routes =
        (0..1_000).map(|n| route(&format!("app-{n}.example.com"), &format!("10.0.{}.{}:443", n / 250, n % 250)));
    let desired = Desired { rules: rules(100_000), ..one_listener(routes.collect()) };
    let started = Instant::now();
    let mut store = seeded(&path, &desired);
    let seeded_in = started.elapsed();
    let started = Instant::now();
    for n in 0..100_u8 {
        store.put(&block(&format!("192.0.2.{n}"))).unwrap();
    }
    let change = started.elapsed() / 100;
    drop(store);
    let started = Instant::now();
    let store = Store::open(&path).unwrap();
    let opened_in = started.elapsed();
    let started = Instant::now();
    let loaded = store.load().unwrap();
    println!(
        "seed {seeded_in:?}, one more rule (synced) {change:?}, open with integrity check {opened_in:?}, load {:?}",
        started.elapsed()
    );
    assert_eq!(loaded.listeners, desired.listeners);
    assert_eq!(loaded.rules.len(), 100_100);
    assert_eq!(loaded.rules[..100_000], desired.rules);
}
