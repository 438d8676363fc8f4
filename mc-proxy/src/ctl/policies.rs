//! `mcproxyctl policies`.

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
    /// Policies of a route, in the order of evaluation.
    List(Place),
    /// Appends a policy to a route; it acts where the route terminates TLS (mode l7).
    Add {
        #[command(flatten)]
        policy: Policy,
        /// Counts what it would refuse, and refuses nothing. On a policy that exists it is changed.
        #[arg(long)]
        shadow: bool,
    },
    /// Removes a policy from a route.
    Remove(Policy),
}

#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// As in the configuration, such as `:443`.
    listener: String,
    /// Of the route, as listed.
    hostname: String,
    /// ALPN names of the route, as listed; without them the route for any client is meant.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    alpn: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Policy {
    #[command(flatten)]
    place: Place,
    /// What is looked at.
    #[arg(value_parser = ["block_user_agent", "require_header"])]
    r#type: String,
    /// Part of the user agent, or the name of the header.
    value: String,
}

pub(super) async fn run(command: Command, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    match command {
        Command::List(place) => list(place, client, out).await,
        Command::Add { policy, shadow } => {
            let (place, mut policy) = split(policy);
            policy.shadow = shadow;
            let request = v1::AddL7PolicyRequest {
                listener_addr: place.listener.clone(),
                hostname: place.hostname.clone(),
                policy: Some(policy.clone()),
                alpn: place.alpn.clone(),
            };
            answer(client.admin.add_l7_policy(request)).await?;
            changed("added", &place, &policy, out)
        }
        Command::Remove(policy) => {
            let (place, policy) = split(policy);
            let request = v1::RemoveL7PolicyRequest {
                listener_addr: place.listener.clone(),
                hostname: place.hostname.clone(),
                policy: Some(policy.clone()),
                alpn: place.alpn.clone(),
            };
            answer(client.admin.remove_l7_policy(request)).await?;
            changed("removed", &place, &policy, out)
        }
    }
}

async fn list(place: Place, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let request =
        v1::ListL7PoliciesRequest { listener_addr: place.listener, hostname: place.hostname, alpn: place.alpn };
    let policies = answer(client.admin.list_l7_policies(request)).await?.policies;
    out.answer(
        || json!({"policies": policies.iter().map(json::counted_policy).collect::<Value>()}),
        || {
            let mode = |p: &v1::L7Policy| if p.shadow { "shadow" } else { "refuse" }.to_owned();
            let row = |p: &v1::L7Policy| [p.r#type.clone(), p.value.clone(), mode(p), p.hits.to_string()];
            table(["TYPE", "VALUE", "MODE", "HITS"], policies.iter().map(row))
        },
    )
}

fn split(policy: Policy) -> (Place, v1::L7Policy) {
    (policy.place, v1::L7Policy { r#type: policy.r#type, value: policy.value, shadow: false, hits: 0 })
}

fn changed(what: &str, place: &Place, policy: &v1::L7Policy, out: &mut Output<'_>) -> Result<(), CtlError> {
    let Place { listener, hostname, alpn } = place;
    out.say(format_args!("{listener} {hostname}: policy {} \"{}\" {what}", policy.r#type, policy.value));
    let object =
        || json!({"listener_addr": listener, "hostname": hostname, "alpn": alpn, "policy": json::policy(policy)});
    out.answer(object, String::new)
}
