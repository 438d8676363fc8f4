//! The files of authorities that backends are verified against, with what is in them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    pair::Stamp,
    roots::{Roots, RootsError, roots},
};

/// By file. What fails to load leaves what is in force as it is.
#[derive(Default)]
pub(super) struct Authorities {
    entries: BTreeMap<PathBuf, Entry>,
    is_rotated: bool,
}

#[derive(Default)]
struct Entry {
    /// What is in force; none when the file could not be used at the start.
    roots: Option<Roots>,
    /// Of the last attempt, if that failed.
    error: Option<String>,
    /// As the file was at the last attempt.
    stamp: Option<Stamp>,
}

/// Authorities that were loaded and are not in force.
#[derive(Debug)]
pub struct StagedRoots {
    path: PathBuf,
    /// The same that are in force, if nothing is new.
    roots: Roots,
    stamp: Option<Stamp>,
}

impl Authorities {
    /// Loads a file.
    pub(super) fn stage(&self, path: &Path) -> Result<StagedRoots, RootsError> {
        // Before the file is read: what changes meanwhile is found by the next look.
        let stamp = Stamp::of(path);
        let loaded = roots(path)?;
        let known = self.get(path).filter(|known| known.roots == loaded.roots);
        Ok(StagedRoots { path: path.to_owned(), roots: known.unwrap_or_else(|| Arc::new(loaded)), stamp })
    }

    /// Puts in force what was loaded; whether it is something else than before.
    pub(super) fn commit(&mut self, staged: StagedRoots) -> bool {
        let StagedRoots { path, roots, stamp } = staged;
        let is_new = self.get(&path).is_none_or(|known| !Arc::ptr_eq(&known, &roots));
        self.is_rotated |= is_new;
        self.entries.insert(path, Entry { roots: Some(roots), error: None, stamp });
        is_new
    }

    /// Loads a file that a route of the database names, unless it has been. One that cannot be used is kept in mind.
    pub(super) fn open(&mut self, path: &Path) -> Result<(), RootsError> {
        if self.entries.contains_key(path) {
            return Ok(());
        }
        let stamp = Stamp::of(path);
        match self.stage(path) {
            Ok(staged) => {
                self.commit(staged);
                Ok(())
            }
            Err(error) => {
                let entry = Entry { roots: None, error: Some(error.to_string()), stamp };
                self.entries.insert(path.to_owned(), entry);
                Err(error)
            }
        }
    }

    pub(super) fn get(&self, path: &Path) -> Option<Roots> {
        self.entries.get(path)?.roots.clone()
    }

    pub(super) fn retain(&mut self, is_used: impl Fn(&Path) -> bool) {
        self.entries.retain(|path, _| is_used(path));
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.entries.keys().map(PathBuf::as_path)
    }

    /// Whether something has been put in force since the last call.
    pub(super) fn take_rotated(&mut self) -> bool {
        std::mem::take(&mut self.is_rotated)
    }

    /// Loads the files again, all of them or those that have changed. `told`: whether each is something else now, or why it
    /// stays as it was.
    pub(super) fn reload(&mut self, all: bool, mut told: impl FnMut(&Path, Result<bool, String>)) {
        let is_meant = |path: &Path, entry: &Entry| all || entry.error.is_some() || entry.stamp != Stamp::of(path);
        let meant = self.entries.iter().filter(|(path, entry)| is_meant(path, entry));
        let meant: Vec<PathBuf> = meant.map(|(path, _)| path.clone()).collect();
        for path in meant {
            let stamp = Stamp::of(&path);
            match self.stage(&path) {
                Ok(staged) => told(&path, Ok(self.commit(staged))),
                Err(error) => {
                    let error = error.to_string();
                    if let Some(entry) = self.entries.get_mut(&path) {
                        // What lasts is one line.
                        if entry.error.as_ref() != Some(&error) {
                            tracing::warn!(error, "backend_ca could not be loaded; the old authorities stay in use");
                        }
                        (entry.stamp, entry.error) = (stamp, Some(error.clone()));
                    }
                    told(&path, Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::tests::make, *};

    #[test]
    fn the_same_content_is_the_same_authorities() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let mut authorities = Authorities::default();
        assert!(authorities.open(&path).is_err() && authorities.get(&path).is_none() && !authorities.take_rotated());
        let reload = |authorities: &mut Authorities, all| {
            let mut told = Vec::new();
            authorities.reload(all, |_, result| told.push(result.ok()));
            (told, authorities.take_rotated())
        };
        let one = make("a.example").cert;
        fs::write(&path, &one).unwrap();
        assert_eq!(reload(&mut authorities, false), (vec![Some(true)], true));
        let first = authorities.get(&path).unwrap();
        assert_eq!(reload(&mut authorities, false), (vec![], false));
        fs::write(&path, format!("# the same\n{one}")).unwrap();
        assert_eq!(reload(&mut authorities, true), (vec![Some(false)], false));
        assert!(Arc::ptr_eq(&first, &authorities.get(&path).unwrap()));
        fs::write(&path, "").unwrap();
        assert_eq!(reload(&mut authorities, true), (vec![None], false));
        assert!(Arc::ptr_eq(&first, &authorities.get(&path).unwrap()));
        fs::write(&path, make("b.example").cert).unwrap();
        let staged = authorities.stage(&path).unwrap();
        assert!(Arc::ptr_eq(&first, &authorities.get(&path).unwrap()), "not in force yet");
        assert!(authorities.commit(staged) && authorities.take_rotated());
        assert!(!Arc::ptr_eq(&first, &authorities.get(&path).unwrap()));
        authorities.retain(|_| false);
        assert_eq!(authorities.paths().count(), 0);
    }
}
