use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::firewall::Tier;

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_000 * SECOND;
const SOURCES: usize = SETS * WAYS;
const KIND: OffenceKind = OffenceKind::Handshake;

fn policy(after: u32, within: u64, ttl: u64) -> AutoBan {
    AutoBan { after, within: Duration::from_secs(within), ttl: Duration::from_secs(ttl) }
}

/// Of one set, which is enough for eight sources.
fn offenders(policy: AutoBan) -> Offenders {
    Offenders::with_sets(policy, 1)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn v4(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 | n).into()
}

#[test]
fn the_offence_that_makes_the_number_full() {
    let mut offenders = offenders(policy(3, 10, 60));
    let source = ip("192.0.2.1");
    assert_eq!(offenders.offend(source, OffenceKind::Timeout, START), None);
    assert_eq!(offenders.offend(source, OffenceKind::Rate, START + 1), None);
    assert_eq!(offenders.offend(ip("192.0.2.2"), KIND, START + 1), None, "another source");
    let ban = Ban { net: "192.0.2.1/32".parse().unwrap(), kind: KIND, ttl: Duration::from_secs(60) };
    assert_eq!(offenders.offend(source, KIND, START + 10 * SECOND - 1), Some(ban));
}

#[test]
fn a_window_ends_to_the_nanosecond() {
    let mut offenders = offenders(policy(2, 10, 60));
    let source = ip("192.0.2.1");
    assert_eq!(offenders.offend(source, KIND, START), None);
    assert_eq!(offenders.offend(source, KIND, START + 10 * SECOND), None, "the first of the next window");
    assert!(offenders.offend(source, KIND, START + 20 * SECOND - 1).is_some());
}

#[test]
fn a_ban_is_made_longer_and_ends_to_the_nanosecond() {
    let mut offenders = offenders(policy(2, 10, 60));
    let source = ip("192.0.2.1");
    offenders.offend(source, KIND, START);
    assert!(offenders.offend(source, KIND, START).is_some());
    assert_eq!(offenders.offend(source, KIND, START), None, "it was under way");
    assert_eq!(offenders.offend(source, KIND, START + 6 * SECOND - 1), None);
    let longer = offenders.offend(source, OffenceKind::Policy, START + 6 * SECOND).unwrap();
    assert_eq!(longer.kind, KIND, "the rule is the same");
    assert_eq!(offenders.offend(source, KIND, START + 12 * SECOND - 1), None);
    assert!(offenders.offend(source, KIND, START + 66 * SECOND - 1).is_some());
    assert_eq!(offenders.offend(source, KIND, START + 126 * SECOND), None, "it is over, and counting begins again");
    assert!(offenders.offend(source, OffenceKind::Policy, START + 126 * SECOND).is_some_and(|ban| ban.kind != KIND));
}

#[test]
fn a_source_is_an_address_or_a_64() {
    let mut offenders = offenders(policy(2, 10, 60));
    let mut both = |a: &str, b: &str| {
        offenders.offend(ip(a), KIND, START);
        offenders.offend(ip(b), KIND, START).map(|ban| ban.net.to_string())
    };
    assert_eq!(both("2001:db8::1", "2001:db8::ffff:0:0:1").as_deref(), Some("2001:db8::/64"));
    assert_eq!(both("2001:db8:0:2::1", "2001:db8:0:3::1"), None);
    assert_eq!(both("192.0.2.8", "192.0.2.9"), None);
    assert_eq!(both("192.0.2.10", "::ffff:192.0.2.10").as_deref(), Some("192.0.2.10/32"));
    assert_eq!(both("::c000:20b", "192.0.2.11"), None, "the families share no source");
}

#[test]
fn who_is_never_banned() {
    let mut offenders = offenders(policy(1, 10, 60));
    for source in [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "255.255.255.255",
        "ff02::1",
    ] {
        assert_eq!(offenders.offend(ip(source), KIND, START), None, "{source}");
    }
    assert_eq!(offenders.offend(ip("fe80::1"), KIND, START), None);
    assert!(offenders.offend(ip("169.254.0.1"), KIND, START).is_some(), "one address, not the link");
}

#[test]
fn who_is_forgotten_begins_again() {
    let mut offenders = offenders(policy(2, 10, 60));
    for source in [v4(1), v4(2), v4(300)] {
        offenders.offend(source, KIND, START);
        assert!(offenders.offend(source, KIND, START).is_some());
    }
    offenders.forget("10.0.0.0/24".parse().unwrap());
    assert_eq!([v4(1), v4(2)].map(|source| offenders.offend(source, KIND, START)), [None, None]);
    assert!(offenders.offend(v4(1), KIND, START).is_some());
    assert!(offenders.offend(v4(300), KIND, START + 6 * SECOND).is_some(), "still banned, and for longer");
}

#[test]
fn a_ban_is_a_rule_of_the_daemons_own() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    for (kind, net) in OffenceKind::ALL.into_iter().zip(["192.0.2.1", "2001:db8::/64"].into_iter().cycle()) {
        let subject: Subject = net.parse().unwrap();
        let mut offenders = offenders(policy(1, 10, 60));
        let rule = offenders.offend(ip(net.trim_end_matches("/64")), kind, START).unwrap().rule(now);
        assert_eq!(rule.key, RuleKey::new(kind.group(), Action::Block, subject, RuleScope::Default).unwrap());
        assert_eq!(rule.key.group.as_str(), format!("auto/{kind}"));
        assert_eq!((rule.tier(), rule.expires_at), (Tier::Ban, Some(Expiry::from_millis(1_060_000))));
    }
}

#[test]
fn nothing_overflows() {
    for policy in [policy(0, 0, 0), AutoBan { after: u32::MAX, within: Duration::MAX, ttl: Duration::MAX }] {
        let mut offenders = offenders(policy);
        for now in [0, u64::MAX, 0, u64::MAX - 1] {
            assert_eq!(offenders.offend(v4(1), KIND, now).is_some(), policy.after == 0);
        }
    }
}

#[test]
fn who_goes_on_is_not_displaced_by_many_who_do_not() {
    let mut offenders = Offenders::new(policy(3, 100, 60));
    offenders.offend(ip("192.0.2.1"), KIND, START);
    offenders.offend(ip("192.0.2.1"), KIND, START);
    for n in 0..4 * SOURCES as u32 {
        assert_eq!(offenders.offend(v4(n), KIND, START + 1), None);
    }
    assert!(offenders.displaced() >= 3 * SOURCES as u64);
    assert!(offenders.offend(ip("192.0.2.1"), KIND, START + 2).is_some());
}

#[test]
fn a_table_full_of_bans_still_watches() {
    let mut offenders = Offenders::new(policy(2, 100, 1_000));
    for n in 0..4 * SOURCES as u32 {
        offenders.offend(v4(n), KIND, START);
        assert!(offenders.offend(v4(n), KIND, START).is_some());
    }
    assert_eq!(offenders.offend(ip("192.0.2.1"), KIND, START), None);
    assert!(offenders.offend(ip("192.0.2.1"), KIND, START).is_some());
}

/// What a table without bounds would answer.
#[derive(Default)]
struct Reference {
    offences: HashMap<u32, (u64, u32)>,
    bans: HashMap<u32, u64>,
}

impl Reference {
    fn offend(&mut self, policy: &AutoBan, source: u32, now: u64) -> bool {
        let (within, ttl) = (nanos(policy.within), nanos(policy.ttl));
        if let Some(since) = self.bans.get_mut(&source).filter(|since| now < **since + ttl) {
            let is_longer = now >= *since + ttl / 10;
            *since = if is_longer { now } else { *since };
            return is_longer;
        }
        let (since, count) = self.offences.entry(source).or_insert((now, 0));
        if now >= *since + within {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        let is_ban = *count >= policy.after;
        if is_ban {
            self.offences.remove(&source);
            self.bans.insert(source, now);
        }
        is_ban
    }
}

proptest! {
    #[test]
    fn few_sources_are_judged_as_without_bounds(
        after in 1_u32..5,
        within in 1_u64..20,
        ttl in 1_u64..40,
        steps in prop::collection::vec((0_u32..4, 0..OffenceKind::ALL.len(), prop_oneof![Just(0), Just(SECOND), 0..8 * SECOND]), 0..200),
    ) {
        let policy = policy(after, within, ttl);
        let (mut offenders, mut reference, mut now) = (offenders(policy), Reference::default(), START);
        for (source, kind, step) in steps {
            now += step;
            let ban = offenders.offend(v4(source), OffenceKind::ALL[kind], now);
            prop_assert_eq!(ban.is_some(), reference.offend(&policy, source, now));
            prop_assert!(ban.is_none_or(|ban| ban.net == IpNet::from(v4(source)) && ban.ttl == policy.ttl));
        }
    }

    /// The promise, told without the mechanism.
    #[test]
    fn nobody_is_banned_for_fewer_and_everybody_for_twice_as_many(
        after in 1_usize..6,
        steps in prop::collection::vec(0..6 * SECOND, 1..100),
    ) {
        let within = 10;
        let mut offenders = offenders(policy(after as u32, within, 1));
        let mut unpunished: Vec<u64> = Vec::new();
        let mut now = START;
        for step in steps {
            now += step;
            unpunished.push(now);
            let recent = unpunished.iter().filter(|at| now - **at < within * SECOND).count();
            if offenders.offend(v4(1), KIND, now).is_some() {
                prop_assert!(recent >= after);
                // So that no offence falls into the ban.
                now += SECOND;
                unpunished.clear();
            } else {
                prop_assert!(recent < 2 * after);
            }
        }
    }
}
