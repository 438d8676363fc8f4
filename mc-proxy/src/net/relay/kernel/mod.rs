//! Pairs that the kernel carries (SOCKMAP): what one socket receives is sent out of the other without the daemon's waking.
//!
//! The program has no back-pressure of its own, and a socket that is closed or shut down takes with it what it has not
//! sent. So every direction has a limit on what may be under way ([`mc_proxy_common::splice`]), and is taken back into
//! user space before its end is passed on ([`direction`]). [`Carried`] stands beside the two directions of a relay and
//! says, look by look, which of them user space has to see to; what they do then is what they always do.
//!
//! A pair that was handed over stays with the program until it ends: a socket cannot be taken out of a map while it
//! receives without the risk of losing a piece. "Back in user space" means that nothing is redirected, and that
//! everything is read from the socket's own queue and copied.
//!
//! A pair in the kernel wakes its task when a side ends or fails ([`watch`]), when half of its credit is used or a piece
//! has found none ([`events`]), and for the idle timer.

mod direction;
mod events;
mod maps;
mod pair;
mod slots;
mod watch;

use std::{
    io,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use mc_proxy_common::user::tcp::TcpInfo;
use rustix::net::sockopt;

pub use self::maps::SpliceError;
use self::{
    direction::{Look, Spliced},
    events::Reader,
    maps::Maps,
    pair::Pair,
    slots::{Slots, event},
};
use super::{Ended, Terms, Transferred, direction::Direction};
use crate::net::socket::Socket;

/// The engine: program, maps and the thread that reads the program's events.
#[derive(Debug)]
pub struct Kernel {
    shared: Arc<Shared>,
    counters: Counters,
    _reader: Reader,
}

#[derive(Debug)]
struct Shared {
    maps: Maps,
    slots: Slots,
    has_failed: AtomicBool,
}

#[derive(Debug, Default)]
struct Counters {
    pairs: AtomicU64,
    taken: AtomicU64,
    refused: AtomicU64,
    latched: AtomicU64,
    bytes: AtomicU64,
}

/// What the engine has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Pairs that the program is on now.
    pub pairs: u64,
    /// Pairs that were handed over, ever.
    pub taken: u64,
    /// How often a pair was to be handed over and could not be.
    pub refused: u64,
    /// How often a direction was taken back into user space, for want of credit, for its end or for its ways.
    pub latched: u64,
    /// Bytes that the kernel has carried, of pairs that have ended.
    pub bytes: u64,
    /// Bytes that all pairs together may have under way beyond their targets' send buffers.
    pub credit: u64,
}

impl Kernel {
    /// Makes the maps and loads the program. Nothing of it is pinned: pairs end with the daemon.
    ///
    /// # Errors
    /// Without `CAP_BPF` and `CAP_NET_ADMIN`, or from a kernel that does not take the program.
    pub fn load() -> Result<Arc<Self>, SpliceError> {
        let (maps, events) = Maps::load()?;
        let shared = Arc::new(Shared { maps, slots: Slots::new(), has_failed: AtomicBool::new(false) });
        let reader = Reader::start(Arc::clone(&shared), events)?;
        Ok(Arc::new(Self { shared, counters: Counters::default(), _reader: reader }))
    }

    /// Whether nothing can be left to it any more.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.has_failed.load(Relaxed)
    }

    /// Nothing is left to it from here on.
    pub(super) fn fail(&self) {
        self.shared.fail();
    }

    /// Every pair is looked at, after the mode was changed.
    pub(super) fn look(&self) {
        self.shared.slots.raise_all();
    }

    /// What it has done.
    pub fn figures(&self) -> Figures {
        let counters = &self.counters;
        Figures {
            pairs: counters.pairs.load(Relaxed),
            taken: counters.taken.load(Relaxed),
            refused: counters.refused.load(Relaxed),
            latched: counters.latched.load(Relaxed),
            bytes: counters.bytes.load(Relaxed),
            credit: self.shared.slots.credited(),
        }
    }
}

impl Shared {
    /// Without its events a pair would not hear of ends and used-up credit: all of them go back to user space.
    fn fail(&self) {
        self.has_failed.store(true, Relaxed);
        self.slots.raise_all();
    }
}

/// A pair that the program is on.
#[derive(Debug)]
pub(super) struct Carried {
    kernel: Arc<Kernel>,
    pair: Pair,
    up: Spliced,
    down: Spliced,
    /// At the last question for it.
    acked: [u64; 2],
}

/// What a look at both directions needs beside them.
pub(super) struct Both<'a, 'cx> {
    pub(super) cx: &'a mut Context<'cx>,
    pub(super) client: &'a mut Socket,
    pub(super) backend: &'a mut Socket,
    pub(super) up: &'a mut Direction,
    pub(super) down: &'a mut Direction,
    pub(super) buffer: &'a mut [u8],
    pub(super) transferred: &'a mut Transferred,
    pub(super) terms: Terms<'a>,
    pub(super) is_draining: bool,
}

impl Carried {
    /// Hands a pair over. Both directions have to be open, and hold nothing that was read and not written; no piece may
    /// have been read in part.
    ///
    /// # Errors
    /// When a side has ended, all slots are taken, or the kernel does not take a socket. The pair then stays where it is.
    pub(super) fn new(kernel: &Arc<Kernel>, client: &Socket, backend: &Socket) -> io::Result<Self> {
        let made = Self::try_new(kernel, client, backend);
        let counter = if made.is_ok() { &kernel.counters.taken } else { &kernel.counters.refused };
        counter.fetch_add(1, Relaxed);
        made
    }

    fn try_new(kernel: &Arc<Kernel>, client: &Socket, backend: &Socket) -> io::Result<Self> {
        // What is written before the program is there has been written by user space.
        let (up, down) = (Spliced::new(backend)?, Spliced::new(client)?);
        let acked = [TcpInfo::of(client.as_fd())?.bytes_acked, TcpInfo::of(backend.as_fd())?.bytes_acked];
        let pair = Pair::new(kernel, client, backend)?;
        kernel.counters.pairs.fetch_add(1, Relaxed);
        Ok(Self { kernel: Arc::clone(kernel), pair, up, down, acked })
    }

    /// Sees to what user space has to, in each direction. `Ready(Err)` when the pair has failed.
    pub(super) fn poll(&mut self, both: &mut Both<'_, '_>) -> Result<(Poll<()>, Poll<()>), Ended> {
        let shared = &self.kernel.shared;
        let events = shared.slots.signal(self.pair.number()).map_or(0, |signal| signal.take(both.cx.waker()));
        // After the events, or a change of it could be missed.
        let mode = both.terms.mode_now(both.is_draining);
        if events & event::CLIENT_FAILED != 0 && has_failed(both.client) {
            return Err(Ended::ClientFailed);
        }
        if events & event::BACKEND_FAILED != 0 && has_failed(both.backend) {
            return Err(Ended::BackendFailed);
        }
        if events & (event::CLIENT_ENDED | event::CLIENT_FAILED) != 0 {
            self.up.note_end();
        }
        if events & (event::BACKEND_ENDED | event::BACKEND_FAILED) != 0 {
            self.down.note_end();
        }
        let latched = |spliced: &Spliced| spliced.latched();
        let before = latched(&self.up) + latched(&self.down);
        let up = self.up.poll(
            both.up,
            &mut Look {
                cx: both.cx,
                slot: self.pair.up(),
                source: both.client,
                target: both.backend,
                buffer: both.buffer,
                moved: &mut both.transferred.client,
                slots: &shared.slots,
                mode,
            },
        );
        let down = self.down.poll(
            both.down,
            &mut Look {
                cx: both.cx,
                slot: self.pair.down(),
                source: both.backend,
                target: both.client,
                buffer: both.buffer,
                moved: &mut both.transferred.backend,
                slots: &shared.slots,
                mode,
            },
        );
        self.kernel.counters.latched.fetch_add(latched(&self.up) + latched(&self.down) - before, Relaxed);
        let up = up.map_err(super::client_to_backend);
        let down = down.map_err(super::backend_to_client);
        if self.up.is_redirecting() && self.down.is_redirecting() {
            // A socket that is registered for reading wakes the worker with every packet.
            both.client.deregister();
            both.backend.deregister();
        }
        match (up, down) {
            (Poll::Ready(Err(ended)), _) | (_, Poll::Ready(Err(ended))) => Err(ended),
            (up, down) => Ok((up.map(drop), down.map(drop))),
        }
    }

    /// Whether to look again soon, though nothing may wake the task.
    pub(super) fn is_waiting(&self) -> bool {
        self.up.is_waiting() || self.down.is_waiting()
    }

    /// Whether the targets have written something since the last question.
    pub(super) fn has_moved(&mut self, client: &Socket, backend: &Socket) -> bool {
        // Both are asked: each remembers its own answer.
        self.up.has_moved(backend) | self.down.has_moved(client)
    }

    /// Whether user space carries everything, in both directions, and the kernel has nothing under way.
    pub(super) fn is_in_userspace(&self) -> bool {
        self.up.is_pumping() && self.down.is_pumping()
    }

    /// Bytes that the kernel has carried, from the client and from the backend.
    pub(super) fn carried(&self, client: &Socket, backend: &Socket) -> Transferred {
        Transferred {
            client: self.up.carried(self.pair.up(), backend),
            backend: self.down.carried(self.pair.down(), client),
        }
    }

    /// For how long nothing has moved, as far as the kernel tells: something was received, or taken by a peer. An
    /// acknowledgement alone is none: it may be that of a keepalive probe.
    pub(super) fn quiet_for(&mut self, client: &Socket, backend: &Socket) -> io::Result<Duration> {
        let mut quiet = u32::MAX;
        for (socket, acked) in [client, backend].into_iter().zip(&mut self.acked) {
            let info = TcpInfo::of(socket.as_fd())?;
            quiet = quiet.min(info.last_data_recv);
            if std::mem::replace(acked, info.bytes_acked) != info.bytes_acked {
                quiet = quiet.min(info.last_ack_recv);
            }
        }
        Ok(Duration::from_millis(quiet.into()))
    }

    /// Ends the hold on the sockets, which are about to be closed or reset.
    pub(super) fn end(mut self, client: &Socket, backend: &Socket) -> Transferred {
        let carried = self.carried(client, backend);
        self.kernel.counters.bytes.fetch_add(carried.client + carried.backend, Relaxed);
        self.up.release(&self.kernel.shared.slots);
        self.down.release(&self.kernel.shared.slots);
        self.pair.unwatch(client, backend);
        carried
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.kernel.counters.pairs.fetch_sub(1, Relaxed);
    }
}

/// Both sides may have ended in order too.
fn has_failed(socket: &Socket) -> bool {
    !matches!(sockopt::socket_error(socket), Ok(Ok(())))
}
