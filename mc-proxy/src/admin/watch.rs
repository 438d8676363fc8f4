//! Streams of answers: pages of rules, and drops as they happen. Each is written by a task that ends with its reader.

use std::time::Duration;

use mc_proxy_proto::v1;
use tokio::{
    sync::{
        OwnedSemaphorePermit,
        broadcast::{self, error::RecvError, error::TryRecvError},
        mpsc,
    },
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::convert::{self, DropFilter};
use crate::control::{Control, DropEvent, RuleFilter};

/// Calls of `WatchDrops` at a time.
pub(super) const WATCHERS: usize = 8;
/// How long one of them goes on; a connection does not live much longer.
pub(super) const WATCH_MAX: Duration = Duration::from_secs(10 * 60);
/// How long a reader may take for all pages.
const LIST_MAX: Duration = Duration::from_secs(5 * 60);
/// Rules of a page, of which the largest is some 400 bytes.
pub(super) const PAGE: usize = 1000;
/// Events of a message.
const BATCH: usize = 64;
/// Messages that wait for their reader.
const BUFFER: usize = 4;

type Answers<T> = ReceiverStream<Result<T, Status>>;

/// Every rule that the filter lets through.
pub(super) fn list(control: Control, filter: RuleFilter) -> Answers<v1::ListFirewallRulesResponse> {
    let (send, answers) = mpsc::channel(BUFFER);
    tokio::spawn(async move {
        let pages = async {
            let mut after = None;
            loop {
                let page = control.list(filter, after, PAGE).await.map_err(convert::control_error)?;
                after = page.last().map(|last| last.rule.key);
                let is_last = page.len() < PAGE;
                let rules = page.into_iter().map(convert::listed_to_proto).collect::<Vec<_>>();
                if !rules.is_empty() && send.send(Ok(v1::ListFirewallRulesResponse { rules })).await.is_err() {
                    return Ok(());
                }
                if is_last {
                    return Ok(());
                }
            }
        };
        let ended = timeout(LIST_MAX, pages).await;
        let ended = ended.unwrap_or_else(|_| Err(Status::deadline_exceeded("the rules were not read in time")));
        if let Err(status) = ended {
            // A reader that is gone misses nothing.
            let _ = send.try_send(Err(status));
        }
    });
    ReceiverStream::new(answers)
}

/// Drops, until the reader goes, the daemon stops, or [`WATCH_MAX`] is over.
pub(super) fn drops(
    mut drops: broadcast::Receiver<DropEvent>,
    filter: DropFilter,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
) -> Answers<v1::WatchDropsResponse> {
    let (send, answers) = mpsc::channel(BUFFER);
    tokio::spawn(async move {
        let events = async {
            while let Some(answer) = batch(&mut drops, filter).await {
                let is_empty = answer.events.is_empty() && answer.missed == 0;
                if !is_empty && send.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            _ = timeout(WATCH_MAX, events) => {}
            () = send.closed() => {}
            () = stop.cancelled() => {}
        }
        drop(permit);
    });
    ReceiverStream::new(answers)
}

/// Waits for one drop and takes what has come with it; empty when the filter lets nothing through.
async fn batch(drops: &mut broadcast::Receiver<DropEvent>, filter: DropFilter) -> Option<v1::WatchDropsResponse> {
    let mut answer = v1::WatchDropsResponse::default();
    let mut take = |event: DropEvent| {
        if filter.lets_through(&event) {
            answer.events.push(convert::drop_to_proto(event));
        }
    };
    let mut missed = 0;
    match drops.recv().await {
        Ok(event) => take(event),
        Err(RecvError::Lagged(number)) => missed += number,
        Err(RecvError::Closed) => return None,
    }
    for _ in 1..BATCH {
        match drops.try_recv() {
            Ok(event) => take(event),
            // What is missed stands before the events of a message.
            Err(TryRecvError::Lagged(number)) => missed += number,
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    answer.missed = missed;
    Some(answer)
}
