//! What is relayed arrives: every byte, in order, both ways, in every splice mode.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use mc_proxy_tests::{
    in_each_mode,
    traffic::{Random, Receiver, Sender},
    wire::{Mode, Wire, all},
};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::sleep,
};

const KB: u64 = 1_000;
const MB: u64 = 1_000 * KB;

in_each_mode!(
    random_sizes_and_pauses,
    single_bytes,
    chatty_then_bulk_then_chatty,
    silence_and_then_more,
    one_way_streams_of_small_writes,
);

/// Four pairs, each with two streams that know nothing of one another.
fn random_sizes_and_pauses(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        let mut tasks = JoinSet::new();
        for largest in [KB, 20 * KB, 300 * KB, 4 * MB] {
            let (wire, mut random) = (Arc::clone(wire), random.fork());
            tasks.spawn(async move {
                let mut pair = wire.pair().await?;
                let most = (100 * largest).min(16 * MB);
                let (up, down) = (random.within(most / 4..most), random.within(most / 4..most));
                tokio::try_join!(
                    at_random(&mut pair.client.sender, &mut pair.backend.receiver, up, largest, random.fork()),
                    at_random(&mut pair.backend.sender, &mut pair.client.receiver, down, largest, random.fork()),
                )?;
                pair.close(&wire).await
            });
        }
        all(tasks).await.map(drop)
    })
}

async fn at_random(
    sender: &mut Sender,
    receiver: &mut Receiver,
    length: u64,
    largest: u64,
    mut random: Random,
) -> Result<()> {
    let mut reader = random.fork();
    tokio::try_join!(
        sender.send_at_random(length, largest, &mut random),
        receiver.receive_at_random(length, largest, &mut reader),
    )?;
    Ok(())
}

/// Without Nagle's algorithm, each is a segment.
fn single_bytes(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        for is_warm in [false, true] {
            let mut pair = wire.pair().await?;
            if is_warm {
                pair.chat(500, 1, &mut random).await?;
            }
            let length = 10 * KB;
            tokio::try_join!(
                pair.client.sender.send_in_writes_of(length, 1),
                pair.backend.receiver.receive_at_random(length, 100, &mut random),
                pair.backend.sender.send_in_writes_of(length, 1),
                pair.client.receiver.receive(length),
            )?;
            pair.chat(200, 1, &mut random).await?;
            pair.close(wire).await?;
        }
        Ok(())
    })
}

/// What makes `auto` move a pair, there and back again.
fn chatty_then_bulk_then_chatty(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        let mut tasks = JoinSet::new();
        for _ in 0..6 {
            let (wire, mut random) = (Arc::clone(wire), random.fork());
            tasks.spawn(async move {
                let mut pair = wire.pair().await?;
                for _ in 0..3 {
                    pair.chat(200, KB, &mut random).await?;
                    let (up, down) = (random.size(4 * MB), random.size(4 * MB));
                    pair.bulk(up, down).await?;
                    if random.percent(50) {
                        sleep(random.duration(Duration::from_millis(700))).await;
                    }
                }
                pair.bulk(3 * MB, 0).await?;
                pair.chat(50, KB, &mut random).await?;
                pair.bulk(0, 3 * MB).await?;
                pair.close(&wire).await
            });
        }
        all(tasks).await?;
        let wire = Arc::clone(wire);
        let status = spawn_blocking(move || Ok::<_, anyhow::Error>(wire.edge.admin()?.status()?)).await??;
        let splice = status.kernel_splice.unwrap_or_default();
        let is_expected = splice.available && mode != Mode::Userspace;
        ensure!((splice.taken > 0) == is_expected, "pairs in the kernel: {splice:?}");
        Ok(())
    })
}

/// A pair that has been idle for a while goes on as if nothing had been.
fn silence_and_then_more(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        let mut tasks = JoinSet::new();
        for number in 0..6 {
            let (wire, mut random) = (Arc::clone(wire), random.fork());
            tasks.spawn(async move {
                let mut pair = wire.pair().await?;
                for seconds in [1, 3] {
                    sleep(Duration::from_secs(seconds)).await;
                    match number % 3 {
                        0 => pair.chat(20, KB, &mut random).await?,
                        1 => pair.bulk(2 * MB, 1).await?,
                        _ => pair.bulk(0, 2 * MB).await?,
                    }
                }
                pair.close(&wire).await
            });
        }
        all(tasks).await.map(drop)
    })
}

/// As a log shipper or a ticker does it: segments that nobody answers, faster or slower than the reader.
fn one_way_streams_of_small_writes(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        let mut tasks = JoinSet::new();
        for is_upwards in [true, false] {
            for is_slow in [true, false] {
                let (wire, mut random) = (Arc::clone(wire), random.fork());
                tasks.spawn(async move {
                    let mut pair = wire.pair().await?;
                    pair.chat(100, 100, &mut random).await?;
                    let (from, to) = match is_upwards {
                        true => (&mut pair.client.sender, &mut pair.backend.receiver),
                        false => (&mut pair.backend.sender, &mut pair.client.receiver),
                    };
                    let length = 3 * MB;
                    let read = async {
                        match is_slow {
                            true => to.receive_at_random(length, 4 * KB, &mut random).await,
                            false => to.receive(length).await,
                        }
                    };
                    tokio::try_join!(from.send_in_writes_of(length, 200), read)?;
                    pair.close(&wire).await
                });
            }
        }
        all(tasks).await.map(drop)
    })
}
