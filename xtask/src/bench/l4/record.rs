//! What a run leaves in JSON: the machine, the programs, their configurations, and one record per measurement.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::super::record::{Machine, Metrics, write_whole};
use super::super::topology::Layout;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Figure {
    /// Bulk throughput and CPU per byte.
    Relay,
    /// Connections a second and CPU per connection.
    Rate,
    /// Round trips over connections that stay open.
    Ping,
    /// Round trips and bursts on the same connections, and side by side.
    Mixed,
    /// Memory of idle connections.
    Idle,
    /// Memory that a stalled reader costs.
    Stalled,
}

impl Figure {
    pub(super) const ALL: [Self; 6] = [Self::Relay, Self::Rate, Self::Ping, Self::Mixed, Self::Idle, Self::Stalled];

    /// Whether memory is looked at, of processes just started, instead of time.
    pub(super) fn is_of_memory(self) -> bool {
        matches!(self, Self::Idle | Self::Stalled)
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Relay => "relay",
            Self::Rate => "rate",
            Self::Ping => "ping",
            Self::Mixed => "mixed",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
        })
    }
}

/// One measurement of one peer.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record {
    pub(super) figure: Figure,
    pub(super) layout: Layout,
    pub(super) case: String,
    pub(super) peer: &'static str,
    pub(super) round: u32,
    pub(super) metrics: Metrics,
}

/// Everything a run leaves.
#[derive(Debug, Serialize)]
pub(super) struct Document {
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
    pub(super) records: Vec<Record>,
    #[serde(skip)]
    pub(super) path: PathBuf,
}

impl Document {
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
