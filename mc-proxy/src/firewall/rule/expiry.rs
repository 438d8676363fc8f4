//! Until when a rule holds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment of the wall clock in milliseconds since the Unix epoch, not later than the year 9999. A rule with it holds
/// before that moment and not from it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Expiry(u64);

impl Expiry {
    /// The end of the year 9999: the last moment that RFC 3339 can write.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// [`Self::MAX`] for anything later.
    pub const fn from_millis(millis: u64) -> Self {
        if millis < Self::MAX.0 { Self(millis) } else { Self::MAX }
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// `ttl` from `now`, rounded up; [`Self::MAX`] if that is later.
    pub fn after(now: SystemTime, ttl: Duration) -> Self {
        now.checked_add(ttl).map_or(Self::MAX, Self::from)
    }

    /// Time that is left at `now`; `None` from the moment itself on.
    pub fn remaining(self, now: SystemTime) -> Option<Duration> {
        SystemTime::from(self).duration_since(now).ok().filter(|left| !left.is_zero())
    }

    /// Whether the rule no longer holds at `now`.
    pub fn is_past(self, now: SystemTime) -> bool {
        self.remaining(now).is_none()
    }
}

/// Rounded up to a millisecond; the epoch for anything before it, [`Expiry::MAX`] for anything after that.
impl From<SystemTime> for Expiry {
    fn from(at: SystemTime) -> Self {
        let nanos = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        u64::try_from(nanos.div_ceil(1_000_000)).map_or(Self::MAX, Self::from_millis)
    }
}

impl From<Expiry> for SystemTime {
    fn from(expiry: Expiry) -> Self {
        UNIX_EPOCH + Duration::from_millis(expiry.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_edges() {
        let second = UNIX_EPOCH + Duration::from_secs(1);
        let expiry = Expiry::from_millis(1_000);
        assert_eq!(Expiry::from(second), expiry);
        assert_eq!(expiry.remaining(second - Duration::from_nanos(1)), Some(Duration::from_nanos(1)));
        assert_eq!((expiry.remaining(second), expiry.is_past(second)), (None, true));
        assert_eq!(Expiry::from(second - Duration::from_nanos(1)), expiry, "rounded up");
        assert_eq!(Expiry::from(UNIX_EPOCH - Duration::from_secs(1)).as_millis(), 0);
        assert_eq!(Expiry::from_millis(u64::MAX), Expiry::MAX);
        assert_eq!(Expiry::after(second, Duration::MAX), Expiry::MAX);
        assert_eq!(Expiry::after(second, Duration::from_secs(u64::MAX / 4)), Expiry::MAX);
    }

    proptest! {
        #[test]
        fn a_moment_comes_back(millis in 0..=Expiry::MAX.as_millis()) {
            let expiry = Expiry::from_millis(millis);
            prop_assert_eq!(Expiry::from(SystemTime::from(expiry)), expiry);
        }
    }
}
