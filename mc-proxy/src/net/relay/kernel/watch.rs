//! Events of spliced sockets that are not about bytes.
//!
//! A socket registered for reading wakes its epoll instance for every packet, even if the kernel has sent the packet on
//! already. So each worker has a second instance, where the sockets of spliced pairs are registered for the end of the
//! stream and for failures alone.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Weak},
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Kernel,
    slots::event::{BACKEND_ENDED, BACKEND_FAILED, CLIENT_ENDED, CLIENT_FAILED},
};

/// Events read at a time.
const BATCH: usize = 256;

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// A thread's instance.
#[derive(Clone, Debug)]
pub(super) struct Watch(Arc<AsyncFd<OwnedFd>>);

/// Which of the two sockets of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Client,
    Backend,
}

impl Watch {
    /// The calling worker's; made, with the task that reads it, when it is first asked for.
    pub(super) fn of_thread(kernel: &Arc<Kernel>) -> io::Result<Self> {
        WATCH.with_borrow_mut(|watch| {
            if let Some(watch) = watch {
                return Ok(watch.clone());
            }
            let epoll = epoll::create(CreateFlags::CLOEXEC)?;
            #[expect(
                deprecated,
                reason = "its successor is unsafe for the sake of types that lie about their descriptor"
            )]
            let made = Self(Arc::new(AsyncFd::with_interest(epoll, Interest::READABLE)?));
            tokio::task::spawn(read(Arc::downgrade(kernel), made.clone()));
            Ok(watch.insert(made).clone())
        })
    }

    /// Edge-triggered: what is so already is told at once, and every change once.
    pub(super) fn add(&self, socket: BorrowedFd<'_>, pair: u32, end: End) -> io::Result<()> {
        let flags = EventFlags::RDHUP | EventFlags::ERR | EventFlags::HUP | EventFlags::ET;
        Ok(epoll::add(self.0.as_fd(), socket, EventData::new_u64(data(pair, end)), flags)?)
    }

    pub(super) fn remove(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(self.0.as_fd(), socket)?)
    }

    /// Passes on what there is.
    fn tell(&self, kernel: &Kernel) -> Result<(), Errno> {
        let mut events: Vec<Event> = Vec::with_capacity(BATCH);
        loop {
            events.clear();
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(self.0.as_fd(), room, Some(&Timespec::default())) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
            for event in &events {
                let (flags, data) = (event.flags, event.data);
                raise(kernel, data.u64(), flags);
            }
            if events.len() < BATCH {
                return Ok(());
            }
        }
    }
}

/// As long as there is an engine.
async fn read(kernel: Weak<Kernel>, watch: Watch) {
    loop {
        let Ok(mut guard) = watch.0.readable().await else { return };
        // Before reading: what comes from here on is a new edge.
        guard.clear_ready();
        let Some(kernel) = kernel.upgrade() else { return };
        if let Err(error) = watch.tell(&kernel) {
            tracing::error!(%error, "the events of spliced connections cannot be read");
            kernel.fail();
            return;
        }
    }
}

fn data(pair: u32, end: End) -> u64 {
    u64::from(pair) << 1 | u64::from(end == End::Backend)
}

fn raise(kernel: &Kernel, data: u64, flags: EventFlags) {
    let is_backend = data & 1 == 1;
    let (ended, failed) = if is_backend { (BACKEND_ENDED, BACKEND_FAILED) } else { (CLIENT_ENDED, CLIENT_FAILED) };
    let mut events = 0;
    if flags.contains(EventFlags::RDHUP) {
        events |= ended;
    }
    if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
        events |= failed;
    }
    if let Some(signal) = u32::try_from(data >> 1).ok().and_then(|pair| kernel.shared.slots.signal(pair)) {
        signal.raise(events);
    }
}
