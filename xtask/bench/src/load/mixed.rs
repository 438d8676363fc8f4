//! The client of mixed loads: connections that chat and burst by turns, and both kinds side by side.

use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::Context;
use rustix::event::epoll::EventFlags;

use super::client::{Latencies, Plan, Warmed, greeted};
use super::counters::Published;
use super::hello::{Service, client_hello};
use super::socket::{Poller, Ready, Sink, Source};
use super::turns::{Request, ask};

/// Bytes of a burst.
const BURST: u64 = 8 << 20;
/// Of connections side by side, one in this many sends and receives bursts only.
const BULKY_IN: usize = 4;

/// How chats and bursts are spread over the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mix {
    /// Every connection has phases: 100 chats, a burst up, 100 chats, a burst down.
    Phases,
    /// A quarter of the connections bursts up and down without end, the others chat.
    Beside,
}

/// Requests, each with how often it is repeated before the next; again from the start at the end.
type Script = &'static [(u32, Request)];

const PHASES: Script =
    &[(100, Request::CHAT), (1, Request::burst_up(BURST)), (100, Request::CHAT), (1, Request::burst_down(BURST))];
const CHATTY: Script = &[(1, Request::CHAT)];
const BULKY: Script = &[(1, Request::burst_up(BURST)), (1, Request::burst_down(BURST))];

impl Mix {
    fn script(self, connection: usize) -> Script {
        match self {
            Self::Phases => PHASES,
            Self::Beside if connection.is_multiple_of(BULKY_IN) => BULKY,
            Self::Beside => CHATTY,
        }
    }
}

/// Follows the scripts until the deadline. What is done, and timed, are chats.
pub(super) fn mixed(plan: &Plan, mix: Mix, mut counters: Published) -> anyhow::Result<Latencies> {
    let poller = plan.poller()?;
    let (source, mut sink) = (Source::new()?, Sink::new());
    let mut slots = Vec::with_capacity(plan.connections);
    for token in 0..plan.connections {
        let socket = greeted(plan.addr, &client_hello(Service::Turns))?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        poller.add(&socket, token, EventFlags::IN)?;
        slots.push(Slot::new(socket, Place::staggered(mix.script(token), token)));
    }
    for (token, slot) in slots.iter_mut().enumerate() {
        slot.begin()?;
        slot.listen_for(&poller, token)?;
    }
    counters.now.open = plan.connections as u64;
    counters.now.ready = 1;

    let mut latencies = Warmed::new(plan.warm_up);
    let mut ready = Ready::new();
    while poller.wait(&mut counters, &mut ready)? {
        for (token, _) in ready.iter() {
            let slot = &mut slots[token];
            slot.go(&source, &mut sink, &mut counters, &mut latencies).context("in the middle of a turn")?;
            slot.listen_for(&poller, token)?;
        }
    }
    Ok(latencies.summary())
}

/// Where a connection is in its script.
#[derive(Debug, Clone, Copy)]
struct Place {
    script: Script,
    entry: usize,
    repeated: u32,
}

impl Place {
    /// Connections begin at different entries, and not all of them at the first repetition.
    fn staggered(script: Script, connection: usize) -> Self {
        let entry = connection % script.len();
        let (repeats, _) = script[entry];
        Self { script, entry, repeated: (7 * connection as u32) % repeats }
    }

    fn request(&self) -> Request {
        self.script[self.entry].1
    }

    fn advance(&mut self) {
        self.repeated += 1;
        if self.repeated >= self.script[self.entry].0 {
            (self.entry, self.repeated) = ((self.entry + 1) % self.script.len(), 0);
        }
    }
}

#[derive(Debug)]
struct Slot {
    socket: OwnedFd,
    place: Place,
    began: Instant,
    up_left: u64,
    down_left: u64,
    waits_for: EventFlags,
}

impl Slot {
    fn new(socket: OwnedFd, place: Place) -> Self {
        Self { socket, place, began: Instant::now(), up_left: 0, down_left: 0, waits_for: EventFlags::IN }
    }

    /// Sends the request that is due; the last answer was read, so that the socket has room for it.
    fn begin(&mut self) -> anyhow::Result<()> {
        let request = self.place.request();
        (self.began, self.up_left, self.down_left) = (Instant::now(), request.up, request.down);
        ask(&self.socket, request)
    }

    fn listen_for(&mut self, poller: &Poller, token: usize) -> anyhow::Result<()> {
        let wanted = if self.up_left > 0 { EventFlags::OUT } else { EventFlags::IN };
        if wanted != self.waits_for {
            poller.modify(&self.socket, token, wanted)?;
            self.waits_for = wanted;
        }
        Ok(())
    }

    fn go(
        &mut self,
        source: &Source,
        sink: &mut Sink,
        counters: &mut Published,
        latencies: &mut Warmed,
    ) -> anyhow::Result<()> {
        if self.up_left > 0 {
            let turn = source.pour_at_most(&self.socket, self.up_left);
            anyhow::ensure!(!turn.is_over, "the connection was closed");
            self.up_left -= turn.bytes;
            counters.now.bytes_sent += turn.bytes;
            return Ok(());
        }
        let turn = sink.discard(&self.socket, self.down_left.try_into().unwrap_or(usize::MAX));
        anyhow::ensure!(!turn.is_over, "the connection was closed");
        self.down_left -= turn.bytes;
        counters.now.bytes_received += turn.bytes;
        if self.down_left == 0 {
            if self.place.request() == Request::CHAT {
                counters.now.done += 1;
                latencies.add(Instant::now(), self.began);
            }
            self.place.advance();
            self.begin()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_goes_round() {
        let mut place = Place { script: PHASES, entry: 0, repeated: 0 };
        let cycle: u32 = PHASES.iter().map(|(repeats, _)| repeats).sum();
        let mut requests = Vec::new();
        for _ in 0..cycle {
            requests.push(place.request());
            place.advance();
        }
        assert_eq!((place.entry, place.repeated), (0, 0));
        assert_eq!(requests.iter().filter(|request| **request == Request::CHAT).count(), 200);
        assert_eq!(requests[100], Request::burst_up(BURST));
        assert_eq!(requests[201], Request::burst_down(BURST));
    }

    #[test]
    fn connections_do_not_march_in_step() {
        let places: std::collections::HashSet<(usize, u32)> =
            (0..8).map(|at| Place::staggered(PHASES, at)).map(|place| (place.entry, place.repeated)).collect();
        assert!(places.len() >= 6, "{places:?}");
        for connection in 0..1000 {
            let place = Place::staggered(PHASES, connection);
            assert!(place.repeated < PHASES[place.entry].0);
        }
    }

    #[test]
    fn some_are_bulky_beside_the_others() {
        let bulky = (0..16).filter(|&at| Mix::Beside.script(at).len() == BULKY.len()).count();
        assert_eq!(bulky, 4);
        assert!((0..16).all(|at| Mix::Phases.script(at).len() == PHASES.len()));
    }
}
