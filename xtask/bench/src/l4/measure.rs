//! What each case makes a client do, and which figures come of it.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};

use super::super::interrupt::Interrupted;
use super::super::load::Mix;
use super::super::record::Metrics;
use super::super::stats::{number, shuffled};
use super::cases::{Case, way};
use super::memory::{idle, stalled};
use super::peers::DIRECT;
use super::record::{Document, Figure, Record};
use super::stage::{Running, Stage, Window};

/// Bytes of the answer to a short connection.
const ANSWER_BYTES: &str = "64";
/// What is also told as more than `direct` has in the same round, and under which name.
const OVER_DIRECT: [(&str, &str); 7] = [
    ("p50_us", "added_p50_us"),
    ("p99_us", "added_p99_us"),
    ("p999_us", "added_p999_us"),
    ("total_us_per_trip", "added_us_per_trip"),
    ("total_us_per_conn", "added_us_per_conn"),
    ("kernel_bytes_per_conn", "added_kernel_bytes_per_conn"),
    ("grew_mib_per_pair", "added_mib_per_pair"),
];

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
    add_over_direct(&mut found);
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
        Case::Relay { direction, connections } => {
            let role = ["stream", "--direction", way(direction), "--connections", &connections.to_string()];
            let window = stage.load(peer, &role)?;
            let mut metrics = common(stage, peer, &window, false);
            add_bulk(&mut metrics, peer, &window)?;
            Ok(metrics)
        }
        Case::Rate { clients } => {
            let role = ["rate", "--size", ANSWER_BYTES, "--connections", &clients.to_string()];
            let window = stage.load(peer, &role)?;
            let mut metrics = common(stage, peer, &window, false);
            add_each(&mut metrics, peer, &window, ["conn_s", "total_us_per_conn", "proxy_us_per_conn"])?;
            Ok(metrics)
        }
        Case::Ping { connections, shares_cpu } => {
            let machine = &stage.setting.machine;
            peer.pin(if shares_cpu { machine.load_cpu } else { machine.proxy_cpu })?;
            let window = stage.load(peer, &["ping", "--size", "1", "--connections", &connections.to_string()]);
            peer.pin(machine.proxy_cpu)?;
            let window = window?;
            let mut metrics = common(stage, peer, &window, shares_cpu);
            add_each(&mut metrics, peer, &window, ["trips_s", "total_us_per_trip", "proxy_us_per_trip"])?;
            Ok(metrics)
        }
        Case::Mixed { mix, connections } => {
            let mix = if mix == Mix::Phases { "phases" } else { "beside" };
            let window = stage.load(peer, &["mixed", "--mix", mix, "--connections", &connections.to_string()])?;
            let mut metrics = common(stage, peer, &window, false);
            add_bulk(&mut metrics, peer, &window)?;
            // CPU is told by the byte only: chats and bursts share it.
            metrics.insert("trips_s", window.client.done as f64 / window.usage.secs);
            add_latencies(&mut metrics, &window)?;
            Ok(metrics)
        }
        Case::Idle => idle(stage, peer),
        Case::Stalled { direction, before } => stalled(stage, peer, direction, before),
    }
}

/// Bytes that arrived at either end, and CPU by the byte.
fn add_bulk(metrics: &mut Metrics, peer: &Running, window: &Window) -> anyhow::Result<()> {
    let received = window.backend.bytes_received + window.client.bytes_received;
    ensure!(received > 0, "no bytes passed");
    let gb = received as f64 / 1e9;
    let usage = &window.usage;
    metrics.insert("gbit_s", gb * 8.0 / usage.secs);
    metrics.insert("total_cpu_s_per_gb", usage.total() / gb);
    metrics.insert("machine_cpu_s_per_gb", usage.busy / gb);
    if peer.process.is_some() {
        metrics.insert("proxy_cpu_s_per_gb", usage.proxy / gb);
    }
    Ok(())
}

/// Figures of what was done one by one: a second, CPU in µs of all and of the proxy, latencies.
fn add_each(
    metrics: &mut Metrics,
    peer: &Running,
    window: &Window,
    [a_second, total_us, proxy_us]: [&'static str; 3],
) -> anyhow::Result<()> {
    ensure!(window.client.done > 0, "nothing was done: {:?}", window.client);
    let done = window.client.done as f64;
    metrics.insert(a_second, done / window.usage.secs);
    metrics.insert(total_us, 1e6 * window.usage.total() / done);
    if peer.process.is_some() {
        metrics.insert(proxy_us, 1e6 * window.usage.proxy / done);
    }
    add_latencies(metrics, window)
}

fn add_latencies(metrics: &mut Metrics, window: &Window) -> anyhow::Result<()> {
    let latencies = window.latencies.context("no latencies")?;
    ensure!(latencies.done > 0, "nothing was done in the window");
    metrics.insert("p50_us", latencies.p50_us);
    metrics.insert("p99_us", latencies.p99_us);
    metrics.insert("p999_us", latencies.p999_us);
    Ok(())
}

fn common(stage: &Stage<'_>, peer: &Running, window: &Window, shares_cpu: bool) -> Metrics {
    // Where the proxy has no CPU of its own, one figure says all.
    let is_apart = peer.process.is_some() && !shares_cpu;
    let mut metrics = window.usage.shares(&stage.setting.machine, is_apart);
    metrics.insert("errors", window.client.errors as f64);
    metrics
}

/// What a proxy adds to the figures of `direct` in the same round.
fn add_over_direct(found: &mut BTreeMap<&'static str, Metrics>) {
    let Some(direct) = found.get(DIRECT).cloned() else { return };
    for (_, metrics) in found.iter_mut().filter(|(peer, _)| **peer != DIRECT) {
        for (metric, added) in OVER_DIRECT {
            if let (Some(value), Some(base)) = (metrics.get(metric).copied(), direct.get(metric)) {
                metrics.insert(added, value - base);
            }
        }
    }
}

fn brief(metrics: &Metrics) -> String {
    let shown = [
        "gbit_s",
        "conn_s",
        "trips_s",
        "p50_us",
        "total_cpu_s_per_gb",
        "total_us_per_conn",
        "total_us_per_trip",
        "rss_bytes_per_conn",
        "kernel_bytes_per_conn",
        "grew_mib_per_pair",
        "taken_mib_per_pair",
    ];
    let each = shown.iter().filter_map(|name| Some(format!("{name}={}", number(*metrics.get(name)?))));
    each.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_against_direct() {
        let mut found = BTreeMap::from([
            (DIRECT, Metrics::from([("p50_us", 10.0), ("total_us_per_trip", 7.0)])),
            ("nginx", Metrics::from([("p50_us", 35.0), ("total_us_per_trip", 21.0), ("p99_us", 1.0)])),
            ("broken", Metrics::new()),
        ]);
        add_over_direct(&mut found);
        assert_eq!(found["nginx"]["added_p50_us"], 25.0);
        assert_eq!(found["nginx"]["added_us_per_trip"], 14.0);
        assert!(!found["nginx"].contains_key("added_p99_us"), "direct has none");
        assert!(!found[DIRECT].contains_key("added_p50_us") && found["broken"].is_empty());
    }
}
