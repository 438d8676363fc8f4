//! A backend that is spoken to in HTTP/1.1.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    task::{Context, Poll, Waker, ready},
};

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use bytes::Bytes;
use tokio::{
    task::coop::unconstrained,
    time::{Duration, Instant},
};

use super::{io::Io, pool::Open};
use crate::http::{
    fields,
    h1::{HeadLimits, RequestFraming, ResponseFraming, connection::Connection, encode, head::HeadReader},
    message::{Answer, Broken, Content, Part, Request, Response, Sink, Source, Upstream},
    transport::Transport as _,
    websocket,
    wire::Wire,
};

/// Informational responses before the final one.
const INFORMATIONAL_MAX: u32 = 32;

/// A connection is not kept for longer than this, so that a backend's name that has moved is followed.
pub(super) const AGE_MAX: Duration = Duration::from_secs(600);

/// A connection, and where it stands with its request.
#[derive(Debug)]
pub struct Backend {
    connection: Connection<Io>,
    reader: HeadReader,
    limits: HeadLimits,
    method: Method,
    upgrade: Option<HeaderValue>,
    /// The WebSocket key that was made for a client which has none.
    key: Option<HeaderValue>,
    informational: u32,
    has_answered: bool,
    /// Bytes that went out with earlier requests.
    written_before: u64,
    is_persistent: bool,
    /// The last response had no content, whatever its fields or its backend say: some send it all the same.
    was_bodiless: bool,
    made_at: Instant,
    /// Its place among the backend's connections.
    open: Open,
}

impl Backend {
    pub(super) fn new(io: Io, limits: HeadLimits, open: Open) -> Self {
        Self {
            connection: Connection::new(Wire::new(io, &[]), limits),
            reader: HeadReader::default(),
            limits,
            method: Method::GET,
            upgrade: None,
            key: None,
            informational: 0,
            has_answered: false,
            written_before: 0,
            is_persistent: true,
            was_bodiless: false,
            made_at: Instant::now(),
            open,
        }
    }

    /// Which of the pool's backends it is connected to.
    pub(super) fn place(&self) -> usize {
        self.open.place()
    }

    /// Writes the head of a request; nothing is sent before the next flush. `random`: for a WebSocket's key.
    pub(super) fn send(&mut self, request: &Request, random: u128) {
        let framing = match request.content {
            Content::None => RequestFraming::None,
            Content::Length(length) => RequestFraming::Length(length),
            Content::Parts => RequestFraming::Chunked,
        };
        self.method.clone_from(&request.method);
        self.upgrade.clone_from(&request.upgrade);
        self.informational = 0;
        self.has_answered = false;
        self.written_before = self.connection.written();
        let is_keyless = request.upgrade.as_ref().is_some_and(websocket::is_websocket)
            && !request.headers.contains_key(websocket::KEY);
        self.key = is_keyless.then(|| websocket::key(random));
        let hop = encode::Hop {
            host: &request.host,
            upgrade: request.upgrade.as_ref(),
            wants_trailers: request.headers.contains_key(header::TE),
            websocket_key: self.key.as_ref(),
        };
        self.connection.wire().write(|to| {
            encode::request(to, &request.method, &request.target, &hop, &request.headers, framing);
        });
        self.connection.wrote_request(framing);
    }

    /// Whether a byte of a response has come.
    pub fn has_answered(&mut self) -> bool {
        self.has_answered || !self.connection.wire().input().is_empty()
    }

    /// Bytes that the backend's socket has taken, of this request and those before it.
    pub fn written(&self) -> u64 {
        self.connection.written()
    }

    /// Whether a byte of the request may have left, or a byte has come that may be an answer to it.
    pub fn has_sent(&mut self) -> bool {
        self.has_answered() || self.connection.written() > self.written_before
    }

    /// Whether another request may follow.
    pub(super) fn is_reusable(&mut self) -> bool {
        self.is_persistent
            && self.made_at.elapsed() < AGE_MAX
            && self.connection.is_between_messages()
            && self.connection.wire().input().is_empty()
            && self.connection.wire().waiting() == 0
    }

    /// Whether the backend has neither ended the connection nor said anything unasked since it was last used. No system call
    /// is made where the reactor has heard nothing, but behind a response without content: what a backend sends for it would be
    /// the next client's response.
    pub(super) fn is_fresh(&mut self) -> bool {
        // A task that has used up its budget would learn nothing of any socket.
        let check = pin!(unconstrained(poll_fn(|cx| self.connection.wire().poll_fill(cx))));
        let is_quiet = check.poll(&mut Context::from_waker(Waker::noop())).is_pending();
        let socket = self.connection.wire().io().socket_mut();
        is_quiet && (!self.was_bodiless || socket.has_nothing_to_read().unwrap_or(false))
    }

    /// Is no longer charged to this worker.
    pub(super) fn settle(&mut self) {
        self.connection.wire().settle();
    }

    /// Keeps as little as can be until it is used again.
    pub(super) fn rest(&mut self) {
        self.connection.wire().release();
    }

    /// Leaves this worker's reactor for that of another one.
    pub(super) fn leave(&mut self) {
        self.rest();
        self.connection.wire().io().socket_mut().deregister();
    }

    /// Ends the connection in order, without waiting. Its place is for another one.
    pub(super) fn close(mut self) -> Open {
        // What does not fit into the socket's buffer is not worth a wait.
        let _ = self.connection.wire().poll_shutdown(&mut Context::from_waker(Waker::noop()));
        self.connection.wire().io().socket_mut().complete();
        self.open
    }

    fn switched(&mut self, mut headers: HeaderMap) -> Result<Answer, Broken> {
        let wanted = self.upgrade.take();
        let got = fields::upgrade_protocol(&headers);
        let is_it = |wanted: &HeaderValue| {
            got.as_ref().is_some_and(|got| got.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()))
        };
        if !wanted.as_ref().is_some_and(is_it) {
            return Err(Broken::Protocol);
        }
        if let Some(key) = self.key.take() {
            if !websocket::is_accepted(&headers, &key) {
                return Err(Broken::Protocol);
            }
            headers.remove(websocket::ACCEPT);
        }
        self.is_persistent = false;
        self.connection.switch_protocol();
        let response = Response { status: StatusCode::SWITCHING_PROTOCOLS, headers, content: Content::Parts };
        Ok(Answer::Final(response))
    }
}

/// Whether a status that has no content comes with the fields of one that has some (RFC 9110 §8.6, RFC 9112 §6.1): whoever sends
/// them may send the content too. For HEAD and 304 they are in order.
fn announces_content(status: StatusCode, headers: &HeaderMap) -> bool {
    let is_empty = |length: &HeaderValue| length.as_bytes().iter().all(|digit| *digit == b'0');
    let has_length = headers.get(header::CONTENT_LENGTH).is_some_and(|length| !is_empty(length));
    let has_none = status.is_informational() || status == StatusCode::NO_CONTENT;
    has_none && (has_length || headers.contains_key(header::TRANSFER_ENCODING))
}

impl Upstream for Backend {
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Broken>> {
        let head = loop {
            match self.reader.response(self.connection.wire().input(), self.limits, &self.method)? {
                Some(head) => break head,
                None => match ready!(self.connection.wire().poll_fill(cx)) {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Gone)),
                },
            }
        };
        self.has_answered = true;
        self.is_persistent &= !announces_content(head.status, &head.headers);
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Poll::Ready(self.switched(head.headers));
        }
        if head.status.is_informational() {
            self.informational += 1;
            return Poll::Ready(if self.informational > INFORMATIONAL_MAX {
                Err(Broken::Protocol)
            } else {
                Ok(Answer::Informational(head.status, head.headers))
            });
        }
        self.is_persistent &= head.is_persistent && head.framing != ResponseFraming::UntilClose;
        self.was_bodiless = head.framing == ResponseFraming::None;
        self.connection.read_response(head.framing);
        let response = Response { status: head.status, headers: head.headers, content: head.framing.into() };
        Poll::Ready(Ok(Answer::Final(response)))
    }
}

impl Source for Backend {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Part>, Broken>> {
        self.connection.poll_part(cx)
    }

    fn is_ended(&self) -> bool {
        self.connection.is_ended()
    }
}

impl Sink for Backend {
    fn poll_data(&mut self, cx: &mut Context<'_>, data: &mut Bytes, is_last: bool) -> Poll<Result<(), Broken>> {
        self.connection.poll_data(cx, data, is_last)
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        self.connection.end(trailers)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.connection.poll_flush(cx)
    }
}
