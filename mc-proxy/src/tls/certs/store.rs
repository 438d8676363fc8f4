//! Every certificate that is in use, by its files.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;

use super::{
    CertError, CertFiles, Leaf, Pair, Roots, RootsError, StagedRoots, authorities::Authorities, server_config,
    watch::Watch,
};

/// From so many days before its end, a certificate is warned of every day.
const WARN_DAYS: i64 = 30;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What route tables hold: what is current is taken out without a lock, and changes under them.
pub struct Certificate {
    files: CertFiles,
    current: ArcSwapOption<ServerConfig>,
}

/// The certificates in use. What fails to load leaves what is in force as it is.
pub struct Certificates {
    entries: BTreeMap<CertFiles, Entry>,
    authorities: Authorities,
    watch: Watch,
    warned_at: Option<Instant>,
    failures: u64,
}

struct Entry {
    certificate: Arc<Certificate>,
    /// What is in force; none when the files could not be used at the start.
    pair: Option<Pair>,
    loaded_at: Option<SystemTime>,
    /// Of the last attempt, if that failed.
    error: Option<String>,
    /// As the files were at the last attempt.
    stamps: [Option<super::pair::Stamp>; 2],
}

/// A pair that was loaded and is not in force.
pub struct Staged {
    files: CertFiles,
    /// What was loaded.
    pub pair: Pair,
    /// None when the same certificate is in force already.
    config: Option<Arc<ServerConfig>>,
}

/// What came of loading everything again: certificates, and files of authorities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Those that are others now.
    pub replaced: u64,
    /// Those that are the same as before, and whose sessions go on.
    pub unchanged: u64,
    /// Those that stay as they were because their files cannot be used, with the reason.
    pub failed: Vec<(PathBuf, String)>,
}

/// One certificate, for show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertStatus {
    /// Where it comes from.
    pub files: CertFiles,
    /// What is in force; none when nothing is.
    pub leaf: Option<Leaf>,
    /// Since when.
    pub loaded_at: Option<SystemTime>,
    /// Why the files as they are now are not in force.
    pub error: Option<String>,
}

/// How soon a certificate ends, when that is worth a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It is over.
    Expired,
    /// It has so many whole days left, 30 at most.
    Soon(i64),
    /// It has not begun.
    NotYet,
}

/// All certificates in some numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// In use.
    pub count: u64,
    /// Whose files cannot be used as they are now.
    pub failing: u64,
    /// The end of the one that ends first.
    pub earliest_expiry: Option<SystemTime>,
    /// Attempts to load files that failed, since the start.
    pub failures: u64,
}

impl Certificate {
    /// How TLS is spoken from now on; none while the files have never been usable.
    pub fn config(&self) -> Option<Arc<ServerConfig>> {
        self.current.load_full()
    }
}

/// Not of the configuration, which has the key.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("files", &self.entries.keys()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Expiry {
    /// Of a certificate at a time.
    pub fn of(leaf: &Leaf, now: SystemTime) -> Option<Self> {
        match leaf.days_left(now) {
            ..0 => Some(Self::Expired),
            _ if leaf.not_before > now => Some(Self::NotYet),
            days @ 0..=WARN_DAYS => Some(Self::Soon(days)),
            _ => None,
        }
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("it has expired; clients refuse it"),
            Self::Soon(days) => write!(f, "it expires in {days} days"),
            Self::NotYet => f.write_str("it is not valid yet; clients refuse it"),
        }
    }
}

impl Certificates {
    /// None. Directories are watched from `now` on.
    pub fn new(now: Instant) -> Self {
        Self {
            entries: BTreeMap::new(),
            authorities: Authorities::default(),
            watch: Watch::new(now),
            warned_at: None,
            failures: 0,
        }
    }

    /// Loads what a route is to be served with, to be put in force by [`Self::commit`].
    ///
    /// # Errors
    /// See [`CertError`].
    pub fn stage(&self, files: &CertFiles) -> Result<Staged, CertError> {
        let pair = Pair::load(files)?;
        let current = self.entries.get(files).and_then(|entry| entry.pair.as_ref());
        let config = if current.is_some_and(|current| current.is_same(&pair)) {
            None
        } else {
            let failed =
                |error| CertError::Key { path: files.key.clone(), problem: format!("no ticket keys: {error}") };
            Some(server_config(&pair).map_err(failed)?)
        };
        Ok(Staged { files: files.clone(), pair, config })
    }

    /// Puts in force what was loaded; whether it is another certificate than before.
    pub fn commit(&mut self, staged: Staged, now: SystemTime) -> bool {
        let Staged { files, pair, config } = staged;
        if let Some(expiry) = Expiry::of(&pair.leaf, now) {
            tracing::warn!(cert = %files, "the certificate is in use although {expiry}");
        }
        let entry = self.entries.entry(files).or_insert_with_key(Entry::empty);
        entry.stamps = pair.stamps;
        entry.error = None;
        entry.pair = Some(pair);
        let is_new = config.is_some();
        if is_new {
            entry.loaded_at = Some(now);
            entry.certificate.current.store(config);
        }
        is_new
    }

    /// Loads what a route of the database is served with. One that cannot be used is kept in mind: its connections fail
    /// until its files are mended.
    ///
    /// # Errors
    /// See [`CertError`].
    pub fn open(&mut self, files: &CertFiles, now: SystemTime) -> Result<(), CertError> {
        if self.entries.contains_key(files) {
            return Ok(());
        }
        let stamps = files.stamps();
        match self.stage(files) {
            Ok(staged) => {
                self.commit(staged, now);
                Ok(())
            }
            Err(error) => {
                self.failures += 1;
                let entry = self.entries.entry(files.clone()).or_insert_with_key(Entry::empty);
                (entry.stamps, entry.error) = (stamps, Some(error.to_string()));
                Err(error)
            }
        }
    }

    /// What a route table holds of these files.
    pub fn get(&self, files: &CertFiles) -> Option<Arc<Certificate>> {
        self.entries.get(files).map(|entry| Arc::clone(&entry.certificate))
    }

    /// Loads what backends are verified against, to be put in force by [`Self::commit_authorities`].
    ///
    /// # Errors
    /// See [`RootsError`].
    pub fn stage_authorities(&self, path: &Path) -> Result<StagedRoots, RootsError> {
        self.authorities.stage(path)
    }

    /// Puts in force what was loaded.
    pub fn commit_authorities(&mut self, staged: StagedRoots) {
        self.authorities.commit(staged);
    }

    /// As [`Self::open`], for what backends are verified against.
    ///
    /// # Errors
    /// See [`RootsError`].
    pub fn open_authorities(&mut self, path: &Path) -> Result<(), RootsError> {
        self.authorities.open(path)
    }

    /// What backends are verified against whose `backend_ca` is this file: the same as long as its content is.
    pub fn authorities(&self, path: &Path) -> Option<Roots> {
        self.authorities.get(path)
    }

    /// Whether authorities have been put in force since the last call. Route tables hold the old ones.
    pub fn take_rotated(&mut self) -> bool {
        self.authorities.take_rotated()
    }

    /// Forgets those that no route has any more, and watches the others.
    pub fn retain(&mut self, is_used: impl Fn(&CertFiles) -> bool, is_authority_used: impl Fn(&Path) -> bool) {
        self.entries.retain(|files, _| is_used(files));
        self.authorities.retain(is_authority_used);
        self.rewatch();
    }

    /// Loads all of them again.
    pub fn reload(&mut self, now: SystemTime) -> Reloaded {
        self.reload_those(now, true)
    }

    /// What is to be done about every second: when files have changed, what of it can be used is put in force, and once a
    /// day the certificates that end soon are told.
    pub fn tick(&mut self, now: Instant, wall: SystemTime) {
        if self.watch.is_due(now) {
            let reloaded = self.reload_those(wall, false);
            if reloaded.replaced > 0 {
                tracing::info!(replaced = reloaded.replaced, "certificate files have changed and are in use");
            }
        }
        if self.warned_at.is_none_or(|warned_at| now >= warned_at + DAY) {
            self.warned_at = Some(now);
            for (files, leaf) in
                self.entries.iter().filter_map(|(files, entry)| Some((files, &entry.pair.as_ref()?.leaf)))
            {
                if let Some(expiry) = Expiry::of(leaf, wall) {
                    tracing::warn!(cert = %files, names = leaf.names.join(","), "a certificate needs to be renewed: {expiry}");
                }
            }
        }
    }

    /// All of them, by file name.
    pub fn list(&self) -> Vec<CertStatus> {
        let status = |(files, entry): (&CertFiles, &Entry)| CertStatus {
            files: files.clone(),
            leaf: entry.pair.as_ref().map(|pair| pair.leaf.clone()),
            loaded_at: entry.loaded_at,
            error: entry.error.clone(),
        };
        self.entries.iter().map(status).collect()
    }

    /// All of them, in numbers.
    pub fn figures(&self) -> Figures {
        let entries = || self.entries.values();
        Figures {
            count: self.entries.len() as u64,
            failing: entries().filter(|entry| entry.error.is_some()).count() as u64,
            earliest_expiry: entries().filter_map(|entry| Some(entry.pair.as_ref()?.leaf.not_after)).min(),
            failures: self.failures,
        }
    }

    /// All of them, or those whose files have changed or could not be used.
    fn reload_those(&mut self, now: SystemTime, all: bool) -> Reloaded {
        let is_meant =
            |files: &CertFiles, entry: &Entry| all || entry.error.is_some() || entry.stamps != files.stamps();
        let meant = self.entries.iter().filter(|(files, entry)| is_meant(files, entry));
        let meant: Vec<CertFiles> = meant.map(|(files, _)| files.clone()).collect();
        let mut reloaded = Reloaded::default();
        for files in meant {
            let stamps = files.stamps();
            match self.stage(&files) {
                Ok(staged) => {
                    let is_new = self.commit(staged, now);
                    *if is_new { &mut reloaded.replaced } else { &mut reloaded.unchanged } += 1;
                }
                Err(error) => {
                    let error = error.to_string();
                    self.failures += 1;
                    if let Some(entry) = self.entries.get_mut(&files) {
                        // What lasts is one line.
                        if entry.error.as_ref() != Some(&error) {
                            let stays = entry.pair.is_some();
                            tracing::warn!(cert = %files, error, stays, "a certificate could not be loaded; the old one stays in use");
                        }
                        (entry.stamps, entry.error) = (stamps, Some(error.clone()));
                    }
                    reloaded.failed.push((files.cert, error));
                }
            }
        }
        let failures = &mut self.failures;
        self.authorities.reload(all, |path, result| match result {
            Ok(true) => reloaded.replaced += 1,
            Ok(false) => reloaded.unchanged += 1,
            Err(error) => {
                *failures += 1;
                reloaded.failed.push((path.to_owned(), error));
            }
        });
        self.rewatch();
        reloaded
    }

    fn rewatch(&mut self) {
        let Self { entries, authorities, watch, .. } = self;
        let certificates = entries.keys().flat_map(|files| [files.cert.as_path(), files.key.as_path()]);
        watch.set(certificates.chain(authorities.paths()));
    }
}

impl Entry {
    fn empty(files: &CertFiles) -> Self {
        let certificate = Certificate { files: files.clone(), current: ArcSwapOption::empty() };
        Self { certificate: Arc::new(certificate), pair: None, loaded_at: None, error: None, stamps: [None; 2] }
    }
}
