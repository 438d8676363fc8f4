//! A daemon that relays in one splice mode, with pairs of peers at its two sides, and what has to be true afterwards.

mod memory;
mod pair;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::Mutex,
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

pub use self::{
    memory::{Memory, buffer_limits, limit_buffers},
    pair::{Pair, PairId},
};
use crate::{
    config::loopback,
    daemon::{Daemon, Installation},
    hello::Hello,
    privilege::{can_run, missing_for_kernel_splice},
    topology::Namespace,
    traffic::{Pattern, Peer, Random, SEED_VARIABLE},
    wait::{SOON, until},
};

/// A whole case takes no longer.
const CASE_LIMIT: Duration = Duration::from_secs(240);

/// Pipes that a worker may keep for later (`net/relay/pipe.rs`), two descriptors each.
const SPARE_PIPES: usize = 16;

/// What server names of pairs end with.
const DOMAIN: &str = ".example.com";

/// How long the number before it is.
const DIGITS: usize = 8;

/// `proxy.splice`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Never in the kernel.
    Userspace,
    /// In the kernel whenever that is possible.
    Sockmap,
    /// Chosen by what a pair does.
    Auto,
}

/// A daemon with one route, the listener of its backend, and the runtime that the peers live on.
#[derive(Debug)]
pub struct Wire {
    /// As configured.
    pub mode: Mode,
    /// Where clients connect to.
    pub proxy: SocketAddr,
    /// The process.
    pub daemon: Daemon,
    /// Its files.
    pub edge: Installation,
    /// Where the daemon connects to. Whoever accepts by himself keeps the lock for as long.
    pub backend: Mutex<TcpListener>,
    runtime: Option<Runtime>,
    base: BTreeMap<String, usize>,
    pairs: AtomicU64,
    seed: u64,
}

/// The daemon's record of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `reason=`
    pub reason: String,
    /// `client_bytes=`, without the hello.
    pub client_bytes: u64,
    /// `backend_bytes=`
    pub backend_bytes: u64,
}

/// Defines for each case, a function of a [`Mode`], one test in each mode.
#[macro_export]
macro_rules! in_each_mode {
    ($($case:ident),+ $(,)?) => { $(
        mod $case {
            #[test]
            fn userspace() -> anyhow::Result<()> {
                super::$case($crate::wire::Mode::Userspace)
            }

            #[test]
            fn sockmap() -> anyhow::Result<()> {
                if !$crate::wire::Mode::Sockmap.can_run(concat!(stringify!($case), "::sockmap"))? {
                    return Ok(());
                }
                super::$case($crate::wire::Mode::Sockmap)
            }

            #[test]
            fn auto() -> anyhow::Result<()> {
                super::$case($crate::wire::Mode::Auto)
            }
        }
    )+ };
}

impl Mode {
    /// Every mode that can run here.
    ///
    /// # Errors
    /// When one cannot, and may not be skipped.
    pub fn all(test: &str) -> Result<Vec<Self>> {
        let mut modes = vec![Self::Userspace, Self::Auto];
        if Self::Sockmap.can_run(&format!("{test} with sockmap"))? {
            modes.push(Self::Sockmap);
        }
        Ok(modes)
    }

    /// Whether the daemon has the rights for it here. `auto` does without them, too.
    ///
    /// # Errors
    /// When it has not, and the test may not be skipped.
    pub fn can_run(self, test: &str) -> Result<bool> {
        let missing = match self {
            Self::Sockmap => missing_for_kernel_splice(),
            Self::Userspace | Self::Auto => None,
        };
        can_run(test, missing)
    }

    /// The value in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
            Self::Sockmap => "sockmap",
            Self::Auto => "auto",
        }
    }
}

impl Wire {
    /// Starts a daemon, with more lines of `[proxy]`.
    pub fn start(mode: Mode, proxy: &str) -> Result<Self> {
        Self::before(std::net::TcpListener::bind("127.0.0.1:0").context("binding a backend")?, mode, proxy)
    }

    /// The same in a namespace, with peers that are there too.
    pub fn within(namespace: &Namespace, mode: Mode, proxy: &str) -> Result<Self> {
        // The daemon and the threads of the runtime are started there, and stay.
        namespace.run(|| Self::start(mode, proxy))?
    }

    /// The same with a listener for a backend.
    pub fn before(backend: std::net::TcpListener, mode: Mode, proxy: &str) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        backend.set_nonblocking(true)?;
        let backend = {
            let _entered = runtime.enter();
            TcpListener::from_std(backend)?
        };
        let addr = loopback();
        let edge = Installation::new(&format!(
            "[proxy]\nsplice = \"{}\"\n{proxy}\n\n[[listeners]]\naddr = \"{addr}\"\n\
             [[listeners.routes]]\nhostname = \"*{DOMAIN}\"\nbackend = \"{}\"\n",
            mode.name(),
            backend.local_addr()?,
        ))?;
        let daemon = edge.start()?;
        let base = descriptors(&daemon)?;
        if mode == Mode::Sockmap {
            let splice = edge.admin()?.status()?.kernel_splice.unwrap_or_default();
            ensure!(splice.available, "the kernel carries no pairs: {}", splice.detail);
        }
        let seed = Random::seed();
        Ok(Self {
            mode,
            proxy: addr,
            daemon,
            edge,
            backend: Mutex::new(backend),
            runtime: Some(runtime),
            base,
            pairs: AtomicU64::new(0),
            seed,
        })
    }

    /// Runs a case to its end, and checks that the daemon keeps nothing of it.
    pub fn run(self, case: impl AsyncFnOnce(&Arc<Self>, Random) -> Result<()>) -> Result<()> {
        let (wire, outcome) = self.go(case);
        outcome.and_then(|()| wire.settle()).with_context(|| wire.circumstances())
    }

    /// Runs a case that tells the daemon to end, and checks that it ends within `limit` after the case.
    pub fn run_out(self, limit: Duration, case: impl AsyncFnOnce(&Arc<Self>, Random) -> Result<()>) -> Result<()> {
        let (wire, outcome) = self.go(case);
        outcome.with_context(|| wire.circumstances())?;
        let mut wire = Arc::into_inner(wire).context("a task of the case goes on")?;
        let status = wire.daemon.wait(limit).with_context(|| wire.circumstances())?;
        ensure!(status.success(), "the daemon ended with {status}; {}", wire.circumstances());
        Ok(())
    }

    /// All tasks of the case are gone when it returns, and with them the sockets.
    fn go(mut self, case: impl AsyncFnOnce(&Arc<Self>, Random) -> Result<()>) -> (Arc<Self>, Result<()>) {
        let runtime = self.runtime.take();
        let wire = Arc::new(self);
        let outcome = runtime.context("a wire runs one case").and_then(|runtime| {
            runtime.block_on(async {
                timeout(CASE_LIMIT, case(&wire, Random::of(wire.seed))).await.context("the case did not end")?
            })
        });
        (wire, outcome)
    }

    fn circumstances(&self) -> String {
        let lines = self.daemon.log().lines();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        format!("splice = {}; {SEED_VARIABLE}={} repeats it; the log ends with\n{tail}\n", self.mode.name(), self.seed)
    }

    /// A new pair.
    pub async fn pair(&self) -> Result<Pair> {
        let door = self.backend.lock().await;
        let (client, number) = self.client().await?;
        self.join(&door, client, number).await
    }

    /// The pair of a client that may have sent more than its hello by now. Nobody else takes connections meanwhile:
    /// `door` is [`Self::backend`].
    pub async fn join(&self, door: &TcpListener, client: Peer, number: u64) -> Result<Pair> {
        let backend = self.accept(door, number).await?;
        let id = self.id(number);
        Ok(Pair { client, backend, id })
    }

    /// What the daemon knows a client's connection by.
    pub fn id(&self, number: u64) -> PairId {
        PairId { number, hello: self.hello(number).len() as u64 }
    }

    /// The backend's end of a client's connection. Others that come belong to clients that have gone.
    pub async fn accept(&self, door: &TcpListener, number: u64) -> Result<Peer> {
        loop {
            if let Some((found, peer)) = self.accept_any(door).await?
                && found == number
            {
                return Ok(peer);
            }
        }
    }

    /// The backend's end of whatever connection comes next, with its number. `None` when it does not bring a hello.
    pub async fn accept_any(&self, door: &TcpListener) -> Result<Option<(u64, Peer)>> {
        let accepted = timeout(SOON * 2, door.accept()).await.context("the backend has no connection")?;
        let (mut stream, _) = accepted?;
        let mut received = self.hello(0);
        let read = timeout(SOON, stream.read_exact(&mut received)).await.context("the backend has no hello")?;
        if read.is_err() {
            return Ok(None);
        }
        let end = received.windows(DOMAIN.len()).position(|part| part == DOMAIN.as_bytes());
        let digits = end.and_then(|end| str::from_utf8(received.get(end.checked_sub(DIGITS)?..end)?).ok());
        let number = digits.and_then(|digits| digits.parse().ok()).context("the hello that arrives has no number")?;
        ensure!(received == self.hello(number), "the hello of pair {number} is not what its client has sent");
        let (up, down) = self.patterns(number);
        Ok(Some((number, Peer::new(stream, down, up)?)))
    }

    /// A client that has sent its hello, and its number.
    pub async fn client(&self) -> Result<(Peer, u64)> {
        let number = self.pairs.fetch_add(1, Ordering::Relaxed);
        let (up, down) = self.patterns(number);
        let mut client = TcpStream::connect(self.proxy).await.context("connecting to the proxy")?;
        client.write_all(&self.hello(number)).await?;
        Ok((Peer::new(client, up, down)?, number))
    }

    /// A hello that no other pair has.
    pub fn hello(&self, number: u64) -> Vec<u8> {
        Hello::to(server_name(number)).bytes()
    }

    /// What the client and the backend of a pair send.
    pub fn patterns(&self, number: u64) -> (Pattern, Pattern) {
        (Pattern::of(self.seed ^ (number << 32)), Pattern::of(!self.seed ^ (number << 32)))
    }

    /// The record of a pair, once it is written.
    pub async fn record(&self, pair: PairId) -> Result<Record> {
        let (log, sni) = (self.daemon.log().clone(), format!("sni={} ", server_name(pair.number)));
        let line = spawn_blocking(move || log.wait_for(&["connection closed", &sni], SOON)).await??;
        let field = |name: &str| {
            let value = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.with_context(|| format!("no {name} in {line}"))
        };
        let sent = field("client_bytes")?.parse::<u64>()?;
        Ok(Record {
            reason: field("reason")?.to_owned(),
            client_bytes: sent.checked_sub(pair.hello).with_context(|| format!("less than the hello: {line}"))?,
            backend_bytes: field("backend_bytes")?.parse()?,
        })
    }

    /// An error unless the record of a pair has this reason and exactly these bytes.
    pub async fn recorded(&self, pair: PairId, reason: &str, client_bytes: u64, backend_bytes: u64) -> Result<()> {
        let record = self.record(pair).await?;
        let expected = Record { reason: reason.to_owned(), client_bytes, backend_bytes };
        ensure!(record == expected, "{record:?} was recorded instead of {expected:?}");
        Ok(())
    }

    /// No connection, no socket and no pipe is left, once the daemon has got round to it.
    pub fn settle(&self) -> Result<()> {
        // A connection that nobody attends to for the whole of a case does not live as long.
        let admin = self.edge.admin()?;
        let mut left = (0, 0, 0);
        until("the end of all connections", SOON, || {
            let status = admin.status()?;
            let splice = status.kernel_splice.unwrap_or_default();
            left = (status.total_connections, splice.pairs, splice.credit_bytes);
            Ok(left == (0, 0, 0))
        })
        .with_context(|| format!("{left:?}: connections, pairs in the kernel and their credit are left"))?;
        drop(admin);
        let workers = thread::available_parallelism()?.get();
        let mut now = BTreeMap::new();
        until("the daemon's descriptors", SOON, || {
            now = descriptors(&self.daemon)?;
            // A worker that spliced in the kernel waits for its pairs' ends beside everything else. At the start, the
            // daemon may not yet have closed everything that it needed for that.
            let more = BTreeMap::from([("pipe", 2 * SPARE_PIPES * workers), ("anon_inode:[eventpoll]", workers)]);
            Ok(now.iter().all(|(kind, count)| {
                let more = more.get(kind.as_str()).copied().unwrap_or_default();
                *count <= self.base.get(kind).copied().unwrap_or_default() + more
            }))
        })
        .with_context(|| format!("descriptors leak: {:?} before, {now:?} after", self.base))
    }
}

fn server_name(number: u64) -> String {
    format!("n{number:0DIGITS$}{DOMAIN}")
}

/// Waits for all of a case's tasks; the first error ends it.
pub async fn all<T: 'static>(mut tasks: JoinSet<Result<T>>) -> Result<Vec<T>> {
    let mut values = Vec::new();
    while let Some(task) = tasks.join_next().await {
        values.push(task.context("a task of the test panicked")??);
    }
    Ok(values)
}

/// Descriptors by what they are.
fn descriptors(daemon: &Daemon) -> Result<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", daemon.pid())).context("reading the daemon's descriptors")? {
        // One that has just been closed counts no more.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let kind =
            if target.starts_with("anon_inode") { &target } else { target.split(':').next().unwrap_or_default() };
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    Ok(kinds)
}
