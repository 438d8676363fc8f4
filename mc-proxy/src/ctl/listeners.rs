//! `mcproxyctl listeners`.

use clap::Subcommand;
use mc_proxy_proto::v1;
use serde_json::{Value, json};

use super::{
    CtlError,
    client::{Client, answer},
    json,
    output::{Output, table},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Listeners with their limits and counts.
    List,
    /// Limits the connections that a listener has at a time; those it has stay.
    SetMaxConnections {
        /// As in the configuration, such as `:443`.
        listener: String,
        /// 0 = unlimited.
        #[arg(value_parser = clap::value_parser!(i64).range(0..))]
        max: i64,
    },
}

pub(super) async fn run(command: Command, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    match command {
        Command::List => list(client, out).await,
        Command::SetMaxConnections { listener, max } => {
            let request =
                v1::SetListenerMaxConnectionsRequest { listener_addr: listener.clone(), max_connections: max };
            answer(client.admin.set_listener_max_connections(request)).await?;
            match max {
                0 => out.say(format_args!("{listener}: connections are not limited")),
                max => out.say(format_args!("{listener}: at most {max} connections")),
            }
            out.answer(|| json!({"listener_addr": listener, "max_connections": max}), String::new)
        }
    }
}

async fn list(client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let listeners = answer(client.admin.get_status(v1::GetStatusRequest {})).await?.listeners;
    let limit = |max: i64| if max == 0 { "unlimited".to_owned() } else { max.to_string() };
    let rows = listeners.iter().map(|listener| {
        [
            listener.addr.clone(),
            listener.route_count.to_string(),
            listener.active_connections.to_string(),
            limit(listener.max_connections),
            limit(listener.max_connections_per_source),
            proxy(listener),
            listener.accepted_total.to_string(),
        ]
    });
    out.answer(
        || json!({"listeners": listeners.iter().map(json::listener).collect::<Value>()}),
        || table(["LISTENER", "ROUTES", "ACTIVE", "MAX", "PER SOURCE", "PROXY", "ACCEPTED"], rows),
    )
}

/// Whose PROXY headers are believed.
fn proxy(listener: &v1::ListenerStatus) -> String {
    match (listener.proxy_protocol, listener.proxy_trust_any) {
        (false, _) => "-".to_owned(),
        (true, true) => "from anybody".to_owned(),
        (true, false) => listener.proxy_trusted.join(","),
    }
}
