//! What a client's frames cost, counted before anything is done about them.
//!
//! The bytes of both directions of a connection are looked at as they pass, frame head by frame head (RFC 9113 §4.1); payloads are
//! skipped, but for the error codes of RST_STREAM. What is counted, each in windows of time:
//!
//! | frames | limit | against |
//! |---|---|---|
//! | RST_STREAM of the client, and ours for its mistakes | `max_resets` | CVE-2023-44487, CVE-2025-8671 |
//! | SETTINGS, PING, PRIORITY, GOAWAY, unknown ones, DATA without data | `max_control_frames` | CVE-2019-9512, -9515, -9518 |
//! | of them, PING and WINDOW_UPDATE beyond what we have sent accounts for | likewise | CVE-2019-9511 |
//! | CONTINUATION, of one field block | `max_continuations` | CVE-2024-27316 |
//! | DATA of a few bytes | [`SMALL_PER_CONTROL`] for each control frame | the same at one remove |

use tokio::time::{Duration, Instant};

use crate::http::limits::{HttpLimits, Window};

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n` (RFC 9113 §3.4).
const PREFACE: u32 = 24;

/// Of a frame (RFC 9113 §4.1).
const HEAD: usize = 9;

/// The error code of RST_STREAM (RFC 9113 §6.4).
const CODE: usize = 4;

/// DATA of fewer bytes costs more than it brings, unless it is the last.
const SMALL: u32 = 16;

/// Streams of small messages, as of gRPC and WebSocket, are honest: so many more of them than of control frames.
pub const SMALL_PER_CONTROL: u32 = 256;

/// Padding (RFC 9113 §6.1) that a frame may have, with its length.
const PADDING_MAX: u32 = 256;

/// A receiver may give back its windows, of the stream and of the connection, for every so many bytes. That DATA was short does
/// not help: by shutting its window the client makes it so.
const WINDOW_STEP: u32 = 1024;

/// WINDOW_UPDATE that a connection may begin with.
const FIRST_UPDATES: u32 = 16;

/// WINDOW_UPDATE, or PING, that may be accounted for at a time.
const CREDIT_MAX: u32 = 16 * 1024;

/// Browsers order the pictures of a page anew as it is scrolled: PRIORITY, or PRIORITY_UPDATE (RFC 9218 §7.1), for each request.
const PRIORITIES: u32 = 4;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const PRIORITY_UPDATE: u8 = 16;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// What a client has done too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Streams that were reset.
    #[error("too many streams were reset")]
    Resets,
    /// Frames that carry nothing.
    #[error("too many control frames")]
    ControlFrames,
    /// Frames of one field block.
    #[error("too many CONTINUATION frames")]
    Continuations,
    /// Frames that carry next to nothing.
    #[error("too many small DATA frames")]
    SmallFrames,
}

/// Counts the frames of one connection.
#[derive(Debug)]
pub struct Guard {
    inbound: Frames,
    outbound: Frames,
    resets: Window,
    control: Window,
    small: Window,
    max_continuations: u32,
    continuations: u32,
    /// WINDOW_UPDATE that are accounted for.
    updates: u32,
    /// WINDOW_UPDATE for DATA however short, as some clients send for every frame; they count as small ones do.
    short_updates: u32,
    /// PRIORITY and PRIORITY_UPDATE that are accounted for.
    priorities: u32,
    /// PING that are: one for each frame of a response. Clients of gRPC measure the bandwidth with them.
    pings: u32,
    /// Bytes that were sent since the last step.
    step: u32,
    /// HEADERS and DATA that were sent.
    asked: u64,
    has_settings: bool,
    block_since: Option<Instant>,
    violation: Option<Violation>,
}

/// The frames of one direction.
#[derive(Debug)]
struct Frames {
    /// The head of a frame, and the code of RST_STREAM, as far as they have come.
    head: [u8; HEAD + CODE],
    known: usize,
    /// Bytes that are passed over: the preface, or what is left of a payload.
    skip: u32,
    frame: Option<Frame>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    /// Of the payload.
    length: u32,
    /// Of RST_STREAM.
    code: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Begun(Frame),
    Ended(Frame),
}

impl Guard {
    /// For a server's connection; what comes begins with the preface.
    pub fn of_clients(limits: &HttpLimits) -> Self {
        let small = limits.max_control_frames.saturating_mul(SMALL_PER_CONTROL);
        Self {
            inbound: Frames::new(PREFACE),
            outbound: Frames::new(0),
            resets: limits.resets(),
            control: limits.control_frames(),
            small: Window::new(small, limits.window),
            max_continuations: limits.max_continuations,
            continuations: 0,
            updates: FIRST_UPDATES,
            short_updates: 0,
            priorities: PRIORITIES,
            pings: 0,
            step: 0,
            asked: 0,
            has_settings: false,
            block_since: None,
            violation: None,
        }
    }

    /// For a connection to a backend, which may do what it wants; what goes out begins with the preface.
    pub fn of_backends() -> Self {
        let endless = Window::new(u32::MAX, Duration::ZERO);
        Self {
            inbound: Frames::new(0),
            outbound: Frames::new(PREFACE),
            resets: endless,
            control: endless,
            small: endless,
            max_continuations: u32::MAX,
            continuations: 0,
            updates: 0,
            short_updates: 0,
            priorities: PRIORITIES,
            pings: 0,
            step: 0,
            asked: 0,
            has_settings: false,
            block_since: None,
            violation: None,
        }
    }

    /// The peer has sent `bytes`.
    pub fn received(&mut self, mut bytes: &[u8], now: Instant) {
        while let Some(event) = self.inbound.next(&mut bytes) {
            match event {
                Event::Begun(frame) => self.count_received(frame, now),
                Event::Ended(Frame { kind: HEADERS | CONTINUATION, flags, .. }) if flags & END_HEADERS != 0 => {
                    self.block_since = None;
                }
                Event::Ended(Frame { kind: SETTINGS, .. }) => self.has_settings = true,
                Event::Ended(_) => {}
            }
        }
    }

    /// We have sent `bytes`.
    pub fn sent(&mut self, mut bytes: &[u8], now: Instant) {
        while let Some(event) = self.outbound.next(&mut bytes) {
            self.asked += u64::from(matches!(event, Event::Begun(Frame { kind: DATA | HEADERS, .. })));
            match event {
                Event::Begun(Frame { kind: DATA, length, .. }) => {
                    let bytes = self.step + length;
                    self.step = bytes % WINDOW_STEP;
                    self.updates = (self.updates + 2 * (bytes / WINDOW_STEP)).min(CREDIT_MAX);
                    self.pings = (self.pings + 1).min(CREDIT_MAX);
                    if length > 0 {
                        self.short_updates = (self.short_updates + 2).min(CREDIT_MAX);
                    }
                }
                Event::Begun(Frame { kind: HEADERS, .. }) => self.pings = (self.pings + 1).min(CREDIT_MAX),
                Event::Begun(Frame { kind: RST_STREAM, code, .. }) if is_for_a_mistake(code) => self.count_reset(now),
                Event::Begun(_) | Event::Ended(_) => {}
            }
        }
    }

    /// The first limit that was exceeded.
    pub fn violation(&self) -> Option<Violation> {
        self.violation
    }

    /// HEADERS and DATA that were sent so far.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// Whether the peer has sent SETTINGS, which begin every connection (RFC 9113 §3.4).
    pub fn has_settings(&self) -> bool {
        self.has_settings
    }

    /// Since when a field block has been on its way.
    pub fn block_since(&self) -> Option<Instant> {
        self.block_since
    }

    fn count_received(&mut self, frame: Frame, now: Instant) {
        match frame.kind {
            DATA => self.count_data(frame, now),
            HEADERS => {
                self.continuations = 0;
                self.block_since = Some(now);
                // Some clients enlarge the window of every stream that they open.
                self.updates = (self.updates + 1).min(CREDIT_MAX);
                self.priorities = (self.priorities + PRIORITIES).min(CREDIT_MAX);
            }
            CONTINUATION => {
                self.continuations = self.continuations.saturating_add(1);
                if self.continuations > self.max_continuations {
                    self.violated(Violation::Continuations);
                }
            }
            RST_STREAM => self.count_reset(now),
            WINDOW_UPDATE if self.updates > 0 => self.updates -= 1,
            WINDOW_UPDATE if self.short_updates > 0 => {
                self.short_updates -= 1;
                self.count_small(now);
            }
            PRIORITY | PRIORITY_UPDATE if self.priorities > 0 => self.priorities -= 1,
            PING if self.pings > 0 => self.pings -= 1,
            _ => self.count_control(now),
        }
    }

    fn count_data(&mut self, frame: Frame, now: Instant) {
        let padding = if frame.flags & PADDED == 0 { 0 } else { PADDING_MAX };
        if frame.flags & END_STREAM != 0 {
            // It does something.
        } else if frame.length == 0 {
            self.count_control(now);
        } else if frame.length.saturating_sub(padding) < SMALL {
            self.count_small(now);
        }
    }

    fn count_small(&mut self, now: Instant) {
        if !self.small.admit(now) {
            self.violated(Violation::SmallFrames);
        }
    }

    fn count_control(&mut self, now: Instant) {
        if !self.control.admit(now) {
            self.violated(Violation::ControlFrames);
        }
    }

    fn count_reset(&mut self, now: Instant) {
        if !self.resets.admit(now) {
            self.violated(Violation::Resets);
        }
    }

    fn violated(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }
}

/// Whether a reset of ours is an answer to what the client did wrong (RFC 9113 §7): PROTOCOL_ERROR, FLOW_CONTROL_ERROR,
/// STREAM_CLOSED, FRAME_SIZE_ERROR, COMPRESSION_ERROR. Others tell of a backend, of overload, or of a response that did not
/// need all of its request.
fn is_for_a_mistake(code: u32) -> bool {
    matches!(code, 1 | 3 | 5 | 6 | 9)
}

impl Frames {
    fn new(preface: u32) -> Self {
        Self { head: [0; HEAD + CODE], known: 0, skip: preface, frame: None }
    }

    /// Takes bytes up to the next event.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Event> {
        loop {
            if self.skip > 0 {
                let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(self.skip);
                *bytes = bytes.get(count as usize..).unwrap_or_default();
                self.skip -= count;
                if self.skip > 0 {
                    return None;
                }
            }
            if let Some(frame) = self.frame.take() {
                return Some(Event::Ended(frame));
            }
            let (first, rest) = bytes.split_first()?;
            *bytes = rest;
            if let Some(byte) = self.head.get_mut(self.known) {
                *byte = *first;
            }
            self.known += 1;
            if let Some(frame) = self.begun() {
                self.known = 0;
                self.frame = Some(frame);
                return Some(Event::Begun(frame));
            }
        }
    }

    /// The frame whose head has come, with what is left of it to be skipped.
    fn begun(&mut self) -> Option<Frame> {
        if self.known < HEAD {
            return None;
        }
        let [high, middle, low, kind, flags, _, _, _, _, code @ ..] = self.head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        // Of another length it is malformed, and has no code.
        let code_bytes = if kind == RST_STREAM && length as usize == CODE { CODE } else { 0 };
        if self.known < HEAD + code_bytes {
            return None;
        }
        self.skip = length - code_bytes as u32;
        let code = if code_bytes == 0 { 0 } else { u32::from_be_bytes(code) };
        Some(Frame { kind, flags, length, code })
    }
}

#[cfg(test)]
mod tests;
