//! The committed kernel program, run by the kernel on frames of every shape and under random rules: against the same
//! verdict run on the host, and against a list of the rules judged one by one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "packet_verdict/bench.rs"]
mod bench;
#[path = "kernel_support/mod.rs"]
mod kernel_support;
#[path = "kernel_support/lab.rs"]
#[allow(dead_code, reason = "each test file uses its own part")]
mod lab;
#[path = "packet_verdict/rules.rs"]
mod rules;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use aya::{EbpfLoader, programs::Xdp};
use mc_proxy::firewall::{Rule, RuleChange};
use mc_proxy_common::{
    frames::{self, Dice, Shape},
    maps::Scope,
    packet::EXTENSION_BYTES_MAX,
    reason::Reason,
};

use crate::{
    bench::{Bench, rule},
    kernel_support::{Privilege, become_nobody, keep_two_capabilities, needs},
};

/// What the kernel takes for a test run: shorter ones are no Ethernet frames.
const FRAME_BYTES_MIN: usize = 14;
const V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 50);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);
/// Listeners.
const PORTS: [u16; 2] = [443, 8443];
const PORT: u16 = PORTS[0];
/// No listener's.
const OTHER_PORT: u16 = 22;

#[test]
fn without_rules_nothing_is_dropped() {
    lab::run(|lab| {
        let bench = Bench::new(lab, Scope::Host);
        for shape in corpus() {
            let reason = bench.run(&shape.bytes);
            assert!(!reason.is_drop(), "{}: {reason:?}", shape.name);
        }
    });
}

#[test]
fn every_shape_truncated_at_every_byte_is_judged_as_on_the_host() {
    let mut reasons = BTreeMap::<&str, u64>::new();
    for scope in [Scope::Listeners, Scope::Host] {
        let reasons = &mut reasons;
        lab::run(|lab| {
            let mut bench = Bench::new(lab, scope);
            bench.put(&[rule(IpAddr::V4(V4)), rule(IpAddr::V6(V6))]);
            for shape in corpus() {
                for length in FRAME_BYTES_MIN..=shape.bytes.len() {
                    let frame = &shape.bytes[..length];
                    let expected = bench.ask(frame);
                    assert_eq!(bench.run(frame), expected, "{} of {} {scope:?}", length, shape.name);
                    *reasons.entry(expected.name()).or_default() += 1;
                }
            }
        });
    }
    println!("frames by reason: {reasons:?}");
    if reasons.is_empty() {
        // Skipped, loudly.
        return;
    }
    for reason in [Reason::BlockedAddress, Reason::OutOfScope, Reason::Malformed, Reason::NeighborDiscovery] {
        assert!(reasons.get(reason.name()).is_some_and(|count| *count > 0), "no frame was {reason:?}");
    }
}

#[test]
fn random_rules_and_mutated_frames_are_judged_as_on_the_host_and_by_a_plain_list() {
    const SEED: u64 = 0x6d63_7072_6f78_7931;
    const ROUNDS: u32 = 60;
    const FRAMES: u32 = 90;
    let (mut reasons, mut frames, mut listed) = (BTreeMap::<&str, u64>::new(), 0, 0);
    for (scope, is_guarded) in
        [(Scope::Listeners, false), (Scope::Host, false), (Scope::Listeners, true), (Scope::Host, true)]
    {
        let (reasons, frames, listed) = (&mut reasons, &mut frames, &mut listed);
        lab::run(move |lab| {
            if is_guarded {
                keep_two_capabilities();
            }
            let mut dice = Dice::new(SEED ^ scope as u64 ^ u64::from(is_guarded) << 1);
            let mut bench = Bench::new(lab, scope);
            for round in 0..ROUNDS {
                let rules = rules::random(&mut dice);
                bench.put(&rules);
                for _ in 0..FRAMES {
                    let (bytes, plain) = random_frame(&mut dice);
                    let expected = bench.ask(&bytes);
                    let run = bench.run(&bytes);
                    let context = || {
                        format!(
                            "seed {SEED:#x}, {scope:?}, guarded: {is_guarded}, round {round}, {bytes:02x?}, {rules:?}"
                        )
                    };
                    assert_eq!(run, expected, "{}", context());
                    if let Some((source, port)) = plain {
                        let one_by_one = rules::judge(&rules, source, port, scope, bench.wall());
                        assert_eq!(run.is_drop().then_some(run), one_by_one, "{source} to {port}: {}", context());
                        *listed += 1;
                    }
                    *reasons.entry(expected.name()).or_default() += 1;
                    *frames += 1;
                }
                bench.remove(&rules);
            }
        });
    }
    println!("{frames} random frames ({listed} also judged one by one), seed {SEED:#x}, by reason: {reasons:?}");
    if frames == 0 {
        return;
    }
    assert!(frames >= 20_000 && listed >= 2_000);
    let cannot = [Reason::BlockedCountry, Reason::RateLimited];
    let unseen: Vec<_> =
        Reason::ALL.iter().filter(|reason| !cannot.contains(reason) && !reasons.contains_key(reason.name())).collect();
    assert!(unseen.is_empty(), "random frames never gave {unseen:?}");
}

#[test]
fn the_longest_chain_of_headers_is_within_reach() {
    lab::run(|lab| {
        let mut bench = Bench::new(lab, Scope::Listeners);
        bench.put(&[rule(IpAddr::V6(V6))]);
        for (bytes, expected) in [
            (EXTENSION_BYTES_MAX / 8, [Reason::BlockedAddress, Reason::OutOfScope]),
            // Beyond it the port is hidden, and the source decides.
            (EXTENSION_BYTES_MAX / 8 + 8, [Reason::BlockedAddress, Reason::BlockedAddress]),
        ] {
            for (port, expected) in [PORT, OTHER_PORT].into_iter().zip(expected) {
                let mut payload = frames::tcp(port);
                let mut next = 6;
                for _ in 0..8 {
                    payload = frames::extension(next, (bytes / 8 - 1) as u8, &payload);
                    next = 60;
                }
                let frame = frames::ethernet(&[0x88a8, 0x8100], 0x86dd, &frames::ipv6(V6, next, 64, &payload));
                assert_eq!(bench.run(&frame), expected, "{} bytes to port {port}", frame.len());
            }
        }
    });
}

/// Without `CAP_PERFMON`, as the systemd unit has it, the verifier follows speculation too and adds barriers: both have to
/// stay far below its limit of a million instructions.
#[test]
fn the_verifier_has_room() {
    if !needs(Privilege::Root) {
        return;
    }
    let verified = |symbol: &str| {
        let mut ebpf =
            EbpfLoader::new().override_global("MEASURES_FRAMES", &1_u8, true).load(mc_proxy::xdp::PROGRAM).unwrap();
        let program: &mut Xdp = ebpf.program_mut(symbol).unwrap().try_into().unwrap();
        program.load().unwrap_or_else(|error| panic!("{error}"));
        program.info().unwrap().verified_instruction_count().unwrap()
    };
    let all = verified("mc_proxy");
    let two = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_nobody();
            verified("mc_proxy_guarded")
        });
        thread.join().unwrap()
    });
    println!("instructions verified: {all} with all capabilities, {two} with two");
    assert!(all < 500_000 && two < 500_000);
}

fn corpus() -> Vec<Shape> {
    frames::corpus(V4, V6, PORT)
}

/// One of a few sources, so that rules and frames meet.
fn random_v4(dice: &mut Dice) -> Ipv4Addr {
    Ipv4Addr::from_bits(V4.to_bits() & !7 | dice.below(8) as u32)
}

fn random_v6(dice: &mut Dice) -> Ipv6Addr {
    match dice.below(4) {
        0 => random_v4(dice).to_ipv6_mapped(),
        _ => Ipv6Addr::from_bits(V6.to_bits() & !7 | u128::from(dice.below(8))),
    }
}

/// A frame; with source and port when it is nothing but TCP.
fn random_frame(dice: &mut Dice) -> (Vec<u8>, Option<(IpAddr, u16)>) {
    let port = [PORTS[0], OTHER_PORT, PORTS[1]][dice.below(3) as usize];
    let (v4, v6) = (random_v4(dice), random_v6(dice));
    match dice.below(6) {
        0 => {
            let frame = frames::ethernet(&[], 0x0800, &frames::ipv4(v4, 6, 0, 0, &frames::tcp(port)));
            return (frame, Some((v4.into(), port)));
        }
        1 => {
            let frame = frames::ethernet(&[], 0x86dd, &frames::ipv6(v6, 6, 64, &frames::tcp(port)));
            return (frame, Some((IpAddr::from(v6).to_canonical(), port)));
        }
        _ => {}
    }
    let shapes = frames::corpus(v4, v6, port);
    let mut bytes = shapes[dice.below(shapes.len() as u64) as usize].bytes.clone();
    // Half as they are, the others with a few bytes changed or the end missing.
    if dice.below(2) == 0 {
        for _ in 0..dice.below(4) {
            let at = 12 + dice.below(bytes.len() as u64 - 12) as usize;
            bytes[at] = dice.below(256) as u8;
        }
        let missing = dice.below(12) as usize;
        bytes.truncate((bytes.len() - missing).max(FRAME_BYTES_MIN));
    }
    (bytes, None)
}

fn puts(rules: &[Rule]) -> Vec<RuleChange> {
    rules.iter().copied().map(RuleChange::Put).collect()
}

fn removals(rules: &[Rule]) -> Vec<RuleChange> {
    rules.iter().map(|rule| RuleChange::Remove(rule.key)).collect()
}
