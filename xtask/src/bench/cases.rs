//! The measurements: what each case makes a client do, and which figures come of it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Resource;

use super::interrupt::Interrupted;
use super::load::Direction;
use super::peers::DIRECT;
use super::record::{Document, Figure, Metrics, Record};
use super::stage::{Running, Stage, Window};
use super::stats::{number, shuffled};

/// Bytes of the answer to a short connection.
const ANSWER_BYTES: &str = "64";
const IDLE_CONNECTIONS: u64 = 4000;
const SETTLE: Duration = Duration::from_millis(500);

/// One measurement that every peer goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Relay {
        direction: Direction,
        connections: u32,
    },
    Rate {
        clients: u32,
    },
    Ping {
        connections: u32,
        /// The proxy runs on the load's CPU, so that no wake-up crosses CPUs.
        shares_cpu: bool,
    },
    Idle,
}

/// The cases of a figure.
pub(super) fn cases(figure: Figure) -> Vec<Case> {
    match figure {
        Figure::Relay => [1, 64]
            .into_iter()
            .flat_map(|connections| {
                [Direction::Up, Direction::Down].map(|direction| Case::Relay { direction, connections })
            })
            .collect(),
        Figure::Rate => [1, 32].map(|clients| Case::Rate { clients }).into(),
        Figure::Ping => [(1, false), (1, true), (32, false)]
            .map(|(connections, shares_cpu)| Case::Ping { connections, shares_cpu })
            .into(),
        Figure::Idle => vec![Case::Idle],
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Relay { direction: Direction::Up, connections } => write!(f, "up, {connections} conn"),
            Self::Relay { direction: Direction::Down, connections } => write!(f, "down, {connections} conn"),
            Self::Rate { clients: 1 } => f.write_str("1 client"),
            Self::Rate { clients } => write!(f, "{clients} clients"),
            Self::Ping { connections, shares_cpu: false } => write!(f, "{connections} conn"),
            Self::Ping { connections, shares_cpu: true } => write!(f, "{connections} conn, one CPU"),
            Self::Idle => f.write_str("idle connections"),
        }
    }
}

/// Measures every peer of a stage once, in an order of this round and case, and keeps what comes of it.
pub(super) fn measure_all(
    stage: &Stage<'_>,
    (figure, case): (Figure, Case),
    round: u32,
    document: &mut Document,
) -> anyhow::Result<()> {
    let layout = stage.topology.layout;
    let mut found: BTreeMap<&'static str, Metrics> = BTreeMap::new();
    // Seeds differ between cases too: position 1 in relay need not be position 1 in rate.
    let seed = u64::from(round) << 32 | case.to_string().bytes().map(u64::from).sum::<u64>();
    for peer in shuffled(&stage.running, seed) {
        match measure(stage, peer, case) {
            Ok(metrics) => {
                println!("  round {} {layout} {figure} {case}: {} {}", round + 1, peer.name, brief(&metrics));
                found.insert(peer.name, metrics);
            }
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => document.note(format!("{} failed {layout} {figure} {case}: {error:#}", peer.name)),
        }
    }
    add_latency_over_direct(&mut found);
    document.records.extend(found.into_iter().map(|(peer, metrics)| Record {
        figure,
        layout,
        case: case.to_string(),
        peer,
        round,
        metrics,
    }));
    document.save()
}

fn measure(stage: &Stage<'_>, peer: &Running, case: Case) -> anyhow::Result<Metrics> {
    match case {
        Case::Relay { direction, connections } => relay(stage, peer, direction, connections),
        Case::Rate { clients } => rate(stage, peer, clients),
        Case::Ping { connections, shares_cpu } => {
            let machine = &stage.setting.machine;
            peer.pin(if shares_cpu { machine.load_cpu } else { machine.proxy_cpu })?;
            let metrics = ping(stage, peer, connections);
            peer.pin(machine.proxy_cpu)?;
            metrics
        }
        Case::Idle => idle(stage, peer),
    }
}

fn relay(stage: &Stage<'_>, peer: &Running, direction: Direction, connections: u32) -> anyhow::Result<Metrics> {
    let way = if direction == Direction::Up { "up" } else { "down" };
    let window = stage.load(peer, &["stream", "--direction", way, "--connections", &connections.to_string()])?;
    let received = if direction == Direction::Up { window.backend } else { window.client }.bytes_received;
    ensure!(received > 0, "no bytes passed");
    let gb = received as f64 / 1e9;
    let usage = &window.usage;
    let mut metrics = common(&window);
    metrics.insert("gbit_s", gb * 8.0 / usage.secs);
    metrics.insert("total_cpu_s_per_gb", usage.total() / gb);
    if peer.process.is_some() {
        metrics.insert("proxy_cpu_s_per_gb", usage.proxy / gb);
    }
    Ok(metrics)
}

fn rate(stage: &Stage<'_>, peer: &Running, clients: u32) -> anyhow::Result<Metrics> {
    let window = stage.load(peer, &["rate", "--size", ANSWER_BYTES, "--connections", &clients.to_string()])?;
    each(peer, &window, ["conn_s", "total_us_per_conn", "proxy_us_per_conn"])
}

fn ping(stage: &Stage<'_>, peer: &Running, connections: u32) -> anyhow::Result<Metrics> {
    let window = stage.load(peer, &["ping", "--size", "1", "--connections", &connections.to_string()])?;
    each(peer, &window, ["trips_s", "total_us_per_trip", "proxy_us_per_trip"])
}

/// Figures of what was done one by one: a second, CPU in µs of all and of the proxy, latencies.
fn each(peer: &Running, window: &Window, [a_second, total_us, proxy_us]: [&'static str; 3]) -> anyhow::Result<Metrics> {
    ensure!(window.client.done > 0, "nothing was done: {:?}", window.client);
    let latencies = window.latencies.context("no latencies")?;
    let done = window.client.done as f64;
    let mut metrics = common(window);
    metrics.insert(a_second, done / window.usage.secs);
    metrics.insert(total_us, 1e6 * window.usage.total() / done);
    if peer.process.is_some() {
        metrics.insert(proxy_us, 1e6 * window.usage.proxy / done);
    }
    metrics.insert("p50_us", latencies.p50_us);
    metrics.insert("p99_us", latencies.p99_us);
    metrics.insert("p999_us", latencies.p999_us);
    Ok(metrics)
}

/// Opens idle connections through a proxy that has done nothing else, and looks at what grew.
fn idle(stage: &Stage<'_>, peer: &Running) -> anyhow::Result<Metrics> {
    // Two descriptors each in the proxy.
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let connections = IDLE_CONNECTIONS.min(limit.saturating_sub(500) / 2);
    let interrupt = stage.setting.interrupt;
    interrupt.pause(SETTLE)?;
    let (rss_before, slab_before) = (rss_kb(&peer.pids()?)?, slab_kb()?);
    stage.hold(peer, &["idle", "--connections", &connections.to_string()], |counters| {
        interrupt.pause(SETTLE)?;
        let (rss, slab) = (rss_kb(&peer.pids()?)?, slab_kb()?);
        ensure!(counters.open > 0, "no connection was opened: {counters:?}");
        let open = counters.open as f64;
        let mut metrics = Metrics::from([("open", open), ("errors", counters.errors as f64)]);
        metrics.insert("slab_kb_per_conn", (slab - slab_before) / open);
        if peer.process.is_some() {
            metrics.insert("rss_kb_per_conn", (rss - rss_before) / open);
            metrics.insert("base_rss_mb", rss_before / 1024.0);
        }
        Ok(metrics)
    })
}

fn common(window: &Window) -> Metrics {
    let usage = &window.usage;
    let percent = |secs: f64| 100.0 * secs / usage.secs;
    Metrics::from([
        ("errors", window.client.errors as f64),
        ("proxy_cpu_pct", percent(usage.proxy)),
        ("load_cpu_pct", percent(usage.load)),
        ("busy_pct", percent(usage.busy)),
        ("foreign_pct", percent(usage.foreign)),
        ("steal_pct", percent(usage.steal)),
    ])
}

/// What a proxy adds to the median round trip of the same round.
fn add_latency_over_direct(found: &mut BTreeMap<&'static str, Metrics>) {
    let Some(direct) = found.get(DIRECT).and_then(|metrics| metrics.get("p50_us")).copied() else { return };
    for (_, metrics) in found.iter_mut().filter(|(peer, _)| **peer != DIRECT) {
        if let Some(p50) = metrics.get("p50_us").copied() {
            metrics.insert("added_p50_us", p50 - direct);
        }
    }
}

fn brief(metrics: &Metrics) -> String {
    let shown = ["gbit_s", "conn_s", "trips_s", "p50_us", "total_cpu_s_per_gb", "total_us_per_conn", "rss_kb_per_conn"];
    let each = shown.iter().filter_map(|name| Some(format!("{name}={}", number(*metrics.get(name)?))));
    each.collect::<Vec<_>>().join(" ")
}

fn rss_kb(pids: &[i32]) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for pid in pids {
        // A process that has ended holds no memory.
        let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        sum += kb_of(&rollup, "Rss:").context("smaps_rollup has no Rss")?;
    }
    Ok(sum)
}

fn slab_kb() -> anyhow::Result<f64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    kb_of(&meminfo, "Slab:").context("/proc/meminfo has no Slab")
}

fn kb_of(text: &str, field: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_its_own_name() {
        for figure in [Figure::Relay, Figure::Rate, Figure::Ping, Figure::Idle] {
            let names: Vec<String> = cases(figure).iter().map(Case::to_string).collect();
            let distinct: std::collections::HashSet<&String> = names.iter().collect();
            assert_eq!(distinct.len(), names.len(), "{names:?}");
            assert!(!names.is_empty());
        }
    }

    #[test]
    fn added_latency_is_against_direct() {
        let mut found = BTreeMap::from([
            (DIRECT, Metrics::from([("p50_us", 10.0)])),
            ("nginx", Metrics::from([("p50_us", 35.0)])),
            ("broken", Metrics::new()),
        ]);
        add_latency_over_direct(&mut found);
        assert_eq!(found["nginx"]["added_p50_us"], 25.0);
        assert!(!found[DIRECT].contains_key("added_p50_us") && found["broken"].is_empty());
    }

    #[test]
    fn kilobytes_are_found_by_field() {
        let text = "00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss:                1234 kB\nPss:  1 kB\n";
        assert_eq!(kb_of(text, "Rss:"), Some(1234.0));
        assert_eq!(kb_of(text, "Slab:"), None);
    }
}
