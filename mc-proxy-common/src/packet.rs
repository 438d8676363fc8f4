//! From an Ethernet frame to the source address and what can be known of the transport header.
//!
//! Ethernet, up to two VLAN tags (802.1Q, 802.1ad), IPv4 with options, IPv6 with extension
//! headers of together up to [`EXTENSION_BYTES_MAX`] bytes. Nothing beyond the length that the IP header states is read: bytes
//! after it are padding, which the stack cuts off, and must not pass for a transport header.
//!
//! The parser moves through a frame in steps that are known when it is compiled. To a program that is loaded without
//! `CAP_PERFMON` the verifier allows no other arithmetic on a packet pointer.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of extension headers that are walked before the transport header counts as hidden. The bound is on bytes and
/// not on headers because the verifier follows the walk for each position that it can reach.
pub const EXTENSION_BYTES_MAX: usize = 128;

/// A position in a frame; the first is that of the Ethernet header.
pub trait Cursor: Copy {
    /// The `N` bytes that begin `OFFSET` bytes from here, or nothing when the frame ends before their end.
    fn load<const OFFSET: usize, const N: usize>(self) -> Option<[u8; N]>;

    /// The position `N` bytes further; it may lie beyond the end.
    fn advance<const N: usize>(self) -> Self;
}

/// An IP packet within a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<C> {
    source: IpAddr,
    protocol: u8,
    hop_limit: u8,
    payload: Position<C>,
    // IPv4 only; that of IPv6 is found on the way to the transport header.
    fragment: Fragment,
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

impl<C: Cursor> Packet<C> {
    /// The packet of a frame.
    ///
    /// # Errors
    /// With the reason why there is none.
    #[inline(always)]
    pub fn parse(frame: C) -> Result<Self, Unjudged> {
        let mut ether_type = load_u16::<C, 12>(frame)?;
        let mut at = frame.advance::<14>();
        if is_vlan(ether_type) {
            ether_type = load_u16::<C, 2>(at)?;
            at = at.advance::<VLAN_BYTES>();
            if is_vlan(ether_type) {
                ether_type = load_u16::<C, 2>(at)?;
                at = at.advance::<VLAN_BYTES>();
            }
        }
        match ether_type {
            ETHERTYPE_IPV4 => Self::parse_v4(at),
            ETHERTYPE_IPV6 => Self::parse_v6(at),
            _ => Err(Unjudged::NotIp),
        }
    }

    /// Who sent it, as the header says.
    #[inline(always)]
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// What is known of its transport header.
    #[inline(always)]
    pub fn transport(&self) -> Transport {
        match self.source {
            IpAddr::V4(_) => self.transport_header(self.protocol, self.payload, self.fragment),
            IpAddr::V6(_) => self.walk_extensions(),
        }
    }

    #[inline(always)]
    fn parse_v4(at: C) -> Result<Self, Unjudged> {
        let [version_and_length, _, total_high, total_low, _, _, fragment_high, fragment_low, hop_limit, protocol] =
            at.load::<0, 10>().ok_or(Unjudged::Malformed)?;
        let source = at.load::<12, 4>().ok_or(Unjudged::Malformed)?;
        let length = usize::from(version_and_length & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([total_high, total_low]));
        // A total length of 0 is what segmentation offload leaves in packets above 64 KiB.
        let is_consistent = total == 0 || total >= length;
        if version_and_length >> 4 != 4
            || length < IPV4_BYTES
            || !is_consistent
            || at.load::<{ IPV4_BYTES - 1 }, 1>().is_none()
        {
            return Err(Unjudged::Malformed);
        }
        Ok(Self {
            source: IpAddr::V4(Ipv4Addr::from_octets(source)),
            protocol,
            hop_limit,
            payload: Position {
                at: skip_options(at.advance::<IPV4_BYTES>(), (version_and_length & 0x0f) - 5)?,
                remaining: if total == 0 { usize::MAX } else { total - length },
            },
            fragment: match (u16::from_be_bytes([fragment_high, fragment_low]) & 0x1fff, fragment_high & 0x20 != 0) {
                (0, false) => Fragment::Whole,
                (0, true) => Fragment::First,
                _ => Fragment::Later,
            },
        })
    }

    #[inline(always)]
    fn parse_v6(at: C) -> Result<Self, Unjudged> {
        let [version, _, _, _, length_high, length_low, protocol, hop_limit] =
            at.load::<0, 8>().ok_or(Unjudged::Malformed)?;
        let source = at.load::<8, 16>().ok_or(Unjudged::Malformed)?;
        if version >> 4 != 6 || at.load::<{ IPV6_BYTES - 1 }, 1>().is_none() {
            return Err(Unjudged::Malformed);
        }
        let length = usize::from(u16::from_be_bytes([length_high, length_low]));
        // RFC 2675: a jumbogram has length 0 and says its size in a hop-by-hop option.
        let is_jumbo = length == 0 && protocol == HOP_BY_HOP;
        Ok(Self {
            source: IpAddr::V6(Ipv6Addr::from_octets(source)),
            protocol,
            hop_limit,
            payload: Position { at: at.advance::<IPV6_BYTES>(), remaining: if is_jumbo { usize::MAX } else { length } },
            fragment: Fragment::Whole,
        })
    }

    #[inline(always)]
    fn walk_extensions(&self) -> Transport {
        let (mut header, mut position, mut fragment) = (self.protocol, self.payload, Fragment::Whole);
        let mut units_left = 0;
        for _ in 0..EXTENSION_BYTES_MAX / EXTENSION_UNIT {
            if units_left == 0 {
                if !is_extension(header) {
                    break;
                }
                let Some([next, length, high, low]) = position.load() else {
                    return cut_short(fragment);
                };
                if header == FRAGMENT {
                    // RFC 8200 §4.5: 13 bits of offset, two reserved, one for "more fragments follow".
                    if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
                        return Transport::LaterFragment;
                    }
                    // Once a first fragment, the rest may be missing whatever a second fragment header says.
                    if low & 1 != 0 {
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
        if units_left > 0 { Transport::Hidden } else { self.transport_header(header, position, fragment) }
    }

    #[inline(always)]
    fn transport_header(&self, protocol: u8, position: Position<C>, fragment: Fragment) -> Transport {
        let is_v6 = self.source.is_ipv6();
        match protocol {
            _ if fragment == Fragment::Later => Transport::LaterFragment,
            TCP => match position.load() {
                Some([_, _, high, low]) => Transport::Tcp { destination: u16::from_be_bytes([high, low]) },
                None => cut_short(fragment),
            },
            ICMPV6 if is_v6 => match position.load() {
                Some([133..=137]) if self.hop_limit == 255 && fragment == Fragment::Whole => {
                    Transport::NeighborDiscovery
                }
                Some(_) => Transport::Other,
                None => cut_short(fragment),
            },
            _ if is_v6 && is_extension(protocol) => Transport::Hidden,
            _ => Transport::Other,
        }
    }
}

impl<C: Cursor> Position<C> {
    /// The next `N` bytes, if they belong to the packet.
    #[inline(always)]
    fn load<const N: usize>(self) -> Option<[u8; N]> {
        if N > self.remaining {
            return None;
        }
        self.at.load::<0, N>()
    }
}

impl Cursor for &[u8] {
    fn load<const OFFSET: usize, const N: usize>(self) -> Option<[u8; N]> {
        self.get(OFFSET..)?.first_chunk().copied()
    }

    fn advance<const N: usize>(self) -> Self {
        self.get(N..).unwrap_or_default()
    }
}

/// The position after `words` of options, all of which have to be there.
#[inline(always)]
fn skip_options<C: Cursor>(mut at: C, words: u8) -> Result<C, Unjudged> {
    for word in 0..IPV4_OPTION_WORDS_MAX {
        if word == words {
            break;
        }
        if at.load::<0, IPV4_OPTION_WORD>().is_none() {
            return Err(Unjudged::Malformed);
        }
        at = at.advance::<IPV4_OPTION_WORD>();
    }
    Ok(at)
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

#[inline(always)]
fn load_u16<C: Cursor, const OFFSET: usize>(at: C) -> Result<u16, Unjudged> {
    at.load::<OFFSET, 2>().map(u16::from_be_bytes).ok_or(Unjudged::Malformed)
}

#[cfg(test)]
mod tests;
