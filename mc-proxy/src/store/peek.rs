//! A look at a database that may be a running daemon's.

use std::path::Path;

use rusqlite::OpenFlags;

use super::{
    READING, StoreError,
    migrate::{self, MIGRATIONS},
    open::{connect, resolve},
    rows,
};
use crate::desired::Listener;

/// The listeners of the database at `path` with their routes; `None` as long as the configuration file is to fill it.
/// Nothing is changed, and no daemon is held up.
///
/// # Errors
/// [`StoreError::Unmigrated`] for an earlier schema; others as [`Store::open`](super::Store::open) and
/// [`Store::listeners`](super::Store::listeners) give them.
pub fn peek(path: &Path) -> Result<Option<Vec<Listener>>, StoreError> {
    let path = resolve(path)?;
    if !path.exists() {
        return Ok(None);
    }
    let conn = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let version = migrate::version(&conn, &path, MIGRATIONS)?;
    if version.is_blank() {
        return Ok(None);
    }
    if !version.is_newest(MIGRATIONS) {
        return Err(StoreError::Unmigrated { path });
    }
    // One read transaction: all tables as of one moment.
    let read = || {
        let tx = conn.unchecked_transaction()?;
        if rows::is_empty(&tx)? { Ok(None) } else { rows::listeners(&tx, &path).map(Some) }
    };
    read().map_err(|failure| failure.at(READING, &path))
}
