//! What connections cost in memory: idle ones, and such whose reader has stalled.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::Resource;

use super::super::load::{Before, Direction, OFFERED};
use super::super::record::Metrics;
use super::cases::way;
use super::stage::{Running, Stage};

const IDLE_CONNECTIONS: u64 = 10_000;
/// Descriptors that a proxy needs for other things than pairs: listeners, logs, pipes to splice with.
const SPARE_DESCRIPTORS: u64 = 1000;
/// Several pairs, or the noise of the machine would be larger than what one holds.
const STALLED_PAIRS: u32 = 8;
const SETTLE: Duration = Duration::from_millis(400);
/// A sender that got rid of nothing for so long is blocked.
const QUIET: Duration = Duration::from_millis(500);
/// How long a sender may take to be blocked, or to have sent it all.
const LONGEST_STALL: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A stall is ended when the machine has less than this left, or when this much is gone, in KiB.
const LEAST_AVAILABLE: f64 = 1024.0 * 1024.0;
const MOST_GROWTH: f64 = 6.0 * 1024.0 * 1024.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Opens idle connections through a proxy that has done nothing else, and looks at what grew.
pub(super) fn idle(stage: &Stage<'_>, peer: &Running) -> anyhow::Result<Metrics> {
    // Two descriptors each in the proxy.
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let connections = IDLE_CONNECTIONS.min(limit.saturating_sub(SPARE_DESCRIPTORS) / 2);
    let interrupt = stage.setting.interrupt;
    interrupt.pause(SETTLE)?;
    let before = Memory::now(peer)?;
    stage.hold(peer, &["idle", "--connections", &connections.to_string()], |counters| {
        interrupt.pause(SETTLE)?;
        let grown = Memory::now(peer)?.since(before);
        ensure!(counters.open > 0, "no connection was opened: {counters:?}");
        let open = counters.open as f64;
        let each = |kb: f64| kb * 1024.0 / open;
        let mut metrics = Metrics::from([("open", open), ("errors", counters.errors as f64)]);
        metrics.insert("kernel_bytes_per_conn", each(grown.slab + grown.socket));
        metrics.insert("available_bytes_per_conn", -each(grown.available));
        if peer.process.is_some() {
            metrics.insert("rss_bytes_per_conn", each(grown.rss));
            metrics.insert("base_rss_mb", before.rss / 1024.0);
        }
        Ok(metrics)
    })
}

/// Lets readers stall while their senders have 10 GB each, and looks at what the machine holds when all stands still.
pub(super) fn stalled(
    stage: &Stage<'_>,
    peer: &Running,
    direction: Direction,
    before: Before,
) -> anyhow::Result<Metrics> {
    let before = match before {
        Before::Nothing => "nothing",
        Before::Chats => "chats",
        Before::Bulk => "bulk",
    };
    let interrupt = stage.setting.interrupt;
    let pairs = STALLED_PAIRS.to_string();
    stage.stall(peer, &["--direction", way(direction), "--before", before, "--connections", &pairs], |go| {
        let noise = noise(stage)?;
        let start = Memory::now(peer)?;
        let sent = || stage.sent(direction);
        let before = sent()?;
        go()?;
        let began = Instant::now();
        let (mut last, mut changed, mut is_safe) = (before, began, true);
        while is_safe && changed.elapsed() < QUIET && began.elapsed() < LONGEST_STALL {
            interrupt.pause(LOOK_EVERY)?;
            let now = sent()?;
            if now != last {
                (last, changed) = (now, Instant::now());
            }
            let available = available_kb()?;
            is_safe = available > LEAST_AVAILABLE && start.available - available < MOST_GROWTH;
        }
        let grown = Memory::now(peer)?.since(start);
        Ok(stall_metrics(grown, noise, last - before, u64::from(STALLED_PAIRS)))
    })
}

/// By how much the machine's available memory swings while nothing is measured, in KiB.
fn noise(stage: &Stage<'_>) -> anyhow::Result<f64> {
    let began = Instant::now();
    let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
    while began.elapsed() < SETTLE {
        let available = available_kb()?;
        (least, most) = (least.min(available), most.max(available));
        stage.setting.interrupt.pause(LOOK_EVERY)?;
    }
    Ok(most - least)
}

/// The largest of three views, each of which misses something: bytes that nobody has read are somewhere, but need more
/// room than themselves; sockets and the proxy are not all that holds bytes; what the machine has available changes by
/// what others do, so that as much as it swung by before is not believed.
fn stall_metrics(grown: Memory, noise: f64, taken: u64, pairs: u64) -> Metrics {
    let each = |kb: f64| kb / 1024.0 / pairs as f64;
    let taken_each = taken as f64 / MIB / pairs as f64;
    let grew = taken_each.max(each(grown.socket + grown.rss)).max(each(-grown.available - noise));
    Metrics::from([
        ("grew_mib_per_pair", grew),
        ("available_mib_per_pair", each(-grown.available)),
        ("noise_mib_per_pair", each(noise)),
        ("socket_mib_per_pair", each(grown.socket)),
        ("slab_mib_per_pair", each(grown.slab)),
        ("rss_mib_per_pair", each(grown.rss)),
        ("taken_mib_per_pair", taken_each),
        ("sent_all", f64::from(u8::from(taken >= OFFERED * pairs))),
    ])
}

/// Memory at one moment, or what it grew by, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Memory {
    available: f64,
    slab: f64,
    /// What TCP has charged for bytes in flight and in queues, of all namespaces.
    socket: f64,
    /// Resident memory of the proxy.
    rss: f64,
}

impl Memory {
    fn now(peer: &Running) -> anyhow::Result<Self> {
        Ok(Self { rss: rss_kb(&peer.pids()?)?, ..Self::machine()? })
    }

    fn machine() -> anyhow::Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        let slab = kb_of(&meminfo, "Slab:").context("/proc/meminfo has no Slab")?;
        let sockstat = fs::read_to_string("/proc/net/sockstat").context("/proc/net/sockstat")?;
        let pages = tcp_pages(&sockstat).context("/proc/net/sockstat does not say what TCP holds")?;
        let smaps = fs::read_to_string("/proc/self/smaps").context("/proc/self/smaps")?;
        let page_kb = kb_of(&smaps, "KernelPageSize:").context("smaps does not say how large a page is")?;
        Ok(Self { available: available_kb()?, slab, socket: pages * page_kb, rss: 0.0 })
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            available: self.available - earlier.available,
            slab: self.slab - earlier.slab,
            socket: self.socket - earlier.socket,
            rss: self.rss - earlier.rss,
        }
    }
}

fn available_kb() -> anyhow::Result<f64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    kb_of(&meminfo, "MemAvailable:").context("/proc/meminfo has no MemAvailable")
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

fn kb_of(text: &str, field: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok())
}

/// The number after `mem` in the line of TCP.
fn tcp_pages(sockstat: &str) -> Option<f64> {
    let mut words = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?.split_whitespace();
    words.find(|word| *word == "mem")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kilobytes_are_found_by_field() {
        let text = "00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss:                1234 kB\nPss:  1 kB\n";
        assert_eq!(kb_of(text, "Rss:"), Some(1234.0));
        assert_eq!(kb_of(text, "Slab:"), None);
    }

    #[test]
    fn pages_of_tcp_are_found() {
        let text = "sockets: used 12\nTCP: inuse 5 orphan 0 tw 3 alloc 8 mem 42\nUDP: inuse 1 mem 7\n";
        assert_eq!(tcp_pages(text), Some(42.0));
        assert_eq!(tcp_pages("UDP: inuse 1 mem 7\n"), None);
    }

    #[test]
    fn this_machine_says_what_it_has() {
        let memory = Memory::machine().unwrap();
        assert!(memory.available > 0.0 && memory.slab > 0.0, "{memory:?}");
    }

    #[test]
    fn the_largest_of_three_views_counts() {
        let mib = 1024.0;
        let grown = Memory { available: -80.0 * mib, slab: 0.0, socket: 16.0 * mib, rss: 0.0 };
        let metrics = stall_metrics(grown, 0.0, 8 * (3 << 20), 8);
        assert_eq!(metrics["grew_mib_per_pair"], 10.0);
        assert_eq!((metrics["taken_mib_per_pair"], metrics["sent_all"]), (3.0, 0.0));
        assert_eq!(stall_metrics(grown, 64.0 * mib, 8 << 20, 8)["grew_mib_per_pair"], 2.0, "sockets");
        assert_eq!(stall_metrics(grown, 64.0 * mib, 8 * (3 << 20), 8)["grew_mib_per_pair"], 3.0, "bytes");
        assert_eq!(stall_metrics(grown, 0.0, OFFERED * 8, 8)["sent_all"], 1.0);
    }
}
