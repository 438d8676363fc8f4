//! Look-ups that go on while rules change.

use std::{
    net::IpAddr,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use ipnet::IpNet;

use super::support::{Packet, Plane, block, judge};
use crate::firewall::{
    Action, Engine, EngineConfig, Group, Moment, RuleChange, RuleKey, RuleScope, Subject, TableMemory,
};

/// A small generator of numbers, so that a failure can be repeated.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn now(begun: Instant) -> Moment {
    let elapsed = begun.elapsed();
    Moment {
        boot: 1_000_000_000 + u64::try_from(elapsed.as_nanos()).unwrap(),
        wall: 1_000_000 + u64::try_from(elapsed.as_millis()).unwrap(),
    }
}

/// One of the prefixes that cover the address, which is always blocked by one of them and sometimes by several.
fn around(address: IpAddr, numbers: &mut Numbers) -> IpNet {
    let max = if address.is_ipv4() { 32 } else { 128 };
    let lengths: &[u8] = if address.is_ipv4() {
        &[32, 32, 31, 30, 28, 27, 25, 24, 20, 16, 8, 0]
    } else {
        &[128, 128, 127, 126, 124, 120, 96, 64, 63, 61, 48, 36, 34, 33, 32, 24, 16, 0]
    };
    let length = lengths[numbers.below(lengths.len() as u64) as usize].min(max);
    IpNet::new(address, length).unwrap().trunc()
}

fn never_unblocked(seed: u64, changes: u32) {
    let addresses: Vec<IpAddr> =
        ["10.0.0.5", "10.0.0.6", "10.0.0.200", "10.0.1.5", "2001:db8::5", "2001:db8::6", "2001:db8:0:1::"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
    let mut plane = Plane::default();
    let mut numbers = Numbers(seed);
    let begun = Instant::now();
    let key = |net: IpNet| RuleKey { group: Group::literal("held"), ..block(&net.to_string()).key };
    let mut held: Vec<IpNet> = addresses.iter().map(|address| IpNet::from(*address)).collect();
    let rules = held.iter().map(|net| crate::firewall::Rule { key: key(*net), expires_at: None });
    let config = EngineConfig { bans_max: 100, ..EngineConfig::default() };
    let mut engine = Engine::new(rules, [], config, &mut plane, now(begun)).unwrap();
    let in_force: RwLock<Arc<TableMemory>> = RwLock::new(engine.memory());
    let (is_done, looked) = (AtomicBool::new(false), AtomicU64::new(0));

    std::thread::scope(|scope| {
        for offset in 0..2 {
            let (addresses, in_force, is_done, looked) = (&addresses, &in_force, &is_done, &looked);
            scope.spawn(move || {
                let packet = Packet { is_for_listener: true, port: 443 };
                let mut count = 0;
                while !is_done.load(Relaxed) {
                    let memory = Arc::clone(&in_force.read().unwrap());
                    for turn in 0..256 {
                        let source = addresses[(turn + offset) % addresses.len()];
                        let outcome = judge(&memory.reading(), source, packet, false, 1);
                        assert!(outcome.decision.is_some_and(|(is_drop, ..)| is_drop), "{source} was let in");
                        count += 1;
                    }
                }
                looked.fetch_add(count, Relaxed);
            });
        }
        let mut extra: Vec<RuleKey> = Vec::new();
        for _ in 0..changes {
            let mut step = Vec::new();
            match numbers.below(10) {
                // Blocks move from prefix to prefix, several at once.
                0..6 => {
                    let new: Vec<IpNet> = addresses.iter().map(|address| around(*address, &mut numbers)).collect();
                    let replacement = engine.book().replacement(
                        Group::literal("held"),
                        Action::Block,
                        RuleScope::Default,
                        None,
                        new.clone(),
                    );
                    step.extend(replacement.changes);
                    held = new;
                }
                // Rules that decide nothing about them come and go in the same places.
                6..9 => {
                    for _ in 0..4 {
                        let address = addresses[numbers.below(addresses.len() as u64) as usize];
                        let subject = Subject::Net(around(address, &mut numbers));
                        let group = Group::literal("extra");
                        extra.push(RuleKey { group, action: Action::Count, subject, scope: RuleScope::Default });
                        step.push(RuleChange::Put(crate::firewall::Rule {
                            key: extra[extra.len() - 1],
                            expires_at: None,
                        }));
                    }
                    while extra.len() > 4 {
                        step.push(RuleChange::Remove(extra.swap_remove(numbers.below(4) as usize)));
                    }
                }
                _ => engine.regenerate(now(begun), &mut plane).unwrap(),
            }
            // A list may be too long over one address; then nothing changes.
            let before = engine.book().len();
            if let Err(error) = engine.apply(&step, now(begun), &mut plane) {
                assert!(error.to_string().starts_with("more than 8 rules"), "{error}");
                assert_eq!(engine.book().len(), before);
            }
            *in_force.write().unwrap() = engine.memory();
            let packet = Packet { is_for_listener: true, port: 443 };
            for source in &addresses {
                let outcome = judge(&*engine.memory(), *source, packet, false, 1);
                if !outcome.decision.is_some_and(|(is_drop, ..)| is_drop) {
                    is_done.store(true, Relaxed);
                    panic!("{source} is not blocked");
                }
            }
        }
        is_done.store(true, Relaxed);
    });
    assert!(!held.is_empty());
    assert!(looked.load(Relaxed) > 1_000, "{looked:?}");
    assert!(plane.settled > 0, "some changes needed more than one stage");
}

/// For as long as one likes.
#[test]
#[ignore = "takes minutes"]
fn the_same_for_longer() {
    (1..=4).for_each(|seed| never_unblocked(seed, 10_000));
}

#[test]
fn what_is_blocked_before_and_after_is_blocked_all_the_time() {
    never_unblocked(0x5eed_0001, 400);
}
