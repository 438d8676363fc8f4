//! What can go wrong with the database, in words that say what to do.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use rusqlite::ErrorCode;
use rustix::{fs::StatVfsMountFlags, io::Errno};

use super::restore;

/// Why the store could not do what was asked. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory of the database, or of the snapshot, is missing.
    #[error("the directory {} does not exist; create it, owned by the user that mc-proxy runs as", .dir.display())]
    NoDirectory {
        /// The directory.
        dir: PathBuf,
    },
    /// Another daemon has the database.
    #[error(
        "the database {} is in use by another mc-proxy; stop that one, or give this one its own database.path \
         (\"fuser {}\" shows the process)", .path.display(), .lock.display()
    )]
    Locked {
        /// The database.
        path: PathBuf,
        /// The file that carries the lock.
        lock: PathBuf,
    },
    /// The file is not what SQLite wrote. It is left as it is.
    #[error("the database {} is damaged ({detail}) and was left as it is; {restore}", .path.display())]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What SQLite found first.
        detail: String,
        /// The commands that put the newest snapshot in its place.
        restore: String,
    },
    /// A SQLite database of some other program.
    #[error(
        "{} is a database of another program, not of mc-proxy; set database.path to a new file (the configuration \
         fills it)", .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Written by a newer mc-proxy.
    #[error(
        "the database {} has schema version {found}, this mc-proxy knows versions up to {supported}; run the newer \
         mc-proxy, or restore a snapshot from before the upgrade", .path.display()
    )]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Version in the file.
        found: i64,
        /// Newest version that is understood.
        supported: i64,
    },
    /// Written by an earlier mc-proxy, and only to be read.
    #[error("the database {} has the schema of an earlier mc-proxy; the next start migrates it", .path.display())]
    Unmigrated {
        /// The database.
        path: PathBuf,
    },
    /// The file, its directory or its file system does not take writes.
    #[error(
        "the database {} cannot be written: the file, its directory or its file system is read-only for this user; \
         check owner and mode of both, and the mount", .path.display()
    )]
    ReadOnly {
        /// The database.
        path: PathBuf,
    },
    /// No space for the change.
    #[error("no space left for {} on its file system; free some and try again, no restart is needed", .path.display())]
    Full {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// Another program kept the database locked for longer than the busy timeout.
    #[error("the database {} is locked by another program; close it and try again", .path.display())]
    Busy {
        /// The database.
        path: PathBuf,
    },
    /// The path no longer leads to the file that is open.
    #[error(
        "the database {} was moved, removed or replaced while mc-proxy had it open; put it back or restart mc-proxy",
        .path.display()
    )]
    Moved {
        /// The database.
        path: PathBuf,
    },
    /// The target of a snapshot exists.
    #[error("{} exists and is not overwritten; choose another name", .path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// A seed for a database that has content.
    #[error("the database {} is not empty; only an empty one is filled from the configuration", .path.display())]
    NotEmpty {
        /// The database.
        path: PathBuf,
    },
    /// What was to be done with a change did not succeed, so the change was not made.
    #[error("the change was abandoned")]
    Abandoned,
    /// Another change waits for its confirmation.
    #[error("change {id} waits for its confirmation; confirm or revert it first")]
    Unconfirmed {
        /// By which it is confirmed.
        id: u64,
    },
    /// No listener of that name.
    #[error("the database has no listener \"{listener}\"")]
    UnknownListener {
        /// As asked for.
        listener: String,
    },
    /// No route of that hostname.
    #[error("listener \"{listener}\" has no route {route} in the database")]
    UnknownRoute {
        /// The listener.
        listener: String,
        /// As asked for.
        route: String,
    },
    /// A row that this version would not have written.
    #[error(
        "the database {} has a row that cannot be used: table {table}, row {row}: {reason}; correct or delete the row with \
         sqlite3, or restore a snapshot", .path.display()
    )]
    BadRow {
        /// The database.
        path: PathBuf,
        /// Table name.
        table: &'static str,
        /// Which row.
        row: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A value that would not be read back as it was.
    #[error("{what} cannot be stored: {reason}")]
    Unstorable {
        /// The value.
        what: String,
        /// Why not.
        reason: String,
    },
    /// The file system refused.
    #[error("{action} {}", .path.display())]
    Io {
        /// What was being done, such as "opening the database".
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// SQLite refused for a reason that has no variant of its own.
    #[error("{action} {}", .path.display())]
    Sqlite {
        /// What was being done, such as "reading the database".
        action: &'static str,
        /// The database.
        path: PathBuf,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::Full { path: path.to_owned() },
            Some(Errno::ROFS) => Self::ReadOnly { path: path.to_owned() },
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    pub(super) fn sqlite(action: &'static str, path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full { path },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly { path },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::corrupt(&path, source.to_string()),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy { path },
            // SQLite keeps the errno to itself here: ENOSPC while growing the WAL index, EROFS after the kernel
            // remounted a failing disk. The file system tells.
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => match file_system(&path) {
                FileSystem::Full => Self::Full { path },
                FileSystem::ReadOnly => Self::ReadOnly { path },
                FileSystem::Writable => Self::Sqlite { action, path, source: source.into() },
            },
            _ => Self::Sqlite { action, path, source: source.into() },
        }
    }

    pub(super) fn corrupt(path: &Path, detail: String) -> Self {
        Self::Corrupt { path: path.to_owned(), detail, restore: restore::advice(path) }
    }
}

enum FileSystem {
    Writable,
    ReadOnly,
    Full,
}

fn file_system(path: &Path) -> FileSystem {
    // SQLite grows the WAL index by 32 KiB at a time.
    const LEAST_BYTES: u64 = 32 * 1024;
    // Whatever keeps statvfs from answering leaves SQLite's own error to be reported.
    let Ok(stat) = rustix::fs::statvfs(path.parent().unwrap_or(path)) else { return FileSystem::Writable };
    if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
        FileSystem::ReadOnly
    } else if stat.f_bavail.saturating_mul(stat.f_frsize) < LEAST_BYTES {
        FileSystem::Full
    } else {
        FileSystem::Writable
    }
}
