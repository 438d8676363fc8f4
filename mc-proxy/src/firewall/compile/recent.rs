//! Slots that look-ups under way may have missed.

use std::collections::{BTreeSet, VecDeque};

use super::GRACE;
use crate::firewall::prefix::Prefix;

/// From so many on it is better to wait for the look-ups than to remember.
const RECENT_MAX: usize = 4096;

/// New slots of the last while. As long as a look-up may have missed one, slots of shorter prefixes around it must stay
/// as they are.
#[derive(Debug, Default)]
pub(super) struct Recent {
    slots: BTreeSet<(bool, Prefix)>,
    order: VecDeque<(u64, bool, Prefix)>,
    /// Those of the current change, whose own order of writing sees to it.
    current: Vec<(bool, Prefix)>,
}

impl Recent {
    /// A slot was taken.
    pub(super) fn add(&mut self, is_v6: bool, slot: Prefix) {
        self.current.push((is_v6, slot));
    }

    /// Whether an earlier change has taken a slot inside a prefix.
    pub(super) fn is_inside(&self, is_v6: bool, prefix: Prefix) -> bool {
        let first = Prefix { length: prefix.length.saturating_add(1), ..prefix };
        let last = Prefix { first: prefix.last(), length: u8::MAX };
        !self.slots.is_empty() && self.slots.range((is_v6, first)..=(is_v6, last)).next().is_some()
    }

    /// All look-ups that had begun have ended.
    pub(super) fn settled(&mut self) {
        self.slots.clear();
        self.order.clear();
        self.current.clear();
    }

    /// A change begins.
    pub(super) fn begin(&mut self, now: u64) {
        while let Some((_, is_v6, slot)) = self.order.pop_front_if(|(at, ..)| at.saturating_add(GRACE) <= now) {
            self.slots.remove(&(is_v6, slot));
        }
    }

    /// A change has ended. Whether it is time to settle.
    #[must_use]
    pub(super) fn end(&mut self, now: u64) -> bool {
        if self.slots.len() + self.current.len() > RECENT_MAX {
            return true;
        }
        for (is_v6, slot) in self.current.drain(..) {
            self.slots.insert((is_v6, slot));
            self.order.push_back((now, is_v6, slot));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_longer_prefixes_of_earlier_changes_are_inside() {
        let prefix = |text: &str| Prefix::of(text.parse().unwrap());
        let mut recent = Recent::default();
        recent.begin(0);
        recent.add(false, prefix("10.0.0.16/30"));
        assert!(!recent.is_inside(false, prefix("10.0.0.0/25")));
        assert!(!recent.end(5));
        recent.begin(6);
        assert!(recent.is_inside(false, prefix("10.0.0.0/25")) && recent.is_inside(false, prefix("10.0.0.16/29")));
        assert!(!recent.is_inside(false, prefix("10.0.0.16/30")) && !recent.is_inside(false, prefix("10.0.0.16/32")));
        assert!(!recent.is_inside(true, prefix("10.0.0.0/25")) && !recent.is_inside(false, prefix("10.0.0.0/28")));
        recent.begin(5 + GRACE);
        assert!(!recent.is_inside(false, prefix("10.0.0.0/25")));
        (0..=4096).for_each(|n| recent.add(true, Prefix { first: n, length: 128 }));
        assert!(recent.end(9));
        recent.settled();
        assert!(!recent.end(9));
    }
}
