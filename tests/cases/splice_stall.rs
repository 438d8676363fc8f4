//! A reader that does not read: the sender is held back, the host's memory stays as it is, and everything arrives in the
//! end. All modes at once, for it takes a minute, and no other test beside it, for the memory is the whole host's.

use std::{sync::Arc, thread, time::Duration};

use anyhow::{Result, anyhow, ensure};
use mc_proxy_tests::{
    privilege::{can_run, missing_for_namespaces},
    topology::Namespace,
    traffic::Random,
    wire::{Memory, Mode, Pair, Wire, all, limit_buffers},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

const KB: u64 = 1_000;
const MB: u64 = 1_000 * KB;
const GB: u64 = 1_000 * MB;

/// For how long nobody reads.
const STALL: Duration = Duration::from_secs(60);

/// The same for small segments.
const SHORT_STALL: Duration = Duration::from_secs(20);

/// What a stalled pair may cost the host (issue of the data plane), with the buffers of both peers.
const GROWTH_MAX: u64 = 8 << 20;

/// Buffers of the peers themselves, which are not the daemon's doing.
const PEER_BUFFER: usize = 64 << 10;

/// What the kernel may let a socket buffer grow to. With one to receive and one to send, half of what a pair may cost is
/// the daemon's to add.
const SOCKET_BUFFER: u64 = 2 << 20;

/// One pair that stalls: who does not read, and what the pair did and does.
#[derive(Clone, Copy, Debug)]
struct Stall {
    is_client_deaf: bool,
    rounds: u64,
    write: usize,
}

#[test]
fn a_minute_without_a_reader() -> Result<()> {
    let test = "a_minute_without_a_reader";
    if !can_run(test, missing_for_namespaces())? {
        return Ok(());
    }
    let modes = Mode::all(test)?;
    let base = Memory::now()?;
    let pairs = 6 * modes.len() as u64;
    let threads = modes.into_iter().map(|mode| thread::spawn(move || stalled(mode, base, pairs))).collect::<Vec<_>>();
    let results = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a mode panicked"))?);
    results.collect::<Vec<_>>().into_iter().collect()
}

fn stalled(mode: Mode, base: Memory, pairs: u64) -> Result<()> {
    let namespace = Namespace::new("stall")?;
    namespace.run(|| limit_buffers(SOCKET_BUFFER, SOCKET_BUFFER))??;
    Wire::within(&namespace, mode, "")?.run(async |wire, mut random| {
        let (start, resident) = (Instant::now(), wire.daemon.resident_bytes()?);
        let mut tasks = JoinSet::new();
        for is_client_deaf in [true, false] {
            for (rounds, write) in [(0, 64 << 10), (300, 64 << 10), (300, 100)] {
                let (stall, wire, random) = (Stall { is_client_deaf, rounds, write }, Arc::clone(wire), random.fork());
                tasks.spawn(async move {
                    let mut pair = wire.pair().await?;
                    for peer in [&pair.client, &pair.backend] {
                        peer.limit_buffers(PEER_BUFFER)?;
                    }
                    stall.hold(&mut pair, random).await?;
                    pair.close(&wire).await
                });
            }
        }
        let watch = async {
            for (begin, end) in [(SHORT_STALL / 2, SHORT_STALL), (SHORT_STALL + SHORT_STALL / 2, STALL)] {
                sleep_until(start + begin).await;
                let (mut least, mut grown) = (Memory::now()?.since(base), 0);
                // What others do comes and goes; what the pairs hold stays for the whole time.
                while Instant::now() < start + end {
                    sleep(Duration::from_millis(500)).await;
                    least = least.min(Memory::now()?.since(base));
                    grown = grown.max(wire.daemon.resident_bytes()?.saturating_sub(resident));
                }
                println!("{}: {pairs} pairs cost {least:?}, and {grown} in the daemon", mode.name());
                ensure!(
                    least.most() + grown < pairs * GROWTH_MAX,
                    "{pairs} pairs that stall cost the host {least:?}, and {grown} in the daemon"
                );
            }
            Ok(())
        };
        tokio::try_join!(all(tasks), watch).map(drop)
    })
}

impl Stall {
    async fn hold(self, pair: &mut Pair, mut random: Random) -> Result<()> {
        pair.chat(self.rounds, 500, &mut random).await?;
        let (talker, deaf) = if self.is_client_deaf {
            (&mut pair.backend, &mut pair.client)
        } else {
            (&mut pair.client, &mut pair.backend)
        };
        let begin = talker.sender.at();
        // A kernel that has run out of room for small segments drops all that comes with them, also what a stream the
        // other way needs, and the sender comes back to it later and later.
        let is_small = self.write < KB as usize;
        let (time, rounds) = if is_small { (SHORT_STALL, 0) } else { (STALL, 10) };
        let other_way = async {
            // Who does not read may still write.
            for _ in 0..rounds {
                deaf.sender.send(KB).await?;
                talker.receiver.receive(KB).await?;
                sleep(STALL / 12).await;
            }
            Ok(())
        };
        let (pushed, ()) = tokio::try_join!(talker.sender.push(10 * GB, self.write, time), other_way)?;
        let held = begin + pushed - deaf.receiver.at();
        println!("{self:?}: {held} bytes between the sender and a reader that does not read");
        ensure!(held < GROWTH_MAX, "{self:?}: {held} bytes were taken from the sender, and nobody reads them");
        tokio::try_join!(talker.sender.send(2 * MB), deaf.receiver.receive(held + 2 * MB))?;
        pair.chat(20, 500, &mut random).await
    }
}
