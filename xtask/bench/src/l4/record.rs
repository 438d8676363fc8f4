//! What a run leaves in JSON beside the machine and the programs: one record per measurement.

use serde::Serialize;

use super::super::record::{self, Metrics};
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
pub(super) type Document = record::Document<Record>;
