//! What records of every suite have in common: where a run took place, and how figures and files are kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::thread::CpuSet;
use serde::Serialize;

/// Figures of one measurement by name; the names carry the units.
pub(super) type Metrics = BTreeMap<&'static str, f64>;

/// Where a run took place.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) cpu_model: String,
    pub(super) cpus: usize,
    /// The CPU that proxies are pinned to: the last.
    pub(super) proxy_cpu: usize,
    /// The CPU of load generator and backend: the first.
    pub(super) load_cpu: usize,
}

impl Machine {
    /// Describes this machine, as far as this process may use it.
    pub(super) fn here() -> anyhow::Result<Self> {
        let allowed = rustix::thread::sched_getaffinity(None).context("sched_getaffinity")?;
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
        let (&load_cpu, &proxy_cpu) = cpus.first().zip(cpus.last()).context("no CPU to run on")?;
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu_model: model.map_or_else(|| "unknown".to_owned(), |(_, model)| model.to_owned()),
            cpus: cpus.len(),
            proxy_cpu,
            load_cpu,
        })
    }
}

/// Everything a run leaves; `R` is one measurement of one peer.
#[derive(Debug, Serialize)]
pub(super) struct Document<R> {
    pub(super) started: String,
    pub(super) machine: Machine,
    pub(super) rounds: u32,
    pub(super) secs: f64,
    pub(super) sysctl: BTreeMap<&'static str, &'static str>,
    pub(super) versions: BTreeMap<&'static str, String>,
    /// Each peer's configuration file as it was in force.
    pub(super) configurations: BTreeMap<&'static str, String>,
    /// Peers that are not here, and cases that failed, with the reason.
    pub(super) notes: Vec<String>,
    pub(super) records: Vec<R>,
    #[serde(skip)]
    pub(super) path: PathBuf,
}

impl<R: Serialize> Document<R> {
    /// Prints a remark and keeps it, once.
    pub(super) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            println!("  note: {note}");
            self.notes.push(note);
        }
    }

    /// Writes the JSON file, whole or not at all.
    pub(super) fn save(&self) -> anyhow::Result<()> {
        write_whole(&self.path, &serde_json::to_vec_pretty(self)?)
    }
}

/// Writes a file beside its place and moves it there.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, content)
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| format!("writing {}", path.display()))
}
