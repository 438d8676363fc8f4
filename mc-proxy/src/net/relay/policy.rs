//! Which pairs the kernel carries in `auto`, from what they do. Pure: figures go in, a claim comes out.
//!
//! Measured (`docs/benchmarks.md`): a redirect in the kernel saves the wake-up and the system calls of a small message,
//! and costs more than `splice(2)` for every byte of a large one. Where many pairs talk at once, one wake-up of user space
//! serves many messages: the kernel's way still takes less time for each, but it takes it of whoever sends, while the
//! worker's CPU idles. So there it is the better one only if the worker's CPU is wanted by others too. An idle pair costs the
//! daemon nothing in either place. So a pair starts in user space, and moves when it has proved to be chatty while its worker
//! had little else to do, or had to wait for its CPU; it is taken back when it turns bulk, and to move once more it has to
//! prove four times as much.

use std::time::Duration;

/// Messages in a row, none of them large, after which a pair is chatty. To hand a pair over costs as much as a few of them.
const CHATTY_AFTER: u32 = 32;

/// The proof is not asked to be larger than this, however often a pair has changed its ways.
const CHATTY_AFTER_MAX: u32 = 32 * 1024;

/// A pair with this part of its worker's messages has no others to share a wake-up with.
const LONE_SHARE: u64 = 4;

/// Messages a second of a worker, below which hardly two of them come together.
const QUIET_RATE: u64 = 5_000;

/// A worker that waits for its CPU for this part of the time that it runs shares it with somebody.
const CONTENDED_PART: u32 = 2;

/// Bytes that one look may find and still be a small message.
const SMALL: u64 = 4 * 1024;

/// Pieces of the stream of this size on average are bulk.
const LARGE_PIECE: u64 = 16 * 1024;

/// Bytes in large pieces, or by hand in one go, after which a direction in the kernel is bulk.
const BULK_AFTER: u64 = 512 * 1024;

/// What a pair in user space has done lately.
#[derive(Clone, Copy, Debug)]
pub(super) struct Talk {
    small: u32,
    proof: u32,
    /// Bytes in large messages since it last was chatty.
    large: u64,
}

/// What the messages of a pair's proof were among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Company {
    /// Small messages of all pairs of the worker in that time, the pair's own included.
    pub(super) messages: u64,
    /// How long it took.
    pub(super) time: Duration,
}

impl Company {
    /// Whether a wake-up of the worker serves one message and not many.
    pub(super) fn is_sparse(self, own: u32) -> bool {
        let per_second = u128::from(self.messages) * 1_000_000_000 / self.time.as_nanos().max(1);
        u64::from(own).saturating_mul(LONE_SHARE) >= self.messages || per_second < u128::from(QUIET_RATE)
    }
}

/// What a thread has got of a CPU, in total or in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuTime {
    /// When it ran.
    pub(super) ran: Duration,
    /// When it could have run, and others did.
    pub(super) waited: Duration,
}

impl CpuTime {
    /// What has been added since `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self { ran: self.ran.saturating_sub(earlier.ran), waited: self.waited.saturating_sub(earlier.waited) }
    }

    /// Whether others want the CPU as well.
    pub(super) fn is_contended(self) -> bool {
        self.waited.saturating_mul(CONTENDED_PART) >= self.ran && !self.waited.is_zero()
    }
}

impl Default for Talk {
    fn default() -> Self {
        Self { small: 0, proof: CHATTY_AFTER, large: 0 }
    }
}

impl Talk {
    /// So many bytes have moved in one go, in both directions together.
    pub(super) fn note(&mut self, bytes: u64) {
        match bytes {
            0 => {}
            1..=SMALL => self.small = self.small.saturating_add(1),
            _ => self.small = 0,
        }
    }

    /// As [`Self::note`], of a pair that has not been handed over. One that turns bulk by turns is better off where it is, since
    /// the kernel does not give it back to `splice(2)`: each time it has to prove more.
    pub(super) fn note_in_userspace(&mut self, bytes: u64) {
        self.note(bytes);
        if bytes > SMALL {
            let was_bulk = self.large >= BULK_AFTER;
            self.large = self.large.saturating_add(bytes);
            if self.large >= BULK_AFTER && !was_bulk {
                self.start_over();
            }
        } else if self.small >= CHATTY_AFTER {
            self.large = 0;
        }
    }

    /// Whether it talks in small messages.
    pub(super) fn is_chatty(&self) -> bool {
        self.small >= self.proof
    }

    /// Small messages in a row so far.
    pub(super) fn small(&self) -> u32 {
        self.small
    }

    /// The proof begins anew, without becoming larger.
    pub(super) fn begin(&mut self) {
        self.small = 0;
    }

    /// It was there and has turned bulk, or could not be taken.
    pub(super) fn start_over(&mut self) {
        self.small = 0;
        self.proof = self.proof.saturating_mul(4).min(CHATTY_AFTER_MAX);
    }
}

/// What one direction of a pair does that is in the kernel's hands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flow {
    redirected: u64,
    pieces: u64,
    large: u64,
    is_bulk: bool,
    talk: Talk,
}

impl Flow {
    /// The kernel has redirected so many bytes, in so many pieces, since the pair was handed over.
    pub(super) fn note_redirected(&mut self, redirected: u64, pieces: u64) {
        let (bytes, count) = (redirected.saturating_sub(self.redirected), pieces.saturating_sub(self.pieces));
        (self.redirected, self.pieces) = (redirected, pieces);
        if bytes < LARGE_PIECE.saturating_mul(count) {
            self.large = 0;
        } else {
            self.note_large(bytes);
        }
    }

    /// User space has carried over so many bytes in one go.
    pub(super) fn note_pumped(&mut self, bytes: u64) {
        self.talk.note(bytes);
        if bytes > SMALL {
            self.note_large(bytes);
        } else if self.is_bulk && self.talk.is_chatty() {
            self.is_bulk = false;
            self.large = 0;
            self.talk.start_over();
        }
    }

    /// Whether user space is the better place for it.
    pub(super) fn is_bulk(&self) -> bool {
        self.is_bulk
    }

    fn note_large(&mut self, bytes: u64) {
        self.large = self.large.saturating_add(bytes);
        if self.large >= BULK_AFTER && !self.is_bulk {
            self.is_bulk = true;
            self.talk.start_over();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pair_that_turns_bulk_by_turns_has_to_prove_more_each_time() {
        let mut talk = Talk::default();
        for proof in [CHATTY_AFTER, 4 * CHATTY_AFTER, 16 * CHATTY_AFTER] {
            for _ in 1..proof {
                talk.note_in_userspace(1);
                assert!(!talk.is_chatty());
            }
            talk.note_in_userspace(1);
            assert!(talk.is_chatty());
            for _ in 0..10 {
                talk.note_in_userspace(BULK_AFTER / 2);
            }
        }
    }

    #[test]
    fn who_waits_half_as_long_as_it_runs_shares_its_cpu() {
        let time = |ran, waited| CpuTime { ran: Duration::from_micros(ran), waited: Duration::from_micros(waited) };
        let earlier = time(1_000, 1_000);
        for (later, is_contended) in [
            (time(1_000, 1_000), false),
            (time(2_000, 1_000), false),
            (time(2_000, 1_499), false),
            (time(2_000, 1_500), true),
            (time(1_000, 1_001), true),
            (time(0, 0), false),
        ] {
            assert_eq!(later.since(earlier).is_contended(), is_contended, "{later:?}");
        }
    }

    #[test]
    fn a_pair_that_talks_in_small_messages_becomes_chatty() {
        let mut talk = Talk::default();
        for _ in 1..CHATTY_AFTER {
            talk.note(1);
            talk.note(0);
            assert!(!talk.is_chatty());
        }
        talk.note(SMALL);
        assert!(talk.is_chatty());
        talk.note(SMALL + 1);
        assert!(!talk.is_chatty());
    }

    #[test]
    fn a_pair_among_many_that_talk_stays_where_a_wake_up_serves_many() {
        let company = |messages, millis| Company { messages, time: Duration::from_millis(millis) };
        assert!(company(32, 1).is_sparse(32), "alone");
        assert!(company(128, 1).is_sparse(32), "one of four");
        assert!(!company(1024, 12).is_sparse(32), "one of 32, all busy");
        assert!(company(1024, 1000).is_sparse(32), "one of 32, each at its ease");
        assert!(!Company { messages: u64::MAX, time: Duration::ZERO }.is_sparse(32));
    }

    #[test]
    fn each_return_asks_for_four_times_the_proof() {
        let mut talk = Talk::default();
        let mut needed = Vec::new();
        for _ in 0..8 {
            talk.start_over();
            let mut count = 0;
            while !talk.is_chatty() {
                talk.note(1);
                count += 1;
            }
            needed.push(count);
        }
        assert_eq!(needed, [128, 512, 2048, 8192, 32_768, 32_768, 32_768, 32_768]);
    }

    #[test]
    fn large_pieces_are_bulk_and_small_ones_are_not_however_many() {
        let mut flow = Flow::default();
        for step in 1..=1000 {
            flow.note_redirected(step * 128 * 1024, step * 128);
        }
        assert!(!flow.is_bulk());
        let (bytes, pieces) = (1000 * 128 * 1024, 1000 * 128);
        for step in 1..=4 {
            assert!(!flow.is_bulk());
            flow.note_redirected(bytes + step * 128 * 1024, pieces + step * 2);
        }
        assert!(flow.is_bulk());
    }

    #[test]
    fn what_is_carried_by_hand_is_bulk_until_it_is_chatty_again() {
        let mut flow = Flow::default();
        for _ in 0..8 {
            assert!(!flow.is_bulk());
            flow.note_pumped(64 * 1024);
        }
        assert!(flow.is_bulk());
        for _ in 0..CHATTY_AFTER * 4 {
            assert!(flow.is_bulk());
            flow.note_pumped(100);
        }
        assert!(!flow.is_bulk());
    }

    proptest! {
        #[test]
        fn no_figures_are_too_large(steps in proptest::collection::vec((any::<u32>(), any::<u64>()), 0..100)) {
            let mut flow = Flow::default();
            let (mut redirected, mut pieces) = (0_u64, 0);
            for (count, bytes) in steps {
                redirected = redirected.saturating_add(bytes);
                pieces += u64::from(count);
                flow.note_redirected(redirected, pieces);
                flow.note_pumped(bytes);
            }
        }
    }
}
