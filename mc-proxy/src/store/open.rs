//! From a path to a connection that is this daemon's alone, checked and of the current schema.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, MAIN_DB, OpenFlags, config::DbConfig};
use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};

use super::{
    StoreError,
    migrate::{self, Migration, check_foreign_keys},
    restore,
};

/// Longest wait for another process's lock, such as a checkpoint of `sqlite3` in an operator's hands.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Size that the WAL is cut back to after a checkpoint; a long snapshot lets it grow.
const WAL_LIMIT_BYTES: i64 = 16 * 1024 * 1024;

/// An open database.
pub(super) struct Opened {
    pub(super) conn: Connection,
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
    pub(super) lock: Lock,
}

/// The right to be the only daemon on a database. An empty `<database>.lock` carries it: `flock` on the database itself
/// would mean a second descriptor on it, and closing that drops SQLite's own locks (POSIX locks belong to the process).
/// The kernel ends the lock with the process, however that ends; the file stays and means nothing by itself.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Drop for Lock {
    /// Closing is not enough while a child between fork and exec has a copy of the descriptor.
    fn drop(&mut self) {
        // Should it fail, the end of the process does the same.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// Which file a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

/// Opens or creates, and brings to the newest of `migrations`.
pub(super) fn open(path: &Path, migrations: &[Migration]) -> Result<Opened, StoreError> {
    let path = resolve(path)?;
    // First of all: nothing of the database is touched while another daemon has it.
    let lock = Lock::take(&path)?;
    create_or_tighten(&path)?;
    let identity = Identity::of(&path)?;
    let mut conn = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Until the checks are passed, closing must leave a WAL as it is: written into a damaged file it would be lost.
    set_checkpoint_on_close(&conn, &path, false)?;
    let version = migrate::version(&conn, &path, migrations)?;
    if conn.is_readonly(MAIN_DB).map_err(|e| StoreError::sqlite("opening the database", &path, e))? {
        return Err(StoreError::ReadOnly { path });
    }
    check_integrity(&conn, &path)?;
    check_foreign_keys(&conn, &path)?;
    configure(&conn, &path)?;
    migrate::migrate(&mut conn, &path, version, migrations)?;
    conn.pragma_update(None, "foreign_keys", true)
        .map_err(|e| StoreError::sqlite("configuring the database", &path, e))?;
    set_checkpoint_on_close(&conn, &path, true)?;
    Ok(Opened { conn, path, identity, lock })
}

/// A connection with the busy timeout; nothing is created.
pub(super) fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let error = |e| StoreError::sqlite("opening the database", path, e);
    // No URI flag: a path is a path.
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let conn = Connection::open_with_flags(path, flags).map_err(error)?;
    conn.busy_timeout(BUSY_TIMEOUT).map_err(error)?;
    Ok(conn)
}

/// The full check, also of indexes, NOT NULL, CHECK and column types.
pub(super) fn check_integrity(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let error = |e| StoreError::sqlite("checking the database", path, e);
    let mut statement = conn.prepare("PRAGMA integrity_check(1)").map_err(error)?;
    let findings =
        statement.query_map([], |row| row.get::<_, String>(0)).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match findings.map_err(error)?.as_slice() {
        [ok] if ok == "ok" => Ok(()),
        findings => Err(StoreError::corrupt(path, findings.join("; ").replace('\n', " "))),
    }
}

pub(super) fn set_checkpoint_on_close(conn: &Connection, path: &Path, is_on: bool) -> Result<(), StoreError> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !is_on)
        .map(|_| ())
        .map_err(|e| StoreError::sqlite("configuring the database", path, e))
}

/// Without symbolic links, so that two names of one file meet at one lock.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, StoreError> {
    match path.canonicalize() {
        Ok(path) => return Ok(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(StoreError::io("opening the database", path, e)),
    }
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| {
        StoreError::io("opening the database", path, io::Error::new(io::ErrorKind::IsADirectory, "not a file name"))
    })?;
    match dir.canonicalize() {
        Ok(dir) => Ok(dir.join(name)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StoreError::NoDirectory { dir: dir.to_owned() }),
        Err(e) => Err(StoreError::io("opening the directory of the database", dir, e)),
    }
}

/// Makes the names in a directory survive a power loss.
pub(super) fn sync_directory(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| StoreError::io("syncing the directory", dir, e))
}

impl Lock {
    fn take(db: &Path) -> Result<Self, StoreError> {
        let path = restore::beside(db, ".lock");
        // NOFOLLOW: the directory may belong to somebody with fewer rights than this process has.
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => File::from(fd),
            Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => {
                return Err(StoreError::ReadOnly { path: db.to_owned() });
            }
            Err(e) => return Err(StoreError::io("opening the lock file", &path, e.into())),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StoreError::Locked { path: db.to_owned(), lock: path }),
            Err(e) => return Err(StoreError::io("locking", &path, e.into())),
        }
        // As SQLite does with its own files: a daemon that root once ran by hand must not shut the service's user out.
        if rustix::process::geteuid().is_root()
            && let Ok(meta) = db.metadata()
        {
            std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid()))
                .map_err(|e| StoreError::io("giving the lock file to the database's owner", &path, e))?;
        }
        Ok(Self { file })
    }
}

impl Identity {
    pub(super) fn of(path: &Path) -> Result<Self, StoreError> {
        match path.metadata() {
            Ok(meta) => Ok(Self { device: meta.dev(), inode: meta.ino() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StoreError::Moved { path: path.to_owned() }),
            Err(e) => Err(StoreError::io("finding the database", path, e)),
        }
    }
}

/// SQLite gives its WAL the mode of the database, so 0600 here is 0600 everywhere.
fn create_or_tighten(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => return sync_directory(path.parent().expect("a resolved path to a file has a directory")),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(StoreError::ReadOnly { path: path.to_owned() });
        }
        Err(e) => return Err(StoreError::io("creating the database", path, e)),
    }
    let meta = path.metadata().map_err(|e| StoreError::io("opening the database", path, e))?;
    if !meta.is_file() {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
        return Err(StoreError::io("opening the database", path, cause));
    }
    // Only the owner can; a copy that root restored under a wide umask is the usual case.
    if meta.mode() & 0o077 != 0 && meta.uid() == rustix::process::geteuid().as_raw() {
        fs::set_permissions(path, Permissions::from_mode(meta.mode() & 0o700))
            .map_err(|e| StoreError::io("setting mode 0600 on the database", path, e))?;
    }
    Ok(())
}

fn configure(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let error = |e| StoreError::sqlite("configuring the database", path, e);
    let journal: String = conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(error)?;
    if journal != "wal" {
        let cause = io::Error::new(
            io::ErrorKind::Unsupported,
            "the file system has no shared memory maps, which WAL needs; use a local one",
        );
        return Err(StoreError::io("opening the database", path, cause));
    }
    // FULL, not NORMAL: in WAL mode NORMAL syncs at checkpoints only, and a ban that was acknowledged a second before a
    // power loss would be gone. One fsync for each change of an operator is affordable.
    conn.pragma_update(None, "synchronous", "FULL").map_err(error)?;
    conn.pragma_update_and_check(None, "journal_size_limit", WAL_LIMIT_BYTES, |_| Ok(())).map_err(error)
}
