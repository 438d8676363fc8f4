//! The measurements: a flood that is blocked, one that is not, the program alone, and one more rule.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::super::cpu::{Participants, Snapshot, Usage};
use super::super::interrupt::Interrupt;
use super::super::process::Process;
use super::super::record::Machine;
use super::jobs::{Job, finish};
use super::object::{self, Packets, Program, Timing};
use super::stream::{Seen, now_ns};
use super::subject::{Installed, PINS, Place, Subject};
use super::table::Table;
use super::wire::{CALLERS, Counted, GENERATOR_DEVICE, Wire};
use xtask::cargo;

/// Until a generator's first packets are through.
const WARM_UP: Duration = Duration::from_millis(700);
/// Runs of a program for one timing, five of which are made.
const REPEAT: u32 = 1_000_000;
const STREAM_SECS: f64 = 2.5;
const STREAM_RATE: u32 = 20_000;
/// When the rule is asked for, after the stream's start.
const STREAM_LEAD: Duration = Duration::from_millis(500);
/// A packet in a thousand that gets in although it is blocked, or the other way round, is worth a remark.
const WRONG_PCT: f64 = 0.1;

/// What is measured of a subject with a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Part {
    /// Packets of random blocked sources.
    Flood,
    /// Packets of random sources that nothing blocks.
    Pass,
    /// The program alone, by BPF_PROG_TEST_RUN.
    Time,
    /// One more rule on top.
    Act,
}

impl Part {
    pub(super) const ALL: [Self; 4] = [Self::Flood, Self::Pass, Self::Time, Self::Act];

    /// About how long it takes with floods of `secs`.
    pub(super) fn expected_secs(self, secs: f64) -> f64 {
        match self {
            Self::Flood => 2.0 * (secs + 1.5),
            Self::Pass => secs + 1.5,
            Self::Time => 3.0,
            Self::Act => 2.0 * STREAM_SECS,
        }
    }
}

type Metrics = BTreeMap<String, f64>;

/// The wire, and what stays the same for all subjects. Fields are dropped in order.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    /// Drops all answers in the generator's driver.
    sink: Option<Process>,
    listener: Process,
    wire: Wire,
    interrupt: &'a Interrupt,
    machine: Machine,
    dir: &'a Path,
    object: PathBuf,
    window: Duration,
}

/// What a flood was.
#[derive(Debug)]
struct Flood {
    /// Packets a second.
    rate: f64,
    passed_pct: f64,
    usage: Usage,
}

impl Flood {
    /// CPU time by packet, in ns, of something that took `secs` of the window in which the clocks were watched.
    fn ns_each(&self, secs: f64) -> f64 {
        1e9 * secs / self.usage.secs / self.rate
    }
}

impl<'a> Stage<'a> {
    pub(super) fn set_up(
        interrupt: &'a Interrupt,
        machine: Machine,
        dir: &'a Path,
        window: Duration,
    ) -> anyhow::Result<Self> {
        let object = object::compile(dir).context("building the benchmark's XDP programs")?;
        let wire = Wire::create()?;
        let listen = Job::Listen { port: Subject::Nothing.port(), ready: dir.join("listening") };
        let listener = listen.start(wire.receiver(), machine.proxy_cpu, interrupt)?;
        Ok(Self { sink: None, listener, wire, interrupt, machine, dir, object, window })
    }

    /// Installs a subject and measures `parts` of it; what was measured is kept when a later part fails. Returns remarks.
    pub(super) fn measure(
        &mut self,
        subject: Subject,
        tables: &[Table],
        sources: Table,
        parts: &[Part],
        metrics: &mut Metrics,
    ) -> anyhow::Result<Vec<String>> {
        let packets = self.packets(subject, sources, true);
        let place = Place {
            interrupt: self.interrupt,
            machine: &self.machine,
            wire: &self.wire,
            dir: self.dir,
            object: &self.object,
            release_dir: &cargo::target().join("release"),
        };
        let installed = Installed::new(subject, tables, &packets, &place)?;
        metrics.extend(installed.metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)));
        let mut remarks = Vec::new();
        for part in parts {
            match part {
                Part::Flood => remarks.extend(self.blocked(subject, sources, metrics)?),
                Part::Pass => remarks.extend(self.passing(subject, sources, metrics)?),
                Part::Time => remarks.extend(self.time(subject, tables, sources, metrics)?),
                Part::Act => remarks.extend(self.act(&installed, sources, metrics)?),
            }
        }
        Ok(remarks)
    }

    fn packets(&self, subject: Subject, table: Table, is_blocked: bool) -> Packets {
        Packets {
            table,
            is_blocked,
            from: self.wire.generator_mac,
            to: self.wire.receiver_mac,
            listener: SocketAddr::new(Wire::receiver_ip(table.shape.is_ipv6), subject.port()),
        }
    }

    fn blocked(&mut self, subject: Subject, sources: Table, metrics: &mut Metrics) -> anyhow::Result<Option<String>> {
        let packets = self.packets(subject, sources, true);
        let one = self.flood(&packets, false)?;
        let own = self.flood(&packets, true)?;
        let passed_pct = one.passed_pct;
        let percent = |secs: f64| 100.0 * secs / one.usage.secs;
        metrics.extend(
            [
                ("one_mpps", one.rate / 1e6),
                // Generator and receiver take turns on one CPU: what making, passing and dropping a packet costs.
                ("one_ns", one.ns_each(one.usage.total())),
                ("own_mpps", own.rate / 1e6),
                ("own_ns", own.ns_each(own.usage.proxy)),
                ("own_cpu_pct", 100.0 * own.usage.proxy / own.usage.secs),
                ("passed_pct", passed_pct),
                ("foreign_pct", percent(one.usage.foreign)),
                ("steal_pct", percent(one.usage.steal)),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let is_leaking = passed_pct > WRONG_PCT && !subject.lets_all_in();
        Ok(is_leaking.then(|| format!("{passed_pct:.2} % of blocked packets got in")))
    }

    fn passing(&mut self, subject: Subject, sources: Table, metrics: &mut Metrics) -> anyhow::Result<Option<String>> {
        let one = self.flood(&self.packets(subject, sources, false), false)?;
        let passed_pct = one.passed_pct;
        metrics.insert("pass_mpps".to_owned(), one.rate / 1e6);
        metrics.insert("pass_ns".to_owned(), one.ns_each(one.usage.total()));
        metrics.insert("pass_passed_pct".to_owned(), passed_pct);
        // A flood fills the receiver's backlog, and what does not fit is lost there.
        let is_dropping = passed_pct < 50.0 && subject != Subject::Control("drop");
        Ok(is_dropping.then(|| format!("only {passed_pct:.1} % of packets that nothing blocks got in")))
    }

    /// Sends packets for a window. The receiver polls on the generator's CPU, or on its own.
    fn flood(&mut self, packets: &Packets, has_own_cpu: bool) -> anyhow::Result<Flood> {
        self.sink_on()?;
        let thread = self.wire.poll_on(has_own_cpu.then_some(self.machine.proxy_cpu))?;
        let outcome = self.watch(packets, thread);
        self.wire.poll_on(None)?;
        outcome
    }

    fn watch(&self, packets: &Packets, thread: Option<i32>) -> anyhow::Result<Flood> {
        let log = self.dir.join("generator.log");
        let (object, packets) = (self.object.clone(), packets.clone());
        let job = Job::Generate { object, packets, interface: GENERATOR_DEVICE.to_owned() };
        let mut generator = job.launch(self.wire.generator(), self.machine.load_cpu)?.log_to(&log)?.start()?;
        self.interrupt.pause(WARM_UP)?;
        let participants = Participants { proxy: thread.into_iter().collect(), load: vec![generator.pid()] };
        let start = Snapshot::take(&participants)?;
        // Looking at all clocks takes a while: packets are counted by their own.
        let from = Counted::now(self.listener.pid())?;
        self.interrupt.pause(self.window)?;
        let to = Counted::now(self.listener.pid())?;
        let usage = start.until(&Snapshot::take(&participants)?);
        let has_ended = generator.is_over()?;
        ensure!(!has_ended, "the generator: {}", std::fs::read_to_string(&log).unwrap_or_default().trim());
        let received = (to.received - from.received) as f64;
        ensure!(received > 0.0, "no packet was received");
        let passed_pct = 100.0 * (to.passed - from.passed) as f64 / received;
        Ok(Flood { rate: received / to.at.duration_since(from.at).as_secs_f64(), passed_pct, usage })
    }

    fn time(
        &self,
        subject: Subject,
        tables: &[Table],
        sources: Table,
        metrics: &mut Metrics,
    ) -> anyhow::Result<Option<String>> {
        let Some(id) = self.wire.program()? else { return Ok(None) };
        let mut wrong = None;
        for is_blocked in [true, false] {
            // Without a table nothing is blocked.
            if is_blocked && tables.is_empty() {
                continue;
            }
            let packets = self.packets(subject, sources, is_blocked);
            let job = Job::Time { object: self.object.clone(), id, packets, repeat: REPEAT };
            let (cpu, log) = (self.machine.proxy_cpu, self.dir.join("time.log"));
            let timing: Timing = job.result(self.wire.receiver(), cpu, self.interrupt, &log)?;
            let (hot, cold) = if is_blocked { ("hot_ns", "cold_ns") } else { ("hot_pass_ns", "cold_pass_ns") };
            metrics.insert(hot.to_owned(), timing.hot_ns);
            metrics.extend(timing.cold_ns.map(|ns| (cold.to_owned(), ns)));
            if timing.is_dropped != is_blocked && subject != Subject::Control("drop") {
                wrong = Some(format!("the program {} the packet", if is_blocked { "passed" } else { "dropped" }));
            }
        }
        Ok(wrong)
    }

    /// One more rule by a command, as an operator's or fail2ban's; and, of the daemon, by a client that is connected.
    fn act(&mut self, installed: &Installed, sources: Table, metrics: &mut Metrics) -> anyhow::Result<Option<String>> {
        if installed.subject.is_control() || sources.shape.is_ipv6 {
            return Ok(None);
        }
        self.sink = None;
        let [by_command, by_client] = CALLERS;
        let remark =
            self.stop(installed.subject, by_command, ["command_ms", "effect_ms"], metrics, |ip| installed.add(ip))?;
        let Some(mut client) = installed.client()? else { return Ok(remark) };
        let names = ["rpc_ms", "rpc_effect_ms"];
        Ok(remark.or(self.stop(installed.subject, by_client, names, metrics, |ip| client.block(ip))?))
    }

    /// How long after a rule was asked for the asking was over, and the last packet of its source got in.
    fn stop(
        &self,
        subject: Subject,
        from: Ipv4Addr,
        [asking, effect]: [&str; 2],
        metrics: &mut Metrics,
        ask: impl FnOnce(IpAddr) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<String>> {
        let IpAddr::V4(ip) = Wire::receiver_ip(false) else { return Ok(None) };
        let to = SocketAddrV4::new(ip, subject.port());
        let job = Job::Stream { from, to, a_second: STREAM_RATE, secs: STREAM_SECS };
        let log = self.dir.join("stream.log");
        let launch = job.launch(self.wire.generator(), self.machine.load_cpu)?;
        let mut stream = launch.log_to(&log)?.keep_output().start()?;
        self.interrupt.pause(STREAM_LEAD)?;
        let asked_ns = now_ns();
        ask(from.into())?;
        metrics.insert(asking.to_owned(), (now_ns() - asked_ns) as f64 / 1e6);
        let seen: Seen = finish(&mut stream, self.interrupt, &log)?;
        ensure!(seen.answered > 0, "not one of {} packets was answered", seen.sent);
        let effect_ms = (seen.last_ns as f64 - asked_ns as f64) / 1e6;
        metrics.insert(effect.to_owned(), effect_ms);
        let has_no_effect = effect_ms > 1e3 * (STREAM_SECS - STREAM_LEAD.as_secs_f64()) - 100.0;
        Ok(has_no_effect.then(|| "one more rule had no effect on a stream".to_owned()))
    }

    fn sink_on(&mut self) -> anyhow::Result<()> {
        if self.sink.is_none() {
            let sources =
                Table { shape: super::Shape { is_ipv6: false, is_prefixes: false, is_spread: false }, count: 1 };
            let job = Job::Attach {
                program: Program {
                    object: self.object.clone(),
                    name: "drop".to_owned(),
                    fill: None,
                    pins: PINS.into(),
                },
                packets: self.packets(Subject::Nothing, sources, true),
                interface: GENERATOR_DEVICE.to_owned(),
                ready: self.dir.join("sink"),
            };
            self.sink = Some(job.start(self.wire.generator(), self.machine.load_cpu, self.interrupt)?);
        }
        Ok(())
    }
}
