//! `mcproxyctl firewall watch`, and the drops for `top`.

use std::path::Path;

use mc_proxy_proto::v1;
use serde_json::json;
use tonic::Streaming;

use super::super::{
    CtlError,
    client::{Client, answer, next},
    json,
    output::{Output, printable},
};
use crate::firewall::{Group, Subject};

#[derive(Debug, clap::Args)]
pub(in crate::ctl) struct Args {
    #[command(flatten)]
    which: Which,
    /// End after so many drops.
    #[arg(short = 'n', long, value_name = "NUMBER")]
    limit: Option<u64>,
}

/// Which drops.
#[derive(Debug, clap::Args)]
pub(in crate::ctl) struct Which {
    /// Only by rules of this group.
    #[arg(long, value_name = "NAME")]
    group: Option<Group>,
    /// Only from this address or prefix.
    #[arg(long, value_name = "CIDR")]
    source: Option<Subject>,
}

/// Drops, over as many calls as it takes: the daemon ends each after some minutes.
pub(super) struct Drops {
    request: v1::WatchDropsRequest,
    answers: Streaming<v1::WatchDropsResponse>,
}

impl Drops {
    pub(super) async fn new(which: &Which, client: &mut Client) -> Result<Self, CtlError> {
        let request = v1::WatchDropsRequest {
            group: which.group.map(|group| group.to_string()).unwrap_or_default(),
            source: which.source.map(|source| source.to_string()).unwrap_or_default(),
        };
        Ok(Self { answers: answer(client.admin.watch_drops(request.clone())).await?, request })
    }

    /// The next drops, however long that takes.
    pub(super) async fn next(&mut self, socket: &Path) -> Result<v1::WatchDropsResponse, CtlError> {
        loop {
            if let Some(answer) = next(&mut self.answers).await? {
                return Ok(answer);
            }
            // Connections are mortal too, so this takes a new one.
            let mut client = Client::connect(socket).await?;
            self.answers = answer(client.admin.watch_drops(self.request.clone())).await?;
        }
    }
}

pub(super) async fn run(args: &Args, socket: &Path, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let mut drops = Drops::new(&args.which, client).await?;
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let v1::WatchDropsResponse { events, missed } = drops.next(socket).await?;
        if missed > 0 {
            out.answer_part(|| format!("{}\n", json!({"missed": missed})), String::new)?;
            out.say(format_args!("{missed} drops were too many to show"));
        }
        for event in &events {
            if left == 0 {
                break;
            }
            left -= 1;
            out.answer_part(|| format!("{}\n", json::drop_event(event)), || line(event))?;
        }
        out.flush()?;
    }
    Ok(())
}

fn line(event: &v1::DropEvent) -> String {
    let at = event.at.map(|at| at.to_string()).unwrap_or_default();
    let v1::DropEvent { interface, reason, group, source, port, bytes, plane, sampled, .. } = event;
    let number = if *sampled > 1 { format!(" (one of {sampled})") } else { String::new() };
    printable(&format!("{at} {plane} {interface} {source} -> :{port} {reason} group={group} bytes={bytes}{number}"))
        + "\n"
}
