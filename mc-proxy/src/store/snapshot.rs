//! A consistent copy of the database, taken while the daemon runs.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, fchown, lchown},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags};
use tempfile::NamedTempFile;

use super::{
    StoreError,
    open::{check_integrity, connect, resolve, set_checkpoint_on_close, sync_directory},
    restore,
};

/// Copies the database at `db` to `out`, or to `backups/mc-proxy-<UTC timestamp>.db` beside it, and says where it is.
///
/// The copy is of one moment, whole, of mode 0600, and has passed an integrity check before it gets its name; writers
/// are not held up. It needs no daemon, and none needs to stop.
///
/// # Errors
/// [`StoreError::Exists`] when `out` is there; [`StoreError::Corrupt`] when the database, or the copy, is damaged.
pub fn snapshot(db: &Path, out: Option<&Path>) -> Result<PathBuf, StoreError> {
    let db = resolve(db)?;
    let source = connect(&db, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // As in `Store::open`: a damaged database is left as it is.
    set_checkpoint_on_close(&source, &db, false)?;
    let is_default = out.is_none();
    let out = match out {
        Some(out) => out.to_owned(),
        None => default_name(&source, &db)?,
    };
    let dir = match out.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let partial = NamedTempFile::with_prefix_in(".mc-proxy-snapshot-", dir).map_err(|e| {
        if e.kind() == io::ErrorKind::NotFound {
            StoreError::NoDirectory { dir: dir.to_owned() }
        } else {
            StoreError::io("creating a file in", dir, e)
        }
    })?;
    copy(&source, &db, partial.path())?;
    verify(&source, &db, partial.path())?;
    partial.as_file().sync_all().map_err(|e| StoreError::io("syncing", partial.path(), e))?;
    if is_default {
        give_to_owner(&db, |uid, gid| fchown(partial.as_file(), uid, gid))?;
    }
    partial.persist_noclobber(&out).map_err(|e| {
        if e.error.kind() == io::ErrorKind::AlreadyExists {
            StoreError::Exists { path: out.clone() }
        } else {
            StoreError::io("naming the snapshot", &out, e.error)
        }
    })?;
    sync_directory(dir)?;
    set_checkpoint_on_close(&source, &db, true)?;
    Ok(out)
}

/// `VACUUM INTO` reads in one transaction, follows every page through its tree, and writes one compact file without a
/// WAL. It takes an empty file as it is, with its mode.
fn copy(source: &Connection, db: &Path, to: &Path) -> Result<(), StoreError> {
    let Some(name) = to.to_str() else {
        return Err(StoreError::Unstorable {
            what: format!("a snapshot at \"{}\"", to.display()),
            reason: "the path is not UTF-8".to_owned(),
        });
    };
    match source.execute("VACUUM INTO ?1", [name]) {
        Ok(_) => Ok(()),
        // What is full is where the copy goes.
        Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) => {
            Err(StoreError::Full { path: to.to_owned() })
        }
        Err(e) => Err(StoreError::sqlite("copying the database", db, e)),
    }
}

fn verify(source: &Connection, db: &Path, copy: &Path) -> Result<(), StoreError> {
    let header = |conn: &Connection, path| {
        let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        pragma("user_version")
            .and_then(|version| Ok((version, pragma("application_id")?)))
            .map_err(|e| StoreError::sqlite("reading the header of the database", path, e))
    };
    let conn = connect(copy, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    check_integrity(&conn, copy)?;
    if header(&conn, copy)? == header(source, db)? {
        Ok(())
    } else {
        Err(StoreError::corrupt(copy, "the copy's header is not the database's".to_owned()))
    }
}

fn default_name(source: &Connection, db: &Path) -> Result<PathBuf, StoreError> {
    let dir = restore::backups(db);
    match DirBuilder::new().mode(0o700).create(&dir) {
        Ok(()) => give_to_owner(db, |uid, gid| lchown(&dir, uid, gid))?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(StoreError::io("creating the directory", &dir, e)),
    }
    // To the millisecond, so that two snapshots of one second have two names.
    let now: String = source
        .query_row(
            "SELECT strftime('%Y%m%dT%H%M', 'now') || replace(strftime('%f', 'now'), '.', '') || 'Z'",
            [],
            |row| row.get(0),
        )
        .map_err(|e| StoreError::sqlite("reading the clock through", db, e))?;
    Ok(dir.join(format!("mc-proxy-{now}.db")))
}

/// What root makes beside a service user's database belongs to that user, who prunes and restores it.
fn give_to_owner(db: &Path, chown: impl FnOnce(Option<u32>, Option<u32>) -> io::Result<()>) -> Result<(), StoreError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    db.metadata()
        .and_then(|meta| chown(Some(meta.uid()), Some(meta.gid())))
        .map_err(|e| StoreError::io("giving the snapshot to the owner of", db, e))
}
