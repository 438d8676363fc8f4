//! Firewall rules: by the million, and therefore never all at once in memory.

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{CachedStatement, Connection, OptionalExtension, Transaction, params};

use super::{
    READING, Store, StoreError,
    pending::{self, Pending},
    rows::Failure,
    rule_row::{Columns, RuleRow, action_number, comment, expiry_millis},
};
use crate::firewall::{Action, Group, Rule, RuleKey};

/// Pages that a change of many rules may keep in memory before it spills them into the WAL, in KiB; given back
/// afterwards. A rule takes some 20 bytes.
const CACHE_KIB: i64 = 64 * 1024;

/// One difference between two states of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds a rule with its comment. One with the same key gets this expiry and comment, and stays as old as it is.
    Put(Rule, Option<String>),
    /// Removes the rule with the key, if there is one.
    Remove(RuleKey),
}

/// A rule with what only the database knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRule {
    /// The rule.
    pub rule: Rule,
    /// What its author wrote.
    pub comment: Option<String>,
    /// When it was added, to the second.
    pub created_at: SystemTime,
}

/// Which rules a page shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageFilter {
    /// Of this group alone.
    pub group: Option<Group>,
    /// With this action alone.
    pub action: Option<Action>,
}

impl Store {
    /// Makes all changes in their order, or none of them.
    ///
    /// # Errors
    /// [`StoreError::Unstorable`] for a rule or a comment that would not be read back; any other when it could not be
    /// written.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<(), StoreError> {
        self.write_rules(|tx| apply(tx, changes))
    }

    /// [`Self::apply`] and, with `pending`, [`Self::apply_with_pending`], which are undone when `then` fails: it is called
    /// when everything is written and nothing is final.
    ///
    /// # Errors
    /// As these two. The inner result is that of `then`, and an error of it has left the database as it was.
    pub fn apply_then<T, E>(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
        pending: Option<(Pending, Vec<Change>)>,
        then: impl FnOnce() -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        let mut outcome = None;
        let written = self.write_rules(|tx| {
            if let Some((pending, inverse)) = pending {
                pending::insert(tx, pending, inverse)?;
            }
            apply(tx, changes)?;
            let is_done = outcome.insert(then()).is_ok();
            if is_done { Ok(()) } else { Err(StoreError::Abandoned.into()) }
        });
        match (written, outcome) {
            (_, Some(Err(error))) => Ok(Err(error)),
            (Ok(()), Some(Ok(value))) => Ok(Ok(value)),
            (Ok(()), None) => Err(StoreError::Abandoned),
            (Err(error), _) => Err(error),
        }
    }

    /// Removes the rules that have expired at `now`, and says how many.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn delete_expired(&mut self, now: SystemTime) -> Result<u64, StoreError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        self.write_rules(|tx| {
            let deleted = tx.prepare_cached("DELETE FROM rules WHERE expires_at <= ?1")?.execute([now])?;
            if deleted > 0 {
                drop_empty_groups(tx)?;
            }
            Ok(deleted as u64)
        })
    }

    /// Gives every rule to `f`, group by group, in the order of the key within a group.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] for the first rule that is not as this version writes it.
    pub fn for_each_rule(&self, f: &mut dyn FnMut(Rule)) -> Result<(), StoreError> {
        self.read(|tx, path| {
            let groups = groups(tx, path)?;
            let mut statement = tx.prepare_cached(
                "SELECT group_id, action, kind, addr, prefix_len, scope, expires_at FROM rules
                 ORDER BY group_id, action, kind, addr, prefix_len, scope",
            )?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let row = RuleRow { row, first: 1, path, table: "rules" };
                let group =
                    groups.get(&row.row.get::<_, i64>(0)?).ok_or_else(|| row.bad("its group does not exist"))?;
                f(row.rule(*group)?);
            }
            Ok(())
        })
    }

    /// The rules with these keys, each if it is there.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] for a rule that is not as this version writes it.
    pub fn stored(&self, keys: &[RuleKey]) -> Result<Vec<Option<StoredRule>>, StoreError> {
        self.read(|tx, path| {
            let mut statement = tx.prepare_cached(
                "SELECT action, kind, addr, prefix_len, scope, expires_at, comment, created_at FROM rules
                 WHERE group_id = (SELECT id FROM rule_groups WHERE name = ?1) AND action = ?2 AND kind = ?3
                     AND addr = ?4 AND prefix_len = ?5 AND scope = ?6",
            )?;
            let mut found = Vec::with_capacity(keys.len());
            for key in keys {
                let columns = Columns::of(key)?;
                let mut rows = statement.query(params![
                    key.group.as_str(),
                    columns.action,
                    columns.kind,
                    columns.addr(),
                    columns.prefix_len,
                    columns.scope
                ])?;
                let stored = |row| stored(&RuleRow { row, first: 0, path, table: "rules" }, key.group);
                found.push(rows.next()?.map(stored).transpose()?);
            }
            Ok(found)
        })
    }

    /// The rules of a group that have a comment, with it.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] for the first that is not as this version writes it.
    pub fn commented(&self, group: Group) -> Result<HashMap<RuleKey, String>, StoreError> {
        self.read(|tx, path| {
            let mut statement = tx.prepare_cached(
                "SELECT action, kind, addr, prefix_len, scope, expires_at, comment FROM rules
                 WHERE group_id = (SELECT id FROM rule_groups WHERE name = ?1) AND comment IS NOT NULL",
            )?;
            let mut rows = statement.query([group.as_str()])?;
            let mut commented = HashMap::new();
            while let Some(row) = rows.next()? {
                let row = RuleRow { row, first: 0, path, table: "rules" };
                if let Some(comment) = row.comment()? {
                    commented.insert(row.rule(group)?.key, comment);
                }
            }
            Ok(commented)
        })
    }

    /// The first `limit` rules that pass the filter and have a greater key than `after`, in the order of the key.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] for the first rule that is not as this version writes it.
    pub fn page(
        &self,
        after: Option<&RuleKey>,
        filter: &PageFilter,
        limit: usize,
    ) -> Result<Vec<StoredRule>, StoreError> {
        self.read(|tx, path| {
            let mut sorted = groups(tx, path)?.into_iter().map(|(id, group)| (group, id)).collect::<Vec<_>>();
            sorted.sort_unstable();
            let mut page = Vec::new();
            for (group, id) in sorted.into_iter().filter(|(group, _)| filter.group.is_none_or(|only| only == *group)) {
                for action in Action::ALL.into_iter().filter(|action| filter.action.is_none_or(|only| only == *action))
                {
                    let after = match after {
                        Some(after) if (group, action) < (after.group, after.action) => continue,
                        Some(after) if (group, action) == (after.group, after.action) => Some(after),
                        _ => None,
                    };
                    if page.len() >= limit {
                        return Ok(page);
                    }
                    Run { tx, path, group, id, action }.page(after, limit, &mut page)?;
                }
            }
            Ok(page)
        })
    }

    /// One transaction with the room that many rules need.
    pub(super) fn write_rules<T>(
        &mut self,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let cache = |conn: &Connection, size: i64| conn.pragma_update(None, "cache_size", size);
        let usual = self.conn.pragma_query_value(None, "cache_size", |row| row.get(0));
        let usual = usual.map_err(|e| StoreError::sqlite(READING, &self.path, e))?;
        let configuring = |e, path: &Path| StoreError::sqlite("configuring the database", path, e);
        cache(&self.conn, -CACHE_KIB).map_err(|e| configuring(e, &self.path))?;
        let outcome = self.write(body);
        // What is committed is committed, whether the memory is given back now or with the next change.
        if let Err(error) = cache(&self.conn, usual) {
            tracing::warn!(error = %error, "the cache of the database stays large until the next change");
        }
        outcome
    }

    pub(super) fn read<T>(
        &self,
        body: impl FnOnce(&Transaction<'_>, &Path) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        // One read transaction: all tables as of one moment.
        let run = || {
            let tx = self.conn.unchecked_transaction()?;
            body(&tx, &self.path)
        };
        run().map_err(|failure| failure.at(READING, &self.path))
    }
}

/// The rules of a group with one action.
struct Run<'a> {
    tx: &'a Transaction<'a>,
    path: &'a Path,
    group: Group,
    id: i64,
    action: Action,
}

impl Run<'_> {
    fn page(&self, after: Option<&RuleKey>, limit: usize, page: &mut Vec<StoredRule>) -> Result<(), Failure> {
        let mut statement = self.tx.prepare_cached(
            "SELECT action, kind, addr, prefix_len, scope, expires_at, comment, created_at FROM rules
             WHERE group_id = ?1 AND action = ?2 AND (kind, addr, prefix_len, scope) > (?3, ?4, ?5, ?6)
             ORDER BY kind, addr, prefix_len, scope LIMIT ?7",
        )?;
        let columns = after.map(Columns::of).transpose()?;
        let (kind, prefix_len, scope) = columns.map_or((-1, -1, -1), |c| (c.kind, c.prefix_len, c.scope));
        let addr = columns.as_ref().map(Columns::addr).unwrap_or_default();
        let left = i64::try_from(limit.saturating_sub(page.len())).unwrap_or(i64::MAX);
        let action = action_number(self.action);
        let mut rows = statement.query(params![self.id, action, kind, addr, prefix_len, scope, left])?;
        while let Some(row) = rows.next()? {
            page.push(stored(&RuleRow { row, first: 0, path: self.path, table: "rules" }, self.group)?);
        }
        Ok(())
    }
}

/// A row that ends with the comment and `created_at`.
fn stored(row: &RuleRow<'_, '_>, group: Group) -> Result<StoredRule, Failure> {
    let created_at = row.row.get::<_, i64>(row.first + 7)?;
    let created_at = u64::try_from(created_at)
        .ok()
        .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        .ok_or_else(|| row.bad(&format!("created_at {created_at} is not a moment")))?;
    Ok(StoredRule { rule: row.rule(group)?, comment: row.comment()?, created_at })
}

pub(super) fn apply(tx: &Transaction<'_>, changes: impl IntoIterator<Item = Change>) -> Result<(), Failure> {
    let mut writer = Writer::new(tx)?;
    for change in changes {
        match change {
            Change::Put(rule, comment) => writer.put(&rule, comment.as_deref())?,
            Change::Remove(key) => writer.remove(&key)?,
        }
    }
    writer.finish()
}

/// Writes rules within a transaction.
pub(super) struct Writer<'t> {
    tx: &'t Connection,
    put: CachedStatement<'t>,
    remove: CachedStatement<'t>,
    ids: HashMap<Group, Option<i64>>,
    /// Most changes are about the group of the one before.
    last: Option<(Group, i64)>,
    now: i64,
    has_removed: bool,
}

impl<'t> Writer<'t> {
    pub(super) fn new(tx: &'t Connection) -> Result<Self, Failure> {
        Ok(Self {
            tx,
            put: tx.prepare_cached(
                "INSERT INTO rules (group_id, action, kind, addr, prefix_len, scope, expires_at, comment, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (group_id, action, kind, addr, prefix_len, scope) DO UPDATE
                 SET expires_at = excluded.expires_at, comment = excluded.comment
                 WHERE expires_at IS NOT excluded.expires_at OR comment IS NOT excluded.comment",
            )?,
            remove: tx.prepare_cached(
                "DELETE FROM rules WHERE group_id = ?1 AND action = ?2 AND kind = ?3 AND addr = ?4 AND prefix_len = ?5
                     AND scope = ?6",
            )?,
            ids: HashMap::new(),
            last: None,
            now: tx.query_row("SELECT max(unixepoch(), 0)", [], |row| row.get(0))?,
            has_removed: false,
        })
    }

    pub(super) fn put(&mut self, rule: &Rule, text: Option<&str>) -> Result<(), Failure> {
        self.put_created(rule, text, self.now)
    }

    /// `created_at` in seconds since the epoch.
    pub(super) fn put_created(&mut self, rule: &Rule, text: Option<&str>, created_at: i64) -> Result<(), Failure> {
        let columns = Columns::of(&rule.key)?;
        let group = match self.last {
            Some((group, id)) if group == rule.key.group => id,
            _ => self.make_group(rule.key.group)?,
        };
        self.put.execute(params![
            group,
            columns.action,
            columns.kind,
            columns.addr(),
            columns.prefix_len,
            columns.scope,
            expiry_millis(rule.expires_at),
            comment(text)?,
            created_at,
        ])?;
        Ok(())
    }

    pub(super) fn remove(&mut self, key: &RuleKey) -> Result<(), Failure> {
        let columns = Columns::of(key)?;
        let group = match self.last {
            Some((group, id)) if group == key.group => Some(id),
            _ => self.find_group(key.group)?,
        };
        let Some(group) = group else { return Ok(()) };
        let key = params![group, columns.action, columns.kind, columns.addr(), columns.prefix_len, columns.scope];
        self.has_removed |= self.remove.execute(key)? > 0;
        Ok(())
    }

    pub(super) fn finish(self) -> Result<(), Failure> {
        if self.has_removed { drop_empty_groups(self.tx) } else { Ok(()) }
    }

    fn find_group(&mut self, group: Group) -> Result<Option<i64>, Failure> {
        let id = match self.ids.get(&group) {
            Some(id) => *id,
            None => {
                let mut statement = self.tx.prepare_cached("SELECT id FROM rule_groups WHERE name = ?1")?;
                let id = statement.query_row([group.as_str()], |row| row.get(0)).optional()?;
                self.ids.insert(group, id);
                id
            }
        };
        self.last = id.map(|id| (group, id)).or(self.last);
        Ok(id)
    }

    fn make_group(&mut self, group: Group) -> Result<i64, Failure> {
        if let Some(id) = self.find_group(group)? {
            return Ok(id);
        }
        let id = self.tx.prepare_cached("INSERT INTO rule_groups (name) VALUES (?1)")?.insert([group.as_str()])?;
        self.ids.insert(group, Some(id));
        self.last = Some((group, id));
        Ok(id)
    }
}

fn drop_empty_groups(tx: &Connection) -> Result<(), Failure> {
    tx.prepare_cached(
        "DELETE FROM rule_groups WHERE id <> 1 AND NOT EXISTS (SELECT 1 FROM rules WHERE group_id = rule_groups.id)",
    )?
    .execute([])?;
    Ok(())
}

fn groups(conn: &Connection, path: &Path) -> Result<HashMap<i64, Group>, Failure> {
    let mut groups = HashMap::new();
    let mut statement = conn.prepare_cached("SELECT id, name FROM rule_groups")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (id, name) = (row.get::<_, i64>(0)?, row.get::<_, String>(1)?);
        let group = name.parse::<Group>().map_err(|error| StoreError::BadRow {
            path: path.to_owned(),
            table: "rule_groups",
            row: id.to_string(),
            reason: error.to_string(),
        })?;
        groups.insert(id, group);
    }
    Ok(groups)
}
