//! The client's side of one request over HTTP/2.

use std::task::{Context, Poll};

use ::h2::{Reason, RecvStream, server::SendResponse};
use ::http::{HeaderMap, HeaderName, HeaderValue, Response as Head, StatusCode, Version, header};
use bytes::Bytes;

use crate::http::{
    date::date,
    h2::{
        broken,
        chunk::Chunk,
        content::{Incoming, Outgoing},
    },
    message::{Broken, Content, Downstream, Part, Response, Sink, Source},
    websocket,
    wire::WAITING_MAX,
};

/// RFC 9113 §8.2.2.
const SPECIFIC: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// A stream whose request has come.
#[derive(Debug)]
pub(super) struct Stream {
    incoming: Incoming,
    respond: SendResponse<Chunk>,
    /// Once the head of the response has been sent.
    outgoing: Option<Outgoing>,
    kind: Kind,
    /// Bytes of informational responses, which nothing holds back.
    informed: usize,
}

/// What the answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// HEAD: there is no content.
    Head,
    /// Extended CONNECT (RFC 8441 §4): 2xx opens a tunnel.
    Connect,
    /// Any other method.
    Other,
}

impl Stream {
    /// `max_fields`: of trailers.
    pub(super) fn new(stream: RecvStream, respond: SendResponse<Chunk>, kind: Kind, max_fields: usize) -> Self {
        Self { incoming: Incoming::new(stream, max_fields), respond, outgoing: None, kind, informed: 0 }
    }

    /// Tells the client that the stream is not what it should be.
    pub(super) fn reset(&mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }

    fn send_head(&mut self, status: StatusCode, headers: HeaderMap, ends: bool) -> Result<(), Broken> {
        let sent = self.respond.send_response(head(status, headers), ends).map_err(|error| broken(&error))?;
        self.outgoing = Some(Outgoing::new(sent, ends));
        Ok(())
    }
}

fn head(status: StatusCode, mut headers: HeaderMap) -> Head<()> {
    for name in &SPECIFIC {
        headers.remove(name);
    }
    let mut head = Head::new(());
    *head.status_mut() = status;
    *head.version_mut() = Version::HTTP_2;
    *head.headers_mut() = headers;
    head
}

impl Source for Stream {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Part>, Broken>> {
        self.incoming.poll_part(cx)
    }

    fn is_ended(&self) -> bool {
        self.incoming.is_ended()
    }

    fn gather(&mut self, cx: &mut Context<'_>) {
        self.incoming.gather(cx);
    }
}

impl Sink for Stream {
    fn poll_data(&mut self, cx: &mut Context<'_>, data: &mut Bytes, is_last: bool) -> Poll<Result<(), Broken>> {
        match &mut self.outgoing {
            Some(outgoing) => outgoing.poll_data(cx, data, is_last),
            None => Poll::Ready(Err(Broken::Protocol)),
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        self.outgoing.as_mut().ok_or(Broken::Protocol)?.end(trailers)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match &mut self.outgoing {
            Some(outgoing) => outgoing.poll_flush(cx),
            // Heads are not held back.
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Downstream for Stream {
    fn inform(&mut self, status: StatusCode, headers: HeaderMap) -> Result<(), Broken> {
        self.informed += headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
        // They would else wait here without a bound.
        if self.informed > WAITING_MAX {
            return Err(Broken::Protocol);
        }
        self.respond.send_informational(head(status, headers)).map_err(|error| broken(&error))
    }

    fn respond(&mut self, response: Response) -> Result<(), Broken> {
        if self.incoming.is_malformed() {
            // RFC 9113 §8.1.1: an error of the stream, which the guard counts.
            self.reset(Reason::PROTOCOL_ERROR);
            return Err(Broken::Protocol);
        }
        let Response { status, mut headers, content } = response;
        if !headers.contains_key(header::DATE) {
            headers.insert(header::DATE, date());
        }
        match (status, self.kind) {
            // RFC 8441 §5.
            (StatusCode::SWITCHING_PROTOCOLS, Kind::Connect) => {
                headers.remove(websocket::ACCEPT);
                headers.remove(header::CONTENT_LENGTH);
                self.send_head(StatusCode::OK, headers, false)
            }
            (StatusCode::SWITCHING_PROTOCOLS, Kind::Head | Kind::Other) => Err(Broken::Protocol),
            // The backend did not want to change; the client would take its content for the tunnel's.
            (status, Kind::Connect) if status.is_success() => {
                let headers = HeaderMap::from_iter([(header::DATE, date())]);
                self.send_head(StatusCode::BAD_GATEWAY, headers, true)
            }
            (status, kind) => {
                let is_none = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
                let ends = kind == Kind::Head || is_none || content.is_empty();
                match content {
                    Content::Length(length @ 1..) => {
                        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
                    }
                    Content::Parts if !ends => {
                        headers.remove(header::CONTENT_LENGTH);
                    }
                    Content::None | Content::Length(0) | Content::Parts => {}
                }
                // RFC 9110 §8.6.
                if status == StatusCode::NO_CONTENT {
                    headers.remove(header::CONTENT_LENGTH);
                }
                self.send_head(status, headers, ends)
            }
        }
    }

    /// Streams end by themselves.
    fn set_last(&mut self) {}

    fn taken(&self) -> u64 {
        self.outgoing.as_ref().map_or(0, Outgoing::written)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.outgoing {
            Some(outgoing) => outgoing.poll_gone(cx).map(drop),
            None => self.respond.poll_reset(cx).map(drop),
        }
    }
}
