//! What is done to the daemon, or by its backend, while bytes are on their way: nothing of them is lost.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    in_each_mode,
    traffic::{Ending, Position, Random},
    wire::{Mode, Pair, Wire, all, buffer_limits},
};
use rustix::process::Signal;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};

const KB: u64 = 1_000;
const MB: u64 = 1_000 * KB;

in_each_mode!(
    a_backend_that_accepts_late,
    a_backend_whose_queue_is_full,
    the_mode_is_switched_all_the_time,
    a_drain,
    a_daemon_that_is_stopped,
);

/// The kernel has answered for the backend, which does not know of it yet.
fn a_backend_that_accepts_late(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, random| be_late(wire, random, Vec::new()).await)
}

/// The backend's kernel drops the SYN: the daemon is still connecting when the clients have sent everything.
fn a_backend_whose_queue_is_full(mode: Mode) -> Result<()> {
    let (listener, queued) = backend_with_a_full_queue()?;
    let wire = Wire::before(listener, mode, "connect_timeout = \"30s\"")?;
    wire.run(async |wire, random| be_late(wire, random, queued).await)
}

/// Clients send their hello, more, and some of them their end. Then the backend begins to accept.
async fn be_late(wire: &Wire, mut random: Random, queued: Vec<TcpStream>) -> Result<()> {
    let door = wire.backend.lock().await;
    let mut clients = BTreeMap::new();
    for number in 0..8_u64 {
        let (mut client, name) = wire.client().await?;
        let early = if number < 2 { 0 } else { random.size(60 * KB) };
        let has_ended = number % 2 == 0;
        match has_ended {
            true => client.sender.send_and_finish(early).await?,
            false => client.sender.send(early).await?,
        }
        clients.insert(name, (client, has_ended));
    }
    sleep(Duration::from_millis(1_500)).await;
    for _ in queued {
        door.accept().await?;
    }
    while !clients.is_empty() {
        let Some((name, mut backend)) = wire.accept_any(&door).await? else { continue };
        let (mut client, has_ended) = clients.remove(&name).context("a client is connected twice")?;
        let id = wire.id(name);
        if has_ended {
            backend.receiver.end_at(client.sender.at()).await?;
            backend.sender.send_and_finish(10 * KB).await?;
            client.receiver.end_at(10 * KB).await?;
            wire.recorded(id, "closed", client.sender.at(), 10 * KB).await?;
        } else {
            backend.receiver.receive(client.sender.at()).await?;
            let mut pair = Pair { client, backend, id };
            pair.chat(100, 500, &mut random).await?;
            pair.bulk(MB, MB).await?;
            pair.close(wire).await?;
        }
    }
    Ok(())
}

/// It has as many connections as it has room for. The room is for all that come later, too: with less, the kernel
/// answers by SYN cookies, and resets what it then has no room for.
fn backend_with_a_full_queue() -> Result<(TcpListener, Vec<TcpStream>)> {
    const ROOM: i32 = 16;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(ROOM)?;
    let listener = TcpListener::from(socket);
    let addr = listener.local_addr()?;
    let queued = (0..=ROOM).map(|_| TcpStream::connect(addr)).collect::<Result<_, _>>()?;
    Ok((listener, queued))
}

/// The kill switch, with pairs of every kind under it.
fn the_mode_is_switched_all_the_time(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        let end = Instant::now() + Duration::from_secs(8);
        let mut tasks = JoinSet::new();
        for kind in 0..6 {
            let (wire, mut random) = (Arc::clone(wire), random.fork());
            tasks.spawn(async move {
                let mut pair = wire.pair().await?;
                while Instant::now() < end {
                    match kind % 3 {
                        0 => pair.chat(20, KB, &mut random).await?,
                        1 => pair.bulk(random.size(4 * MB), random.size(4 * MB)).await?,
                        _ if random.percent(50) => pair.chat(100, KB, &mut random).await?,
                        _ => pair.bulk(random.size(MB), random.size(MB)).await?,
                    }
                    sleep(random.duration(Duration::from_millis(20))).await;
                }
                pair.close(&wire).await
            });
        }
        let switching = async {
            let modes = Mode::all("the_mode_is_switched_all_the_time")?;
            while Instant::now() < end {
                let to = modes[random.below(modes.len() as u64) as usize].name();
                let wire = Arc::clone(wire);
                spawn_blocking(move || wire.edge.ctl(&["splice", to])).await??;
                sleep(random.duration(Duration::from_millis(300))).await;
            }
            Ok(())
        };
        tokio::try_join!(all(tasks), switching).map(drop)
    })
}

/// A third of the shutdown timeout is the time after which a pair counts as quiet.
///
/// Pairs that have something to do finish it; those that have not are told. The daemon then waits for nobody.
fn a_drain(mode: Mode) -> Result<()> {
    let wire = Wire::start(mode, "shutdown_timeout = \"12s\"")?;
    wire.run_out(Duration::from_secs(20), async |wire, mut random| {
        let mut tasks = JoinSet::new();
        let begin = Instant::now();
        for kind in 0..9 {
            let (wire, mut random) = (Arc::clone(wire), random.fork());
            let mut pair = wire.pair().await?;
            pair.chat([0, 1, 300][kind / 3], 500, &mut random).await?;
            tasks.spawn(async move {
                if kind % 3 == 0 {
                    return be_told(&wire, pair).await;
                }
                while begin.elapsed() < Duration::from_secs(5) {
                    match kind % 3 {
                        1 => pair.chat(5, KB, &mut random).await?,
                        _ => pair.bulk(random.size(MB), random.size(MB)).await?,
                    }
                    sleep(random.duration(Duration::from_millis(40))).await;
                }
                pair.close(&wire).await
            });
        }
        sleep(Duration::from_secs(1)).await;
        wire.daemon.signal(Signal::TERM)?;
        all(tasks).await?;
        ensure!(wire.daemon.log().matching(&["shutdown timeout exceeded"]).is_empty(), "it had to force");
        Ok(())
    })
}

/// Both sides hear the end, each says its own, and that is all.
async fn be_told(wire: &Wire, mut pair: Pair) -> Result<()> {
    for peer in [&mut pair.client, &mut pair.backend] {
        let ending = timeout(Duration::from_secs(20), peer.receiver.ending()).await.context("nobody is told")??;
        ensure!(ending == Ending::Closed, "told with {ending:?}");
    }
    pair.client.sender.finish()?;
    pair.backend.sender.finish()?;
    wire.recorded(pair.id, "told", pair.client.sender.at(), pair.backend.sender.at()).await
}

/// A stream while the daemon is stopped: who sends, in which writes.
#[derive(Clone, Copy, Debug)]
struct Stream {
    is_upwards: bool,
    write: usize,
}

/// What the kernel does without the daemon stays within bounds, and goes on where it was.
fn a_daemon_that_is_stopped(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        let mut pairs = Vec::new();
        for (is_upwards, write, rounds) in
            [(true, 100_000, 0), (false, 100_000, 300), (true, 100, 300), (false, 100, 300)]
        {
            let mut pair = wire.pair().await?;
            pair.chat(rounds, 500, &mut random).await?;
            pairs.push((Stream { is_upwards, write }, pair));
        }
        let mut chatty = wire.pair().await?;
        let mut positions = Vec::new();
        let mut tasks = JoinSet::new();
        let end = Instant::now() + Duration::from_secs(9);
        for (stream, pair) in pairs {
            let (from, to) =
                if stream.is_upwards { (&pair.client, &pair.backend) } else { (&pair.backend, &pair.client) };
            positions.push((from.sender.position(), to.receiver.position()));
            tasks.spawn(stream.flow(Arc::clone(wire), pair, end));
        }
        let chat = async {
            while Instant::now() < end {
                chatty.chat(20, 500, &mut random).await?;
            }
            chatty.close(wire).await
        };
        let stop = async {
            sleep(Duration::from_secs(2)).await;
            wire.daemon.signal(Signal::STOP)?;
            sleep(Duration::from_secs(4)).await;
            let on_the_way = |(sent, got): &(Position, Position)| sent.bytes().saturating_sub(got.bytes());
            let held = positions.iter().map(on_the_way).collect::<Vec<_>>();
            wire.daemon.signal(Signal::CONT)?;
            let (receive, send) = buffer_limits()?;
            let limit = receive + 2 * send + (8 << 20);
            println!("{}: {held:?} bytes on their way while the daemon is stopped", mode.name());
            ensure!(held.iter().all(|held| *held < limit), "{held:?} bytes are on their way, more than {limit}");
            Ok(())
        };
        tokio::try_join!(all(tasks), chat, stop).map(drop)
    })
}

impl Stream {
    async fn flow(self, wire: Arc<Wire>, mut pair: Pair, end: Instant) -> Result<()> {
        let (from, to) = if self.is_upwards {
            (&mut pair.client.sender, &mut pair.backend.receiver)
        } else {
            (&mut pair.backend.sender, &mut pair.client.receiver)
        };
        let send = async {
            while Instant::now() < end {
                from.send_in_writes_of(100 * KB, self.write).await?;
            }
            from.finish()
        };
        let ((), ending) = tokio::try_join!(send, to.ending())?;
        ensure!(
            (ending, to.at()) == (Ending::Closed, from.at()),
            "{self:?}: {ending:?} at {} of {}",
            to.at(),
            from.at()
        );
        let last = if self.is_upwards { &mut pair.backend } else { &mut pair.client };
        last.sender.finish()?;
        let (up, down) = (pair.client.sender.at(), pair.backend.sender.at());
        wire.recorded(pair.id, "closed", up, down).await.with_context(|| format!("{self:?}"))
    }
}
