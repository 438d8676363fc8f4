//! Reading the fields of a message from its front.

#![warn(clippy::indexing_slicing)]

/// What is ahead; nothing is taken when there is too little.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// All of it.
    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(self) -> usize {
        self.0.len()
    }

    pub(super) fn take(&mut self, len: usize) -> Option<Self> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(Self(taken))
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    /// A vector behind its length in one byte.
    pub(super) fn vec8(&mut self) -> Option<Self> {
        let len = self.u8()?;
        self.take(len.into())
    }

    /// A vector behind its length in two bytes.
    pub(super) fn vec16(&mut self) -> Option<Self> {
        let len = self.u16()?;
        self.take(len.into())
    }

    /// An extension: its type, and its data.
    pub(super) fn extension(&mut self) -> Option<(u16, Self)> {
        Some((self.u16()?, self.vec16()?))
    }
}
