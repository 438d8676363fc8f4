//! Why a packet was passed or dropped: the index of its counter.

/// The outcome of judging one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// Passed: no rule covers the source.
    NoRule = 0,
    /// Passed: an allow rule covers the source.
    Allowed = 1,
    /// Passed: not for a listener, with scope `listeners`.
    OutOfScope = 2,
    /// Passed: neither IPv4 nor IPv6, or under more than two VLAN tags.
    NotIp = 3,
    /// Passed: cut short or contradictory; the stack discards it.
    Malformed = 4,
    /// Passed: IPv6 neighbour discovery (RFC 4861), without which the link is dead.
    NeighborDiscovery = 5,
    /// Passed: a later fragment, with scope `listeners`; it is useless without the first, which was judged.
    LaterFragment = 6,
    /// Passed: the rule that covers the source has expired.
    Expired = 7,
    /// Dropped: the source address is blocked.
    BlockedAddress = 8,
    /// Dropped: a prefix of the source address is blocked.
    BlockedPrefix = 9,
    /// Dropped: the source is banned for a time, by the daemon itself.
    Banned = 10,
    /// Dropped: the source's country is blocked.
    BlockedCountry = 11,
    /// Dropped: one new connection of the source too many.
    RateLimited = 12,
}

impl Reason {
    /// All, in the order of their indices.
    pub const ALL: [Self; 13] = [
        Self::NoRule,
        Self::Allowed,
        Self::OutOfScope,
        Self::NotIp,
        Self::Malformed,
        Self::NeighborDiscovery,
        Self::LaterFragment,
        Self::Expired,
        Self::BlockedAddress,
        Self::BlockedPrefix,
        Self::Banned,
        Self::BlockedCountry,
        Self::RateLimited,
    ];

    /// The reason with an index.
    pub fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(index as usize).copied()
    }

    /// Index in the counter map.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// Whether the packet is dropped.
    #[inline(always)]
    pub const fn is_drop(self) -> bool {
        self.index() >= Self::BlockedAddress.index()
    }

    /// As it appears in status and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoRule => "no_rule",
            Self::Allowed => "allowed",
            Self::OutOfScope => "out_of_scope",
            Self::NotIp => "not_ip",
            Self::Malformed => "malformed",
            Self::NeighborDiscovery => "neighbor_discovery",
            Self::LaterFragment => "later_fragment",
            Self::Expired => "expired",
            Self::BlockedAddress => "blocked_address",
            Self::BlockedPrefix => "blocked_prefix",
            Self::Banned => "banned",
            Self::BlockedCountry => "blocked_country",
            Self::RateLimited => "rate_limited",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;
    use crate::maps;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index() as usize, index);
            assert!(reason.index() < maps::COUNTERS_MAX);
            assert_eq!(Reason::ALL.iter().filter(|other| other.name() == reason.name()).count(), 1);
        }
    }
}
