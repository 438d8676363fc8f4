//! `mcproxyctl health`.

use serde_json::json;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use super::{
    CtlError,
    client::{Client, answer},
    output::Output,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A service by its full name; the whole daemon when absent.
    #[arg(long, default_value = "", hide_default_value = true)]
    service: String,
}

pub(super) async fn run(args: Args, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let request = HealthCheckRequest { service: args.service.clone() };
    let status = answer(client.health.check(request)).await?.status();
    let name = status.as_str_name();
    out.answer(|| json!({"service": args.service, "status": name}), || format!("{name}\n"))?;
    if status == ServingStatus::Serving { Ok(()) } else { Err(CtlError::NotServing(name)) }
}
