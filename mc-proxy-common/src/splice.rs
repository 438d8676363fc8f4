//! What the stream verdict program and the daemon share about pairs of sockets that are spliced in the kernel.
//!
//! A pair is two *directions*, each with a *slot*: a few words in an array that the daemon has mapped. A redirect has no
//! back-pressure of its own: what a socket receives is taken from its receive queue, acknowledged, and put on the target's
//! unbounded queue. So a direction has a *limit* on the bytes that may be redirected in all, which the daemon moves on as
//! the target writes them. What comes beyond it is *passed*: it stays with the source, where it counts against the
//! receive window, and the daemon carries it over by hand. Once bytes were passed, the following ones are too, until the
//! daemon has caught up: order is kept.
//!
//! The first line of a slot is written by the program alone, the second by the daemon alone. The verdicts of one socket
//! never run at the same time (its lock), so no counter needs an atomic addition.

use core::sync::atomic::AtomicU64;

use crate::atomic::{load, store};

/// Words of a slot: two cache lines.
pub const SLOT_WORDS: usize = 16;

/// Directions at a time; two for each pair.
pub const SLOTS_MAX: u32 = 32_768;

/// Bytes of the ring buffer of [`Event`]s.
pub const EVENT_BYTES: u32 = 64 * 1024;

/// Words that are about all slots.
pub const CONTROL_WORDS: u32 = 1;

/// Of the control words: events that found no room, ever. Who reads the ring buffer looks at every slot when this grows.
pub const LOST: u32 = 0;

/// What is told through the ring buffer: look at this slot.
pub type Event = u64;

/// Index of a word of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Word {
    /// Bytes redirected since the slot was taken. Written by the program.
    Redirected = 0,
    /// Bytes left with the source since then. Written by the program.
    Passed = 1,
    /// Pieces (socket buffers) redirected. Written by the program.
    Pieces = 2,
    /// `Redirected` may not grow beyond this. Written by the daemon.
    Limit = 8,
    /// Bytes of `Passed` that the daemon has carried to the target. Written by the daemon. `0 <= Drained <= Passed`.
    Drained = 9,
    /// An event is due when `Redirected` gets above this. Written by the daemon.
    Mark = 10,
}

/// What becomes of a piece of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// To the target; else it stays with the source.
    pub is_redirect: bool,
    /// The daemon has to be told.
    pub is_event: bool,
}

/// One slot.
pub type Slot = [AtomicU64; SLOT_WORDS];

/// Judges `bytes` that a source has received, and counts them.
#[inline(always)]
pub fn judge(slot: &Slot, bytes: u32) -> Verdict {
    let bytes = bytes as u64;
    // The end of the stream comes as a piece without bytes; redirected, it would fail the target.
    if bytes == 0 {
        return Verdict { is_redirect: false, is_event: false };
    }
    let redirected = load(&slot[Word::Redirected as usize]);
    let passed = load(&slot[Word::Passed as usize]);
    let is_behind = passed != load(&slot[Word::Drained as usize]);
    let after = redirected.wrapping_add(bytes);
    if is_behind || after > load(&slot[Word::Limit as usize]) {
        store(&slot[Word::Passed as usize], passed.wrapping_add(bytes));
        return Verdict { is_redirect: false, is_event: !is_behind };
    }
    let mark = load(&slot[Word::Mark as usize]);
    store(&slot[Word::Redirected as usize], after);
    let pieces = &slot[Word::Pieces as usize];
    store(pieces, load(pieces).wrapping_add(1));
    Verdict { is_redirect: true, is_event: redirected <= mark && after > mark }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(limit: u64, mark: u64) -> Slot {
        let slot = Slot::default();
        store(&slot[Word::Limit as usize], limit);
        store(&slot[Word::Mark as usize], mark);
        slot
    }

    fn word(slot: &Slot, word: Word) -> u64 {
        load(&slot[word as usize])
    }

    #[test]
    fn the_limit_is_never_exceeded_and_the_first_piece_beyond_it_is_told() {
        let slot = slot(100, 50);
        let redirected = |is_event| Verdict { is_redirect: true, is_event };
        let passed = |is_event| Verdict { is_redirect: false, is_event };
        assert_eq!(judge(&slot, 50), redirected(false));
        assert_eq!(judge(&slot, 50), redirected(true), "above the mark");
        assert_eq!(judge(&slot, 1), passed(true));
        assert_eq!(judge(&slot, 1), passed(false));
        store(&slot[Word::Limit as usize], 1000);
        assert_eq!(judge(&slot, 1), passed(false), "behind what was passed");
        store(&slot[Word::Drained as usize], 3);
        assert_eq!(judge(&slot, 1), redirected(false));
        assert_eq!((word(&slot, Word::Redirected), word(&slot, Word::Passed), word(&slot, Word::Pieces)), (101, 3, 3));
    }

    #[test]
    fn the_end_of_the_stream_changes_nothing() {
        let slot = slot(100, 0);
        assert_eq!(judge(&slot, 0), Verdict { is_redirect: false, is_event: false });
        assert_eq!(word(&slot, Word::Passed), 0);
    }

    proptest! {
        /// Whatever the daemon publishes in between, every byte is counted once, and what is redirected after something
        /// was passed has waited for it.
        #[test]
        fn every_byte_is_redirected_or_passed_in_order(
            steps in proptest::collection::vec((1_u32..5000, 0_u64..4000, any::<bool>()), 1..200),
        ) {
            let slot = slot(0, 0);
            let (mut sent, mut drained) = (0, 0);
            for (bytes, credit, catches_up) in steps {
                if catches_up {
                    drained = word(&slot, Word::Passed);
                    store(&slot[Word::Drained as usize], drained);
                    store(&slot[Word::Limit as usize], word(&slot, Word::Redirected) + credit);
                }
                let limit = word(&slot, Word::Limit);
                let verdict = judge(&slot, bytes);
                sent += u64::from(bytes);
                prop_assert_eq!(word(&slot, Word::Redirected) + word(&slot, Word::Passed), sent);
                prop_assert!(word(&slot, Word::Redirected) <= limit || !verdict.is_redirect);
                if verdict.is_redirect {
                    prop_assert_eq!(word(&slot, Word::Passed), drained);
                }
            }
        }
    }
}
