//! Latencies in a fixed table of buckets, each at most 1/128 of its value wide.

use std::time::Duration;

/// Buckets per power of two.
const STEPS: usize = 128;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// One linear run below [`STEPS`], then one run for each further power of two of a `u64`.
const BUCKETS: usize = STEPS * (u64::BITS - STEP_BITS + 1) as usize;

/// Counts durations with a relative error of at most 1/256.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    largest: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, largest: 0 }
    }

    /// Counts one duration; one over 584 years counts as that.
    pub(crate) fn add(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(nanos)] += 1;
        self.count += 1;
        self.largest = self.largest.max(nanos);
    }

    /// How many durations were counted.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The quantile `q` (0 to 1) in microseconds; 0 when nothing was counted.
    pub(crate) fn quantile_us(&self, q: f64) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        let wanted = ((q * self.count as f64) as u64).min(self.count - 1);
        let mut seen = 0;
        for (bucket, &n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen > wanted {
                return middle_of(bucket).min(self.largest as f64) / 1e3;
            }
        }
        self.largest as f64 / 1e3
    }

    /// The longest duration in microseconds.
    pub(crate) fn max_us(&self) -> f64 {
        self.largest as f64 / 1e3
    }
}

fn bucket_of(nanos: u64) -> usize {
    let run = u64::BITS.saturating_sub(nanos.leading_zeros() + STEP_BITS + 1);
    // Beyond the linear run, `nanos >> run` is in STEPS..2 * STEPS.
    run as usize * STEPS + (nanos >> run) as usize
}

fn middle_of(bucket: usize) -> f64 {
    let run = (bucket / STEPS).saturating_sub(1);
    let lowest = (bucket - run * STEPS) as f64;
    let width = (run as f64).exp2();
    if run == 0 { lowest } else { (lowest + 0.5) * width }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_within_range() {
        let mut last = 0;
        for shift in 0..u64::BITS {
            for nanos in [(1u64 << shift) - 1, 1 << shift, (1 << shift) + (1 << shift) / 3] {
                let bucket = bucket_of(nanos);
                assert!(bucket >= last && bucket < BUCKETS, "{nanos} ns in bucket {bucket}");
                last = bucket;
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_bucket_stands_for_its_values_within_one_256th() {
        for nanos in (0..5000).chain([123_456, 7_654_321, 1 << 40, u64::MAX]) {
            let error = (middle_of(bucket_of(nanos)) - nanos as f64).abs();
            assert!(error <= nanos as f64 / 256.0, "{nanos} ns is off by {error}");
        }
    }

    #[test]
    fn quantiles_of_a_uniform_run() {
        let mut histogram = Histogram::new();
        for us in 1..=1000 {
            histogram.add(Duration::from_micros(us));
        }
        for (q, us) in [(0.0, 1.0), (0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let got = histogram.quantile_us(q);
            assert!((got - us).abs() <= us / 30.0, "quantile {q}: {got} for {us}");
        }
        assert_eq!((histogram.count(), histogram.max_us()), (1000, 1000.0));
    }

    #[test]
    fn empty_and_single() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile_us(0.5), 0.0);
        histogram.add(Duration::from_nanos(12));
        assert_eq!(histogram.quantile_us(0.999), 0.012);
    }
}
