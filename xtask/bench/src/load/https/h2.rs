//! The client of HTTP/2: a fixed number of requests in flight on each connection, with or without a message (gRPC).

use std::time::Instant;

use anyhow::{Context, bail, ensure};

use super::super::hello::SERVER_NAME;
use super::client::{Session, Tally};
use super::frames::{self, Block, Frame, PREFACE, WIDE, WINDOW, kind};

/// A table that holds our fields.
const TABLE_SIZE: u32 = 1024;
/// Received bytes after which the connection's window is opened anew.
const REOPEN_AFTER: u64 = WIDE as u64 / 2;

/// What is asked again and again, and what has to come back.
#[derive(Debug)]
pub(super) struct Request {
    /// The fields with all they say, which the peer remembers.
    first: Vec<u8>,
    /// The same fields by their indices.
    again: Vec<u8>,
    /// The same for a peer that remembers nothing.
    plain: Vec<u8>,
    message: Vec<u8>,
    expected: Vec<u8>,
    has_trailers: bool,
}

impl Request {
    /// GET of a path, answered with `expected`.
    pub(super) fn get(path: &str, expected: Vec<u8>) -> Self {
        let block = |is_remembered| {
            let fixed = Block::new(is_remembered).indexed(2).indexed(7); // GET, https
            fixed.named(4, path).named(1, SERVER_NAME).named(58, "bench").bytes
        };
        let again = vec![0x82, 0x87, 0x80 | 64, 0x80 | 63, 0x80 | 62];
        Self { first: block(true), again, plain: block(false), message: Vec::new(), expected, has_trailers: false }
    }

    /// A unary gRPC call of a method: `message` goes and comes back, each with the five bytes before it.
    pub(super) fn grpc(method: &str, message: Vec<u8>) -> Self {
        let block = |is_remembered| {
            let fixed = Block::new(is_remembered).indexed(3).indexed(7); // POST, https
            let named = fixed.named(4, method).named(1, SERVER_NAME).named(31, "application/grpc");
            named.field("te", "trailers").named(58, "grpc-bench").bytes
        };
        let again = [&[0x83, 0x87][..], &[66, 65, 64, 63, 62].map(|index| 0x80 | index)].concat();
        let (expected, has_trailers) = (message.clone(), true);
        Self { first: block(true), again, plain: block(false), message, expected, has_trailers }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Streams<'a> {
    request: &'a Request,
    most: usize,
    open: Vec<Stream>,
    next: u32,
    /// A frame whose end has not come.
    pending: Vec<u8>,
    /// What the connection may still send.
    window: u64,
    received: u64,
    /// The fields of the next request.
    fields: Fields,
    is_going: bool,
}

#[derive(Debug)]
struct Stream {
    id: u32,
    began: Instant,
    got: usize,
    is_ok: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fields {
    First,
    Again,
    /// The peer remembers less than it takes, which is to be acknowledged first.
    Forget,
    Plain,
}

impl<'a> Streams<'a> {
    /// Keeps `most` requests in flight.
    pub(super) fn new(request: &'a Request, most: usize) -> Self {
        Self {
            request,
            most,
            open: Vec::with_capacity(most),
            next: 1,
            pending: Vec::new(),
            window: WINDOW.into(),
            received: 0,
            fields: Fields::First,
            is_going: false,
        }
    }

    fn start(&mut self, out: &mut Vec<u8>, now: Instant) {
        let request = self.request;
        let message = request.message.len() as u64;
        while self.open.len() < self.most && self.window >= message && !self.is_going {
            let id = self.next;
            self.next += 2;
            self.window -= message;
            let fields = match self.fields {
                Fields::First => &request.first,
                Fields::Again => &request.again,
                Fields::Forget => &[&[0x20], &request.plain[..]].concat(),
                Fields::Plain => &request.plain,
            };
            frames::put_headers(out, id, fields, message == 0);
            if message > 0 {
                frames::put(out, kind::DATA, frames::END_STREAM, id, &request.message);
            }
            self.fields = match self.fields {
                Fields::First | Fields::Again => Fields::Again,
                Fields::Forget | Fields::Plain => Fields::Plain,
            };
            self.open.push(Stream { id, began: now, got: 0, is_ok: false });
        }
    }

    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<u8>, tally: &mut Tally<'_>) -> anyhow::Result<()> {
        match frame.kind {
            kind::DATA | kind::HEADERS => return self.respond(frame, tally),
            kind::SETTINGS if frame.flags & frames::ACK == 0 => {
                if frame.table_size().is_some_and(|size| size < TABLE_SIZE) {
                    self.fields = Fields::Forget;
                }
                frames::put(out, kind::SETTINGS, frames::ACK, 0, &[]);
            }
            kind::PING if frame.flags & frames::ACK == 0 => {
                frames::put(out, kind::PING, frames::ACK, 0, frame.payload);
            }
            kind::WINDOW_UPDATE if frame.stream == 0 => self.window += u64::from(frame.increment()),
            kind::GOAWAY => self.is_going = true,
            kind::RST_STREAM => bail!("stream {} was reset: {:?}", frame.stream, frame.payload),
            _ => {}
        }
        Ok(())
    }

    /// A part of a response.
    fn respond(&mut self, frame: Frame<'_>, tally: &mut Tally<'_>) -> anyhow::Result<()> {
        self.received += frame.payload.len() as u64;
        let content = frame.content().context("padding longer than its frame")?;
        let at = self.open.iter().position(|stream| stream.id == frame.stream);
        let at = at.with_context(|| format!("stream {} is not open", frame.stream))?;
        let (stream, expected) = (&mut self.open[at], &self.request.expected);
        if frame.kind == kind::DATA {
            let part = expected.get(stream.got..stream.got + content.len());
            ensure!(part == Some(content), "the body came changed");
            stream.got += content.len();
        } else if !stream.is_ok {
            stream.is_ok = frames::is_ok(content);
            ensure!(stream.is_ok, "the response does not begin with status 200");
        }
        if frame.ends_stream() {
            let has_trailers = frame.kind == kind::HEADERS && stream.got > 0;
            let is_whole = stream.got == expected.len() && has_trailers == self.request.has_trailers;
            ensure!(is_whole, "a response of {} bytes, trailers: {has_trailers}", stream.got);
            tally.bytes(stream.got);
            tally.done(stream.began);
            self.open.swap_remove(at);
        }
        Ok(())
    }
}

impl Session for Streams<'_> {
    fn begin(&mut self, out: &mut Vec<u8>, now: Instant) {
        out.extend_from_slice(PREFACE);
        frames::put_wide_windows(out);
        self.start(out, now);
    }

    fn receive(&mut self, data: &[u8], out: &mut Vec<u8>, tally: &mut Tally<'_>) -> anyhow::Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            pending.extend_from_slice(data);
        }
        let mut rest = if pending.is_empty() { data } else { &pending[..] };
        while let Some((frame, after)) = Frame::split(rest) {
            self.frame(frame, out, tally)?;
            rest = after;
        }
        self.pending.extend_from_slice(rest);
        if self.received > REOPEN_AFTER {
            frames::put_window_update(out, self.received as u32);
            self.received = 0;
        }
        self.start(out, tally.now());
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.is_going && self.open.is_empty()
    }

    fn close(&mut self, _tally: &mut Tally<'_>) -> anyhow::Result<()> {
        ensure!(self.open.is_empty(), "closed with {} requests in flight", self.open.len());
        Ok(())
    }
}
