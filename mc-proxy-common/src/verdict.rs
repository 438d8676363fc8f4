//! What happens to a packet, and why.
//!
//! A source has one decision list ([`crate::table`]), in the order of precedence: allow, block, ban, country. The first
//! clause that holds for the packet decides; one that has expired, or that is about other packets, is not there. A
//! source that no clause decides about is subject to the rate limit.

use crate::{
    maps::{PortFlags, Scope},
    packet::{Cursor, Packet, Transport, Unjudged},
    reason::Reason,
    source::Source,
    table::{self, CHAIN_CLAUSES_MAX, ClauseAction, ClauseScope, Packed, Tables},
};

/// What a verdict needs beside the tables.
pub trait Host: Tables {
    /// Which packets clauses of the default scope are about.
    fn scope(&self) -> Scope;

    /// What is known of a TCP port.
    fn port(&self, port: u16) -> PortFlags;

    /// Nanoseconds of the boot-time clock; asked for only when something depends on it.
    fn now(&self) -> u64;

    /// Counts a packet that a rule of `group` would have dropped if it did more than count.
    fn would_drop(&self, group: u32);

    /// Whether new connections are limited at all.
    fn limits(&self) -> bool;

    /// Whether one more new connection of `source` fits.
    fn admit(&self, source: Source) -> bool;

    /// Whether the verifier guards the program against speculation, as it does without `CAP_PERFMON`: each word that is
    /// kept on the stack then costs a barrier, and what can be read again is.
    const IS_GUARDED: bool = false;

    /// [`table::find4`], in a function of its own if that is better.
    #[inline(always)]
    fn find4(&self, addr: u32) -> u32
    where
        Self: Sized,
    {
        table::find4(self, addr)
    }

    /// [`table::find6`], in a function of its own if that is better.
    #[inline(always)]
    fn find6(&self, source: Source) -> u32
    where
        Self: Sized,
    {
        table::find6(self, source)
    }

    /// [`decide`], in a function of its own if that is better.
    #[inline(always)]
    fn decide(&self, chain: u32, packet: u32) -> u64
    where
        Self: Sized,
    {
        decide(self, chain, packet)
    }
}

/// The chain for a source.
#[inline(always)]
fn find<H: Host>(host: &H, source: Source) -> u32 {
    match source.as_v4() {
        Some(addr) => host.find4(addr),
        None => host.find6(source),
    }
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Index of a [`Reason`].
    pub reason: u32,
    /// The group of the rule that decided; 0 when none did.
    pub group: u32,
}

impl Verdict {
    /// Whether the packet is dropped.
    #[inline(always)]
    pub const fn is_drop(&self) -> bool {
        self.reason >= Reason::BlockedAddress.index()
    }

    #[inline(always)]
    const fn of(reason: Reason) -> Self {
        Self { reason: reason.index(), group: 0 }
    }

    // One word, because a function returns no more in the kernel.
    #[inline(always)]
    const fn pack(self) -> u64 {
        (self.group as u64) << 32 | self.reason as u64
    }

    #[inline(always)]
    const fn unpack(packed: u64) -> Self {
        Self { reason: packed as u32, group: (packed >> 32) as u32 }
    }
}

/// What happens to a frame, which `frame` gives from its start as often as it is asked.
#[inline(always)]
pub fn judge_packet<C: Cursor, H: Host>(host: &H, frame: impl Fn() -> C) -> Verdict {
    let mut packet = match Packet::parse(frame()) {
        Ok(packet) => packet,
        Err(Unjudged::NotIp) => return Verdict::of(Reason::NotIp),
        Err(Unjudged::Malformed) => return Verdict::of(Reason::Malformed),
    };
    let chain = match packet {
        Packet::V4(packet) => host.find4(packet.source()),
        Packet::V6(packet) => find(host, packet.source()),
    };
    // Most packets of an edge host are from sources of which no rule speaks.
    if chain == 0 && !host.limits() {
        return Verdict::of(Reason::NoRule);
    }
    if H::IS_GUARDED {
        packet = match Packet::parse(frame()) {
            Ok(packet) => packet,
            Err(_) => return Verdict::of(Reason::Malformed),
        };
    }
    match packet {
        Packet::V4(packet) => judge(host, chain, Source::v4(packet.source()), packet.transport()),
        Packet::V6(packet) => judge(host, chain, packet.source(), packet.transport()),
    }
}

/// What happens to a connection of `source` that has come to a listener's `port`. Rates are the caller's business.
pub fn judge_connection<H: Host>(host: &H, source: Source, port: u16) -> Verdict {
    let chain = find(host, source);
    judge(host, chain, source, Transport::Tcp { destination: port, is_opening: false })
}

#[inline(always)]
fn judge<H: Host>(host: &H, chain: u32, source: Source, transport: Transport) -> Verdict {
    let (port, is_opening, flags) = match transport {
        Transport::Tcp { destination, is_opening } => (destination, is_opening, host.port(destination)),
        Transport::NeighborDiscovery
        | Transport::Other
        | Transport::LaterFragment
        | Transport::Hidden
        | Transport::Truncated => (0, false, PortFlags::NONE),
    };
    let packet = Aspect { port, of_listeners: of_listeners(transport, flags), of_host: of_host(transport) };
    let verdict = Verdict::unpack(host.decide(chain, packet.pack()));
    let is_decided = verdict.is_drop() || verdict.reason == Reason::Allowed.index();
    if host.limits() && !is_decided && is_opening && flags.is_limited() && !host.admit(source) {
        return Verdict::of(Reason::RateLimited);
    }
    verdict
}

/// What clauses of each scope make of a packet: why they do not hold for it, or [`HOLDS`].
#[derive(Clone, Copy)]
struct Aspect {
    port: u16,
    of_listeners: u32,
    of_host: u32,
}

/// No reason for a clause not to hold.
const HOLDS: u32 = 0xff;

impl Aspect {
    #[inline(always)]
    const fn pack(self) -> u32 {
        self.port as u32 | self.of_listeners << 16 | self.of_host << 24
    }

    #[inline(always)]
    const fn unpack(packed: u32) -> Self {
        Self { port: packed as u16, of_listeners: packed >> 16 & 0xff, of_host: packed >> 24 }
    }

    /// Why a clause about listeners, or one of them, does not hold. A packet that hides its port may be for any; what lets
    /// in has to know.
    #[inline(always)]
    const fn of_ports(self, wanted: Option<u16>, is_exact: bool) -> u32 {
        let is_other = match wanted {
            Some(wanted) => self.port != wanted && self.port != 0,
            None => false,
        };
        if self.of_listeners == HOLDS && (is_other || is_exact && self.port == 0) {
            Reason::OutOfScope.index()
        } else {
            self.of_listeners
        }
    }
}

/// What the decision list says: a packed [`Verdict`].
#[inline(always)]
pub fn decide<H: Host>(host: &H, chain: u32, packet: u32) -> u64 {
    let packet = Aspect::unpack(packet);
    let mut state = Undecided { next: chain, passed: Reason::NoRule.index() };
    // Not a loop: without `CAP_PERFMON` the verifier finds no end of one.
    const { assert!(CHAIN_CLAUSES_MAX == 8) }
    let decided = step(host, packet, &mut state)
        .or_else(|| step(host, packet, &mut state))
        .or_else(|| step(host, packet, &mut state))
        .or_else(|| step(host, packet, &mut state))
        .or_else(|| step(host, packet, &mut state))
        .or_else(|| step(host, packet, &mut state))
        .or_else(|| step(host, packet, &mut state))
        .or_else(|| step(host, packet, &mut state));
    decided.unwrap_or_else(|| u64::from(state.passed))
}

/// How far a decision list has been read: the next clause, and what a packet that nothing decides about passes for.
struct Undecided {
    next: u32,
    passed: u32,
}

#[inline(always)]
fn step<H: Host>(host: &H, packet: Aspect, state: &mut Undecided) -> Option<u64> {
    if state.next == 0 {
        return Some(u64::from(state.passed));
    }
    let clause = Packed::read(host.clause(state.next)?);
    state.next = clause.next();
    let expires_at = clause.expires_at();
    let is_allow = matches!(clause.action(), ClauseAction::Allow);
    let miss = match (clause.scope(), host.scope()) {
        _ if expires_at != 0 && host.now() >= expires_at => Reason::Expired.index(),
        (ClauseScope::Default, Scope::Listeners) => packet.of_ports(None, is_allow),
        (ClauseScope::Port(wanted), _) => packet.of_ports(Some(wanted), is_allow),
        _ => packet.of_host,
    };
    if miss != HOLDS {
        state.passed = miss;
        return None;
    }
    match clause.action() {
        ClauseAction::Allow => Some(Reason::Allowed.index().into()),
        ClauseAction::Drop => Some(Verdict { reason: clause.reason(), group: clause.group() }.pack()),
        ClauseAction::Count => {
            host.would_drop(clause.group());
            None
        }
    }
}

/// Why a packet is not one that listeners get.
///
/// A packet that is certainly not TCP to a listener passes, and so does a later fragment: its first one carries the port
/// and is judged, so the datagram of a blocked source never completes. A packet that hides its transport header is
/// judged as if it were for a listener.
#[inline(always)]
fn of_listeners(transport: Transport, flags: PortFlags) -> u32 {
    match transport {
        Transport::Tcp { .. } if flags.is_listener() => HOLDS,
        Transport::Hidden => HOLDS,
        Transport::Tcp { .. } | Transport::Other => Reason::OutOfScope.index(),
        Transport::NeighborDiscovery => Reason::NeighborDiscovery.index(),
        Transport::LaterFragment => Reason::LaterFragment.index(),
        Transport::Truncated => Reason::Malformed.index(),
    }
}

/// Neighbour discovery is judged by nobody.
#[inline(always)]
fn of_host(transport: Transport) -> u32 {
    if matches!(transport, Transport::NeighborDiscovery) { Reason::NeighborDiscovery.index() } else { HOLDS }
}

#[cfg(test)]
mod tests;
