//! Figures, for people: `cargo test --release -p mc-proxy --lib firewall::engine::tests::load -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::support::{Plane, at, block};
use crate::firewall::{Action, Engine, EngineConfig, Group, Rule, RuleChange, RuleKey, RuleScope, Subject};

/// Different numbers without order.
fn scattered(count: u32, salt: u64) -> impl Iterator<Item = u64> {
    (1..=u64::from(count)).map(move |n| {
        let mixed = (n ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    })
}

fn addresses4(count: u32) -> impl Iterator<Item = IpNet> {
    scattered(count, 0).map(|n| Ipv4Net::new_assert(((n >> 32) as u32).into(), 32).into())
}

fn prefixes4(count: u32, salt: u64) -> impl Iterator<Item = IpNet> {
    scattered(count, salt)
        .map(|n| IpNet::from(Ipv4Net::new_assert(((n >> 32) as u32).into(), 16 + (n % 16) as u8)).trunc())
}

fn prefixes6(count: u32) -> impl Iterator<Item = IpNet> {
    scattered(count, 77).map(|n| {
        let bits = (0x2000 | u128::from(n >> 50) & 0x1fff) << 112 | u128::from(n & 0xffff_ffff_ffff) << 64;
        IpNet::from(Ipv6Net::new_assert(bits.into(), 32 + (n % 33) as u8)).trunc()
    })
}

fn rule(net: IpNet, group: &str) -> Rule {
    let key = RuleKey {
        group: group.parse().unwrap(),
        action: Action::Block,
        subject: Subject::Net(net),
        scope: RuleScope::Default,
    };
    Rule { key, expires_at: None }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    println!("{what}: {:.3} ms", begun.elapsed().as_secs_f64() * 1e3);
    result
}

#[test]
#[ignore = "for a release build, on a quiet machine"]
fn figures() {
    const MILLION: u32 = 1_000_000;
    let mut plane = Plane::default();
    let before = resident();
    let rules: Vec<Rule> = addresses4(MILLION).chain(prefixes4(MILLION, 5)).map(|net| rule(net, "list")).collect();
    let config = EngineConfig { bans_max: 65_536, ..EngineConfig::default() };
    let listed = resident();
    println!("the rules as a vector: {} MiB", (listed - before) >> 20);
    let mut engine = timed("1M addresses + 1M prefixes", || {
        Engine::new(rules.iter().copied(), [], config, &mut plane, at(1)).unwrap()
    });
    let stats = engine.stats();
    println!("{stats:?}");
    let tables = stats.bytes;
    println!(
        "resident {} MiB more, of which tables {} MiB; {} bytes a prefix beside the tables",
        (resident() - listed) >> 20,
        tables >> 20,
        (resident() - listed).saturating_sub(tables) / stats.prefixes
    );
    drop(rules);
    timed("the same again as a new generation", || engine.regenerate(at(2), &mut plane).unwrap());
    let mut slowest = Duration::ZERO;
    let mut total = Duration::ZERO;
    for n in 0..1000_u32 {
        let change = RuleChange::Put(block(&format!("77.{}.{}.1", n % 251, n / 4)));
        let begun = Instant::now();
        engine.apply(&[change], at(3), &mut plane).unwrap();
        slowest = slowest.max(begun.elapsed());
        total += begun.elapsed();
    }
    println!("one address more: {:?} on average, {slowest:?} at most", total / 1000);
    for (what, net) in
        [("a /24", "77.1.2.0/24"), ("a /16", "77.1.0.0/16"), ("a /8", "77.0.0.0/8"), ("a /64", "2001:db8:1:2::/64")]
    {
        timed(&format!("{what} more"), || engine.apply(&[RuleChange::Put(block(net))], at(3), &mut plane).unwrap());
        timed(&format!("{what} less"), || {
            engine.apply(&[RuleChange::Remove(block(net).key)], at(3), &mut plane).unwrap()
        });
    }
    timed("one address less", || {
        engine.apply(&[RuleChange::Remove(block("77.0.0.1").key)], at(3), &mut plane).unwrap()
    });
    timed("its slot", || engine.expire(at(5), &mut plane).unwrap());
    for (what, group, nets) in [
        ("1M IPv4 prefixes", "more", prefixes4(MILLION, 9).collect::<Vec<_>>()),
        ("1M IPv6 prefixes", "six", prefixes6(MILLION).collect()),
        ("the group without 10,000 of them", "six", prefixes6(MILLION - 10_000).collect()),
        ("the group emptied", "more", Vec::new()),
    ] {
        let group: Group = group.parse().unwrap();
        let replacement = timed(&format!("{what}: comparing"), || {
            engine.book().replacement(group, Action::Block, RuleScope::Default, None, nets)
        });
        let generation = engine.stats().generation;
        timed(&format!("{what}: {} changes", replacement.changes.len()), || {
            engine.apply(&replacement.changes, at(6), &mut plane).unwrap()
        });
        println!("  {} generations; settled {} times", engine.stats().generation - generation, plane.settled);
    }
    timed("slots of what has gone", || engine.expire(at(8), &mut plane).unwrap());
    println!("{:?}", engine.stats());
}
