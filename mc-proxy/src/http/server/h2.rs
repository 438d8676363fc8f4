//! A connection of HTTP/2: its streams, each served by a task of its own, and when it is to end.
//!
//! ```text
//! preface    with the client's SETTINGS, as long as a head may take
//! serving    streams come and go; until the client is gone, quiet for too long, or has had what it may, or a drain begins
//! leaving    GOAWAY without an error; the streams that are there are served (RFC 9113 §6.8)
//! ending     GOAWAY and the end of the connection, whatever is still there
//! ```

mod request;
mod serve;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use ::h2::{
    Reason, RecvStream,
    server::{Builder, Connection as H2, SendResponse},
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use self::serve::serve_stream;
use crate::{
    conn::Outcome,
    firewall::OffenceKind,
    http::{
        access,
        deadline::Deadline,
        h2::{
            FRAME_MAX, HEADER_TABLE, SEND_BUFFER, STREAM_WINDOW, WINDOW_MAX,
            chunk::Chunk,
            guard::{Guard, Violation},
            guarded::{Guarded, Outlet, Watch},
        },
        limits::HttpLimits,
        site::Site,
        transport::Transport,
    },
    net::memory::Charge,
    tls::TlsStream,
};

/// What a stream is charged of the daemon's memory, in bytes: what may wait in it, both ways.
const STREAM_CHARGE: u64 = SEND_BUFFER as u64 + STREAM_WINDOW as u64;

/// A client whose connection ends hears of it, and what it has sent meanwhile is served, as long as a packet may need.
const GRACE: Duration = Duration::from_secs(5);

/// Resets that the crate remembers, so that what comes late for them is not taken for a mistake: for so long, and so many for each
/// stream that there may be at a time.
const RESET_MEMORY: Duration = Duration::from_secs(10);
const RESETS_PER_STREAM: u32 = 4;

/// What short frames of DATA may cost the crate before their streams get round to them, in bytes: 250 for each, less its payload.
/// Beyond that the connection is ended. A stream that cannot hand its content on [gathers](crate::http::message::Source::gather) it.
const DATA_BUDGET: usize = 4 * 1024 * 1024;

/// A client that does not hear that it is to go is not listened to any longer.
const LINGER: Duration = Duration::from_secs(1);

/// Nor for more bytes.
const LINGER_BYTES: usize = 256 * 1024;

/// Serves a client until one of the two has had enough.
pub(super) async fn serve(site: Site, stream: TlsStream) -> Outcome {
    Box::pin(serve_over(Arc::new(site), stream)).await
}

async fn serve_over<S: Transport>(site: Arc<Site>, stream: S) -> Outcome {
    let limits = &site.edge().http;
    let (stream, watch) = Guarded::new(stream, Guard::of_clients(limits), LINGER_BYTES);
    let outlet = stream.outlet();
    let begun_at = Instant::now();
    let _counted = Counted { site: Arc::clone(&site), watch: watch.clone() };
    match timeout(limits.header_timeout, builder(limits).handshake(stream)).await {
        Ok(Ok(h2)) => Connection::new(Arc::clone(&site), h2, outlet, watch.clone(), begun_at).run().await,
        Ok(Err(error)) if error.is_io() => Outcome::ClientReset,
        Ok(Err(error)) => {
            offend(&site, &error);
            Outcome::Closed
        }
        Err(_) => {
            site.report(OffenceKind::Timeout);
            Outcome::Idle
        }
    }
}

/// Tells what has come from the client, also when it is cut off.
struct Counted {
    site: Arc<Site>,
    watch: Watch,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let (from_client, _) = self.watch.transferred();
        self.site.shared.set_from_client(from_client);
    }
}

/// The [`Guard`] counts in windows; the crate has limits of its own within one read, for all of a connection, and for the
/// frames of a field block.
fn builder(limits: &HttpLimits) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        // All streams may have their windows full: one whose backend takes nothing does not hold up the others.
        .initial_connection_window_size(limits.max_concurrent_streams.saturating_mul(STREAM_WINDOW).min(WINDOW_MAX))
        .max_frame_size(FRAME_MAX)
        .header_table_size(HEADER_TABLE)
        .max_header_list_size(limits.max_head_bytes)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_send_buffer_size(SEND_BUFFER)
        .reset_stream_duration(RESET_MEMORY)
        .data_frame_budget(DATA_BUDGET)
        .max_concurrent_reset_streams(limits.max_concurrent_streams.saturating_mul(RESETS_PER_STREAM) as usize)
        .max_pending_accept_reset_streams(limits.max_resets as usize)
        .max_local_error_reset_streams(Some(limits.max_resets.saturating_mul(10) as usize))
        .enable_connect_protocol();
    builder
}

struct Connection<S: Transport> {
    site: Arc<Site>,
    h2: H2<Guarded<S>, Chunk>,
    outlet: Outlet<S>,
    watch: Watch,
    tasks: JoinSet<()>,
    deadline: Deadline,
    begun_at: Instant,
    stage: Stage,
    /// Since when there has been no stream.
    idle_since: Option<Instant>,
    requests: u32,
    /// Of them, those that came after the first GOAWAY.
    late_requests: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Serving,
    Leaving(Outcome),
    Ending(Outcome, Instant),
}

/// Why a deadline is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Late {
    /// SETTINGS, or a field block.
    Head,
    /// It takes nothing.
    Stalled,
    /// There is no stream.
    Idle,
    /// It does not go.
    End,
}

impl<S: Transport> Connection<S> {
    fn new(site: Arc<Site>, h2: H2<Guarded<S>, Chunk>, outlet: Outlet<S>, watch: Watch, begun_at: Instant) -> Self {
        outlet.hold();
        Self {
            site,
            h2,
            outlet,
            watch,
            tasks: JoinSet::new(),
            deadline: Deadline::new(begun_at),
            begun_at,
            stage: Stage::Serving,
            idle_since: Some(begun_at),
            requests: 0,
            late_requests: 0,
        }
    }

    async fn run(mut self) -> Outcome {
        let local = Arc::clone(&self.site.local);
        let mut drain = pin!(local.drain.begun());
        let outcome = poll_fn(|cx| self.poll(cx, drain.as_mut())).await;
        let Self { h2, outlet, mut tasks, .. } = self;
        // Its streams hear that it is gone, and tell what became of them.
        drop((h2, outlet));
        let _ = timeout(LINGER, async { while tasks.join_next().await.is_some() {} }).await;
        outcome
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut drain: Pin<&mut impl Future<Output = ()>>) -> Poll<Outcome> {
        loop {
            if let Poll::Ready(outcome) = self.poll_streams(cx) {
                return Poll::Ready(outcome);
            }
            let is_flushed = match self.outlet.poll_flush(cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(self.outcome(Outcome::ClientReset)),
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            while let Poll::Ready(Some(_)) = self.tasks.poll_join_next(cx) {}
            // Streams end before the client has taken all of them.
            if !self.tasks.is_empty() || !is_flushed {
                self.idle_since = None;
            } else if self.idle_since.is_none() {
                self.idle_since = Some(Instant::now());
                self.outlet.rest();
            }
            let before = self.stage;
            if let Some(violation) = self.watch.violation()
                && !matches!(self.stage, Stage::Ending(..))
            {
                tracing::debug!(client = %self.site.shown_client(), reason = %violation, "HTTP/2 was abused");
                match violation {
                    Violation::Preface => {
                        self.site.report(OffenceKind::Http);
                        self.end(Outcome::Closed, Reason::PROTOCOL_ERROR);
                    }
                    Violation::Resets
                    | Violation::ControlFrames
                    | Violation::Continuations
                    | Violation::SmallFrames => self.abuse(),
                }
            }
            if self.stage == Stage::Serving && drain.as_mut().poll(cx).is_ready() {
                let is_idle = self.tasks.is_empty();
                self.leave(if is_idle { Outcome::Told } else { Outcome::Closed });
            }
            if self.stage == before {
                let late = ready!(self.poll_late(cx));
                if let Some(outcome) = self.late(late) {
                    return Poll::Ready(outcome);
                }
            }
            // Something is to be said.
        }
    }

    /// Reads and writes what can be, and begins what has come; ready at the end of the connection.
    fn poll_streams(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            match ready!(self.h2.poll_accept(cx)) {
                Some(Ok((request, respond))) => self.begin(request, respond),
                Some(Err(error)) => {
                    offend(&self.site, &error);
                    return Poll::Ready(self.outcome(if error.is_io() {
                        Outcome::ClientReset
                    } else {
                        Outcome::Closed
                    }));
                }
                None => return Poll::Ready(self.outcome(Outcome::Closed)),
            }
        }
    }

    fn begin(&mut self, request: ::http::Request<RecvStream>, mut respond: SendResponse<Chunk>) {
        let limits = &self.site.edge().http;
        let (max_requests, max_late) = (limits.max_requests, limits.max_concurrent_streams);
        self.requests = self.requests.saturating_add(1);
        match self.stage {
            Stage::Serving if max_requests > 0 && self.requests >= max_requests => self.leave(Outcome::Closed),
            Stage::Serving => {}
            Stage::Leaving(_) => {
                // It may have sent them before it was told.
                self.late_requests += 1;
                if self.late_requests > max_late {
                    self.abuse();
                }
            }
            Stage::Ending(..) => return,
        }
        let is_crowded = self.tasks.len() >= 2 * max_late as usize;
        let Some(charge) = Charge::take(STREAM_CHARGE).filter(|_| !is_crowded) else {
            self.site.edge().http_counters.count(None, access::Outcome::Overload);
            respond.send_reset(Reason::REFUSED_STREAM);
            return;
        };
        let site = Arc::clone(&self.site);
        self.tasks.spawn(async move {
            serve_stream(&site, request, respond).await;
            drop(charge);
        });
    }

    /// The first GOAWAY; `outcome` is what the connection will have come to.
    fn leave(&mut self, outcome: Outcome) {
        self.stage = Stage::Leaving(outcome);
        self.h2.graceful_shutdown();
        if self.tasks.is_empty() {
            self.idle_since = Some(Instant::now());
        }
    }

    /// The last one.
    fn end(&mut self, outcome: Outcome, reason: Reason) {
        self.stage = Stage::Ending(outcome, Instant::now() + LINGER);
        self.h2.abrupt_shutdown(reason);
    }

    fn abuse(&mut self) {
        report_abuse(&self.site);
        self.end(Outcome::Closed, Reason::ENHANCE_YOUR_CALM);
    }

    fn outcome(&self, otherwise: Outcome) -> Outcome {
        match self.stage {
            Stage::Serving => otherwise,
            Stage::Leaving(outcome) | Stage::Ending(outcome, _) => outcome,
        }
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Late> {
        let limits = &self.site.edge().http;
        let head = if self.watch.has_settings() { self.watch.block_since() } else { Some(self.begun_at) };
        let stalled = self.watch.stalled_since();
        let until = match self.stage {
            Stage::Serving => [
                head.map(|since| (since + limits.header_timeout, Late::Head)),
                stalled.map(|since| (since + limits.write_timeout, Late::Stalled)),
                self.idle_since.map(|since| (since + limits.keepalive_timeout, Late::Idle)),
            ],
            Stage::Leaving(_) => [
                head.map(|since| (since + limits.header_timeout, Late::Head)),
                stalled.map(|since| (since + limits.write_timeout, Late::Stalled)),
                self.idle_since.map(|since| (since + GRACE, Late::Idle)),
            ],
            Stage::Ending(_, at) => [Some((at, Late::End)), None, None],
        };
        let Some((at, late)) = until.into_iter().flatten().min_by_key(|(at, _)| *at) else { return Poll::Pending };
        self.deadline.set(at);
        self.deadline.poll_over(cx).map(|()| late)
    }

    /// What follows from it; an outcome if nothing does.
    fn late(&mut self, late: Late) -> Option<Outcome> {
        match (late, self.stage) {
            (Late::Head, _) => {
                self.site.report(OffenceKind::Timeout);
                self.end(Outcome::Closed, Reason::PROTOCOL_ERROR);
            }
            (Late::Idle, Stage::Serving) => self.leave(Outcome::Idle),
            // It has been told once.
            (Late::Idle, Stage::Leaving(outcome) | Stage::Ending(outcome, _)) => self.end(outcome, Reason::NO_ERROR),
            (Late::Stalled, _) => {
                self.site.report(OffenceKind::Timeout);
                return Some(Outcome::ClientReset);
            }
            (Late::End, _) => return Some(self.outcome(Outcome::Closed)),
        }
        None
    }
}

/// An error of the connection that the client has made.
fn offend(site: &Site, error: &::h2::Error) {
    if !error.is_library() {
        return;
    }
    if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
        report_abuse(site);
    } else {
        site.report(OffenceKind::Http);
    }
}

/// A connection is ended for what it costs.
fn report_abuse(site: &Site) {
    site.edge().http_counters.count_abuse();
    site.report(OffenceKind::Http);
}
