//! HTTP/2 (RFC 9113), as far as both roles have it in common. Frames, HPACK and flow control are the `h2` crate's, which is
//! written `::h2` here.

pub mod chunk;
pub mod content;
pub mod guard;
pub mod guarded;

use ::h2::Reason;

use super::message::Broken;

/// DATA of a stream that waits for the connection, in bytes: what the peer's window has room for, and its socket not yet.
pub const SEND_BUFFER: usize = 32 * 1024;

/// SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 §6.5.2): what a peer may send on a stream before somebody has taken it, in bytes.
pub const STREAM_WINDOW: u32 = 64 * 1024;

/// Of flow control (RFC 9113 §6.9.1), in bytes.
pub const WINDOW_MAX: u32 = (1 << 31) - 1;

/// SETTINGS_MAX_FRAME_SIZE (RFC 9113 §6.5.2), in bytes: the least that may be said.
pub const FRAME_MAX: u32 = 16 * 1024;

/// SETTINGS_HEADER_TABLE_SIZE (RFC 9113 §6.5.2), in bytes: what HPACK begins with.
pub const HEADER_TABLE: u32 = 4096;

/// What an error of a stream means for the message on it.
pub fn broken(error: &::h2::Error) -> Broken {
    // RFC 9113 §6.8: of a GOAWAY hear only the streams that the peer has not looked at; the others end with the connection.
    if (error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)) || (error.is_go_away() && error.is_remote())
    {
        Broken::Refused
    } else if error.is_reset() && error.is_remote() {
        Broken::Reset
    } else if error.is_io() {
        Broken::Gone
    } else {
        Broken::Protocol
    }
}
