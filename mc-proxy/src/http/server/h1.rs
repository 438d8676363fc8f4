//! A connection of HTTP/1.1: one request after the other.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use ::http::Version;
use tokio::time::Instant;

use super::client::{Client, Next, request};
use crate::{
    conn::Outcome,
    firewall::OffenceKind,
    http::{
        authority::Authority,
        deadline::Deadline,
        error::{Asked, HttpError},
        exchange::{self, Left, Seen, exchange, redirect},
        h1::{HeadError, HeadLimits},
        message::Downstream as _,
        site::Site,
        transport::Transport,
    },
};

/// A client that has sent nothing for so long gets its buffers with its next request.
const REST: Duration = Duration::from_secs(1);

/// A client that goes on after the last response is not listened to any longer.
const LINGER: Duration = Duration::from_secs(1);

/// One that has content on its way which nobody wants needs more time to see the response. Behind that it meets a reset, which may
/// overtake it.
const LINGER_UNREAD: Duration = Duration::from_secs(5);

/// Nor for more bytes.
const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// How the wait for a request has ended.
enum Waited {
    For(Next),
    /// A part of a head had come, or none.
    Late(bool),
    Drained,
}

/// What becomes of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// They go to the route's backends.
    Proxy,
    /// They are sent to `https`.
    Redirect,
}

/// Serves a client until one of the two has had enough.
pub(super) async fn serve<S: Transport>(site: &Site, stream: S, begun: &[u8], service: Service) -> Outcome {
    let client = Client::new(stream, begun, HeadLimits::of_requests(&site.edge().http));
    let mut served = Served { site, client };
    run(site, &mut served.client, service).await
}

/// Tells what has come from the client, also when it is cut off.
struct Served<'a, S: Transport> {
    site: &'a Site,
    client: Client<S>,
}

impl<S: Transport> Drop for Served<'_, S> {
    fn drop(&mut self) {
        let (from_client, _) = self.client.transferred();
        self.site.shared.set_from_client(from_client);
    }
}

async fn run<S: Transport>(site: &Site, client: &mut Client<S>, service: Service) -> Outcome {
    let limits = &site.edge().http;
    let mut deadline = Deadline::new(Instant::now() + limits.keepalive_timeout);
    let mut drain = pin!(site.local.drain.begun());
    let mut requests = 0_u32;
    let mut linger = LINGER;
    let outcome = loop {
        let next = match wait(site, client, &mut deadline, drain.as_mut()).await {
            Waited::For(next) => next,
            Waited::Late(false) => break Outcome::Idle,
            Waited::Late(true) => {
                site.report(OffenceKind::Timeout);
                let now = Instant::now();
                let begun_at = now.checked_sub(limits.header_timeout).unwrap_or(now);
                refuse(site, client, HttpError::RequestTimeout, &mut deadline, begun_at).await;
                break Outcome::Closed;
            }
            Waited::Drained => break Outcome::Told,
        };
        let begun_at = Instant::now();
        let head = match next {
            Next::Request(head) => head,
            Next::End => break Outcome::Closed,
            Next::Failed => return Outcome::ClientReset,
            Next::Malformed(error) => {
                site.edge().http_counters.count_malformed(error);
                site.report(OffenceKind::Http);
                tracing::debug!(client = %site.shown_client(), reason = error.reason(), "a request was malformed");
                refuse(site, client, http_error(error), &mut deadline, begun_at).await;
                linger = LINGER_UNREAD;
                break Outcome::Closed;
            }
        };
        requests = requests.saturating_add(1);
        if (limits.max_requests > 0 && requests >= limits.max_requests) || site.local.drain.has_begun() {
            client.set_last();
        }
        // HTTP/1.0 may be without `Host`.
        let is_hostless = head.authority.is_none();
        let hostless = is_hostless.then(|| (Asked::of(&head.method, &head.headers), Seen::without_host(&head)));
        let by_name = || Authority::parse(site.server_name.as_ref()?.as_str().as_bytes()).ok();
        let left = match request(*head, by_name) {
            Some(request) if service == Service::Redirect => {
                redirect(site, client, &request, &mut deadline, begun_at).await
            }
            Some(mut request) => exchange(site, client, &mut request, &mut deadline, begun_at).await,
            // And without a name in the handshake.
            None => {
                let (asked, seen) = hostless.unwrap_or_else(|| (Asked::UNKNOWN, Seen::nothing(Version::HTTP_10)));
                exchange::refuse(site, client, HttpError::BadRequest, asked, seen, &mut deadline, begun_at).await
            }
        };
        match left {
            Left::Whole if client.goes_on() => {}
            Left::Whole => break Outcome::Closed,
            Left::Unread => {
                linger = LINGER_UNREAD;
                break Outcome::Closed;
            }
            Left::Broken => return Outcome::ClientReset,
        }
    };
    let mut left = LINGER_BYTES;
    deadline.set(Instant::now() + linger);
    poll_fn(|cx| match client.poll_close(cx, &mut left) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => deadline.poll_over(cx),
    })
    .await;
    outcome
}

/// Waits for the next head: for its first byte as long as a connection may idle, and from then on as long as a head may take.
async fn wait<S: Transport>(
    site: &Site,
    client: &mut Client<S>,
    deadline: &mut Deadline,
    mut drain: Pin<&mut impl Future<Output = ()>>,
) -> Waited {
    let limits = &site.edge().http;
    let mut has_begun = client.has_begun();
    let now = Instant::now();
    let idle_until = now + limits.keepalive_timeout;
    deadline.set(if has_begun { now + limits.header_timeout } else { idle_until.min(now + REST) });
    let mut has_rested = false;
    poll_fn(|cx| {
        if let Poll::Ready(next) = client.poll_next(cx) {
            return Poll::Ready(Waited::For(next));
        }
        if !has_begun && client.has_begun() {
            has_begun = true;
            deadline.set(Instant::now() + limits.header_timeout);
        }
        while deadline.poll_over(cx).is_ready() {
            if !has_begun && !std::mem::replace(&mut has_rested, true) {
                client.rest();
                deadline.set(idle_until);
                continue;
            }
            return Poll::Ready(Waited::Late(has_begun));
        }
        if !has_begun && drain.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Waited::Drained);
        }
        Poll::Pending
    })
    .await
}

/// Answers what is no request.
async fn refuse<S: Transport>(
    site: &Site,
    client: &mut Client<S>,
    error: HttpError,
    deadline: &mut Deadline,
    begun_at: Instant,
) {
    client.forget_request();
    client.set_last();
    let seen = Seen::nothing(Version::HTTP_11);
    exchange::refuse(site, client, error, Asked::UNKNOWN, seen, deadline, begun_at).await;
}

/// What a client is told of a malformed head.
fn http_error(error: HeadError) -> HttpError {
    HttpError::ALL.into_iter().find(|known| known.status() == error.status()).unwrap_or(HttpError::BadRequest)
}
