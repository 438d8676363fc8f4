//! Rules about countries, whose prefixes are the GeoIP database's.

use std::{fs, time::Duration};

use super::support::{Bench, Setup, block, confirm, new, rule};
use crate::{
    control::ChangeOptions,
    firewall::{
        Action, RuleScope,
        geoip_fixture::{iso, mmdb},
    },
};

const BEFORE: [(&str, &str); 3] = [("192.0.2.0/24", "RU"), ("2001:db8::/32", "RU"), ("198.51.100.0/24", "DE")];
const AFTER: [(&str, &str); 2] = [("203.0.113.0/24", "RU"), ("198.51.100.0/24", "RU")];

fn database(places: &[(&str, &'static str)]) -> Vec<u8> {
    let entries: Vec<_> = places.iter().map(|(net, country)| (*net, iso(country))).collect();
    mmdb(6, 24, &entries)
}

fn dropped(bench: &Bench) -> Vec<&'static str> {
    let probes = ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1"];
    probes.into_iter().filter(|source| bench.is_dropped(source)).collect()
}

#[tokio::test]
async fn a_countrys_prefixes_come_go_and_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("country.mmdb");
    fs::write(&path, database(&BEFORE)).unwrap();
    let bench = Bench::with(Setup { geoip: Some(path.clone()), ..Setup::default() });
    assert!(dropped(&bench).is_empty());
    bench.put(&[block("RU")]).await;
    assert_eq!(dropped(&bench), ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(bench.control.status().await.unwrap().firewall.rules, 1);
    // A change that is taken back takes the prefixes with it.
    bench.put_with(&[block("DE")], confirm(Duration::from_secs(3600))).await;
    assert_eq!(dropped(&bench), ["192.0.2.1", "198.51.100.1", "2001:db8::1"]);
    bench.control.revert(None).await.unwrap();
    assert_eq!(dropped(&bench), ["192.0.2.1", "2001:db8::1"]);

    fs::write(&path, database(&AFTER)).unwrap();
    assert!(bench.control.reload_geoip().await.unwrap());
    assert_eq!(dropped(&bench), ["198.51.100.1", "203.0.113.1"]);
    // One that cannot be read leaves the old one in force.
    fs::write(&path, b"not a database").unwrap();
    bench.control.reload_geoip().await.unwrap_err();
    assert_eq!(dropped(&bench), ["198.51.100.1", "203.0.113.1"]);
    fs::write(&path, database(&BEFORE)).unwrap();
    let bench = bench.restarted().await;
    assert_eq!(dropped(&bench), ["192.0.2.1", "2001:db8::1"]);
    bench.control.remove_rules(vec![block("RU").key], ChangeOptions::default()).await.unwrap();
    assert!(dropped(&bench).is_empty());
}

#[tokio::test]
async fn a_file_that_changes_is_read_without_being_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("country.mmdb");
    fs::write(&path, database(&BEFORE)).unwrap();
    let bench = Bench::with(Setup { geoip: Some(path.clone()), ..Setup::default() });
    bench.put(&[block("RU")]).await;
    let next = dir.path().join("next.mmdb");
    fs::write(&next, database(&AFTER)).unwrap();
    fs::rename(&next, &path).unwrap();
    // It is looked at every three seconds, and must be the same twice.
    for _ in 0..24 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if dropped(&bench) == ["198.51.100.1", "203.0.113.1"] {
            return;
        }
    }
    panic!("{:?}", dropped(&bench));
}

#[tokio::test]
async fn without_a_database_there_is_no_country() {
    let bench = Bench::new();
    assert!(!bench.control.reload_geoip().await.unwrap());
    for action in [Action::Block, Action::Count] {
        let rule = rule("default", action, "RU", RuleScope::Host);
        let error = bench.control.put_rules(vec![new(rule)], ChangeOptions::default()).await.unwrap_err();
        assert!(error.to_string().starts_with("firewall: geoip_db is required to block a country"), "{error}");
    }
    assert!(bench.restarted().await.listed().await.is_empty());
}
