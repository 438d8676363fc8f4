//! What a client may ask of the HTTP proxy, and how long anything may take.

use tokio::time::{Duration, Instant};

/// Limits with defaults for an edge under attack. Sizes are in bytes; a limit of 0 is none only where that is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Start line and fields of a message head, and SETTINGS_MAX_HEADER_LIST_SIZE (RFC 9113 §6.5.2), which counts 32 more
    /// for each field; beyond it 431. HPACK is decoded no further than this, whatever its table repeats.
    pub max_head_bytes: u32,
    /// Fields of a head, and of trailers; beyond it 431.
    pub max_fields: u32,
    /// The target (RFC 9112 §3.2) or `:path`; beyond it 414.
    pub max_target_bytes: u32,
    /// From the first byte of a request to the end of its head; 408. Against slow headers.
    pub header_timeout: Duration,
    /// Between two parts of a request's body; 408. Against slow bodies.
    pub body_timeout: Duration,
    /// Of a body that takes longer than `body_timeout`, so many bytes a second on average; 0 = any.
    pub min_body_rate: u32,
    /// Between two requests, and for an HTTP/2 connection without a stream.
    pub keepalive_timeout: Duration,
    /// Without progress of a client that has something to read, or whose HTTP/2 window is shut.
    pub write_timeout: Duration,
    /// From the end of the request until the backend has sent the head of its final response; 504.
    pub response_timeout: Duration,
    /// Of a request; 0 = unlimited. Beyond it 413.
    pub max_body_bytes: u64,
    /// On a connection, which is closed (`Connection: close`, GOAWAY) after them; 0 = unlimited.
    pub max_requests: u32,
    /// SETTINGS_MAX_CONCURRENT_STREAMS (RFC 9113 §6.5.2).
    pub max_concurrent_streams: u32,
    /// Streams in a window that end by RST_STREAM, the client's (CVE-2023-44487) or ours for its mistakes (CVE-2025-8671);
    /// beyond it GOAWAY with ENHANCE_YOUR_CALM (RFC 9113 §7).
    pub max_resets: u32,
    /// CONTINUATION frames of one field block (CVE-2024-27316); beyond it ENHANCE_YOUR_CALM. More than a list of `max_head_bytes`
    /// can fill are refused in any case.
    pub max_continuations: u32,
    /// SETTINGS, empty DATA and unknown frames in a window, and PING, PRIORITY and WINDOW_UPDATE beyond what requests and
    /// responses account for, each of which costs more than it brings (CVE-2019-9512,
    /// -9515, -9518); beyond it ENHANCE_YOUR_CALM.
    pub max_control_frames: u32,
    /// What the counts above are taken in.
    pub window: Duration,
    /// How long a connection to a backend is kept unused: shorter than the backend keeps it, which else may close it just as
    /// a request is sent.
    pub pool_idle_timeout: Duration,
    /// Unused HTTP/1.1 connections that each worker keeps for each backend of a route; 0 = none is kept.
    pub pool_max_idle: u32,
    /// Connections at a time to one backend of a route; 0 = unlimited. Beyond it 503.
    pub max_backend_connections: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            max_head_bytes: 32 << 10,
            max_fields: 100,
            max_target_bytes: 16 << 10,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            min_body_rate: 0,
            keepalive_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            response_timeout: Duration::from_secs(60),
            max_body_bytes: 0,
            max_requests: 1_000,
            max_concurrent_streams: 128,
            max_resets: 256,
            max_continuations: 4,
            max_control_frames: 200,
            window: Duration::from_secs(10),
            pool_idle_timeout: Duration::from_secs(60),
            pool_max_idle: 256,
            max_backend_connections: 0,
        }
    }
}

impl HttpLimits {
    /// A counter for [`Self::max_resets`].
    pub fn resets(&self) -> Window {
        Window::new(self.max_resets, self.window)
    }

    /// A counter for [`Self::max_control_frames`].
    pub fn control_frames(&self) -> Window {
        Window::new(self.max_control_frames, self.window)
    }

    /// Whether a request's body may be as long as this.
    pub fn admits_body(&self, bytes: u64) -> bool {
        self.max_body_bytes == 0 || bytes <= self.max_body_bytes
    }

    /// Whether a body that has brought `bytes` in `elapsed` is too slow to go on with.
    pub fn is_too_slow(&self, bytes: u64, elapsed: Duration) -> bool {
        elapsed > self.body_timeout && bytes < elapsed.as_secs().saturating_mul(self.min_body_rate.into())
    }
}

/// Admits so many events in any window of time, up to twice as many where two windows meet. Windows begin with the first
/// event after the last one.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    max: u32,
    length: Duration,
    started_at: Option<Instant>,
    /// Events of this window: count <= max.
    count: u32,
}

impl Window {
    /// Admits `max` events in `length`.
    pub fn new(max: u32, length: Duration) -> Self {
        Self { max, length, started_at: None, count: 0 }
    }

    /// Counts an event; `false` if it is one too many.
    pub fn admit(&mut self, now: Instant) -> bool {
        // A clock that went back does not keep a window open.
        if self.started_at.is_none_or(|start| now.saturating_duration_since(start) >= self.length) {
            self.started_at = Some(now);
            self.count = 0;
        }
        let is_admitted = self.count < self.max;
        self.count += u32::from(is_admitted);
        is_admitted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_window_admits_so_many() {
        let (start, length) = (Instant::now(), Duration::from_secs(10));
        let mut window = Window::new(2, length);
        let last = start + length - Duration::from_nanos(1);
        assert_eq!([start, last, last, last].map(|now| window.admit(now)), [true, true, false, false]);
        assert_eq!([start + length; 3].map(|now| window.admit(now)), [true, true, false]);
        assert!(!window.admit(start), "a clock that goes back");
        assert!(!Window::new(0, length).admit(start));
        let mut always = Window::new(1, Duration::ZERO);
        assert!(always.admit(start) && always.admit(start));
    }

    #[test]
    fn bodies() {
        let none = HttpLimits::default();
        assert!(none.admits_body(u64::MAX) && !none.is_too_slow(0, Duration::MAX));
        let some = HttpLimits { max_body_bytes: 10, min_body_rate: 100, ..HttpLimits::default() };
        assert!(some.admits_body(10) && !some.admits_body(11));
        assert!(!some.is_too_slow(0, some.body_timeout) && some.is_too_slow(3_099, Duration::from_secs(31)));
        assert!(!some.is_too_slow(3_100, Duration::from_secs(31)));
        assert!(some.is_too_slow(1, Duration::MAX));
    }

    proptest! {
        #[test]
        fn never_more_than_twice_in_any_window(gaps in prop::collection::vec(0_u64..4_000, 1..200), max in 0_u32..8) {
            let length = Duration::from_secs(10);
            let mut window = Window::new(max, length);
            let mut now = Instant::now();
            let mut admitted = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if window.admit(now) {
                    admitted.push(now);
                }
            }
            for (index, first) in admitted.iter().enumerate() {
                let within = admitted[index..].iter().take_while(|at| **at - *first < length).count();
                prop_assert!(within <= 2 * max as usize);
            }
        }
    }
}
