//! Tables that get full, and planes that fail: a change is made wholly or not at all.

use std::sync::Arc;

use super::support::{Plane, SECOND, at, block, engine, expiry, is_blocked};
use crate::firewall::{
    Action, Engine, EngineConfig, EngineError, Group, Rule, RuleChange, RuleKey, RuleScope, Sizes, Subject, Usage,
};

fn put(subject: &str) -> RuleChange {
    RuleChange::Put(block(subject))
}

fn addresses(count: u32) -> Vec<RuleChange> {
    (0..count).map(|n| put(&format!("10.{}.{}.{}", n >> 14 & 255, n >> 6 & 255, n & 63))).collect()
}

#[test]
fn tables_grow_when_they_must() {
    let mut plane = Plane::default();
    let mut engine = engine(&[], &mut plane);
    let first = engine.stats().sizes;
    engine.apply(&addresses(60_000), at(2), &mut plane).unwrap();
    assert_eq!((plane.committed, engine.stats().generation), (2, 2));
    assert!(engine.stats().sizes.lines4 > first.lines4);
    assert!(is_blocked(&*engine.memory(), "10.0.0.1"));
    let keys: Vec<RuleChange> = engine.book().rules().map(|rule| RuleChange::Remove(rule.key)).collect();
    engine.apply(&keys, at(3), &mut plane).unwrap();
    engine.expire(at(5), &mut plane).unwrap();
    assert_eq!(engine.stats().usage, Usage::default());
    // Smaller again only with a generation.
    assert!(engine.stats().sizes.lines4 > first.lines4);
    engine.regenerate(at(6), &mut plane).unwrap();
    assert_eq!(engine.stats().sizes, first);
}

#[test]
fn what_fails_leaves_everything_as_it_was() {
    for (failing_prepares, failing_commits) in [(1, 0), (0, 1)] {
        let mut plane = Plane::default();
        let mut engine = engine(&[block("10.0.0.0/24"), block("192.0.2.1")], &mut plane);
        let (memory, rules) = (engine.memory(), engine.book().rules().collect::<Vec<_>>());
        plane.failing_prepares = failing_prepares;
        plane.failing_commits = failing_commits;
        let mut changes = addresses(60_000);
        changes.push(RuleChange::Remove(block("192.0.2.1").key));
        let error = engine.apply(&changes, at(2), &mut plane).unwrap_err();
        let (is_prepare, is_commit) =
            (matches!(error, EngineError::Prepare(_)), matches!(error, EngineError::Commit(_)));
        assert_eq!((is_prepare, is_commit), (failing_prepares == 1, failing_commits == 1), "{error}");
        assert!(Arc::ptr_eq(&memory, &engine.memory()));
        assert_eq!(engine.book().rules().collect::<Vec<_>>(), rules);
        assert!(is_blocked(&*memory, "192.0.2.1") && is_blocked(&*memory, "10.0.0.9"));
        assert!(!is_blocked(&*memory, "10.0.1.1"));
        // It works once the plane does.
        engine.apply(&changes, at(3), &mut plane).unwrap();
        assert!(is_blocked(&*engine.memory(), "10.0.1.1") && !is_blocked(&*engine.memory(), "192.0.2.1"));
    }
}

/// Tables that are exhausted in the midst of a change: half of it has been written then.
#[test]
fn a_change_that_fails_half_way_is_taken_back() {
    let small = Sizes { nodes: 4, lines4: 1 << 14, lines6: 1 << 13, lines_long6: 1 << 14, clauses: 64 };
    let mut plane = Plane { sizes: Some(small), ..Plane::default() };
    let initial = ["10.0.0.0/16", "10.0.5.7", "10.0.5.0/28", "20.0.0.1", "2001:db8::/48"].map(block);
    let mut engine = engine(&initial, &mut plane);
    plane.sizes = None;
    let nested: Vec<RuleChange> = ["10.0.5.8", "10.0.5.0/25", "10.0.0.0/8"].map(put).to_vec();
    let many_nodes = (0..200).map(|n| put(&format!("{}.1.1.1", n + 1)));
    let many_lists = (2..200).map(|n| {
        let mut rule = block(&format!("10.0.{n}.9"));
        rule.expires_at = Some(expiry(1000 + n));
        RuleChange::Put(rule)
    });
    for more in [many_nodes.collect::<Vec<_>>(), many_lists.collect()] {
        let mut changes = nested.clone();
        changes.push(RuleChange::Remove(block("10.0.0.0/16").key));
        changes.push(RuleChange::Remove(block("20.0.0.1").key));
        changes.extend(more);
        let before: Vec<Rule> = engine.book().rules().collect();
        let memory = engine.memory();
        for round in 0..3 {
            plane.failing_prepares = 1;
            let error = engine.apply(&changes, at(2 + round), &mut plane).unwrap_err();
            assert!(matches!(error, EngineError::Prepare(_)), "{error}");
            assert!(Arc::ptr_eq(&memory, &engine.memory()));
            assert_eq!(engine.book().rules().collect::<Vec<_>>(), before);
            for blocked in ["10.0.5.7", "10.0.5.8", "10.0.5.1", "10.0.9.9", "20.0.0.1", "2001:db8::1"] {
                assert!(is_blocked(&*memory, blocked), "{blocked}");
            }
            for passed in ["10.1.0.1", "20.0.0.2", "1.1.1.1", "2001:db8:1::"] {
                assert!(!is_blocked(&*memory, passed), "{passed}");
            }
        }
        engine.expire(at(10), &mut plane).unwrap();
        assert_eq!(engine.stats().usage.slots4, 3, "nothing is left of the attempts");
    }
    let before = plane.committed;
    let changes: Vec<RuleChange> = (0..200).map(|n| put(&format!("{}.1.1.1", n + 1))).collect();
    engine.apply(&changes, at(20), &mut plane).unwrap();
    assert_eq!(plane.committed, before + 1);
}

#[test]
fn too_many_rules_over_one_address_are_named() {
    let mut plane = Plane::default();
    let mut engine = engine(&[block("192.0.2.1")], &mut plane);
    let listener = |port: u16| {
        RuleChange::Put(Rule {
            key: RuleKey { scope: RuleScope::Listener(port), ..block("198.51.100.7").key },
            expires_at: None,
        })
    };
    let mut changes: Vec<RuleChange> = (1..=8).map(listener).collect();
    engine.apply(&changes, at(2), &mut plane).unwrap();
    changes.extend([RuleChange::Remove(block("192.0.2.1").key), listener(9)]);
    let error = engine.apply(&changes, at(3), &mut plane).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("more than 8 rules would have to be asked about 198.51.100.7/32: block 198.51.100.7"),
        "{text}"
    );
    assert_eq!((engine.book().len(), plane.committed), (9, 1));
    assert!(is_blocked(&*engine.memory(), "192.0.2.1"));
    // Nine listeners are one host.
    let host = Rule { key: RuleKey { scope: RuleScope::Host, ..block("198.51.100.7").key }, expires_at: None };
    changes.push(RuleChange::Put(host));
    engine.apply(&changes, at(4), &mut plane).unwrap();
}

#[test]
fn groups_are_limited_and_named() {
    let mut plane = Plane::default();
    let mut engine = engine(&[], &mut plane);
    let rule = |n: u32| Rule {
        key: RuleKey { group: format!("g{n}").parse().unwrap(), ..block(&format!("10.0.{}.{}", n / 256, n % 256)).key },
        expires_at: None,
    };
    let changes: Vec<RuleChange> = (0..1024).map(|n| RuleChange::Put(rule(n))).collect();
    engine.apply(&changes, at(2), &mut plane).unwrap();
    let error = engine.apply(&[put("10.9.9.9"), RuleChange::Put(rule(1024))], at(3), &mut plane).unwrap_err();
    assert!(error.to_string().starts_with("there are 1024 rule groups already; the group \""), "{error}");
    assert!(!is_blocked(&*engine.memory(), "10.9.9.9"));
    assert_eq!(engine.book().len(), 1024);
}

#[test]
fn a_ban_makes_room_for_another_and_no_operators_rule_does() {
    let mut plane = Plane::default();
    let config = EngineConfig { bans_max: 2, ..EngineConfig::default() };
    let mut engine = Engine::new([block("192.0.2.1")], [], config, &mut plane, at(1)).unwrap();
    let ban = |subject: &str, until| Rule {
        key: RuleKey { group: Group::literal("auto/rate"), ..block(subject).key },
        expires_at: Some(expiry(until)),
    };
    let put =
        |engine: &mut Engine, plane: &mut Plane, rule| engine.apply(&[RuleChange::Put(rule)], at(2), plane).unwrap();
    put(&mut engine, &mut plane, ban("10.0.0.1", 50));
    put(&mut engine, &mut plane, ban("10.0.0.2", 40));
    // Never shortened.
    assert_eq!(put(&mut engine, &mut plane, ban("10.0.0.1", 30)).unchanged, 1);
    let applied = put(&mut engine, &mut plane, ban("10.0.0.3", 60));
    assert_eq!(applied.evicted, [ban("10.0.0.2", 40).key]);
    assert!(is_blocked(&*engine.memory(), "192.0.2.1") && is_blocked(&*engine.memory(), "10.0.0.3"));
    assert!(!is_blocked(&*engine.memory(), "10.0.0.2"));
    assert_eq!(engine.expire(at(50), &mut plane).unwrap(), [ban("10.0.0.1", 50).key]);
}

#[test]
fn a_wall_clock_that_is_set_moves_expiries() {
    let mut plane = Plane::default();
    let mut rule = block("10.0.0.1");
    rule.expires_at = Some(expiry(100));
    let mut engine = engine(&[rule], &mut plane);
    let is_blocked_at = |engine: &Engine, seconds: u64| {
        let packet = super::support::Packet { is_for_listener: true, port: 443 };
        let source = "10.0.0.1".parse().unwrap();
        super::support::judge(&*engine.memory(), source, packet, false, seconds * SECOND).decision.is_some()
    };
    assert!(is_blocked_at(&engine, 99) && !is_blocked_at(&engine, 100));
    // An hour back: the rule holds for an hour more.
    let mut now = at(10);
    now.wall -= 3_600_000;
    assert_eq!(engine.expire(now, &mut plane).unwrap(), []);
    assert!(is_blocked_at(&engine, 3699) && !is_blocked_at(&engine, 3700));
}

#[test]
fn a_list_replaces_a_group() {
    let mut plane = Plane::default();
    let mut engine = engine(&[], &mut plane);
    let group = Group::literal("list");
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
    let replace = |engine: &mut Engine, plane: &mut Plane, list: &[&str]| {
        let replacement = engine.book().replacement(group, Action::Block, RuleScope::Default, None, nets(list));
        let applied = engine.apply(&replacement.changes, at(2), plane).unwrap();
        (applied.added, applied.removed, replacement.unchanged)
    };
    assert_eq!(replace(&mut engine, &mut plane, &["10.0.0.1/32", "10.0.0.1/32", "2001:db8::/32"]), (2, 0, 0));
    assert_eq!(replace(&mut engine, &mut plane, &["10.0.0.2/32", "2001:db8::/32"]), (1, 1, 1));
    let left: Vec<Subject> = engine.book().group(&group).map(|rule| rule.key.subject).collect();
    assert_eq!(left, ["10.0.0.2", "2001:db8::/32"].map(|text| text.parse().unwrap()));
    assert_eq!(engine.book().group_sizes()[&group].total(), 2);
}
