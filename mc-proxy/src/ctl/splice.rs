//! `mcproxyctl splice`.

use mc_proxy_proto::v1;
use serde_json::json;

use super::{
    CtlError,
    client::{Client, answer},
    output::Output,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// `userspace` takes the kernel out of it at once; `auto` lets the daemon choose.
    #[arg(value_parser = ["auto", "sockmap", "userspace"])]
    mode: String,
}

pub(super) async fn run(args: Args, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let Args { mode } = args;
    let previous = answer(client.admin.set_splice(v1::SetSpliceRequest { mode: mode.clone() })).await?.previous;
    out.say(format_args!("splice: {mode} until the daemon ends; it was {previous}"));
    out.answer(|| json!({"mode": mode, "previous": previous}), String::new)
}
