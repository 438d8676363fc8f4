//! Chance that can be repeated.

use std::{
    env,
    ops::Range,
    time::{Duration, SystemTime},
};

/// Repeats a test with the seed that it failed with.
pub const SEED_VARIABLE: &str = "MC_PROXY_SEED";

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Equal seeds give equal numbers.
    pub fn of(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A seed from [`SEED_VARIABLE`], or else from the clock. Whoever uses it names it when something fails.
    pub fn seed() -> u64 {
        let given = env::var(SEED_VARIABLE).ok().and_then(|text| text.parse().ok());
        given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Self::of(now.as_nanos() as u64).word() % 1_000_000_000
        })
    }

    /// Another sequence, for a task of its own.
    pub fn fork(&mut self) -> Self {
        Self::of(self.word())
    }

    /// Any number.
    pub fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 <= n < `end`; 0 when `end` is.
    pub fn below(&mut self, end: u64) -> u64 {
        self.word() % end.max(1)
    }

    /// A number of the range.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end.saturating_sub(range.start))
    }

    /// `true` so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// 1 <= n <= `most`, small ones as likely as large ones.
    pub fn size(&mut self, most: u64) -> u64 {
        let bits = 1 + self.below(u64::from(most.max(1).ilog2()) + 1);
        (1 + self.below(1 << bits)).min(most)
    }

    /// Up to `most`.
    pub fn duration(&mut self, most: Duration) -> Duration {
        most * (self.below(1_000) as u32) / 1_000
    }
}
