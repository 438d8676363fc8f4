//! Writes messages. Names are written in lower case, which they are alike in (RFC 9110 §5.1); that no value has a line end
//! in it is what [`::http::HeaderValue`] is for.

use std::io::Write;

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use bytes::{BufMut, BytesMut};

use super::{RequestFraming, ResponseFraming, Target};

/// Of a chunk's head: sixteen digits and CRLF.
const CHUNK_HEAD_MAX: usize = 18;
/// What ends a chunk's data.
pub const CHUNK_END: &[u8] = b"\r\n";

/// What is said to the next hop alone.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'a> {
    /// `Host`.
    pub host: &'a HeaderValue,
    /// `Upgrade`.
    pub upgrade: Option<&'a HeaderValue>,
    /// `TE: trailers` is among the fields, which RFC 9110 §10.1.4 has `Connection` name.
    pub wants_trailers: bool,
    /// `Sec-WebSocket-Key`, for a request that came without.
    pub websocket_key: Option<&'a HeaderValue>,
}

/// Writes the head of a request, HTTP/1.1. What `headers` say of framing is left out: it is written from `framing`.
pub fn request(
    to: &mut BytesMut,
    method: &Method,
    target: &Target,
    hop: &Hop<'_>,
    headers: &HeaderMap,
    framing: RequestFraming,
) {
    let target = match target {
        Target::Origin(path) => path.as_str(),
        Target::Asterisk => "*",
    };
    to.reserve(method.as_str().len() + target.len() + 12);
    to.put_slice(method.as_str().as_bytes());
    to.put_u8(b' ');
    to.put_slice(target.as_bytes());
    to.put_slice(b" HTTP/1.1\r\n");
    line(to, b"host", hop.host.as_bytes());
    fields(to, headers, true);
    match (hop.upgrade.is_some(), hop.wants_trailers) {
        (true, true) => to.put_slice(b"connection: upgrade, te\r\n"),
        (true, false) => to.put_slice(b"connection: upgrade\r\n"),
        (false, true) => to.put_slice(b"connection: te\r\n"),
        (false, false) => {}
    }
    if let Some(protocol) = hop.upgrade {
        line(to, b"upgrade", protocol.as_bytes());
    }
    if let Some(key) = hop.websocket_key {
        line(to, b"sec-websocket-key", key.as_bytes());
        if !headers.contains_key(header::SEC_WEBSOCKET_VERSION) {
            line(to, b"sec-websocket-version", b"13");
        }
    }
    match framing {
        RequestFraming::None => {}
        RequestFraming::Length(length) => content_length(to, length),
        RequestFraming::Chunked => to.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    to.put_slice(b"\r\n");
}

/// Writes the head of a response, HTTP/1.1. What `headers` say of framing is left out where there is a body, and of chunks
/// always: it is written from `framing`. The length of what HEAD or 304 are spared is told (RFC 9110 §8.6).
pub fn response(to: &mut BytesMut, status: StatusCode, headers: &HeaderMap, framing: ResponseFraming) {
    let reason = status.canonical_reason().unwrap_or_default();
    to.reserve(reason.len() + 15);
    to.put_slice(b"HTTP/1.1 ");
    to.put_slice(status.as_str().as_bytes());
    to.put_u8(b' ');
    to.put_slice(reason.as_bytes());
    to.put_slice(b"\r\n");
    // RFC 9110 §8.6: never in a 1xx or 204.
    let may_have_length = !status.is_informational() && status != StatusCode::NO_CONTENT;
    fields(to, headers, framing != ResponseFraming::None || !may_have_length);
    match framing {
        ResponseFraming::None | ResponseFraming::UntilClose => {}
        ResponseFraming::Length(length) => content_length(to, length),
        ResponseFraming::Chunked => to.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    to.put_slice(b"\r\n");
}

/// Writes what goes before the data of a chunk; [`CHUNK_END`] goes behind it. A chunk without data would be the last.
pub fn chunk_head(to: &mut BytesMut, length: usize) {
    debug_assert_ne!(length, 0);
    to.reserve(CHUNK_HEAD_MAX);
    // Into memory that grows: it does not fail.
    let _ = write!(to.writer(), "{length:x}\r\n");
}

/// Writes the last chunk with its trailers.
pub fn last_chunk(to: &mut BytesMut, trailers: Option<&HeaderMap>) {
    to.put_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        fields(to, trailers, true);
    }
    to.put_slice(b"\r\n");
}

fn content_length(to: &mut BytesMut, length: u64) {
    to.reserve(40);
    // Into memory that grows: it does not fail.
    let _ = write!(to.writer(), "content-length: {length}\r\n");
}

fn fields(to: &mut BytesMut, headers: &HeaderMap, without_length: bool) {
    for (name, value) in headers {
        if *name == header::TRANSFER_ENCODING || (without_length && *name == header::CONTENT_LENGTH) {
            continue;
        }
        line(to, name.as_str().as_bytes(), value.as_bytes());
    }
}

fn line(to: &mut BytesMut, name: &[u8], value: &[u8]) {
    to.reserve(name.len() + value.len() + 4);
    to.put_slice(name);
    to.put_slice(b": ");
    to.put_slice(value);
    to.put_slice(b"\r\n");
}
