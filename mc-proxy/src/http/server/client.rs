//! The client's side of an HTTP/1.1 connection.

use std::task::{Context, Poll, ready};

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use bytes::Bytes;

use crate::http::{
    authority::Authority,
    date::date,
    fields,
    h1::{
        HeadError, HeadLimits, RequestFraming, RequestHead, ResponseFraming, connection::Connection, encode,
        head::HeadReader,
    },
    message::{Broken, Content, Downstream, Part, Request, Response, Sink, Source},
    transport::Transport,
    wire::{WAITING_MAX, Wire},
};

/// A client that speaks HTTP/1.1, or HTTP/1.0.
#[derive(Debug)]
pub struct Client<S> {
    connection: Connection<S>,
    reader: HeadReader,
    limits: HeadLimits,
    version: Version,
    method: Method,
    is_persistent: bool,
}

/// What a client has sent at the place of a request.
#[derive(Debug)]
pub enum Next {
    /// A head.
    Request(Box<RequestHead>),
    /// Nothing more.
    End,
    /// No head.
    Malformed(HeadError),
    /// A part of a head, or nothing, and then the connection failed.
    Failed,
}

impl<S: Transport> Client<S> {
    /// A connection of which `begun` has been read.
    pub fn new(stream: S, begun: &[u8], limits: HeadLimits) -> Self {
        Self {
            connection: Connection::new(Wire::new(stream, begun), limits),
            reader: HeadReader::default(),
            limits,
            version: Version::HTTP_11,
            method: Method::GET,
            is_persistent: true,
        }
    }

    /// The next request.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        loop {
            match self.reader.request(self.connection.wire().input(), self.limits) {
                Ok(Some(head)) => {
                    self.version = head.version;
                    self.method = head.method.clone();
                    self.is_persistent &= head.is_persistent;
                    self.connection.read_request(head.framing);
                    return Poll::Ready(Next::Request(Box::new(head)));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Next::Malformed(error)),
            }
            let has_begun = self.has_begun();
            match self.connection.wire().poll_fill(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) if !has_begun => return Poll::Ready(Next::End),
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::Failed),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// What is answered next is not the request before it, and is no request.
    pub fn forget_request(&mut self) {
        (self.version, self.method) = (Version::HTTP_11, Method::GET);
    }

    /// Whether a part of the next request has come.
    pub fn has_begun(&mut self) -> bool {
        self.reader.has_begun(self.connection.wire().input())
    }

    /// Gives back memory while nothing comes.
    pub fn rest(&mut self) {
        self.connection.wire().release();
    }

    /// Whether another request may follow where the connection stands.
    pub fn goes_on(&self) -> bool {
        self.is_persistent && self.connection.is_between_messages()
    }

    /// Bytes from and to the client, decrypted.
    pub fn transferred(&mut self) -> (u64, u64) {
        self.connection.wire().transferred()
    }

    /// Ends our side after all that has been written, and discards what the client still sends, so that the end does not
    /// become a reset that overtakes the response (RFC 9112 §9.6). Ready when the client has ended its side too, or has
    /// sent `left` bytes.
    pub fn poll_close(&mut self, cx: &mut Context<'_>, left: &mut usize) -> Poll<()> {
        let wire = self.connection.wire();
        if ready!(wire.poll_shutdown(cx)).is_err() {
            return Poll::Ready(());
        }
        wire.io().socket_mut().complete();
        loop {
            let input = wire.input();
            let Some(rest) = left.checked_sub(input.len()) else { return Poll::Ready(()) };
            *left = rest;
            input.clear();
            match ready!(wire.poll_fill(cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(()),
            }
        }
    }

    /// How the content is framed for this client.
    fn framing(&mut self, status: StatusCode, content: Content) -> ResponseFraming {
        match content {
            _ if self.method == Method::HEAD => ResponseFraming::None,
            Content::None if [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status) => {
                ResponseFraming::None
            }
            // Without a length it would end with the connection (RFC 9112 §6.3).
            Content::None => ResponseFraming::Length(0),
            Content::Length(length) => ResponseFraming::Length(length),
            Content::Parts if self.version == Version::HTTP_11 => ResponseFraming::Chunked,
            Content::Parts => {
                self.is_persistent = false;
                ResponseFraming::UntilClose
            }
        }
    }
}

impl<S: Transport> Source for Client<S> {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Part>, Broken>> {
        self.connection.poll_part(cx)
    }

    fn is_ended(&self) -> bool {
        self.connection.is_ended()
    }
}

impl<S: Transport> Sink for Client<S> {
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

impl<S: Transport> Downstream for Client<S> {
    fn inform(&mut self, status: StatusCode, headers: HeaderMap) -> Result<(), Broken> {
        if self.version == Version::HTTP_11 {
            self.connection.wire().write(|to| encode::response(to, status, &headers, ResponseFraming::None));
        }
        // Informational responses without end would else wait here without a bound.
        if self.connection.wire().waiting() > WAITING_MAX { Err(Broken::Protocol) } else { Ok(()) }
    }

    fn respond(&mut self, response: Response) -> Result<(), Broken> {
        let Response { status, mut headers, content } = response;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            self.is_persistent = false;
            self.connection.wire().write(|to| encode::response(to, status, &headers, ResponseFraming::None));
            self.connection.switch_protocol();
            return Ok(());
        }
        let framing = self.framing(status, content);
        if !self.connection.is_ended() {
            // What is left of the request would be taken for the next one; the client is told not to send one (RFC 9110
            // §10.1.1, RFC 9112 §9.6).
            self.is_persistent = false;
        }
        if !headers.contains_key(header::DATE) {
            headers.insert(header::DATE, date());
        }
        if !self.is_persistent {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        } else if self.version == Version::HTTP_10 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
        }
        self.connection.wire().write(|to| encode::response(to, status, &headers, framing));
        self.connection.wrote_response(framing);
        Ok(())
    }

    fn set_last(&mut self) {
        self.is_persistent = false;
    }

    fn taken(&self) -> u64 {
        self.connection.written()
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.connection.wire().io().socket_mut().poll_failed(cx).map(drop)
    }
}

/// The head as both sides of the proxy know it. `without_host` is whom a request of HTTP/1.0 is for that does not say it; none
/// when nobody knows.
pub fn request(head: RequestHead, without_host: impl FnOnce() -> Option<Authority>) -> Option<Request> {
    let RequestHead { method, target, authority, version, mut headers, framing, expects_continue, .. } = head;
    let authority = authority.or_else(without_host)?;
    let host = match headers.remove(header::HOST) {
        Some(host) => host,
        None => HeaderValue::try_from(authority.to_string()).ok()?,
    };
    let has_content = !matches!(framing, RequestFraming::None | RequestFraming::Length(0));
    let upgrade = fields::upgrade_protocol(&headers).filter(|_| version == Version::HTTP_11 && !has_content);
    Some(Request {
        method,
        target,
        authority,
        host,
        version,
        headers,
        content: framing.into(),
        expects_continue,
        upgrade,
    })
}
