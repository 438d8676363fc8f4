//! The measurements that every peer goes through, by figure.

use super::super::load::{Before, Direction, Mix};
use super::record::Figure;

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
    Mixed {
        mix: Mix,
        connections: u32,
    },
    Idle,
    Stalled {
        direction: Direction,
        before: Before,
    },
}

/// The cases of a figure.
pub(super) fn cases(figure: Figure) -> Vec<Case> {
    const WAYS: [Direction; 2] = [Direction::Up, Direction::Down];
    match figure {
        Figure::Relay => [1, 64]
            .into_iter()
            .flat_map(|connections| WAYS.map(|direction| Case::Relay { direction, connections }))
            .collect(),
        Figure::Rate => [1, 32].map(|clients| Case::Rate { clients }).into(),
        Figure::Ping => [(1, false), (32, false), (1, true), (32, true)]
            .map(|(connections, shares_cpu)| Case::Ping { connections, shares_cpu })
            .into(),
        Figure::Mixed => {
            vec![Case::Mixed { mix: Mix::Phases, connections: 8 }, Case::Mixed { mix: Mix::Beside, connections: 16 }]
        }
        Figure::Idle => vec![Case::Idle],
        Figure::Stalled => [Before::Nothing, Before::Chats, Before::Bulk]
            .into_iter()
            .flat_map(|before| WAYS.map(|direction| Case::Stalled { direction, before }))
            .collect(),
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Relay { direction, connections } => write!(f, "{}, {connections} conn", way(*direction)),
            Self::Rate { clients: 1 } => f.write_str("1 client"),
            Self::Rate { clients } => write!(f, "{clients} clients"),
            Self::Ping { connections, shares_cpu: false } => write!(f, "{connections} conn"),
            Self::Ping { connections, shares_cpu: true } => write!(f, "{connections} conn, one CPU"),
            Self::Mixed { mix: Mix::Phases, connections } => write!(f, "{connections} conn in phases"),
            Self::Mixed { mix: Mix::Beside, connections } => write!(f, "{connections} conn side by side"),
            Self::Idle => f.write_str("idle connections"),
            Self::Stalled { direction, before: Before::Nothing } => write!(f, "{}, at once", way(*direction)),
            Self::Stalled { direction, before: Before::Chats } => write!(f, "{}, after chats", way(*direction)),
            Self::Stalled { direction, before: Before::Bulk } => write!(f, "{}, after bulk", way(*direction)),
        }
    }
}

/// As the load generator wants it, and as it is read.
pub(super) fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Up => "up",
        Direction::Down => "down",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_its_own_name() {
        for figure in Figure::ALL {
            let names: Vec<String> = cases(figure).iter().map(Case::to_string).collect();
            let distinct: std::collections::HashSet<&String> = names.iter().collect();
            assert_eq!(distinct.len(), names.len(), "{names:?}");
            assert!(!names.is_empty());
        }
    }
}
