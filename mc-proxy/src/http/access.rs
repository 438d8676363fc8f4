//! Access records: one line for each request, as JSON or as logfmt, whatever bytes the client has sent.
//!
//! A [`Record`] borrows all that it tells and is made a line where the request ends; [`writer`] takes lines off that path.

mod format;
#[cfg(test)]
mod tests;
pub mod writer;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use ::http::{StatusCode, Version};

use crate::net::addr::ClientAddr;

/// Bytes of a text that are written; what is behind them is `…`.
pub const TEXT_MAX: usize = 1_024;

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// How a line looks.
    pub format: Format,
    /// Client addresses are cut to their network, IPv4 to /24 and IPv6 to /48, and have no port.
    pub redact_clients: bool,
    /// What is behind the `?` of a path is not told.
    pub redact_query: bool,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object.
    #[default]
    Json,
    /// `key=value`.
    Logfmt,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The response went out whole.
    Completed,
    /// The client went away, or was too slow.
    ClientAborted,
    /// The request was malformed, or beyond a limit.
    Refused,
    /// A policy refused it.
    Policy,
    /// The daemon is full.
    Overload,
    /// No backend could be reached.
    BackendUnreachable,
    /// The backend broke off, or spoke no HTTP.
    BackendFailed,
    /// The backend did not answer in time.
    BackendTimeout,
    /// The daemon stopped.
    Shutdown,
    /// A mistake of this program.
    Internal,
}

/// One request. What is not known is none and is not written.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When the request began.
    pub time: SystemTime,
    /// Who asked.
    pub client: ClientAddr,
    /// Two letters (ISO 3166-1 alpha-2).
    pub country: Option<&'a str>,
    /// The name in the handshake.
    pub sni: Option<&'a str>,
    /// As the client sent it.
    pub host: Option<&'a [u8]>,
    /// The hostname of the route.
    pub route: Option<&'a str>,
    /// As the client sent it.
    pub method: &'a [u8],
    /// Path and query, as the client sent them.
    pub path: &'a [u8],
    /// What the client got; none if it got nothing. Where this edge answers gRPC it is what another client would have got.
    pub status: Option<StatusCode>,
    /// Of the body, from the client.
    pub request_bytes: u64,
    /// Of the body, to the client.
    pub response_bytes: u64,
    /// How long it took.
    pub timings: Timings,
    /// Where it went.
    pub backend: Option<&'a str>,
    /// What the client spoke.
    pub protocol: Version,
    /// Such as `TLSv1.3`.
    pub tls: Option<&'a str>,
    /// As the client sent it.
    pub user_agent: Option<&'a [u8]>,
    /// `X-Request-Id`.
    pub request_id: &'a [u8],
    /// What became of it.
    pub outcome: Outcome,
}

/// How long the stages of a request took; none if it did not get so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Waiting for a place, or for a pooled connection.
    pub queue: Option<Duration>,
    /// Connecting to the backend; none with a pooled connection.
    pub connect: Option<Duration>,
    /// From the request to the backend until the first byte of its response.
    pub first_byte: Option<Duration>,
    /// From the end of the request's head to the last byte of the response.
    pub total: Duration,
}

/// Which requests are written: every n-th, and all that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample(NonZeroU32);

impl Style {
    /// Appends the record as one line, with its end.
    pub fn write(self, record: &Record<'_>, to: &mut Vec<u8>) {
        format::write(self, record, to);
    }
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Completed,
        Self::ClientAborted,
        Self::Refused,
        Self::Policy,
        Self::Overload,
        Self::BackendUnreachable,
        Self::BackendFailed,
        Self::BackendTimeout,
        Self::Shutdown,
        Self::Internal,
    ];

    /// As in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::ClientAborted => "client_aborted",
            Self::Refused => "refused",
            Self::Policy => "policy",
            Self::Overload => "overload",
            Self::BackendUnreachable => "backend_unreachable",
            Self::BackendFailed => "backend_failed",
            Self::BackendTimeout => "backend_timeout",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal",
        }
    }

    /// Whether neither client nor policy is to blame.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Overload
            | Self::BackendUnreachable
            | Self::BackendFailed
            | Self::BackendTimeout
            | Self::Shutdown
            | Self::Internal => true,
            Self::Completed | Self::ClientAborted | Self::Refused | Self::Policy => false,
        }
    }
}

impl Sample {
    /// Every request.
    pub const ALL: Self = Self(NonZeroU32::MIN);

    /// One in `n`; all for 0.
    pub fn one_in(n: u32) -> Self {
        NonZeroU32::new(n).map_or(Self::ALL, Self)
    }

    /// Whether the request is written; `draw` is any number that is spread evenly, such as that of its id. What failed is
    /// written always. What a client brought upon itself (4xx) is sampled: else whoever attacks would fill the log.
    pub fn keeps(self, draw: u64, status: Option<StatusCode>, outcome: Outcome) -> bool {
        outcome.is_failure()
            || status.is_some_and(|status| status.is_server_error())
            || draw.is_multiple_of(u64::from(self.0.get()))
    }
}

/// The network of a client: the first address of its /24, or /48.
pub fn redacted(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & (u32::MAX << 8)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 80)).into(),
    }
}
