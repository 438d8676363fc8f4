//! The content of a stream, in both directions and for both roles.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ::h2::{RecvStream, SendStream};
use ::http::HeaderMap;
use bytes::{Bytes, BytesMut};

use super::{
    SEND_BUFFER, broken,
    chunk::{Chunk, Gauge},
};
use crate::http::{
    fields::translate::check_h2,
    h1::HeadError,
    message::{Broken, Part},
};

/// Payload of fewer bytes is copied when it has to wait.
const SMALL: usize = 1024;

/// What the peer sends.
#[derive(Debug)]
pub struct Incoming {
    stream: RecvStream,
    /// What was taken from the stream before it was asked for.
    waiting: VecDeque<Bytes>,
    /// Behind that, what came in small pieces.
    small: BytesMut,
    /// Bytes of the last part, for which the peer gets no window before the next one is asked for.
    held: usize,
    max_fields: usize,
    has_ended: bool,
    is_malformed: bool,
    is_tunnel: bool,
}

/// What the peer gets.
#[derive(Debug)]
pub struct Outgoing {
    stream: SendStream<Chunk>,
    gauge: Arc<Gauge>,
    has_ended: bool,
}

impl Incoming {
    /// `max_fields`: of trailers.
    pub fn new(stream: RecvStream, max_fields: usize) -> Self {
        Self {
            stream,
            waiting: VecDeque::new(),
            small: BytesMut::new(),
            held: 0,
            max_fields,
            has_ended: false,
            is_malformed: false,
            is_tunnel: false,
        }
    }

    /// From now on the bytes are a tunnel's, which has no end of its own: a backend that resets it with NO_ERROR has said all. A
    /// response is whole by END_STREAM alone; behind that NO_ERROR says that the rest of the request is not needed (RFC 9113
    /// §8.1), which the crate does not let come in the way of the response.
    pub fn set_tunnel(&mut self) {
        self.is_tunnel = true;
    }

    /// See [`Source::poll_part`](crate::http::message::Source::poll_part).
    pub fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Part>, Broken>> {
        if self.has_ended {
            return Poll::Ready(Ok(None));
        }
        self.release();
        if let Some(data) = self.next_waiting() {
            self.held = data.len();
            return Poll::Ready(Ok(Some(Part::Data(data))));
        }
        loop {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.held = data.len();
                    return Poll::Ready(Ok(Some(Part::Data(data))));
                }
                Some(Err(error)) => return Poll::Ready(self.stopped(&error)),
                None => break,
            }
        }
        let trailers = match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers,
            Err(error) => return Poll::Ready(self.stopped(&error)),
        };
        self.has_ended = true;
        let Some(trailers) = trailers else { return Poll::Ready(Ok(None)) };
        if trailers.len() > self.max_fields || check_h2(&trailers).is_err() {
            self.is_malformed = true;
            return Poll::Ready(Err(Broken::Malformed(HeadError::FieldName)));
        }
        Poll::Ready(Ok(Some(Part::Trailers(trailers))))
    }

    /// Whether the last part has been given.
    pub fn is_ended(&self) -> bool {
        self.has_ended || (self.waiting.is_empty() && self.small.is_empty() && self.stream.is_end_stream())
    }

    /// See [`Source::gather`](crate::http::message::Source::gather). In the crate each frame takes some 250 bytes, however short it
    /// is, and too many of them end the connection. The peer's window stays as it is, and bounds this too.
    pub fn gather(&mut self, cx: &mut Context<'_>) {
        if self.has_ended {
            return;
        }
        // Its end, and its failure, are there to be asked for once more.
        while let Poll::Ready(Some(Ok(data))) = self.stream.poll_data(cx) {
            if data.len() < SMALL {
                self.small.extend_from_slice(&data);
            } else {
                self.waiting.extend((!self.small.is_empty()).then(|| self.small.split().freeze()));
                self.waiting.push_back(data);
            }
        }
    }

    fn next_waiting(&mut self) -> Option<Bytes> {
        let small = &mut self.small;
        self.waiting.pop_front().or_else(|| (!small.is_empty()).then(|| std::mem::take(small).freeze()))
    }

    /// Whether the peer's message is none (RFC 9113 §8.1.1).
    pub fn is_malformed(&self) -> bool {
        self.is_malformed
    }

    fn stopped(&mut self, error: &::h2::Error) -> Result<Option<Part>, Broken> {
        let is_enough = error.is_reset() && error.is_remote() && error.reason() == Some(::h2::Reason::NO_ERROR);
        if self.is_tunnel && is_enough {
            self.has_ended = true;
            return Ok(None);
        }
        Err(broken(error))
    }

    fn release(&mut self) {
        if self.held > 0 {
            // Never more than has come; of a stream that has ended meanwhile the connection has it already.
            let _ = self.stream.flow_control().release_capacity(std::mem::take(&mut self.held));
        }
    }
}

impl Outgoing {
    /// A stream whose head has been sent. `has_ended`: and with it all.
    pub fn new(stream: SendStream<Chunk>, has_ended: bool) -> Self {
        Self { stream, gauge: Arc::default(), has_ended }
    }

    /// See [`Sink::poll_data`](crate::http::message::Sink::poll_data). Takes what the peer's window and the stream's buffer have room for.
    pub fn poll_data(&mut self, cx: &mut Context<'_>, data: &mut Bytes, is_last: bool) -> Poll<Result<(), Broken>> {
        if self.has_ended {
            // To HEAD and 304 there is none.
            data.clear();
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(broken) = self.poll_gone(cx) {
            return Poll::Ready(Err(broken));
        }
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len().min(SEND_BUFFER));
            let room = self.stream.capacity();
            if room == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => return Poll::Ready(Err(broken(&error))),
                    None => return Poll::Ready(Err(Broken::Reset)),
                }
            }
            let piece = data.split_to(room.min(data.len()));
            self.send(piece, is_last && data.is_empty())?;
        }
        if is_last {
            self.end(None)?;
        }
        Poll::Ready(Ok(()))
    }

    /// See [`Sink::end`](crate::http::message::Sink::end).
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        if self.has_ended {
            return Ok(());
        }
        match trailers {
            Some(trailers) => {
                self.stream.send_trailers(trailers).map_err(|error| broken(&error))?;
                self.has_ended = true;
                Ok(())
            }
            None => self.send(Bytes::new(), true),
        }
    }

    /// See [`Sink::poll_flush`](crate::http::message::Sink::poll_flush).
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if let Poll::Ready(broken) = self.poll_gone(cx) {
            return Poll::Ready(Err(broken));
        }
        self.gauge.poll_empty(cx).map(Ok)
    }

    /// Ready when the peer has reset the stream, or is gone.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        self.stream.poll_reset(cx).map(|reset| match reset {
            Ok(::h2::Reason::REFUSED_STREAM) => Broken::Refused,
            Ok(_) => Broken::Reset,
            Err(error) => broken(&error),
        })
    }

    /// Whether the peer has said that it needs no more (RFC 9113 §8.1). What it still gets is dropped then.
    pub fn is_enough(&mut self, cx: &mut Context<'_>) -> bool {
        let is_enough = matches!(self.stream.poll_reset(cx), Poll::Ready(Ok(::h2::Reason::NO_ERROR)));
        self.has_ended |= is_enough;
        is_enough
    }

    /// Gives the stream up, with what has not been written.
    pub fn reset(&mut self, reason: ::h2::Reason) {
        self.stream.send_reset(reason);
    }

    /// Whether all has been given.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Grows with what has been written.
    pub fn written(&self) -> u64 {
        self.gauge.written()
    }

    fn send(&mut self, data: Bytes, is_last: bool) -> Result<(), Broken> {
        self.stream.send_data(Chunk::new(data, &self.gauge), is_last).map_err(|error| broken(&error))?;
        self.has_ended |= is_last;
        Ok(())
    }
}
