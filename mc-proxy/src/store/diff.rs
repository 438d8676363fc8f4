//! What the configuration file says and the database does otherwise.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    path::PathBuf,
};

use super::{Store, StoreError};
use crate::{
    config::Splice,
    desired::{Desired, Listener, ProxyVersion, Target},
    firewall::{Group, Rule, RuleKey, RuleScope},
    route::alpn::Listed,
};

/// Rules of the database alone that are named one by one; of the others the number is told.
const NAMED_RULES: u64 = 100;

/// One difference between the file's seed and the database, which is what is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// One line for people.
    pub text: String,
    /// Whether the file says nothing of it: as a rule it was added at run time.
    pub is_only_in_database: bool,
    /// Of how many entries it speaks.
    pub entries: u64,
}

impl Store {
    /// Every difference between the file and the database. The order of listeners, routes and rules does not count; that
    /// of backends and policies does. Of the rules, those that a file can have are compared: permanent ones of the
    /// default group and scope.
    ///
    /// # Errors
    /// Those of [`Store::listeners`] and [`Store::for_each_rule`].
    pub fn diff(&self, seed: &Desired) -> Result<Vec<Difference>, StoreError> {
        let mut lines = Vec::new();
        let name = |listener: &Listener| listener.addr.to_string();
        for (addr, sides) in paired(&seed.listeners, &self.listeners()?, name) {
            let place = format!("listener \"{addr}\"");
            match sides {
                (Some(seed), Some(db)) => listener(&mut lines, &place, seed, db),
                (seed, _) => lines.push(one_sided(&place, seed.is_some())),
            }
        }
        self.diff_rules(&seed.rules, &mut lines)?;
        Ok(lines)
    }

    fn diff_rules(&self, seed: &[Rule], lines: &mut Vec<Difference>) -> Result<(), StoreError> {
        let mut only_in_file = seed.iter().map(|rule| rule.key).collect::<BTreeSet<_>>();
        let mut only_in_database = 0;
        self.for_each_rule(&mut |rule| {
            if rule.key.group != Group::DEFAULT || rule.key.scope != RuleScope::Default || rule.expires_at.is_some() {
                return;
            }
            if !only_in_file.remove(&rule.key) {
                only_in_database += 1;
                if only_in_database <= NAMED_RULES {
                    lines.push(one_sided(&rule_place(&rule.key), false));
                }
            }
        })?;
        if let Some(entries) = only_in_database.checked_sub(NAMED_RULES).filter(|more| *more > 0) {
            let text = format!("{entries} more firewall rules are only in the database, and in force");
            lines.push(Difference { text, is_only_in_database: true, entries });
        }
        lines.extend(only_in_file.iter().map(|key| one_sided(&rule_place(key), true)));
        Ok(())
    }
}

fn listener(lines: &mut Vec<Difference>, place: &str, seed: &Listener, db: &Listener) {
    field(lines, place, "protocol", seed.protocol.as_str(), db.protocol.as_str());
    field(lines, place, "max_connections", seed.max_connections, db.max_connections);
    let per_source = |listener: &Listener| listener.max_connections_per_source;
    field(lines, place, "max_connections_per_source", per_source(seed), per_source(db));
    field(lines, place, "proxy_protocol", seed.proxy.is_some(), db.proxy.is_some());
    let trusted = |listener: &Listener| list(listener.proxy.as_ref().map(|p| p.trusted.as_slice()).unwrap_or_default());
    field(lines, place, "proxy_trusted", trusted(seed), trusted(db));
    let trust_any = |listener: &Listener| listener.proxy.as_ref().is_some_and(|proxy| proxy.trust_any);
    field(lines, place, "proxy_trust_any", trust_any(seed), trust_any(db));
    let default = format!("{place}, default route");
    match (&seed.default, &db.default) {
        (Some(seed), Some(db)) => target(lines, &default, seed, db),
        (None, None) => {}
        (seed, _) => lines.push(one_sided(&default, seed.is_some())),
    }
    for (key, sides) in paired(&seed.routes, &db.routes, |route| route.key()) {
        let alpn = if key.alpn.is_empty() { String::new() } else { format!(" with ALPN {}", Listed(&key.alpn)) };
        let place = format!("{place}, route \"{}\"{alpn}", key.hostname);
        match sides {
            (Some(seed), Some(db)) => target(lines, &place, &seed.target, &db.target),
            (seed, _) => lines.push(one_sided(&place, seed.is_some())),
        }
    }
}

fn target(lines: &mut Vec<Difference>, place: &str, seed: &Target, db: &Target) {
    let backends = |target: &Target| list(&target.backends);
    let path = |path: &Option<PathBuf>| path.as_ref().map_or_else(|| "none".to_owned(), |p| p.display().to_string());
    let policies = |target: &Target| {
        let words = target.l7_policies.iter().map(|policy| {
            let shadow = if policy.shadow { " (shadow)" } else { "" };
            format!("{} {:?}{shadow}", policy.kind.as_str(), policy.value)
        });
        list(&words.collect::<Vec<_>>())
    };
    field(lines, place, "backends", backends(seed), backends(db));
    field(lines, place, "mode", seed.mode.as_str(), db.mode.as_str());
    field(lines, place, "tls_cert", path(&seed.tls_cert), path(&db.tls_cert));
    field(lines, place, "tls_key", path(&seed.tls_key), path(&db.tls_key));
    field(lines, place, "backend_tls", seed.backend_tls, db.backend_tls);
    field(lines, place, "backend_ca", path(&seed.backend_ca), path(&db.backend_ca));
    let server_name =
        |target: &Target| target.backend_server_name.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    field(lines, place, "backend_server_name", server_name(seed), server_name(db));
    field(lines, place, "backend_insecure", seed.backend_insecure, db.backend_insecure);
    field(lines, place, "backend_protocol", seed.backend_protocol.as_str(), db.backend_protocol.as_str());
    let send_proxy = |target: &Target| target.send_proxy.map_or("false", ProxyVersion::as_str);
    field(lines, place, "send_proxy_protocol", send_proxy(seed), send_proxy(db));
    field(lines, place, "transparent", seed.transparent, db.transparent);
    let splice = |target: &Target| target.splice.map_or("as proxy.splice", Splice::as_str);
    field(lines, place, "splice", splice(seed), splice(db));
    field(lines, place, "l7_policies", policies(seed), policies(db));
}

fn field<T: PartialEq + Display>(lines: &mut Vec<Difference>, place: &str, name: &str, seed: T, db: T) {
    if seed != db {
        let text = format!("{place}: {name} is {db} in the database, {seed} in the file");
        lines.push(Difference { text, is_only_in_database: false, entries: 1 });
    }
}

fn one_sided(place: &str, is_in_file: bool) -> Difference {
    let text = if is_in_file {
        format!("{place} is only in the file, and not in force")
    } else {
        format!("{place} is only in the database, and in force")
    };
    Difference { text, is_only_in_database: !is_in_file, entries: 1 }
}

fn rule_place(key: &RuleKey) -> String {
    format!("firewall rule {key}")
}

fn list<T: Display>(items: &[T]) -> String {
    let words = items.iter().map(ToString::to_string).collect::<Vec<_>>();
    format!("[{}]", words.join(", "))
}

type Sides<'a, T> = (Option<&'a T>, Option<&'a T>);

fn paired<'a, T, K: Ord>(seed: &'a [T], db: &'a [T], key: impl Fn(&T) -> K) -> BTreeMap<K, Sides<'a, T>> {
    let mut pairs = BTreeMap::<_, Sides<'_, T>>::new();
    for item in seed {
        pairs.entry(key(item)).or_default().0 = Some(item);
    }
    for item in db {
        pairs.entry(key(item)).or_default().1 = Some(item);
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::{BackendProtocol, L7Policy, L7PolicyKind, Route},
        firewall::{Expiry, Subject},
        store::Change,
    };

    fn route(hostname: &str, backend: &str) -> Route {
        Route {
            hostname: hostname.parse().unwrap(),
            alpn: Vec::new(),
            target: Target::passthrough(backend.parse().unwrap()),
        }
    }

    fn block(subject: &str) -> Rule {
        Rule::block(subject.parse::<Subject>().unwrap())
    }

    #[test]
    fn one_line_for_each_difference() {
        let mut first = Listener::new(":443".parse().unwrap());
        first.routes = vec![route("a.test", "one:1"), route("b.test", "two:2"), route("same.test", "same:1")];
        let mut second = first.clone();
        second.max_connections = 10;
        second.default = Some(Target::passthrough("fallback:1".parse().unwrap()));
        second.routes.reverse();
        second.routes[2].target.backends.push("three:3".parse().unwrap());
        second.routes[2].target.tls_cert = Some("/a.pem".into());
        second.routes[2].target.backend_server_name = Some("inner.test".parse().unwrap());
        second.routes[2].target.backend_protocol = BackendProtocol::H2;
        second.routes[2].target.l7_policies =
            vec![L7Policy { kind: L7PolicyKind::RequireHeader, value: "x-key".to_owned(), shadow: false }];
        second.routes.remove(1);
        let seed = Desired {
            listeners: vec![first, Listener::new(":80".parse().unwrap())],
            rules: vec![block("192.0.2.1"), block("RU")],
        };
        let db = Desired { listeners: vec![second], rules: vec![block("RU"), block("198.51.100.0/24")] };
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("mc-proxy.db")).unwrap();
        store.seed(&db).unwrap();
        let temporary = Rule { expires_at: Some(Expiry::MAX), ..block("192.0.2.9") };
        let key = RuleKey { group: Group::literal("bots"), ..temporary.key };
        let ours = Rule { key, expires_at: None };
        store.apply([Change::Put(temporary, None), Change::Put(ours, None)]).unwrap();
        assert_eq!(
            store
                .diff(&seed)
                .unwrap()
                .iter()
                .map(|line| (line.text.as_str(), line.is_only_in_database))
                .collect::<Vec<_>>(),
            [
                ("listener \":443\": max_connections is 10 in the database, 0 in the file", false),
                ("listener \":443\", default route is only in the database, and in force", true),
                (
                    "listener \":443\", route \"a.test\": backends is [one:1, three:3] in the database, [one:1] in the file",
                    false
                ),
                ("listener \":443\", route \"a.test\": tls_cert is /a.pem in the database, none in the file", false),
                (
                    "listener \":443\", route \"a.test\": backend_server_name is inner.test in the database, none in the \
                     file",
                    false
                ),
                (
                    "listener \":443\", route \"a.test\": backend_protocol is h2 in the database, auto in the file",
                    false
                ),
                (
                    "listener \":443\", route \"a.test\": l7_policies is [require_header \"x-key\"] in the database, [] in \
                 the file",
                    false
                ),
                ("listener \":443\", route \"b.test\" is only in the file, and not in force", false),
                ("listener \":80\" is only in the file, and not in force", false),
                ("firewall rule block 198.51.100.0/24 is only in the database, and in force", true),
                ("firewall rule block 192.0.2.1 is only in the file, and not in force", false),
            ]
        );
        assert_eq!(store.diff(&db).unwrap(), []);
    }

    #[test]
    fn many_rules_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("mc-proxy.db")).unwrap();
        let rules = (0..=255).map(|n| Change::Put(block(&format!("192.0.2.{n}")), None));
        store.apply(rules).unwrap();
        let found = store.diff(&Desired::default()).unwrap();
        assert_eq!(found.len(), 101);
        assert_eq!(found[100].text, "156 more firewall rules are only in the database, and in force");
        assert_eq!(found.iter().map(|line| line.entries).sum::<u64>(), 256);
        assert!(found.iter().all(|line| line.is_only_in_database));
    }
}
