//! How an operator gets from a damaged database back to the newest snapshot.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// The directory of default snapshots.
pub(super) fn backups(db: &Path) -> PathBuf {
    db.with_file_name("backups")
}

/// `db` with `suffix` after the whole name, as SQLite names its own files (`-wal`, `-shm`).
pub(super) fn beside(db: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(db);
    name.push(suffix);
    name.into()
}

/// Commands that put the newest snapshot in place of `db` and keep the damaged files. A WAL that stayed behind would be
/// replayed over the restored file, so it moves along.
pub(super) fn advice(db: &Path) -> String {
    let shown = |path: &Path| quoted(&path.display().to_string());
    let (wal, shm) = (beside(db, "-wal"), beside(db, "-shm"));
    let mut away = format!("mv --backup=numbered {} {}", shown(db), shown(&beside(db, ".damaged")));
    if wal.exists() {
        away += &format!(" && mv --backup=numbered {} {}", shown(&wal), shown(&beside(db, ".damaged-wal")));
    }
    if shm.exists() {
        away += &format!(" && rm -f {}", shown(&shm));
    }
    match newest(&backups(db)) {
        Some(backup) => {
            format!("restore the newest snapshot with: {away} && cp -p {} {}", shown(&backup), shown(db))
        }
        None => format!(
            "there is no snapshot in {}; copy one over it, or start anew from the configuration with: {away}",
            backups(db).display()
        ),
    }
}

fn newest(dir: &Path) -> Option<PathBuf> {
    let is_snapshot = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|n| n.starts_with("mc-proxy-") && n.ends_with(".db"))
    };
    let age = |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_snapshot)
        .max_by_key(|path| (age(path), path.clone()))
}

/// As a shell reads it back.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:,=".contains(c);
    if text.chars().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_quoted_names_back() {
        assert_eq!(quoted("/srv/mc-proxy/mc-proxy.db"), "/srv/mc-proxy/mc-proxy.db");
        for text in ["/srv/it's here/a.db", "$(reboot)", "a b"] {
            let echoed = std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quoted(text))]).output();
            assert_eq!(String::from_utf8(echoed.unwrap().stdout).unwrap(), text);
        }
    }
}
