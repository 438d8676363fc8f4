//! Medians, spreads, and ratios to a control within a round.

use std::collections::BTreeMap;

/// The least, middle and greatest of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) max: f64,
}

impl Spread {
    /// `None` without values. With an even number of them the median is the mean of the middle two.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { min, median, max })
    }
}

impl std::fmt::Display for Spread {
    /// `median (min–max)`, or one number if they are all the same.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.min == self.max {
            return f.write_str(&number(self.median));
        }
        write!(f, "{} ({}–{})", number(self.median), number(self.min), number(self.max))
    }
}

/// Three significant digits, and all digits before the point.
pub(super) fn number(value: f64) -> String {
    let magnitude = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    let decimals = (2 - magnitude).clamp(0, 6) as usize;
    if value == 0.0 { "0".to_owned() } else { format!("{value:.decimals$}") }
}

/// Each round's value over the control's of the same round; rounds that lack either, or whose control is 0, are left out.
pub(super) fn ratios(values: &BTreeMap<u32, f64>, control: &BTreeMap<u32, f64>) -> Vec<f64> {
    let of_round = |(round, value): (&u32, &f64)| control.get(round).filter(|c| **c != 0.0).map(|c| value / c);
    values.iter().filter_map(of_round).collect()
}

/// `items` in another order for each `seed` (Fisher–Yates over splitmix64), so that no peer always runs first.
pub(super) fn shuffled<T>(items: impl IntoIterator<Item = T>, seed: u64) -> Vec<T> {
    let mut items: Vec<T> = items.into_iter().collect();
    let mut state = seed;
    for last in (1..items.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        items.swap(last, (bits % (last as u64 + 1)) as usize);
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Some(Spread { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { min: 1.0, median: 2.5, max: 4.0 }));
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]).unwrap().to_string(), "2.00 (1.00–3.00)");
        assert_eq!(Spread::of(&[0.25, 0.25]).unwrap().to_string(), "0.250");
    }

    #[test]
    fn numbers_have_three_digits() {
        let cases = [
            (0.0, "0"),
            (0.012_345, "0.0123"),
            (0.9, "0.900"),
            (9.876, "9.88"),
            (55.55, "55.5"),
            (123.4, "123"),
            (12_345.6, "12346"),
            (-2.5, "-2.50"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn ratios_are_within_a_round() {
        let values = BTreeMap::from([(0, 10.0), (1, 40.0), (3, 5.0)]);
        let control = BTreeMap::from([(0, 5.0), (1, 10.0), (2, 1.0), (3, 0.0)]);
        assert_eq!(ratios(&values, &control), [2.0, 4.0]);
    }

    #[test]
    fn orders_differ_and_lose_nothing() {
        let orders: Vec<Vec<u32>> = (0..20).map(|seed| shuffled(0..6, seed)).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5]);
        }
        assert_eq!(orders[3], shuffled(0..6, 3), "the same seed gives the same order");
        let firsts: std::collections::HashSet<u32> = orders.iter().map(|order| order[0]).collect();
        assert!(firsts.len() >= 4, "{firsts:?}");
    }
}
