//! Connections to the backends of a route that wait for the next request.
//!
//! Each worker keeps its own, in whose reactor they are; the lock of a worker's part is taken by that worker, and by another
//! one only when it has none of its own left: it takes the oldest away then, into its own reactor. So all workers share what is
//! there, and no request of a busy one crosses to another core.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::available_parallelism,
    time::Duration,
};

use tokio::time::Instant;

use super::{h1, h2};

/// So many pools of single clients are looked at for a connection that gives way.
const LOOKED_AT_MAX: usize = 256;

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
    is_of_client: bool,
    common: Arc<Common>,
}

/// What the pools of a route have in common: the one that all clients share, and those of single clients.
#[derive(Debug)]
struct Common {
    /// Connections, by backend.
    open: Box<[AtomicU64]>,
    /// Pools of single clients that may keep something, each once.
    of_clients: Mutex<VecDeque<Weak<Idle>>>,
}

/// A connection that is to give way.
enum Unused {
    H1(Box<h1::Backend>),
    H2(h2::Handle),
}

#[derive(Debug, Default)]
struct Kept {
    /// The one that was used last is at the end.
    h1: Vec<(h1::Backend, Instant)>,
    h2: Vec<h2::Handle>,
    is_listed: bool,
    /// It is one of [`Common::of_clients`].
    is_known: bool,
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
        let open = (0..backends).map(|_| AtomicU64::new(0)).collect();
        let common = Arc::new(Common { open, of_clients: Mutex::default() });
        Arc::new(Self { parts: OnceLock::new(), count, is_of_client: false, common })
    }

    /// For the requests of one client, in one place. Its connections are among those to the backend.
    pub fn of_client(&self) -> Arc<Self> {
        Arc::new(Self { parts: OnceLock::new(), count: 1, is_of_client: true, common: Arc::clone(&self.common) })
    }

    /// A place for one more connection to a backend; none when there are `max` already (0 = unlimited).
    pub(super) fn open(self: &Arc<Self>, place: usize, max: u32) -> Option<Open> {
        // The place is taken first: of two that come at once for the last one, one gives it back.
        let open = Open { idle: Arc::clone(self), place };
        let count = self.common.open.get(place)?.fetch_add(1, Relaxed);
        (max == 0 || count < u64::from(max)).then_some(open)
    }

    /// Whether a backend has `max` connections (0 = unlimited).
    pub(super) fn is_full(&self, place: usize, max: u32) -> bool {
        let count = self.common.open.get(place).map_or(0, |count| count.load(Relaxed));
        max > 0 && count >= u64::from(max)
    }

    /// Closes an unused connection to a backend, whoever keeps it: its place is for another one.
    pub(super) fn evict(self: &Arc<Self>, place: usize) -> Option<Open> {
        let parts = self.parts.get().into_iter().flatten();
        // A worker that is at it has a use for them.
        let mut unused = parts.filter_map(|part| part.try_lock().ok()).filter_map(|mut kept| kept.take_unused(place));
        let unused = unused.next().or_else(|| self.common.take_unused(place))?;
        let mut open = unused.close()?;
        // The client whose it was need not be remembered for it.
        open.idle = Arc::clone(self);
        Some(open)
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
            drop(backend.close());
            return;
        }
        own.h1.push((backend, Instant::now()));
        self.list(&mut own);
    }

    /// An HTTP/2 connection of this worker to a backend that takes another stream, and is not older than that.
    pub(super) fn take_h2(&self, place: usize, age_max: Duration) -> Option<h2::Claim> {
        lock(self.parts.get()?.get(self.home())?).claim_h2(place, age_max)
    }

    /// The same of any worker, and if there is none, one that would else get no more streams. Its streams pass from core to core: for
    /// when there can be no other connection.
    pub(super) fn share_h2(&self, place: usize) -> Option<h2::Claim> {
        let parts = self.parts.get()?;
        let good = parts.iter().find_map(|part| lock(part).claim_h2(place, Duration::MAX));
        good.or_else(|| parts.iter().find_map(|part| lock(part).claim_any_h2(place)))
    }

    /// This worker's gate of a backend.
    pub(super) fn gate(&self, place: usize) -> Arc<Gate> {
        let mut own = lock(self.part());
        if own.gates.len() <= place {
            own.gates.resize_with(self.common.open.len().max(place + 1), Arc::default);
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
            kept.h1.into_iter().for_each(|(backend, _)| drop(backend.close()));
        }
    }

    fn sweep(&self, now: Instant, timeout: Duration) -> bool {
        let mut own = lock(self.part());
        let is_old = |since: &Instant| now.saturating_duration_since(*since) >= timeout;
        own.h1.retain_mut(|(backend, _)| backend.is_fresh());
        for (backend, _) in own.h1.iter_mut().filter(|(_, since)| now.saturating_duration_since(*since) >= REST) {
            backend.rest();
        }
        own.h1.extract_if(.., |(_, since)| is_old(since)).for_each(|(backend, _)| drop(backend.close()));
        own.h2.retain(|handle| !handle.is_closed() && !handle.close_if_unused(now, timeout));
        own.is_listed = !own.is_empty();
        own.is_listed
    }

    fn list(self: &Arc<Self>, own: &mut Kept) {
        if !std::mem::replace(&mut own.is_listed, true) {
            LISTED.with_borrow_mut(|listed| listed.push(Arc::downgrade(self)));
        }
        if self.is_of_client && !std::mem::replace(&mut own.is_known, true) {
            self.common.know(self);
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

impl Common {
    /// A pool of a single client keeps something.
    fn know(&self, idle: &Arc<Idle>) {
        let mut of_clients = lock(&self.of_clients);
        // Those of clients that are gone are as many as the others at most.
        if of_clients.len() == of_clients.capacity() {
            of_clients.retain(|idle| idle.strong_count() > 0);
            // So that it is not looked through again before as many have come.
            let alive = of_clients.len();
            of_clients.reserve(alive + 1);
        }
        of_clients.push_back(Arc::downgrade(idle));
    }

    /// An unused connection of a single client. Who holds the lock of a part may wait for that of this list: here nobody waits
    /// for a part.
    fn take_unused(&self, place: usize) -> Option<Unused> {
        let mut of_clients = lock(&self.of_clients);
        for _ in 0..of_clients.len().min(LOOKED_AT_MAX) {
            let Some(idle) = of_clients.pop_front()?.upgrade() else { continue };
            let Some(Ok(mut kept)) = idle.parts.get().and_then(|parts| parts.first()).map(Mutex::try_lock) else {
                of_clients.push_back(Arc::downgrade(&idle));
                continue;
            };
            let unused = kept.take_unused(place);
            // It comes back when something is kept again.
            kept.is_known = !kept.is_empty();
            if kept.is_known {
                of_clients.push_back(Arc::downgrade(&idle));
            }
            if unused.is_some() {
                return unused;
            }
        }
        None
    }
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.h1.is_empty() && self.h2.is_empty()
    }

    fn claim_h2(&mut self, place: usize, age_max: Duration) -> Option<h2::Claim> {
        self.h2.retain(|handle| !handle.is_closed());
        let is_it = |handle: &&h2::Handle| handle.place() == place && handle.age() < age_max && handle.has_room();
        self.h2.iter().find(is_it).map(h2::Handle::claim)
    }

    fn claim_any_h2(&self, place: usize) -> Option<h2::Claim> {
        self.h2.iter().find(|handle| handle.place() == place && handle.has_slot()).map(h2::Handle::claim)
    }

    /// The connection to a backend that has not been used for longest. Streams of HTTP/2 are claimed under the lock that this is
    /// behind: none begins meanwhile.
    fn take_unused(&mut self, place: usize) -> Option<Unused> {
        if let Some(at) = self.h1.iter().position(|(backend, _)| backend.place() == place) {
            return Some(Unused::H1(Box::new(self.h1.remove(at).0)));
        }
        let at = self.h2.iter().position(|handle| handle.place() == place && handle.is_unused())?;
        Some(Unused::H2(self.h2.remove(at)))
    }
}

impl Unused {
    /// Its place is free at once: what is left of it is to say goodbye.
    fn close(self) -> Option<Open> {
        match self {
            Self::H1(backend) => Some(backend.close()),
            Self::H2(handle) => handle.close(),
        }
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
        if let Some(open) = self.idle.common.open.get(self.place) {
            open.fetch_sub(1, Relaxed);
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
