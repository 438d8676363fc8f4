//! The two directions of an exchange, and the deadlines of both.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::{Context, Poll},
};

use ::http::StatusCode;
use bytes::Bytes;
use tokio::time::{Duration, Instant};

use super::{
    Left, malformed,
    progress::{Moved, Party, Progress},
    pump::{End, Pump, Stopped},
};
use crate::firewall::OffenceKind;
use crate::http::{
    access::Outcome,
    deadline::Deadline,
    fields,
    message::{Answer, Broken, Downstream, Request, Response, Upstream as _},
    site::Site,
    upstream::Exchanging,
};

/// The client has its response, and the backend still wants the rest of the request: whoever of them lets so much time pass
/// without a byte is not waited for.
const REST_OF_REQUEST: Duration = Duration::from_secs(5);

/// A request on its way.
#[derive(Debug)]
pub(super) struct Flow<'a, D> {
    site: &'a Site,
    client: &'a mut D,
    backend: Option<Exchanging>,
    up: Pump,
    down: Pump,
    deadline: &'a mut Deadline,
    progress: Progress,
    sent_at: Instant,
    answered_at: Instant,
    /// Between two parts of the request.
    body_timeout: Duration,
    /// To the head of the response.
    response_timeout: Duration,
    /// A call of gRPC is over with its response.
    is_grpc: bool,
    /// The request's content has to keep to `min_body_rate`: it is neither a stream of messages nor a tunnel.
    has_rate: bool,
    /// The client waits for 100 before it sends content.
    is_held: bool,
    has_informed: bool,
    has_answered: bool,
    /// The response breaks off behind what the client is still to be given.
    is_cut: bool,
    /// Bytes from the backend that the connection's record knows of.
    told: u64,
}

/// Why there is no response yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// `has_sent`: it may have seen a part of the request; `has_answered`: it has, and has begun to answer.
    Backend {
        broken: Broken,
        has_sent: bool,
        has_answered: bool,
    },
    BackendLate,
    Client(Broken),
    ClientLate {
        is_offence: bool,
    },
    /// The request has more content than it may have.
    TooLong,
}

/// What a wait has ended by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Deadline,
    /// The request's content comes, but too slowly.
    Rate,
}

/// How the content is handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Until the response ends.
    Response,
    /// Until both directions have ended: the backend may have use for the rest of the request.
    Both,
    /// Likewise, and either may be silent for as long as a connection may.
    Tunnel,
}

impl<'a, D: Downstream> Flow<'a, D> {
    pub(super) fn new(
        site: &'a Site,
        client: &'a mut D,
        request: &Request,
        is_grpc: bool,
        deadline: &'a mut Deadline,
        now: Instant,
    ) -> Self {
        let edge = site.edge();
        let max = if edge.http.max_body_bytes == 0 { u64::MAX } else { edge.http.max_body_bytes };
        let moved = Moved { up: 0, down: 0, taken: client.taken() };
        Self {
            site,
            client,
            backend: None,
            up: Pump::new(request.content.is_empty(), max),
            down: Pump::new(true, u64::MAX),
            deadline,
            progress: Progress::new(moved, now),
            sent_at: now,
            answered_at: now,
            // A stream of messages may be silent for as long as a connection may.
            body_timeout: if is_grpc { edge.proxy.idle_timeout } else { edge.http.body_timeout },
            response_timeout: if is_grpc { edge.proxy.idle_timeout } else { edge.http.response_timeout },
            is_grpc,
            has_rate: !is_grpc,
            is_held: request.expects_continue,
            has_informed: false,
            has_answered: false,
            is_cut: false,
            told: 0,
        }
    }

    /// The connection ends with the response.
    pub(super) fn set_last(&mut self) {
        self.client.set_last();
    }

    /// Waits for something that the client may give up first.
    pub(super) async fn unless_gone<T>(&mut self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wait = pin!(wait);
        poll_fn(|cx| match wait.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => {
                self.client.gather(cx);
                self.client.poll_gone(cx).map(|()| None)
            }
        })
        .await
    }

    /// Gives up the connection, of which nothing was heard, for the sake of another.
    pub(super) fn retry(&mut self) {
        self.backend = None;
        self.up.restart();
    }

    /// Whether content of the request has been taken from the client, or something of a response has been passed on: it cannot be
    /// sent once more.
    pub(super) fn has_begun(&self) -> bool {
        self.up.has_begun() || self.has_informed
    }

    /// Bytes of the request's content.
    pub(super) fn sent_up(&self) -> u64 {
        self.up.bytes()
    }

    /// Bytes of the response's content.
    pub(super) fn sent_down(&self) -> u64 {
        self.down.bytes()
    }

    /// Sends the request's content and waits for the head of the response.
    pub(super) async fn answer(&mut self, backend: Exchanging) -> Result<Response, Failure> {
        self.backend = Some(backend);
        self.sent_at = Instant::now();
        self.progress.restart(self.sent_at);
        let answer = poll_fn(|cx| self.poll_answer(cx)).await;
        self.answered_at = Instant::now();
        self.progress.restart(self.answered_at);
        answer
    }

    /// When the head of the request was sent.
    pub(super) fn sent_at(&self) -> Instant {
        self.sent_at
    }

    /// From the head of the request to that of the response.
    pub(super) fn answered_after(&self) -> Duration {
        self.answered_at - self.sent_at
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response, Failure>> {
        let Some(backend) = &mut self.backend else { return Poll::Ready(Err(Failure::BackendLate)) };
        if !self.up.is_done() {
            match self.up.poll(cx, self.client, backend, fields::forward_request_trailers) {
                // The time for the answer begins with the end of the request.
                Poll::Ready(Ok(())) if self.up.has_begun() => self.progress.restart(Instant::now()),
                Poll::Ready(Ok(())) => {}
                // It may have answered before it closed.
                Poll::Ready(Err(Stopped::By(End::Sink, _))) => self.up.stop(),
                Poll::Ready(Err(Stopped::By(End::Source, broken))) => return Poll::Ready(Err(Failure::Client(broken))),
                Poll::Ready(Err(Stopped::TooLong)) => return Poll::Ready(Err(Failure::TooLong)),
                Poll::Pending => {}
            }
        }
        loop {
            match backend.poll_answer(cx) {
                Poll::Ready(Ok(Answer::Final(response))) => return Poll::Ready(Ok(response)),
                Poll::Ready(Ok(Answer::Informational(status, mut headers))) => {
                    fields::forward_response(&mut headers, None);
                    self.is_held &= status != StatusCode::CONTINUE;
                    if let Err(broken) = self.client.inform(status, headers) {
                        return Poll::Ready(Err(Failure::Client(broken)));
                    }
                    self.has_informed = true;
                }
                Poll::Ready(Err(broken)) => {
                    let (has_sent, has_answered) = (backend.has_sent(), backend.has_answered());
                    return Poll::Ready(Err(Failure::Backend { broken, has_sent, has_answered }));
                }
                Poll::Pending => break,
            }
        }
        if self.has_informed
            && let Poll::Ready(Err(broken)) = self.client.poll_flush(cx)
        {
            return Poll::Ready(Err(Failure::Client(broken)));
        }
        if self.waits_for_backend() && self.client.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Failure::Client(Broken::Gone)));
        }
        // A client may also not wait for what it has asked for.
        self.is_held &= !self.up.has_begun();
        let is_sending = self.is_sending();
        let (party, timeout) =
            if is_sending { (Party::Sender, self.body_timeout) } else { (Party::Backend, self.response_timeout) };
        match self.poll_late(cx, party, timeout) {
            Poll::Ready(Over::Rate) => Poll::Ready(Err(Failure::ClientLate { is_offence: true })),
            // A stream of messages may have none.
            Poll::Ready(Over::Deadline) if is_sending => {
                Poll::Ready(Err(Failure::ClientLate { is_offence: self.has_rate }))
            }
            Poll::Ready(Over::Deadline) => Poll::Ready(Err(Failure::BackendLate)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Hands on the response, and what is left of the request; in a tunnel both until their ends.
    pub(super) async fn content(&mut self, response: Response) -> (Left, Outcome) {
        let is_empty = response.content.is_empty();
        let manner = match response.status {
            StatusCode::SWITCHING_PROTOCOLS => Manner::Tunnel,
            // Behind an error nobody needs it.
            status if !self.is_grpc && !status.is_client_error() && !status.is_server_error() => Manner::Both,
            _ => Manner::Response,
        };
        if self.client.respond(response).is_err() {
            return (Left::Broken, Outcome::ClientAborted);
        }
        self.has_answered = true;
        self.is_held = false;
        self.down = Pump::new(is_empty, u64::MAX);
        if manner == Manner::Tunnel {
            self.up = Pump::new(false, u64::MAX);
            self.has_rate = false;
        }
        let ended = poll_fn(|cx| self.poll_content(cx, manner)).await;
        self.tell();
        ended
    }

    /// Tells the connection's record what has come from the backend.
    fn tell(&mut self) {
        let bytes = self.down.bytes();
        self.site.shared.add_from_backends(bytes - std::mem::replace(&mut self.told, bytes));
    }

    fn poll_content(&mut self, cx: &mut Context<'_>, manner: Manner) -> Poll<(Left, Outcome)> {
        if self.is_cut {
            return self.poll_cut(cx);
        }
        // Whatever becomes of the rest of the request, the client keeps its response.
        let is_answered = manner == Manner::Both && self.down.is_done();
        let broken = if is_answered { Left::Unread } else { Left::Broken };
        let Some(backend) = &mut self.backend else { return Poll::Ready((Left::Broken, Outcome::Internal)) };
        if !self.up.is_done() {
            match self.up.poll(cx, self.client, backend, fields::forward_request_trailers) {
                Poll::Ready(Ok(())) | Poll::Pending => {}
                Poll::Ready(Err(Stopped::By(End::Source, Broken::Malformed(error)))) => {
                    malformed(self.site, error);
                    return Poll::Ready((broken, Outcome::Refused));
                }
                Poll::Ready(Err(Stopped::TooLong)) => return Poll::Ready((broken, Outcome::Refused)),
                // It has what it wants, and does not give the rest.
                Poll::Ready(Err(Stopped::By(End::Source, _))) if is_answered => {
                    return Poll::Ready((broken, Outcome::Completed));
                }
                Poll::Ready(Err(Stopped::By(End::Source, _))) => {
                    return Poll::Ready((Left::Broken, Outcome::ClientAborted));
                }
                Poll::Ready(Err(Stopped::By(End::Sink, _))) if manner == Manner::Tunnel => {
                    return Poll::Ready((Left::Broken, Outcome::BackendFailed));
                }
                // It has said all that it wants to say.
                Poll::Ready(Err(Stopped::By(End::Sink, _))) => self.up.stop(),
            }
        }
        if !self.down.is_done() {
            match self.down.poll(cx, backend, self.client, fields::forward_response_trailers) {
                Poll::Ready(Ok(())) | Poll::Pending => {}
                Poll::Ready(Err(Stopped::By(End::Sink, _))) => {
                    return Poll::Ready((Left::Broken, Outcome::ClientAborted));
                }
                Poll::Ready(Err(Stopped::By(End::Source, _) | Stopped::TooLong)) => {
                    self.is_cut = true;
                    self.deadline.set(Instant::now() + self.site.edge().http.write_timeout);
                    return self.poll_cut(cx);
                }
            }
        }
        // Who says nothing more is not read from, and has to be asked.
        if !self.down.is_done() && self.waits_for_backend() && self.client.poll_gone(cx).is_ready() {
            return Poll::Ready((Left::Broken, Outcome::ClientAborted));
        }
        let whole = if self.client.is_ended() { Left::Whole } else { Left::Unread };
        if self.down.is_done() && (self.up.is_done() || manner == Manner::Response) {
            return Poll::Ready((whole, Outcome::Completed));
        }
        let idle_timeout = self.site.edge().proxy.idle_timeout;
        let (party, timeout) = if !self.down.is_done() {
            // A client that takes nothing is waited for less long than a backend that has nothing to say.
            match self.down.waits_for() {
                End::Sink => (Party::Taker, self.site.edge().http.write_timeout),
                End::Source => (Party::Backend, idle_timeout),
            }
        } else {
            let party = if self.up.waits_for() == End::Source { Party::Sender } else { Party::Backend };
            (party, if manner == Manner::Tunnel { idle_timeout } else { REST_OF_REQUEST })
        };
        let over = std::task::ready!(self.poll_late(cx, party, timeout));
        // It takes nothing, or gives next to nothing, on purpose or not.
        if over == Over::Rate || party == Party::Taker {
            self.site.report(OffenceKind::Timeout);
        }
        Poll::Ready(match (over, party) {
            (over, _) if self.down.is_done() && manner == Manner::Both => {
                (whole, if over == Over::Rate { Outcome::Refused } else { Outcome::Completed })
            }
            (Over::Deadline, Party::Backend) => (Left::Broken, Outcome::BackendTimeout),
            (Over::Deadline, Party::Taker | Party::Sender) | (Over::Rate, _) => (Left::Broken, Outcome::ClientAborted),
        })
    }

    /// Gives the client what has come of a response that breaks off.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<(Left, Outcome)> {
        let given = match self.client.poll_flush(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => self.deadline.poll_over(cx),
        };
        given.map(|()| (Left::Broken, Outcome::BackendFailed))
    }

    /// Whether content of the request could come from the client.
    fn is_sending(&self) -> bool {
        !self.up.is_done() && self.up.waits_for() == End::Source && !self.is_held
    }

    /// Whether nothing is asked of the client at the moment that would tell that it is gone.
    fn waits_for_backend(&self) -> bool {
        self.up.is_done() || self.up.waits_for() == End::Sink
    }

    /// Ready when that party has done nothing for so long, or the client sends too slowly.
    fn poll_late(&mut self, cx: &mut Context<'_>, party: Party, timeout: Duration) -> Poll<Over> {
        // What a backend takes of a part is progress too, and of the last ones the only one.
        let given = self.backend.as_ref().map_or(0, Exchanging::written);
        let moved = Moved { up: self.up.parts() + given, down: self.down.parts(), taken: self.client.taken() };
        let is_sending = self.is_sending();
        if self.progress.look(party, is_sending, moved) {
            self.tell();
            let http = &self.site.edge().http;
            if is_sending
                && self.has_rate
                && http.min_body_rate > 0
                && http.is_too_slow(self.up.bytes(), self.progress.sending(Instant::now()))
            {
                return Poll::Ready(Over::Rate);
            }
        }
        self.deadline.set(self.progress.deadline(timeout));
        self.deadline.poll_over(cx).map(|()| Over::Deadline)
    }

    /// The connection to the backend, if the exchange has left it where another may begin.
    pub(super) fn take_reusable(&mut self, left: Left) -> Option<Exchanging> {
        self.backend.take().filter(|_| left == Left::Whole)
    }

    /// Bytes that the client has taken, of this response and what was before it.
    pub(super) fn taken(&self) -> u64 {
        self.client.taken()
    }

    /// Whether the client has been given the head of the response.
    pub(super) fn has_answered(&self) -> bool {
        self.has_answered
    }
}

/// Sends the content of a response that is made here.
pub(super) async fn deliver<D: Downstream>(
    client: &mut D,
    body: &mut Bytes,
    timeout: Duration,
    deadline: &mut Deadline,
) -> Left {
    deadline.set(Instant::now() + timeout);
    poll_fn(|cx| {
        if !body.is_empty() {
            match client.poll_data(cx, body, true) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Left::Broken),
                Poll::Pending => return deadline.poll_over(cx).map(|()| Left::Broken),
            }
        }
        match client.poll_flush(cx) {
            Poll::Ready(Ok(())) if client.is_ended() => Poll::Ready(Left::Whole),
            Poll::Ready(Ok(())) => Poll::Ready(Left::Unread),
            Poll::Ready(Err(_)) => Poll::Ready(Left::Broken),
            Poll::Pending => deadline.poll_over(cx).map(|()| Left::Broken),
        }
    })
    .await
}
