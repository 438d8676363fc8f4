//! Ends that are in order arrive in order: behind the last byte, and without cutting the other direction short.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use mc_proxy_tests::{
    in_each_mode,
    traffic::{Ending, Random},
    wire::{Mode, Pair, Wire, all},
};
use tokio::{task::JoinSet, time::sleep};

const KB: u64 = 1_000;
const MB: u64 = 1_000 * KB;

in_each_mode!(
    half_closes_in_every_order,
    an_end_in_the_segment_of_the_last_byte,
    an_end_right_behind_the_hello,
    an_end_behind_a_backlog,
    a_close_behind_a_backlog,
    silence_is_timed_out_and_activity_is_not,
);

/// Who ends first.
#[derive(Clone, Copy, Debug)]
enum First {
    Client,
    Backend,
    Both,
}

fn half_closes_in_every_order(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        let mut tasks = JoinSet::new();
        for first in [First::Client, First::Backend, First::Both] {
            for rounds in [0, 1, 300] {
                let (wire, mut random) = (Arc::clone(wire), random.fork());
                tasks.spawn(async move {
                    let mut pair = wire.pair().await?;
                    pair.chat(rounds, 500, &mut random).await?;
                    half_close(&wire, pair, first, random).await
                });
            }
        }
        all(tasks).await.map(drop)
    })
}

/// The other side hears the end, and only then goes on, for a while and then at full speed.
async fn half_close(wire: &Wire, mut pair: Pair, first: First, mut random: Random) -> Result<()> {
    let (first, second) = match first {
        First::Client => (&mut pair.client, &mut pair.backend),
        First::Backend => (&mut pair.backend, &mut pair.client),
        First::Both => {
            let (up, down) = (random.size(MB), random.size(MB));
            pair.client.sender.send_and_finish(up).await?;
            pair.backend.sender.send_and_finish(down).await?;
            let (up, down) = (pair.client.sender.at(), pair.backend.sender.at());
            tokio::try_join!(pair.backend.receiver.end_at(up), pair.client.receiver.end_at(down))?;
            return wire.recorded(pair.id, "closed", up, down).await;
        }
    };
    let last = random.size(100 * KB);
    let said = first.sender.at() + last;
    first.sender.send(last).await?;
    first.sender.finish()?;
    second.receiver.end_at(said).await?;
    for _ in 0..20 {
        let size = random.size(64 * KB);
        second.sender.send(size).await?;
        first.receiver.receive(size).await?;
        sleep(random.duration(Duration::from_millis(60))).await;
    }
    tokio::try_join!(second.sender.send(4 * MB), first.receiver.receive(4 * MB))?;
    let total = second.sender.at();
    second.sender.finish()?;
    first.receiver.end_at(total).await?;
    wire.recorded(pair.id, "closed", pair.client.sender.at(), pair.backend.sender.at()).await
}

fn an_end_in_the_segment_of_the_last_byte(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        for length in [1, 100, 1_400, 64 * KB + 1, MB, 3 * MB] {
            for rounds in [0, 100] {
                for is_client in [true, false] {
                    let mut pair = wire.pair().await?;
                    pair.chat(rounds, 200, &mut random).await?;
                    let (first, second) = pair.sides(is_client);
                    let said = first.sender.at() + length;
                    tokio::try_join!(first.sender.send_and_finish(length), second.receiver.end_at(said))?;
                    let answer = second.sender.at() + 10;
                    second.sender.send_and_finish(10).await?;
                    first.receiver.end_at(answer).await?;
                    wire.recorded(pair.id, "closed", pair.client.sender.at(), pair.backend.sender.at()).await?;
                }
            }
        }
        Ok(())
    })
}

/// The client has ended before its backend is even known.
fn an_end_right_behind_the_hello(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, _| {
        for length in [0, 1, 100, 5 * KB, 60 * KB, 2 * MB] {
            let door = wire.backend.lock().await;
            let (mut client, number) = wire.client().await?;
            // More than the buffers take is sent only while the backend reads.
            let backend = async {
                let mut backend = wire.accept(&door, number).await?;
                backend.receiver.end_at(length).await?;
                Ok(backend)
            };
            let ((), mut backend) = tokio::try_join!(client.sender.send_and_finish(length), backend)?;
            tokio::try_join!(backend.sender.send(MB), client.receiver.receive(MB))?;
            backend.sender.finish()?;
            client.receiver.end_at(MB).await?;
            let id = wire.id(number);
            wire.recorded(id, "closed", length, MB).await?;
        }
        Ok(())
    })
}

/// The reader takes its time; the end comes behind everything.
fn an_end_behind_a_backlog(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        let mut tasks = JoinSet::new();
        for is_client in [true, false] {
            for rounds in [0, 300] {
                let (wire, mut random) = (Arc::clone(wire), random.fork());
                tasks.spawn(async move {
                    let mut pair = wire.pair().await?;
                    pair.chat(rounds, 500, &mut random).await?;
                    let (first, second) = pair.sides(is_client);
                    let total = first.sender.at() + 16 * MB;
                    let read = async {
                        sleep(Duration::from_secs(1)).await;
                        second.receiver.receive_at_random(total - second.receiver.at(), 256 * KB, &mut random).await?;
                        second.receiver.end_at(total).await
                    };
                    tokio::try_join!(first.sender.send_and_finish(16 * MB), read)?;
                    let answer = second.sender.at() + 10;
                    second.sender.send_and_finish(10).await?;
                    first.receiver.end_at(answer).await?;
                    wire.recorded(pair.id, "closed", pair.client.sender.at(), pair.backend.sender.at()).await
                });
            }
        }
        all(tasks).await.map(drop)
    })
}

/// Whoever has sent everything may be gone before the other begins to read.
fn a_close_behind_a_backlog(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        let mut tasks = JoinSet::new();
        for is_client in [true, false] {
            for rounds in [0, 300] {
                let (wire, mut random) = (Arc::clone(wire), random.fork());
                tasks.spawn(async move {
                    let mut pair = wire.pair().await?;
                    pair.chat(rounds, 500, &mut random).await?;
                    let id = pair.id;
                    let (mut first, mut second) = pair.into_sides(is_client);
                    let heard = second.sender.at();
                    first.sender.push(2 * MB, 64 * 1024, Duration::from_millis(300)).await?;
                    let said = first.sender.at();
                    drop(first);
                    sleep(random.duration(Duration::from_secs(1))).await;
                    second.receiver.end_at(said).await?;
                    second.sender.finish()?;
                    drop(second);
                    let (up, down) = if is_client { (said, heard) } else { (heard, said) };
                    wire.recorded(id, "closed", up, down).await
                });
            }
        }
        all(tasks).await.map(drop)
    })
}

fn silence_is_timed_out_and_activity_is_not(mode: Mode) -> Result<()> {
    Wire::start(mode, "idle_timeout = \"2s\"")?.run(async |wire, mut random| {
        let mut tasks = JoinSet::new();
        for rounds in [0, 1, 300] {
            for is_half_closed in [false, true] {
                let (wire, mut random) = (Arc::clone(wire), random.fork());
                tasks.spawn(async move {
                    let mut pair = wire.pair().await?;
                    pair.chat(rounds, 500, &mut random).await?;
                    // Bytes of either side alone keep a pair alive.
                    for _ in 0..5 {
                        sleep(Duration::from_millis(700)).await;
                        let (from, to) = pair.sides(is_half_closed);
                        from.sender.send(1).await?;
                        to.receiver.receive(1).await?;
                    }
                    if is_half_closed {
                        pair.client.sender.finish()?;
                        pair.backend.receiver.end_at(pair.client.sender.at()).await?;
                    }
                    ensure!(pair.client.receiver.ending().await? == Ending::Reset, "the client is not told");
                    if !is_half_closed {
                        ensure!(pair.backend.receiver.ending().await? == Ending::Reset, "the backend is not told");
                    }
                    wire.recorded(pair.id, "idle_timeout", pair.client.sender.at(), pair.backend.sender.at()).await
                });
            }
        }
        all(tasks).await.map(drop)
    })
}
