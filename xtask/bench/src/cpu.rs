//! Who used the CPU during a window: every thread's schedstat, by role.
//!
//! A proxy's own time is not its whole cost: softirq work is charged to whoever runs it (on loopback a proxy's send pays
//! for the backend's receive). Hence the sum over all participants and kernel threads beside it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::time::Instant;

use anyhow::Context;

use super::record::{Machine, Metrics};

const KTHREADD: i32 = 2;
/// The unit of /proc/stat, fixed by the kernel's ABI.
const USER_HZ: f64 = 100.0;

/// The processes whose time is told apart.
#[derive(Debug, Clone, Default)]
pub(super) struct Participants {
    pub(super) proxy: Vec<i32>,
    pub(super) load: Vec<i32>,
}

/// CPU-seconds used in a window.
#[derive(Debug, Clone, Default)]
pub(super) struct Usage {
    /// How long the window was.
    pub(super) secs: f64,
    pub(super) proxy: f64,
    /// Client and backend.
    pub(super) load: f64,
    pub(super) kernel_threads: f64,
    /// Everything else on the machine, this process left out.
    pub(super) foreign: f64,
    /// The machine's busy time, in ticks of 10 ms.
    pub(super) busy: f64,
    /// Time that the host gave to others.
    pub(super) steal: f64,
    /// The busy time of each CPU by its number, whoever used it.
    pub(super) busy_of: BTreeMap<usize, f64>,
}

impl Usage {
    /// All that the traffic cost: proxy, client, backend and kernel threads.
    pub(super) fn total(&self) -> f64 {
        self.proxy + self.load + self.kernel_threads
    }

    /// Who used how much of a CPU, in percent, and how busy the CPU of the load was; that of the proxy too if it
    /// `is_apart`.
    pub(super) fn shares(&self, machine: &Machine, is_apart: bool) -> Metrics {
        let percent = |secs: f64| 100.0 * secs / self.secs;
        let mut metrics = Metrics::from([
            ("proxy_cpu_pct", percent(self.proxy)),
            ("load_cpu_pct", percent(self.load)),
            ("kernel_cpu_pct", percent(self.kernel_threads)),
            ("busy_pct", percent(self.busy)),
            ("foreign_pct", percent(self.foreign)),
            ("steal_pct", percent(self.steal)),
        ]);
        let of_core = |cpu: usize| self.busy_of.get(&cpu).map(|&secs| percent(secs));
        if let Some(busy) = of_core(machine.load_cpu) {
            metrics.insert("load_core_pct", busy);
        }
        let is_apart = is_apart && machine.load_cpu != machine.proxy_cpu;
        if let Some(busy) = of_core(machine.proxy_cpu).filter(|_| is_apart) {
            metrics.insert("proxy_core_pct", busy);
        }
        metrics
    }
}

type Threads = HashMap<(i32, i32), u64>;

/// The state of all clocks at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    at: Instant,
    proxy: Threads,
    load: Threads,
    kernel_threads: Threads,
    foreign: Threads,
    ticks: Ticks,
}

impl Snapshot {
    pub(super) fn take(participants: &Participants) -> anyhow::Result<Self> {
        let known: HashSet<i32> =
            participants.proxy.iter().chain(&participants.load).copied().chain([std::process::id() as i32]).collect();
        let parents = parents()?;
        let with = |is_kernel: bool| {
            let mut threads = Threads::new();
            for (&pid, &parent) in &parents {
                let is_kernel_thread = pid == KTHREADD || parent == KTHREADD;
                if is_kernel_thread == is_kernel && !known.contains(&pid) {
                    add_threads(pid, &mut threads);
                }
            }
            threads
        };
        let of = |pids: &[i32]| {
            let mut threads = Threads::new();
            pids.iter().for_each(|&pid| add_threads(pid, &mut threads));
            threads
        };
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let ticks = Ticks::parse(&stat).context("/proc/stat: no line of all CPUs")?;
        Ok(Self {
            at: Instant::now(),
            proxy: of(&participants.proxy),
            load: of(&participants.load),
            kernel_threads: with(true),
            foreign: with(false),
            ticks,
        })
    }

    /// What was used from here to `end`. The time of a thread that ended in between is lost.
    pub(super) fn until(&self, end: &Self) -> Usage {
        let ticks = |from: u64, to: u64| to.saturating_sub(from) as f64 / USER_HZ;
        Usage {
            secs: end.at.duration_since(self.at).as_secs_f64(),
            proxy: seconds(&self.proxy, &end.proxy),
            load: seconds(&self.load, &end.load),
            kernel_threads: seconds(&self.kernel_threads, &end.kernel_threads),
            foreign: seconds(&self.foreign, &end.foreign),
            busy: ticks(self.ticks.busy, end.ticks.busy),
            steal: ticks(self.ticks.steal, end.ticks.steal),
            busy_of: end
                .ticks
                .busy_of
                .iter()
                .filter_map(|(cpu, &until)| Some((*cpu, ticks(*self.ticks.busy_of.get(cpu)?, until))))
                .collect(),
        }
    }
}

fn seconds(from: &Threads, to: &Threads) -> f64 {
    let nanos: u64 =
        to.iter().map(|(thread, nanos)| nanos.saturating_sub(from.get(thread).copied().unwrap_or(0))).sum();
    nanos as f64 / 1e9
}

/// A process and all its descendants.
pub(super) fn descendants(root: i32) -> anyhow::Result<Vec<i32>> {
    let parents = parents()?;
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(parents.iter().filter(|&(_, &parent)| parent == pid).map(|(&child, _)| child));
        next += 1;
    }
    Ok(found)
}

/// The threads of a process; none if it has ended.
pub(super) fn threads(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Every process with its parent.
fn parents() -> anyhow::Result<HashMap<i32, i32>> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let Some(pid) = entry.context("/proc")?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Processes end while one looks.
        if let Some(parent) = fs::read_to_string(format!("/proc/{pid}/stat")).ok().as_deref().and_then(parent_of) {
            parents.insert(pid, parent);
        }
    }
    Ok(parents)
}

/// The parent's id in /proc/PID/stat, whose second field, the name, may hold spaces and parentheses.
fn parent_of(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// What /proc/stat says, in ticks since the machine started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    steal: u64,
    busy_of: BTreeMap<usize, u64>,
}

impl Ticks {
    fn parse(stat: &str) -> Option<Self> {
        let mut ticks = Self::default();
        let mut is_complete = false;
        for line in stat.lines() {
            let Some((name, fields)) = line.split_once(' ') else { continue };
            let Some(cpu) = name.strip_prefix("cpu") else { continue };
            let (busy, steal) = busy_and_stolen(fields)?;
            if cpu.is_empty() {
                (ticks.busy, ticks.steal, is_complete) = (busy, steal, true);
            } else {
                ticks.busy_of.insert(cpu.parse().ok()?, busy);
            }
        }
        is_complete.then_some(ticks)
    }
}

fn busy_and_stolen(fields: &str) -> Option<(u64, u64)> {
    let ticks: Vec<u64> = fields.split_whitespace().map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks[..] else { return None };
    Some((user + nice + system + irq + softirq, steal))
}

fn add_threads(pid: i32, all: &mut Threads) {
    for thread in threads(pid) {
        let schedstat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat"));
        let nanos = schedstat.ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
        if let Some(nanos) = nanos {
            all.insert((pid, thread), nanos);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_confuse_the_parent() {
        assert_eq!(parent_of("12 (a) b) S 7 12 12 0 -1"), Some(7));
        assert_eq!(parent_of("12 (sh"), None);
    }

    #[test]
    fn idle_and_guest_time_are_not_busy() {
        let stat = "cpu  1 2 4 1000 2000 8 16 32 64 128\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let expected = Ticks { busy: 31, steal: 32, busy_of: BTreeMap::from([(0, 5)]) };
        assert_eq!(Ticks::parse(stat), Some(expected));
        assert_eq!(Ticks::parse("intr 5\n"), None);
    }

    #[test]
    fn new_threads_count_from_zero_and_ended_ones_not() {
        let from = Threads::from([((1, 1), 1_000_000_000), ((1, 2), 5)]);
        let to = Threads::from([((1, 1), 3_000_000_000), ((1, 3), 500_000_000)]);
        assert_eq!(seconds(&from, &to), 2.5);
    }

    #[test]
    fn this_process_is_found_and_its_work_counted() {
        let me = std::process::id() as i32;
        assert!(descendants(me).unwrap().contains(&me));
        let participants = Participants { proxy: vec![me], load: Vec::new() };
        let start = Snapshot::take(&participants).unwrap();
        let began = Instant::now();
        while began.elapsed().as_millis() < 30 {
            std::hint::black_box(began);
        }
        let usage = start.until(&Snapshot::take(&participants).unwrap());
        assert!(usage.secs >= 0.03 && usage.proxy > 0.0, "{usage:?}");
    }
}
