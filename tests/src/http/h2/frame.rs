//! Frames as bytes (RFC 9113 §4.1, §6).

/// What a connection begins with (RFC 9113 §3.4), before SETTINGS.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames.
pub mod kind {
    /// §6.1.
    pub const DATA: u8 = 0;
    /// §6.2.
    pub const HEADERS: u8 = 1;
    /// §6.3.
    pub const PRIORITY: u8 = 2;
    /// §6.4.
    pub const RST_STREAM: u8 = 3;
    /// §6.5.
    pub const SETTINGS: u8 = 4;
    /// §6.6.
    pub const PUSH_PROMISE: u8 = 5;
    /// §6.7.
    pub const PING: u8 = 6;
    /// §6.8.
    pub const GOAWAY: u8 = 7;
    /// §6.9.
    pub const WINDOW_UPDATE: u8 = 8;
    /// §6.10.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    /// Of SETTINGS and PING.
    pub const ACK: u8 = 0x1;
    /// Of DATA and HEADERS.
    pub const END_STREAM: u8 = 0x1;
    /// Of HEADERS and CONTINUATION.
    pub const END_HEADERS: u8 = 0x4;
    /// Of DATA and HEADERS.
    pub const PADDED: u8 = 0x8;
    /// Of HEADERS.
    pub const PRIORITY: u8 = 0x20;
    /// HEADERS that are all of a request.
    pub const WHOLE: u8 = END_STREAM | END_HEADERS;
}

/// Error codes (RFC 9113 §7).
pub mod code {
    /// NO_ERROR.
    pub const NONE: u32 = 0;
    /// PROTOCOL_ERROR.
    pub const PROTOCOL: u32 = 1;
    /// INTERNAL_ERROR.
    pub const INTERNAL: u32 = 2;
    /// FLOW_CONTROL_ERROR.
    pub const FLOW_CONTROL: u32 = 3;
    /// STREAM_CLOSED.
    pub const STREAM_CLOSED: u32 = 5;
    /// FRAME_SIZE_ERROR.
    pub const FRAME_SIZE: u32 = 6;
    /// REFUSED_STREAM.
    pub const REFUSED: u32 = 7;
    /// CANCEL.
    pub const CANCEL: u32 = 8;
    /// COMPRESSION_ERROR.
    pub const COMPRESSION: u32 = 9;
    /// ENHANCE_YOUR_CALM.
    pub const CALM: u32 = 11;

    /// The word of the RFC.
    pub fn name(code: u32) -> &'static str {
        match code {
            NONE => "NO_ERROR",
            PROTOCOL => "PROTOCOL_ERROR",
            INTERNAL => "INTERNAL_ERROR",
            FLOW_CONTROL => "FLOW_CONTROL_ERROR",
            STREAM_CLOSED => "STREAM_CLOSED",
            FRAME_SIZE => "FRAME_SIZE_ERROR",
            REFUSED => "REFUSED_STREAM",
            CANCEL => "CANCEL",
            COMPRESSION => "COMPRESSION_ERROR",
            CALM => "ENHANCE_YOUR_CALM",
            _ => "another code",
        }
    }
}

/// A frame that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// One of [`kind`].
    pub kind: u8,
    /// Of [`flag`].
    pub flags: u8,
    /// 0 is the connection.
    pub stream: u32,
    /// All behind the head.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Whether one of the flags is set.
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Whether it ends its stream.
    pub fn ends(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.has(flag::END_STREAM)
    }

    /// The error code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        self.payload.get(at..at + 4).and_then(|code| code.try_into().ok()).map_or(u32::MAX, u32::from_be_bytes)
    }

    /// The frame at the beginning of what has come, with its length.
    pub fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let (head, rest) = bytes.split_at_checked(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = rest.get(..length)?.to_vec();
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Some((Self { kind: head[3], flags: head[4], stream, payload }, 9 + length))
    }
}

/// Any frame, with a length that is true.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    [head(payload.len(), kind, flags, stream).as_slice(), payload].concat()
}

/// The head of a frame, with any length.
pub fn head(length: usize, kind: u8, flags: u8, stream: u32) -> [u8; 9] {
    let [_, high, middle, low] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let [a, b, c, d] = stream.to_be_bytes();
    [high, middle, low, kind, flags, a, b, c, d]
}

/// SETTINGS with these values.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload = values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(kind::SETTINGS, 0, 0, payload.collect::<Vec<_>>())
}

/// RST_STREAM.
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, code.to_be_bytes())
}

/// WINDOW_UPDATE.
pub fn update(stream: u32, increment: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, increment.to_be_bytes())
}

/// DATA that may be the last.
pub fn data(stream: u32, is_last: bool, payload: impl AsRef<[u8]>) -> Vec<u8> {
    frame(kind::DATA, if is_last { flag::END_STREAM } else { 0 }, stream, payload)
}

/// A field block in one HEADERS frame that may end the stream.
pub fn headers(stream: u32, is_last: bool, block: impl AsRef<[u8]>) -> Vec<u8> {
    let flags = if is_last { flag::WHOLE } else { flag::END_HEADERS };
    frame(kind::HEADERS, flags, stream, block)
}
