//! The engine over the kernel plane, and the same tables read by this process.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
    time::{SystemTime, UNIX_EPOCH},
};

use aya::maps::{Map, MapData, PerCpuArray};
use mc_proxy::{
    clock,
    config::{self, OnExit, XdpMode},
    firewall::{Action, Engine, EngineConfig, Moment, Reading, Rule, TableMemory},
    xdp::{self, Dataplane, Parameters},
};
use mc_proxy_common::{
    maps::{Counter, PortFlags, Scope},
    rate::RateLimit,
    reason::Reason,
    source::Source,
    table::{ClauseWords, Geometry, Line, Tables},
    verdict::{Host, judge_packet},
};

use crate::{
    PORTS,
    lab::{INTERFACE, Lab},
    puts, removals,
};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const BANS_MAX: usize = 64;
/// Rules are put as if it were so much earlier: some of them have expired when the first frame comes.
const EARLIER_SECONDS: u64 = 100;

pub(crate) struct Bench {
    plane: Box<dyn Dataplane>,
    engine: Engine,
    counters: PerCpuArray<MapData, Counter>,
    scope: Scope,
}

/// A block of an address for good.
pub(crate) fn rule(source: IpAddr) -> Rule {
    Rule::permanent(Action::Block, source.to_string().parse().unwrap()).unwrap()
}

impl Bench {
    pub(crate) fn new(lab: &Lab, scope: Scope) -> Self {
        let config = config::Xdp {
            interfaces: vec![INTERFACE.to_owned()],
            mode: XdpMode::Auto,
            required: true,
            require_native: false,
            scope: if scope == Scope::Host { config::Scope::Host } else { config::Scope::Listeners },
            on_exit: OnExit::Keep,
            pin_path: lab.pin_path(),
        };
        let ports = PORTS.into_iter().map(|port| (port, false)).collect::<BTreeMap<_, _>>();
        let mut plane = xdp::open(&config, Parameters { ports, rate: RateLimit::OFF, seed: 42 }).unwrap();
        let is_host_scope = scope == Scope::Host;
        let config = EngineConfig { is_host_scope, bans_max: BANS_MAX, ..EngineConfig::default() };
        let engine = Engine::new([], [], config, &mut *plane, moment(0)).unwrap();
        let counters = MapData::from_pin(lab.pin_path().join("maps/COUNTERS")).unwrap();
        let counters = PerCpuArray::try_from(Map::PerCpuArray(counters)).unwrap();
        Self { plane, engine, counters, scope }
    }

    pub(crate) fn put(&mut self, rules: &[Rule]) {
        self.engine.apply(&puts(rules), moment(EARLIER_SECONDS), &mut *self.plane).unwrap();
    }

    pub(crate) fn remove(&mut self, rules: &[Rule]) {
        self.engine.apply(&removals(rules), moment(EARLIER_SECONDS), &mut *self.plane).unwrap();
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn wall(&self) -> u64 {
        moment(0).wall
    }

    /// What the program counted, which is what it decided; the action is checked against it.
    pub(crate) fn run(&self, frame: &[u8]) -> Reason {
        let before = self.counters();
        let action = self.plane.test_run(frame).unwrap().action;
        let after = self.counters();
        let risen = |reason: &Reason| {
            let (before, after) = (before[reason.index() as usize], after[reason.index() as usize]);
            after.packets > before.packets && after.bytes >= before.bytes + frame.len() as u64
        };
        let counted: Vec<_> = Reason::ALL.into_iter().filter(risen).collect();
        let [reason] = counted[..] else {
            // Frames of the interface itself, such as a router's solicitation, are counted too: once more.
            assert!(!counted.is_empty(), "a frame was not counted");
            return self.run(frame);
        };
        assert_eq!(action, if reason.is_drop() { XDP_DROP } else { XDP_PASS }, "{reason:?}");
        reason
    }

    fn counters(&self) -> Vec<Counter> {
        let count = |reason: Reason| {
            let cpus = self.counters.get(&reason.index(), 0).unwrap();
            let sum = |field: fn(&Counter) -> u64| cpus.iter().map(field).sum();
            Counter { packets: sum(|cpu| cpu.packets), bytes: sum(|cpu| cpu.bytes) }
        };
        Reason::ALL.into_iter().map(count).collect()
    }

    /// What the verdict says on the host, of the tables that the kernel reads.
    pub(crate) fn ask(&self, frame: &[u8]) -> Reason {
        let memory: Arc<TableMemory> = self.engine.memory();
        let asked = Asked { tables: memory.reading(), scope: self.scope, now: clock::since_boot() };
        Reason::from_index(judge_packet(&asked, || frame).reason).unwrap()
    }
}

fn moment(earlier_seconds: u64) -> Moment {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    Moment {
        boot: clock::since_boot().checked_sub(earlier_seconds * 1_000_000_000).unwrap(),
        wall: wall - earlier_seconds * 1_000,
    }
}

struct Asked<'a> {
    tables: Reading<'a>,
    scope: Scope,
    now: u64,
}

impl Host for Asked<'_> {
    fn scope(&self) -> Scope {
        self.scope
    }

    fn port(&self, port: u16) -> PortFlags {
        if PORTS.contains(&port) { PortFlags::LISTENER } else { PortFlags::NONE }
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn would_drop(&self, _group: u32) {}

    fn limits(&self) -> bool {
        false
    }

    fn admit(&self, _source: Source) -> bool {
        true
    }
}

impl Tables for Asked<'_> {
    fn tree4(&self, index: u32) -> Option<&AtomicU64> {
        self.tables.tree4(index)
    }

    fn tree6(&self, index: u32) -> Option<&AtomicU64> {
        self.tables.tree6(index)
    }

    fn node(&self, index: u32) -> Option<&AtomicU64> {
        self.tables.node(index)
    }

    fn line4(&self, index: u32) -> Option<&Line> {
        self.tables.line4(index)
    }

    fn line6(&self, index: u32) -> Option<&Line> {
        self.tables.line6(index)
    }

    fn line_long6(&self, index: u32) -> Option<&Line> {
        self.tables.line_long6(index)
    }

    fn clause(&self, id: u32) -> Option<&ClauseWords> {
        self.tables.clause(id)
    }

    fn geometry(&self) -> Geometry {
        self.tables.geometry()
    }
}
