//! The committed kernel program, run by the kernel on frames of every shape, against the same verdict run on the host.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "kernel_support/mod.rs"]
mod kernel_support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Map, MapData, PerCpuArray},
    programs::{TestRun, TestRunOptions, Xdp},
};
use mc_proxy_common::{
    frames::{self, Dice, Shape},
    maps::{
        ALLOW4, ALLOW6, Address4, Address6, BLOCK4, BLOCK6, COUNTERS, Counter, MAPS, MapShape, NET4, NET6, PORTS,
        Prefix4, Prefix6, RuleValue, SETTINGS, Scope, Settings, port_bit,
    },
    packet::EXTENSION_BYTES_MAX,
    reason::Reason,
    user::{MapInfo, Table},
    verdict_v1::{Lookup, judge_packet},
};

use crate::kernel_support::{Privilege, become_nobody, needs};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// What the kernel takes for a test run: shorter ones are no Ethernet frames.
const FRAME_BYTES_MIN: usize = 14;

/// The loaded program and its maps.
struct Kernel {
    ebpf: Ebpf,
}

/// Rules as the host looks them up; the kernel's maps are filled with the same.
#[derive(Clone, Debug, Default)]
struct Rules {
    allow: BTreeMap<(IpAddr, u8), RuleValue>,
    address: BTreeMap<IpAddr, RuleValue>,
    prefix: BTreeMap<(IpAddr, u8), RuleValue>,
    ports: BTreeSet<u16>,
}

#[test]
fn the_object_has_the_maps_that_the_daemon_expects() {
    if !needs(Privilege::Bpf) {
        return;
    }
    let kernel = Kernel::load();
    for shape in MAPS {
        let info = MapInfo::of(kernel.data(&shape).fd().as_fd()).unwrap();
        assert!(info.has_shape(&shape), "{shape:?} is {info:?}");
    }
}

#[test]
fn maps_that_were_never_filled_pass_everything() {
    if !needs(Privilege::Bpf) {
        return;
    }
    let kernel = Kernel::load();
    for shape in corpus() {
        assert_eq!(kernel.run(&shape.bytes), Reason::Unconfigured, "{}", shape.label());
    }
}

#[test]
fn every_shape_truncated_at_every_byte_is_judged_as_on_the_host() {
    if !needs(Privilege::Bpf) {
        return;
    }
    let kernel = Kernel::load();
    let mut rules = Rules::default();
    rules.address.insert(IpAddr::V4(V4), RuleValue::PERMANENT);
    rules.address.insert(IpAddr::V6(V6), RuleValue::PERMANENT);
    rules.ports.insert(PORT);
    kernel.fill(&rules);
    let mut reasons = BTreeMap::<&str, u64>::new();
    for scope in [Scope::Listeners, Scope::Host] {
        kernel.set_scope(scope);
        for shape in corpus() {
            for length in FRAME_BYTES_MIN..=shape.bytes.len() {
                let frame = &shape.bytes[..length];
                let expected = judge_packet(frame, scope, &rules);
                assert_eq!(kernel.run(frame), expected, "{} of {} {scope:?}", length, shape.label());
                *reasons.entry(expected.name()).or_default() += 1;
            }
        }
    }
    println!("frames by reason: {reasons:?}");
    for reason in [Reason::BlockedAddress, Reason::OutOfScope, Reason::Malformed, Reason::NeighborDiscovery] {
        assert!(reasons.get(reason.name()).is_some_and(|count| *count > 0), "no frame was {reason:?}");
    }
}

#[test]
fn random_rules_and_mutated_frames_are_judged_as_on_the_host() {
    if !needs(Privilege::Bpf) {
        return;
    }
    let kernel = Kernel::load();
    let mut dice = Dice::new(0x6d63_7072_6f78_7931);
    let (mut reasons, mut frames) = (BTreeMap::<&str, u64>::new(), 0);
    for round in 0..120 {
        kernel.clear();
        let rules = Rules::random(&mut dice);
        kernel.fill(&rules);
        for scope in [Scope::Listeners, Scope::Host] {
            kernel.set_scope(scope);
            for _ in 0..100 {
                let bytes = random_frame(&mut dice);
                let expected = judge_packet(&bytes[..], scope, &rules);
                assert_eq!(kernel.run(&bytes), expected, "round {round}, {scope:?}, {bytes:02x?}, {rules:?}");
                *reasons.entry(expected.name()).or_default() += 1;
                frames += 1;
            }
        }
    }
    println!("{frames} random frames by reason: {reasons:?}");
    let unseen: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| **reason != Reason::Unconfigured && !reasons.contains_key(reason.name()))
        .collect();
    assert!(unseen.is_empty(), "random frames never gave {unseen:?}");
}

#[test]
fn the_longest_chain_of_headers_is_within_reach() {
    if !needs(Privilege::Bpf) {
        return;
    }
    let kernel = Kernel::load();
    let mut rules = Rules::default();
    rules.address.insert(IpAddr::V6(V6), RuleValue::PERMANENT);
    rules.ports.insert(PORT);
    kernel.fill(&rules);
    kernel.set_scope(Scope::Listeners);
    for (bytes, expected) in [
        (EXTENSION_BYTES_MAX / 8, [Reason::BlockedAddress, Reason::OutOfScope]),
        // Beyond it the port is hidden, and the source decides.
        (EXTENSION_BYTES_MAX / 8 + 8, [Reason::BlockedAddress, Reason::BlockedAddress]),
    ] {
        for (port, expected) in [PORT, 22].into_iter().zip(expected) {
            let mut payload = frames::tcp(port);
            let mut next = 6;
            for _ in 0..8 {
                payload = frames::extension(next, (bytes / 8 - 1) as u8, &payload);
                next = 60;
            }
            let frame = frames::ethernet(&[0x88a8, 0x8100], 0x86dd, &frames::ipv6(V6, next, 64, &payload));
            assert_eq!(kernel.run(&frame), expected, "{} bytes to port {port}", frame.len());
        }
    }
}

/// Without `CAP_PERFMON`, as the systemd unit has it, the verifier follows speculation too and adds barriers: both have to
/// stay far below its limit of a million instructions.
#[test]
fn the_verifier_has_room() {
    if !needs(Privilege::Root) {
        return;
    }
    let verified = |kernel: &Kernel| kernel.program().info().unwrap().verified_instruction_count().unwrap();
    let all = Kernel::load();
    let two = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_nobody();
            Kernel::load()
        });
        thread.join().unwrap()
    });
    println!("instructions verified: {} with all capabilities, {} with two", verified(&all), verified(&two));
    assert!(verified(&all) < 300_000 && verified(&two) < 300_000);
    let mut rules = Rules::default();
    rules.address.insert(IpAddr::V4(V4), RuleValue::PERMANENT);
    rules.ports.insert(PORT);
    let frame = frames::ethernet(&[], 0x0800, &frames::ipv4(V4, 6, 0, 0, &frames::tcp(PORT)));
    for (name, kernel) in [("all capabilities", &all), ("two", &two)] {
        kernel.fill(&rules);
        kernel.set_scope(Scope::Listeners);
        assert_eq!(kernel.run(&frame), Reason::BlockedAddress);
        println!("drop, loaded with {name}: {} ns a frame", kernel.time(&frame, 200_000).as_nanos());
    }
}

/// Not a benchmark, which `cargo xtask bench` is for: says what a frame costs here, and fails only if that is absurd.
#[test]
fn the_cost_of_a_frame() {
    if !needs(Privilege::Bpf) {
        return;
    }
    let kernel = Kernel::load();
    let mut dice = Dice::new(7);
    let mut rules = Rules::default();
    for _ in 0..10_000 {
        let addr = Ipv4Addr::from_bits(0x0b00_0000 | dice.below(1 << 24) as u32);
        rules.address.insert(addr.into(), RuleValue::PERMANENT);
        rules.prefix.insert((Ipv4Addr::from_bits(addr.to_bits() & 0xffff_ff00).into(), 24), RuleValue::PERMANENT);
    }
    rules.address.insert(IpAddr::V4(V4), RuleValue::PERMANENT);
    rules.address.insert(IpAddr::V6(V6), RuleValue::PERMANENT);
    rules.prefix.insert((IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0)), 24), RuleValue::PERMANENT);
    rules.ports.insert(PORT);
    kernel.fill(&rules);
    kernel.set_scope(Scope::Listeners);
    let v4 = |source: Ipv4Addr, port| frames::ethernet(&[], 0x0800, &frames::ipv4(source, 6, 0, 0, &frames::tcp(port)));
    let v6 = |source| frames::ethernet(&[], 0x86dd, &frames::ipv6(source, 6, 64, &frames::tcp(PORT)));
    for (name, frame) in [
        ("drop, IPv4 address", v4(V4, PORT)),
        ("drop, IPv4 prefix", v4(Ipv4Addr::new(198, 51, 100, 9), PORT)),
        ("drop, IPv6 address", v6(V6)),
        ("pass, IPv4, no rule", v4(Ipv4Addr::new(192, 0, 2, 1), PORT)),
        ("pass, IPv6, no rule", v6(Ipv6Addr::LOCALHOST)),
        ("pass, other port", v4(V4, 22)),
    ] {
        let median = {
            let mut times: Vec<_> = (0..5).map(|_| kernel.time(&frame, 200_000)).collect();
            times.sort();
            times[2]
        };
        println!("{name}: {} ns a frame", median.as_nanos());
        assert!(median < Duration::from_micros(20), "{name}: {median:?}");
    }
}

const V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 50);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);
const PORT: u16 = 443;
/// Long ago and far in the future on the boot-time clock: the host need not read it.
const EXPIRED: u64 = 1;
const LIVE: u64 = u64::MAX;

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

fn random_frame(dice: &mut Dice) -> Vec<u8> {
    let port = [PORT, 22, 8443][dice.below(3) as usize];
    let shapes = frames::corpus(random_v4(dice), random_v6(dice), port);
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
    bytes
}

impl Rules {
    fn random(dice: &mut Dice) -> Self {
        let mut rules = Self::default();
        let value = |dice: &mut Dice| RuleValue::PERMANENT.until([0, EXPIRED, LIVE][dice.below(3) as usize]);
        let net = |dice: &mut Dice| match dice.below(2) {
            0 => {
                let length = 24 + dice.below(9) as u32;
                let addr = random_v4(dice).to_bits() & (u32::MAX << (32 - length));
                (IpAddr::V4(Ipv4Addr::from_bits(addr)), length as u8)
            }
            _ => {
                let length = 120 + dice.below(9) as u32;
                let addr = (V6.to_bits() & !7 | u128::from(dice.below(8))) & (u128::MAX << (128 - length));
                (IpAddr::V6(Ipv6Addr::from_bits(addr)), length as u8)
            }
        };
        for _ in 0..dice.below(3) {
            let (net, value) = (net(dice), value(dice));
            rules.allow.insert(net, value);
        }
        for _ in 0..dice.below(6) {
            let value = value(dice);
            rules.address.insert(random_v4(dice).into(), value);
            rules.address.insert(Ipv6Addr::from_bits(V6.to_bits() & !7 | u128::from(dice.below(8))).into(), value);
        }
        for _ in 0..dice.below(4) {
            let (net, value) = (net(dice), value(dice));
            rules.prefix.insert(net, value);
        }
        rules.ports = [PORT, 8443].into_iter().filter(|_| dice.below(4) > 0).collect();
        rules
    }
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
        EXPIRED + 1
    }
}

fn longest(nets: &BTreeMap<(IpAddr, u8), RuleValue>, addr: IpAddr) -> Option<RuleValue> {
    nets.iter()
        .filter(|((net, length), _)| covers(*net, *length, addr))
        .max_by_key(|((_, length), _)| *length)
        .map(|(_, value)| *value)
}

fn covers(net: IpAddr, length: u8, addr: IpAddr) -> bool {
    match (net, addr) {
        (IpAddr::V4(net), IpAddr::V4(addr)) => (net.to_bits() ^ addr.to_bits()).leading_zeros() >= u32::from(length),
        (IpAddr::V6(net), IpAddr::V6(addr)) => (net.to_bits() ^ addr.to_bits()).leading_zeros() >= u32::from(length),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

impl Kernel {
    fn load() -> Self {
        let mut ebpf =
            EbpfLoader::new().override_global("MEASURES_FRAMES", &1_u8, true).load(mc_proxy::xdp::PROGRAM).unwrap();
        let program: &mut Xdp = ebpf.program_mut("mc_proxy").unwrap().try_into().unwrap();
        program.load().unwrap_or_else(|error| panic!("{error}"));
        Self { ebpf }
    }

    /// What the program counted, which is what it decided; the action is checked against it.
    fn run(&self, frame: &[u8]) -> Reason {
        let before = self.counters();
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        let action = self.program().test_run(options).unwrap().return_value;
        let after = self.counters();
        let counted: Vec<_> = Reason::ALL
            .into_iter()
            .filter(|reason| before[reason.index() as usize] != after[reason.index() as usize])
            .collect();
        let [reason] = counted[..] else { panic!("one frame counted as {counted:?}") };
        let (before, after) = (before[reason.index() as usize], after[reason.index() as usize]);
        assert_eq!(after.packets, before.packets + 1);
        assert_eq!(after.bytes, before.bytes + frame.len() as u64);
        assert_eq!(action, if reason.is_drop() { XDP_DROP } else { XDP_PASS }, "{reason:?}");
        reason
    }

    fn time(&self, frame: &[u8], repeat: u32) -> Duration {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() };
        self.program().test_run(options).unwrap().duration
    }

    fn set_scope(&self, scope: Scope) {
        self.table::<u32, Settings>(&SETTINGS).upsert(&0, &Settings::new(scope)).unwrap();
    }

    fn fill(&self, rules: &Rules) {
        let words = self.table::<u32, u64>(&PORTS);
        for port in &rules.ports {
            let (word, bit) = port_bit(*port);
            let bits = words.lookup(&word).unwrap().unwrap_or_default();
            words.upsert(&word, &(bits | bit)).unwrap();
        }
        for ((addr, length), value) in &rules.allow {
            match addr {
                IpAddr::V4(addr) => self.upsert(&ALLOW4, Prefix4::new(*addr, *length), value),
                IpAddr::V6(addr) => self.upsert(&ALLOW6, Prefix6::new(*addr, *length), value),
            }
        }
        for ((addr, length), value) in &rules.prefix {
            match addr {
                IpAddr::V4(addr) => self.upsert(&NET4, Prefix4::new(*addr, *length), value),
                IpAddr::V6(addr) => self.upsert(&NET6, Prefix6::new(*addr, *length), value),
            }
        }
        for (addr, value) in &rules.address {
            match addr {
                IpAddr::V4(addr) => self.upsert(&BLOCK4, Address4::from(*addr), value),
                IpAddr::V6(addr) => self.upsert(&BLOCK6, Address6::from(*addr), value),
            }
        }
    }

    fn clear(&self) {
        let words = self.table::<u32, u64>(&PORTS);
        for (word, bits) in words.entries().unwrap() {
            if bits != 0 {
                words.upsert(&word, &0).unwrap();
            }
        }
        self.clear_map::<Prefix4>(&ALLOW4);
        self.clear_map::<Prefix6>(&ALLOW6);
        self.clear_map::<Address4>(&BLOCK4);
        self.clear_map::<Address6>(&BLOCK6);
        self.clear_map::<Prefix4>(&NET4);
        self.clear_map::<Prefix6>(&NET6);
    }

    fn clear_map<K: Pod>(&self, shape: &MapShape) {
        let table = self.table::<K, RuleValue>(shape);
        for (key, _) in table.entries().unwrap() {
            assert!(table.remove(&key).unwrap());
        }
        assert!(table.entries().unwrap().is_empty());
    }

    fn upsert<K: Pod>(&self, shape: &MapShape, key: K, value: &RuleValue) {
        self.table::<K, RuleValue>(shape).upsert(&key, value).unwrap();
    }

    fn counters(&self) -> Vec<Counter> {
        let map = self.ebpf.map(COUNTERS.name).unwrap();
        let counters = PerCpuArray::<&MapData, Counter>::try_from(map).unwrap();
        Reason::ALL
            .iter()
            .map(|reason| {
                let cpus = counters.get(&reason.index(), 0).unwrap();
                Counter {
                    packets: cpus.iter().map(|cpu| cpu.packets).sum(),
                    bytes: cpus.iter().map(|cpu| cpu.bytes).sum(),
                }
            })
            .collect()
    }

    fn table<K: Pod, V: Pod>(&self, shape: &MapShape) -> Table<'_, K, V> {
        Table::new(self.data(shape).fd().as_fd()).unwrap()
    }

    fn data(&self, shape: &MapShape) -> &MapData {
        match self.ebpf.map(shape.name) {
            Some(Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data) | Map::PerCpuArray(data)) => data,
            other => panic!("{}: {other:?}", shape.name),
        }
    }

    fn program(&self) -> &Xdp {
        self.ebpf.program("mc_proxy").unwrap().try_into().unwrap()
    }
}
