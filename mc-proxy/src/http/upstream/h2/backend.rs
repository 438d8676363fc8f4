//! A stream of a connection to a backend.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use ::h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header, response::Parts};
use bytes::Bytes;

use super::Slot;
use crate::http::{
    h2::{
        broken,
        chunk::Chunk,
        content::{Incoming, Outgoing},
    },
    message::{Answer, Broken, Content, Part, Request, Response, Sink, Source, Upstream},
    websocket,
};

/// Informational responses before the final one.
const INFORMATIONAL_MAX: u32 = 32;

/// One request, whose head has been sent, and its response. Dropped before both have ended it resets the stream.
#[derive(Debug)]
pub struct Backend {
    response: ResponseFuture,
    incoming: Option<Incoming>,
    outgoing: Outgoing,
    is_head: bool,
    tunnel: Option<Tunnel>,
    /// The tunnel has been opened.
    is_tunnel: bool,
    informational: u32,
    max_fields: usize,
    slot: Slot,
    /// Bytes of the connection before the request, read and written.
    before: (u64, u64),
}

/// What an extended CONNECT is the translation of.
#[derive(Debug)]
struct Tunnel {
    /// What the client has sent, if it speaks HTTP/1.1 and the tunnel is for a WebSocket.
    key: Option<HeaderValue>,
}

impl Backend {
    /// `max_fields`: of trailers.
    pub(super) fn new(
        request: &Request,
        response: ResponseFuture,
        stream: SendStream<Chunk>,
        max_fields: usize,
        slot: Slot,
        before: (u64, u64),
    ) -> Self {
        let is_tunnel = request.upgrade.is_some();
        let has_ended = request.content.is_empty() && !is_tunnel;
        Self {
            response,
            incoming: None,
            outgoing: Outgoing::new(stream, has_ended),
            is_head: request.method == Method::HEAD,
            tunnel: is_tunnel.then(|| Tunnel { key: request.headers.get(websocket::KEY).cloned() }),
            is_tunnel: false,
            informational: 0,
            max_fields,
            slot,
            before,
        }
    }

    /// Whether a byte of the request may have left: one of the connection has.
    pub fn has_sent(&self) -> bool {
        self.slot.transferred().1 > self.before.1
    }

    /// Bytes of the request's content that the connection has taken.
    pub fn written(&self) -> u64 {
        self.outgoing.written()
    }

    /// Whether a head of a response has come.
    pub fn has_answered(&self) -> bool {
        self.informational > 0 || self.incoming.is_some()
    }

    /// Whether the backend has ended a tunnel: what it has said last is still to be handed on, and nothing goes to it.
    fn has_closed_tunnel(&mut self, cx: &mut Context<'_>) -> bool {
        self.is_tunnel && self.outgoing.is_enough(cx)
    }

    fn failed(&self, error: &::h2::Error) -> Broken {
        if error.is_go_away() || error.is_io() {
            // What is sent once more takes another connection.
            self.slot.close();
        }
        broken(error)
    }

    fn informed(&mut self, head: Parts) -> Result<Answer, Broken> {
        self.informational += 1;
        // RFC 9113 §8.6 has done away with 101.
        if self.informational > INFORMATIONAL_MAX || head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Broken::Protocol);
        }
        Ok(Answer::Informational(head.status, head.headers))
    }

    fn answered(&mut self, head: Parts, body: RecvStream) -> Result<Answer, Broken> {
        let Parts { status, mut headers, .. } = head;
        if status.is_informational() {
            return Err(Broken::Protocol);
        }
        let has_ended = body.is_end_stream();
        let incoming = self.incoming.insert(Incoming::new(body, self.max_fields));
        if let Some(tunnel) = self.tunnel.take()
            && status.is_success()
        {
            self.is_tunnel = true;
            incoming.set_tunnel();
            // RFC 8441 §5.
            headers.remove(header::CONTENT_LENGTH);
            headers.remove(websocket::ACCEPT);
            if let Some(key) = tunnel.key {
                headers.insert(websocket::ACCEPT, websocket::accept(&key));
            }
            let status = StatusCode::SWITCHING_PROTOCOLS;
            return Ok(Answer::Final(Response { status, headers, content: Content::Parts }));
        }
        let has_none = self.is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let content = match length(&headers)? {
            _ if has_none => Content::None,
            _ if has_ended => Content::Length(0),
            // DATA without data, or trailers, may still come.
            None | Some(0) => Content::Parts,
            Some(length) => Content::Length(length),
        };
        Ok(Answer::Final(Response { status, headers, content }))
    }
}

/// What `Content-Length` says.
fn length(headers: &HeaderMap) -> Result<Option<u64>, Broken> {
    let Some(value) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).map(Some).ok_or(Broken::Protocol)
}

impl Upstream for Backend {
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Broken>> {
        match self.response.poll_informational(cx) {
            Poll::Ready(Some(Ok(head))) => return Poll::Ready(self.informed(head.into_parts().0)),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(broken(&error))),
            Poll::Ready(None) | Poll::Pending => {}
        }
        let response = ready!(Pin::new(&mut self.response).poll(cx)).map_err(|error| self.failed(&error))?;
        let (head, body) = response.into_parts();
        Poll::Ready(self.answered(head, body))
    }
}

impl Source for Backend {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Part>, Broken>> {
        match &mut self.incoming {
            Some(incoming) => incoming.poll_part(cx),
            None => Poll::Ready(Err(Broken::Protocol)),
        }
    }

    fn is_ended(&self) -> bool {
        self.incoming.as_ref().is_some_and(Incoming::is_ended)
    }

    fn gather(&mut self, cx: &mut Context<'_>) {
        if let Some(incoming) = &mut self.incoming {
            incoming.gather(cx);
        }
    }
}

impl Sink for Backend {
    fn poll_data(&mut self, cx: &mut Context<'_>, data: &mut Bytes, is_last: bool) -> Poll<Result<(), Broken>> {
        if self.has_closed_tunnel(cx) {
            data.clear();
            return Poll::Ready(Ok(()));
        }
        self.outgoing.poll_data(cx, data, is_last)
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        self.outgoing.end(trailers)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.has_closed_tunnel(cx) {
            return Poll::Ready(Ok(()));
        }
        self.outgoing.poll_flush(cx)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if !self.is_ended() || !self.outgoing.has_ended() {
            // What the backend has reset itself, or ended with the connection, is nothing that it counts.
            if self.outgoing.poll_gone(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.slot.count_reset();
            }
            // At once, with what waits for the backend's window.
            self.outgoing.reset(Reason::CANCEL);
        }
    }
}
