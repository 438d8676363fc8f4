//! Lists of addresses as the world publishes them, read from a stream of bytes.
//!
//! One entry a line: an address, a CIDR, a range `a-b`, or a JSON object with `cidr` (Spamhaus). `#` and `;` begin a
//! comment; behind an entry it becomes the rule's comment. That covers plain lists, FireHOL's netsets and ipsets and
//! both forms of Spamhaus DROP. A list with a line that cannot be read is refused as a whole: half a block list looks
//! like a block list. Pure; the memory is bounded whatever comes.

mod aggregate;
mod entry;
mod line;

#[cfg(test)]
mod tests;

use std::{fmt, ops::ControlFlow};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use entry::{CommentId, Comments, V4, V6};
use line::Line;
pub use line::LineError;

/// Longest line, in bytes; the longest of any known list has a tenth.
pub const LINE_MAX: usize = 4096;
/// Errors that are collected before reading stops.
pub const ERRORS_MAX: usize = 20;
/// Entries that are read before duplicates are removed; fewer than there are ids of comments.
pub const ENTRIES_MAX: usize = 10_000_000;
/// Bytes of a comment; what is longer is cut.
pub const COMMENT_MAX: usize = 200;
/// Bytes of all comments of a list.
pub const COMMENTS_MAX: usize = 64 * 1024 * 1024;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// How a list is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListOptions {
    /// `198.51.100.7/24` is read as `198.51.100.0/24` instead of being an error.
    pub fix_host_bits: bool,
    /// Entries that a wider one covers are dropped, and siblings with the same comment are merged.
    pub aggregate: bool,
    /// What stands behind an entry is kept.
    pub comments: bool,
}

impl Default for ListOptions {
    fn default() -> Self {
        Self { fix_host_bits: false, aggregate: true, comments: true }
    }
}

/// Reads a list piece by piece, however it is cut.
#[derive(Debug)]
pub struct ListParser {
    options: ListOptions,
    /// The beginning of a line whose end has not come yet; at most `LINE_MAX + 1` bytes are kept of it.
    partial: Vec<u8>,
    v4: Vec<V4>,
    v6: Vec<V6>,
    comments: Comments,
    report: Report,
    errors: Vec<ListError>,
    is_over: bool,
}

/// A list that could be read: distinct prefixes without host bits, in the order of addresses, IPv4 first.
#[derive(Debug)]
pub struct List {
    v4: Vec<V4>,
    v6: Vec<V6>,
    comments: Comments,
    report: Report,
}

/// What became of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Lines, with the empty ones.
    pub lines: u64,
    /// Prefixes read; a range is several.
    pub read: u64,
    /// Of these, repetitions.
    pub duplicates: u64,
    /// Dropped, because a wider one covers them.
    pub covered: u64,
    /// Gone by merging two siblings into one.
    pub merged: u64,
    /// Prefixes whose host bits were cleared.
    pub fixed: u64,
    /// Comments that were cut to [`COMMENT_MAX`].
    pub cut: u64,
}

/// Why a list was refused: the first [`ERRORS_MAX`] errors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ListErrors {
    /// At least one.
    pub errors: Vec<ListError>,
    /// Reading stopped at the last of them.
    pub is_cut: bool,
}

/// What is wrong with one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {error}")]
pub struct ListError {
    /// Counted from 1.
    pub line: u64,
    /// What is wrong.
    pub error: LineError,
}

impl ListParser {
    /// A parser that has read nothing.
    pub fn new(options: ListOptions) -> Self {
        Self {
            options,
            partial: Vec::new(),
            v4: Vec::new(),
            v6: Vec::new(),
            comments: Comments::default(),
            report: Report::default(),
            errors: Vec::new(),
            is_over: false,
        }
    }

    /// Reads on. `Break` when there is no use in more: the list is refused whatever follows.
    pub fn push(&mut self, mut bytes: &[u8]) -> ControlFlow<()> {
        if !self.partial.is_empty() {
            let Some(end) = line_end(bytes) else { return self.keep(bytes) };
            let (rest_of_line, after) = bytes.split_at(end);
            self.keep(rest_of_line)?;
            let line = std::mem::take(&mut self.partial);
            self.line(&line);
            bytes = after.get(1..).unwrap_or_default();
        }
        while !self.is_over && !bytes.is_empty() {
            // Nearly every line of a long list is an IPv4 address or prefix and nothing else.
            if let Some((addr, len, used)) = line::plain_v4(bytes) {
                self.report.lines += 1;
                self.add_v4(addr, len, CommentId::NONE);
                if self.is_full() {
                    self.fail(LineError::Entries);
                }
                bytes = bytes.get(used..).unwrap_or_default();
                continue;
            }
            let Some(end) = line_end(bytes) else { return self.keep(bytes) };
            let (line, after) = bytes.split_at(end);
            self.line(line);
            bytes = after.get(1..).unwrap_or_default();
        }
        self.flow()
    }

    /// The list, after its last byte.
    ///
    /// # Errors
    /// With what is wrong with its lines.
    pub fn finish(mut self) -> Result<List, ListErrors> {
        if !self.partial.is_empty() && !self.is_over {
            let line = std::mem::take(&mut self.partial);
            self.line(&line);
        }
        if !self.errors.is_empty() {
            return Err(ListErrors { errors: self.errors, is_cut: self.is_over });
        }
        let Self { mut v4, mut v6, comments, mut report, options, .. } = self;
        aggregate::normalise(&mut v4, &comments, options.aggregate, &mut report);
        aggregate::normalise(&mut v6, &comments, options.aggregate, &mut report);
        Ok(List { v4, v6, comments, report })
    }

    /// What has been read so far.
    pub fn report(&self) -> Report {
        self.report
    }

    fn keep(&mut self, bytes: &[u8]) -> ControlFlow<()> {
        // One byte more than the longest line shows that it is longer.
        let room = (LINE_MAX + 1).saturating_sub(self.partial.len());
        self.partial.extend(bytes.iter().take(room));
        self.flow()
    }

    fn flow(&self) -> ControlFlow<()> {
        if self.is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn line(&mut self, line: &[u8]) {
        self.report.lines += 1;
        let line = if self.report.lines == 1 { line.strip_prefix(BOM).unwrap_or(line) } else { line };
        if let Err(error) = self.read(line) {
            self.fail(error);
        }
    }

    #[cold]
    fn fail(&mut self, error: LineError) {
        self.is_over = error.is_final() || self.errors.len() + 1 == ERRORS_MAX;
        self.errors.push(ListError { line: self.report.lines, error });
    }

    fn read(&mut self, line: &[u8]) -> Result<(), LineError> {
        let (line, is_fixed) = Line::read(line, self.options.fix_host_bits)?;
        self.report.fixed += u64::from(is_fixed);
        let (first, last, comment) = match line {
            Line::Nothing => return Ok(()),
            Line::Net { net, comment } => (net, None, comment),
            Line::Range { first, last, comment } => (first, Some(last), comment),
        };
        let comment = if self.options.comments {
            let (id, is_cut) = self.comments.add(&comment)?;
            self.report.cut += u64::from(is_cut);
            id
        } else {
            CommentId::NONE
        };
        match (first, last) {
            (IpNet::V4(net), None) => self.add_v4(net.addr().to_bits(), net.prefix_len(), comment),
            (IpNet::V6(net), None) => self.add_v6(net.addr().to_bits(), net.prefix_len(), comment),
            (IpNet::V4(first), Some(last)) => {
                line::split_range(first.addr().to_bits().into(), last, 32, |addr, len| {
                    self.add_v4(u32::try_from(addr).expect("an end of an IPv4 range has 32 bits"), len, comment);
                });
            }
            (IpNet::V6(first), Some(last)) => {
                line::split_range(first.addr().to_bits(), last, 128, |addr, len| self.add_v6(addr, len, comment));
            }
        }
        if self.is_full() { Err(LineError::Entries) } else { Ok(()) }
    }

    fn is_full(&self) -> bool {
        self.v4.len() + self.v6.len() > ENTRIES_MAX
    }

    #[inline]
    fn add_v4(&mut self, addr: u32, len: u8, comment: CommentId) {
        self.report.read += 1;
        self.v4.push(V4::new(addr, len, comment));
    }

    fn add_v6(&mut self, addr: u128, len: u8, comment: CommentId) {
        self.report.read += 1;
        self.v6.push(V6 { addr, len, comment });
    }
}

impl List {
    /// Prefixes of both families.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there is nothing to be blocked or allowed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What became of the lines.
    pub fn report(&self) -> Report {
        self.report
    }

    /// The prefix at `index` with its comment.
    pub fn get(&self, index: usize) -> Option<(IpNet, Option<&str>)> {
        let (net, comment) = match self.v4.get(index) {
            Some(entry) => {
                let net = Ipv4Net::new(entry.addr().into(), entry.len()).expect("0 <= len <= 32");
                (IpNet::V4(net), entry.comment())
            }
            None => {
                let entry = self.v6.get(index.checked_sub(self.v4.len())?)?;
                let net = Ipv6Net::new(entry.addr.into(), entry.len).expect("0 <= len <= 128");
                (IpNet::V6(net), entry.comment)
            }
        };
        Some((net, self.comments.text(comment)))
    }

    /// The prefixes with their comments.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, Option<&str>)> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

impl fmt::Display for ListErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        if self.is_cut { f.write_str("\nreading stopped here") } else { Ok(()) }
    }
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}
