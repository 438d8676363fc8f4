//! Lines up to the empty one (RFC 9112 §2.1), found without looking at a byte twice however slowly they come.

use bytes::{Buf, Bytes, BytesMut};

use super::HeadError;

/// How far a block of lines has been looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lines {
    scanned: usize,
    line_start: usize,
}

impl Lines {
    /// The lines before the empty one, with their ends, once that has come. They and the empty line are taken out of `buffer`.
    ///
    /// # Errors
    /// For a line that does not end by CRLF, and beyond `max` bytes.
    pub(super) fn take(&mut self, buffer: &mut BytesMut, max: usize) -> Result<Option<Bytes>, HeadError> {
        let bytes = buffer.get(..buffer.len().min(max)).unwrap_or_default();
        let new = bytes.get(self.scanned..).unwrap_or_default();
        for at in memchr::memchr_iter(b'\n', new) {
            let end = self.scanned + at;
            match bytes.get(self.line_start..end) {
                Some(b"\r") => {
                    let lines = buffer.split_to(self.line_start).freeze();
                    buffer.advance(2);
                    *self = Self::default();
                    return Ok(Some(lines));
                }
                Some([.., b'\r']) => self.line_start = end + 1,
                _ => return Err(HeadError::BareLf),
            }
        }
        self.scanned = bytes.len();
        if buffer.len() >= max { Err(HeadError::TooLong) } else { Ok(None) }
    }
}

/// The first line without its end, and what follows it.
pub(super) fn split_line(lines: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'\n', lines) {
        Some(end) => {
            let (line, rest) = lines.split_at(end);
            (line.strip_suffix(b"\r").unwrap_or(line), rest.get(1..).unwrap_or_default())
        }
        None => (lines, &[]),
    }
}
