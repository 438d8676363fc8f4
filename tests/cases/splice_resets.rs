//! A stream that was cut is never taken for a whole one, in every splice mode, and nothing of it stays in the daemon.

use std::{
    io::{self, ErrorKind},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Error, Result, ensure};
use mc_proxy_tests::{
    in_each_mode,
    traffic::{Ending, Peer, Random, Receiver},
    wire::{Mode, Pair, Wire, all},
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

const KB: u64 = 1_000;
const MB: u64 = 1_000 * KB;

/// A reset has to have arrived by then.
const RESET_LIMIT: Duration = Duration::from_secs(10);

in_each_mode!(
    resets_at_any_byte,
    a_reset_of_a_silent_pair,
    a_reset_behind_a_half_close,
    a_thousand_pairs_that_are_killed,
);

/// Either side, in the middle of its own stream, of the other's, or of both.
fn resets_at_any_byte(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        for _ in 0..10 {
            let mut tasks = JoinSet::new();
            for _ in 0..8 {
                let (wire, random) = (Arc::clone(wire), random.fork());
                tasks.spawn(async move {
                    let pair = wire.pair().await?;
                    cut(&wire, pair, random).await
                });
            }
            all(tasks).await?;
        }
        Ok(())
    })
}

async fn cut(wire: &Wire, mut pair: Pair, mut random: Random) -> Result<()> {
    let rounds = if random.percent(50) { random.size(300) } else { 0 };
    pair.chat(rounds, 500, &mut random).await?;
    let (id, is_client) = (pair.id, random.percent(50));
    let (mut first, second) = pair.into_sides(is_client);
    // One that sends without an end, from the side that is to be told.
    let streams_back = random.percent(50);
    let Peer { sender: mut back, receiver: mut told, .. } = second;
    let streaming = tokio::spawn(async move {
        let mut sent = Ok(());
        while streams_back && sent.is_ok() {
            sent = back.send(10 * KB).await;
        }
        // A reset is told to one of both, the next write or the next read. Behind a FIN it would be a broken pipe.
        sent.is_err_and(|error| is_reset_by_peer(&error))
    });
    let listening = tokio::spawn(async move { ended(&mut told).await });
    let mut heard = random.fork();
    let (said, read) = (random.size(2 * MB), if streams_back { random.size(2 * MB) } else { 0 });
    let what = format!("after {rounds} rounds, {said} bytes said and {read} heard, by the client: {is_client}");
    tokio::try_join!(
        first.sender.send_at_random(said, 256 * KB, &mut random),
        first.receiver.receive_at_random(read, 256 * KB, &mut heard),
    )
    .with_context(|| format!("before the reset {what}"))?;
    first.reset()?;
    let ending = listening.await?.with_context(|| what.clone())?;
    let is_told = streaming.await? || ending == Ending::Reset;
    ensure!(is_told, "{ending:?} {what}");
    let reason = wire.record(id).await?.reason;
    let expected = if is_client { "client_reset" } else { "backend_reset" };
    ensure!(reason == expected, "{reason} was recorded {what}");
    Ok(())
}

fn is_reset_by_peer(error: &Error) -> bool {
    error.root_cause().downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

async fn ended(receiver: &mut Receiver) -> Result<Ending> {
    timeout(RESET_LIMIT, receiver.ending()).await.context("the other side is not told of the reset")?
}

/// Nobody sends anything that could fail.
fn a_reset_of_a_silent_pair(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        let mut tasks = JoinSet::new();
        for is_client in [true, false] {
            for rounds in [0, 300] {
                for seconds in [0, 2] {
                    let (wire, mut random) = (Arc::clone(wire), random.fork());
                    tasks.spawn(async move {
                        let mut pair = wire.pair().await?;
                        pair.chat(rounds, 500, &mut random).await?;
                        sleep(Duration::from_secs(seconds)).await;
                        let (id, up, down) = (pair.id, pair.client.sender.at(), pair.backend.sender.at());
                        let (first, mut second) = pair.into_sides(is_client);
                        first.reset()?;
                        let ending = ended(&mut second.receiver).await?;
                        ensure!(ending == Ending::Reset, "{ending:?} after {rounds} rounds, {seconds} s of silence");
                        let reason = if is_client { "client_reset" } else { "backend_reset" };
                        wire.recorded(id, reason, up, down).await
                    });
                }
            }
        }
        all(tasks).await.map(drop)
    })
}

/// Whoever has ended its side can still be cut off, and can still cut off.
fn a_reset_behind_a_half_close(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        let mut tasks = JoinSet::new();
        for is_client in [true, false] {
            for by_the_one_that_ended in [true, false] {
                for rounds in [0, 300] {
                    let (wire, mut random) = (Arc::clone(wire), random.fork());
                    tasks.spawn(async move {
                        let mut pair = wire.pair().await?;
                        pair.chat(rounds, 500, &mut random).await?;
                        let id = pair.id;
                        let (mut first, mut second) = pair.into_sides(is_client);
                        first.sender.send_and_finish(100).await?;
                        second.receiver.end_at(first.sender.at()).await?;
                        tokio::try_join!(second.sender.send(MB), first.receiver.receive(MB))?;
                        if by_the_one_that_ended {
                            first.reset()?;
                            // After the end that it has read, a reset shows when it writes.
                            let told = async { while second.sender.send(KB).await.is_ok() {} };
                            timeout(RESET_LIMIT, told).await.context("the other side is not told of the reset")?;
                        } else {
                            second.reset()?;
                            let ending = ended(&mut first.receiver).await?;
                            ensure!(ending == Ending::Reset, "{ending:?} after {rounds} rounds");
                        }
                        let reason = wire.record(id).await?.reason;
                        let is_client = is_client == by_the_one_that_ended;
                        let expected = if is_client { "client_reset" } else { "backend_reset" };
                        ensure!(reason == expected, "{reason} was recorded after {rounds} rounds");
                        Ok(())
                    });
                }
            }
        }
        all(tasks).await.map(drop)
    })
}

/// What one side of a pair does in the end.
#[derive(Clone, Copy, Debug)]
enum Kill {
    Reset,
    Finish,
    Close,
}

/// Afterwards the daemon is as it was, and serves.
fn a_thousand_pairs_that_are_killed(mode: Mode) -> Result<()> {
    Wire::start(mode, "")?.run(async |wire, mut random| {
        let mut tasks = JoinSet::new();
        for _ in 0..1_000 {
            let (pair, random) = (wire.pair().await?, random.fork());
            tasks.spawn(live_and_die(pair, random));
        }
        all(tasks).await?;
        let mut pair = wire.pair().await?;
        pair.chat(300, KB, &mut random).await?;
        pair.bulk(MB, MB).await?;
        pair.close(wire).await
    })
}

async fn live_and_die(mut pair: Pair, mut random: Random) -> Result<()> {
    if random.percent(50) {
        let rounds = random.size(200);
        pair.chat(rounds, 300, &mut random).await?;
    }
    sleep(random.duration(Duration::from_secs(3))).await;
    let (mut first, mut second) = pair.into_sides(random.percent(50));
    let kill = [Kill::Reset, Kill::Finish, Kill::Close][random.below(3) as usize];
    let (said, answered) = (random.size(200 * KB), if random.percent(50) { random.size(200 * KB) } else { 0 });
    let what = format!("{kill:?} by {} after {said} bytes, {answered} back", first.addr());
    let living = async {
        tokio::try_join!(
            first.sender.send(said),
            second.receiver.receive(said),
            second.sender.send(answered),
            first.receiver.receive(answered)
        )
    };
    living.await.with_context(|| what.clone())?;
    // Some of what is on its way is lost with a reset, and nothing with an end in order.
    let last = random.size(100 * KB);
    first.sender.try_send(last as usize)?;
    let said = first.sender.at();
    match kill {
        Kill::Reset => first.reset()?,
        Kill::Finish => {
            first.sender.finish()?;
            second.receiver.end_at(said).await.with_context(|| what.clone())?;
            second.sender.send_and_finish(10).await?;
            return first.receiver.end_at(second.sender.at()).await.context(what);
        }
        Kill::Close => {
            drop(first);
            return second.receiver.end_at(said).await.context(what);
        }
    }
    let ending = ended(&mut second.receiver).await.with_context(|| what.clone())?;
    ensure!(ending == Ending::Reset, "{ending:?} {what}");
    Ok(())
}
