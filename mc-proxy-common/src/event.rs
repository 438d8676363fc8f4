//! What the packet path tells about single packets, as records of a ring buffer.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::reason::Reason;

/// A packet that was dropped. Not every drop has an event: each CPU has a budget, renewed by the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DropEvent {
    /// Nanoseconds of the boot-time clock.
    pub at: u64,
    source: [u8; 16],
    /// Index of the interface.
    pub interface: u32,
    /// Bytes of the frame.
    pub bytes: u32,
    /// The rule group.
    pub group: u32,
    /// TCP destination port; 0 when there is none.
    pub port: u16,
    reason: u8,
    is_v6: u8,
}

const _: () = assert!(size_of::<DropEvent>() == 40);

impl DropEvent {
    /// Bytes of a record.
    pub const SIZE: usize = size_of::<Self>();

    /// An event of a packet from `source`.
    #[inline(always)]
    pub fn new(at: u64, source: IpAddr, reason: u32) -> Self {
        let (octets, is_v6) = match source {
            IpAddr::V4(addr) => {
                let [a, b, c, d] = addr.octets();
                ([a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0)
            }
            IpAddr::V6(addr) => (addr.octets(), 1),
        };
        Self { at, source: octets, interface: 0, bytes: 0, group: 0, port: 0, reason: reason as u8, is_v6 }
    }

    /// Reads a record of the ring buffer; `None` when it is not one.
    pub fn from_bytes(record: &[u8]) -> Option<Self> {
        let (at, rest) = record.split_first_chunk()?;
        let (source, rest) = rest.split_first_chunk()?;
        let (interface, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_first_chunk()?;
        let (group, rest) = rest.split_first_chunk()?;
        let (port, rest) = rest.split_first_chunk()?;
        let [reason, is_v6] = *rest else { return None };
        Some(Self {
            at: u64::from_ne_bytes(*at),
            source: *source,
            interface: u32::from_ne_bytes(*interface),
            bytes: u32::from_ne_bytes(*bytes),
            group: u32::from_ne_bytes(*group),
            port: u16::from_ne_bytes(*port),
            reason,
            is_v6,
        })
    }

    /// Who sent the packet.
    pub fn source(&self) -> IpAddr {
        match (self.is_v6, self.source) {
            (0, [a, b, c, d, ..]) => Ipv4Addr::new(a, b, c, d).into(),
            (_, octets) => Ipv6Addr::from_octets(octets).into(),
        }
    }

    /// Why it was dropped; `None` for a number that is no reason.
    pub fn reason(&self) -> Option<Reason> {
        Reason::from_index(self.reason.into())
    }
}
