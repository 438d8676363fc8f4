//! What connections tell of their clients, for whoever bans them.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::sync::mpsc;

use crate::firewall::OffenceKind;

/// Offences that may wait: what some milliseconds of a flood bring.
pub(crate) const QUEUE: usize = 4_096;

/// Somebody has done something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offence {
    /// Who.
    pub source: IpAddr,
    /// What.
    pub kind: OffenceKind,
}

/// Where offences are reported. Reporting never waits: what finds the queue full is lost, and counted.
#[derive(Debug, Default)]
pub struct Offences {
    queue: Option<mpsc::Sender<Offence>>,
    lost: AtomicU64,
}

impl Offences {
    /// With the other end of the queue.
    pub fn queue() -> (Self, mpsc::Receiver<Offence>) {
        let (queue, offences) = mpsc::channel(QUEUE);
        (Self { queue: Some(queue), lost: AtomicU64::new(0) }, offences)
    }

    /// Nobody is told.
    pub fn ignored() -> Self {
        Self::default()
    }

    /// Tells that `source` has done something of `kind`.
    pub fn report(&self, source: IpAddr, kind: OffenceKind) {
        if let Some(queue) = &self.queue
            && queue.try_send(Offence { source, kind }).is_err()
        {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Offences that were lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}
