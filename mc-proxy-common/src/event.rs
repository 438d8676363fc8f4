//! What the packet path tells about single packets, as records of a ring buffer.

use crate::{reason::Reason, source::Source};

/// A packet that was dropped. Not every drop has an event: each CPU has a budget, renewed by the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DropEvent {
    /// Nanoseconds of the boot-time clock.
    pub at: u64,
    /// Who sent it.
    pub source: Source,
    /// Index of the interface.
    pub interface: u32,
    /// Bytes of the frame.
    pub bytes: u32,
    /// The rule group.
    pub group: u32,
    /// TCP destination port; 0 when there is none.
    pub port: u16,
    /// Index of a [`Reason`].
    pub reason: u16,
}

const _: () = assert!(size_of::<DropEvent>() == 40);

impl DropEvent {
    /// Bytes of a record.
    pub const SIZE: usize = size_of::<Self>();

    /// Reads a record of the ring buffer; `None` when it is not one.
    pub fn from_bytes(record: &[u8]) -> Option<Self> {
        let (at, rest) = record.split_first_chunk()?;
        let (high, rest) = rest.split_first_chunk()?;
        let (low, rest) = rest.split_first_chunk()?;
        let (interface, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_first_chunk()?;
        let (group, rest) = rest.split_first_chunk()?;
        let (port, rest) = rest.split_first_chunk()?;
        let (reason, []) = rest.split_first_chunk()? else { return None };
        Some(Self {
            at: u64::from_ne_bytes(*at),
            source: Source { high: u64::from_ne_bytes(*high), low: u64::from_ne_bytes(*low) },
            interface: u32::from_ne_bytes(*interface),
            bytes: u32::from_ne_bytes(*bytes),
            group: u32::from_ne_bytes(*group),
            port: u16::from_ne_bytes(*port),
            reason: u16::from_ne_bytes(*reason),
        })
    }

    /// Why it was dropped; `None` for a number that is no reason.
    pub fn reason(&self) -> Option<Reason> {
        Reason::from_index(self.reason.into())
    }
}
