//! The thread that reads what the program tells, and wakes the pairs that it is about.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Acquire, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use aya::maps::{MapData, RingBuf};
use mc_proxy_common::splice::{Event, LOST};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

use super::{Shared, maps::SpliceError, slots::event::LOOK};

/// How late lost events are noticed at most.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Ends when dropped.
#[derive(Debug)]
pub(super) struct Reader {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Stop {
    is_set: AtomicBool,
    wake: OwnedFd,
}

impl Reader {
    pub(super) fn start(shared: Arc<Shared>, ring: RingBuf<MapData>) -> Result<Self, SpliceError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| SpliceError::Resource("making an eventfd", error.into()))?;
        let stop = Arc::new(Stop { is_set: AtomicBool::new(false), wake });
        let theirs = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("splice".to_owned())
            .spawn(move || run(&shared, ring, &theirs))
            .map_err(|error| SpliceError::Resource("starting a thread", error))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.is_set.store(true, Relaxed);
        // The counter has room for one.
        let _ = rustix::io::write(&self.stop.wake, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, there is nothing left to end.
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared, mut ring: RingBuf<MapData>, stop: &Stop) {
    let lost = || shared.maps.control().get(LOST as usize).map_or(0, |word| word.load(Acquire));
    let mut lost_before = lost();
    while !stop.is_set.load(Relaxed) {
        while let Some(record) = ring.next() {
            let slot = <[u8; size_of::<Event>()]>::try_from(&*record).map(Event::from_ne_bytes).unwrap_or(Event::MAX);
            let pair = u32::try_from(slot / 2).ok();
            if let Some(signal) = pair.and_then(|pair| shared.slots.signal(pair)) {
                signal.raise(LOOK);
            }
        }
        let lost_now = lost();
        if lost_now != lost_before {
            lost_before = lost_now;
            shared.slots.raise_all();
            continue;
        }
        let mut fds = [PollFd::new(&stop.wake, PollFlags::IN), PollFd::from_borrowed_fd(ring.as_fd(), PollFlags::IN)];
        // A count of lost events may come later than the look at it.
        match poll(&mut fds, Some(&LOOK_AGAIN)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "the events of the kernel splice cannot be read");
                shared.fail();
                return;
            }
        }
    }
}
