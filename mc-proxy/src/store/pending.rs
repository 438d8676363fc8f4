//! A change that is undone unless somebody confirms it, also when the daemon dies meanwhile.

use std::{path::Path, time::SystemTime};

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{
    Store, StoreError,
    rows::Failure,
    rule_row::{Columns, RuleRow, comment, expiry_millis},
    rules::{self, Change},
};
use crate::firewall::Expiry;

/// What waits for a confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// By which it is confirmed.
    pub id: u64,
    /// When it is undone; stored rounded up to a millisecond.
    pub deadline: SystemTime,
}

impl Store {
    /// [`Store::apply`] and, in the same transaction, `inverse`: what undoes it.
    ///
    /// # Errors
    /// [`StoreError::Unconfirmed`] when another change waits for its confirmation; otherwise those of [`Store::apply`].
    pub fn apply_with_pending(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
        pending: Pending,
        inverse: impl IntoIterator<Item = Change>,
    ) -> Result<(), StoreError> {
        self.write_rules(|tx| {
            insert(tx, pending, inverse)?;
            rules::apply(tx, changes)
        })
    }

    /// The change that waits for its confirmation.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn pending(&self) -> Result<Option<Pending>, StoreError> {
        self.read(|tx, _| get(tx))
    }

    /// Gives what undoes the waiting change to `f`, in order.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] for the first that is not as this version writes it.
    pub fn for_each_pending_change(&self, f: &mut dyn FnMut(Change)) -> Result<(), StoreError> {
        self.read(|tx, path| {
            for_each(tx, path, &mut |change| {
                f(change);
                Ok(())
            })
        })
    }

    /// Undoes the waiting change, which then waits no longer, in one transaction; `false` if there is none.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] as [`Self::for_each_pending_change`]; any other when it could not be written.
    pub fn revert_pending(&mut self) -> Result<bool, StoreError> {
        let path = self.path.clone();
        self.write_rules(|tx| {
            let mut writer = rules::Writer::new(tx)?;
            for_each(tx, &path, &mut |change| match change {
                Change::Put(rule, comment) => writer.put(&rule, comment.as_deref()),
                Change::Remove(key) => writer.remove(&key),
            })?;
            writer.finish()?;
            clear(tx)
        })
    }

    /// Lets the waiting change stand; `false` if there is none.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn clear_pending(&mut self) -> Result<bool, StoreError> {
        self.write_rules(clear)
    }
}

fn get(conn: &Connection) -> Result<Option<Pending>, Failure> {
    let row = conn
        .prepare_cached("SELECT id, deadline FROM pending")?
        .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
        .optional()?;
    // A deadline before the epoch, which the CHECK refuses, would be one that has passed.
    Ok(row.map(|(id, deadline)| Pending {
        id: id.cast_unsigned(),
        deadline: Expiry::from_millis(u64::try_from(deadline).unwrap_or_default()).into(),
    }))
}

fn clear(tx: &Transaction<'_>) -> Result<bool, Failure> {
    tx.prepare_cached("DELETE FROM pending_changes")?.execute([])?;
    Ok(tx.prepare_cached("DELETE FROM pending")?.execute([])? > 0)
}

/// Writes down a change that waits, with what undoes it.
pub(super) fn insert(
    tx: &Transaction<'_>,
    pending: Pending,
    inverse: impl IntoIterator<Item = Change>,
) -> Result<(), Failure> {
    if let Some(Pending { id, .. }) = get(tx)? {
        return Err(StoreError::Unconfirmed { id }.into());
    }
    let deadline = Expiry::from(pending.deadline).as_millis().cast_signed();
    tx.prepare_cached("INSERT INTO pending (one, id, deadline) VALUES (1, ?1, ?2)")?
        .execute([pending.id.cast_signed(), deadline])?;
    insert_changes(tx, inverse)
}

fn insert_changes(tx: &Transaction<'_>, changes: impl IntoIterator<Item = Change>) -> Result<(), Failure> {
    let mut insert = tx.prepare_cached(
        "INSERT INTO pending_changes (is_put, group_name, action, kind, addr, prefix_len, scope, expires_at, comment)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    for change in changes {
        let (key, put) = match &change {
            Change::Put(rule, comment) => (&rule.key, Some((rule.expires_at, comment.as_deref()))),
            Change::Remove(key) => (key, None),
        };
        let columns = Columns::of(key)?;
        insert.execute(params![
            put.is_some(),
            key.group.as_str(),
            columns.action,
            columns.kind,
            columns.addr(),
            columns.prefix_len,
            columns.scope,
            put.and_then(|(expires_at, _)| expiry_millis(expires_at)),
            comment(put.and_then(|(_, comment)| comment))?,
        ])?;
    }
    Ok(())
}

fn for_each(
    tx: &Transaction<'_>,
    path: &Path,
    f: &mut dyn FnMut(Change) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut statement = tx.prepare_cached(
        "SELECT is_put, group_name, action, kind, addr, prefix_len, scope, expires_at, comment FROM pending_changes
         ORDER BY seq",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let row = RuleRow { row, first: 2, path, table: "pending_changes" };
        let rule = row.rule(row.parse(&row.row.get::<_, String>(1)?)?)?;
        f(if row.row.get(0)? { Change::Put(rule, row.comment()?) } else { Change::Remove(rule.key) })?;
    }
    Ok(())
}
