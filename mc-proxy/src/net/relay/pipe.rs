//! Pipes for `splice(2)`, kept from one transfer to the next.

use std::{
    cell::RefCell,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice},
};

use crate::net::memory::Charge;

/// Bytes asked for. The kernel gives an unprivileged user 64 MiB of pipes (`fs.pipe-user-pages-soft`); beyond that they
/// stay as small as two pages.
const CAPACITY: usize = 256 * 1024;

/// A pipe that takes less is worse than the buffer that bytes are copied through, and would be lent again and again.
const MIN_CAPACITY: usize = 64 * 1024;

/// Pipes a worker may have at a time. Bulk connections beyond it are copied.
const MAX_PIPES: usize = 128;

/// Empty pipes that a worker keeps.
const MAX_SPARE: usize = 16;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { spare: Vec::new(), taken: 0 }) };
}

struct Pool {
    spare: Vec<Ends>,
    taken: usize,
}

impl Pool {
    fn keep(&mut self, ends: Ends) {
        if self.spare.len() < MAX_SPARE {
            self.spare.push(ends);
        }
    }
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
}

/// A pipe on loan from its thread's pool, and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    ends: Option<Ends>,
    /// 0 <= held <= capacity.
    held: usize,
    /// Of the kernel's memory that it may fill.
    _charge: Charge,
}

impl Pipe {
    /// An empty pipe; `None` when the worker has enough of them, the system has, or memory is short.
    pub(super) fn take() -> Option<Self> {
        POOL.with_borrow_mut(|pool| {
            if pool.taken >= MAX_PIPES {
                return None;
            }
            let ends = pool.spare.pop().or_else(Ends::open)?;
            let Some(charge) = Charge::take(ends.capacity as u64) else {
                pool.keep(ends);
                return None;
            };
            pool.taken += 1;
            Some(Self { ends: Some(ends), held: 0, _charge: charge })
        })
    }

    /// Bytes inside.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Whether a fill could get anything.
    pub(super) fn has_room(&self) -> bool {
        self.ends.as_ref().is_some_and(|ends| self.held < ends.capacity)
    }

    /// Moves bytes from `source` into the pipe. `EAGAIN`: the source has none, if the pipe is empty.
    pub(super) fn fill(&mut self, source: BorrowedFd<'_>) -> Result<usize, Errno> {
        let ends = self.ends.as_ref().ok_or(Errno::BADF)?;
        let room = ends.capacity.saturating_sub(self.held);
        let moved = splice(source, None, &ends.write, None, room, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves bytes from the pipe to `target`.
    pub(super) fn empty(&mut self, target: BorrowedFd<'_>) -> Result<usize, Errno> {
        let ends = self.ends.as_ref().ok_or(Errno::BADF)?;
        let moved = splice(&ends.read, None, target, None, self.held, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?;
        self.held -= moved;
        Ok(moved)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        POOL.with_borrow_mut(|pool| {
            pool.taken -= 1;
            // What is inside belongs to a connection that is gone.
            if let Some(ends) = self.ends.take().filter(|_| self.held == 0) {
                pool.keep(ends);
            }
        });
    }
}

impl Ends {
    fn open() -> Option<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let capacity =
            fcntl_setpipe_size(write.as_fd(), CAPACITY).or_else(|_| fcntl_getpipe_size(write.as_fd())).ok()?;
        (capacity >= MIN_CAPACITY).then_some(Self { read, write, capacity })
    }
}
