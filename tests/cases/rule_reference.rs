//! The committed kernel program, run by the kernel on frames of every shape with rules of every kind, against a list of
//! rules that is read from top to bottom.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "kernel_support/mod.rs"]
mod kernel_support;
#[path = "kernel_support/lab.rs"]
mod lab;
#[path = "kernel_support/reference.rs"]
mod reference;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use aya::{
    EbpfLoader,
    maps::{Map, MapData, PerCpuArray},
    programs::Xdp,
};
use ipnet::IpNet;
use mc_proxy::{
    config::{self, OnExit, XdpMode},
    control::moment,
    firewall::{
        Action, CountryCode, Engine, EngineConfig, EngineError, Expiry, Group, Rule, RuleChange, RuleKey, RuleScope,
        Subject,
    },
    xdp::{self, Dataplane, Parameters},
};
use mc_proxy_common::{
    frames::{self, Dice, Shape},
    maps::{Counter, GroupCounter},
    packet::EXTENSION_BYTES_MAX,
    rate::RateLimit,
    reason::Reason,
};

use crate::{
    kernel_support::{Privilege, become_nobody, needs},
    lab::{INTERFACE, Lab},
    reference::{Outcome, Reference},
};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// What the kernel takes for a test run: shorter ones are no Ethernet frames.
const FRAME_BYTES_MIN: usize = 14;
/// Frames that are judged for the comparison with the list.
const CASES: u64 = 10_000;
/// Another seed than the one that is built in, to look further or to see a failure again.
const SEED_VARIABLE: &str = "MC_PROXY_SEED";

const V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 50);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);
/// A listener whose new connections are limited, one whose are not, and none.
const LIMITED: u16 = 443;
const LISTENER: u16 = 8443;
const OTHER: u16 = 22;
/// So many at once, and then no more while the test runs.
const CONNECTIONS: u32 = 3;
const HOUR: u64 = 3_600_000_000_000;

/// A plane on an interface, with rules.
struct World {
    plane: Box<dyn Dataplane>,
    engine: Engine,
    counters: PerCpuArray<MapData, Counter>,
    groups: PerCpuArray<MapData, GroupCounter>,
    before: Counts,
}

/// By reason and by group, summed over CPUs. Of the groups only the first, as there are no more in these tests.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    reasons: Vec<Counter>,
    groups: Vec<GroupCounter>,
}

const GROUPS: u32 = 8;

/// What a frame was counted as: the reason, the group that it was dropped for and those that it would have been for.
#[derive(Debug, PartialEq, Eq)]
struct Counted {
    reason: Reason,
    dropped: Option<u32>,
    would_drop: BTreeMap<u32, u64>,
}

impl World {
    fn new(lab: &Lab, scope: config::Scope, limit: RateLimit, rules: &[Rule]) -> Self {
        let config = config::Xdp {
            interfaces: vec![INTERFACE.to_owned()],
            mode: XdpMode::Auto,
            required: true,
            require_native: false,
            scope,
            on_exit: OnExit::Keep,
            pin_path: lab.pin_path(),
        };
        let is_limited = limit != RateLimit::OFF;
        let ports = BTreeMap::from([(LIMITED, is_limited), (LISTENER, false)]);
        let mut plane = xdp::open(&config, Parameters { ports, rate: limit, seed: 42 }).unwrap();
        let is_host_scope = scope == config::Scope::Host;
        let config = EngineConfig { is_host_scope, bans_max: 1_000, ..EngineConfig::default() };
        let engine = Engine::new(rules.iter().copied(), [], config, &mut *plane, moment()).unwrap();
        let map = |name| Map::PerCpuArray(MapData::from_pin(lab.pin_path().join("maps").join(name)).unwrap());
        let counters = PerCpuArray::try_from(map("COUNTERS")).unwrap();
        let groups = PerCpuArray::try_from(map("GROUPS")).unwrap();
        let before = Counts::read(&counters, &groups);
        Self { plane, engine, counters, groups, before }
    }

    /// What the program counted, which is what it decided; the action is checked against it.
    fn run(&mut self, frame: &[u8]) -> Counted {
        let action = self.plane.test_run(frame).unwrap().action;
        let after = Counts::read(&self.counters, &self.groups);
        let before = std::mem::replace(&mut self.before, after);
        let after = &self.before;
        let changed = |reason: &Reason| before.reasons[*reason as usize] != after.reasons[*reason as usize];
        let reasons: Vec<_> = Reason::ALL.into_iter().filter(changed).collect();
        let [reason] = reasons[..] else { panic!("one frame counted as {reasons:?}: {before:?} {after:?}") };
        let (old, new) = (before.reasons[reason as usize], after.reasons[reason as usize]);
        assert_eq!((new.packets, new.bytes), (old.packets + 1, old.bytes + frame.len() as u64));
        assert_eq!(action, if reason.is_drop() { XDP_DROP } else { XDP_PASS }, "{reason:?}");
        let (mut dropped, mut would_drop) = (None, BTreeMap::new());
        for (group, (old, new)) in (0..).zip(before.groups.iter().zip(&after.groups)) {
            let (packets, would) = (new.packets - old.packets, new.would_packets - old.would_packets);
            assert_eq!(new.bytes - old.bytes, packets * frame.len() as u64);
            assert_eq!(new.would_bytes - old.would_bytes, would * frame.len() as u64);
            if packets > 0 {
                assert_eq!((packets, dropped), (1, None), "a frame is dropped once");
                dropped = Some(group);
            }
            if would > 0 {
                would_drop.insert(group, would);
            }
        }
        Counted { reason, dropped, would_drop }
    }

    fn apply(&mut self, changes: &[RuleChange]) -> Result<(), EngineError> {
        self.engine.apply(changes, moment(), &mut *self.plane).map(drop)
    }

    fn time(&self, frame: &[u8], runs: u32) -> Duration {
        let begun = std::time::Instant::now();
        for _ in 0..runs {
            self.plane.test_run(frame).unwrap();
        }
        begun.elapsed() / runs
    }
}

impl Counts {
    fn read(counters: &PerCpuArray<MapData, Counter>, groups: &PerCpuArray<MapData, GroupCounter>) -> Self {
        let reasons = Reason::ALL.into_iter().map(|reason| {
            let cpus = counters.get(&reason.index(), 0).unwrap();
            let sum = |member: fn(&Counter) -> u64| cpus.iter().map(member).sum();
            Counter { packets: sum(|cpu| cpu.packets), bytes: sum(|cpu| cpu.bytes) }
        });
        let groups = (0..GROUPS).map(|group| {
            let cpus = groups.get(&group, 0).unwrap();
            let sum = |member: fn(&GroupCounter) -> u64| cpus.iter().map(member).sum();
            GroupCounter {
                packets: sum(|cpu| cpu.packets),
                bytes: sum(|cpu| cpu.bytes),
                would_packets: sum(|cpu| cpu.would_packets),
                would_bytes: sum(|cpu| cpu.would_bytes),
            }
        });
        Self { reasons: reasons.collect(), groups: groups.collect() }
    }
}

fn limit() -> RateLimit {
    RateLimit::new(CONNECTIONS, HOUR, 32, 64)
}

fn block(subject: &str) -> Rule {
    Rule::block(subject.parse().unwrap())
}

fn seed() -> u64 {
    let seed = std::env::var(SEED_VARIABLE).ok().map_or(0x6d63_7072_6f78_7931, |seed| seed.parse().unwrap());
    println!("{SEED_VARIABLE}={seed}");
    seed
}

#[test]
fn random_rules_and_frames_are_judged_as_by_a_list() {
    quiet(|lab| compare(lab, seed(), CASES));
}

/// Runs a test where no packet is counted but those of the test: a link that is up greets its neighbours.
fn quiet(test: impl FnOnce(&Lab) + Send) {
    lab::run(|lab| {
        lab.edge(&format!("link set {INTERFACE} down"));
        test(lab);
    });
}

/// As the systemd unit runs it: what the program is at the verifier depends on it.
#[test]
fn random_rules_and_frames_with_two_capabilities() {
    quiet(|lab| {
        give_to_nobody(lab);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                become_nobody();
                compare(lab, seed() ^ 0x5eed, CASES);
            });
            thread.join().unwrap();
        });
    });
}

fn give_to_nobody(lab: &Lab) {
    fs::set_permissions(lab.bpffs(), fs::Permissions::from_mode(0o711)).unwrap();
    fs::create_dir(lab.pin_path()).unwrap();
    std::os::unix::fs::chown(lab.pin_path(), Some(65534), Some(65534)).unwrap();
}

fn compare(lab: &Lab, seed: u64, cases: u64) {
    const WORLDS: u64 = 20;
    const CHANGES: u64 = 20;
    let mut dice = Dice::new(seed);
    let (mut reasons, mut done, mut unclear, mut refused) = (BTreeMap::<&str, u64>::new(), 0, 0, 0);
    // The kernel remembers sources from one generation to the next, and from one daemon to the next.
    let mut spent = BTreeMap::new();
    for number in 0..WORLDS {
        let scope = if number % 2 == 0 { config::Scope::Listeners } else { config::Scope::Host };
        let rate = if number % 4 < 2 { RateLimit::OFF } else { limit() };
        let mut world = World::new(lab, scope, rate, &[]);
        let mut list = Reference::new(scope == config::Scope::Host, number % 4 >= 2);
        for _ in 0..CHANGES {
            // Most of the time what is there is changed a little; now and then there is a new generation.
            let before = list.clone();
            let now = moment();
            let result = match dice.below(8) {
                0 => {
                    list.countries = random_countries(&mut dice);
                    world.engine.set_countries(list.countries.clone(), now, &mut *world.plane)
                }
                1 => world.engine.regenerate(now, &mut *world.plane),
                2 => world.engine.expire(now, &mut *world.plane).map(|gone| {
                    list.rules.retain(|key, _| !gone.contains(key));
                }),
                _ => {
                    let changes = random_changes(&mut dice, &list, now.wall);
                    list.apply(&changes);
                    world.apply(&changes)
                }
            };
            match result {
                Ok(()) => {}
                Err(EngineError::TooManyRules { .. }) => {
                    refused += 1;
                    list = before;
                }
                Err(error) => panic!("{error}"),
            }
            for _ in 0..cases / WORLDS / CHANGES {
                let frame = random_frame(&mut dice);
                let groups = world.engine.book().groups().clone();
                let begun = moment();
                let counted = world.run(&frame);
                let outcomes = list.judge_between(&frame, begun, moment(), &groups, &spent);
                let agrees = |outcome: &Outcome| outcome.agrees(counted.reason, counted.dropped, &counted.would_drop);
                let Some(outcome) = outcomes.iter().find(|outcome| agrees(outcome)) else {
                    panic!("{counted:?}, not one of {outcomes:?}: world {number}, {scope:?}, {frame:02x?}, {list:?}");
                };
                if let Some(source) = outcome.spends {
                    *spent.entry(source).or_insert(0) += 1;
                }
                unclear += u64::from(outcomes.len() > 1);
                *reasons.entry(counted.reason.name()).or_default() += 1;
                done += 1;
            }
        }
    }
    println!("{done} frames by reason: {reasons:?}; {unclear} just when a rule expired; {refused} changes refused");
    assert_eq!(done, cases);
    assert!(unclear < cases / 10, "{unclear}");
    let unseen: Vec<_> = Reason::ALL.iter().filter(|reason| !reasons.contains_key(reason.name())).collect();
    assert!(unseen.is_empty(), "random frames never gave {unseen:?}");
}

/// One of a few sources, so that rules and frames meet.
fn random_v4(dice: &mut Dice) -> Ipv4Addr {
    Ipv4Addr::from_bits(V4.to_bits() & !7 | dice.below(8) as u32)
}

fn random_v6(dice: &mut Dice) -> Ipv6Addr {
    let near = V6.to_bits() & !7 | u128::from(dice.below(8));
    match dice.below(6) {
        0 => random_v4(dice).to_ipv6_mapped(),
        1 => Ipv6Addr::from_bits(near ^ 1 << 70),
        _ => Ipv6Addr::from_bits(near),
    }
}

/// Any length, those that are at home in different tables more often.
fn random_net(dice: &mut Dice) -> IpNet {
    let net = if dice.below(2) == 0 {
        let length = match dice.below(3) {
            0 => 32,
            1 => 24 + dice.below(9) as u8,
            _ => dice.below(33) as u8,
        };
        IpNet::new(random_v4(dice).into(), length)
    } else {
        let source = Ipv6Addr::from_bits(V6.to_bits() & !7 | u128::from(dice.below(8)));
        let length = match dice.below(4) {
            0 => 128,
            1 => 64,
            2 => 120 + dice.below(9) as u8,
            _ => dice.below(129) as u8,
        };
        IpNet::new(source.into(), length)
    };
    net.unwrap().trunc()
}

fn random_countries(dice: &mut Dice) -> Vec<(IpNet, CountryCode)> {
    let codes: [CountryCode; 2] = ["RU", "DE"].map(|code| code.parse().unwrap());
    let nets = ["203.0.113.48/30", "203.0.113.52/30", "2001:db8::/65", "2001:db8:0:0:8000::/65"];
    let nets = nets.into_iter().filter(|_| dice.below(3) > 0).collect::<Vec<_>>();
    nets.into_iter().map(|net| (net.parse().unwrap(), codes[dice.below(2) as usize])).collect()
}

fn random_changes(dice: &mut Dice, list: &Reference, wall: u64) -> Vec<RuleChange> {
    let groups = ["default", "list", "auto/rate", "auto/policy"].map(|group| group.parse::<Group>().unwrap());
    let mut changes = Vec::new();
    // As many come as go when there are some twenty.
    for key in list.rules.keys() {
        if dice.below(100) < 4 * list.rules.len() as u64 {
            changes.push(RuleChange::Remove(*key));
        }
    }
    for _ in 0..1 + dice.below(8) {
        let scope = match dice.below(6) {
            0 => RuleScope::Host,
            1 => RuleScope::Listener(LIMITED),
            2 => RuleScope::Listener(LISTENER),
            _ => RuleScope::Default,
        };
        let action = [Action::Block, Action::Block, Action::Allow, Action::Count][dice.below(4) as usize];
        let group = groups[dice.below(4) as usize];
        let key = match dice.below(6) {
            0 if action != Action::Allow => {
                let country = Subject::Country(["RU", "DE"][dice.below(2) as usize].parse().unwrap());
                RuleKey { group, action, subject: country, scope }
            }
            _ => RuleKey { group, action, subject: Subject::Net(random_net(dice)), scope },
        };
        let expires_at = match dice.below(3) {
            0 => Some(Expiry::from_millis(wall.saturating_sub(50) + dice.below(400))),
            1 => Some(Expiry::from_millis(wall + 3_600_000 + dice.below(1000))),
            _ => None,
        };
        changes.push(RuleChange::Put(Rule { key, expires_at }));
    }
    changes
}

fn random_frame(dice: &mut Dice) -> Vec<u8> {
    let port = [LIMITED, LISTENER, OTHER][dice.below(3) as usize];
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

fn corpus() -> Vec<Shape> {
    frames::corpus(V4, V6, LIMITED)
}

#[test]
fn every_shape_truncated_at_every_byte_is_judged_as_by_a_list() {
    quiet(|lab| {
        let rules = [block(&V4.to_string()), block(&V6.to_string())];
        for scope in [config::Scope::Listeners, config::Scope::Host] {
            let mut world = World::new(lab, scope, RateLimit::OFF, &rules);
            let mut list = Reference::new(scope == config::Scope::Host, false);
            list.apply(&rules.map(RuleChange::Put));
            let groups = world.engine.book().groups().clone();
            for shape in corpus() {
                for length in FRAME_BYTES_MIN..=shape.bytes.len() {
                    let frame = &shape.bytes[..length];
                    let counted = world.run(frame);
                    let outcomes = list.judge_between(frame, moment(), moment(), &groups, &BTreeMap::new());
                    let [outcome] = &outcomes[..] else { panic!("{outcomes:?}") };
                    assert!(
                        outcome.agrees(counted.reason, counted.dropped, &counted.would_drop),
                        "{counted:?}, not {outcome:?}: {length} of {} {scope:?}",
                        shape.label()
                    );
                }
            }
        }
    });
}

#[test]
fn the_longest_chain_of_headers_is_within_reach() {
    quiet(|lab| {
        let mut world = World::new(lab, config::Scope::Listeners, RateLimit::OFF, &[block(&V6.to_string())]);
        for (bytes, expected) in [
            (EXTENSION_BYTES_MAX / 8, [Reason::BlockedAddress, Reason::OutOfScope]),
            // Beyond it the port is hidden, and the source decides.
            (EXTENSION_BYTES_MAX / 8 + 8, [Reason::BlockedAddress, Reason::BlockedAddress]),
        ] {
            for (port, expected) in [LIMITED, OTHER].into_iter().zip(expected) {
                let mut payload = frames::tcp(port);
                let mut next = 6;
                for _ in 0..8 {
                    payload = frames::extension(next, (bytes / 8 - 1) as u8, &payload);
                    next = 60;
                }
                let frame = frames::ethernet(&[0x88a8, 0x8100], 0x86dd, &frames::ipv6(V6, next, 64, &payload));
                assert_eq!(world.run(&frame).reason, expected, "{} bytes to port {port}", frame.len());
            }
        }
    });
}

/// Without `CAP_PERFMON`, as the systemd unit has it, the verifier follows speculation too and adds barriers; and code that
/// a constant rules out, such as the limit's, it does not look at. All have to stay below its limit of a million
/// instructions, with room for kernels that follow more.
#[test]
fn the_verifier_has_room() {
    if !needs(Privilege::Root) {
        return;
    }
    let verified = |interval: u64, symbol: &str| {
        let mut loader = EbpfLoader::new();
        loader.override_global("MEASURES_FRAMES", &1_u8, true);
        loader.override_global("RATE_INTERVAL", &interval, true);
        let mut ebpf = loader.load(xdp::PROGRAM).unwrap();
        let program: &mut Xdp = ebpf.program_mut(symbol).unwrap().try_into().unwrap();
        program.load().unwrap_or_else(|error| panic!("{error}"));
        program.info().unwrap().verified_instruction_count().unwrap()
    };
    for (interval, limit, most) in [(0, "no limit", 300_000), (1, "a limit", 700_000)] {
        let all = verified(interval, "mc_proxy");
        let two = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                become_nobody();
                verified(interval, "mc_proxy_guarded")
            });
            thread.join().unwrap()
        });
        println!("instructions verified with {limit}: {all} with all capabilities, {two} with two");
        assert!(all < most && two < most);
    }
}

/// Not a benchmark, which `cargo xtask bench` is for: fails only if a run is absurdly slow. It has a system call in it.
#[test]
fn the_cost_of_a_frame() {
    quiet(|lab| {
        let mut dice = Dice::new(7);
        let mut rules = vec![block(&V4.to_string()), block(&V6.to_string()), block("198.51.100.0/24")];
        for _ in 0..10_000 {
            let addr = Ipv4Addr::from_bits(0x0b00_0000 | dice.below(1 << 24) as u32);
            rules.push(block(&addr.to_string()));
        }
        let world = World::new(lab, config::Scope::Listeners, RateLimit::OFF, &rules);
        let v4 = |source, port| frames::ethernet(&[], 0x0800, &frames::ipv4(source, 6, 0, 0, &frames::tcp(port)));
        let v6 = |source| frames::ethernet(&[], 0x86dd, &frames::ipv6(source, 6, 64, &frames::tcp(LIMITED)));
        for (name, frame) in [
            ("drop, IPv4 address", v4(V4, LIMITED)),
            ("drop, IPv4 prefix", v4(Ipv4Addr::new(198, 51, 100, 9), LIMITED)),
            ("drop, IPv6 address", v6(V6)),
            ("pass, IPv4, no rule", v4(Ipv4Addr::new(192, 0, 2, 1), LIMITED)),
            ("pass, IPv6, no rule", v6(Ipv6Addr::LOCALHOST)),
            ("pass, other port", v4(V4, OTHER)),
        ] {
            let mut times: Vec<_> = (0..5).map(|_| world.time(&frame, 1_000)).collect();
            times.sort();
            println!("{name}: {} ns a frame and its system call", times[2].as_nanos());
            assert!(times[2] < Duration::from_micros(200), "{name}: {times:?}");
        }
    });
}

/// Sources are in both spellings one.
#[test]
fn a_rule_holds_for_both_spellings_of_an_address() {
    quiet(|lab| {
        let mut world = World::new(lab, config::Scope::Listeners, RateLimit::OFF, &[block(&V4.to_string())]);
        let tcp = frames::tcp(LIMITED);
        let plain = frames::ethernet(&[], 0x0800, &frames::ipv4(V4, 6, 0, 0, &tcp));
        let mapped = frames::ethernet(&[], 0x86dd, &frames::ipv6(V4.to_ipv6_mapped(), 6, 64, &tcp));
        assert_eq!(world.run(&plain).reason, Reason::BlockedAddress);
        assert_eq!(world.run(&mapped).reason, Reason::BlockedAddress);
        world.apply(&[RuleChange::Remove(block(&V4.to_string()).key)]).unwrap();
        let source: IpAddr = V4.into();
        assert!(world.engine.covering(source).is_empty());
        assert_eq!(world.run(&plain).reason, Reason::NoRule);
        assert_eq!(world.run(&mapped).reason, Reason::NoRule);
    });
}
