//! The record of a connection: filled in stage by stage, written once.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use tokio::time::Instant;

use super::{Announced, Edge, Local, Outcome, Permit, shared::Shared, told::Told};
use crate::{
    control::{DropEvent, Plane},
    desired::Protocol,
    firewall::{Group, OffenceKind},
    http::{access::redacted, site::Site},
    net::{
        addr::{BackendAddr, ClientAddr, PeerAddr},
        dial::DialError,
        relay::Transferred,
    },
    telemetry::limit::LineLimit,
    tls::{AlpnOffer, ServerName, TlsVersions},
};

/// More of them say nothing new.
static DIAL_WARNINGS: LineLimit = LineLimit::per_second(10);

/// What is known of a connection so far. Dropped without [`Self::finish`] it was cut off by the shutdown, and says so.
#[derive(Debug)]
pub(super) struct Record {
    local: Arc<Local>,
    permit: Permit,
    started_at: Instant,
    is_finished: bool,
    /// By a rule, not only for want of one.
    pub(super) is_allowed: bool,
    /// The number of the rule group that refused the client.
    pub(super) group: Option<u32>,
    pub(super) client: ClientAddr,
    /// The other end of the socket.
    pub(super) peer: PeerAddr,
    /// Where the client connected to, if a PROXY header has told.
    pub(super) destination: Option<SocketAddr>,
    /// What else the PROXY header has told.
    pub(super) told: Option<Box<Told>>,
    /// Made when it is first asked for.
    shared: Option<Arc<Shared>>,
    /// The PROXY header took so much of the time for both that the client is not to blame for want of it.
    pub(super) is_header_late: bool,
    /// Nobody is banned for what is done under this address.
    pub(super) is_blameless: bool,
    pub(super) server_name: Option<ServerName>,
    /// What the client offers.
    pub(super) alpn: AlpnOffer,
    /// What the client offers.
    pub(super) tls: TlsVersions,
    pub(super) backend: Option<BackendAddr>,
    pub(super) transferred: Transferred,
}

impl Record {
    pub(super) fn new(local: Arc<Local>, permit: Permit, peer: PeerAddr) -> Self {
        Self {
            local,
            permit,
            started_at: Instant::now(),
            is_finished: false,
            is_allowed: false,
            group: None,
            client: ClientAddr::from_peer(peer),
            peer,
            destination: None,
            told: None,
            shared: None,
            is_header_late: false,
            is_blameless: false,
            server_name: None,
            alpn: AlpnOffer::default(),
            tls: TlsVersions::default(),
            backend: None,
            transferred: Transferred::default(),
        }
    }

    pub(super) fn edge(&self) -> &Edge {
        &self.local.edge
    }

    pub(super) fn local(&self) -> &Arc<Local> {
        &self.local
    }

    pub(super) fn permit(&self) -> &Permit {
        &self.permit
    }

    pub(super) fn permit_mut(&mut self) -> &mut Permit {
        &mut self.permit
    }

    /// What the connection's requests are told of it.
    pub(super) fn site(&mut self, tls: Option<&'static str>, announced: Option<Announced>) -> Site {
        let shared = Arc::clone(self.shared());
        let is_blameless = self.is_allowed || self.is_blameless;
        let is_trusted = self.edge().http_trusted.trusts(self.client.ip());
        // Nobody else asks.
        let geoip = self.edge().access.as_ref().and_then(|_| self.edge().geoip.load_full());
        let country = geoip.and_then(|geoip| geoip.country(self.client.ip()));
        let country = country.map(|code| code.to_string().into());
        Site::new(
            Arc::clone(&self.local),
            Arc::clone(self.permit.listening()),
            self.client,
            is_trusted,
            is_blameless,
            self.server_name.clone(),
            self.alpn.clone(),
            country,
            tls,
            announced,
            shared,
        )
    }

    pub(super) fn started_at(&self) -> Instant {
        self.started_at
    }

    /// What requests know of the connection too.
    pub(super) fn shared(&mut self) -> &Arc<Shared> {
        let told = self.told.as_ref();
        self.shared.get_or_insert_with(|| Arc::new(Shared::new(told.and_then(|told| told.unique_id.clone()))))
    }

    /// Who the client is, as far as records may tell.
    pub(super) fn shown_client(&self) -> Shown {
        Shown::new(self.client, self.edge().redact_clients)
    }

    /// A proxy is no client; where everybody may be one, a client may say that it is.
    pub(super) fn shown_peer(&self) -> Shown {
        let is_anybody = self.permit.listener().proxy.as_ref().is_some_and(|proxy| proxy.trust_any);
        Shown::new(ClientAddr::from_peer(self.peer), self.edge().redact_clients && is_anybody)
    }

    /// Tells the operator that a backend is down, without a line for each of the clients who want it.
    pub(super) fn warn_dial(&self, backend: &BackendAddr, error: &DialError) {
        if let Some(suppressed) = DIAL_WARNINGS.admit(Instant::now()) {
            tracing::warn!(
                client = %self.shown_client(),
                listener = %self.permit.listener().addr,
                sni = self.server_name.as_ref().map(tracing::field::display),
                %backend,
                error = %error,
                suppressed,
                "dial failed"
            );
        }
    }

    /// Tells, as soon as it is known, what the client may be banned for. A client that a rule allows is never banned;
    /// one that has no route on a listener without names has done nothing.
    pub(super) fn report(&self, outcome: Outcome) {
        let is_tls = self.permit.listener().protocol == Protocol::Tls;
        if let Some(kind) = outcome.offence()
            && !self.is_allowed
            && !self.is_blameless
            && (is_tls || kind != OffenceKind::ServerName)
            && (!self.is_header_late || kind != OffenceKind::Timeout)
        {
            self.edge().offences.report(self.client.ip(), kind);
        }
    }

    /// Tells watchers of a connection that the firewall has refused.
    pub(super) fn tell_drop(&self, outcome: Outcome) {
        // Nothing is made for nobody.
        if self.edge().drops.receiver_count() == 0 {
            return;
        }
        let listener = self.permit.listener();
        let group = self.edge().firewall.groups.name(self.group.unwrap_or_default());
        // The last watcher may just have gone.
        drop(self.edge().drops.send(DropEvent {
            at: SystemTime::now(),
            interface: listener.addr.to_string(),
            reason: outcome.reason(),
            group: group.unwrap_or(Group::DEFAULT),
            source: self.client.ip(),
            port: listener.addr.socket().port(),
            bytes: 0,
            plane: Plane::User,
            sampled: 1,
        }));
    }

    pub(super) fn finish(mut self, outcome: Outcome) {
        self.write(outcome);
    }

    /// Under attack refusals come by the hundred thousand: they are counted always, and logged at debug.
    fn write(&mut self, outcome: Outcome) {
        self.is_finished = true;
        // Of a connection that is relayed all bytes after the PROXY header; of one on which HTTP is served those within TLS
        // from the client, and those of content from backends.
        let (mut client, mut backend) = (self.transferred.client, self.transferred.backend);
        if let Some(shared) = &self.shared {
            let (from_client, from_backends) = shared.bytes();
            client += from_client;
            backend += from_backends;
        }
        let peer = (self.client != ClientAddr::from_peer(self.peer)).then(|| self.shown_peer());
        let told = self.told.as_deref();
        let id = self
            .shared
            .as_ref()
            .and_then(|shared| shared.known_id())
            .or_else(|| told.and_then(|told| told.unique_id.as_deref()));
        self.edge().counters.count(outcome, client, backend);
        macro_rules! log {
            ($level:ident, $message:literal) => {
                tracing::$level!(
                    client = %self.shown_client(),
                    peer = peer.map(tracing::field::display),
                    id = id.map(|id| tracing::field::display(id.escape_ascii())),
                    authority = told.and_then(|told| told.authority.as_ref()).map(|name| tracing::field::display(name.escape_debug())),
                    proxy_tls = told.and_then(|told| told.tls.as_ref()).map(|version| tracing::field::display(version.escape_debug())),
                    cn = told.and_then(|told| told.common_name.as_ref()).map(|name| tracing::field::display(name.escape_ascii())),
                    listener = %self.permit.listener().addr,
                    sni = self.server_name.as_ref().map(tracing::field::display),
                    alpn = Some(&self.alpn).filter(|offer| !offer.is_empty()).map(tracing::field::display),
                    tls = Some(self.tls).filter(|versions| !versions.is_empty()).map(tracing::field::display),
                    backend = self.backend.as_ref().map(tracing::field::display),
                    reason = outcome.reason(),
                    group = self.group.and_then(|group| self.edge().firewall.groups.name(group)).map(tracing::field::display),
                    client_bytes = client,
                    backend_bytes = backend,
                    duration_ms = self.started_at.elapsed().as_millis() as u64,
                    $message
                )
            };
        }
        if outcome.was_relayed() {
            log!(info, "connection closed");
        } else {
            log!(debug, "connection refused");
        }
    }
}

/// An address, or the network that it is in.
#[derive(Clone, Copy, Debug)]
pub enum Shown {
    /// All of it.
    Address(ClientAddr),
    /// The first address of its network.
    Network(IpAddr),
}

impl Shown {
    /// `is_redacted`: as `log.redact_clients` says.
    pub fn new(addr: ClientAddr, is_redacted: bool) -> Self {
        if is_redacted { Self::Network(redacted(addr.ip())) } else { Self::Address(addr) }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => addr.fmt(f),
            Self::Network(net) => net.fmt(f),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.is_finished {
            self.write(Outcome::Forced);
        }
    }
}
