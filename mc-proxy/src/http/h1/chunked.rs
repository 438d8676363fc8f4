//! Bodies in chunks (RFC 9112 §7.1).

use ::http::HeaderMap;
use bytes::{Buf, Bytes, BytesMut};

use super::{HeadError, HeadLimits, fields, lines::Lines};

/// Of the line with a chunk's size: sixteen digits, CRLF and an extension.
const SIZE_LINE_MAX: usize = 256;
/// Of all extensions of a body, which nobody uses and everybody has to skip (CVE-2023-39326).
const EXTENSIONS_MAX: usize = 4096;
/// `u64` has no more.
const DIGITS_MAX: usize = 16;

/// Takes a body out of its chunks.
#[derive(Clone, Copy, Debug)]
pub struct ChunkedDecoder {
    state: State,
    limits: HeadLimits,
    extensions: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers(Lines),
    Done,
}

/// A step of a body.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// A part of the body, never empty.
    Data(Bytes),
    /// No more until more has come.
    Incomplete,
    /// The end, with its trailers, perhaps none; what follows in the buffer is the next message.
    End(HeaderMap),
}

impl ChunkedDecoder {
    /// At the beginning of a body; `limits` is for its trailers.
    pub fn new(limits: HeadLimits) -> Self {
        Self { state: State::Size, limits, extensions: 0 }
    }

    /// Takes the next part out of `buffer`, without copying it.
    ///
    /// # Errors
    /// When the framing is not exactly as it has to be; where the body ends is not known then.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, HeadError> {
        loop {
            match &mut self.state {
                State::Size => match self.take_size(buffer)? {
                    Some(0) => self.state = State::Trailers(Lines::default()),
                    Some(size) => self.state = State::Data(size),
                    None => return Ok(Decoded::Incomplete),
                },
                State::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Decoded::Incomplete);
                    }
                    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                    *left -= length as u64;
                    if *left == 0 {
                        self.state = State::DataEnd;
                    }
                    return Ok(Decoded::Data(buffer.split_to(length).freeze()));
                }
                State::DataEnd => match (buffer.first(), buffer.get(1)) {
                    (Some(b'\r'), Some(b'\n')) => {
                        buffer.advance(2);
                        self.state = State::Size;
                    }
                    (None, _) | (Some(b'\r'), None) => return Ok(Decoded::Incomplete),
                    _ => return Err(HeadError::Chunk),
                },
                State::Trailers(lines) => {
                    let Some(block) = lines.take(buffer, self.limits.head_bytes)? else {
                        return Ok(Decoded::Incomplete);
                    };
                    self.state = State::Done;
                    return Ok(Decoded::End(fields::parse(&block, &block, self.limits.fields)?));
                }
                State::Done => return Ok(Decoded::End(HeaderMap::new())),
            }
        }
    }

    fn take_size(&mut self, buffer: &mut BytesMut) -> Result<Option<u64>, HeadError> {
        let bytes = buffer.get(..buffer.len().min(SIZE_LINE_MAX)).unwrap_or_default();
        let digits = bytes.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        if digits > DIGITS_MAX || (digits == 0 && !bytes.is_empty()) {
            return Err(HeadError::Chunk);
        }
        let (size, rest) = bytes.split_at(digits);
        let extension = match rest {
            [] | [b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] => 0,
            [b';', ..] => match memchr::memchr(b'\n', rest) {
                Some(end) => end.saturating_sub(1),
                None if bytes.len() == SIZE_LINE_MAX => return Err(HeadError::ChunkExtensions),
                None => return Ok(None),
            },
            _ => return Err(HeadError::Chunk),
        };
        let (text, end) = rest.split_at_checked(extension).ok_or(HeadError::Chunk)?;
        // Quoted strings are not looked into: no byte is let through that could end the line for somebody.
        if !end.starts_with(b"\r\n") || !text.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
            return Err(HeadError::Chunk);
        }
        let size = std::str::from_utf8(size).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let size = size.ok_or(HeadError::Chunk)?;
        self.extensions += extension;
        if self.extensions > EXTENSIONS_MAX {
            return Err(HeadError::ChunkExtensions);
        }
        buffer.advance(digits + extension + 2);
        Ok(Some(size))
    }
}
