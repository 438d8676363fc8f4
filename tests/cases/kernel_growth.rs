//! Tables that cannot grow. One test, because a process has its limits for all of its threads.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "kernel_support/mod.rs"]
mod kernel_support;
#[path = "kernel_support/lab.rs"]
mod lab;

use std::{collections::BTreeMap, net::Ipv4Addr, os::fd::AsRawFd};

use mc_proxy::{
    config::{self, OnExit, Scope, XdpMode},
    control::moment,
    firewall::{Engine, EngineConfig, EngineError, Rule, RuleChange},
    xdp::{self, Dataplane, Parameters},
};
use mc_proxy_common::{frames, rate::RateLimit};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::lab::INTERFACE;

const XDP_DROP: u32 = 1;
/// More than the tables of an empty firewall hold.
const MANY: u32 = 30_000;
/// Descriptors that a generation takes, at most.
const DESCRIPTORS_MAX: u64 = 64;

fn block(address: Ipv4Addr) -> Rule {
    Rule::block(address.to_string().parse().unwrap())
}

/// Leaves so many numbers for descriptors, from the first free one on; some may be taken.
fn leave(descriptors: u64) {
    let free = std::fs::File::open("/dev/null").unwrap().as_raw_fd().unsigned_abs();
    let current = Some(u64::from(free) + descriptors);
    setrlimit(Resource::Nofile, Rlimit { current, ..getrlimit(Resource::Nofile) }).unwrap();
}

#[test]
fn nothing_changes_when_the_tables_cannot_grow() {
    lab::run(|lab| {
        let config = config::Xdp {
            interfaces: vec![INTERFACE.to_owned()],
            mode: XdpMode::Auto,
            required: true,
            require_native: false,
            scope: Scope::Host,
            on_exit: OnExit::Keep,
            pin_path: lab.pin_path(),
        };
        let parameters = Parameters { ports: BTreeMap::new(), rate: RateLimit::OFF, seed: 42 };
        let mut plane = xdp::open(&config, parameters).unwrap();
        let kept = Ipv4Addr::new(198, 51, 100, 7);
        let config = EngineConfig { is_host_scope: true, ..EngineConfig::default() };
        let mut engine = Engine::new([block(kept)], [], config, &mut *plane, moment()).unwrap();
        let new = Ipv4Addr::new(10, 0, 117, 47);
        let is_dropped = |plane: &dyn Dataplane, source| {
            let frame = frames::ethernet(&[], 0x0800, &frames::ipv4(source, 17, 0, 0, &frames::udp(53)));
            plane.test_run(&frame).unwrap().action == XDP_DROP
        };
        assert!(is_dropped(&*plane, kept) && !is_dropped(&*plane, new));

        let usual = getrlimit(Resource::Nofile);
        let (memory, stats, program) = (engine.memory(), engine.stats(), plane.status().interfaces[0].program_id);
        let addresses = (0..MANY).map(|n| Ipv4Addr::from_bits(0x0a00_0000 + n));
        let mut changes: Vec<RuleChange> = addresses.map(|address| RuleChange::Put(block(address))).collect();
        changes.push(RuleChange::Remove(block(kept).key));
        let mut failures = 0;
        for descriptors in 0..DESCRIPTORS_MAX {
            leave(descriptors);
            let result = engine.apply(&changes, moment(), &mut *plane);
            setrlimit(Resource::Nofile, usual).unwrap();
            match result {
                Ok(_) => break,
                Err(EngineError::Prepare(_) | EngineError::Commit(_)) => failures = descriptors + 1,
                Err(error) => panic!("{error}"),
            }
            assert!(std::sync::Arc::ptr_eq(&memory, &engine.memory()));
            let after = engine.stats();
            assert_eq!((after.rules, after.sizes, after.generation), (stats.rules, stats.sizes, stats.generation));
            let rules: Vec<Rule> = engine.book().rules().collect();
            assert_eq!(rules, [block(kept)]);
            assert!(is_dropped(&*plane, kept) && !is_dropped(&*plane, new), "with {descriptors} descriptors");
            assert_eq!(plane.status().interfaces[0].program_id, program);
            // What needs no larger tables is done as ever.
            engine.apply(&[RuleChange::Put(block(new))], moment(), &mut *plane).unwrap();
            assert!(is_dropped(&*plane, new));
            engine.apply(&[RuleChange::Remove(block(new).key)], moment(), &mut *plane).unwrap();
        }
        println!("a generation takes {failures} descriptors");
        assert!(failures > 0 && failures < DESCRIPTORS_MAX, "{failures}");
        assert!(!is_dropped(&*plane, kept) && is_dropped(&*plane, new));
        assert_eq!(engine.stats().rules, u64::from(MANY));
    });
}
