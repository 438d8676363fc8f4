//! What connections may take of the daemon's memory, all together (`proxy.memory_limit`).
//!
//! Accounted are a fixed sum for each connection ([`CONNECTION`]), what is read of a ClientHello, bytes that wait for a slow
//! reader, and pipes on loan. Memory of the kernel's sockets is not: it has limits of its own (`net.ipv4.tcp_mem`).
//!
//! Each worker counts for itself, and takes from the [`Budget`] in portions: what a connection costs touches no memory that
//! other workers write to. A worker may hold two portions that nobody else can have; the sum never exceeds the limit.
//!
//! Who is refused when there is no more, in this order:
//!
//! 1. connections whose client has not said yet whom it wants, the newest first ([`Anonymous`]);
//! 2. when the worker has none of these, new connections, as they are accepted;
//! 3. established connections are not cut. They are lent no pipes, and their reads get as short as what they have a claim
//!    to ([`LEAN_READ`]), so that they move on, and take no more.

mod anonymous;
mod budget;
mod kernel;
#[cfg(test)]
mod tests;

pub use self::{
    anonymous::Anonymous,
    budget::{Budget, Charge, has_room},
    kernel::socket_bytes,
};

/// Bytes that every connection is charged, from accept to its end: its task and its record (about 4 KiB), the first read of
/// its hello or, later, [`LEAN_READ`] for each direction.
pub const CONNECTION: u64 = 8 * 1024;

/// Bytes that a direction may hold for a slow reader without being charged for them.
pub const LEAN_READ: usize = 2 * 1024;
