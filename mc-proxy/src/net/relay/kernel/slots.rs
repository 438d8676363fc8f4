//! Which slots are taken, who is woken for them, and how much credit they have together.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
    task::Waker,
    time::Duration,
};

use atomic_waker::AtomicWaker;
use mc_proxy_common::splice::SLOTS_MAX;
use tokio::time::Instant;

/// Pairs at a time.
pub(super) const PAIRS_MAX: u32 = SLOTS_MAX / 2;

/// A verdict that was under way when a slot was given back may still write to it: nobody gets the slot before.
const QUARANTINE: Duration = Duration::from_secs(1);

/// Bytes that all directions together may have redirected and not written.
const BUDGET: u64 = 256 << 20;

/// What a pair's task is woken for: bits.
pub(super) mod event {
    /// The client has ended its side.
    pub(in super::super) const CLIENT_ENDED: u32 = 1;
    /// The client's connection has failed, or both sides have ended.
    pub(in super::super) const CLIENT_FAILED: u32 = 1 << 1;
    /// The backend has ended its side.
    pub(in super::super) const BACKEND_ENDED: u32 = 1 << 2;
    /// The backend's connection has failed, or both sides have ended.
    pub(in super::super) const BACKEND_FAILED: u32 = 1 << 3;
    /// The program has something to tell, or the mode has changed.
    pub(in super::super) const LOOK: u32 = 1 << 4;
}

/// What a pair's task waits for.
#[derive(Debug, Default)]
pub(super) struct Signal {
    waker: AtomicWaker,
    events: AtomicU32,
}

impl Signal {
    /// From any thread.
    pub(super) fn raise(&self, events: u32) {
        self.events.fetch_or(events, AcqRel);
        self.waker.wake();
    }

    /// What has been raised since the last time; who asks is woken for the next.
    pub(super) fn take(&self, waker: &Waker) -> u32 {
        self.waker.register(waker);
        self.events.swap(0, AcqRel)
    }

    fn clear(&self) {
        self.waker.take();
        self.events.store(0, Relaxed);
    }
}

/// Pairs by number. The slots of pair `n` are `2n`, from the client, and `2n + 1`, from the backend.
#[derive(Debug)]
pub(super) struct Slots {
    free: Mutex<Free>,
    signals: Box<[Signal]>,
    credit: AtomicU64,
}

#[derive(Debug, Default)]
struct Free {
    returned: VecDeque<(Instant, u32)>,
    /// Pairs from here on have never been taken.
    fresh: u32,
}

impl Slots {
    pub(super) fn new() -> Self {
        let signals = (0..PAIRS_MAX).map(|_| Signal::default()).collect();
        Self { free: Mutex::default(), signals, credit: AtomicU64::new(0) }
    }

    /// The number of a pair that nobody has.
    pub(super) fn take(&self, now: Instant) -> Option<u32> {
        // Nothing can panic half-way through a change.
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let is_rested = |at: Instant| now.saturating_duration_since(at) >= QUARANTINE;
        if free.returned.front().is_some_and(|(at, _)| is_rested(*at)) {
            return free.returned.pop_front().map(|(_, pair)| pair);
        }
        let pair = (free.fresh < PAIRS_MAX).then_some(free.fresh)?;
        free.fresh += 1;
        Some(pair)
    }

    pub(super) fn give_back(&self, pair: u32, now: Instant) {
        if let Some(signal) = self.signal(pair) {
            signal.clear();
        }
        self.free.lock().unwrap_or_else(PoisonError::into_inner).returned.push_back((now, pair));
    }

    pub(super) fn signal(&self, pair: u32) -> Option<&Signal> {
        self.signals.get(pair as usize)
    }

    /// Every pair's task looks.
    pub(super) fn raise_all(&self) {
        for signal in &self.signals {
            signal.raise(event::LOOK);
        }
    }

    /// Replaces a direction's credit: at most `wanted`, and of what the others have left no more than a share, so that
    /// there is some for everybody.
    pub(super) fn credit(&self, had: u64, wanted: u64) -> u64 {
        const SHARE: u64 = 16;
        let mut granted = 0;
        // The closure always gives a value.
        let _ = self.credit.fetch_update(AcqRel, Relaxed, |all| {
            let others = all.saturating_sub(had);
            granted = wanted.min(BUDGET.saturating_sub(others) / SHARE);
            Some(others + granted)
        });
        granted
    }

    /// Bytes of credit that are given out.
    pub(super) fn credited(&self) -> u64 {
        self.credit.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slot_rests_before_it_is_taken_again() {
        let slots = Slots::new();
        let now = Instant::now();
        assert_eq!(slots.take(now), Some(0));
        slots.give_back(0, now);
        assert_eq!(slots.take(now), Some(1));
        assert_eq!(slots.take(now + QUARANTINE), Some(0));
        for pair in 2..PAIRS_MAX {
            assert_eq!(slots.take(now + QUARANTINE), Some(pair));
        }
        assert_eq!(slots.take(now + QUARANTINE), None);
    }

    #[test]
    fn all_credit_together_is_bounded() {
        let slots = Slots::new();
        let wanted = 256 << 10;
        let granted: Vec<_> = (0..10_000).map(|_| slots.credit(0, wanted)).collect();
        assert_eq!(granted[0], wanted);
        assert!(granted.iter().sum::<u64>() <= BUDGET);
        assert_eq!(slots.credited(), granted.iter().sum::<u64>());
        for had in granted {
            slots.credit(had, 0);
        }
        assert_eq!(slots.credited(), 0);
        assert_eq!(slots.credit(0, wanted), wanted);
    }
}
