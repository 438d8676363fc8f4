//! The backends behind the proxies: HTTP/1.1 with bodies of two sizes, and gRPC over HTTP/2 in plaintext.

use std::net::SocketAddrV4;
use std::time::Duration;

use super::super::counters::Published;
use super::super::socket::pattern;
use super::frames::{self, Block, Frame, PREFACE, WIDE, WINDOW, kind};
use super::server::{Answers, Large, Tail, serve};
use super::{LARGE_PATH, grpc_message};

/// The body of every other path.
pub(super) const SMALL_BODY: usize = 1 << 10;
/// The body of [`LARGE_PATH`].
pub(super) const LARGE_BODY: usize = 1 << 20;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const LONGEST_HEAD: usize = 16 << 10;
/// Received bytes after which the connection's window is opened anew.
const REOPEN_AFTER: u64 = WIDE as u64 / 2;

/// Answers every HTTP/1.1 request without a body.
pub(super) fn http(addr: SocketAddrV4, lifetime: Duration, counters: Published) -> anyhow::Result<()> {
    let small = [head(SMALL_BODY), pattern(SMALL_BODY)].concat();
    let large = head(LARGE_BODY);
    let file = Large::new(&pattern(LARGE_BODY))?;
    serve(addr, lifetime, &file, counters, || Http { small: &small, large: &large, head: Vec::new() })
}

fn head(length: usize) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
    )
    .into()
}

#[derive(Debug)]
struct Http<'a> {
    small: &'a [u8],
    /// The head alone.
    large: &'a [u8],
    /// A head whose end has not come.
    head: Vec<u8>,
}

impl Answers for Http<'_> {
    fn receive(&mut self, data: &[u8], out: &mut Vec<u8>) -> Option<Tail> {
        let kept = std::mem::take(&mut self.head);
        let joined;
        let mut rest = data;
        if !kept.is_empty() {
            joined = [&kept[..], data].concat();
            rest = &joined[..];
        }
        let mut tail = Tail::Nothing;
        while let Some(end) = rest.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD) {
            let head = &rest[..end];
            rest = &rest[end + END_OF_HEAD.len()..];
            if tail == Tail::File || !head.starts_with(b"GET ") {
                return None;
            }
            if head[b"GET ".len()..].starts_with(LARGE_PATH.as_bytes()) {
                out.extend_from_slice(self.large);
                tail = Tail::File;
            } else {
                out.extend_from_slice(self.small);
            }
        }
        self.head.extend_from_slice(rest);
        (self.head.len() <= LONGEST_HEAD).then_some(tail)
    }
}

/// Answers every gRPC call with the same message and status 0.
pub(super) fn grpc(addr: SocketAddrV4, lifetime: Duration, counters: Published) -> anyhow::Result<()> {
    let answer = Call {
        head: Block::default().indexed(8).named(31, "application/grpc").bytes,
        message: grpc_message(),
        trailers: Block::default().field("grpc-status", "0").bytes,
    };
    serve(addr, lifetime, &Large::new(&[])?, counters, || answer.listen())
}

#[derive(Debug)]
struct Call {
    head: Vec<u8>,
    message: Vec<u8>,
    trailers: Vec<u8>,
}

impl Call {
    /// A connection whose every call is answered so.
    fn listen(&self) -> Grpc<'_> {
        Grpc {
            answer: self,
            is_greeted: false,
            pending: Vec::new(),
            waiting: Vec::new(),
            window: WINDOW.into(),
            received: 0,
        }
    }
}

#[derive(Debug)]
struct Grpc<'a> {
    answer: &'a Call,
    is_greeted: bool,
    /// A frame whose end has not come.
    pending: Vec<u8>,
    /// Calls that wait for the window.
    waiting: Vec<u32>,
    /// What the connection may still send.
    window: u64,
    received: u64,
}

impl Grpc<'_> {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) {
        let is_ack = frame.flags & frames::ACK != 0;
        match frame.kind {
            kind::DATA | kind::HEADERS => {
                if frame.kind == kind::DATA {
                    self.received += frame.payload.len() as u64;
                }
                if frame.ends_stream() {
                    self.waiting.push(frame.stream);
                }
            }
            kind::SETTINGS if !is_ack => frames::put(out, kind::SETTINGS, frames::ACK, 0, &[]),
            kind::PING if !is_ack => frames::put(out, kind::PING, frames::ACK, 0, frame.payload),
            kind::WINDOW_UPDATE if frame.stream == 0 => self.window += u64::from(frame.increment()),
            _ => {}
        }
    }

    /// Answers the calls that the window has room for, in their order.
    fn answer(&mut self, out: &mut Vec<u8>) {
        let Call { head, message, trailers } = self.answer;
        let room = usize::try_from(self.window).unwrap_or(usize::MAX) / message.len();
        let now = room.min(self.waiting.len());
        for stream in self.waiting.drain(..now) {
            frames::put_headers(out, stream, head, false);
            frames::put(out, kind::DATA, 0, stream, message);
            frames::put_headers(out, stream, trailers, true);
            self.window -= message.len() as u64;
        }
    }
}

impl Answers for Grpc<'_> {
    fn receive(&mut self, data: &[u8], out: &mut Vec<u8>) -> Option<Tail> {
        let mut pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            pending.extend_from_slice(data);
        }
        let mut rest = if pending.is_empty() { data } else { &pending[..] };
        if !self.is_greeted {
            if rest.len() < PREFACE.len() {
                self.pending = rest.to_vec();
                return Some(Tail::Nothing);
            }
            rest = rest.strip_prefix(PREFACE)?;
            frames::put_wide_windows(out);
            self.is_greeted = true;
        }
        while let Some((frame, after)) = Frame::split(rest) {
            self.frame(frame, out);
            rest = after;
        }
        self.pending = rest.to_vec();
        if self.received > REOPEN_AFTER {
            frames::put_window_update(out, self.received as u32);
            self.received = 0;
        }
        self.answer(out);
        Some(Tail::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::client::Warmed;
    use super::super::super::counters::Counters;
    use super::super::client::{Session, Tally};
    use super::super::h2::{Request, Streams};
    use super::*;

    #[test]
    fn requests_may_come_in_any_parts() {
        let request =
            [b"GET /small HTTP/1.1\r\nHost: a\r\n\r\nGET ", LARGE_PATH.as_bytes(), b" HTTP/1.1\r\n\r\n"].concat();
        for at in 0..request.len() {
            let mut http = Http { small: b"small", large: b"large", head: Vec::new() };
            let mut out = Vec::new();
            let first = http.receive(&request[..at], &mut out).unwrap();
            assert_eq!(first, Tail::Nothing, "cut at {at}");
            assert_eq!(http.receive(&request[at..], &mut out), Some(Tail::File), "cut at {at}");
            assert_eq!(out, b"smalllarge");
        }
        let mut http = Http { small: b"", large: b"", head: Vec::new() };
        assert_eq!(http.receive(b"POST / HTTP/1.1\r\n\r\n", &mut Vec::new()), None);
    }

    #[test]
    fn client_and_backend_understand_each_other() {
        let answer = Call {
            head: Block::default().indexed(8).named(31, "application/grpc").bytes,
            message: grpc_message(),
            trailers: Block::default().field("grpc-status", "0").bytes,
        };
        let mut grpc = answer.listen();
        let request = Request::grpc("/a.B/C", grpc_message());
        let mut streams = Streams::new(&request, 16);
        let (mut counters, mut latencies) = (Counters::default(), Warmed::new(Duration::ZERO));
        let mut up = Vec::new();
        streams.begin(&mut up, std::time::Instant::now());
        while counters.done < 100 {
            let mut down = Vec::new();
            for part in std::mem::take(&mut up).chunks(1000) {
                assert_eq!(grpc.receive(part, &mut down), Some(Tail::Nothing));
            }
            assert!(!down.is_empty(), "nobody says anything after {} calls", counters.done);
            for part in down.chunks(1000) {
                let mut tally = Tally::new(&mut counters, &mut latencies);
                streams.receive(part, &mut up, &mut tally).unwrap();
            }
        }
        assert_eq!(counters.bytes_received, counters.done * grpc_message().len() as u64);
    }

    #[test]
    fn a_call_is_answered_once_it_is_whole_and_fits() {
        let answer = Call { head: vec![0x88], message: vec![7; 1000], trailers: vec![9] };
        let mut grpc = Grpc { window: 1500, ..answer.listen() };
        let mut bytes = PREFACE.to_vec();
        for stream in [1, 3] {
            frames::put_headers(&mut bytes, stream, b"x", false);
            frames::put(&mut bytes, kind::DATA, frames::END_STREAM, stream, b"message");
        }
        let mut out = Vec::new();
        for part in bytes.chunks(5) {
            grpc.receive(part, &mut out).unwrap();
        }
        let ends = |out: &[u8]| {
            let (mut rest, mut ends) = (out, Vec::new());
            while let Some((frame, after)) = Frame::split(rest) {
                if frame.kind == kind::HEADERS && frame.ends_stream() {
                    ends.push(frame.stream);
                }
                rest = after;
            }
            ends
        };
        assert_eq!(ends(&out), [1], "the window has room for one message");
        let mut update = Vec::new();
        frames::put_window_update(&mut update, 500);
        grpc.receive(&update, &mut out).unwrap();
        assert_eq!(ends(&out), [1, 3]);
    }
}
