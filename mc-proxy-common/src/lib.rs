//! What the XDP program and the daemon share: the layout of the kernel maps, the packet parser and the verdict.
//!
//! Parser and verdict are pure functions over bytes and a [`verdict::Host`]. The same source is compiled into the
//! kernel program, called by the daemon for accepted connections, and used by the tests as the reference.

#![cfg_attr(not(any(feature = "user", feature = "frames", test)), no_std)]

pub mod atomic;
pub mod event;
#[cfg(any(feature = "frames", test))]
pub mod frames;
pub mod maps;
pub mod packet;
pub mod rate;
pub mod reason;
pub mod source;
pub mod splice;
pub mod table;
#[cfg(feature = "user")]
pub mod user;
pub mod verdict;
