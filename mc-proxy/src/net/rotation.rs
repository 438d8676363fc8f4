//! Whose turn it is.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Takes turns among several. Each set of backends has one of its own: with one for many sets, two that are asked by turns
/// would always get the same of their backends.
#[derive(Debug, Default)]
pub struct Rotation(AtomicUsize);

impl Rotation {
    /// The index of the next of `count`; 0 where there is no choice.
    pub fn next(&self, count: usize) -> usize {
        if count > 1 { self.0.fetch_add(1, Relaxed) % count } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_turn() {
        let rotation = Rotation::default();
        assert_eq!([3; 5].map(|count| rotation.next(count)), [0, 1, 2, 0, 1]);
        assert_eq!([0, 1].map(|count| rotation.next(count)), [0, 0]);
        assert_eq!(rotation.next(3), 2, "where there is no choice nobody's turn is over");
        let last = Rotation(usize::MAX.into());
        assert!(last.next(2) == 1 && last.next(2) == 0);
    }
}
