//! A backend that is spoken to in HTTP/2: connections that many requests share, on the worker that made them.

mod backend;
#[cfg(test)]
mod tests;

use std::{
    future::{Future as _, poll_fn},
    ops::Deref,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use ::h2::{
    client::{Builder, Connection, SendRequest},
    ext::Protocol,
};
use ::http::{
    HeaderMap, HeaderName, Method, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use tokio::time::{Instant, timeout_at};

pub use self::backend::Backend;
use super::{h1::AGE_MAX, io::Io, pool::Open};
use crate::{
    http::{
        deadline::Deadline,
        h1::{HeadLimits, Target},
        h2::{
            FRAME_MAX, HEADER_TABLE, SEND_BUFFER, STREAM_WINDOW, broken,
            chunk::Chunk,
            guard::Guard,
            guarded::{Guarded, Outlet, Watch},
        },
        limits::{HttpLimits, Window},
        message::{Broken, Request},
        websocket,
    },
    net::memory::Charge,
};

/// Streams at a time on one connection, even if the backend takes more.
const STREAMS_MAX: u32 = 100;

/// A connection on which something was sent, and nothing has come for so long, gets no more requests.
const SILENCE: Duration = Duration::from_secs(5);

/// Streams given up that are remembered, and for how long: what the backend has on its way for them is passed over. Clients may
/// give up all streams of a connection several times before the backend hears of the first.
const RESET_STREAMS_MAX: usize = 8 * STREAMS_MAX as usize;
const RESET_MEMORY: Duration = Duration::from_secs(10);

/// A connection on which more streams were given up in [`RESETS_WINDOW`] gets no new ones for so long. Backends end one for that
/// (CVE-2023-44487), and with it the streams of clients that give up nothing.
pub(super) const RESETS_MAX: u32 = 100;
const RESETS_WINDOW: Duration = Duration::from_secs(10);

/// All streams may have their windows full: a client that does not take its response holds up nobody else's. In bytes.
const CONNECTION_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;

/// RFC 9113 §8.2.2, and what pseudo-fields say instead.
const NOT_SENT: [HeaderName; 7] = [
    header::HOST,
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// One connection. It ends when its last handle has been dropped and its last stream has ended.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: SendRequest<Chunk>,
    shared: Arc<Shared>,
    is_tls: bool,
    max_fields: usize,
    /// Which of the pool's backends it is connected to.
    place: usize,
    made_at: Instant,
}

/// Room for a stream of a connection, which nobody else takes.
#[derive(Debug)]
pub(super) struct Claim {
    handle: Handle,
    slot: Slot,
}

/// A stream among those of its connection, from when there is room for it to its end.
#[derive(Debug)]
struct Slot {
    shared: Arc<Shared>,
    /// What of a response may wait in it.
    charge: Charge,
}

/// What handles, streams and the connection itself know of each other.
#[derive(Debug)]
struct Shared {
    /// Its place among the backend's connections, unless that has been given to another one.
    open: Mutex<Option<Open>>,
    watch: Watch,
    is_closed: AtomicBool,
    /// Streams now, with those that are to be.
    active: AtomicUsize,
    unused_since: Mutex<Instant>,
    resets: Mutex<Resets>,
}

/// Streams that were given up.
#[derive(Debug)]
struct Resets {
    window: Window,
    exceeded_at: Option<Instant>,
}

impl Handle {
    /// Begins HTTP/2 on a connection, which is carried on by a task of its own; ready when the backend has sent its SETTINGS (RFC
    /// 9113 §3.4).
    pub(super) async fn open(io: Io, limits: &HttpLimits, open: Open) -> Result<Self, Broken> {
        let is_tls = matches!(io, Io::Tls(_));
        let heads = HeadLimits::of_responses(limits);
        let (io, watch) = Guarded::new(io, Guard::of_backends(), 0);
        let outlet = io.outlet();
        let handshake = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_MAX)
            .header_table_size(HEADER_TABLE)
            .max_header_list_size(u32::try_from(heads.head_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(0)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(RESET_STREAMS_MAX)
            .reset_stream_duration(RESET_MEMORY)
            // What comes for a stream that was forgotten is answered, and no reason to end those of other clients.
            .max_local_error_reset_streams(None)
            // What clients do not take is no fault of the backend's.
            .data_frame_budget(usize::MAX)
            .handshake(io);
        let (sender, mut connection) = handshake.await.map_err(|error| broken(&error))?;
        poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(_) => Poll::Ready(Err(Broken::Protocol)),
            Poll::Pending if watch.has_settings() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await?;
        let place = open.place();
        let shared = Arc::new(Shared {
            open: Mutex::new(Some(open)),
            watch,
            is_closed: false.into(),
            active: 0.into(),
            unused_since: Mutex::new(Instant::now()),
            resets: Mutex::new(Resets { window: Window::new(RESETS_MAX, RESETS_WINDOW), exceeded_at: None }),
        });
        tokio::spawn(drive(connection, outlet, Arc::clone(&shared), limits.write_timeout));
        Ok(Self { sender, shared, is_tls, max_fields: heads.fields, place, made_at: Instant::now() })
    }

    /// Which of the pool's backends it is connected to.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// Whether it takes no more requests: it is gone, or the backend has said GOAWAY.
    pub(super) fn is_closed(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.shared.is_closed.load(Relaxed) || matches!(self.sender.clone().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Whether the backend takes another stream now.
    pub(super) fn has_slot(&self) -> bool {
        let max = self.sender.current_max_send_streams().min(STREAMS_MAX as usize);
        self.shared.active.load(Relaxed) < max
    }

    /// Whether another stream is to be opened now, rather than another connection.
    pub(super) fn has_room(&self) -> bool {
        self.has_slot()
            && self.age() < AGE_MAX
            && !self.is_silent()
            && !lock(&self.shared.resets).is_exceeded(Instant::now())
    }

    /// How long ago it was made.
    pub(super) fn age(&self) -> Duration {
        self.made_at.elapsed()
    }

    /// Whether the backend has been told something, and has said nothing for too long: it may be gone without a word, or busy.
    fn is_silent(&self) -> bool {
        self.shared.active.load(Relaxed) > 0
            && self.shared.watch.unanswered_since().is_some_and(|since| since.elapsed() >= SILENCE)
    }

    /// Whether it has no stream, and none is to be.
    pub(super) fn is_unused(&self) -> bool {
        self.shared.active.load(Relaxed) == 0
    }

    /// Gives up a connection that is unused, and its place to another one. Its own task ends it.
    pub(super) fn close(self) -> Option<Open> {
        self.shared.close();
        lock(&self.shared.open).take()
    }

    /// Whether it has had no stream for so long, and is to be dropped.
    pub(super) fn close_if_unused(&self, now: Instant, timeout: Duration) -> bool {
        let since = *lock(&self.shared.unused_since);
        self.is_unused() && now.saturating_duration_since(since) >= timeout
    }

    /// Takes room for a stream, be there any or not.
    pub(super) fn claim(&self) -> Claim {
        Claim { handle: self.clone(), slot: Slot::new(&self.shared) }
    }

    fn head(&self, request: &Request) -> Result<::http::Request<()>, Broken> {
        let mut head = ::http::Request::new(());
        *head.version_mut() = Version::HTTP_2;
        *head.method_mut() = request.method.clone();
        *head.headers_mut() = headers(request);
        *head.uri_mut() = self.uri(request).ok_or(Broken::Protocol)?;
        if let Some(protocol) = &request.upgrade {
            if !self.sender.is_extended_connect_protocol_enabled() {
                return Err(Broken::Unsupported);
            }
            let protocol = protocol.to_str().map_err(|_| Broken::Protocol)?;
            *head.method_mut() = Method::CONNECT;
            head.extensions_mut().insert(Protocol::from(protocol));
        }
        Ok(head)
    }

    fn uri(&self, request: &Request) -> Option<Uri> {
        let authority = Authority::try_from(request.host.as_bytes())
            .or_else(|_| Authority::try_from(request.authority.to_string()))
            .ok()?;
        let path = match &request.target {
            Target::Origin(path) => path.clone(),
            Target::Asterisk => PathAndQuery::from_static("*"),
        };
        let scheme = if self.is_tls { Scheme::HTTPS } else { Scheme::HTTP };
        Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build().ok()
    }
}

impl Claim {
    /// Takes what the stream may cost from the daemon's memory; `false` when that has not so much left.
    pub(super) fn charge(&self) -> bool {
        self.slot.charge.resize(STREAM_WINDOW.into())
    }

    /// Opens the stream and sends the head of a request. Ready when the connection takes another stream, which is waited for for
    /// `patience`.
    ///
    /// # Errors
    /// When the connection takes no more, or the backend does not know extended CONNECT (RFC 8441 §3); nothing has been sent
    /// then.
    pub(super) async fn send(self, request: &Request, patience: Duration) -> Result<Backend, Broken> {
        let Self { mut handle, slot } = self;
        let deadline = Instant::now() + patience;
        let ready = timeout_at(deadline, poll_fn(|cx| handle.sender.poll_ready(cx))).await;
        ready.map_err(|_| Broken::Gone)?.map_err(|error| broken(&error))?;
        let head = handle.head(request)?;
        let before = slot.watch.transferred();
        let ends = request.content.is_empty() && request.upgrade.is_none();
        let (response, stream) = handle.sender.send_request(head, ends).map_err(|error| broken(&error))?;
        let backend = Backend::new(request, response, stream, handle.max_fields, slot, before);
        // Of the stream that was just made: whether the backend has room for it. If the connection fails meanwhile, the stream
        // tells whether the backend may have seen it.
        match timeout_at(deadline, poll_fn(|cx| handle.sender.poll_ready(cx))).await {
            Err(_) if !backend.has_sent() => Err(Broken::Gone),
            Ok(_) | Err(_) => Ok(backend),
        }
    }
}

fn headers(request: &Request) -> HeaderMap {
    let mut headers = request.headers.clone();
    for name in &NOT_SENT {
        headers.remove(name);
    }
    if request.upgrade.is_some() {
        // RFC 8441 §5.
        headers.remove(websocket::KEY);
        headers.remove(header::CONTENT_LENGTH);
    }
    headers
}

impl Slot {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.active.fetch_add(1, Relaxed);
        Self { shared: Arc::clone(shared), charge: Charge::default() }
    }
}

impl Deref for Slot {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.active.fetch_sub(1, Relaxed) == 1 {
            *lock(&self.unused_since) = Instant::now();
        }
    }
}

impl Shared {
    /// A stream was given up that the backend had not ended.
    fn count_reset(&self) {
        lock(&self.resets).count(Instant::now());
    }

    /// It gets no more requests.
    fn close(&self) {
        self.is_closed.store(true, Relaxed);
    }

    /// Bytes from and to the backend.
    fn transferred(&self) -> (u64, u64) {
        self.watch.transferred()
    }
}

impl Resets {
    fn count(&mut self, now: Instant) {
        if !self.window.admit(now) {
            self.exceeded_at = Some(now);
        }
    }

    fn is_exceeded(&self, now: Instant) -> bool {
        self.exceeded_at.is_some_and(|at| now.saturating_duration_since(at) < RESETS_WINDOW)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries a connection on to its end, which is also that of a backend that takes nothing for `write_timeout`.
async fn drive(
    mut connection: Connection<Guarded<Io>, Chunk>,
    outlet: Outlet<Io>,
    shared: Arc<Shared>,
    write_timeout: Duration,
) {
    outlet.hold();
    let mut deadline = Deadline::new(Instant::now());
    let failure = poll_fn(|cx| {
        if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(result.err().map(|error| error.to_string()));
        }
        if let Poll::Ready(Err(error)) = outlet.poll_flush(cx) {
            return Poll::Ready(Some(error.to_string()));
        }
        if shared.active.load(Relaxed) == 0 {
            outlet.rest();
        }
        let Some(since) = shared.watch.stalled_since() else { return Poll::Pending };
        deadline.set(since + write_timeout);
        deadline.poll_over(cx).map(|()| Some("it takes nothing".to_owned()))
    })
    .await;
    shared.is_closed.store(true, Relaxed);
    if let Some(reason) = failure {
        tracing::debug!(reason, "an HTTP/2 connection to a backend failed");
    }
}
