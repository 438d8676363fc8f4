//! The daemon's side of the maps: thin calls of bpf(2) for what aya 0.14 does not offer.
//!
//! [`Mapping`] has the values of an array in the daemon's memory; [`Link`] and [`object`] look at pinned objects without
//! the kernel's object ids, which would need `CAP_SYS_ADMIN`. This is the one place outside the XDP program with unsafe
//! code.

mod driver;
mod mapping;
mod sys;
pub mod tcp;

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

pub use aya::Pod;
pub use driver::driver;
pub use mapping::Mapping;

use crate::maps::{Counter, GroupCounter};

// SAFETY: each is `repr(C)`, consists of integers and arrays of bytes, has no padding (the sizes are asserted beside the
// definitions) and takes every bit pattern.
unsafe impl Pod for Counter {}
// SAFETY: as above.
unsafe impl Pod for GroupCounter {}

/// What the kernel says of a map (`struct bpf_map_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapInfo {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Bytes.
    pub key_size: u32,
    /// Bytes, of one CPU's value.
    pub value_size: u32,
    /// Entries; bytes of a ring buffer.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
    /// The kernel's number for it.
    pub id: u32,
}

impl MapInfo {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When the descriptor is not a map's.
    pub fn of(map: BorrowedFd<'_>) -> io::Result<Self> {
        let info: sys::MapInfo = sys::info(map)?;
        Ok(Self {
            kind: info.kind,
            key_size: info.key_size,
            value_size: info.value_size,
            max_entries: info.max_entries,
            flags: info.flags,
            id: info.id,
        })
    }
}

/// Opens the object pinned at `path`.
///
/// # Errors
/// `NotFound`, `PermissionDenied`, or what else the kernel says.
pub fn object(path: &Path) -> io::Result<OwnedFd> {
    sys::object(path)
}

/// Pins an object at `path`, on a BPF file system.
///
/// # Errors
/// `AlreadyExists`, or what else the kernel says.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    sys::pin(object, path)
}

/// Where in the receive path a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum XdpMode {
    /// `XDP_FLAGS_SKB_MODE`: by the stack, after the socket buffer is made.
    Generic = 1 << 1,
    /// `XDP_FLAGS_DRV_MODE`: by the driver.
    Native = 1 << 2,
}

/// Attaches a program to an interface by a link, which detaches it when the last that refers to the link lets go of it.
///
/// # Errors
/// `EBUSY` or `EEXIST` when there is another program, `ENODEV` without the interface; what the driver says when it does not
/// take the program, such as `EOPNOTSUPP`, or `EINVAL` or `ERANGE` for an MTU that it has no room for.
pub fn attach(program: BorrowedFd<'_>, interface: u32, mode: XdpMode) -> io::Result<OwnedFd> {
    sys::link_create(program, interface, mode as u32)
}

/// Replaces the program of a link: every packet is judged by the old one or by the new one.
///
/// # Errors
/// `ENOLINK` when the link's interface is gone; otherwise what kernel or driver say, and the old program goes on.
pub fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    sys::link_update(link, program)
}

/// What became of [`test_run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What the program returned: `enum xdp_action`.
    pub action: u32,
    /// Of one run.
    pub nanoseconds: u32,
}

/// Runs a program on `frame`, `repeat` times, as if it had been received by the loopback interface.
///
/// # Errors
/// `EINVAL` for a frame that is shorter than an Ethernet header or longer than a page has room for.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<TestRun> {
    sys::test_run(program, frame, repeat).map(|(action, nanoseconds)| TestRun { action, nanoseconds })
}

/// Returns when every program that was running has ended, on every CPU: what is stored from then on is not mixed up with
/// what was read before.
///
/// # Errors
/// `ENOSYS` from a kernel without `membarrier(2)`.
pub fn settle() -> io::Result<()> {
    sys::settle()
}

/// The kernel's number of a program.
///
/// # Errors
/// When the descriptor is not a program's.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    sys::info::<sys::ProgramInfo>(program).map(|info| info.id)
}

/// Detaches a link from its interface at once, whatever else refers to the link.
///
/// # Errors
/// What the kernel says.
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    sys::detach(link)
}

/// Where an XDP link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index of the interface in its own network namespace, which need not be the caller's; `None` once the interface is
    /// gone or the link was detached.
    pub interface: Option<u32>,
    /// Kernel id of the program.
    pub program_id: u32,
}

impl Link {
    /// Asks the kernel.
    ///
    /// # Errors
    /// `InvalidInput` when the descriptor is not an XDP link's.
    pub fn of(link: BorrowedFd<'_>) -> io::Result<Self> {
        let info: sys::LinkInfo = sys::info(link)?;
        if info.kind != sys::LINK_TYPE_XDP {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the pinned object is not an XDP link"));
        }
        Ok(Self { interface: (info.interface != 0).then_some(info.interface), program_id: info.program_id })
    }
}
