//! Field lines (RFC 9112 §5), of heads and of trailers.

use ::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use super::{HeadError, lines::split_line};

/// Fields that a proxy adds to a message.
const ADDED: usize = 8;

/// More fields a map is not made for beforehand.
const MANY: usize = 128;

/// Parses field lines. `block` is what values are slices of, and `lines` a part of it.
pub(super) fn parse(block: &Bytes, mut lines: &[u8], max: usize) -> Result<HeaderMap, HeadError> {
    // Room for what is added on the way through, so that it does not have to grow.
    let lines_count = memchr::memchr_iter(b'\n', lines).count();
    let mut headers = HeaderMap::with_capacity(lines_count.min(max).min(MANY) + ADDED);
    let mut count = 0;
    while !lines.is_empty() {
        let (line, rest) = split_line(lines);
        lines = rest;
        count += 1;
        if count > max {
            return Err(HeadError::TooManyFields);
        }
        if let Some(b' ' | b'\t') = line.first() {
            return Err(HeadError::ObsFold);
        }
        let colon = memchr::memchr(b':', line).ok_or(HeadError::FieldName)?;
        let (name, value) = line.split_at(colon);
        let name = HeaderName::from_bytes(name).map_err(|_| HeadError::FieldName)?;
        let value = trim(value.get(1..).unwrap_or_default());
        let value = HeaderValue::from_maybe_shared(block.slice_ref(value)).map_err(|_| HeadError::FieldValue)?;
        // Beyond 32,768 names a map is full; the limit of fields may have been set higher.
        headers.try_append(name, value).map_err(|_| HeadError::TooManyFields)?;
    }
    Ok(headers)
}

/// Without optional white space (RFC 9110 §5.6.3) at both ends.
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
