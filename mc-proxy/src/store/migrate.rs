//! The schema, version by version. Forward only: a released migration is never edited, a change is a new one.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::{StoreError, rows::Failure, version1};

/// A step from one version to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Migration {
    pub(super) sql: &'static str,
    /// What SQL cannot say; run after it in the same transaction.
    pub(super) code: Option<Code>,
}

type Code = fn(&Connection, &Path) -> Result<(), Failure>;

/// The n-th entry leads from version n to n + 1.
pub(super) const MIGRATIONS: &[Migration] = &[
    Migration { sql: include_str!("migrations/0001_initial.sql"), code: None },
    Migration { sql: include_str!("migrations/0002_rules.sql"), code: Some(version1::move_rules) },
    Migration { sql: include_str!("migrations/0003_l4.sql"), code: None },
    Migration { sql: include_str!("migrations/0004_l7.sql"), code: None },
    Migration { sql: include_str!("migrations/0005_l7_backend.sql"), code: None },
];

/// "mcpx", in the header of every database of this program.
const APPLICATION_ID: i64 = 0x6d63_7078;

/// Where a database stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version(usize);

impl Version {
    /// Whether nothing has been stored yet.
    pub(super) fn is_blank(self) -> bool {
        self.0 == 0
    }

    pub(super) fn is_newest(self, migrations: &[Migration]) -> bool {
        self.0 == migrations.len()
    }
}

/// Reads the version from the header, refusing a database that is newer or somebody else's.
pub(super) fn version(conn: &Connection, path: &Path, migrations: &[Migration]) -> Result<Version, StoreError> {
    let pragma = |name| {
        conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(|e| StoreError::sqlite("reading the header of the database", path, e))
    };
    let (found, application) = (pragma("user_version")?, pragma("application_id")?);
    let supported = i64::try_from(migrations.len()).expect("a list in memory is shorter than 2^63");
    let is_blank = || {
        conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
            .map(|objects| objects == 0)
            .map_err(|e| StoreError::sqlite("reading the schema of the database", path, e))
    };
    if application != APPLICATION_ID && !(application == 0 && found == 0 && is_blank()?) {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    match usize::try_from(found) {
        Ok(at) if at <= migrations.len() => Ok(Version(at)),
        Ok(_) => Err(StoreError::TooNew { path: path.to_owned(), found, supported }),
        Err(_) => Err(StoreError::corrupt(path, format!("its schema version is {found}"))),
    }
}

/// Takes the steps that are left, each in a transaction of its own. A step that fails leaves the database at the version
/// before it. Foreign keys are off meanwhile, as rebuilding a table needs it, and checked before each commit.
pub(super) fn migrate(
    conn: &mut Connection,
    path: &Path,
    from: Version,
    migrations: &[Migration],
) -> Result<(), StoreError> {
    let error = |e| StoreError::sqlite("migrating the database", path, e);
    conn.pragma_update(None, "foreign_keys", false).map_err(error)?;
    for (at, Migration { sql, code }) in migrations.iter().enumerate().skip(from.0) {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
        tx.execute_batch(sql).map_err(error)?;
        if let Some(code) = code {
            code(&tx, path).map_err(|failure| failure.at("migrating the database", path))?;
        }
        tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(error)?;
        tx.pragma_update(None, "user_version", i64::try_from(at + 1).expect("as in version()")).map_err(error)?;
        check_foreign_keys(&tx, path)?;
        tx.commit().map_err(error)?;
    }
    Ok(())
}

/// Refuses rows that point to nothing.
pub(super) fn check_foreign_keys(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let error = |e| StoreError::sqlite("checking the database", path, e);
    let mut statement = conn.prepare("PRAGMA foreign_key_check").map_err(error)?;
    let mut rows = statement.query([]).map_err(error)?;
    match rows.next().map_err(error)? {
        None => Ok(()),
        Some(row) => {
            let table: String = row.get(0).map_err(error)?;
            Err(StoreError::corrupt(path, format!("a row of {table} refers to one that does not exist")))
        }
    }
}
