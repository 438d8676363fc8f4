//! Entries as they are held: small, and in the order in which they are sorted.

use std::borrow::Cow;

use super::{COMMENT_MAX, COMMENTS_MAX, LineError};

/// An IPv4 prefix with its comment in one word: address, length, comment, from the top. Words sort by address, then the
/// wider prefix first, then the entry whose comment came first in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct V4(u64);

/// An IPv6 prefix with its comment, which sorts in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct V6 {
    pub(super) addr: u128,
    pub(super) len: u8,
    pub(super) comment: CommentId,
}

/// One of [`Comments`]; below 2^24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CommentId(u32);

/// The comments of a list, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Comments {
    text: String,
    /// Where each one ends.
    ends: Vec<u32>,
}

impl V4 {
    #[inline]
    pub(super) fn new(addr: u32, len: u8, comment: CommentId) -> Self {
        Self(u64::from(addr) << 32 | u64::from(len) << 24 | u64::from(comment.0))
    }

    pub(super) fn addr(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) fn len(self) -> u8 {
        (self.0 >> 24) as u8
    }

    pub(super) fn comment(self) -> CommentId {
        CommentId(self.0 as u32 & CommentId::NONE.0)
    }
}

impl CommentId {
    /// Sorts behind every comment, so that of two equal prefixes the one with a comment stays.
    pub(super) const NONE: Self = Self((1 << 24) - 1);
}

impl Comments {
    /// Adds a comment in the form in which a rule takes it: blanks for control characters, none at the ends, cut to its
    /// length. The flag says that it was cut; nothing is added for a comment that is empty then.
    ///
    /// # Errors
    /// [`LineError::Comments`] when there is no room for more.
    pub(super) fn add(&mut self, comment: &str) -> Result<(CommentId, bool), LineError> {
        let is_harmless = !comment.contains(char::is_control);
        let line = if is_harmless { Cow::Borrowed(comment) } else { comment.replace(char::is_control, " ").into() };
        // A mark at the beginning would not come back when the list is written and read again.
        let line = line.trim_start_matches([' ', '#', ';']).trim_end_matches(' ');
        let kept = line.get(..line.floor_char_boundary(COMMENT_MAX)).unwrap_or(line);
        let is_cut = kept.len() < line.len();
        let kept = kept.trim_end_matches(' ');
        if kept.is_empty() {
            return Ok((CommentId::NONE, is_cut));
        }
        let id = u32::try_from(self.ends.len()).ok().filter(|id| *id < CommentId::NONE.0).ok_or(LineError::Comments)?;
        let end = self.text.len() + kept.len();
        if end > COMMENTS_MAX {
            return Err(LineError::Comments);
        }
        self.text.push_str(kept);
        self.ends.push(u32::try_from(end).map_err(|_| LineError::Comments)?);
        Ok((CommentId(id), is_cut))
    }

    pub(super) fn text(&self, id: CommentId) -> Option<&str> {
        let index = usize::try_from(id.0).ok()?;
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.text.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    }
}
