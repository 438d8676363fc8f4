//! A plane in memory, and the walk along a decision list.

use std::{net::IpAddr, sync::Arc};

use mc_proxy_common::{
    reason::Reason,
    table::{CHAIN_CLAUSES_MAX, CHAIN_MAX, Tables, find},
};

use crate::{
    firewall::{Engine, EngineConfig, Expiry, Generations, Moment, Rule, Sizes, TableMemory},
    xdp::PlaneError,
};

pub(super) const SECOND: u64 = 1_000_000_000;

/// Tables in memory; what is to fail does so, so many times.
#[derive(Default)]
pub(super) struct Plane {
    pub(super) prepared: u64,
    pub(super) committed: u64,
    pub(super) settled: u64,
    pub(super) failing_prepares: u32,
    pub(super) failing_commits: u32,
    /// Sizes of the next generations, instead of those asked for.
    pub(super) sizes: Option<Sizes>,
    pub(super) is_pending: bool,
}

impl Generations for Plane {
    fn prepare(&mut self, sizes: &Sizes) -> Result<Arc<TableMemory>, PlaneError> {
        if self.failing_prepares > 0 {
            self.failing_prepares -= 1;
            return Err(failure());
        }
        self.prepared += 1;
        self.is_pending = true;
        Ok(Arc::new(TableMemory::heap(
            self.sizes.as_ref().unwrap_or(sizes),
            self.prepared.wrapping_mul(0x1234_5678_9abc_def1),
        )))
    }

    fn commit(&mut self) -> Result<(), PlaneError> {
        assert!(self.is_pending);
        if self.failing_commits > 0 {
            self.failing_commits -= 1;
            return Err(failure());
        }
        self.is_pending = false;
        self.committed += 1;
        Ok(())
    }

    fn discard(&mut self) {
        assert!(self.is_pending);
        self.is_pending = false;
    }

    fn settle(&mut self) -> Result<(), PlaneError> {
        self.settled += 1;
        Ok(())
    }
}

fn failure() -> PlaneError {
    PlaneError::caused("a test", std::io::Error::other("no memory"))
}

/// A packet, as far as scopes ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) is_for_listener: bool,
    pub(super) port: u16,
}

/// What a decision list says of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Groups whose rules count only and would have dropped it.
    pub(super) counted: Vec<u16>,
    /// Dropped or not, why, and the group of the rule.
    pub(super) decision: Option<(bool, Reason, u16)>,
}

pub(super) fn judge(tables: &impl Tables, source: IpAddr, packet: Packet, is_host: bool, boot: u64) -> Outcome {
    let mut outcome = Outcome::default();
    let mut id = find(tables, source.into());
    for _ in 0..CHAIN_CLAUSES_MAX {
        if id == 0 {
            return outcome;
        }
        let [expires_at, packed] =
            tables.clause(id).unwrap().each_ref().map(|word| word.load(std::sync::atomic::Ordering::Relaxed));
        id = packed as u32 & CHAIN_MAX;
        let holds = match packed >> 54 & 3 {
            0 => packet.is_for_listener || is_host,
            1 => true,
            _ => packet.port == (packed >> 36) as u16,
        };
        if !holds || (expires_at != 0 && expires_at <= boot) {
            continue;
        }
        let group = (packed >> 20) as u16;
        match packed >> 52 & 3 {
            2 => outcome.counted.push(group),
            action => {
                let reason = Reason::from_index((packed >> 56) as u32 & 0x1f).unwrap();
                outcome.decision = Some((action == 1, reason, group));
                return outcome;
            }
        }
    }
    assert_eq!(id, 0, "a list ends");
    outcome
}

pub(super) fn is_blocked(tables: &impl Tables, source: &str) -> bool {
    let packet = Packet { is_for_listener: true, port: 443 };
    judge(tables, source.parse().unwrap(), packet, false, SECOND).decision.is_some_and(|(is_drop, ..)| is_drop)
}

/// Whole seconds since boot; the wall clock showed 1,000,000 s then.
pub(super) fn at(seconds: u64) -> Moment {
    Moment { boot: seconds * SECOND, wall: (1_000_000 + seconds) * 1000 }
}

pub(super) fn expiry(seconds: u64) -> Expiry {
    Expiry::from_millis(at(seconds).wall)
}

pub(super) fn block(subject: &str) -> Rule {
    Rule::block(subject.parse().unwrap())
}

pub(super) fn engine(rules: &[Rule], plane: &mut Plane) -> Engine {
    let config = EngineConfig { bans_max: 1000, ..EngineConfig::default() };
    Engine::new(rules.iter().copied(), [], config, plane, at(1)).unwrap()
}
