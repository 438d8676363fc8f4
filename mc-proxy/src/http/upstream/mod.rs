//! The backends of a route: connections to them, and what is spoken over those.

pub mod connect;
pub mod h1;
pub mod h2;
pub mod io;
pub mod pool;
pub mod tls;

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ::http::HeaderMap;
use bytes::Bytes;
use tokio::time::Instant;

pub use self::connect::ConnectError;
use self::{connect::Spoken, pool::Idle, tls::ClientTls};
use super::{
    limits::HttpLimits,
    message::{Answer, Broken, Part, Request, Sink, Source, Upstream},
};
use crate::{
    conn::Announced,
    desired::Target,
    net::{addr::BackendAddr, addr::ClientAddr, resolve::Resolver, rotation::Rotation, transparent},
    tls::{ServerName, certs::Roots},
};

/// The backends of one route, with their connections.
#[derive(Debug)]
pub struct Backends {
    target: Target,
    tls: ClientTls,
    idle: Arc<Idle>,
    rotation: Rotation,
}

/// What a connection is wanted for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Whose request it is, for routes that show it to the backend.
    pub client: ClientAddr,
    /// What the client asked for in the handshake.
    pub server_name: Option<&'a ServerName>,
    /// What the PROXY header of a new connection tells, on routes that send one.
    pub announced: Option<&'a Announced>,
    /// gRPC needs HTTP/2 (its trailers and its streams).
    pub is_grpc: bool,
    /// An upgrade is asked for.
    pub is_upgrade: bool,
    /// Where the connections of this client alone are kept, on routes whose backends are told of the client.
    pub own: Option<&'a Arc<Idle>>,
    /// Another one has failed: no connection that was made before. A stream that was refused has not failed with its connection.
    pub is_fresh: bool,
    /// Deadlines and limits.
    pub terms: Terms<'a>,
}

/// What holds for all connections to backends.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Finds backends that have names.
    pub resolver: &'a Resolver,
    /// Of heads, and of the pools.
    pub limits: &'a HttpLimits,
    /// For the connection, with its name's resolution and its TLS.
    pub connect_timeout: Duration,
    /// Of packets that carry a client's address.
    pub transparent_mark: u32,
}

/// A connection that takes a request.
#[derive(Debug)]
pub struct Connected {
    kind: Kind,
    /// Where its backend is in [`Target::backends`].
    pub place: usize,
    /// How long it took to make; none for one that was there.
    pub connecting: Option<Duration>,
}

#[derive(Debug)]
enum Kind {
    H1(Box<h1::Backend>),
    H2(h2::Claim),
}

/// A connection, or a stream of one, that has a request.
#[derive(Debug)]
pub enum Exchanging {
    /// HTTP/1.1.
    H1(Box<h1::Backend>),
    /// HTTP/2.
    H2(Box<h2::Backend>),
}

impl Backends {
    /// Those of a target. `hostname`: of its route, if that is for one alone. `authorities`: what is in the file that its
    /// `backend_ca` names. Blocks when the system's are needed and have not been read yet.
    pub fn new(target: &Target, hostname: Option<&ServerName>, authorities: Option<Roots>) -> Arc<Self> {
        let idle = Idle::new(target.backends.len());
        let tls = ClientTls::of(target, hostname, authorities);
        Arc::new(Self { target: target.clone(), tls, idle, rotation: Rotation::default() })
    }

    /// Whether connections to them are what those of `target` would be, on the same route and with these authorities.
    pub fn is_of(&self, target: &Target, authorities: Option<&Roots>) -> bool {
        let Target { backends, backend_tls, backend_ca, backend_server_name, backend_insecure, .. } = &self.target;
        let Target { backend_protocol, send_proxy, transparent, .. } = &self.target;
        *backends == target.backends
            && *backend_tls == target.backend_tls
            && *backend_ca == target.backend_ca
            && *backend_server_name == target.backend_server_name
            && *backend_insecure == target.backend_insecure
            && *backend_protocol == target.backend_protocol
            && *send_proxy == target.send_proxy
            && *transparent == target.transparent
            && self.tls.is_of(authorities)
    }

    /// The target.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether the backend is told of the client, or was verified for what the client asked for, in a way that holds for the
    /// whole connection, so that nobody else may use it.
    pub fn is_clients_own(&self) -> bool {
        let is_for_name = self.target.backend_tls && self.tls.is_clients_name();
        self.target.transparent || self.target.send_proxy.is_some() || is_for_name
    }

    /// Where a client keeps connections that are its own.
    pub fn own(&self) -> Arc<Idle> {
        self.idle.of_client()
    }

    /// A connection to one of the backends: one that is there, or a new one. They are tried in their order from a start that
    /// rotates.
    ///
    /// # Errors
    /// The last one's, when none can be reached.
    pub async fn connect(&self, wanted: &Wanted<'_>) -> Result<Connected, (ConnectError, Option<&BackendAddr>)> {
        let idle = wanted.own.unwrap_or(&self.idle);
        let count = self.target.backends.len();
        let start = self.rotation.next(count);
        let mut last = (ConnectError::None, None);
        // A request does not wait for each of many that are down.
        let give_up_at = Instant::now() + 2 * wanted.terms.connect_timeout;
        for place in (0..count).map(|offset| (start + offset) % count) {
            let Some(backend) = self.target.backends.get(place) else { continue };
            if self.target.transparent && !transparent::is_possible(wanted.client, backend) {
                last = (ConnectError::OtherFamily, Some(backend));
                continue;
            }
            let spoken = Spoken::of(&self.target, wanted);
            let connected = if let Some(kind) = spoken.waiting(idle, place, wanted) {
                Ok(Connected { kind, place, connecting: None })
            } else {
                let begun = Instant::now();
                // Apart: what a connection takes to be made, the many requests that find one need not have room for.
                match Box::pin(self.make(idle, place, backend, spoken, wanted)).await {
                    Ok(kind) => Ok(Connected { kind, place, connecting: Some(begun.elapsed()) }),
                    Err(ConnectError::Full) => {
                        let shared = spoken.shared(idle, place).ok_or(ConnectError::Full);
                        shared.map(|kind| Connected { kind, place, connecting: None })
                    }
                    Err(error) => Err(error),
                }
            };
            match connected {
                Ok(connected) if connected.kind.charge() => return Ok(connected),
                // With another backend it would cost as much.
                Ok(_) => return Err((ConnectError::Memory, None)),
                Err(error) => last = (error, Some(backend)),
            }
            if Instant::now() >= give_up_at {
                break;
            }
        }
        Err(last)
    }

    /// Keeps a connection whose exchange has ended, if it can be used again.
    pub fn release(&self, exchanging: Exchanging, own: Option<&Arc<Idle>>, limits: &HttpLimits) {
        match exchanging {
            Exchanging::H1(mut backend) => {
                if backend.is_reusable() {
                    own.unwrap_or(&self.idle).keep_h1(*backend, limits.pool_max_idle as usize);
                } else {
                    drop(backend.close());
                }
            }
            Exchanging::H2(_) => {}
        }
    }
}

impl Kind {
    /// Takes what a response may need beyond what is charged as it comes; `false` when there is no memory left for it.
    fn charge(&self) -> bool {
        match self {
            Self::H1(_) => true,
            Self::H2(claim) => claim.charge(),
        }
    }
}

impl Connected {
    /// Begins a request; an HTTP/1.1 connection sends it with the next flush, one of HTTP/2 when it takes another stream, within
    /// `patience`.
    ///
    /// # Errors
    /// When the connection is gone meanwhile; nothing has been sent then.
    pub async fn send(self, request: &Request, random: u128, patience: Duration) -> Result<Exchanging, Broken> {
        match self.kind {
            Kind::H1(mut backend) => {
                backend.send(request, random);
                Ok(Exchanging::H1(backend))
            }
            Kind::H2(claim) => Ok(Exchanging::H2(Box::new(Box::pin(claim.send(request, patience)).await?))),
        }
    }
}

impl Exchanging {
    /// Whether something of a response has come.
    pub fn has_answered(&mut self) -> bool {
        match self {
            Self::H1(backend) => backend.has_answered(),
            Self::H2(backend) => backend.has_answered(),
        }
    }

    /// Grows with what is written to the backend.
    pub fn written(&self) -> u64 {
        match self {
            Self::H1(backend) => backend.written(),
            Self::H2(backend) => backend.written(),
        }
    }

    /// Whether the backend may have seen a part of the request.
    pub fn has_sent(&mut self) -> bool {
        match self {
            Self::H1(backend) => backend.has_sent(),
            Self::H2(backend) => backend.has_sent(),
        }
    }
}

impl Upstream for Exchanging {
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Broken>> {
        match self {
            Self::H1(backend) => backend.poll_answer(cx),
            Self::H2(backend) => backend.poll_answer(cx),
        }
    }
}

impl Source for Exchanging {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Part>, Broken>> {
        match self {
            Self::H1(backend) => backend.poll_part(cx),
            Self::H2(backend) => backend.poll_part(cx),
        }
    }

    fn is_ended(&self) -> bool {
        match self {
            Self::H1(backend) => backend.is_ended(),
            Self::H2(backend) => backend.is_ended(),
        }
    }

    fn gather(&mut self, cx: &mut Context<'_>) {
        match self {
            // What is not asked for stays in the socket.
            Self::H1(_) => {}
            Self::H2(backend) => backend.gather(cx),
        }
    }
}

impl Sink for Exchanging {
    fn poll_data(&mut self, cx: &mut Context<'_>, data: &mut Bytes, is_last: bool) -> Poll<Result<(), Broken>> {
        match self {
            Self::H1(backend) => backend.poll_data(cx, data, is_last),
            Self::H2(backend) => backend.poll_data(cx, data, is_last),
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        match self {
            Self::H1(backend) => backend.end(trailers),
            Self::H2(backend) => backend.end(trailers),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match self {
            Self::H1(backend) => backend.poll_flush(cx),
            Self::H2(backend) => backend.poll_flush(cx),
        }
    }
}

#[cfg(test)]
mod tests;
