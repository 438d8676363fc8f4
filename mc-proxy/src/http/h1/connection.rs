//! Content on an HTTP/1.1 connection, in both directions and for both roles.

use std::task::{Context, Poll, ready};

use ::http::HeaderMap;
use bytes::{Buf as _, Bytes};
use tokio::io::AsyncRead;

use super::{
    HeadLimits, RequestFraming, ResponseFraming,
    chunked::{ChunkedDecoder, Decoded},
    encode,
};
use crate::http::{
    message::{Broken, Part, Sink, Source},
    transport::Transport,
    wire::{WAITING_MAX, Wire},
};

/// A connection between the heads: how the message that is being read ends, and the one that is being written.
#[derive(Debug)]
pub struct Connection<S> {
    wire: Wire<S>,
    limits: HeadLimits,
    incoming: Incoming,
    outgoing: Outgoing,
}

/// What is left of the message that is being read.
#[derive(Clone, Copy, Debug)]
enum Incoming {
    Ended,
    Length(u64),
    Chunked(ChunkedDecoder),
    UntilClose,
}

/// How the message that is being written goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outgoing {
    Ended,
    /// So many bytes are still to come.
    Length(u64),
    Chunked,
    /// The end of the message is that of our side of the stream.
    UntilClose,
    /// And that has been asked for.
    Closing,
}

impl<S> Connection<S> {
    /// Between two messages. `limits` are for trailers.
    pub fn new(wire: Wire<S>, limits: HeadLimits) -> Self {
        Self { wire, limits, incoming: Incoming::Ended, outgoing: Outgoing::Ended }
    }

    /// The stream, for heads.
    pub fn wire(&mut self) -> &mut Wire<S> {
        &mut self.wire
    }

    /// The head of a request has been read.
    pub fn read_request(&mut self, framing: RequestFraming) {
        self.incoming = match framing {
            RequestFraming::None | RequestFraming::Length(0) => Incoming::Ended,
            RequestFraming::Length(length) => Incoming::Length(length),
            RequestFraming::Chunked => Incoming::Chunked(ChunkedDecoder::new(self.limits)),
        };
    }

    /// The head of a response has been read.
    pub fn read_response(&mut self, framing: ResponseFraming) {
        self.incoming = match framing {
            ResponseFraming::None | ResponseFraming::Length(0) => Incoming::Ended,
            ResponseFraming::Length(length) => Incoming::Length(length),
            ResponseFraming::Chunked => Incoming::Chunked(ChunkedDecoder::new(self.limits)),
            ResponseFraming::UntilClose => Incoming::UntilClose,
        };
    }

    /// The head of a request has been written.
    pub fn wrote_request(&mut self, framing: RequestFraming) {
        self.outgoing = match framing {
            RequestFraming::None | RequestFraming::Length(0) => Outgoing::Ended,
            RequestFraming::Length(length) => Outgoing::Length(length),
            RequestFraming::Chunked => Outgoing::Chunked,
        };
    }

    /// The head of a response has been written.
    pub fn wrote_response(&mut self, framing: ResponseFraming) {
        self.outgoing = match framing {
            ResponseFraming::None | ResponseFraming::Length(0) => Outgoing::Ended,
            ResponseFraming::Length(length) => Outgoing::Length(length),
            ResponseFraming::Chunked => Outgoing::Chunked,
            ResponseFraming::UntilClose => Outgoing::UntilClose,
        };
    }

    /// From now on the connection is of another protocol: bytes both ways, each until its end (RFC 9110 §7.8).
    pub fn switch_protocol(&mut self) {
        self.incoming = Incoming::UntilClose;
        self.outgoing = Outgoing::UntilClose;
    }

    /// Whether the message that was read and the one that was written have both ended where the next one may begin.
    pub fn is_between_messages(&self) -> bool {
        matches!(self.incoming, Incoming::Ended) && self.outgoing == Outgoing::Ended
    }

    /// Bytes that have been written.
    pub fn written(&self) -> u64 {
        self.wire.transferred().1
    }

    /// Takes a part of a message whose bytes are all content.
    fn split(&mut self, max: u64) -> Bytes {
        let input = self.wire.input();
        let length = usize::try_from(max).unwrap_or(usize::MAX).min(input.len());
        input.split_to(length).freeze()
    }
}

impl<S: AsyncRead + Unpin> Source for Connection<S> {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Part>, Broken>> {
        loop {
            if let Incoming::Chunked(decoder) = &mut self.incoming {
                match decoder.decode(self.wire.input())? {
                    Decoded::Data(bytes) => return Poll::Ready(Ok(Some(Part::Data(bytes)))),
                    Decoded::End(trailers) => {
                        self.incoming = Incoming::Ended;
                        return Poll::Ready(Ok((!trailers.is_empty()).then_some(Part::Trailers(trailers))));
                    }
                    Decoded::Incomplete => {}
                }
            } else if !self.wire.input().is_empty() {
                match &mut self.incoming {
                    Incoming::Length(left) => {
                        let max = *left;
                        let part = self.split(max);
                        let left = max - part.len() as u64;
                        self.incoming = if left == 0 { Incoming::Ended } else { Incoming::Length(left) };
                        return Poll::Ready(Ok(Some(Part::Data(part))));
                    }
                    Incoming::UntilClose => return Poll::Ready(Ok(Some(Part::Data(self.split(u64::MAX))))),
                    Incoming::Ended | Incoming::Chunked(_) => {}
                }
            }
            if matches!(self.incoming, Incoming::Ended) {
                return Poll::Ready(Ok(None));
            }
            match ready!(self.wire.poll_fill(cx)) {
                Ok(1..) => {}
                Ok(0) if matches!(self.incoming, Incoming::UntilClose) => self.incoming = Incoming::Ended,
                Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Gone)),
            }
        }
    }

    fn is_ended(&self) -> bool {
        matches!(self.incoming, Incoming::Ended)
    }
}

impl<S: Transport> Sink for Connection<S> {
    fn poll_data(&mut self, cx: &mut Context<'_>, data: &mut Bytes, is_last: bool) -> Poll<Result<(), Broken>> {
        // What is taken is not asked about again, so nothing is taken before there is room.
        while self.wire.waiting() > WAITING_MAX {
            self.wire.io().socket_mut().bound_unsent();
            ready!(self.wire.poll_flush(cx)).map_err(|_| Broken::Gone)?;
        }
        if !data.is_empty() {
            let length = data.len();
            match &mut self.outgoing {
                Outgoing::Length(left) => {
                    // Whoever framed the message so does not keep to it; what is beyond would be taken for the next one.
                    *left = left.checked_sub(length as u64).ok_or(Broken::Protocol)?;
                    self.wire.push(std::mem::take(data));
                }
                Outgoing::Chunked => {
                    self.wire.write(|to| encode::chunk_head(to, length));
                    self.wire.push(std::mem::take(data));
                    self.wire.write(|to| to.extend_from_slice(encode::CHUNK_END));
                }
                Outgoing::UntilClose => self.wire.push(std::mem::take(data)),
                // To HEAD and 304 there is none.
                Outgoing::Ended | Outgoing::Closing => data.advance(length),
            }
        }
        if is_last {
            self.end(None)?;
        }
        if self.wire.waiting() > WAITING_MAX
            && let Poll::Ready(Err(_)) = self.wire.poll_flush(cx)
        {
            return Poll::Ready(Err(Broken::Gone));
        }
        Poll::Ready(Ok(()))
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        self.outgoing = match self.outgoing {
            Outgoing::Chunked => {
                self.wire.write(|to| encode::last_chunk(to, trailers.as_ref()));
                Outgoing::Ended
            }
            Outgoing::Length(1..) => return Err(Broken::Protocol),
            Outgoing::Length(0) | Outgoing::Ended => Outgoing::Ended,
            Outgoing::UntilClose | Outgoing::Closing => Outgoing::Closing,
        };
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let flushed = match self.outgoing {
            Outgoing::Closing => self.wire.poll_shutdown(cx),
            Outgoing::Ended | Outgoing::Length(_) | Outgoing::Chunked | Outgoing::UntilClose => {
                self.wire.poll_flush(cx)
            }
        };
        flushed.map_err(|_| Broken::Gone)
    }
}
