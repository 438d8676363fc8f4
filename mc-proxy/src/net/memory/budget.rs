//! The budget, each worker's part in it, and what is charged to it.

use std::{
    cell::{Cell, OnceCell},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Bytes that a worker takes from the budget at a time, at most.
const PORTION_MAX: u64 = 1 << 20;

/// A worker's portion is such a part of the budget, at most: of what all may have, little lies idle with one of them.
const PORTION_SHARE: u64 = 256;

/// The limit, and what has been taken of it by all workers.
#[derive(Debug)]
pub struct Budget {
    limit: Option<u64>,
    portion: u64,
    taken: AtomicU64,
    workers: Mutex<Vec<Arc<Used>>>,
}

/// What one worker uses: written by it alone.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Used(AtomicU64);

/// One thread's part.
struct Account {
    home: OnceCell<(Arc<Budget>, Arc<Used>)>,
    used: Cell<u64>,
    /// What has been taken from the budget; used <= taken, except after [`Charge::force`].
    taken: Cell<u64>,
}

thread_local! {
    static ACCOUNT: Account = const { Account { home: OnceCell::new(), used: Cell::new(0), taken: Cell::new(0) } };
}

impl Budget {
    /// At most `limit` bytes; 0 = unlimited, and only counted.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit: (limit > 0).then_some(limit),
            portion: (limit / PORTION_SHARE).clamp(1, PORTION_MAX),
            taken: 0.into(),
            workers: Mutex::default(),
        })
    }

    /// From now on, what this thread's connections take is taken from here. Only the first call of a thread counts.
    pub fn open_account(self: &Arc<Self>) {
        ACCOUNT.with(|account| {
            account.home.get_or_init(|| {
                let used = Arc::<Used>::default();
                self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&used));
                (Arc::clone(self), used)
            });
        });
    }

    /// Bytes; 0 = unlimited.
    pub fn limit(&self) -> u64 {
        self.limit.unwrap_or(0)
    }

    /// Bytes that connections have now.
    pub fn used(&self) -> u64 {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.iter().map(|used| used.0.load(Relaxed)).sum()
    }

    fn take(&self, bytes: u64) -> bool {
        let Some(limit) = self.limit else { return true };
        let add = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= limit);
        self.taken.fetch_update(Relaxed, Relaxed, add).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        if self.limit.is_some() {
            self.taken.fetch_sub(bytes, Relaxed);
        }
    }
}

impl Account {
    /// Makes sure that `bytes` more can be used.
    fn reserve(&self, bytes: u64) -> bool {
        let Some((budget, _)) = self.home.get() else { return true };
        let wanted = self.used.get().saturating_add(bytes);
        let Some(missing) = wanted.checked_sub(self.taken.get()).filter(|missing| *missing > 0) else { return true };
        for portion in [missing.max(budget.portion), missing] {
            if budget.take(portion) {
                self.taken.set(self.taken.get() + portion);
                return true;
            }
        }
        false
    }

    fn set_used(&self, used: u64) {
        self.used.set(used);
        let Some((budget, published)) = self.home.get() else { return };
        published.0.store(used, Relaxed);
        // One portion is kept for what comes next, unless nothing is left that anything could come after.
        let kept = if used == 0 { 0 } else { used + budget.portion };
        if let Some(surplus) =
            self.taken.get().checked_sub(kept).filter(|surplus| used == 0 || *surplus > budget.portion)
        {
            self.taken.set(kept);
            budget.give_back(surplus);
        }
    }
}

/// Whether this thread's connections could be charged `bytes` more: what is asked before a read whose length decides it.
pub fn has_room(bytes: usize) -> bool {
    ACCOUNT.with(|account| account.reserve(bytes as u64))
}

/// Bytes on this thread's account, given back when dropped. It has to be dropped on the thread that took it, as everything
/// of a connection is.
#[derive(Debug, Default)]
pub struct Charge {
    /// Atomic only so that references may be held where tasks are.
    bytes: AtomicU64,
}

impl Charge {
    /// `None` when the budget has not so much left.
    pub fn take(bytes: u64) -> Option<Self> {
        let charge = Self::default();
        charge.resize(bytes).then_some(charge)
    }

    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Makes it larger or smaller. `false`, and nothing has changed, when the budget has not so much left.
    pub fn resize(&self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes());
        let has_room = more == 0 || ACCOUNT.with(|account| account.reserve(more));
        if has_room {
            self.force(bytes);
        }
        has_room
    }

    /// Makes it larger or smaller, be there room or not: for what cannot be undone, and was [asked](has_room) before.
    pub fn force(&self, bytes: u64) {
        let before = self.bytes.swap(bytes, Relaxed);
        if before != bytes {
            // Without an account (the thread is ending) there is nothing to keep right.
            let _ = ACCOUNT.try_with(|account| account.set_used((account.used.get() + bytes).saturating_sub(before)));
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.force(0);
    }
}
