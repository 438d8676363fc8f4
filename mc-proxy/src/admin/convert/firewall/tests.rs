//! What is refused, and what comes back as it went.

use proptest::prelude::*;
use tonic::Code;

use super::{super::tests::refusal, *};

fn message(kind: v1::FirewallRuleType, value: &str) -> v1::FirewallRule {
    v1::FirewallRule { r#type: kind.into(), value: value.into(), ..v1::FirewallRule::default() }
}

#[test]
fn every_refusal_of_a_rule_names_its_field() {
    use v1::{FirewallAction::Allow, FirewallRuleType as T};
    let good = || message(T::Ip, "10.0.0.1");
    let past = Some(Timestamp { seconds: 1, nanos: 0 });
    let cases = [
        (None, "rule: is required"),
        (Some(message(T::Unspecified, "10.0.0.1")), "rule.type: is required"),
        (Some(v1::FirewallRule { r#type: 77, ..good() }), "rule.type: is required"),
        (Some(message(T::Ip, "10.0.0.0/8")), "rule.value: \"10.0.0.0/8\" is not an IP address"),
        (Some(message(T::Ip, "RU")), "rule.value: \"RU\" is not an IP address"),
        (Some(message(T::Cidr, "10.0.0.1")), "rule.value: \"10.0.0.1\" is not a CIDR"),
        (
            Some(message(T::Cidr, "198.51.100.7/24")),
            "rule.value: \"198.51.100.7/24\" has host bits set; the canonical CIDR is \"198.51.100.0/24\"",
        ),
        (Some(message(T::Country, "RUS")), "rule.value: \"RUS\" is not an ISO 3166-1"),
        (Some(v1::FirewallRule { action: 9, ..good() }), "rule.action: is none of"),
        (Some(v1::FirewallRule { action: Allow.into(), ..message(T::Country, "RU") }), "rule.action: a country"),
        (Some(v1::FirewallRule { group: "A".into(), ..good() }), "rule.group: \"A\" is not a group"),
        (Some(v1::FirewallRule { group: "auto/rate".into(), ..good() }), "rule.group: \"auto/rate\" is for the daemon"),
        (Some(v1::FirewallRule { scope: "443".into(), ..good() }), "rule.scope: \"443\" is not a scope"),
        (Some(v1::FirewallRule { comment: "a\nb".into(), ..good() }), "rule.comment: a comment has no control"),
        (Some(v1::FirewallRule { comment: "a".repeat(201), ..good() }), "rule.comment: a comment has at most"),
        (Some(v1::FirewallRule { expires_at: past, ..good() }), "rule.expires_at: is in the past"),
    ];
    for (given, expected) in cases {
        let (code, text) = refusal(one_new_rule(given, None));
        assert_eq!(code, Code::InvalidArgument, "{text}");
        assert!(text.starts_with(expected), "{text}");
    }
    let second = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    for ttl in [second(0), second(-1), second(3650 * 24 * 3600 + 1)] {
        let (_, text) = refusal(one_new_rule(Some(good()), ttl));
        assert!(text.starts_with("ttl: is not a time above 0"), "{text}");
    }
    let future = v1::FirewallRule { expires_at: Some((SystemTime::now() + TTL_MAX).into()), ..good() };
    let (_, text) = refusal(one_new_rule(Some(future), second(1)));
    assert_eq!(text, "ttl: is instead of rule.expires_at, not beside it");
}

#[test]
fn batches_are_bounded_and_without_repetitions() {
    let rule = || message(v1::FirewallRuleType::Ip, "10.0.0.1");
    assert_eq!(refusal(new_rules(Vec::new(), None)).1, "rules: is empty");
    let many = vec![rule(); RULES_MAX + 1];
    assert!(refusal(new_rules(many.clone(), None)).1.starts_with("rules: has more than 1000"));
    assert!(refusal(keys(many)).1.starts_with("rules: has more than 1000"));
    let twice = vec![rule(), message(v1::FirewallRuleType::Cidr, "10.0.0.1/32")];
    assert_eq!(refusal(new_rules(twice.clone(), None)).1, "rules[1]: is the same rule as rules[0]");
    assert_eq!(keys(twice).unwrap().len(), 1);
    let bad = vec![rule(), v1::FirewallRule { comment: "\u{7}".into(), ..rule() }];
    assert!(refusal(new_rules(bad, None)).1.starts_with("rules[1].comment: "));
}

#[test]
fn the_batch_s_ttl_is_for_the_rules_without_an_end() {
    let end = SystemTime::now() + Duration::from_secs(100);
    let own = v1::FirewallRule { expires_at: Some(end.into()), ..message(v1::FirewallRuleType::Ip, "10.0.0.1") };
    let rules = vec![own, message(v1::FirewallRuleType::Ip, "10.0.0.2")];
    let rules = new_rules(rules, Some(prost_types::Duration { seconds: 9, nanos: 0 })).unwrap();
    assert_eq!(rules[0].rule.expires_at, Some(Expiry::from(end)));
    let left = rules[1].rule.expires_at.unwrap().remaining(SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(5) && left <= Duration::from_secs(10), "{left:?}");
}

#[test]
fn options_are_checked() {
    let confirm = |seconds| v1::FirewallChangeOptions {
        confirm: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..v1::FirewallChangeOptions::default()
    };
    for seconds in [-5, 0, 24 * 3600 + 1] {
        assert!(refusal(options(Some(confirm(seconds)))).1.starts_with("options.confirm: is not a time"));
    }
    let callers = |callers: &[&str]| v1::FirewallChangeOptions {
        callers: callers.iter().map(|&caller| caller.to_owned()).collect(),
        ..confirm(60)
    };
    assert!(refusal(options(Some(callers(&["10.0.0.1", "x"])))).1.starts_with("options.callers[1]: "));
    assert!(refusal(options(Some(callers(&["::1"; 17])))).1.starts_with("options.callers: are more than 16"));
    let options = options(Some(callers(&["::ffff:10.0.0.1"]))).unwrap();
    assert_eq!((options.confirm, options.callers), (Some(Duration::from_secs(60)), vec!["10.0.0.1".parse().unwrap()]));
}

#[test]
fn drops_are_filtered_by_group_and_source() {
    let event = DropEvent {
        at: SystemTime::UNIX_EPOCH,
        interface: "eth0".into(),
        reason: "blocked_ip",
        group: Group::literal("a"),
        source: "10.0.0.1".parse().unwrap(),
        port: 443,
        bytes: 60,
        plane: crate::control::Plane::Kernel,
        sampled: 1,
    };
    let passes = |group: &str, source: &str| {
        let request = v1::WatchDropsRequest { group: group.into(), source: source.into() };
        drop_filter(&request).unwrap().lets_through(&event)
    };
    assert!(passes("", "") && passes("a", "10.0.0.0/8") && passes("", "10.0.0.1"));
    assert!(!passes("b", "") && !passes("", "10.0.0.2") && !passes("a", "::/0"));
    let refused =
        |source: &str| refusal(drop_filter(&v1::WatchDropsRequest { group: String::new(), source: source.into() })).1;
    assert_eq!(refused("RU"), "source: is an address or a CIDR, not a country");
    assert!(refused("10.0.0.1/8").starts_with("source: \"10.0.0.1/8\" has host bits"));
}

proptest! {
    #[test]
    fn rules_come_back_as_they_went(
        addr: IpAddr, length in 0_u8..=128, action in 0_usize..3, letters in "[A-Z]{2}", port in 0_u16..3,
        group in "[a-z0-9][a-z0-9._/-]{0,30}", ahead in prop::option::of(1_000_u64..100_000_000_000),
    ) {
        let net = IpNet::new(addr, if addr.is_ipv4() { length % 33 } else { length }).unwrap().trunc();
        let scope = match port { 0 => RuleScope::Default, 1 => RuleScope::Host, port => RuleScope::Listener(port) };
        let group: Group = group.parse().unwrap();
        let expires_at = ahead.map(|ahead| Expiry::after(SystemTime::now(), Duration::from_millis(ahead)));
        let given = [
            (Action::ALL[action], Subject::covering(net)),
            (Action::Block, letters.parse().unwrap()),
        ];
        for (action, subject) in given {
            let rule = Rule { key: RuleKey::new(group, action, subject, scope).unwrap(), expires_at };
            let message = rule_to_proto(&rule);
            prop_assert_eq!(key("rule", Some(&message)).unwrap(), rule.key);
            if !group.is_automatic() {
                let back = one_new_rule(Some(v1::FirewallRule { comment: "c".into(), ..message }), None).unwrap();
                prop_assert_eq!(back, NewRule { rule, comment: Some("c".into()) });
            }
        }
    }
}
