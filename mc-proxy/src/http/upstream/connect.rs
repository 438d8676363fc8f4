//! New connections to backends.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use tokio::time::{Duration, Instant, timeout_at};

use super::{Backends, Kind, Wanted, h1, h2, io::Io, pool::Idle, tls::TlsError};
use crate::{
    desired::{BackendProtocol, Target},
    http::h1::HeadLimits,
    net::{
        addr::BackendAddr,
        dial::{Dial, DialError, dial},
        transparent::TransparentError,
    },
};

/// A connection of HTTP/2 that was made so recently is as good as a new one: requests whose connection has failed share the next.
pub(super) const RECENT: Duration = Duration::from_secs(1);

/// Why there is no connection to a backend.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The route has none.
    #[error("the route has no backend")]
    None,
    /// Transparent mode, and the backend is of another address family than the client.
    #[error("the backend is of another address family than the client")]
    OtherFamily,
    /// As many connections as there may be.
    #[error("the backend has as many connections as max_backend_connections allows")]
    Full,
    /// The daemon has no memory left for what its response may take.
    #[error("proxy.memory_limit is used up")]
    Memory,
    /// It cannot be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// TLS with it failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// HTTP/2 with it failed.
    #[error("it does not speak HTTP/2")]
    Http2,
}

/// What may be spoken for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// What the backend chooses by ALPN.
    Either,
}

impl Spoken {
    /// By the route's `backend_protocol`.
    pub(super) fn of(target: &Target, wanted: &Wanted<'_>) -> Self {
        match target.backend_protocol {
            BackendProtocol::Http1 => Self::Http1,
            BackendProtocol::H2 => Self::Http2,
            BackendProtocol::Auto if wanted.is_grpc => Self::Http2,
            // Every HTTP/1.1 server can be asked for an upgrade; of HTTP/2 servers few know extended CONNECT.
            BackendProtocol::Auto if wanted.is_upgrade || !target.backend_tls => Self::Http1,
            BackendProtocol::Auto => Self::Either,
        }
    }

    /// A connection that is there already.
    pub(super) fn waiting(self, idle: &Idle, place: usize, wanted: &Wanted<'_>) -> Option<Kind> {
        let limits = wanted.terms.limits;
        if wanted.is_fresh {
            // Older ones may be as dead as the one that has failed.
            return if self == Self::Http1 { None } else { idle.take_h2(place, RECENT).map(Kind::H2) };
        }
        let own = if self == Self::Http1 { None } else { idle.take_h2(place, Duration::MAX).map(Kind::H2) };
        // Workers that took a place from each other would make a connection for each request.
        let own = own.or_else(|| {
            if idle.is_full(place, limits.max_backend_connections) { self.shared(idle, place) } else { None }
        });
        own.or_else(|| {
            if self == Self::Http2 {
                return None;
            }
            idle.take_h1(place, limits.pool_idle_timeout).map(|found| Kind::H1(Box::new(found)))
        })
    }

    /// One that any worker has, for when there can be no more connections.
    pub(super) fn shared(self, idle: &Idle, place: usize) -> Option<Kind> {
        if self == Self::Http1 { None } else { idle.share_h2(place).map(Kind::H2) }
    }

    fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http1 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
            Self::Either => &[b"h2", b"http/1.1"],
        }
    }
}

impl Backends {
    /// Makes a connection, or waits for one that is being made and can be shared.
    pub(super) async fn make(
        &self,
        idle: &Arc<Idle>,
        place: usize,
        backend: &BackendAddr,
        spoken: Spoken,
        wanted: &Wanted<'_>,
    ) -> Result<Kind, ConnectError> {
        let deadline = Instant::now() + wanted.terms.connect_timeout;
        let gate = idle.gate(place);
        if spoken == Spoken::Http1 || (spoken == Spoken::Either && gate.is_http1.load(Relaxed)) {
            return self.dial(idle, place, backend, spoken, wanted, deadline).await;
        }
        let late = |_| DialError::Timeout(wanted.terms.connect_timeout);
        let made = timeout_at(deadline, gate.making.lock()).await.map_err(late)?;
        if spoken == Spoken::Either && gate.is_http1.load(Relaxed) {
            // Nobody else's connection can be shared: all who have waited go on at once.
            drop(made);
            return self.dial(idle, place, backend, spoken, wanted, deadline).await;
        }
        if let Some(kind) = spoken.waiting(idle, place, wanted) {
            return Ok(kind);
        }
        let kind = self.dial(idle, place, backend, spoken, wanted, deadline).await?;
        gate.is_http1.store(matches!(kind, Kind::H1(_)), Relaxed);
        drop(made);
        Ok(kind)
    }

    async fn dial(
        &self,
        idle: &Arc<Idle>,
        place: usize,
        backend: &BackendAddr,
        spoken: Spoken,
        wanted: &Wanted<'_>,
        deadline: Instant,
    ) -> Result<Kind, ConnectError> {
        let terms = wanted.terms;
        let max = terms.limits.max_backend_connections;
        // One that nobody uses makes room.
        let open = idle.open(place, max).or_else(|| idle.evict(place)).ok_or(ConnectError::Full)?;
        let source = self.target.transparent.then_some(wanted.client);
        let announced = self.target.send_proxy.zip(wanted.announced);
        let first = announced.map(|(version, announced)| announced.header(version)).unwrap_or_default();
        let attempt = Dial {
            backend,
            first: &first,
            source,
            mark: source.map(|_| terms.transparent_mark),
            timeout: deadline.saturating_duration_since(Instant::now()),
        };
        let mut socket = match dial(&attempt, terms.resolver).await {
            // A client has several connections to a backend, and one port: the others come from its address alone.
            Err(DialError::Transparent(TransparentError::InUse(client))) => {
                let source = Some(client.without_port());
                dial(&Dial { source, ..attempt }, terms.resolver).await?
            }
            dialled => dialled?,
        };
        let late = || DialError::Timeout(terms.connect_timeout);
        let (io, is_h2) = if self.target.backend_tls {
            socket.register_both().map_err(DialError::Connect)?;
            let handshake = self.tls.connect(socket, backend, wanted.server_name, spoken.alpn());
            let stream = timeout_at(deadline, handshake).await.map_err(|_| late())??;
            let is_h2 = match (spoken, stream.get_ref().1.alpn_protocol()) {
                (_, Some(b"h2")) => true,
                // Told by the configuration: a backend without ALPN may speak it all the same.
                (Spoken::Http2, None) => true,
                (Spoken::Http2, Some(_)) => return Err(ConnectError::Http2),
                (Spoken::Http1 | Spoken::Either, _) => false,
            };
            (Io::Tls(Box::new(stream)), is_h2)
        } else {
            (Io::Plain(socket), spoken == Spoken::Http2)
        };
        if is_h2 {
            let handle = timeout_at(deadline, h2::Handle::open(io, terms.limits, open)).await.map_err(|_| late())?;
            let handle = handle.map_err(|_| ConnectError::Http2)?;
            if !handle.has_room() {
                // It takes no streams at all.
                return Err(ConnectError::Full);
            }
            let claim = handle.claim();
            idle.keep_h2(handle);
            Ok(Kind::H2(claim))
        } else {
            Ok(Kind::H1(Box::new(h1::Backend::new(io, HeadLimits::of_responses(terms.limits), open))))
        }
    }
}
