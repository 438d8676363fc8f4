//! From the wall clock, by which rules expire, to the boot-time clock, by which the kernel sees to it.

use crate::firewall::{Expiry, engine::Moment};

/// Boot times of expiries are multiples of this, so that bans which end at nearly the same time share clauses.
const ROUNDING: u64 = 100_000_000;
/// How far the wall clock may be set, or drift, before expiries are converted anew.
const TOLERANCE: u64 = 500_000_000;

/// The wall clock's lead over the boot-time clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clock {
    /// Nanoseconds.
    lead: i128,
}

impl Clock {
    pub(super) fn at(now: Moment) -> Self {
        Self { lead: i128::from(now.wall) * 1_000_000 - i128::from(now.boot) }
    }

    /// Whether expiries come out nearly as they would by `self`.
    pub(super) fn agrees(&self, now: Moment) -> bool {
        self.lead.abs_diff(Self::at(now).lead) <= u128::from(TOLERANCE)
    }

    /// Boot time of an expiry, rounded up, and within what the clock can show; `None` if it was before the system
    /// started.
    pub(super) fn boot(&self, expiry: Expiry) -> Option<u64> {
        let boot = i128::from(expiry.as_millis()) * 1_000_000 - self.lead;
        if boot <= 0 {
            return None;
        }
        let boot = u64::try_from(boot).unwrap_or(u64::MAX).min(u64::MAX - ROUNDING);
        Some(boot.div_ceil(ROUNDING) * ROUNDING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiries_are_rounded_up() {
        let clock = Clock::at(Moment { boot: 5_000_000_000, wall: 1_000_000 });
        let boot = |millis| clock.boot(Expiry::from_millis(millis));
        assert_eq!(boot(1_000_000), Some(5_000_000_000));
        assert_eq!(boot(1_000_001), Some(5_100_000_000));
        assert_eq!(boot(1_000_100), Some(5_100_000_000));
        assert_eq!((boot(995_000), boot(0)), (None, None));
        assert!(boot(Expiry::MAX.as_millis()).is_some());
        assert!(clock.agrees(Moment { boot: 6_000_000_000, wall: 1_001_400 }));
        assert!(!clock.agrees(Moment { boot: 6_000_000_000, wall: 1_001_600 }));
    }
}
