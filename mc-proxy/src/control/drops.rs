//! From the kernel's events to those who watch, and to those who ban.

use std::{sync::Arc, time::Duration};

use tokio::{sync::broadcast::error::RecvError, time::timeout};

use super::{DropEvent, Drops, Plane};
use crate::{
    conn::Edge,
    firewall::{Group, OffenceKind},
    xdp::{Events, KernelDrop},
};

/// How often it is looked whether somebody watches.
const ATTENTION: Duration = Duration::from_millis(200);

/// Tells watchers what the kernel drops. The kernel is asked for events only while there is a watcher.
pub async fn tell(events: Events, drops: Drops, edge: Arc<Edge>) {
    loop {
        while drops.receiver_count() == 0 {
            tokio::time::sleep(ATTENTION).await;
        }
        let mut kernel = events.subscribe();
        while drops.receiver_count() > 0 {
            match timeout(ATTENTION, kernel.recv()).await {
                // A watcher that has just gone is none.
                Ok(Ok(event)) => drop(drops.send(of_kernel(event, &edge))),
                Ok(Err(RecvError::Closed)) => return,
                Ok(Err(RecvError::Lagged(_))) | Err(_) => {}
            }
        }
    }
}

/// Reports sources whose connections the kernel has limited, as those are reported that user space limits.
pub async fn report_violations(events: Events, edge: Arc<Edge>) {
    let mut violations = events.subscribe_violations();
    loop {
        match violations.recv().await {
            Ok(event) => edge.offences.report(event.source, OffenceKind::Rate),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

fn of_kernel(event: KernelDrop, edge: &Edge) -> DropEvent {
    DropEvent {
        at: event.at,
        interface: event.interface.to_string(),
        reason: event.reason.name(),
        group: edge.firewall.groups.name(event.group).unwrap_or(Group::DEFAULT),
        source: event.source,
        port: event.port,
        bytes: event.bytes,
        plane: Plane::Kernel,
        sampled: 1,
    }
}
