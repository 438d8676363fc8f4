//! What the service manager is told (sd_notify(3)). Without one, nothing.

use std::{
    env,
    os::fd::{AsFd as _, OwnedFd},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use rustix::time::{ClockId, clock_gettime};
use sd_notify::NotifyState;
use tokio::time::{Instant, sleep_until};

use crate::worker::{HEARTBEAT, Worker};

/// Descriptors in one message; the kernel takes 253.
const FDS_MAX: usize = 64;

/// A listening socket with its name in the store.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) fd: OwnedFd,
}

/// The connection to the service manager, and the watchdog that it asks for.
pub(super) struct Notifier {
    watchdog: Option<Watchdog>,
}

struct Watchdog {
    /// Half of what the service manager waits.
    period: Duration,
    next: Instant,
    /// Of each worker, at the last look.
    beats: Vec<u64>,
}

impl Notifier {
    /// `NOTIFY_SOCKET` and `WATCHDOG_USEC`, as systemd sets them.
    pub(super) fn from_env() -> Self {
        let watchdog = sd_notify::watchdog_enabled().map(|patience| {
            // A worker has to have had the time for a beat.
            let period = (patience / 2).max(HEARTBEAT * 2);
            Watchdog { period, next: Instant::now() + period, beats: Vec::new() }
        });
        Self { watchdog }
    }

    /// Has the service manager keep listening sockets for the next daemon, beyond a restart or a crash. Whether it does:
    /// it says how many it keeps in the environment (`FDSTORE`, systemd 254; the unit says it for older ones).
    pub(super) fn store(&self, sockets: &[Named]) -> bool {
        let max = env::var("FDSTORE").ok().and_then(|max| max.parse::<usize>().ok()).unwrap_or(0);
        if max == 0 || env::var_os("NOTIFY_SOCKET").is_none() {
            return false;
        }
        if max < sockets.len() {
            let needed = sockets.len();
            tracing::warn!(max, needed, "FileDescriptorStoreMax is too small, so a restart refuses connections");
            return false;
        }
        let batches = sockets.chunk_by(|one, other| one.name == other.name).flat_map(|same| same.chunks(FDS_MAX));
        for batch in batches {
            let Some(Named { name, .. }) = batch.first() else { continue };
            let fds: Vec<_> = batch.iter().map(|named| named.fd.as_fd()).collect();
            if let Err(error) = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &fds) {
                tracing::warn!(%error, "the service manager could not be given the listening sockets");
                return false;
            }
        }
        true
    }

    /// Has the service manager close what it keeps under a name.
    pub(super) fn forget(&self, name: &str) {
        notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }

    pub(super) fn ready(&mut self) {
        notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    }

    pub(super) fn reloading(&mut self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        notify(&[NotifyState::Reloading, NotifyState::MonotonicUsec(micros)]);
    }

    /// Says goodbye, and how long it may take.
    pub(super) fn stopping(&mut self, drain: Duration) {
        let margin = Duration::from_secs(10);
        let micros = u32::try_from((drain + margin).as_micros()).unwrap_or(u32::MAX);
        notify(&[
            NotifyState::Stopping,
            NotifyState::Status("draining connections"),
            NotifyState::ExtendTimeoutUsec(micros),
        ]);
        self.watchdog = None;
    }

    /// Feeds the watchdog as long as every worker gets round to its tasks and the control thread, if there is to be one,
    /// is there. Returns after each look; without a watchdog never.
    pub(super) async fn watch(&mut self, workers: &[Worker], control: Option<&JoinHandle<()>>) {
        let Some(watchdog) = &mut self.watchdog else { return std::future::pending().await };
        sleep_until(watchdog.next).await;
        watchdog.next = Instant::now() + watchdog.period;
        let beats: Vec<u64> = workers.iter().map(Worker::beats).collect();
        let stuck = beats.iter().zip(&watchdog.beats).filter(|(now, before)| now == before).count();
        watchdog.beats = beats;
        let is_lost = control.is_some_and(JoinHandle::is_finished);
        if stuck == 0 && !is_lost {
            notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!(stuck, control = !is_lost, at = ?SystemTime::now(), "the watchdog is not fed");
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}
