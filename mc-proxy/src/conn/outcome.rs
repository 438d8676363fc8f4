//! How a connection ended: the one source for its log line and its counter.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{
    firewall::OffenceKind,
    net::{relay::Ended, transparent::TransparentError},
    proxy_header::HeaderError,
    tls::{HandshakeError, HelloError, ServerNameError},
};

/// The end of a connection. Every connection has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Relayed until both sides had ended.
    Closed,
    /// The client reset the connection while it was relayed.
    ClientReset,
    /// The backend reset the connection while it was relayed.
    BackendReset,
    /// No byte for the idle timeout.
    Idle,
    /// Quiet during the shutdown: both sides were told by FIN, and have ended.
    Told,
    /// Still open when the shutdown timeout was over, or going on after it was told.
    Forced,
    /// The listener was at its limit.
    OverLimit,
    /// The client's address, or its IPv6 /64, had as many connections as the listener lets one have.
    OverSourceLimit,
    /// The daemon's memory was short, and nobody was connected yet.
    OverMemory,
    /// A rule blocks the address.
    BlockedAddress,
    /// A rule blocks a prefix of the address.
    BlockedPrefix,
    /// The daemon has banned the address for a time.
    Banned,
    /// A rule blocks the address's country.
    BlockedCountry,
    /// One new connection of the client too many.
    RateLimited,
    /// The listener believes only others' PROXY headers.
    ProxyUntrusted,
    /// The PROXY header was not complete in time.
    ProxyTimeout,
    /// What came is not a PROXY header.
    Proxy(HeaderError),
    /// The ClientHello was not complete in time.
    HandshakeTimeout,
    /// The client went away before it was connected to a backend.
    ClientGone,
    /// What came is not a ClientHello that is routed.
    Hello(HelloError),
    /// TLS is terminated here, and the handshake came to nothing.
    Tls(HandshakeError),
    /// No route for the name, and no default.
    NoRoute,
    /// The routes of the name are for clients that offer another ALPN name, and there is no default.
    NoAlpn,
    /// A backend refused, or could not be reached or resolved.
    DialFailed,
    /// No backend answered in time.
    DialTimeout,
    /// The backend is of another address family than the client whose address it is to see.
    TransparentFamily,
    /// The client's address is none that a backend can be connected from.
    TransparentAddress,
    /// The client's address and port are in use already.
    TransparentInUse,
}

/// Connections by outcome, and bytes. Written with relaxed order: figures, not signals.
#[derive(Debug)]
pub struct Counters {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    client_bytes: AtomicU64,
    backend_bytes: AtomicU64,
    accept_failures: AtomicU64,
}

impl Outcome {
    /// Every outcome, the frequent ones first.
    pub const ALL: [Self; 71] = [
        Self::Closed,
        Self::BlockedAddress,
        Self::BlockedPrefix,
        Self::Banned,
        Self::BlockedCountry,
        Self::RateLimited,
        Self::OverLimit,
        Self::OverSourceLimit,
        Self::OverMemory,
        Self::HandshakeTimeout,
        Self::ClientGone,
        Self::NoRoute,
        Self::NoAlpn,
        Self::ClientReset,
        Self::BackendReset,
        Self::Idle,
        Self::Told,
        Self::Forced,
        Self::DialFailed,
        Self::DialTimeout,
        Self::TransparentFamily,
        Self::TransparentAddress,
        Self::TransparentInUse,
        Self::ProxyUntrusted,
        Self::ProxyTimeout,
        Self::Proxy(HeaderError::Missing),
        Self::Proxy(HeaderError::V1Line),
        Self::Proxy(HeaderError::V1TooLong),
        Self::Proxy(HeaderError::V1Address),
        Self::Proxy(HeaderError::V1Port),
        Self::Proxy(HeaderError::V2Version),
        Self::Proxy(HeaderError::V2Command),
        Self::Proxy(HeaderError::V2Family),
        Self::Proxy(HeaderError::V2TooShort),
        Self::Proxy(HeaderError::V2TooLong),
        Self::Proxy(HeaderError::TlvFraming),
        Self::Proxy(HeaderError::TlvRepeated),
        Self::Proxy(HeaderError::TlvTooMany),
        Self::Proxy(HeaderError::TlvValue),
        Self::Proxy(HeaderError::Checksum),
        Self::Hello(HelloError::NotTls),
        Self::Hello(HelloError::RecordVersion),
        Self::Hello(HelloError::UnexpectedRecord),
        Self::Hello(HelloError::EmptyRecord),
        Self::Hello(HelloError::RecordTooLong),
        Self::Hello(HelloError::TooManyRecords),
        Self::Hello(HelloError::NotClientHello),
        Self::Hello(HelloError::TooLong),
        Self::Hello(HelloError::TrailingHandshake),
        Self::Hello(HelloError::Malformed),
        Self::Hello(HelloError::ServerNameMalformed),
        Self::Hello(HelloError::ServerNameRepeated),
        Self::Hello(HelloError::ServerNameMany),
        Self::Hello(HelloError::ServerNameType),
        Self::Hello(HelloError::AlpnMalformed),
        Self::Hello(HelloError::AlpnRepeated),
        Self::Hello(HelloError::VersionsMalformed),
        Self::Hello(HelloError::VersionsRepeated),
        Self::Hello(HelloError::ServerName(ServerNameError::Empty)),
        Self::Hello(HelloError::ServerName(ServerNameError::Nul)),
        Self::Hello(HelloError::ServerName(ServerNameError::IpLiteral)),
        Self::Hello(HelloError::ServerName(ServerNameError::NotDns)),
        Self::Tls(HandshakeError::Timeout),
        Self::Tls(HandshakeError::Gone),
        Self::Tls(HandshakeError::Refused),
        Self::Tls(HandshakeError::NoAlpn),
        Self::Tls(HandshakeError::Version),
        Self::Tls(HandshakeError::Incompatible),
        Self::Tls(HandshakeError::Malformed),
        Self::Tls(HandshakeError::NoCertificate),
        Self::Tls(HandshakeError::Internal),
    ];

    /// The name in logs and counters.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::Idle => "idle_timeout",
            Self::Told => "told",
            Self::Forced => "forced",
            Self::OverLimit => "over_limit",
            Self::OverSourceLimit => "over_source_limit",
            Self::OverMemory => "over_memory",
            Self::BlockedAddress => "blocked_address",
            Self::BlockedPrefix => "blocked_prefix",
            Self::Banned => "banned",
            Self::BlockedCountry => "blocked_country",
            Self::RateLimited => "rate_limited",
            Self::ProxyUntrusted => "proxy_untrusted",
            Self::ProxyTimeout => "proxy_timeout",
            Self::Proxy(error) => error.reason(),
            Self::HandshakeTimeout => "handshake_timeout",
            Self::ClientGone => "client_gone",
            Self::Hello(error) => error.reason(),
            Self::Tls(error) => error.reason(),
            Self::NoRoute => "no_route",
            Self::NoAlpn => "no_alpn",
            Self::DialFailed => "dial_failed",
            Self::DialTimeout => "dial_timeout",
            Self::TransparentFamily => "transparent_family",
            Self::TransparentAddress => "transparent_address",
            Self::TransparentInUse => "transparent_in_use",
        }
    }

    /// What the client may be banned for, if it is for this.
    pub fn offence(self) -> Option<OffenceKind> {
        match self {
            Self::Hello(HelloError::ServerName(_)) | Self::NoRoute => Some(OffenceKind::ServerName),
            Self::Hello(_) | Self::Tls(HandshakeError::Malformed) => Some(OffenceKind::Handshake),
            Self::HandshakeTimeout | Self::Tls(HandshakeError::Timeout) => Some(OffenceKind::Timeout),
            Self::RateLimited => Some(OffenceKind::Rate),
            // Who is refused by a rule is told apart already; the others are nobody's fault, or not the client's.
            Self::BlockedAddress
            | Self::BlockedPrefix
            | Self::Banned
            | Self::BlockedCountry
            | Self::Closed
            | Self::ClientReset
            | Self::BackendReset
            | Self::Idle
            | Self::Told
            | Self::Forced
            | Self::OverLimit
            | Self::OverSourceLimit
            | Self::OverMemory
            // See `identify`.
            | Self::ProxyUntrusted
            | Self::ProxyTimeout
            | Self::Proxy(_)
            | Self::ClientGone
            // Old clients, clients that distrust the certificate, and what is wrong here.
            | Self::Tls(
                HandshakeError::Gone
                | HandshakeError::Refused
                | HandshakeError::NoAlpn
                | HandshakeError::Version
                | HandshakeError::Incompatible
                | HandshakeError::NoCertificate
                | HandshakeError::Internal,
            )
            // The name is one that is served.
            | Self::NoAlpn
            | Self::DialFailed
            | Self::DialTimeout
            | Self::TransparentFamily
            | Self::TransparentAddress
            | Self::TransparentInUse => None,
        }
    }

    /// Whether bytes were relayed, in contrast to a connection that was refused.
    pub fn was_relayed(self) -> bool {
        matches!(self, Self::Closed | Self::ClientReset | Self::BackendReset | Self::Idle | Self::Told | Self::Forced)
    }
}

impl From<Ended> for Outcome {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Closed => Self::Closed,
            Ended::ClientFailed => Self::ClientReset,
            Ended::BackendFailed => Self::BackendReset,
            Ended::Idle => Self::Idle,
            Ended::Told => Self::Told,
            Ended::CutOff => Self::Forced,
        }
    }
}

impl From<&TransparentError> for Outcome {
    fn from(error: &TransparentError) -> Self {
        match error {
            TransparentError::Family { .. } => Self::TransparentFamily,
            TransparentError::Address(_) => Self::TransparentAddress,
            TransparentError::InUse(_) => Self::TransparentInUse,
            TransparentError::Privilege(_) | TransparentError::System(_) => Self::DialFailed,
        }
    }
}

impl Default for Counters {
    fn default() -> Self {
        let outcomes = std::array::from_fn(|_| AtomicU64::new(0));
        let [client_bytes, backend_bytes, accept_failures] = [(); 3].map(|()| AtomicU64::new(0));
        Self { outcomes, client_bytes, backend_bytes, accept_failures }
    }
}

impl Counters {
    /// Counts the end of a connection.
    pub fn count(&self, outcome: Outcome, client_bytes: u64, backend_bytes: u64) {
        if let Some(counter) = self.counter(outcome) {
            counter.fetch_add(1, Relaxed);
        }
        self.client_bytes.fetch_add(client_bytes, Relaxed);
        self.backend_bytes.fetch_add(backend_bytes, Relaxed);
    }

    /// Counts a look into the queue that failed, as for want of descriptors.
    pub fn count_accept_failure(&self) {
        self.accept_failures.fetch_add(1, Relaxed);
    }

    /// How often no connection could be accepted although some were waiting.
    pub fn accept_failures(&self) -> u64 {
        self.accept_failures.load(Relaxed)
    }

    /// How many connections ended so.
    pub fn ended(&self, outcome: Outcome) -> u64 {
        self.counter(outcome).map_or(0, |counter| counter.load(Relaxed))
    }

    fn counter(&self, outcome: Outcome) -> Option<&AtomicU64> {
        Outcome::ALL.iter().zip(&self.outcomes).find_map(|(known, counter)| (*known == outcome).then_some(counter))
    }

    /// Connections by reason; every reason.
    pub fn outcomes(&self) -> Vec<(&'static str, u64)> {
        Outcome::ALL.iter().zip(&self.outcomes).map(|(o, n)| (o.reason(), n.load(Relaxed))).collect()
    }

    /// Bytes of ended connections, from clients and from backends.
    pub fn bytes(&self) -> (u64, u64) {
        (self.client_bytes.load(Relaxed), self.backend_bytes.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_outcome_has_its_own_counter_and_name() {
        let names: BTreeSet<_> = Outcome::ALL.iter().map(|outcome| outcome.reason()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        let counters = Counters::default();
        for outcome in Outcome::ALL {
            counters.count(outcome, 1, 2);
        }
        assert!(counters.outcomes().iter().all(|(_, count)| *count == 1));
        assert_eq!(counters.bytes(), (Outcome::ALL.len() as u64, 2 * Outcome::ALL.len() as u64));
    }
}
