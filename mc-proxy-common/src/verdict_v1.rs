//! What happens to a packet, and why.
//!
//! Any allow rule beats any block rule; an exact address is looked up before prefixes. A rule that has expired is a
//! rule that is not there, except that of nested prefixes in one map the kernel finds only the longest.

use core::net::IpAddr;

use crate::{
    maps::{self, RuleValue, Scope},
    packet::{Cursor, Packet, Transport, Unjudged},
    reason::Reason,
};

/// Where rules are found. Addresses are canonical: never IPv4-mapped IPv6.
pub trait Lookup {
    /// The longest allowed prefix that covers `source`.
    fn allowed(&self, source: IpAddr) -> Option<RuleValue>;

    /// The rule that blocks exactly `source`.
    fn blocked_address(&self, source: IpAddr) -> Option<RuleValue>;

    /// The longest blocked prefix that covers `source`.
    fn blocked_prefix(&self, source: IpAddr) -> Option<RuleValue>;

    /// Whether a listener is bound to the TCP port.
    fn is_listener_port(&self, port: u16) -> bool;

    /// Nanoseconds of the boot-time clock; asked for only when a rule expires at all.
    fn now(&self) -> u64;
}

/// What the rules say of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceVerdict {
    /// An allow rule covers it.
    Allowed,
    /// It is blocked itself.
    BlockedAddress(RuleValue),
    /// A prefix of it is blocked.
    BlockedPrefix(RuleValue),
    /// Every rule that covers it has expired.
    Expired,
    /// No rule covers it.
    NoRule,
}

/// What the rules say of `source`.
#[inline(always)]
pub fn judge_source<L: Lookup>(lookup: &L, source: IpAddr) -> SourceVerdict {
    let source = maps::canonical(source);
    let mut is_expired = false;
    if let Some(rule) = lookup.allowed(source) {
        if holds(lookup, &rule) {
            return SourceVerdict::Allowed;
        }
        is_expired = true;
    }
    if let Some(rule) = lookup.blocked_address(source) {
        if holds(lookup, &rule) {
            return SourceVerdict::BlockedAddress(rule);
        }
        is_expired = true;
    }
    if let Some(rule) = lookup.blocked_prefix(source) {
        if holds(lookup, &rule) {
            return SourceVerdict::BlockedPrefix(rule);
        }
        is_expired = true;
    }
    if is_expired { SourceVerdict::Expired } else { SourceVerdict::NoRule }
}

/// What happens to a frame.
///
/// With [`Scope::Listeners`] a packet that is certainly not TCP to a listener passes unjudged, and so does a later
/// fragment: its first one carries the port and is judged, so the datagram of a blocked source never completes. A
/// packet that hides its transport header is judged as if it were for a listener.
#[inline(always)]
pub fn judge_packet<C: Cursor, L: Lookup>(frame: C, scope: Scope, lookup: &L) -> Reason {
    let packet = match Packet::parse(frame) {
        Ok(packet) => packet,
        Err(Unjudged::NotIp) => return Reason::NotIp,
        Err(Unjudged::Malformed) => return Reason::Malformed,
    };
    let transport = packet.transport();
    if transport == Transport::NeighborDiscovery {
        return Reason::NeighborDiscovery;
    }
    if scope == Scope::Listeners {
        match transport {
            Transport::Tcp { destination, .. } if !lookup.is_listener_port(destination) => return Reason::OutOfScope,
            Transport::Other | Transport::NeighborDiscovery => return Reason::OutOfScope,
            Transport::LaterFragment => return Reason::LaterFragment,
            Transport::Truncated => return Reason::Malformed,
            Transport::Tcp { .. } | Transport::Hidden => {}
        }
    }
    match judge_source(lookup, packet.source().addr()) {
        SourceVerdict::Allowed => Reason::Allowed,
        SourceVerdict::BlockedAddress(_) => Reason::BlockedAddress,
        SourceVerdict::BlockedPrefix(_) => Reason::BlockedPrefix,
        SourceVerdict::Expired => Reason::Expired,
        SourceVerdict::NoRule => Reason::NoRule,
    }
}

#[inline(always)]
fn holds<L: Lookup>(lookup: &L, rule: &RuleValue) -> bool {
    rule.expires_at() == 0 || lookup.now() < rule.expires_at()
}

#[cfg(test)]
#[path = "verdict_v1/tests.rs"]
mod tests;
