//! From an Ethernet frame to the source address and what can be known of the transport header.
//!
//! Ethernet, up to two VLAN tags (802.1Q, 802.1ad), IPv4 with options, IPv6 with extension
//! headers of together up to [`EXTENSION_BYTES_MAX`] bytes. Nothing beyond the length that the IP header states is read: bytes
//! after it are padding, which the stack cuts off, and must not pass for a transport header.
//!
//! The parser moves through a frame in steps that are known when it is compiled. To a program that is loaded without
//! `CAP_PERFMON` the verifier allows no other arithmetic on a packet pointer.

use crate::source::Source;

/// Bytes of extension headers that are walked before the transport header counts as hidden. The bound is on bytes and
/// not on headers because the verifier follows the walk for each position that it can reach.
pub const EXTENSION_BYTES_MAX: usize = 128;

/// A position in a frame; the first is that of the Ethernet header.
///
/// What is read has to be asked for with [`Cursor::has`] before: in the kernel the verifier refuses a program that does
/// not, on the host it reads as zero.
pub trait Cursor: Copy {
    /// Whether the next `N` bytes are there.
    fn has<const N: usize>(self) -> bool;

    /// The byte `OFFSET` bytes from here.
    fn u8<const OFFSET: usize>(self) -> u8;

    /// The 16-bit number in network byte order `OFFSET` bytes from here.
    fn u16<const OFFSET: usize>(self) -> u16;

    /// The 32-bit number in network byte order `OFFSET` bytes from here.
    fn u32<const OFFSET: usize>(self) -> u32;

    /// The position `N` bytes further; it may lie beyond the end.
    fn advance<const N: usize>(self) -> Self;
}

/// An IP packet within a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<C> {
    /// IPv4.
    V4(Packet4<C>),
    /// IPv6.
    V6(Packet6<C>),
}

/// An IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet4<C> {
    source: u32,
    protocol: u8,
    fragment: Fragment,
    // Words of them. They are skipped late: each number of them is a way of its own to the verifier.
    options: u8,
    // Where the options begin; what remains is without them.
    after_header: Position<C>,
}

/// An IPv6 packet. Whether it is a fragment is found on the way to the transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet6<C> {
    source: Source,
    next: u8,
    hop_limit: u8,
    payload: Position<C>,
}

/// A position in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position<C> {
    at: C,
    // Bytes from here to the end that the IP header states, whatever the frame holds.
    remaining: usize,
}

/// Why a frame holds no packet that can be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unjudged {
    /// Another protocol, or more than two VLAN tags.
    NotIp,
    /// The headers end early or contradict themselves.
    Malformed,
}

/// What is known of the transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, whole or the first fragment of a packet.
    Tcp {
        /// The port that the packet is for.
        destination: u16,
        /// Whether it may open a connection: SYN without ACK, or flags that are not in this fragment.
        is_opening: bool,
    },
    /// Valid IPv6 neighbour or router discovery: types 133–137 with hop limit 255, unfragmented (RFC 4861, RFC 6980).
    NeighborDiscovery,
    /// Another protocol.
    Other,
    /// A fragment other than the first: the header is in an earlier one.
    LaterFragment,
    /// There may be a TCP header that was put out of reach: behind too many bytes of extension headers, or not in the first
    /// fragment.
    Hidden,
    /// The packet ends before its transport header.
    Truncated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fragment {
    Whole,
    First,
    Later,
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
const VLAN_BYTES: usize = 4;
const IPV4_BYTES: usize = 20;
const IPV4_OPTION_WORDS_MAX: u8 = 10;
const IPV6_BYTES: usize = 40;
const IPV4_OPTION_WORD: usize = 4;
/// What the lengths of extension headers are multiples of (RFC 8200 §4).
const EXTENSION_UNIT: usize = 8;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;

/// TCP flags (RFC 9293 §3.1).
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

impl<C: Cursor> Packet<C> {
    /// Finds the packet in a frame.
    ///
    /// # Errors
    /// When there is none that can be judged.
    #[inline(always)]
    pub fn parse(frame: C) -> Result<Self, Unjudged> {
        if !frame.has::<14>() {
            return Err(Unjudged::Malformed);
        }
        let mut ether_type = frame.u16::<12>();
        let mut at = frame.advance::<14>();
        if is_vlan(ether_type) {
            if !at.has::<VLAN_BYTES>() {
                return Err(Unjudged::Malformed);
            }
            ether_type = at.u16::<2>();
            at = at.advance::<VLAN_BYTES>();
            if is_vlan(ether_type) {
                if !at.has::<VLAN_BYTES>() {
                    return Err(Unjudged::Malformed);
                }
                ether_type = at.u16::<2>();
                at = at.advance::<VLAN_BYTES>();
            }
        }
        match ether_type {
            ETHERTYPE_IPV4 => Packet4::parse(at).map(Self::V4),
            ETHERTYPE_IPV6 => Packet6::parse(at).map(Self::V6),
            _ => Err(Unjudged::NotIp),
        }
    }

    /// Who sent it, as the header says.
    #[inline(always)]
    pub fn source(&self) -> Source {
        match self {
            Self::V4(packet) => Source::v4(packet.source),
            Self::V6(packet) => packet.source,
        }
    }

    /// The TCP port that it is for, where that is easily told: without IPv4 options and IPv6 extension headers. Or 0.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        let (protocol, payload) = match self {
            Self::V4(packet) if packet.options == 0 && packet.fragment != Fragment::Later => {
                (packet.protocol, packet.after_header)
            }
            Self::V6(packet) => (packet.next, packet.payload),
            Self::V4(_) => return 0,
        };
        if protocol == TCP && payload.has::<4>() { payload.at.u16::<2>() } else { 0 }
    }

    /// What is known of its transport header.
    pub fn transport(&self) -> Transport {
        match self {
            Self::V4(packet) => packet.transport(),
            Self::V6(packet) => packet.transport(),
        }
    }
}

impl<C: Cursor> Packet4<C> {
    #[inline(always)]
    fn parse(at: C) -> Result<Self, Unjudged> {
        if !at.has::<IPV4_BYTES>() {
            return Err(Unjudged::Malformed);
        }
        let version_and_words = at.u8::<0>();
        let words = version_and_words & 0x0f;
        let length = usize::from(words) * 4;
        let total = usize::from(at.u16::<2>());
        // A total length of 0 is what segmentation offload leaves in packets above 64 KiB.
        let is_consistent = total == 0 || total >= length;
        if version_and_words >> 4 != 4 || length < IPV4_BYTES || !is_consistent {
            return Err(Unjudged::Malformed);
        }
        let fragment = at.u16::<6>();
        Ok(Self {
            source: at.u32::<12>(),
            protocol: at.u8::<9>(),
            options: words - 5,
            after_header: Position {
                at: at.advance::<IPV4_BYTES>(),
                remaining: if total == 0 { usize::MAX } else { total - length },
            },
            fragment: match (fragment & 0x1fff, fragment & 0x2000 != 0) {
                (0, false) => Fragment::Whole,
                (0, true) => Fragment::First,
                _ => Fragment::Later,
            },
        })
    }

    /// Who sent it, as the header says.
    #[inline(always)]
    pub const fn source(&self) -> u32 {
        self.source
    }

    /// What is known of its transport header.
    #[inline(always)]
    pub fn transport(&self) -> Transport {
        match self.protocol {
            _ if self.fragment == Fragment::Later => Transport::LaterFragment,
            TCP => match skip_options(self.after_header.at, self.options) {
                Some(at) => tcp(Position { at, ..self.after_header }, self.fragment),
                None => Transport::Truncated,
            },
            _ => Transport::Other,
        }
    }
}

impl<C: Cursor> Packet6<C> {
    #[inline(always)]
    fn parse(at: C) -> Result<Self, Unjudged> {
        if !at.has::<IPV6_BYTES>() || at.u8::<0>() >> 4 != 6 {
            return Err(Unjudged::Malformed);
        }
        let length = usize::from(at.u16::<4>());
        let next = at.u8::<6>();
        // RFC 2675: a jumbogram has length 0 and says its size in a hop-by-hop option.
        let is_jumbo = length == 0 && next == HOP_BY_HOP;
        Ok(Self {
            source: Source {
                high: u64::from(at.u32::<8>()) << 32 | u64::from(at.u32::<12>()),
                low: u64::from(at.u32::<16>()) << 32 | u64::from(at.u32::<20>()),
            },
            next,
            hop_limit: at.u8::<7>(),
            payload: Position { at: at.advance::<IPV6_BYTES>(), remaining: if is_jumbo { usize::MAX } else { length } },
        })
    }

    /// Who sent it, as the header says.
    #[inline(always)]
    pub const fn source(&self) -> Source {
        self.source
    }

    /// What is known of its transport header.
    #[inline(always)]
    pub fn transport(&self) -> Transport {
        if self.next == TCP {
            return tcp(self.payload, Fragment::Whole);
        }
        self.walk_extensions()
    }

    #[inline(always)]
    fn walk_extensions(&self) -> Transport {
        let (mut header, mut position, mut fragment) = (self.next, self.payload, Fragment::Whole);
        let mut units_left = 0;
        for _ in 0..EXTENSION_BYTES_MAX / EXTENSION_UNIT {
            if units_left == 0 {
                if !is_extension(header) {
                    break;
                }
                if !position.has::<4>() {
                    return cut_short(fragment);
                }
                let (next, length) = (position.at.u8::<0>(), position.at.u8::<1>());
                if header == FRAGMENT {
                    let offset = position.at.u16::<2>();
                    // RFC 8200 §4.5: 13 bits of offset, two reserved, one for "more fragments follow".
                    if offset & 0xfff8 != 0 {
                        return Transport::LaterFragment;
                    }
                    // Once a first fragment, the rest may be missing whatever a second fragment header says.
                    if offset & 1 != 0 {
                        fragment = Fragment::First;
                    }
                }
                units_left = match header {
                    FRAGMENT => 1,
                    // RFC 4302 §2.2: in words of four bytes, less two, and a multiple of eight bytes in IPv6.
                    AUTHENTICATION if length & 1 == 0 => usize::from(length) / 2 + 1,
                    AUTHENTICATION => return Transport::Hidden,
                    _ => usize::from(length) + 1,
                };
                header = next;
            }
            if position.remaining < EXTENSION_UNIT {
                return cut_short(fragment);
            }
            position.at = position.at.advance::<EXTENSION_UNIT>();
            position.remaining -= EXTENSION_UNIT;
            units_left -= 1;
        }
        match header {
            _ if units_left > 0 => Transport::Hidden,
            TCP => tcp(position, fragment),
            ICMPV6 if !position.has::<1>() => cut_short(fragment),
            ICMPV6 => match position.at.u8::<0>() {
                133..=137 if self.hop_limit == 255 && fragment == Fragment::Whole => Transport::NeighborDiscovery,
                _ => Transport::Other,
            },
            _ if is_extension(header) => Transport::Hidden,
            _ => Transport::Other,
        }
    }
}

impl<C: Cursor> Position<C> {
    /// Whether the next `N` bytes are there and belong to the packet.
    #[inline(always)]
    fn has<const N: usize>(self) -> bool {
        N <= self.remaining && self.at.has::<N>()
    }
}

impl Cursor for &[u8] {
    fn has<const N: usize>(self) -> bool {
        self.len() >= N
    }

    fn u8<const OFFSET: usize>(self) -> u8 {
        self.get(OFFSET).copied().unwrap_or_default()
    }

    fn u16<const OFFSET: usize>(self) -> u16 {
        u16::from_be_bytes(bytes::<OFFSET, 2>(self))
    }

    fn u32<const OFFSET: usize>(self) -> u32 {
        u32::from_be_bytes(bytes::<OFFSET, 4>(self))
    }

    fn advance<const N: usize>(self) -> Self {
        self.get(N..).unwrap_or_default()
    }
}

fn bytes<const OFFSET: usize, const N: usize>(from: &[u8]) -> [u8; N] {
    from.get(OFFSET..).and_then(|rest| rest.first_chunk().copied()).unwrap_or([0; N])
}

/// A TCP header, of which the ports have to be there.
#[inline(always)]
fn tcp<C: Cursor>(position: Position<C>, fragment: Fragment) -> Transport {
    if !position.has::<4>() {
        return cut_short(fragment);
    }
    let destination = position.at.u16::<2>();
    let is_opening = if position.has::<14>() { position.at.u8::<13>() & (SYN | ACK) == SYN } else { true };
    Transport::Tcp { destination, is_opening }
}

/// The position after `words` of options; nothing when they are not all there.
#[inline(always)]
fn skip_options<C: Cursor>(mut at: C, words: u8) -> Option<C> {
    for word in 0..IPV4_OPTION_WORDS_MAX {
        if word == words {
            break;
        }
        if !at.has::<IPV4_OPTION_WORD>() {
            return None;
        }
        at = at.advance::<IPV4_OPTION_WORD>();
    }
    Some(at)
}

#[inline(always)]
fn is_extension(header: u8) -> bool {
    matches!(header, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

/// A first fragment that ends early hides what follows; a whole packet that does is one that the stack discards.
#[inline(always)]
fn cut_short(fragment: Fragment) -> Transport {
    if fragment == Fragment::First { Transport::Hidden } else { Transport::Truncated }
}

#[inline(always)]
fn is_vlan(ether_type: u16) -> bool {
    matches!(ether_type, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN)
}

#[cfg(test)]
mod tests;
