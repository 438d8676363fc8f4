//! What a change does when all goes well, and what is refused beforehand.

use std::time::{Duration, SystemTime};

use super::support::{Bench, Setup, block, listener, many, new, route, rule};
use crate::{
    control::{ChangeOptions, ChangeSummary, ControlError, GroupImport, NewRule, RuleFilter},
    firewall::{Action, Expiry, Rule, RuleScope},
};

const HOUR: Duration = Duration::from_secs(3600);

fn dry() -> ChangeOptions {
    ChangeOptions { dry_run: true, ..ChangeOptions::default() }
}

fn commented(rule: Rule, comment: &str) -> NewRule {
    NewRule { rule, comment: Some(comment.to_owned()) }
}

fn summary(added: u64, replaced: u64, removed: u64, unchanged: u64) -> ChangeSummary {
    ChangeSummary { added, replaced, removed, unchanged, ..ChangeSummary::default() }
}

fn import(entries: &[&str], comments: &[(u32, &str)]) -> GroupImport {
    GroupImport {
        group: "list".parse().unwrap(),
        action: Action::Block,
        scope: RuleScope::Default,
        expires_at: None,
        entries: entries.iter().map(|net| net.parse().unwrap()).collect(),
        comments: comments.iter().map(|(index, comment)| (*index, (*comment).to_owned())).collect(),
    }
}

async fn comments(bench: &Bench) -> Vec<(String, Option<String>)> {
    let listed = bench.listed().await.into_iter();
    listed.map(|listed| (listed.rule.key.subject.to_string(), listed.comment)).collect()
}

fn pairs(expected: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
    expected.iter().map(|(net, comment)| ((*net).to_owned(), comment.map(str::to_owned))).collect()
}

#[tokio::test]
async fn a_rule_is_everywhere_when_the_call_returns() {
    let bench = Bench::new();
    assert!(!bench.is_dropped("203.0.113.50"));
    let rule = block("203.0.113.50");
    let put = |rule| bench.control.put_rules(vec![new(rule)], ChangeOptions::default());
    assert_eq!(put(rule).await.unwrap(), summary(1, 0, 0, 0));
    assert_eq!(put(rule).await.unwrap(), summary(0, 0, 0, 1));
    assert!(bench.is_dropped("203.0.113.50") && !bench.is_dropped("203.0.113.51"));
    let bench = bench.restarted().await;
    assert!(bench.is_dropped("203.0.113.50"));
    assert_eq!(bench.keys().await, ["block 203.0.113.50"]);
    let removed = bench.control.remove_rules(vec![rule.key, rule.key], ChangeOptions::default()).await.unwrap();
    assert_eq!(removed, summary(0, 0, 1, 0));
    assert!(!bench.is_dropped("203.0.113.50"));
    assert!(bench.restarted().await.listed().await.is_empty());
}

#[tokio::test]
async fn a_rule_that_is_put_again_gets_the_new_expiry_and_comment() {
    let bench = Bench::new();
    let permanent = block("203.0.113.0/24");
    let until = Rule { expires_at: Some(Expiry::after(SystemTime::now(), HOUR)), ..permanent };
    let put = |new| bench.control.put_rules(vec![new], ChangeOptions::default());
    put(commented(until, "for an hour")).await.unwrap();
    let first = bench.listed().await;
    assert_eq!(put(commented(until, "for an hour")).await.unwrap(), summary(0, 0, 0, 1));
    assert_eq!(put(commented(until, "why")).await.unwrap(), summary(0, 1, 0, 0));
    assert_eq!(put(new(permanent)).await.unwrap(), summary(0, 1, 0, 0));
    let second = bench.listed().await;
    assert_eq!((second[0].rule, second[0].comment.as_deref()), (permanent, None));
    assert_eq!(first[0].created_at, second[0].created_at, "it is the same rule");
    // Of two with one key the last counts, whatever was there.
    let both = vec![new(until), commented(permanent, "the last")];
    let put = bench.control.put_rules(both, ChangeOptions::default()).await.unwrap();
    assert_eq!(put, summary(0, 1, 0, 0));
    let listed = bench.listed().await;
    assert_eq!((listed[0].rule, listed[0].comment.as_deref()), (permanent, Some("the last")));
    let covering = RuleFilter { covers: Some("203.0.113.9".parse().unwrap()), ..RuleFilter::default() };
    assert_eq!(bench.control.list(covering, None, 10).await.unwrap(), listed);
}

#[tokio::test]
async fn one_that_is_not_valid_stops_all() {
    let bench = Bench::new();
    bench.put(&[block("198.51.100.0/24")]).await;
    let before = bench.state(&["10.0.0.1", "198.51.100.1"]).await;
    let past = Rule { expires_at: Some(Expiry::from_millis(1_000)), ..block("192.0.2.1") };
    let country = block("RU");
    let elsewhere = rule("default", Action::Block, "192.0.2.1", RuleScope::Listener(8443));
    for (bad, text) in [
        (past, "rule: 192.0.2.1 would have expired already"),
        (country, "firewall: geoip_db is required to block a country; set firewall.geoip_db and restart the daemon"),
        (elsewhere, "scope: there is no listener with port 8443"),
    ] {
        let mut rules: Vec<NewRule> = many(100).into_iter().map(new).collect();
        rules.insert(50, new(bad));
        let error = bench.control.put_rules(rules, ChangeOptions::default()).await.unwrap_err();
        assert_eq!(error.to_string(), text);
        assert_eq!(bench.state(&["10.0.0.1", "198.51.100.1"]).await, before);
    }
    // The same of a list, and of a comment that the database does not take.
    let mut late = import(&["10.0.0.1/32"], &[]);
    late.expires_at = past.expires_at;
    let error = bench.control.replace_group(late, ChangeOptions::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "rule: list would have expired already");
    let long = "x".repeat(201);
    let rules = vec![new(block("10.0.0.1")), commented(block("10.0.0.2"), &long)];
    assert!(matches!(bench.control.put_rules(rules, ChangeOptions::default()).await, Err(ControlError::Failed(_))));
    let keys = vec![block("198.51.100.0/24").key, block("10.0.0.1").key];
    let error = bench.control.remove_rules(keys, ChangeOptions::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "rule: there is no block rule for 10.0.0.1 in group \"default\"");
    assert_eq!(bench.state(&["10.0.0.1", "198.51.100.1"]).await, before);
    assert_eq!(bench.restarted().await.state(&["10.0.0.1", "198.51.100.1"]).await, before);
}

#[tokio::test]
async fn a_rule_that_is_somewhere_else_is_named() {
    let bench = Bench::new();
    let remove = |rule: Rule| bench.control.remove_rules(vec![rule.key], ChangeOptions::default());
    let port = RuleScope::Listener(443);
    for (there, text) in [
        (rule("bots", Action::Block, "192.0.2.1", RuleScope::Default), "one in group \"bots\""),
        (rule("bots", Action::Allow, "192.0.2.1", RuleScope::Default), "an allow rule in group \"bots\""),
        (rule("default", Action::Count, "192.0.2.1", RuleScope::Default), "a count rule in group \"default\""),
        (rule("default", Action::Block, "192.0.2.1", port), "one with scope listener:443"),
    ] {
        bench.put(&[there]).await;
        let error = remove(block("192.0.2.1")).await.unwrap_err();
        assert!(matches!(error, ControlError::NotFound(_)));
        let missing = "rule: there is no block rule for 192.0.2.1 in group \"default\"";
        assert_eq!(error.to_string(), format!("{missing}, but {text}"));
        remove(there).await.unwrap();
    }
    assert!(bench.listed().await.is_empty());
}

#[tokio::test]
async fn a_list_becomes_the_group() {
    let bench = Bench::new();
    let bystander = rule("other", Action::Block, "192.0.2.1", RuleScope::Default);
    bench.put(&[bystander]).await;
    let replace = |import, options| bench.control.replace_group(import, options);
    let first = import(&["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"], &[(1, "one"), (2, "two")]);
    assert_eq!(replace(first.clone(), dry()).await.unwrap(), summary(3, 0, 0, 0));
    assert_eq!(bench.keys().await.len(), 1, "nothing but asked");
    assert!(!bench.is_dropped("10.1.1.1"));
    assert_eq!(replace(first.clone(), ChangeOptions::default()).await.unwrap(), summary(3, 0, 0, 0));
    assert!(bench.is_dropped("10.1.1.1") && bench.is_dropped("2001:db8::1"));
    assert_eq!(replace(first, ChangeOptions::default()).await.unwrap(), summary(0, 0, 0, 3));
    let expected = [("10.0.0.0/8", None), ("192.0.2.0/24", Some("one")), ("2001:db8::/32", Some("two"))];
    let other = ("192.0.2.1", None);
    assert_eq!(comments(&bench).await, pairs(&[&expected[..], &[other]].concat()));

    // Comments alone: one goes, one comes, one is another.
    let second = import(&["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"], &[(0, "new"), (2, "other")]);
    let committed = bench.plane.committed();
    assert_eq!(replace(second.clone(), dry()).await.unwrap(), summary(0, 3, 0, 0));
    assert_eq!(comments(&bench).await, pairs(&[&expected[..], &[other]].concat()));
    assert_eq!(replace(second, ChangeOptions::default()).await.unwrap(), summary(0, 3, 0, 0));
    let expected = [("10.0.0.0/8", Some("new")), ("192.0.2.0/24", None), ("2001:db8::/32", Some("other")), other];
    assert_eq!(comments(&bench).await, pairs(&expected));
    assert_eq!(bench.plane.committed(), committed);

    // Some go, one comes, one stays with its comment.
    let third = import(&["2001:db8::/32", "198.51.100.7/32"], &[(0, "other")]);
    assert_eq!(replace(third, ChangeOptions::default()).await.unwrap(), summary(1, 0, 2, 1));
    assert!(!bench.is_dropped("10.1.1.1") && bench.is_dropped("198.51.100.7") && bench.is_dropped("192.0.2.1"));
    let expected = [("198.51.100.7", None), ("2001:db8::/32", Some("other")), other];
    assert_eq!(comments(&bench).await, pairs(&expected));
    let bench = bench.restarted().await;
    assert_eq!(comments(&bench).await, pairs(&expected));
    bench.control.replace_group(import(&[], &[]), ChangeOptions::default()).await.unwrap();
    assert_eq!(comments(&bench).await, pairs(&[other]));
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let bench = Bench::new();
    bench.put(&[block("198.51.100.0/24")]).await;
    let before = bench.state(&["10.0.0.1", "198.51.100.1"]).await;
    let rules = vec![new(block("10.0.0.1")), new(block("198.51.100.0/24"))];
    assert_eq!(bench.control.put_rules(rules, dry()).await.unwrap(), summary(1, 0, 0, 1));
    let keys = vec![block("198.51.100.0/24").key];
    assert_eq!(bench.control.remove_rules(keys, dry()).await.unwrap(), summary(0, 0, 1, 0));
    // Not even a change that would wait for its confirmation.
    let options = ChangeOptions { confirm: Some(HOUR), ..dry() };
    let would = bench.control.put_rules(vec![new(block("10.0.0.1"))], options).await.unwrap();
    assert_eq!(would, summary(1, 0, 0, 0));
    assert_eq!(bench.state(&["10.0.0.1", "198.51.100.1"]).await, before);
    assert!(bench.stored(|store| store.pending()).await.is_none());
}

#[tokio::test]
async fn callers_and_backends_are_not_cut_off_by_mistake() {
    let target = route("a.example", "192.0.2.80:443");
    let bench = Bench::with(Setup {
        listener: crate::desired::Listener { routes: vec![target], ..listener() },
        ..Setup::default()
    });
    let from = |caller: &str| ChangeOptions { callers: vec![caller.parse().unwrap()], ..ChangeOptions::default() };
    let put = |rule, options| bench.control.put_rules(vec![new(rule)], options);
    let error = put(block("203.0.113.0/24"), from("203.0.113.9")).await.unwrap_err();
    assert!(matches!(error, ControlError::Refused(_)));
    let caller = "rule: this would cut off 203.0.113.9, where you come from; use --force if that is meant";
    assert_eq!(error.to_string(), caller);
    let mapped = put(block("203.0.113.0/24"), from("::ffff:203.0.113.9")).await.unwrap_err();
    assert_eq!(mapped.to_string(), caller);
    let error = put(block("192.0.2.0/24"), from("203.0.113.9")).await.unwrap_err();
    assert_eq!(error.to_string(), "rule: this would cut off the backend 192.0.2.80; use --force if that is meant");
    let error = bench.control.replace_group(import(&["10.0.0.0/8", "192.0.2.80/32"], &[]), dry()).await.unwrap_err();
    assert!(error.to_string().contains("the backend 192.0.2.80"), "{error}");
    assert!(bench.listed().await.is_empty());
    assert!(!bench.is_dropped("203.0.113.9") && !bench.is_dropped("192.0.2.80"));

    // Who is allowed is safe, until the rule that allows him goes.
    let allow = rule("default", Action::Allow, "203.0.113.9", RuleScope::Default);
    put(allow, from("203.0.113.9")).await.unwrap();
    put(block("203.0.113.0/24"), from("203.0.113.9")).await.unwrap();
    let error = bench.control.remove_rules(vec![allow.key], from("203.0.113.9")).await.unwrap_err();
    assert_eq!(error.to_string(), caller);
    let force = || ChangeOptions { force: true, ..from("203.0.113.9") };
    bench.control.remove_rules(vec![allow.key], force()).await.unwrap();
    put(block("192.0.2.0/24"), force()).await.unwrap();
    assert!(bench.is_dropped("203.0.113.9") && bench.is_dropped("192.0.2.80"));
}

#[tokio::test]
async fn trusted_proxies_are_not_cut_off_by_mistake() {
    let trusted = vec!["192.0.2.0/28".parse().unwrap()];
    let proxy = Some(crate::desired::AcceptProxy { trusted, trust_any: false });
    let bench = Bench::with(Setup { listener: crate::desired::Listener { proxy, ..listener() }, ..Setup::default() });
    for (subject, address) in [("192.0.2.0/24", "192.0.2.0"), ("192.0.2.5", "192.0.2.5")] {
        let put = |options| bench.control.put_rules(vec![new(block(subject))], options);
        assert_eq!(
            put(ChangeOptions::default()).await.unwrap_err().to_string(),
            format!(
                "rule: this would cut off {address}, which is in proxy_trusted, and whoever comes through it; use --force \
                 if that is meant"
            )
        );
    }
    bench.put(&[block("192.0.2.16/28")]).await;
    bench.put_with(&[block("192.0.2.5")], ChangeOptions { force: true, ..ChangeOptions::default() }).await;
    assert!(bench.is_dropped("192.0.2.5"));
}

#[tokio::test]
async fn rules_expire_in_the_tables_at_once_and_everywhere_a_moment_later() {
    let bench = Bench::new();
    let begun = SystemTime::now();
    let expires_at = Some(Expiry::after(begun, Duration::from_millis(700)));
    bench.put(&[Rule { expires_at, ..block("203.0.113.7") }, block("203.0.113.8")]).await;
    assert!(bench.is_dropped("203.0.113.7"));
    bench.until("the rule expires", async |bench| !bench.is_dropped("203.0.113.7")).await;
    let lasted = begun.elapsed().unwrap();
    assert!(lasted >= Duration::from_millis(690) && lasted < Duration::from_millis(1_200), "{lasted:?}");
    bench.until("the rule goes", async |bench| bench.keys().await == ["block 203.0.113.8"]).await;
    assert_eq!(bench.control.status().await.unwrap().firewall.rules, 1);
    assert!(begun.elapsed().unwrap() < Duration::from_secs(3));
    let mut stored = Vec::new();
    bench.stored(|store| store.for_each_rule(&mut |rule| stored.push(rule))).await;
    assert_eq!(stored, [block("203.0.113.8")]);
}
