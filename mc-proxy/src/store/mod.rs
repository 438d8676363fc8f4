//! The desired state in SQLite.
//!
//! One thread owns the [`Store`]. Every change is one transaction that is on the disk when the method returns; a change
//! that fails leaves no trace, and neither a full disk nor a read-only file system spoils the connection: reading goes
//! on, and writing works again as soon as the file system takes it. Every value that is read is parsed by its domain
//! type again, so that an edit by hand cannot bring in what the API would refuse.

mod diff;
mod error;
mod migrate;
mod open;
mod peek;
mod pending;
mod restore;
mod rows;
mod rule_row;
mod rules;
mod snapshot;
#[cfg(test)]
mod tests;
mod version1;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub use self::{
    diff::Difference,
    error::StoreError,
    peek::peek,
    pending::Pending,
    rules::{Change, PageFilter, StoredRule},
    snapshot::snapshot,
};
use self::{
    migrate::Migration,
    open::{Identity, Lock, Opened},
    rows::Failure,
};
use crate::desired::{Desired, L7Policy, Listener, Route, RouteKey};

/// The database, open for this process alone.
#[derive(Debug)]
pub struct Store {
    // Before the lock: fields are dropped in order, and the lock must outlive the connection.
    conn: Connection,
    path: PathBuf,
    identity: Identity,
    _lock: Lock,
}

impl Store {
    /// Opens the database, creates it (mode 0600) if it is missing, checks all of it and migrates it to the schema of
    /// this version.
    ///
    /// # Errors
    /// See [`StoreError`]; a damaged, foreign or newer database is refused and left as it is.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, migrate::MIGRATIONS)
    }

    fn open_with(path: &Path, migrations: &[Migration]) -> Result<Self, StoreError> {
        let Opened { conn, path, identity, lock } = open::open(path, migrations)?;
        Ok(Self { conn, path, identity, _lock: lock })
    }

    /// Where the database is, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is no listener. A database with nothing but rules has never served: a start with a file without
    /// listeners, which fails, leaves one behind.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn is_empty(&self) -> Result<bool, StoreError> {
        rows::is_empty(&self.conn).map_err(|e| StoreError::sqlite(READING, &self.path, e))
    }

    /// Fills an empty database.
    ///
    /// # Errors
    /// [`StoreError::NotEmpty`]; any other when it could not be written.
    pub fn seed(&mut self, desired: &Desired) -> Result<(), StoreError> {
        let path = self.path.clone();
        self.write_rules(|tx| {
            if !rows::is_empty(tx)? {
                return Err(StoreError::NotEmpty { path }.into());
            }
            for listener in &desired.listeners {
                rows::insert_listener(tx, listener)?;
            }
            rules::apply(tx, desired.rules.iter().map(|rule| Change::Put(*rule, None)))
        })
    }

    /// Reads the listeners with their routes. Rules come by [`Self::for_each_rule`].
    ///
    /// # Errors
    /// [`StoreError::BadRow`] for the first row that is not as this version writes it.
    pub fn listeners(&self) -> Result<Vec<Listener>, StoreError> {
        self.read(|tx, path| rows::listeners(tx, path))
    }

    /// Adds a route, or replaces the one with that key in its place in the order.
    ///
    /// # Errors
    /// [`StoreError::UnknownListener`]; any other when it could not be written.
    pub fn upsert_route(&mut self, listener: &str, route: &Route) -> Result<(), StoreError> {
        self.write(|tx| {
            let listener = rows::listener_id(tx, listener)?;
            rows::upsert_route(tx, listener, route)
        })
    }

    /// Removes a route; `false` if the listener has none with that key.
    ///
    /// # Errors
    /// [`StoreError::UnknownListener`]; any other when it could not be written.
    pub fn delete_route(&mut self, listener: &str, route: &RouteKey) -> Result<bool, StoreError> {
        self.write(|tx| {
            let listener = rows::listener_id(tx, listener)?;
            rows::delete_route(tx, listener, route)
        })
    }

    /// Appends a policy to a route, or changes whether one that it has is a shadow; `false` if nothing changes.
    ///
    /// # Errors
    /// [`StoreError::UnknownListener`], [`StoreError::UnknownRoute`]; any other when it could not be written.
    pub fn insert_policy(&mut self, listener: &str, route: &RouteKey, policy: &L7Policy) -> Result<bool, StoreError> {
        self.write(|tx| {
            let route = rows::route_id(tx, listener, route)?;
            rows::insert_policy(tx, route, policy)
        })
    }

    /// Removes a policy from a route; `false` if the route does not have it.
    ///
    /// # Errors
    /// [`StoreError::UnknownListener`], [`StoreError::UnknownRoute`]; any other when it could not be written.
    pub fn delete_policy(&mut self, listener: &str, route: &RouteKey, policy: &L7Policy) -> Result<bool, StoreError> {
        self.write(|tx| {
            let route = rows::route_id(tx, listener, route)?;
            rows::delete_policy(tx, route, policy)
        })
    }

    /// Sets a listener's limit, 0 = unlimited.
    ///
    /// # Errors
    /// [`StoreError::UnknownListener`], [`StoreError::Unstorable`] above 2^63 - 1; any other when it could not be
    /// written.
    pub fn set_max_connections(&mut self, listener: &str, max: u64) -> Result<(), StoreError> {
        self.write(|tx| {
            let listener = rows::listener_id(tx, listener)?;
            rows::set_max_connections(tx, listener, max)
        })
    }

    fn write<T>(&mut self, body: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>) -> Result<T, StoreError> {
        // A file that was replaced under the open one would take the change to its grave.
        if Identity::of(&self.path)? != self.identity {
            return Err(StoreError::Moved { path: self.path.clone() });
        }
        let run = || {
            let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let outcome = body(&tx)?;
            tx.commit()?;
            Ok::<_, Failure>(outcome)
        };
        run().map_err(|failure| failure.at("writing to the database", &self.path))
    }
}

const READING: &str = "reading the database";
