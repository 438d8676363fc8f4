//! `mcproxyctl firewall explain`.

use std::{fmt::Write as _, net::IpAddr};

use mc_proxy_proto::v1;

use super::{
    super::{
        CtlError,
        client::{Client, answer},
        json,
        output::{Output, printable},
    },
    list::{action, expires},
};

#[derive(Debug, clap::Args)]
pub(in crate::ctl) struct Args {
    /// Whose packets.
    source: IpAddr,
    /// The server name that the client asks for, to be told the route.
    server_name: Option<String>,
    /// The application protocols that the client offers, such as `h2,http/1.1`.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    alpn: Vec<String>,
    /// At which listener, as in the configuration; the first one when absent.
    #[arg(long, value_name = "ADDR")]
    listener: Option<String>,
}

pub(super) async fn run(args: Args, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let request = v1::ExplainFirewallRequest {
        source: args.source.to_string(),
        listener_addr: args.listener.unwrap_or_default(),
        server_name: args.server_name.unwrap_or_default(),
        alpn: args.alpn,
    };
    let explained = answer(client.admin.explain_firewall(request)).await?;
    out.answer(|| json::explanation(&args.source, &explained), || text(args.source, &explained))
}

/// Writing to a `String` cannot fail, hence the discarded results.
fn text(source: IpAddr, explained: &v1::ExplainFirewallResponse) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{source}: {} ({})", printable(&explained.verdict), printable(&explained.reason));
    if let Some(rule) = &explained.decisive {
        let _ = writeln!(out, "decided by: {}", line(rule));
    }
    for considered in &explained.considered {
        let Some(rule) = &considered.rule else { continue };
        let word = if considered.holds { "holds" } else { "does not hold" };
        let (tier, why) = (printable(&considered.tier), printable(&considered.why));
        let _ = writeln!(out, "  {tier}: {} {word}: {why}", line(rule));
    }
    let country = if explained.country.is_empty() { "unknown" } else { &explained.country };
    let _ = writeln!(out, "country: {}", printable(country));
    let _ = match explained.kernel.clone().unwrap_or_default() {
        v1::KernelAnswer { ran: true, drop, reason, .. } => {
            writeln!(out, "kernel: {} ({})", if drop { "drops" } else { "passes" }, printable(&reason))
        }
        v1::KernelAnswer { not_attached, .. } => writeln!(out, "kernel: not asked ({})", printable(&not_attached)),
    };
    let _ = writeln!(out, "user space: {}", printable(&explained.user));
    if !explained.route.is_empty() {
        let _ = writeln!(out, "route: {}", printable(&explained.route));
    }
    out
}

fn line(rule: &v1::FirewallRule) -> String {
    let mut text = format!("{} {} group={} scope={}", action(rule), rule.value, rule.group, rule.scope);
    if rule.expires_at.is_some() {
        let _ = write!(text, " expires={}", expires(rule));
    }
    if !rule.comment.is_empty() {
        let _ = write!(text, " ({})", rule.comment);
    }
    printable(&text)
}
