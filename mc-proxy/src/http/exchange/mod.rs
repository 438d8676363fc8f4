//! One request, from its head to its record:
//!
//! ```text
//! route      the table as it is now; the connection keeps its name, not its target
//! host       SNI and authority agree, or 421
//! fields     what ends here is removed, and policies judge what is left (403)
//! length     of the content, as far as it is told (413)
//! connect    upstream    a connection that is there, or a new one (502, 503, 504)
//! answer     flow        content goes up while the head of the response is waited for; once more if that is safe
//! content    flow        both ways, as fast as the slower end takes it
//! outcome    log         exactly one: counters, and a record
//! ```

mod flow;
mod log;
mod progress;
mod pump;

use std::sync::Arc;

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use bytes::Bytes;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::time::{Duration, Instant};

pub use self::log::Seen;
use self::{
    flow::{Failure, Flow},
    log::RequestLog,
};
use super::{
    access::Outcome,
    authority::agrees,
    deadline::Deadline,
    error::{Asked, HttpError},
    fields::{self, Forwarding, translate::join_cookies},
    h1::{HeadError, Target},
    message::{Broken, Content, Downstream, Request, Response},
    policy::Verdict,
    site::Site,
    upstream::{Backends, ConnectError, Terms, Wanted},
};
use crate::{firewall::OffenceKind, net::dial::DialError, telemetry::limit::LineLimit};

/// A backend that closes a connection which it found idle has done so when the request reaches it. One that dies later has seen
/// the request, and may have died of it.
const IDLE_CLOSE: Duration = Duration::from_secs(1);

/// More of them say nothing new.
static BACKEND_WARNINGS: LineLimit = LineLimit::per_second(10);

/// How an exchange leaves the client's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The response is whole, and the request has been read.
    Whole,
    /// The response is whole, and more of the request may come.
    Unread,
    /// The response is not whole: the client has to be told so by a reset.
    Broken,
}

/// Why there is no response of a backend.
struct Refused {
    error: HttpError,
    outcome: Outcome,
}

/// Serves one request. `deadline` is the connection's, or the stream's.
pub async fn exchange<D: Downstream>(
    site: &Site,
    client: &mut D,
    request: &mut Request,
    deadline: &mut Deadline,
    begun_at: Instant,
) -> Left {
    let random = random();
    let mut log = RequestLog::new(site, begun_at, random as u64, || Seen::request(request));
    let served = serve(site, client, request, deadline, &mut log, random).await;
    let (left, outcome) = match served {
        Ok((left, outcome)) => (left, outcome),
        Err(Refused { error, outcome }) => {
            let id = log.request_id.clone();
            let asked = Asked::of(&request.method, &request.headers);
            let answered = respond(site, client, error, asked, id.as_ref(), deadline).await;
            if outcome == Outcome::ClientAborted {
                // It was gone before, and has got nothing, whatever has been written.
                (answered.0, outcome)
            } else {
                let left = log.answered(error.status(), answered);
                (left, if left == Left::Broken { Outcome::ClientAborted } else { outcome })
            }
        }
    };
    log.finish(outcome);
    left
}

/// Answers what is no request, or none that can be served.
pub async fn refuse<D: Downstream>(
    site: &Site,
    client: &mut D,
    error: HttpError,
    asked: Asked,
    seen: Seen,
    deadline: &mut Deadline,
    begun_at: Instant,
) -> Left {
    let mut log = RequestLog::new(site, begun_at, random() as u64, || seen);
    let answered = respond(site, client, error, asked, None, deadline).await;
    let left = log.answered(error.status(), answered);
    log.finish(Outcome::Refused);
    left
}

/// Tells of what is no request, and gets no answer.
pub fn ignore(site: &Site, seen: Seen, begun_at: Instant) {
    RequestLog::new(site, begun_at, random() as u64, || seen).finish(Outcome::Refused);
}

/// Answers here; also gives the bytes of content of the answer.
async fn respond<D: Downstream>(
    site: &Site,
    client: &mut D,
    error: HttpError,
    asked: Asked,
    id: Option<&HeaderValue>,
    deadline: &mut Deadline,
) -> (Left, u64) {
    if error.closes() || site.local.drain.has_begun() {
        client.set_last();
    }
    let (head, mut body) = error.respond(asked, id).into_parts();
    let bytes = body.len() as u64;
    let content = if body.is_empty() { Content::None } else { Content::Length(bytes) };
    let response = Response { status: head.status, headers: head.headers, content };
    if client.respond(response).is_err() {
        return (Left::Broken, 0);
    }
    (flow::deliver(client, &mut body, site.edge().http.write_timeout, deadline).await, bytes)
}

/// Sends the client to the same place by `https`: for good, and with the same method and content if it has any (RFC 9110
/// §15.4.2, §15.4.9).
pub async fn redirect<D: Downstream>(
    site: &Site,
    client: &mut D,
    request: &Request,
    deadline: &mut Deadline,
    begun_at: Instant,
) -> Left {
    let Target::Origin(path) = &request.target else {
        let asked = Asked::of(&request.method, &request.headers);
        return refuse(site, client, HttpError::BadRequest, asked, Seen::request(request), deadline, begun_at).await;
    };
    let mut log = RequestLog::new(site, begun_at, random() as u64, || Seen::request(request));
    let is_safe = [Method::GET, Method::HEAD].contains(&request.method);
    let status = if is_safe { StatusCode::MOVED_PERMANENTLY } else { StatusCode::PERMANENT_REDIRECT };
    if !request.content.is_empty() {
        client.set_last();
    }
    // Of what has been parsed: the client's spelling may be what some client reads otherwise.
    let location = HeaderValue::try_from(format!("https://{}{path}", request.authority.host()));
    let headers = HeaderMap::from_iter(location.ok().map(|location| (header::LOCATION, location)));
    let left = match client.respond(Response { status, headers, content: Content::Length(0) }) {
        Ok(()) => flow::deliver(client, &mut Bytes::new(), site.edge().http.write_timeout, deadline).await,
        Err(_) => Left::Broken,
    };
    let left = log.answered(status, (left, 0));
    log.finish(if left == Left::Broken { Outcome::ClientAborted } else { Outcome::Completed });
    left
}

async fn serve<D: Downstream>(
    site: &Site,
    client: &mut D,
    request: &mut Request,
    deadline: &mut Deadline,
    log: &mut RequestLog<'_>,
    random: u128,
) -> Result<(Left, Outcome), Refused> {
    let limits = &site.edge().http;
    let refused = |error| Refused { error, outcome: Outcome::Refused };
    let Some(destination) = site.destination() else { return Err(refused(HttpError::Misdirected)) };
    log.route = log.is_wanted().then(|| Arc::clone(&destination.name));
    if !agrees(site.server_name.as_ref(), &request.authority) {
        return Err(refused(HttpError::Misdirected));
    }
    fields::strip_request(&mut request.headers, site.is_trusted);
    if let Verdict::Refuse(_) = destination.policies.judge(&request.headers) {
        site.report(OffenceKind::Policy);
        return Err(Refused { error: HttpError::Forbidden, outcome: Outcome::Policy });
    }
    if let Content::Length(length) = request.content
        && !limits.admits_body(length)
    {
        return Err(refused(HttpError::ContentTooLarge));
    }
    let forwarding = Forwarding {
        client: site.client,
        is_trusted: site.is_trusted,
        is_tls: site.tls.is_some(),
        host: &request.authority,
        random,
    };
    log.request_id = Some(forwarding.write(&mut request.headers, &site.written));
    if request.version == Version::HTTP_2 {
        join_cookies(&mut request.headers);
    }
    // The route passes TLS through by now, which another connection finds out.
    let Some(backends) = &destination.upstream else { return Err(refused(HttpError::Misdirected)) };
    let (flow, answer) = reach(site, client, backends, request, deadline, log, random).await?;
    finish(site, flow, answer, backends, request, log).await
}

/// Connects and waits for the head of the response, over another connection if the first one was no good and it is safe.
async fn reach<'a, D: Downstream>(
    site: &'a Site,
    client: &'a mut D,
    backends: &Arc<Backends>,
    request: &Request,
    deadline: &'a mut Deadline,
    log: &mut RequestLog<'_>,
    random: u128,
) -> Result<(Flow<'a, D>, Response), Refused> {
    let edge = site.edge();
    let own = site.own(backends);
    let wanted = Wanted {
        client: site.client,
        server_name: site.server_name.as_ref(),
        announced: site.announced.as_ref(),
        is_grpc: is_grpc(&request.headers),
        is_upgrade: request.upgrade.is_some(),
        own: own.as_ref(),
        is_fresh: false,
        terms: Terms {
            resolver: &edge.resolver,
            limits: &edge.http,
            connect_timeout: edge.proxy.connect_timeout,
            transparent_mark: edge.proxy.transparent_mark,
        },
    };
    let begun_at = log.begun_at();
    let mut flow = Flow::new(site, client, request, wanted.is_grpc, deadline, begun_at);
    let mut is_again = false;
    let mut is_fresh = false;
    loop {
        let wanted = Wanted { is_fresh, ..wanted };
        let connected = match flow.unless_gone(backends.connect(&wanted)).await {
            Some(Ok(connected)) => connected,
            Some(Err((error, backend))) => {
                warn(site, backend.map(|backend| backend as &dyn std::fmt::Display), &error);
                return Err(of_connecting(&error));
            }
            None => return Err(Refused { error: HttpError::BadGateway, outcome: Outcome::ClientAborted }),
        };
        let backend = backends.target().backends.get(connected.place);
        if log.is_wanted() {
            log.backend = backend.map(ToString::to_string);
        }
        log.connect = connected.connecting;
        let was_used = connected.connecting.is_none();
        if log.is_wanted() {
            log.queue = Some(begun_at.elapsed().saturating_sub(connected.connecting.unwrap_or_default()));
        }
        let sent = flow.unless_gone(connected.send(request, random, edge.proxy.connect_timeout)).await;
        let Some(sent) = sent else {
            return Err(Refused { error: HttpError::BadGateway, outcome: Outcome::ClientAborted });
        };
        let failure = match sent {
            Ok(exchanging) => match flow.answer(exchanging).await {
                Ok(response) => {
                    log.first_byte = Some(flow.answered_after());
                    return Ok((flow, response));
                }
                Err(failure) => failure,
            },
            Err(broken) => Failure::Backend { broken, has_sent: false, has_answered: false },
        };
        log.request_bytes = flow.sent_up();
        let is_safe = match failure {
            // It would be no different over another connection.
            Failure::Backend { broken: Broken::Unsupported, .. } | Failure::Backend { has_answered: true, .. } => false,
            // RFC 9113 §8.7: a refused stream has not been looked at.
            Failure::Backend { broken: Broken::Refused, .. } | Failure::Backend { has_sent: false, .. } => true,
            // RFC 9110 §9.2.2, RFC 9112 §9.3.1: the backend has closed a connection that it found idle.
            Failure::Backend { broken: Broken::Gone, .. } => {
                was_used && flow.sent_at().elapsed() < IDLE_CLOSE && is_idempotent(&request.method)
            }
            Failure::Backend { .. }
            | Failure::BackendLate
            | Failure::Client(_)
            | Failure::ClientLate { .. }
            | Failure::TooLong => false,
        };
        if is_safe && !is_again && !flow.has_begun() {
            edge.http_counters.count_retry();
            is_again = true;
            // A stream that was refused says nothing against its connection, nor against others.
            is_fresh = !matches!(failure, Failure::Backend { broken: Broken::Refused, .. });
            flow.retry();
            continue;
        }
        if let Failure::Backend { broken, .. } = failure {
            warn(site, backend.map(|backend| backend as &dyn std::fmt::Display), &broken);
        }
        return Err(of_failure(site, failure));
    }
}

/// Hands the response on.
async fn finish<D: Downstream>(
    site: &Site,
    mut flow: Flow<'_, D>,
    mut response: Response,
    backends: &Arc<Backends>,
    request: &Request,
    log: &mut RequestLog<'_>,
) -> Result<(Left, Outcome), Refused> {
    let taken = flow.taken();
    let is_tunnel = response.status == StatusCode::SWITCHING_PROTOCOLS;
    let protocol = if is_tunnel { request.upgrade.clone() } else { None };
    if is_tunnel {
        site.edge().http_counters.count_tunnel();
    }
    // The client would take what is no tunnel for one (RFC 8441 §5).
    if request.version == Version::HTTP_2 && request.upgrade.is_some() && !is_tunnel && response.status.is_success() {
        return Err(Refused { error: HttpError::BadGateway, outcome: Outcome::BackendFailed });
    }
    fields::forward_response(&mut response.headers, protocol);
    if site.local.drain.has_begun() {
        flow.set_last();
    }
    log.status = Some(response.status);
    let mut moved = Moved { flow, log, taken };
    let (left, outcome) = moved.flow.content(response).await;
    let has_got = moved.flow.has_answered() && (request.version == Version::HTTP_2 || moved.flow.taken() > taken);
    // Heads are not among what a stream of HTTP/2 has taken.
    if left == Left::Broken && !has_got {
        moved.log.status = None;
    }
    if let Some(exchanging) = moved.flow.take_reusable(left) {
        let own = site.own(backends);
        backends.release(exchanging, own.as_ref(), &site.edge().http);
    }
    Ok((left, outcome))
}

/// Tells how much has been moved, also when it is cut off.
struct Moved<'a, 'b, 'c, D: Downstream> {
    flow: Flow<'a, D>,
    log: &'b mut RequestLog<'c>,
    /// Bytes that the client had taken before.
    taken: u64,
}

impl<D: Downstream> Drop for Moved<'_, '_, '_, D> {
    fn drop(&mut self) {
        self.log.request_bytes = self.flow.sent_up();
        // What has come from the backend and not been taken, the client has not got.
        self.log.response_bytes = self.flow.sent_down().min(self.flow.taken() - self.taken);
    }
}

fn of_connecting(error: &ConnectError) -> Refused {
    match error {
        ConnectError::Full | ConnectError::Memory => {
            Refused { error: HttpError::Unavailable, outcome: Outcome::Overload }
        }
        ConnectError::Dial(DialError::Timeout(_)) => {
            Refused { error: HttpError::GatewayTimeout, outcome: Outcome::BackendTimeout }
        }
        ConnectError::None
        | ConnectError::OtherFamily
        | ConnectError::Dial(DialError::Resolve(_) | DialError::Connect(_) | DialError::Transparent(_))
        | ConnectError::Tls(_)
        | ConnectError::Http2 => Refused { error: HttpError::BadGateway, outcome: Outcome::BackendUnreachable },
    }
}

fn of_failure(site: &Site, failure: Failure) -> Refused {
    match failure {
        Failure::Backend { .. } => Refused { error: HttpError::BadGateway, outcome: Outcome::BackendFailed },
        Failure::BackendLate => Refused { error: HttpError::GatewayTimeout, outcome: Outcome::BackendTimeout },
        Failure::ClientLate { is_offence } => {
            if is_offence {
                site.report(OffenceKind::Timeout);
            }
            Refused { error: HttpError::RequestTimeout, outcome: Outcome::Refused }
        }
        Failure::TooLong => Refused { error: HttpError::ContentTooLarge, outcome: Outcome::Refused },
        Failure::Client(Broken::Malformed(error)) => {
            malformed(site, error);
            Refused { error: HttpError::BadRequest, outcome: Outcome::Refused }
        }
        // It does not hear it, or only by the end of the connection.
        Failure::Client(Broken::Gone | Broken::Reset | Broken::Refused | Broken::Unsupported | Broken::Protocol) => {
            Refused { error: HttpError::BadRequest, outcome: Outcome::ClientAborted }
        }
    }
}

/// Content of a request is none.
fn malformed(site: &Site, error: HeadError) {
    site.edge().http_counters.count_malformed(error);
    site.report(OffenceKind::Http);
}

/// Tells the operator that a backend is down, without a line for each of the requests that want it.
fn warn(site: &Site, backend: Option<&dyn std::fmt::Display>, error: &dyn std::error::Error) {
    if let Some(suppressed) = BACKEND_WARNINGS.admit(Instant::now()) {
        tracing::warn!(
            listener = %site.listening.addr,
            sni = site.server_name.as_ref().map(tracing::field::display),
            backend = backend.map(tracing::field::display),
            %error,
            suppressed,
            "dial failed"
        );
    }
}

/// gRPC proper; gRPC-Web is made for HTTP/1.1.
fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let rest =
        value.get(16..).filter(|_| value.get(..16).is_some_and(|name| name.eq_ignore_ascii_case(b"application/grpc")));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// RFC 9110 §9.2.2.
fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS, Method::TRACE].contains(method)
}

/// For the name of a request, which nobody has to guess.
fn random() -> u128 {
    thread_local! {
        /// Random bytes that have not been used yet: a system call for 64 requests.
        static STOCK: std::cell::RefCell<(Vec<u8>, usize)> = const { std::cell::RefCell::new((Vec::new(), 0)) };
    }
    STOCK.with_borrow_mut(|(stock, used)| {
        if stock.len() < *used + 16 {
            stock.resize(1024, 0);
            *used = 0;
            // Only a kernel that is still starting has none; nothing but the uniqueness of names depends on it.
            if let Err(error) = getrandom(stock.as_mut_slice(), GetRandomFlags::NONBLOCK) {
                tracing::debug!(%error, "no random bytes for the ids of requests");
            }
        }
        let bytes = stock.get(*used..*used + 16).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        *used += 16;
        u128::from_be_bytes(bytes)
    })
}
