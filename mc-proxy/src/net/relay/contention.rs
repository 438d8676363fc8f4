//! Whether the worker's CPU is wanted by others too, as the scheduler has it.

use std::{cell::RefCell, fs, time::Duration};

use tokio::time::Instant;

use super::policy::CpuTime;

/// What is looked back on, at least. The way into the kernel is for good: a moment in which something else ran is no reason.
const SAMPLE: Duration = Duration::from_millis(250);

/// Longer ago, and it says nothing of now.
const STALE: Duration = Duration::from_secs(2);

thread_local! {
    static SAMPLER: RefCell<Sampler> = RefCell::default();
}

#[derive(Default)]
struct Sampler {
    total: CpuTime,
    sampled_at: Option<Instant>,
    is_contended: bool,
}

/// Whether this thread shares its CPU, from what it got of it lately. `false` where that is not known: a first question is
/// answered by the next.
pub(super) fn is_contended(now: Instant) -> bool {
    SAMPLER.with_borrow_mut(|sampler| sampler.is_contended(now))
}

impl Sampler {
    fn is_contended(&mut self, now: Instant) -> bool {
        let age = self.sampled_at.map(|at| now.saturating_duration_since(at));
        if age.is_some_and(|age| age < SAMPLE) {
            return self.is_contended;
        }
        let total = read().unwrap_or_default();
        self.is_contended = age.is_some_and(|age| age < STALE) && total.since(self.total).is_contended();
        self.total = total;
        self.sampled_at = Some(now);
        self.is_contended
    }
}

/// None where the kernel does not count (CONFIG_SCHED_INFO), or `/proc` is not to be had.
fn read() -> Option<CpuTime> {
    parse(&fs::read_to_string("/proc/thread-self/schedstat").ok()?)
}

/// Nanoseconds on a CPU, nanoseconds in a run queue, and how often (Documentation/scheduler/sched-stats.rst).
fn parse(text: &str) -> Option<CpuTime> {
    let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse().ok()).map(Duration::from_nanos);
    Some(CpuTime { ran: numbers.next()?, waited: numbers.next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(
            parse("123456789 2000 17\n"),
            Some(CpuTime { ran: Duration::from_nanos(123_456_789), waited: Duration::from_micros(2) })
        );
        for bad in ["", "1", "x 2 3", "1 -2 3"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_thread_has_run() {
        let before = read().unwrap();
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(20) {}
        assert!(read().unwrap().since(before).ran > Duration::ZERO);
    }

    #[test]
    fn what_is_long_ago_is_not_what_is_now() {
        let mut sampler = Sampler::default();
        let now = Instant::now();
        assert!(!sampler.is_contended(now), "nothing to compare with");
        sampler.is_contended = true;
        assert!(sampler.is_contended(now + SAMPLE / 2), "as it was a moment ago");
        assert!(!sampler.is_contended(now + STALE * 2));
    }
}
