//! Who writes access records, from start to end.

use std::time::Duration;

use super::Failure;
use crate::{
    config,
    conn::{Access, Edge},
    exit::Exit,
    http::access::writer::{AccessLog, Destination, Writer},
};

/// What records that wait get to be written at the end: whoever reads a pipe may have gone.
const FINISH: Duration = Duration::from_secs(2);

/// What connections have, and what the daemon has.
pub(super) struct Records {
    pub(super) access: Access,
    pub(super) writer: Writer,
}

/// Opens the file and starts the thread, if there are to be records.
pub(super) fn start(config: &config::Access) -> Result<Option<Records>, Failure> {
    let Some(to) = config.to.clone() else { return Ok(None) };
    let name = match &to {
        Destination::Stdout => "log.access stdout".to_owned(),
        Destination::Stderr => "log.access stderr".to_owned(),
        Destination::File(path) => format!("log.access {}", path.display()),
    };
    let (log, writer) = AccessLog::start(to).map_err(|error| Failure::because(Exit::Config, name, &error))?;
    Ok(Some(Records { access: Access { log, style: config.style, sample: config.sample }, writer }))
}

/// Writes what is waiting, and tells what was lost since the start.
pub(super) fn finish(writer: Option<Writer>, edge: &Edge) {
    let is_whole = writer.is_none_or(|writer| writer.finish(FINISH));
    let Some(access) = &edge.access else { return };
    let (dropped, failed) = (access.log.dropped(), access.log.failed());
    if !is_whole || dropped > 0 || failed > 0 {
        tracing::warn!(dropped, failed, is_whole, "access records were lost");
    }
}
