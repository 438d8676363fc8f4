//! Whether a file has been replaced or rewritten, by looking at it every few seconds.
//!
//! Not inotify: it tells of a directory entry or of an inode, not of a path whose parts are symbolic links that a
//! deployment turns, and it says nothing on network file systems.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, Instant},
};

/// How often the file is looked at. A change is reported after one to two of these.
const POLL_EVERY: Duration = Duration::from_secs(3);

/// What distinguishes one state of a file from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

/// Watches one path.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    known: Stamp,
    /// Not [`Self::known`], and seen by the last poll.
    candidate: Option<Stamp>,
    due: Instant,
}

impl From<&fs::Metadata> for Stamp {
    fn from(meta: &fs::Metadata) -> Self {
        let modified = (meta.mtime(), meta.mtime_nsec());
        Self { device: meta.dev(), inode: meta.ino(), size: meta.size(), modified }
    }
}

impl FileWatch {
    /// Watches for states other than `known`, which is what was loaded.
    pub fn new(path: PathBuf, known: Stamp, now: Instant) -> Self {
        Self { path, known, candidate: None, due: now + POLL_EVERY }
    }

    /// When [`Self::changed`] will look again.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether the file is another one, or has been written to, and nobody is writing any more. Looks at the file at
    /// most every few seconds, and is true once per change. A file that is missing, or cannot be looked at, has not
    /// changed: what was loaded stays good.
    pub fn changed(&mut self, now: Instant) -> bool {
        if now < self.due {
            return false;
        }
        self.due = now + POLL_EVERY;
        self.observe(fs::metadata(&self.path).as_ref())
    }

    /// The file was loaded in this state, for another reason than a change.
    pub fn loaded(&mut self, stamp: Stamp) {
        self.known = stamp;
        self.candidate = None;
    }

    fn observe(&mut self, found: Result<&fs::Metadata, &io::Error>) -> bool {
        self.judge(found.ok().filter(|meta| meta.is_file()).map(Stamp::from))
    }

    /// A state counts when two polls in a row have seen it: a file that is being written is another one every time.
    fn judge(&mut self, found: Option<Stamp>) -> bool {
        let found = found.filter(|stamp| *stamp != self.known);
        match (found, self.candidate) {
            (Some(stamp), Some(candidate)) if stamp == candidate => {
                self.loaded(stamp);
                true
            }
            (found, _) => {
                self.candidate = found;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(inode: u64, size: u64, nanoseconds: i64) -> Stamp {
        Stamp { device: 1, inode, size, modified: (1_750_000_000, nanoseconds) }
    }

    fn watch(known: Stamp) -> FileWatch {
        FileWatch::new(PathBuf::from("unused"), known, Instant::now())
    }

    #[test]
    fn a_change_is_told_once_and_when_it_has_settled() {
        let (first, second) = (stamp(1, 10, 0), stamp(2, 10, 0));
        for other in [second, stamp(1, 11, 0), stamp(1, 10, 1), Stamp { device: 2, ..first }] {
            let mut watch = watch(first);
            let told = [first, first, other, other, other, first, first].map(|stamp| watch.judge(Some(stamp)));
            assert_eq!(told, [false, false, false, true, false, false, true], "{other:?}");
        }
    }

    #[test]
    fn a_file_that_grows_is_left_alone() {
        let mut watch = watch(stamp(1, 10, 0));
        for size in 0..100 {
            assert!(!watch.judge(Some(stamp(2, size, 0))));
        }
        assert!(watch.judge(Some(stamp(2, 99, 0))));
    }

    #[test]
    fn a_file_that_is_missing_or_returns_has_not_changed() {
        let (first, second) = (stamp(1, 10, 0), stamp(2, 10, 0));
        let mut watch = watch(first);
        let told =
            [None, None, Some(first), Some(first), Some(second), None, Some(second)].map(|found| watch.judge(found));
        assert_eq!(told, [false; 7]);
        assert!(watch.judge(Some(second)), "seen twice in a row");
    }

    #[test]
    fn what_was_loaded_otherwise_is_no_change() {
        let (first, second) = (stamp(1, 10, 0), stamp(2, 10, 0));
        let mut watch = watch(first);
        assert!(!watch.judge(Some(second)));
        watch.loaded(second);
        assert!(!watch.judge(Some(second)));
        assert!(!watch.judge(Some(second)));
    }

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.mmdb");
        fs::write(&path, "one").unwrap();
        let mut now = Instant::now();
        let mut watch = FileWatch::new(path.clone(), Stamp::from(&fs::metadata(&path).unwrap()), now);
        let mut polled = |polls: usize| {
            let told: Vec<bool> = (0..polls)
                .map(|_| {
                    now = watch.due();
                    watch.changed(now)
                })
                .collect();
            assert!(!watch.changed(now), "not before it is due");
            told
        };
        assert_eq!(polled(3), [false; 3]);

        // The same size, and by rename.
        fs::write(dir.path().join("b.mmdb"), "two").unwrap();
        fs::rename(dir.path().join("b.mmdb"), &path).unwrap();
        assert_eq!(polled(3), [false, true, false]);

        fs::write(&path, "three").unwrap();
        assert_eq!(polled(3), [false, true, false]);

        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(polled(3), [false; 3]);
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("c.mmdb", &path).unwrap();
        assert_eq!(polled(2), [false; 2]);
        fs::write(dir.path().join("c.mmdb"), "four").unwrap();
        assert_eq!(polled(3), [false, true, false]);
    }
}
