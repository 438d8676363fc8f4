//! What passes between the two sides of the proxy, whichever version of HTTP each of them speaks.
//!
//! A request comes from a [`Downstream`] and goes to an [`Upstream`], its response the other way. Heads are values; content
//! moves in [`Part`]s from a [`Source`] to a [`Sink`], of which each side of a connection is both. All four are polled by the
//! one task that serves the request, so nothing is handed from task to task on the way.

use std::task::{Context, Poll};

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use bytes::Bytes;

use super::{
    authority::Authority,
    h1::{HeadError, RequestFraming, ResponseFraming, Target},
};

/// The head of a request, of which every part has been checked.
#[derive(Clone, Debug)]
pub struct Request {
    /// Any but CONNECT; GET where HTTP/2 asks for an upgrade by extended CONNECT (RFC 8441 §4).
    pub method: Method,
    /// Path and query, or `*`.
    pub target: Target,
    /// Whom it is for.
    pub authority: Authority,
    /// The same as the client spelled it.
    pub host: HeaderValue,
    /// What the client speaks.
    pub version: Version,
    /// Without `Host` and the pseudo-fields of HTTP/2.
    pub headers: HeaderMap,
    /// What follows.
    pub content: Content,
    /// Whether the client waits for 100 before it sends the content.
    pub expects_continue: bool,
    /// The protocol that the connection, or the stream, is to change to.
    pub upgrade: Option<HeaderValue>,
}

/// The head of a response.
#[derive(Clone, Debug)]
pub struct Response {
    /// Never informational but for 101, which is the answer to an upgrade in either version of HTTP.
    pub status: StatusCode,
    /// All fields but those that frame an HTTP/1.1 message.
    pub headers: HeaderMap,
    /// What follows.
    pub content: Content,
}

/// What an [`Upstream`] says before the content.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A 1xx that is forwarded, and behind which the response is still to come (RFC 9110 §15.2).
    Informational(StatusCode, HeaderMap),
    /// The response itself.
    Final(Response),
}

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing, whatever a `Content-Length` says of it (HEAD, 204, 304).
    None,
    /// So many bytes, perhaps none.
    Length(u64),
    /// Parts until one is the last, perhaps with trailers.
    Parts,
}

/// A piece of content.
#[derive(Debug)]
pub enum Part {
    /// Never empty.
    Data(Bytes),
    /// The last.
    Trailers(HeaderMap),
}

/// Why a message cannot be read or written to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The connection ended before the message did, or failed.
    #[error("the connection ended early")]
    Gone,
    /// The other end gave up the stream, or refused it (RFC 9113 §5.4.2).
    #[error("the stream was reset")]
    Reset,
    /// RFC 9113 §8.7: the other end has not looked at the stream, which may be tried again.
    #[error("the stream was refused")]
    Refused,
    /// The other end does not know what is wanted of it (RFC 8441 §3); nothing has been sent.
    #[error("extended CONNECT is not supported")]
    Unsupported,
    /// Where the message ends is not known.
    #[error(transparent)]
    Malformed(#[from] HeadError),
    /// HTTP/2's own mistakes (RFC 9113 §5.4).
    #[error("an error of HTTP/2")]
    Protocol,
}

/// Where content comes from.
pub trait Source {
    /// The next part; none at the end. What is not asked for stays with the sender.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Part>, Broken>>;

    /// Whether the last part has been given.
    fn is_ended(&self) -> bool;

    /// Nobody can take a part at the moment: what has come is put into as little memory as it needs. The sender gets no more room
    /// by that.
    fn gather(&mut self, _cx: &mut Context<'_>) {}
}

/// Where content goes.
pub trait Sink {
    /// Takes data out of `data`; ready when all of it has been taken. Without room for it, some of it stays there until there
    /// is: who has nothing left to give does not ask again. `is_last`: the message ends with it.
    fn poll_data(&mut self, cx: &mut Context<'_>, data: &mut Bytes, is_last: bool) -> Poll<Result<(), Broken>>;

    /// Ends the message where no data said that it is the last.
    ///
    /// # Errors
    /// When the other end is gone.
    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken>;

    /// Ready when all that was taken is on its way.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;
}

/// The client's side of one request, after its head.
pub trait Downstream: Source + Sink {
    /// Sends an informational response, unless the client is of HTTP/1.0 and would take it for the final one.
    ///
    /// # Errors
    /// When the client is gone.
    fn inform(&mut self, status: StatusCode, headers: HeaderMap) -> Result<(), Broken>;

    /// Sends the head of the response. A 101 opens a tunnel: from then on
    /// content is bytes both ways.
    ///
    /// # Errors
    /// When the client is gone.
    fn respond(&mut self, response: Response) -> Result<(), Broken>;

    /// The connection ends with this response, if it is the client's only request.
    fn set_last(&mut self);

    /// Grows with what the client has taken.
    fn taken(&self) -> u64;

    /// Ready when the client does not want the response any more.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// The backend's side of one request, after its head has been sent.
pub trait Upstream: Source + Sink {
    /// What the backend says next; none left after [`Answer::Final`].
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Broken>>;
}

impl Content {
    /// Whether no part follows.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

impl From<RequestFraming> for Content {
    fn from(framing: RequestFraming) -> Self {
        match framing {
            RequestFraming::None => Self::None,
            RequestFraming::Length(length) => Self::Length(length),
            RequestFraming::Chunked => Self::Parts,
        }
    }
}

impl From<ResponseFraming> for Content {
    fn from(framing: ResponseFraming) -> Self {
        match framing {
            ResponseFraming::None => Self::None,
            ResponseFraming::Length(length) => Self::Length(length),
            ResponseFraming::Chunked | ResponseFraming::UntilClose => Self::Parts,
        }
    }
}
