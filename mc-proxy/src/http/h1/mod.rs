//! HTTP/1.1 messages (RFC 9112), strictly: what two parsers may read differently is refused, not guessed at.
//!
//! [`head`] reads the heads of requests and responses, [`chunked`] the bodies that come in chunks, [`encode`] writes both. All of
//! it takes bytes and returns values.

pub mod chunked;
pub mod connection;
pub mod encode;
mod error;
mod fields;
mod framing;
pub mod head;
mod lines;
#[cfg(test)]
mod tests;

pub use self::{
    error::{HeadError, HeadLimits},
    framing::{RequestFraming, ResponseFraming},
    head::{RequestHead, ResponseHead, Target},
};
