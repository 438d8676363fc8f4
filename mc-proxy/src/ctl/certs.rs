//! `mcproxyctl certs`.

use clap::Subcommand;
use mc_proxy_proto::v1;
use serde_json::{Value, json};

use super::{
    CtlError,
    client::{Client, answer},
    json,
    output::{Output, printable, table},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Certificates in use, with the days that they have left (the default).
    List,
    /// Loads all of them anew; one whose files cannot be used stays as it is.
    Reload,
}

pub(super) async fn run(args: Args, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    match args.command.unwrap_or(Command::List) {
        Command::List => list(client, out).await,
        Command::Reload => reload(client, out).await,
    }
}

async fn list(client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let certificates = answer(client.admin.list_certificates(v1::ListCertificatesRequest {})).await?.certificates;
    out.answer(
        || json!({"certificates": certificates.iter().map(json::certificate).collect::<Value>()}),
        || {
            let mut text = table(["CERTIFICATE", "NAMES", "EXPIRES", "DAYS", "ROUTES"], certificates.iter().map(row));
            for v1::Certificate { last_error, .. } in certificates.iter().filter(|one| !one.last_error.is_empty()) {
                text.push_str(&format!("not in use as it is now: {}\n", printable(last_error)));
            }
            text
        },
    )
}

fn row(certificate: &v1::Certificate) -> [String; 5] {
    let v1::Certificate { tls_cert, names, not_after, days_left, routes, .. } = certificate;
    let days = not_after.as_ref().map_or_else(|| "-".to_owned(), |_| days_left.to_string());
    let expires = not_after.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    let routes = routes.iter().map(|used| format!("{} {}", used.listener_addr, used.route));
    [tls_cert.clone(), names.join(","), expires, days, routes.collect::<Vec<_>>().join(", ")]
}

async fn reload(client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let reloaded = answer(client.admin.reload_certificates(v1::ReloadCertificatesRequest {})).await?;
    let v1::ReloadCertificatesResponse { replaced, unchanged, failed } = &reloaded;
    out.say(format_args!("certificates: {replaced} replaced, {unchanged} unchanged, {} failed", failed.len()));
    for v1::CertificateFailure { error, .. } in failed {
        out.say(format_args!("the old one stays: {}", printable(error)));
    }
    out.answer(|| json::reloaded(&reloaded), String::new)?;
    out.flush()?;
    if failed.is_empty() { Ok(()) } else { Err(CtlError::NotReloaded(failed.len())) }
}
