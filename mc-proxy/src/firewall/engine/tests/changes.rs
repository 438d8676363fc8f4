//! Random rules and changes: the tables say what the list of rules says.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::{
    reference::Reference,
    support::{Packet, Plane, SECOND, at, expiry, judge},
};
use crate::firewall::{
    Action, CountryCode, Engine, EngineConfig, EngineError, Moment, Rule, RuleChange, RuleKey, RuleScope, Subject,
    Usage,
};

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<RuleChange>),
    /// A group becomes a list.
    Replace(Vec<IpNet>, Option<u64>),
    Countries(Vec<(IpNet, CountryCode)>),
    Wait(u64),
    Regenerate,
}

const PACKETS: [Packet; 3] = [
    Packet { is_for_listener: true, port: 443 },
    Packet { is_for_listener: true, port: 8443 },
    Packet { is_for_listener: false, port: 22 },
];

/// Addresses that share long prefixes, near the edges of granules and levels.
fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = (prop::sample::select(vec![0x0a00_0000_u32, 0x0a00_00f0, 0x0a01_ff00, 0x0b00_0000, 0]), 0_u32..20)
        .prop_map(|(base, low)| IpAddr::V4((base + low).into()));
    let bases = [
        "2001:db8::",
        "2001:db8:8000::",
        "2001:db8:0:1::",
        "2001:db8:0:10::",
        "2001:db8:0:10:8000::",
        "2001:db8:0:10:0:0:1:0",
        "2001:db9::",
        "2002::",
    ];
    let v6 = (prop::sample::select(bases.to_vec()), 0_u128..20).prop_map(|(base, low)| {
        let base: std::net::Ipv6Addr = base.parse().unwrap();
        IpAddr::V6((base.to_bits() | low).into())
    });
    prop_oneof![v4, v6]
}

fn net() -> impl Strategy<Value = IpNet> {
    (address(), 0_u8..=128, 0_u8..4).prop_map(|(address, length, kind)| {
        let max = if address.is_ipv4() { 32 } else { 128 };
        let length = match kind {
            0 => max,
            1 => max - length % 8,
            _ => length % (max + 1),
        };
        IpNet::new(address, length).unwrap().trunc()
    })
}

fn country() -> impl Strategy<Value = CountryCode> {
    prop::sample::select(vec!["RU", "CN", "DE"]).prop_map(|code| code.parse().unwrap())
}

fn key() -> impl Strategy<Value = RuleKey> {
    let subject = prop_oneof![9 => net().prop_map(Subject::covering), 1 => country().prop_map(Subject::Country)];
    let scope = prop_oneof![
        6 => Just(RuleScope::Default),
        2 => Just(RuleScope::Host),
        1 => prop::sample::select(vec![443, 22]).prop_map(RuleScope::Listener),
    ];
    let group = prop::sample::select(vec!["default", "a", "b", "auto/rate", "auto/sni"]);
    let action = prop_oneof![6 => Just(Action::Block), 2 => Just(Action::Allow), 2 => Just(Action::Count)];
    (subject, scope, group, action).prop_map(|(subject, scope, group, action)| {
        let action =
            if matches!(subject, Subject::Country(_)) && action == Action::Allow { Action::Block } else { action };
        RuleKey::new(group.parse().unwrap(), action, subject, scope).unwrap()
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    (key(), prop_oneof![3 => Just(None), 1 => (2_u64..30).prop_map(Some)])
        .prop_map(|(key, seconds)| Rule { key, expires_at: seconds.map(expiry) })
}

fn countries() -> impl Strategy<Value = Vec<(IpNet, CountryCode)>> {
    prop::collection::vec((net(), country()), 0..12).prop_map(|mut nets| {
        // A database has disjoint networks.
        let mut kept: Vec<(IpNet, CountryCode)> = Vec::new();
        nets.sort();
        for (net, code) in nets {
            if kept.iter().all(|(other, _)| !other.contains(&net) && !net.contains(other)) {
                kept.push((net, code));
            }
        }
        kept
    })
}

fn step() -> impl Strategy<Value = Step> {
    let change = prop_oneof![
        3 => rule().prop_map(RuleChange::Put),
        2 => key().prop_map(RuleChange::Remove),
    ];
    prop_oneof![
        8 => prop::collection::vec(change, 1..8).prop_map(Step::Apply),
        3 => (prop::collection::vec(net(), 0..20), prop_oneof![Just(None), (2_u64..30).prop_map(Some)])
            .prop_map(|(nets, seconds)| Step::Replace(nets, seconds)),
        1 => countries().prop_map(Step::Countries),
        3 => (1_u64..5).prop_map(Step::Wait),
        1 => Just(Step::Regenerate),
    ]
}

fn check(engine: &Engine, reference: &Reference, is_host: bool, now: Moment, probes: &[IpAddr]) {
    let book = engine.book();
    let mut rules: Vec<Rule> = book.rules().collect();
    rules.sort();
    let expected: Vec<Rule> =
        reference.rules.iter().map(|(key, expires_at)| Rule { key: *key, expires_at: *expires_at }).collect();
    assert_eq!(rules, expected);
    assert_eq!(book.len(), rules.len() as u64);
    let memory = engine.memory();
    for source in probes {
        let covering: Vec<_> = book.covering(*source).iter().map(|found| (found.rule, found.net)).collect();
        assert_eq!(covering, reference.covering(*source, book.groups()), "{source}");
        for packet in PACKETS {
            // Rules expire by themselves, with nobody writing.
            for later in [0, 1, 7, 40] {
                let (boot, wall) = (now.boot + later * SECOND, now.wall + later * 1000);
                let found = judge(&memory.reading(), *source, packet, is_host, boot);
                let expected = reference.judge(*source, packet, is_host, wall, book.groups());
                assert_eq!(found, expected, "{source} {packet:?} {later} s later");
            }
        }
    }
}

fn play(steps: Vec<Step>, initial: Vec<Rule>, is_host: bool, probes: &[IpAddr]) -> Result<(), TestCaseError> {
    let mut plane = Plane::default();
    let mut seconds = 1;
    let bans_max = 6;
    let mut reference = Reference { bans_max, ..Reference::default() };
    reference.apply(&initial.iter().map(|rule| RuleChange::Put(*rule)).collect::<Vec<_>>());
    let rules = reference.rules.iter().map(|(key, expires_at)| Rule { key: *key, expires_at: *expires_at });
    let config = EngineConfig { is_host_scope: is_host, bans_max, ..EngineConfig::default() };
    let mut engine = match Engine::new(rules, [], config, &mut plane, at(seconds)) {
        Ok(engine) => engine,
        // Too many scopes and expiries over one address.
        Err(EngineError::TooManyRules { .. }) => return Ok(()),
        Err(error) => panic!("{error}"),
    };
    check(&engine, &reference, is_host, at(seconds), probes);
    for step in steps {
        let before = reference.clone();
        let now = at(seconds);
        let result = match step {
            Step::Apply(changes) => {
                reference.apply(&changes);
                engine.apply(&changes, now, &mut plane).map(drop)
            }
            Step::Replace(nets, until) => {
                let group = "list".parse().unwrap();
                let nets: Vec<IpNet> = nets;
                let replacement =
                    engine.book().replacement(group, Action::Block, RuleScope::Default, until.map(expiry), nets);
                reference.apply(&replacement.changes);
                engine.apply(&replacement.changes, now, &mut plane).map(drop)
            }
            Step::Countries(nets) => {
                reference.countries = nets.clone();
                engine.set_countries(nets, now, &mut plane)
            }
            Step::Wait(wait) => {
                seconds += wait;
                let now = at(seconds);
                reference.expire(now.wall);
                engine.expire(now, &mut plane).map(drop)
            }
            Step::Regenerate => engine.regenerate(now, &mut plane),
        };
        match result {
            Ok(()) => {}
            Err(EngineError::TooManyRules { net, rules }) => {
                assert!(rules.len() > 8, "{net} {rules:?}");
                reference = before;
            }
            Err(error) => panic!("{error}"),
        }
        check(&engine, &reference, is_host, at(seconds), probes);
    }
    // In the end nothing is left.
    let keys: Vec<RuleChange> = reference.rules.keys().map(|key| RuleChange::Remove(*key)).collect();
    engine.apply(&keys, at(seconds), &mut plane).unwrap();
    engine.expire(at(seconds + 2), &mut plane).unwrap();
    prop_assert_eq!(engine.stats().usage, Usage::default());
    prop_assert_eq!((engine.book().prefixes(), engine.book().len()), (0, 0));
    Ok(())
}

#[test]
fn nodes_of_every_depth_are_given_back() {
    for net in ["2001::/17", "2001::/24", "2001::/25", "2001:db8::/32", "2001:db8::/33", "10.0.0.0/17", "10.0.0.0/24"] {
        let steps = vec![Step::Replace(vec![net.parse().unwrap()], None)];
        play(steps, Vec::new(), false, &["2001:db8::1".parse().unwrap()]).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn the_tables_say_what_the_rules_say(
        initial in prop::collection::vec(rule(), 0..30),
        steps in prop::collection::vec(step(), 0..25),
        is_host in any::<bool>(),
        probes in prop::collection::vec(address(), 12),
    ) {
        play(steps, initial, is_host, &probes)?;
    }
}
