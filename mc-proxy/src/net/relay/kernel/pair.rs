//! The hold of one pair on the kernel's maps.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release},
    },
};

use mc_proxy_common::{
    splice::Word,
    user::tcp::{self, TcpInfo},
};
use rustix::net::sockopt;
use tokio::time::Instant;

use super::{
    Kernel,
    watch::{End, Watch},
};
use crate::net::socket::Socket;

/// Two sockets whose streams the program carries on. Dropped, they are plain sockets again; what they held that was passed
/// and not drained is lost, so whoever drops it early resets them.
#[derive(Debug)]
pub(super) struct Pair {
    kernel: Arc<Kernel>,
    watch: Watch,
    number: u32,
    cookies: [u64; 2],
}

/// One direction of a pair, as the program sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot<'pair> {
    words: &'pair [AtomicU64],
}

impl Pair {
    /// Hands two connected sockets over, whose receive queues may hold what has not been read at all, but no piece that has
    /// been read in part. Nothing is redirected before there is credit.
    pub(super) fn new(kernel: &Arc<Kernel>, client: &Socket, backend: &Socket) -> io::Result<Self> {
        for socket in [client, backend] {
            if TcpInfo::of(socket.as_fd())?.state != tcp::ESTABLISHED {
                return Err(io::Error::other("a side has ended already"));
            }
        }
        let cookies = [sockopt::socket_cookie(client)?, sockopt::socket_cookie(backend)?];
        let watch = Watch::of_thread(kernel)?;
        let number = kernel.shared.slots.take(Instant::now()).ok_or_else(|| io::Error::other("all slots are taken"))?;
        let pair = Self { kernel: Arc::clone(kernel), watch, number, cookies };
        let maps = &kernel.shared.maps;
        for slot in [pair.up(), pair.down()] {
            slot.reset();
        }
        let [up, down] = pair.slots();
        // The program has to know a socket before it judges it: from its being a target on.
        maps.add_source(pair.cookies[0], up).map_err(io::Error::other)?;
        maps.add_source(pair.cookies[1], down).map_err(io::Error::other)?;
        maps.add_target(up, backend.as_fd()).map_err(io::Error::other)?;
        maps.add_target(down, client.as_fd()).map_err(io::Error::other)?;
        let watched = pair
            .watch
            .add(client.as_fd(), number, End::Client)
            .and_then(|()| pair.watch.add(backend.as_fd(), number, End::Backend));
        watched.inspect_err(|_| pair.unwatch(client, backend))?;
        Ok(pair)
    }

    /// The number of its signal.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// From the client to the backend.
    pub(super) fn up(&self) -> Slot<'_> {
        Slot { words: self.kernel.shared.maps.slot(self.slots()[0]) }
    }

    /// From the backend to the client.
    pub(super) fn down(&self) -> Slot<'_> {
        Slot { words: self.kernel.shared.maps.slot(self.slots()[1]) }
    }

    fn slots(&self) -> [u32; 2] {
        [self.number * 2, self.number * 2 + 1]
    }

    /// No more events of these sockets; before they are closed, or given to somebody else.
    pub(super) fn unwatch(&self, client: &Socket, backend: &Socket) {
        for socket in [client, backend] {
            // One that was not added, on the way out of a failure.
            let _ = self.watch.remove(socket.as_fd());
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let maps = &self.kernel.shared.maps;
        // Targets first: a socket that is judged has to be known. One whose socket is closed has left the map by itself.
        for slot in self.slots() {
            let _ = maps.remove_target(slot);
        }
        for cookie in self.cookies {
            let _ = maps.remove_source(cookie);
        }
        self.kernel.shared.slots.give_back(self.number, Instant::now());
    }
}

impl Slot<'_> {
    fn reset(self) {
        for word in self.words {
            word.store(0, Relaxed);
        }
        self.store(Word::Mark, u64::MAX);
    }

    /// Bytes that the program has redirected.
    pub(super) fn redirected(self) -> u64 {
        self.load(Word::Redirected)
    }

    /// Pieces of the stream that the program has redirected.
    pub(super) fn pieces(self) -> u64 {
        self.load(Word::Pieces)
    }

    /// Bytes that the program has left with the source.
    pub(super) fn passed(self) -> u64 {
        self.load(Word::Passed)
    }

    /// So many of the bytes that were left have been carried over.
    pub(super) fn set_drained(self, drained: u64) {
        self.store(Word::Drained, drained);
    }

    /// So many bytes may be redirected in all, and above `mark` an event is due.
    pub(super) fn set_limit(self, limit: u64, mark: u64) {
        // With the old limit and the new mark an event comes too early at worst.
        self.store(Word::Mark, mark);
        self.store(Word::Limit, limit);
    }

    fn load(self, word: Word) -> u64 {
        self.words.get(word as usize).map_or(0, |word| word.load(Acquire))
    }

    fn store(self, word: Word, value: u64) {
        if let Some(word) = self.words.get(word as usize) {
            word.store(value, Release);
        }
    }
}

/// The same for a socket that nobody writes to: exact, where [`written`] may be too low.
pub(super) fn written_in_all(socket: BorrowedFd<'_>) -> io::Result<u64> {
    /// Each try fails only if the peer has acknowledged something during it, and less and less is left to acknowledge.
    const TRIES: usize = 16;
    for _ in 0..TRIES {
        let acked = TcpInfo::of(socket)?.bytes_acked;
        let queued = tcp::unacknowledged(socket)?;
        if TcpInfo::of(socket)?.bytes_acked == acked {
            return Ok(acked + queued);
        }
    }
    Err(io::Error::other("the peer acknowledges faster than one can count"))
}

/// Bytes that have been put into a socket's send queue since it was made, and a constant. Never more than there are: what
/// the peer acknowledges between the two questions is missing.
pub(super) fn written(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let acked = TcpInfo::of(socket)?.bytes_acked;
    Ok(acked + tcp::unacknowledged(socket)?)
}
