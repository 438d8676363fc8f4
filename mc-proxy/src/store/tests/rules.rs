//! Rules: changes, pages, expiry, and changes that wait for a confirmation.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::*;
use crate::firewall::{Action, Expiry, Group, RuleKey, RuleScope};

fn stored(store: &Store) -> Vec<StoredRule> {
    store.page(None, &PageFilter::default(), usize::MAX).unwrap()
}

fn group_names(store: &Store) -> Vec<String> {
    let mut statement = store.conn.prepare("SELECT name FROM rule_groups ORDER BY name").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn rule(group: &str, action: Action, subject: &str, scope: RuleScope) -> Rule {
    let group = group.parse().unwrap();
    Rule { key: RuleKey::new(group, action, subject.parse().unwrap(), scope).unwrap(), expires_at: None }
}

fn until(millis: u64, rule: Rule) -> Rule {
    Rule { expires_at: Some(Expiry::from_millis(millis)), ..rule }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_applied_is_what_is_read(
        batches in prop::collection::vec(prop::collection::vec(sample::change(), 0..40), 1..4),
        now in 0_u64..4_000,
        limit in 1_usize..9,
    ) {
        let (_dir, path) = place();
        let mut store = Store::open(&path).unwrap();
        let mut expected = BTreeMap::new();
        for batch in batches {
            store.apply(batch.iter().cloned()).unwrap();
            for change in batch {
                match change {
                    Change::Put(rule, comment) => drop(expected.insert(rule.key, (rule, comment))),
                    Change::Remove(key) => drop(expected.remove(&key)),
                }
            }
        }
        drop(store);
        let mut store = Store::open(&path).unwrap();
        let mut read = Vec::new();
        store.for_each_rule(&mut |rule| read.push(rule)).unwrap();
        read.sort_unstable_by_key(|rule| rule.key);
        prop_assert_eq!(read, expected.values().map(|(rule, _)| *rule).collect::<Vec<_>>());
        let keys = expected.keys().copied().collect::<Vec<_>>();
        let comments = expected.values().map(|(_, comment)| comment.clone()).collect::<Vec<_>>();
        let found = store.stored(&keys).unwrap();
        prop_assert_eq!(found.into_iter().map(|rule| rule.and_then(|rule| rule.comment)).collect::<Vec<_>>(), comments);

        for filter in [
            PageFilter::default(),
            PageFilter { action: Some(Action::Count), ..PageFilter::default() },
            PageFilter { group: Some(Group::DEFAULT), ..PageFilter::default() },
            PageFilter { group: Some(Group::literal("auto/x")), action: Some(Action::Block) },
        ] {
            let is_shown = |key: &RuleKey| {
                filter.group.is_none_or(|only| only == key.group) && filter.action.is_none_or(|only| only == key.action)
            };
            let mut shown = Vec::new();
            loop {
                let page = store.page(shown.last().map(|(rule, _): &(Rule, _)| &rule.key), &filter, limit).unwrap();
                prop_assert!(page.len() <= limit);
                if page.is_empty() {
                    break;
                }
                shown.extend(page.into_iter().map(|stored| (stored.rule, stored.comment)));
            }
            let wanted = expected.iter().filter(|(key, _)| is_shown(key)).map(|(_, value)| value.clone());
            prop_assert_eq!(shown, wanted.collect::<Vec<_>>());
        }

        let moment = UNIX_EPOCH + Duration::from_millis(now) + Duration::from_micros(900);
        let before = expected.len();
        expected.retain(|_, (rule, _)| !rule.expires_at.is_some_and(|expiry| expiry.is_past(moment)));
        prop_assert_eq!(store.delete_expired(moment).unwrap(), (before - expected.len()) as u64);
        prop_assert_eq!(stored(&store).len(), expected.len());
        let mut groups = expected.keys().map(|key| key.group.to_string()).chain(["default".to_owned()]).collect::<Vec<_>>();
        groups.sort();
        groups.dedup();
        prop_assert_eq!(group_names(&store), groups, "a group goes with its last rule");
    }
}

#[test]
fn a_rule_that_is_put_again_has_the_new_expiry_and_comment_and_its_age() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    let first = rule("bots", Action::Block, "192.0.2.0/24", RuleScope::Listener(443));
    let started = SystemTime::now() - Duration::from_secs(1);
    store.apply([Change::Put(first, Some("one".to_owned()))]).unwrap();
    assert!(stored(&store)[0].created_at >= started && stored(&store)[0].created_at <= SystemTime::now());
    store.conn.execute_batch("UPDATE rules SET created_at = 1000").unwrap();
    for (expires_at, comment) in [(Some(Expiry::MAX), Some("two".to_owned())), (None, None)] {
        let rule = Rule { expires_at, ..first };
        store.apply([Change::Put(rule, comment.clone())]).unwrap();
        let created_at = UNIX_EPOCH + Duration::from_secs(1_000);
        assert_eq!(stored(&store), [StoredRule { rule, comment, created_at }]);
    }
    // The same address elsewhere is another rule.
    let other = [
        rule("bots", Action::Block, "192.0.2.0/24", RuleScope::Host),
        rule("bots", Action::Count, "192.0.2.0/24", RuleScope::Listener(443)),
        rule("bots", Action::Block, "192.0.2.0/25", RuleScope::Listener(443)),
        rule("other", Action::Block, "192.0.2.0/24", RuleScope::Listener(443)),
    ];
    store.apply(other.map(|rule| Change::Put(rule, None))).unwrap();
    assert_eq!(stored(&store).len(), 5);
    store.apply([Change::Remove(first.key)]).unwrap();
    assert_eq!(store.stored(&[first.key]).unwrap()[0].as_ref().and_then(|rule| rule.comment.clone()), None);
    assert_eq!(stored(&store).len(), 4);
}

#[test]
fn changes_are_made_all_or_none() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    let good = rule("bots", Action::Block, "192.0.2.1", RuleScope::Default);
    store.apply([Change::Put(good, None)]).unwrap();
    let host_bits = Rule::block(crate::firewall::Subject::Net("192.0.2.1/24".parse().unwrap()));
    let no_port = Rule { key: RuleKey { scope: RuleScope::Listener(0), ..good.key }, ..good };
    let long = "x".repeat(201);
    for (bad, expected) in [
        (Change::Put(host_bits, None), "\"192.0.2.1/24\" is not in canonical form"),
        (Change::Remove(no_port.key), "\"listener:0\" is not a scope"),
        (Change::Put(good, Some(long)), "a comment has at most 200 bytes; this one has 201"),
        (Change::Put(good, Some("a\nb".to_owned())), "character 2 of this one is one"),
    ] {
        let error = store.apply([Change::Remove(good.key), Change::Put(block("RU"), None), bad]).unwrap_err();
        assert!(matches!(error, StoreError::Unstorable { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(stored(&store).iter().map(|stored| stored.rule).collect::<Vec<_>>(), [good]);
    }
}

#[test]
fn an_expiry_ends_with_its_millisecond() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    let rules = [until(0, block("192.0.2.1")), until(1_000, block("192.0.2.2")), until(1_001, block("192.0.2.3"))];
    store.apply(rules.map(|rule| Change::Put(rule, None))).unwrap();
    store.put(&block("192.0.2.4")).unwrap();
    assert_eq!(store.delete_expired(UNIX_EPOCH + Duration::from_micros(1_000_999)).unwrap(), 2);
    assert_eq!(store.load().unwrap().rules, [rules[2], block("192.0.2.4")]);
    assert_eq!(store.delete_expired(UNIX_EPOCH - Duration::from_secs(9)).unwrap(), 0);
}

#[test]
fn a_pending_change_is_undone_or_stands() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    let (old, new) = (rule("a", Action::Block, "192.0.2.1", RuleScope::Host), block("RU"));
    let kept = until(5_000, rule("b", Action::Count, "2001:db8::/32", RuleScope::Listener(1)));
    let comment = || Some("why".to_owned());
    store.apply([Change::Put(old, comment()), Change::Put(kept, None)]).unwrap();
    let before = stored(&store);
    let change = [Change::Remove(old.key), Change::Put(new, None), Change::Remove(kept.key)];
    let inverse = [Change::Put(old, comment()), Change::Remove(new.key), Change::Put(kept, None)];
    let deadline = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    let pending = Pending { id: u64::MAX, deadline };
    assert_eq!((store.pending().unwrap(), store.revert_pending().unwrap()), (None, false));

    for is_confirmed in [false, true] {
        store.apply_with_pending(change.clone(), pending, inverse.clone()).unwrap();
        assert_eq!(group_names(&store), ["default"]);
        let error = store.apply_with_pending([], Pending { id: 3, deadline }, []).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("change {} waits for its confirmation; confirm or revert it first", u64::MAX)
        );
        drop(store);
        store = Store::open(&path).unwrap();
        assert_eq!(store.pending().unwrap(), Some(pending));
        let mut undoes = Vec::new();
        store.for_each_pending_change(&mut |change| undoes.push(change)).unwrap();
        assert_eq!(undoes, inverse);
        assert_eq!(store.load().unwrap().rules, [new]);
        if is_confirmed {
            assert!(store.clear_pending().unwrap());
            assert_eq!(store.load().unwrap().rules, [new]);
        } else {
            assert!(store.revert_pending().unwrap());
            let after = stored(&store);
            assert_eq!(after.len(), before.len());
            assert!(after.iter().zip(&before).all(|(a, b)| (a.rule, &a.comment) == (b.rule, &b.comment)));
        }
        assert_eq!((store.pending().unwrap(), store.clear_pending().unwrap()), (None, false));
        store.for_each_pending_change(&mut |change| panic!("{change:?} is left")).unwrap();
    }
}

#[test]
fn a_pending_change_that_cannot_be_undone_is_not_made() {
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    let pending = Pending { id: 1, deadline: UNIX_EPOCH };
    let bad = Change::Put(block("RU"), Some("\0".to_owned()));
    let error = store.apply_with_pending([Change::Put(block("RU"), None)], pending, [bad]).unwrap_err();
    assert!(matches!(error, StoreError::Unstorable { .. }), "{error}");
    assert_eq!((store.pending().unwrap(), stored(&store)), (None, Vec::new()));
}

/// Figures for one machine; run in release.
#[test]
#[ignore = "a measurement"]
fn a_million_rules() {
    // Addresses as an attack has them: in no order.
    let scattered = |n: u32| n.wrapping_mul(2_654_435_761);
    let address = |n: u32| std::net::Ipv4Addr::from(scattered(n)).to_string();
    let rules = |group: &str| {
        (0..1_000_000).map(|n| rule(group, Action::Block, &address(n), RuleScope::Default)).collect::<Vec<_>>()
    };
    let timed = |what: &str, run: &mut dyn FnMut()| {
        let started = Instant::now();
        run();
        println!("{what}: {:?}", started.elapsed());
    };
    let (_dir, path) = place();
    let mut store = Store::open(&path).unwrap();
    let (scattered, mut sorted) = (rules("scattered"), rules("sorted"));
    sorted.sort_unstable();
    for (name, rules) in [("scattered", &scattered), ("sorted", &sorted)] {
        let put = |rule: &Rule| Change::Put(*rule, None);
        timed(&format!("{name}: put"), &mut || store.apply(rules.iter().map(put)).unwrap());
        timed(&format!("{name}: put again"), &mut || store.apply(rules.iter().map(put)).unwrap());
    }
    let mut count = 0;
    timed("2,000,000 read", &mut || store.for_each_rule(&mut |_| count += 1).unwrap());
    assert_eq!(count, 2_000_000);
    println!("{} bytes", path.metadata().unwrap().len());
    let after = scattered[500_000].key;
    timed("a page of 1,000", &mut || drop(store.page(Some(&after), &PageFilter::default(), 1_000).unwrap()));
    timed("one more", &mut || store.put(&block("192.0.2.1")).unwrap());
    drop(store);
    let mut reopened = None;
    timed("open with integrity check", &mut || reopened = Some(Store::open(&path).unwrap()));
    let mut store = reopened.unwrap();
    for (name, rules) in [("scattered", &scattered), ("sorted", &sorted)] {
        timed(&format!("{name}: remove"), &mut || {
            store.apply(rules.iter().map(|rule| Change::Remove(rule.key))).unwrap();
        });
    }
    assert_eq!(stored(&store).len(), 1);
    let pending = Pending { id: 1, deadline: UNIX_EPOCH };
    timed("put with what undoes it", &mut || {
        let changes = scattered.iter().map(|rule| Change::Put(*rule, None));
        let inverse = scattered.iter().map(|rule| Change::Remove(rule.key));
        store.apply_with_pending(changes, pending, inverse).unwrap();
    });
    timed("undo", &mut || assert!(store.revert_pending().unwrap()));
    assert_eq!(stored(&store).len(), 1);
}
