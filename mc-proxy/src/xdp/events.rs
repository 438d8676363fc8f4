//! Single packets that were dropped, as the program tells them through its ring buffer.
//!
//! The program sends nothing unless it is given a budget, and nobody gives it one unless somebody listens: a thread renews
//! the budgets ten times a second while there are receivers, and sleeps while there are none. What is sent is bounded by
//! the budgets, whatever is dropped; who receives too slowly misses events and is told how many.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use aya::maps::{Map, MapData, RingBuf};
use mc_proxy_common::{event::DropEvent, maps::Control, reason::Reason, user::Mapping};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    time::{ClockId, clock_gettime},
};
use tokio::sync::broadcast;

use super::{PlaneError, shared::Shared};

/// Budgets are renewed so often while somebody listens.
const EPOCH: Duration = Duration::from_millis(100);

/// Events of one kind in a second, on all CPUs together.
const EVENTS_PER_SECOND: u64 = 1000;

/// Events that a receiver may be behind.
const BACKLOG: usize = 4096;

/// Records read before the thread looks at anything else.
const BATCH: usize = 1024;

/// Interfaces get other numbers, and other names, no more often.
const NAMES_AGE: Duration = Duration::from_secs(5);

/// A packet that was dropped in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelDrop {
    /// When.
    pub at: SystemTime,
    /// Name of the interface; empty when it is gone.
    pub interface: Arc<str>,
    /// Why.
    pub reason: Reason,
    /// Number of the rule group in the tables; 0 when no rule decided.
    pub group: u32,
    /// Who sent it.
    pub source: IpAddr,
    /// TCP destination port; 0 when there is none.
    pub port: u16,
    /// Of the frame; 0 where the kernel does not tell.
    pub bytes: u32,
}

/// Where to listen for packets that are dropped.
#[derive(Clone, Debug)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    drops: broadcast::Sender<KernelDrop>,
    violations: broadcast::Sender<KernelDrop>,
    received: AtomicU64,
    malformed: AtomicU64,
    stops: AtomicBool,
    // What the thread is to read from now on.
    next: Mutex<Option<(MapData, Mapping)>>,
    wake: OwnedFd,
}

impl Events {
    /// All drops from now on: a sample of them when there are many.
    pub fn subscribe(&self) -> broadcast::Receiver<KernelDrop> {
        let receiver = self.0.drops.subscribe();
        self.0.wake();
        receiver
    }

    /// Drops for the rate of new connections only, which have a budget of their own.
    pub fn subscribe_violations(&self) -> broadcast::Receiver<KernelDrop> {
        let receiver = self.0.violations.subscribe();
        self.0.wake();
        receiver
    }

    /// Events that the kernel has sent so far.
    pub fn received(&self) -> u64 {
        self.0.received.load(Relaxed)
    }

    /// Records that were not understood.
    pub fn malformed(&self) -> u64 {
        self.0.malformed.load(Relaxed)
    }
}

impl Inner {
    fn wake(&self) {
        // The counter is full when the thread was told so often that it will look anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// The thread that reads; ends when dropped.
#[derive(Debug)]
pub(super) struct Reader {
    events: Events,
    followed: Option<u32>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    pub(super) fn start() -> Result<Self, PlaneError> {
        let failed = |error: io::Error| PlaneError::caused("starting the thread that reads events", error);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
        let events = Events(Arc::new(Inner {
            drops: broadcast::Sender::new(BACKLOG),
            violations: broadcast::Sender::new(BACKLOG),
            received: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            stops: AtomicBool::new(false),
            next: Mutex::new(None),
            wake,
        }));
        let inner = Arc::clone(&events.0);
        let thread =
            std::thread::Builder::new().name("events".to_owned()).spawn(move || run(&inner)).map_err(failed)?;
        Ok(Self { events, followed: None, thread: Some(thread) })
    }

    pub(super) fn events(&self) -> Events {
        self.events.clone()
    }

    /// Reads the ring buffer of these maps from now on.
    pub(super) fn follow(&mut self, shared: &Shared) -> Result<(), PlaneError> {
        let id = shared.events_id()?;
        if self.followed != Some(id) {
            let source = shared.events()?;
            *self.events.0.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
            self.followed = Some(id);
            self.events.0.wake();
        }
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.events.0.stops.store(true, Relaxed);
        self.events.0.wake();
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, there is nothing left to end.
            let _ = thread.join();
        }
    }
}

/// One ring buffer and the words that pace it.
struct Source {
    ring: RingBuf<MapData>,
    control: Mapping,
    budget: u64,
}

fn run(inner: &Inner) {
    let mut source = None;
    let mut names = Names::default();
    let mut renewed: Option<Instant> = None;
    while !inner.stops.load(Relaxed) {
        // Emptied before what it announces is looked at.
        let _ = rustix::io::read(&inner.wake, &mut [0; 8]);
        if let Some((map, control)) = inner.next.lock().unwrap_or_else(PoisonError::into_inner).take() {
            source = Source::new(map, control);
            renewed = None;
        }
        let wanted = (inner.drops.receiver_count() > 0, inner.violations.receiver_count() > 0);
        let timeout = match &mut source {
            Some(source) if wanted != (false, false) => {
                if renewed.is_none() {
                    // Left over from when nobody listened.
                    while source.ring.next().is_some() {}
                }
                if renewed.is_none_or(|renewed| renewed.elapsed() >= EPOCH) {
                    source.renew(wanted);
                    renewed = Some(Instant::now());
                }
                let is_more = source.read(inner, &mut names);
                let rest = renewed.map_or(EPOCH, |renewed| EPOCH.saturating_sub(renewed.elapsed()));
                Some(if is_more { Duration::ZERO } else { rest })
            }
            Some(source) => {
                if renewed.take().is_some() {
                    source.renew((false, false));
                }
                None
            }
            None => None,
        };
        wait(&inner.wake, source.as_ref().filter(|_| timeout.is_some()), timeout);
    }
    if let Some(source) = &source {
        source.renew((false, false));
    }
}

/// Until somebody wakes the thread, an event comes or the time is over.
fn wait(wake: &OwnedFd, source: Option<&Source>, timeout: Option<Duration>) {
    let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
    fds.extend(source.map(|source| PollFd::from_borrowed_fd(source.ring.as_fd(), PollFlags::IN)));
    // Half a minute is as good as for ever.
    let timeout = timeout.unwrap_or(Duration::from_secs(30));
    let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
    // An interruption ends it early.
    let _ = poll(&mut fds, Some(&timeout));
}

impl Source {
    fn new(map: MapData, control: Mapping) -> Option<Self> {
        let cpus = aya::util::nr_cpus().unwrap_or(1).max(1) as u64;
        let budget = (EVENTS_PER_SECOND / 10 / cpus).max(1);
        match RingBuf::try_from(Map::RingBuf(map)) {
            Ok(ring) => Some(Self { ring, control, budget }),
            Err(error) => {
                let error = PlaneError::caused("mapping the kernel's events", error).chain();
                tracing::warn!(error, "drops are counted, but single ones are not told");
                None
            }
        }
    }

    /// Gives every CPU a new budget.
    fn renew(&self, (drops, violations): (bool, bool)) {
        let word = |which: Control| self.control.get(which as usize);
        let set = |which, is_wanted: bool| {
            if let Some(word) = word(which) {
                word.store(if is_wanted { self.budget } else { 0 }, Relaxed);
            }
        };
        set(Control::DropBudget, drops);
        set(Control::RateBudget, drops || violations);
        if let Some(epoch) = word(Control::Epoch) {
            epoch.fetch_add(1, Relaxed);
        }
    }

    /// Passes on what is there; `true` if there may be more.
    fn read(&mut self, inner: &Inner, names: &mut Names) -> bool {
        let clock = Clock::now();
        for _ in 0..BATCH {
            let Some(record) = self.ring.next() else { return false };
            let event = DropEvent::from_bytes(&record).and_then(|event| Some((event, event.reason()?)));
            let Some((event, reason)) = event else {
                inner.malformed.fetch_add(1, Relaxed);
                continue;
            };
            inner.received.fetch_add(1, Relaxed);
            let event = KernelDrop {
                at: clock.time(event.at),
                interface: names.name(event.interface),
                reason,
                group: event.group,
                source: event.source.addr(),
                port: event.port,
                bytes: event.bytes,
            };
            if reason == Reason::RateLimited {
                // Nobody listening is no error, here and below.
                let _ = inner.violations.send(event.clone());
            }
            let _ = inner.drops.send(event);
        }
        true
    }
}

/// Both clocks at one moment.
struct Clock {
    boot: u64,
    wall: SystemTime,
}

impl Clock {
    fn now() -> Self {
        let boot = clock_gettime(ClockId::Boottime);
        let boot = Duration::new(boot.tv_sec.unsigned_abs(), u32::try_from(boot.tv_nsec).unwrap_or(0));
        Self { boot: u64::try_from(boot.as_nanos()).unwrap_or(u64::MAX), wall: SystemTime::now() }
    }

    fn time(&self, boot: u64) -> SystemTime {
        let past = Duration::from_nanos(self.boot.saturating_sub(boot));
        self.wall.checked_sub(past).unwrap_or(self.wall)
    }
}

/// Names of interfaces by number.
#[derive(Default)]
struct Names {
    known: HashMap<u32, Arc<str>>,
    since: Option<Instant>,
}

impl Names {
    fn name(&mut self, index: u32) -> Arc<str> {
        if self.since.is_none_or(|since| since.elapsed() > NAMES_AGE) {
            self.known.clear();
            self.since = Some(Instant::now());
        }
        Arc::clone(self.known.entry(index).or_insert_with(|| super::netlink::name(index).unwrap_or_default().into()))
    }
}
