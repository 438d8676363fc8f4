//! How relays learn that the daemon is about to end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// The announcement of the daemon's end, as the relays of one worker get it.
///
/// From then on a pair that has been quiet for a while is told by FIN, on both sides, that there will be no more. Every
/// engine keeps to it: one that moves bytes elsewhere than here waits for [`Self::begun`] and hands the pair back.
#[derive(Clone, Debug)]
pub struct Drain {
    token: CancellationToken,
    /// What is looked at with every wake-up takes no lock.
    has_begun: Arc<AtomicBool>,
    quiet: Duration,
}

impl Drain {
    /// `begun` may be shared with whoever else has to know. A pair is told once nothing has moved for `quiet`.
    pub fn new(begun: CancellationToken, quiet: Duration) -> Self {
        Self { token: begun, has_begun: Arc::default(), quiet }
    }

    /// For one more worker, whose relays then share no lock with those of the others.
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), has_begun: Arc::clone(&self.has_begun), quiet: self.quiet }
    }

    /// One that never begins.
    pub fn never() -> Self {
        Self::new(CancellationToken::new(), Duration::MAX)
    }

    /// Tells every relay.
    pub fn begin(&self) {
        self.has_begun.store(true, Relaxed);
        self.token.cancel();
    }

    /// For those who have to know beside the relays.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Completes when the drain begins.
    pub fn begun(&self) -> WaitForCancellationFuture<'_> {
        self.token.cancelled()
    }

    /// Whether it has begun: cheap enough for every wake-up. It is so when [`Self::begun`] completes.
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Relaxed)
    }

    /// For how long nothing may have moved on a pair before it is told.
    pub fn quiet(&self) -> Duration {
        self.quiet
    }
}
