//! Connections to the backends of a route that wait for the next request.
//!
//! Each worker keeps its own, in whose reactor they are; the lock of a worker's part is taken by that worker, and by another
//! one only when it has none of its own left: it takes the oldest away then, into its own reactor. So all workers share what is
//! there, and no request of a busy one crosses to another core.

use std::{
    cell::{Cell, RefCell},
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::available_parallelism,
    time::Duration,
};

use tokio::time::Instant;

use super::{h1, h2};

/// A connection that has not been used for so long gets its buffers with its next request.
const REST: Duration = Duration::from_secs(1);

thread_local! {
    /// This worker's part of every pool.
    static HOME: Cell<usize> = const { Cell::new(0) };
    /// The pools in which this worker keeps something.
    static LISTED: RefCell<Vec<Weak<Idle>>> = const { RefCell::new(Vec::new()) };
}

/// The idle connections to one route's backends.
#[derive(Debug)]
pub struct Idle {
    /// Made when the first one is kept: most routes of many have none.
    parts: OnceLock<Box<[Mutex<Kept>]>>,
    count: usize,
    /// By backend; one for all clients together.
    open: Arc<[AtomicU64]>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The one that was used last is at the end.
    h1: Vec<(h1::Backend, Instant)>,
    h2: Vec<h2::Handle>,
    is_listed: bool,
    /// By backend: held while a connection is made that others may share.
    gates: Vec<Arc<Gate>>,
}

/// Who wants an HTTP/2 connection waits for the one that is being made, and does not make another.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Held while a connection is made.
    pub(super) making: tokio::sync::Mutex<()>,
    /// The backend was asked, and has chosen HTTP/1.1: there is nothing to wait for.
    pub(super) is_http1: AtomicBool,
}

/// A place among the connections to a backend; given back when dropped.
#[derive(Debug)]
pub struct Open {
    idle: Arc<Idle>,
    place: usize,
}

/// From now on this thread keeps its connections in the part of worker `index`.
pub fn set_home(index: usize) {
    HOME.set(index);
}

/// Closes what this worker has kept for longer than `timeout`, and what the backends have closed.
pub fn sweep(timeout: Duration) {
    let now = Instant::now();
    LISTED.with_borrow_mut(|listed| {
        listed.retain(|idle| idle.upgrade().is_some_and(|idle| idle.sweep(now, timeout)));
    });
}

impl Idle {
    /// For so many backends, kept by every worker for itself.
    pub fn new(backends: usize) -> Arc<Self> {
        let count = available_parallelism().map_or(1, NonZeroUsize::get);
        Arc::new(Self { parts: OnceLock::new(), count, open: (0..backends).map(|_| AtomicU64::new(0)).collect() })
    }

    /// For the requests of one client, in one place. Its connections are among those to the backend.
    pub fn of_client(&self) -> Arc<Self> {
        Arc::new(Self { parts: OnceLock::new(), count: 1, open: Arc::clone(&self.open) })
    }

    /// A place for one more connection to a backend; none when there are `max` already (0 = unlimited).
    pub(super) fn open(self: &Arc<Self>, place: usize, max: u32) -> Option<Open> {
        // The place is taken first: of two that come at once for the last one, one gives it back.
        let open = Open { idle: Arc::clone(self), place };
        let count = self.open.get(place)?.fetch_add(1, Relaxed);
        (max == 0 || count < u64::from(max)).then_some(open)
    }

    /// Closes an unused connection to a backend, whoever keeps it; `false` if there is none.
    pub(super) fn evict(&self, place: usize) -> bool {
        for part in self.parts.get().into_iter().flatten() {
            // A worker that is at it has a use for them.
            let Ok(mut kept) = part.try_lock() else { continue };
            if let Some(at) = kept.h1.iter().position(|(backend, _)| backend.place() == place) {
                let (backend, _) = kept.h1.remove(at);
                drop(kept);
                backend.close();
                return true;
            }
        }
        false
    }

    /// An unused HTTP/1.1 connection to a backend.
    pub(super) fn take_h1(&self, place: usize, timeout: Duration) -> Option<h1::Backend> {
        let now = Instant::now();
        let parts = self.parts.get()?;
        let home = self.home();
        loop {
            let mut own = lock(parts.get(home)?);
            let Some(at) = own.h1.iter().rposition(|(backend, _)| backend.place() == place) else { break };
            let (mut backend, since) = own.h1.remove(at);
            drop(own);
            if now.saturating_duration_since(since) < timeout && backend.is_fresh() {
                return Some(backend);
            }
        }
        for part in parts.iter().enumerate().filter(|(index, _)| *index != home).map(|(_, part)| part) {
            // A worker that is at it has a use for them.
            while let Ok(mut others) = part.try_lock() {
                let Some(at) = others.h1.iter().position(|(backend, _)| backend.place() == place) else { break };
                let (mut backend, since) = others.h1.remove(at);
                drop(others);
                backend.leave();
                if now.saturating_duration_since(since) < timeout && backend.is_fresh() {
                    return Some(backend);
                }
            }
        }
        None
    }

    /// Keeps a connection for the next request, if there are not `max` of its backend already.
    pub(super) fn keep_h1(self: &Arc<Self>, mut backend: h1::Backend, max: usize) {
        backend.settle();
        let mut own = lock(self.part());
        // Only where several backends share the part need they be told apart.
        let of_backend = || own.h1.iter().filter(|(kept, _)| kept.place() == backend.place()).count();
        if own.h1.len() >= max && of_backend() >= max {
            drop(own);
            backend.close();
            return;
        }
        own.h1.push((backend, Instant::now()));
        self.list(&mut own);
    }

    /// An HTTP/2 connection of this worker to a backend that takes another stream, and is not older than that.
    pub(super) fn take_h2(&self, place: usize, age_max: Duration) -> Option<h2::Claim> {
        let mut own = lock(self.parts.get()?.get(self.home())?);
        own.h2.retain(|handle| !handle.is_closed());
        let is_it = |handle: &&h2::Handle| handle.place() == place && handle.age() < age_max && handle.has_room();
        own.h2.iter().find(is_it).map(h2::Handle::claim)
    }

    /// This worker's gate of a backend.
    pub(super) fn gate(&self, place: usize) -> Arc<Gate> {
        let mut own = lock(self.part());
        if own.gates.len() <= place {
            own.gates.resize_with(self.open.len().max(place + 1), Arc::default);
        }
        own.gates.get(place).map(Arc::clone).unwrap_or_default()
    }

    /// Lets this worker's requests share a connection.
    pub(super) fn keep_h2(self: &Arc<Self>, handle: h2::Handle) {
        let mut own = lock(self.part());
        own.h2.push(handle);
        self.list(&mut own);
    }

    /// Closes all: the client whose connections they were is gone.
    pub fn clear(&self) {
        for part in self.parts.get().into_iter().flatten() {
            let kept = std::mem::take(&mut *lock(part));
            kept.h1.into_iter().for_each(|(backend, _)| backend.close());
        }
    }

    fn sweep(&self, now: Instant, timeout: Duration) -> bool {
        let mut own = lock(self.part());
        let is_old = |since: &Instant| now.saturating_duration_since(*since) >= timeout;
        own.h1.retain_mut(|(backend, _)| backend.is_fresh());
        for (backend, _) in own.h1.iter_mut().filter(|(_, since)| now.saturating_duration_since(*since) >= REST) {
            backend.rest();
        }
        own.h1.extract_if(.., |(_, since)| is_old(since)).for_each(|(backend, _)| backend.close());
        own.h2.retain(|handle| !handle.is_closed() && !handle.close_if_unused(now, timeout));
        own.is_listed = !own.h1.is_empty() || !own.h2.is_empty();
        own.is_listed
    }

    fn list(self: &Arc<Self>, own: &mut Kept) {
        if !std::mem::replace(&mut own.is_listed, true) {
            LISTED.with_borrow_mut(|listed| listed.push(Arc::downgrade(self)));
        }
    }

    fn home(&self) -> usize {
        HOME.get() % self.count
    }

    fn part(&self) -> &Mutex<Kept> {
        let parts = self.parts.get_or_init(|| (0..self.count).map(|_| Mutex::default()).collect());
        &parts[self.home()]
    }
}

impl Open {
    /// Which of the backends.
    pub(super) fn place(&self) -> usize {
        self.place
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(open) = self.idle.open.get(self.place) {
            open.fetch_sub(1, Relaxed);
        }
    }
}

fn lock(part: &Mutex<Kept>) -> std::sync::MutexGuard<'_, Kept> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
