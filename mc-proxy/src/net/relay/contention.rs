//! Whether the worker's CPU is wanted by others too, as the scheduler has it.

use std::{cell::RefCell, fs::File, os::unix::fs::FileExt, time::Duration};

use tokio::time::Instant;

use super::policy::CpuTime;

/// What is looked back on, at least. The way into the kernel is for good: a moment in which something else ran is no reason.
const SAMPLE: Duration = Duration::from_millis(250);

/// Longer ago, and it says nothing of now.
const STALE: Duration = Duration::from_secs(2);

/// Three numbers of up to twenty digits.
const TEXT_MAX: usize = 64;

thread_local! {
    static SAMPLER: RefCell<Sampler> = RefCell::new(Sampler::open());
}

struct Sampler {
    /// None where the kernel does not count.
    file: Option<File>,
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
    fn open() -> Self {
        // Since Linux 3.17; in a kernel without CONFIG_SCHED_INFO it says nothing.
        let file = File::open("/proc/thread-self/schedstat").inspect_err(|error| {
            tracing::debug!(%error, "how long a worker waits for its CPU is not known: busy workers keep their pairs");
        });
        Self { file: file.ok(), total: CpuTime::default(), sampled_at: None, is_contended: false }
    }

    fn is_contended(&mut self, now: Instant) -> bool {
        let age = self.sampled_at.map(|at| now.saturating_duration_since(at));
        if age.is_some_and(|age| age < SAMPLE) {
            return self.is_contended;
        }
        let total = self.file.as_ref().and_then(read).unwrap_or_default();
        self.is_contended = age.is_some_and(|age| age < STALE) && total.since(self.total).is_contended();
        self.total = total;
        self.sampled_at = Some(now);
        self.is_contended
    }
}

fn read(file: &File) -> Option<CpuTime> {
    let mut text = [0; TEXT_MAX];
    let length = file.read_at(&mut text, 0).ok()?;
    parse(std::str::from_utf8(text.get(..length)?).ok()?)
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
        let file = File::open("/proc/thread-self/schedstat").unwrap();
        let before = read(&file).unwrap();
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(20) {}
        assert!(read(&file).unwrap().since(before).ran > Duration::ZERO);
    }

    #[test]
    fn what_is_long_ago_is_not_what_is_now() {
        let mut sampler = Sampler::open();
        let now = Instant::now();
        assert!(!sampler.is_contended(now), "nothing to compare with");
        sampler.is_contended = true;
        assert!(sampler.is_contended(now + SAMPLE / 2), "as it was a moment ago");
        assert!(!sampler.is_contended(now + STALE * 2));
        sampler.file = None;
        assert!(!sampler.is_contended(now + STALE * 2 + SAMPLE));
    }
}
