//! Connections whose client has not said yet whom it wants: who has to give way when memory is short.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::poll_fn,
    task::{Context, Poll, Waker},
};

use super::{CONNECTION, Charge};

thread_local! {
    /// Of this thread, by age: the last is the newest.
    static WAITING: RefCell<Waiting> = const { RefCell::new(Waiting { next: 0, entries: BTreeMap::new() }) };
}

struct Waiting {
    next: u64,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Default)]
struct Entry {
    charge: Charge,
    waker: Option<Waker>,
}

/// A connection's place among them, and what it is charged. It belongs to the thread that made it.
#[derive(Debug)]
pub struct Anonymous(u64);

impl Anonymous {
    /// A place for a connection that has just been accepted, if need be that of the newest before it. `None` when there is
    /// no room and nobody who could give way.
    pub fn admit() -> Option<Self> {
        let charge = Charge::default();
        while !charge.resize(CONNECTION) {
            shed_newest()?;
        }
        let sequence = WAITING.with_borrow_mut(|waiting| {
            let sequence = waiting.next;
            waiting.next += 1;
            waiting.entries.insert(sequence, Entry { charge, waker: None });
            sequence
        });
        Some(Self(sequence))
    }

    /// Makes room for `bytes` beyond the fixed sum; the newest gives way, which may be this one. `false` when it has, and
    /// the connection is to end.
    pub fn hold(&self, bytes: usize) -> bool {
        let wanted = CONNECTION + bytes as u64;
        loop {
            let held = WAITING.with_borrow(|waiting| Some(waiting.entries.get(&self.0)?.charge.resize(wanted)));
            match held {
                None => return false,
                Some(true) => return true,
                Some(false) => drop(shed_newest()),
            }
        }
    }

    /// Waits until this one has to give way.
    pub async fn shed(&self) {
        poll_fn(|cx| self.poll_shed(cx)).await;
    }

    fn poll_shed(&self, cx: &mut Context<'_>) -> Poll<()> {
        WAITING.with_borrow_mut(|waiting| {
            let Some(entry) = waiting.entries.get_mut(&self.0) else { return Poll::Ready(()) };
            if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                entry.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
    }

    /// The client has said whom it wants: from now on the connection is not cut for want of memory. `None` when it has been
    /// just before.
    pub fn known(self) -> Option<Charge> {
        self.leave().map(|entry| entry.charge)
    }

    fn leave(&self) -> Option<Entry> {
        // The thread may be ending.
        WAITING.try_with(|waiting| waiting.borrow_mut().entries.remove(&self.0)).ok().flatten()
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        drop(self.leave());
    }
}

/// Its charge is given back at once, its memory with the next turn of its task.
fn shed_newest() -> Option<()> {
    let (_, Entry { charge, waker }) = WAITING.with_borrow_mut(|waiting| waiting.entries.pop_last())?;
    drop(charge);
    if let Some(waker) = waker {
        waker.wake();
    }
    Some(())
}
