//! Values of the kernel maps beside the tables. No type here has padding: the kernel copies every byte.

/// Counters, some of them spare so that a new [`Reason`](crate::reason::Reason) does not change the map's shape. Maps of
/// this shape are used again at the next start; when a number comes to mean something else, the shape has to change.
pub const COUNTERS_MAX: u32 = 64;

/// Rule groups that are counted.
pub const GROUPS_MAX: u32 = 1024;
/// Words of the set of ports, two bits a port.
pub const PORT_FLAG_WORDS: u32 = 65_536 / 32;
/// Lines of the table of rate-limited sources, four sources a line.
pub const RATE_LINES: u32 = 65_536;
/// Bytes of the ring buffer of drop events.
pub const EVENT_BYTES: u32 = 256 * 1024;
/// Words of `CONTROL`: see [`Control`].
pub const CONTROL_WORDS: u32 = 3;

/// What the program is told while it runs: indices of `CONTROL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Control {
    /// A number; when it changes each CPU's budgets are new.
    Epoch = 0,
    /// Events of dropped packets per CPU and epoch.
    DropBudget = 1,
    /// Events of rate violations per CPU and epoch.
    RateBudget = 2,
}

/// What is known of a TCP port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortFlags(u64);

impl PortFlags {
    /// No listener.
    pub const NONE: Self = Self(0);
    /// A listener, whose new connections are not limited in the kernel.
    pub const LISTENER: Self = Self(1);
    /// A listener whose new connections are limited by source.
    pub const LIMITED: Self = Self(3);

    /// The flags of a port in the word with index `port / 32`.
    #[inline(always)]
    pub const fn in_word(word: u64, port: u16) -> Self {
        Self(word >> (port % 32 * 2) & 3)
    }

    /// The word with the flags of `port` set.
    pub const fn set_in(self, word: u64, port: u16) -> u64 {
        let shift = port % 32 * 2;
        word & !(3 << shift) | self.0 << shift
    }

    /// Whether a listener is bound to the port.
    #[inline(always)]
    pub const fn is_listener(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether new connections are limited by source.
    #[inline(always)]
    pub const fn is_limited(self) -> bool {
        self.0 & 2 != 0
    }
}

/// Packets and bytes of one rule group on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GroupCounter {
    /// Packets dropped.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that rules which only count would have dropped.
    pub would_packets: u64,
    /// Their bytes.
    pub would_bytes: u64,
}

/// Events that a CPU may still send in an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    /// The epoch that the rest is for.
    pub epoch: u64,
    /// Of dropped packets.
    pub drops: u64,
    /// Of rate violations.
    pub rate: u64,
}

/// Packets and bytes of one reason on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of the frames, from the Ethernet header on; 0 before Linux 5.18, which cannot tell.
    pub bytes: u64,
}

/// Which packets of a blocked source are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Scope {
    /// TCP to a listener's port.
    Listeners = 1,
    /// All.
    Host = 2,
}

const _: () = {
    assert!(size_of::<Counter>() == 16 && size_of::<GroupCounter>() == 32 && size_of::<Budget>() == 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_flags_of_their_own() {
        let mut words = vec![0; PORT_FLAG_WORDS as usize];
        let set =
            [(0, PortFlags::LIMITED), (31, PortFlags::LISTENER), (32, PortFlags::LIMITED), (443, PortFlags::LISTENER)];
        for (port, flags) in set.into_iter().chain([(u16::MAX, PortFlags::LIMITED)]) {
            let word: &mut u64 = &mut words[usize::from(port) / 32];
            *word = flags.set_in(*word, port);
        }
        let found = |port: u16| PortFlags::in_word(words[usize::from(port) / 32], port);
        assert!(set.iter().all(|(port, flags)| found(*port) == *flags));
        assert_eq!((0..=u16::MAX).filter(|port| found(*port) != PortFlags::NONE).count(), 5);
        assert!(found(443).is_listener() && !found(443).is_limited());
        assert!(found(u16::MAX).is_listener() && found(u16::MAX).is_limited());
        words[13] = PortFlags::NONE.set_in(words[13], 443);
        assert_eq!(words[13], 0);
    }
}
