//! The rules of schema version 1, which were texts.

use std::path::Path;

use rusqlite::Connection;

use super::{
    rows::{Failure, RowPlace},
    rules::Writer,
};
use crate::firewall::{Rule, Subject};

/// Moves them to the tables of version 2, into the default group.
pub(super) fn move_rules(conn: &Connection, path: &Path) -> Result<(), Failure> {
    let mut writer = Writer::new(conn)?;
    let mut statement = conn.prepare("SELECT id, action, kind, value, created_at FROM firewall_rules")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let at = RowPlace { path, table: "firewall_rules", id: row.get(0)? };
        let action = at.parse(&row.get::<_, String>(1)?)?;
        let subject: Subject = at.parse_canonical(&row.get::<_, String>(3)?)?;
        let (kind, expected) = (row.get::<_, String>(2)?, kind_word(&subject));
        if kind != expected {
            return Err(at.bad(&format!("\"{subject}\" is a {expected}, not a {kind}")).into());
        }
        let rule = Rule::permanent(action, subject).map_err(|error| at.bad(&error.to_string()))?;
        // The clock of the machine that wrote it may have stood before 1970.
        writer.put_created(&rule, None, row.get::<_, i64>(4)?.max(0))?;
    }
    drop(rows);
    drop(statement);
    writer.finish()?;
    conn.execute_batch("DROP TABLE firewall_rules")?;
    Ok(())
}

fn kind_word(subject: &Subject) -> &'static str {
    match subject {
        Subject::Net(_) if subject.as_ip().is_some() => "ip",
        Subject::Net(_) => "cidr",
        Subject::Country(_) => "country",
    }
}
