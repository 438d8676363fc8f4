use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    vec::Vec,
};

use proptest::prelude::*;

use super::*;
use crate::frames;

#[derive(Clone, Debug, Default)]
struct Rules {
    allow: BTreeMap<(IpAddr, u8), RuleValue>,
    address: BTreeMap<IpAddr, RuleValue>,
    prefix: BTreeMap<(IpAddr, u8), RuleValue>,
    ports: BTreeSet<u16>,
    now: u64,
}

impl Lookup for Rules {
    fn allowed(&self, source: IpAddr) -> Option<RuleValue> {
        longest(&self.allow, source)
    }

    fn blocked_address(&self, source: IpAddr) -> Option<RuleValue> {
        self.address.get(&source).copied()
    }

    fn blocked_prefix(&self, source: IpAddr) -> Option<RuleValue> {
        longest(&self.prefix, source)
    }

    fn is_listener_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    fn now(&self) -> u64 {
        self.now
    }
}

fn longest(prefixes: &BTreeMap<(IpAddr, u8), RuleValue>, source: IpAddr) -> Option<RuleValue> {
    prefixes
        .iter()
        .filter(|((addr, length), _)| covers(*addr, *length, source))
        .max_by_key(|((_, length), _)| *length)
        .map(|(_, rule)| *rule)
}

fn covers(prefix: IpAddr, length: u8, addr: IpAddr) -> bool {
    let bits = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => (u128::from(addr.to_bits()) << 96, 4),
        IpAddr::V6(addr) => (addr.to_bits(), 6),
    };
    let ((a, family), (b, other)) = (bits(prefix), bits(addr));
    family == other && (length == 0 || (a ^ b) >> (128 - u32::from(length)) == 0)
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn until(expires_at: u64) -> RuleValue {
    RuleValue::PERMANENT.until(expires_at)
}

#[test]
fn allow_beats_address_beats_prefix() {
    let source = addr("203.0.113.50");
    let mut rules = Rules::default();
    assert_eq!(judge_source(&rules, source), SourceVerdict::NoRule);
    rules.prefix.insert((addr("203.0.113.0"), 24), RuleValue::PERMANENT);
    assert_eq!(judge_source(&rules, source), SourceVerdict::BlockedPrefix(RuleValue::PERMANENT));
    rules.address.insert(source, RuleValue::PERMANENT);
    assert_eq!(judge_source(&rules, source), SourceVerdict::BlockedAddress(RuleValue::PERMANENT));
    // The shorter prefix wins all the same: precedence goes by action, not by length.
    rules.allow.insert((addr("0.0.0.0"), 0), RuleValue::PERMANENT);
    assert_eq!(judge_source(&rules, source), SourceVerdict::Allowed);
}

#[test]
fn an_expired_rule_is_not_there() {
    let source = addr("2001:db8::50");
    let mut rules = Rules { now: 1000, ..Rules::default() };
    rules.allow.insert((addr("2001:db8::"), 32), until(1000));
    assert_eq!(judge_source(&rules, source), SourceVerdict::Expired);
    rules.address.insert(source, until(1000));
    assert_eq!(judge_source(&rules, source), SourceVerdict::Expired);
    rules.prefix.insert((addr("2001:db8::"), 48), until(1001));
    assert_eq!(judge_source(&rules, source), SourceVerdict::BlockedPrefix(until(1001)));
    rules.now = 999;
    assert_eq!(judge_source(&rules, source), SourceVerdict::Allowed);
}

#[test]
fn mapped_ipv6_is_ipv4() {
    let mut rules = Rules::default();
    rules.address.insert(addr("203.0.113.50"), RuleValue::PERMANENT);
    let mapped = Ipv4Addr::new(203, 0, 113, 50).to_ipv6_mapped();
    assert!(matches!(judge_source(&rules, mapped.into()), SourceVerdict::BlockedAddress(_)));
    let frame = frames::ethernet(&[], 0x86dd, &frames::ipv6(mapped, 6, 64, &frames::tcp(443)));
    assert_eq!(judge_packet(&frame[..], Scope::Host, &rules), Reason::BlockedAddress);
}

/// What becomes of a blocked source's frame of each shape.
fn expected(name: &str, scope: Scope, port_is_listened: bool) -> Reason {
    let is = |part: &str| name.contains(part);
    match name {
        "arp" | "lldp" => return Reason::NotIp,
        _ if is("three tags") => return Reason::NotIp,
        _ if is("wrong version") || is("short header") || is("short total") => return Reason::Malformed,
        "ipv6 router solicitation" | "ipv6 neighbor solicitation" | "ipv6 redirect" => {
            return Reason::NeighborDiscovery;
        }
        _ => {}
    }
    if scope == Scope::Host {
        return Reason::BlockedAddress;
    }
    match name {
        _ if is("later fragment") || is("last fragment") => Reason::LaterFragment,
        "ipv6 empty payload" => Reason::Malformed,
        // Hidden ports are judged whatever the listeners are.
        _ if is("empty first") || is("too many") || is("ends in the chain") || is("longest extension") => {
            Reason::BlockedAddress
        }
        _ if is("tcp") || is("jumbogram") || is("no total") => {
            if port_is_listened {
                Reason::BlockedAddress
            } else {
                Reason::OutOfScope
            }
        }
        _ => Reason::OutOfScope,
    }
}

#[test]
fn every_shape_of_a_blocked_source() {
    let (v4, v6): (Ipv4Addr, Ipv6Addr) = ("203.0.113.50".parse().unwrap(), "2001:db8::50".parse().unwrap());
    let mut rules = Rules::default();
    rules.address.insert(v4.into(), RuleValue::PERMANENT);
    rules.address.insert(v6.into(), RuleValue::PERMANENT);
    rules.ports.insert(443);
    for port in [443, 80] {
        for scope in [Scope::Listeners, Scope::Host] {
            for shape in frames::corpus(v4, v6, port) {
                let reason = judge_packet(&shape.bytes[..], scope, &rules);
                assert_eq!(reason, expected(shape.name, scope, port == 443), "{} {scope:?} {port}", shape.name);
            }
        }
    }
}

#[test]
fn no_shape_of_another_source_is_dropped() {
    let mut rules = Rules::default();
    rules.prefix.insert((addr("203.0.113.0"), 24), RuleValue::PERMANENT);
    rules.ports.insert(443);
    for scope in [Scope::Listeners, Scope::Host] {
        for shape in frames::corpus(Ipv4Addr::new(192, 0, 2, 7), Ipv6Addr::LOCALHOST, 443) {
            assert!(!judge_packet(&shape.bytes[..], scope, &rules).is_drop(), "{}", shape.name);
        }
    }
}

proptest! {
    #[test]
    fn precedence_holds_for_any_rules(
        allow in prop::collection::btree_map((0_u32..8, 28_u8..=32), 0_u64..4, 0..4),
        address in prop::collection::btree_map(0_u32..8, 0_u64..4, 0..4),
        prefix in prop::collection::btree_map((0_u32..8, 28_u8..=32), 0_u64..4, 0..4),
        source in 0_u32..8,
        now in 0_u64..4,
    ) {
        let net = |(low, length): (u32, u8)| {
            let mask = u32::MAX << (32 - u32::from(length));
            (IpAddr::V4(Ipv4Addr::from_bits((0x0a00_0000 | low) & mask)), length)
        };
        let nets = |rules: &BTreeMap<(u32, u8), u64>| {
            rules.iter().map(|(key, expires)| (net(*key), until(*expires))).collect::<BTreeMap<_, _>>()
        };
        let rules = Rules {
            allow: nets(&allow),
            address: address
                .iter()
                .map(|(low, expires)| (IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | low)), until(*expires)))
                .collect(),
            prefix: nets(&prefix),
            ports: BTreeSet::new(),
            now,
        };
        let source = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | source));
        let found: Vec<_> = [rules.allowed(source), rules.blocked_address(source), rules.blocked_prefix(source)].into();
        let live = |rule: &Option<RuleValue>| rule.is_some_and(|rule| rule.expires_at() == 0 || now < rule.expires_at());
        let expected = match found.iter().position(live) {
            Some(0) => SourceVerdict::Allowed,
            Some(1) => SourceVerdict::BlockedAddress(found[1].unwrap()),
            Some(_) => SourceVerdict::BlockedPrefix(found[2].unwrap()),
            None if found.iter().any(Option::is_some) => SourceVerdict::Expired,
            None => SourceVerdict::NoRule,
        };
        prop_assert_eq!(judge_source(&rules, source), expected);
    }
}
