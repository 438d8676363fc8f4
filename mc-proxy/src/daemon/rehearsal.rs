//! What a successor finds out before it asks: whether it would start on the database as it is. It does so on a copy, since
//! the database is the other daemon's, and a schema once migrated would lock that one out.

use super::{Failure, Opened, check_transparent, open_certificates, open_geoip, open_store};
use crate::{
    config::Config,
    exit::Exit,
    store::{self, StoreError},
};

/// Opens, checks and migrates a copy, reads everything in it, and asks of the host what can be asked.
pub(super) fn rehearse(config: &Config) -> Result<(), Failure> {
    let beside = config.database.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = tempfile::Builder::new()
        .prefix(".mc-proxy-takeover-")
        .tempdir_in(beside.unwrap_or_else(|| ".".as_ref()))
        .map_err(|error| Failure::because(Exit::Failure, "making a directory beside the database", &error))?;
    let copied = |error: StoreError| Failure::because(Exit::Failure, "copying the database", &error);
    let copy = store::snapshot(&config.database, Some(&directory.path().join("copy.db"))).map_err(copied)?;
    let Opened { desired, .. } = open_store(&copy, &config.seed)?;
    open_geoip(config, &desired.rules)?;
    // The daemon that runs has certificates that have loaded, and may still serve with one whose file is broken.
    open_certificates(&desired.listeners, true)?;
    check_transparent(&desired.listeners, config.proxy.transparent_mark)
}
