//! The threads that connections live on: one a core, each with its own reactor and its own sockets.
//!
//! A connection stays on the worker that accepted it, so nothing on its path is handed from core to core. The kernel
//! spreads new connections over the workers by hash: a few long-lived heavy ones may share a core while another idles.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    task::yield_now,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    conn::{self, Edge, Listening, Local, Outcome},
    http::upstream::pool,
    net::{
        addr::PeerAddr,
        descriptors::{self, HighWater},
        listener::{BACKLOG, Bound, Listener},
        memory::Anonymous,
        relay::Drain,
        socket::Socket,
    },
    telemetry::limit::LineLimit,
};

/// Threads that look at the files of [`crate::net::resolve`], for each worker.
const RESOLVER_THREADS: usize = 1;

/// After a connection could not be accepted, or nearly not, as when the descriptors run out, the others wait this long in
/// the kernel's queue, and again until there are some to spare.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that are accepted in a row.
const BATCH: u32 = 64;

/// Every worker says so for every listener, as long as it lasts.
static ACCEPT_WARNINGS: LineLimit = LineLimit::per_second(1);

/// How often a worker that runs says so.
pub const HEARTBEAT: Duration = Duration::from_millis(250);

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    thread: JoinHandle<()>,
    beats: Arc<AtomicU64>,
}

/// How workers are told to end.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Accept no more, and end when the last connection has.
    pub drain: Drain,
    /// Cut the connections that are left.
    pub force: CancellationToken,
    /// Whether the listening sockets live on elsewhere, and what waits in their queues is for whoever has them next.
    pub leaves_queues: Arc<AtomicBool>,
}

impl Worker {
    /// Starts a worker with its share of every listener.
    ///
    /// # Errors
    /// When the system has no thread or reactor to give.
    pub fn start(
        index: usize,
        edge: Arc<Edge>,
        listeners: Vec<(Arc<Listening>, Bound)>,
        shutdown: Shutdown,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(RESOLVER_THREADS)
            .thread_name("resolver")
            .build()?;
        let listeners = {
            let _entered = runtime.enter();
            listeners
                .into_iter()
                .map(|(listening, bound)| Ok((listening, bound.into_listener()?)))
                .collect::<io::Result<Vec<_>>>()?
        };
        let beats = Arc::new(AtomicU64::new(0));
        let beat = Arc::clone(&beats);
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            pool::set_home(index);
            runtime.block_on(run(edge, listeners, shutdown, beat));
            // Connections that are left are dropped with their tasks, a look-up that hangs is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { thread, beats })
    }

    /// Grows by one each [`HEARTBEAT`] while the worker gets round to its tasks.
    pub fn beats(&self) -> u64 {
        self.beats.load(Relaxed)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it panicked.
    pub fn join(self) -> std::thread::Result<()> {
        self.thread.join()
    }
}

async fn run(edge: Arc<Edge>, listeners: Vec<(Arc<Listening>, Listener)>, shutdown: Shutdown, beats: Arc<AtomicU64>) {
    let connections = TaskTracker::new();
    edge.memory.open_account();
    let pool_idle_timeout = edge.http.pool_idle_timeout;
    let local = Arc::new(Local { edge, drain: shutdown.drain.child() });
    for (listening, listener) in listeners {
        let acceptor = Acceptor {
            local: Arc::clone(&local),
            listening,
            listener,
            connections: connections.clone(),
            high_water: HighWater::of_process(),
            leaves_queues: Arc::clone(&shutdown.leaves_queues),
        };
        connections.spawn(acceptor.run());
    }
    connections.close();
    let beat = async {
        let mut ticks = interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            beats.fetch_add(1, Relaxed);
            pool::sweep(pool_idle_timeout);
        }
    };
    tokio::select! {
        () = connections.wait() => {}
        () = shutdown.force.cancelled() => {}
        () = beat => {}
    }
}

struct Acceptor {
    local: Arc<Local>,
    listening: Arc<Listening>,
    listener: Listener,
    connections: TaskTracker,
    high_water: HighWater,
    leaves_queues: Arc<AtomicBool>,
}

impl Acceptor {
    async fn run(self) {
        let mut drained = std::pin::pin!(self.local.drain.begun());
        let mut batch = 0;
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut drained => break,
                accepted = self.listener.accept() => accepted,
            };
            let shortage = match accepted {
                Ok((fd, peer)) => {
                    let is_short = self.high_water.is_reached_by(&fd);
                    self.serve(fd, peer);
                    is_short.then(descriptors::shortage)
                }
                Err(error) => Some(error),
            };
            match shortage {
                None => {
                    batch += 1;
                    if batch % BATCH == 0 {
                        // What connections have to do comes before more of them.
                        yield_now().await;
                    }
                }
                Some(error) => {
                    if let Some(suppressed) = ACCEPT_WARNINGS.admit(Instant::now()) {
                        let listener = &self.listening.addr;
                        tracing::warn!(%listener, %error, suppressed, "a connection could not be accepted");
                    }
                    self.local.edge.counters.count_accept_failure();
                    // What waits in the queue is looked at again after it, whether anything new has come or not.
                    let pause = async {
                        sleep(ACCEPT_PAUSE).await;
                        while self.high_water.is_reached(&self.listener) {
                            sleep(ACCEPT_PAUSE).await;
                        }
                    };
                    tokio::select! {
                        () = &mut drained => break,
                        () = pause => {}
                    }
                }
            }
        }
        if self.leaves_queues.load(Relaxed) {
            return;
        }
        // Connections that the kernel has already made are ours; closing the socket would reset them. There are no more
        // of them than its queue holds, however fast others come.
        for _ in 0..BACKLOG {
            let Ok(Some((fd, peer))) = self.listener.try_accept() else { break };
            self.serve(fd, peer);
        }
    }

    fn serve(&self, fd: std::os::fd::OwnedFd, peer: PeerAddr) {
        let outcome = match self.listening.admit() {
            Some(permit) => match Anonymous::admit() {
                Some(place) => {
                    self.connections.spawn(conn::run(Arc::clone(&self.local), permit, place, fd, peer));
                    return;
                }
                None => Outcome::OverMemory,
            },
            None => Outcome::OverLimit,
        };
        drop(Socket::new(fd));
        self.local.edge.counters.count(outcome, 0, 0);
    }
}
