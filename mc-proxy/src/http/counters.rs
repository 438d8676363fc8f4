//! Figures of the HTTP plane. Written with relaxed order: figures, not signals.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ::http::StatusCode;

use super::{access::Outcome, h1::HeadError};

/// By the hundreds of their status; those without response are the first.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Requests by what became of them.
#[derive(Debug, Default)]
pub struct HttpCounters {
    /// By [`CLASSES`].
    responses: [AtomicU64; CLASSES.len()],
    outcomes: [AtomicU64; Outcome::ALL.len()],
    malformed: [AtomicU64; HeadError::REASONS.len()],
    retries: AtomicU64,
    tunnels: AtomicU64,
    abuse: AtomicU64,
}

impl HttpCounters {
    /// A request has ended.
    pub fn count(&self, status: Option<StatusCode>, outcome: Outcome) {
        let class = status.map_or(0, |status| usize::from(status.as_u16() / 100));
        if let Some(count) = self.responses.get(class.min(5)) {
            count.fetch_add(1, Relaxed);
        }
        if let Some(count) =
            Outcome::ALL.iter().position(|known| *known == outcome).and_then(|at| self.outcomes.get(at))
        {
            count.fetch_add(1, Relaxed);
        }
    }

    /// What should have been a message was none.
    pub fn count_malformed(&self, error: HeadError) {
        let at = HeadError::REASONS.iter().position(|known| *known == error.reason());
        if let Some(count) = at.and_then(|at| self.malformed.get(at)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// A request was sent once more, over another connection.
    pub fn count_retry(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    /// A connection, or a stream, has changed its protocol.
    pub fn count_tunnel(&self) {
        self.tunnels.fetch_add(1, Relaxed);
    }

    /// An HTTP/2 connection was ended for what it cost.
    pub fn count_abuse(&self) {
        self.abuse.fetch_add(1, Relaxed);
    }

    /// Requests since the start.
    pub fn requests(&self) -> u64 {
        self.responses.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Requests by the class of their response.
    pub fn responses(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CLASSES.into_iter().zip(self.responses.iter().map(|count| count.load(Relaxed)))
    }

    /// Requests by outcome.
    pub fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL.into_iter().zip(self.outcomes.iter().map(|count| count.load(Relaxed)))
    }

    /// Malformed messages by reason.
    pub fn malformed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        HeadError::REASONS.into_iter().zip(self.malformed.iter().map(|count| count.load(Relaxed)))
    }

    /// Requests that were sent once more.
    pub fn retries(&self) -> u64 {
        self.retries.load(Relaxed)
    }

    /// Upgrades and extended CONNECTs.
    pub fn tunnels(&self) -> u64 {
        self.tunnels.load(Relaxed)
    }

    /// HTTP/2 connections that were ended for what they cost.
    pub fn abuse(&self) -> u64 {
        self.abuse.load(Relaxed)
    }
}
