//! The desired state in SQLite.
