//! The clock that rules and limits run by, in the kernel and here.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, time asleep included.
pub fn since_boot() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or_default())
}
