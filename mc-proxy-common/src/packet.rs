//! From an Ethernet frame to the source address and what can be known of the transport header.
//!
//! Ethernet, up to two VLAN tags (802.1Q, 802.1ad), IPv4 with options, IPv6 with up to [`EXTENSIONS_MAX`] extension
//! headers. Nothing beyond the length that the IP header states is read: bytes after it are padding, which the stack
//! cuts off, and must not pass for a transport header.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Extension headers that are walked before the transport header counts as hidden.
pub const EXTENSIONS_MAX: usize = 8;

/// The bytes of a frame, from the Ethernet header on.
pub trait Frame {
    /// `N` bytes at `offset`, or nothing when the frame ends before them.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

/// An IP packet within a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    source: IpAddr,
    protocol: u8,
    hop_limit: u8,
    payload: usize,
    end: usize,
    // IPv4 only; that of IPv6 is found on the way to the transport header.
    fragment: Fragment,
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
    /// There may be a TCP header that was put out of reach: behind too many extension headers, or not in the first
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
const ETHERNET_BYTES: usize = 14;
const VLAN_BYTES: usize = 4;
const IPV6_BYTES: usize = 40;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;

impl Packet {
    /// The packet of a frame.
    ///
    /// # Errors
    /// With the reason why there is none.
    #[inline(always)]
    pub fn parse<F: Frame>(frame: &F) -> Result<Self, Unjudged> {
        let mut ether_type = load_u16(frame, ETHERNET_BYTES - 2).ok_or(Unjudged::Malformed)?;
        let mut offset = ETHERNET_BYTES;
        if is_vlan(ether_type) {
            ether_type = load_u16(frame, offset + 2).ok_or(Unjudged::Malformed)?;
            offset += VLAN_BYTES;
            if is_vlan(ether_type) {
                ether_type = load_u16(frame, offset + 2).ok_or(Unjudged::Malformed)?;
                offset += VLAN_BYTES;
            }
        }
        match ether_type {
            ETHERTYPE_IPV4 => Self::parse_v4(frame, offset),
            ETHERTYPE_IPV6 => Self::parse_v6(frame, offset),
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
    pub fn transport<F: Frame>(&self, frame: &F) -> Transport {
        match self.source {
            IpAddr::V4(_) => self.transport_header(frame, self.protocol, self.payload, self.fragment),
            IpAddr::V6(_) => self.walk_extensions(frame),
        }
    }

    #[inline(always)]
    fn parse_v4<F: Frame>(frame: &F, offset: usize) -> Result<Self, Unjudged> {
        let [version_and_length, _, total_high, total_low, _, _, fragment_high, fragment_low, hop_limit, protocol] =
            frame.load::<10>(offset).ok_or(Unjudged::Malformed)?;
        let source = frame.load::<4>(offset + 12).ok_or(Unjudged::Malformed)?;
        let header = usize::from(version_and_length & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([total_high, total_low]));
        // A total length of 0 is what segmentation offload leaves in packets above 64 KiB.
        let is_consistent = total == 0 || total >= header;
        if version_and_length >> 4 != 4
            || header < 20
            || !is_consistent
            || frame.load::<1>(offset + header - 1).is_none()
        {
            return Err(Unjudged::Malformed);
        }
        Ok(Self {
            source: IpAddr::V4(Ipv4Addr::from_octets(source)),
            protocol,
            hop_limit,
            payload: offset + header,
            end: if total == 0 { usize::MAX } else { offset + total },
            fragment: match (u16::from_be_bytes([fragment_high, fragment_low]) & 0x1fff, fragment_high & 0x20 != 0) {
                (0, false) => Fragment::Whole,
                (0, true) => Fragment::First,
                _ => Fragment::Later,
            },
        })
    }

    #[inline(always)]
    fn parse_v6<F: Frame>(frame: &F, offset: usize) -> Result<Self, Unjudged> {
        let [version, _, _, _, length_high, length_low, protocol, hop_limit] =
            frame.load::<8>(offset).ok_or(Unjudged::Malformed)?;
        let source = frame.load::<16>(offset + 8).ok_or(Unjudged::Malformed)?;
        if version >> 4 != 6 || frame.load::<1>(offset + IPV6_BYTES - 1).is_none() {
            return Err(Unjudged::Malformed);
        }
        let length = usize::from(u16::from_be_bytes([length_high, length_low]));
        // RFC 2675: a jumbogram has length 0 and says its size in a hop-by-hop option.
        let is_jumbo = length == 0 && protocol == HOP_BY_HOP;
        Ok(Self {
            source: IpAddr::V6(Ipv6Addr::from_octets(source)),
            protocol,
            hop_limit,
            payload: offset + IPV6_BYTES,
            end: if is_jumbo { usize::MAX } else { offset + IPV6_BYTES + length },
            fragment: Fragment::Whole,
        })
    }

    #[inline(always)]
    fn walk_extensions<F: Frame>(&self, frame: &F) -> Transport {
        let (mut header, mut offset, mut fragment) = (self.protocol, self.payload, Fragment::Whole);
        for _ in 0..EXTENSIONS_MAX {
            if !matches!(header, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION) {
                break;
            }
            let Some([next, length, high, low]) = self.load(frame, offset) else {
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
            offset += match header {
                FRAGMENT => 8,
                // RFC 4302 §2.2: in words of four bytes, less two.
                AUTHENTICATION => (usize::from(length) + 2) * 4,
                _ => (usize::from(length) + 1) * 8,
            };
            header = next;
        }
        self.transport_header(frame, header, offset, fragment)
    }

    #[inline(always)]
    fn transport_header<F: Frame>(&self, frame: &F, protocol: u8, offset: usize, fragment: Fragment) -> Transport {
        let is_v6 = self.source.is_ipv6();
        match protocol {
            _ if fragment == Fragment::Later => Transport::LaterFragment,
            TCP => match self.load(frame, offset) {
                Some([_, _, high, low]) => Transport::Tcp { destination: u16::from_be_bytes([high, low]) },
                None => cut_short(fragment),
            },
            ICMPV6 if is_v6 => match self.load(frame, offset) {
                Some([133..=137]) if self.hop_limit == 255 && fragment == Fragment::Whole => {
                    Transport::NeighborDiscovery
                }
                Some(_) => Transport::Other,
                None => cut_short(fragment),
            },
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION if is_v6 => Transport::Hidden,
            _ => Transport::Other,
        }
    }

    /// `N` bytes at `offset` that belong to the packet.
    #[inline(always)]
    fn load<F: Frame, const N: usize>(&self, frame: &F, offset: usize) -> Option<[u8; N]> {
        if offset + N > self.end {
            return None;
        }
        frame.load(offset)
    }
}

impl Frame for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

impl<F: Frame + ?Sized> Frame for &F {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        (**self).load(offset)
    }
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
fn load_u16<F: Frame>(frame: &F, offset: usize) -> Option<u16> {
    frame.load(offset).map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests;
