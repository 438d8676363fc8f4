//! The end of the connections: how long they get, and what became of them.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::Signals;
use crate::{
    conn::{Edge, Listening, Outcome},
    worker::{Shutdown, Worker},
};

/// Lets connections end by themselves, for so long; a second signal ends the patience. A line says how they ended.
pub(super) async fn drain(
    workers: Vec<Worker>,
    shutdown: &Shutdown,
    patience: Duration,
    tally: Tally,
    signals: &mut Signals,
) {
    shutdown.drain.begin();
    let ended = tokio::task::spawn_blocking(move || workers.into_iter().filter_map(|w| w.join().err()).count());
    tokio::pin!(ended);
    let forced = tokio::select! {
        panicked = &mut ended => { report(panicked); tally.tell(); return; }
        () = sleep(patience) => "shutdown timeout exceeded, forcing close",
        () = signals.stop() => "second signal, forcing close",
    };
    tracing::warn!("{forced}");
    shutdown.force.cancel();
    report(ended.await);
    tally.tell();
}

fn report(panicked: Result<usize, tokio::task::JoinError>) {
    match panicked {
        Ok(0) => {}
        Ok(workers) => tracing::error!(workers, "workers have panicked"),
        Err(error) => tracing::error!(%error, "the workers could not be waited for"),
    }
}

/// How connections had ended when the drain began, to tell how they have since.
pub(super) struct Tally {
    edge: Arc<Edge>,
    begun_at: Instant,
    open: u64,
    ended: u64,
    told: u64,
    forced: u64,
}

impl Tally {
    pub(super) fn begin(edge: &Arc<Edge>, listening: &[Arc<Listening>]) -> Self {
        Self {
            edge: Arc::clone(edge),
            begun_at: Instant::now(),
            open: listening.iter().map(|listening| listening.active()).sum(),
            ended: ended(edge),
            told: edge.counters.ended(Outcome::Told),
            forced: edge.counters.ended(Outcome::Forced),
        }
    }

    fn tell(&self) {
        let told = self.edge.counters.ended(Outcome::Told) - self.told;
        let forced = self.edge.counters.ended(Outcome::Forced) - self.forced;
        let ended = ended(&self.edge) - self.ended;
        tracing::info!(
            open = self.open,
            closed = ended.saturating_sub(told + forced),
            told,
            forced,
            duration_ms = self.begun_at.elapsed().as_millis() as u64,
            "drained connections"
        );
    }
}

fn ended(edge: &Edge) -> u64 {
    edge.counters.outcomes().iter().map(|(_, count)| count).sum()
}
