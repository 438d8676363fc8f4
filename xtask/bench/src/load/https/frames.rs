//! As much of HTTP/2 (RFC 9113) and of HPACK (RFC 7541) as a client and a backend need that know what the other says.

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const HEAD_LEN: usize = 9;
/// The windows that a peer begins with.
pub(super) const WINDOW: u32 = 65_535;
/// What a window is opened to: no peer has to wait for this end.
pub(super) const WIDE: u32 = 1 << 30;

pub(super) const END_STREAM: u8 = 0x1;
pub(super) const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

const SETTINGS_HEADER_TABLE_SIZE: u16 = 0x1;
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 0x4;

/// The types of frames that are looked at.
pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0x0;
    pub(in super::super) const HEADERS: u8 = 0x1;
    pub(in super::super) const RST_STREAM: u8 = 0x3;
    pub(in super::super) const SETTINGS: u8 = 0x4;
    pub(in super::super) const PING: u8 = 0x6;
    pub(in super::super) const GOAWAY: u8 = 0x7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 0x8;
}

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame, and what follows; `None` until it is whole.
    pub(super) fn split(data: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let &[a, b, c, kind, flags, s0, s1, s2, s3] = data.first_chunk::<HEAD_LEN>()?;
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = data.get(HEAD_LEN..HEAD_LEN + len)?;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
        Some((Self { kind, flags, stream, payload }, &data[HEAD_LEN + len..]))
    }

    pub(super) fn ends_stream(&self) -> bool {
        self.flags & END_STREAM != 0
    }

    /// The payload of DATA or HEADERS without padding and priority.
    pub(super) fn content(&self) -> Option<&'a [u8]> {
        let mut content = self.payload;
        if self.flags & PADDED != 0 {
            let (&padding, rest) = content.split_first()?;
            content = rest.get(..rest.len().checked_sub(padding.into())?)?;
        }
        if self.kind == kind::HEADERS && self.flags & PRIORITY != 0 {
            content = content.get(5..)?;
        }
        Some(content)
    }

    /// What a WINDOW_UPDATE adds.
    pub(super) fn increment(&self) -> u32 {
        self.payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes) & 0x7fff_ffff)
    }

    /// How large a dynamic table the peer keeps for our fields, if its SETTINGS say.
    pub(super) fn table_size(&self) -> Option<u32> {
        self.payload.as_chunks::<6>().0.iter().find_map(|&[a, b, c, d, e, f]| {
            let is_size = u16::from_be_bytes([a, b]) == SETTINGS_HEADER_TABLE_SIZE;
            is_size.then_some(u32::from_be_bytes([c, d, e, f]))
        })
    }
}

/// Appends a frame.
pub(super) fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Appends a whole field block.
pub(super) fn put_headers(out: &mut Vec<u8>, stream: u32, block: &[u8], ends_stream: bool) {
    put(out, kind::HEADERS, END_HEADERS | if ends_stream { END_STREAM } else { 0 }, stream, block);
}

/// Appends SETTINGS and a WINDOW_UPDATE that open all windows as wide as can be.
pub(super) fn put_wide_windows(out: &mut Vec<u8>) {
    let mut settings = SETTINGS_INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
    settings.extend_from_slice(&WIDE.to_be_bytes());
    put(out, kind::SETTINGS, 0, 0, &settings);
    put_window_update(out, WIDE - WINDOW);
}

/// Appends a WINDOW_UPDATE of the connection.
pub(super) fn put_window_update(out: &mut Vec<u8>, increment: u32) {
    put(out, kind::WINDOW_UPDATE, 0, 0, &increment.to_be_bytes());
}

/// A field block whose fields the peer is asked to remember (so that it can be said again in one byte each), or not to.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    is_remembered: bool,
}

impl Block {
    pub(super) fn new(is_remembered: bool) -> Self {
        Self { bytes: Vec::new(), is_remembered }
    }

    /// A field of the static table.
    pub(super) fn indexed(mut self, index: u8) -> Self {
        self.bytes.push(0x80 | index);
        self
    }

    /// A field whose name is in the static table.
    pub(super) fn named(mut self, index: u8, value: &str) -> Self {
        // An index is a prefix of 6 bits (RFC 7541 §6.2.1) or 4 (§6.2.2).
        let (first, most) = if self.is_remembered { (0x40, 0x3f) } else { (0, 0x0f) };
        if index < most {
            self.bytes.push(first | index);
        } else {
            self.bytes.extend_from_slice(&[first | most, index - most]);
        }
        self.text(value)
    }

    /// A field with a name of its own.
    pub(super) fn field(mut self, name: &str, value: &str) -> Self {
        self.bytes.push(if self.is_remembered { 0x40 } else { 0 });
        self.text(name).text(value)
    }

    fn text(mut self, text: &str) -> Self {
        debug_assert!(text.len() < 127, "a length of one byte");
        self.bytes.push(text.len() as u8);
        self.bytes.extend_from_slice(text.as_bytes());
        self
    }
}

/// Whether a block of a response begins with status 200, which is in the static table.
pub(super) fn is_ok(mut block: &[u8]) -> bool {
    // Changes of the table's size come first (RFC 7541 §4.2), as integers with a prefix of 5 bits (§5.1).
    while let [first, rest @ ..] = block
        && first & 0xe0 == 0x20
    {
        let more = match rest.iter().position(|byte| byte & 0x80 == 0) {
            Some(last) if first & 0x1f == 0x1f => last + 1,
            _ => 0,
        };
        block = &rest[more..];
    }
    block.first() == Some(&0x88)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        let mut bytes = Vec::new();
        put(&mut bytes, kind::DATA, END_STREAM, 5, b"abc");
        put_headers(&mut bytes, 7, b"xy", false);
        for cut in 0..HEAD_LEN + 3 {
            assert_eq!(Frame::split(&bytes[..cut]), None);
        }
        let (data, rest) = Frame::split(&bytes).unwrap();
        assert_eq!((data.kind, data.stream, data.content()), (kind::DATA, 5, Some(&b"abc"[..])));
        assert!(data.ends_stream());
        let (headers, rest) = Frame::split(rest).unwrap();
        assert_eq!((headers.kind, headers.stream, headers.flags), (kind::HEADERS, 7, END_HEADERS));
        assert!(rest.is_empty());
    }

    #[test]
    fn padding_and_priority_are_no_content() {
        let frame = |kind, flags, payload| Frame { kind, flags, stream: 1, payload };
        assert_eq!(frame(kind::DATA, PADDED, b"\x02abcde").content(), Some(&b"abc"[..]));
        assert_eq!(frame(kind::DATA, PADDED, b"\x09ab").content(), None);
        assert_eq!(frame(kind::HEADERS, PADDED | PRIORITY, b"\x0112345abc").content(), Some(&b"ab"[..]));
    }

    #[test]
    fn windows_and_tables_are_read() {
        let mut bytes = Vec::new();
        put_wide_windows(&mut bytes);
        let (settings, rest) = Frame::split(&bytes).unwrap();
        assert_eq!(settings.table_size(), None);
        assert_eq!(Frame::split(rest).unwrap().0.increment(), WIDE - WINDOW);
        let settings = Frame { payload: &[0, 4, 0, 0, 0, 9, 0, 1, 0, 0, 1, 0], ..settings };
        assert_eq!(settings.table_size(), Some(256));
    }

    #[test]
    fn fields_are_as_in_rfc_7541() {
        // C.2.1, C.2.2 and, with an index beyond four bits, user-agent.
        assert_eq!(Block::new(true).field("custom-key", "custom-header").bytes[..3], [0x40, 10, b'c']);
        assert_eq!(Block::new(false).named(4, "/sample/path").bytes[..3], [0x04, 12, b'/']);
        assert_eq!(Block::new(false).named(58, "b").bytes, [0x0f, 0x2b, 1, b'b']);
        assert_eq!(Block::new(true).named(58, "b").bytes, [0x7a, 1, b'b']);
    }

    #[test]
    fn only_200_is_ok() {
        for ok in [&[0x88][..], &[0x20, 0x88, 0x40], &[0x20, 0x3f, 0xe1, 0x1f, 0x88]] {
            assert!(is_ok(ok), "{ok:x?}");
        }
        for not in [&[][..], &[0x8d], &[0x20], &[0x3f], &[0x3f, 0xe1, 0x1f, 0x8d]] {
            assert!(!is_ok(not), "{not:x?}");
        }
    }
}
