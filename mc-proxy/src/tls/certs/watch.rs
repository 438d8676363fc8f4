//! When to look at certificate files again.
//!
//! inotify(7) tells of a directory's entries, and a path may lead through several of them: `certbot` renews by turning the
//! symbolic link of the file, Kubernetes by turning one of a directory on the way. So every directory is watched in which
//! the path has a symbolic link or the file itself. What happened is not asked: it is a hint that it is time to compare the
//! files, as is done once a minute anyway, where inotify is not to be had or tells nothing (network file systems).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::inotify::{self, CreateFlags, Reader, WatchFlags},
    io::Errno,
};

/// Without a hint.
const POLL_EVERY: Duration = Duration::from_secs(60);

/// After the last hint: whoever writes a chain is about to write its key.
const QUIET: Duration = Duration::from_secs(1);

/// Where there is always something written, nobody waits for quiet longer than this.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// As many as path_resolution(7) follows.
const LINKS_MAX: usize = 40;

/// Watches directories, and says when it is time to look.
pub(super) struct Watch {
    inotify: Option<OwnedFd>,
    /// By directory; of each its watch descriptor.
    directories: BTreeMap<PathBuf, i32>,
    clock: Clock,
}

/// Pure: hints and looks in time.
struct Clock {
    polled_at: Instant,
    /// The first and the last hint that have not been followed.
    hinted: Option<(Instant, Instant)>,
}

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        if let Err(error) = &inotify {
            tracing::warn!(%error, "certificate files are looked at once a minute only");
        }
        let clock = Clock { polled_at: now, hinted: None };
        Self { inotify: inotify.ok(), directories: BTreeMap::new(), clock }
    }

    /// Watches what `paths` lead through, and nothing else.
    pub(super) fn set<'p>(&mut self, paths: impl Iterator<Item = &'p Path>) {
        let Some(inotify) = &self.inotify else { return };
        let mut wanted = BTreeSet::new();
        for path in paths {
            directories(path, &mut wanted);
        }
        self.directories.retain(|directory, descriptor| {
            let is_wanted = wanted.remove(directory);
            if !is_wanted {
                // It is gone already when its directory is.
                let _ = inotify::remove_watch(inotify, *descriptor);
            }
            is_wanted
        });
        let events = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        for directory in wanted {
            match inotify::add_watch(inotify, &directory, events) {
                Ok(descriptor) => {
                    self.directories.insert(directory, descriptor);
                }
                Err(error) => {
                    let directory = directory.display();
                    tracing::debug!(%directory, %error, "a directory is not watched; its files are looked at once a minute");
                }
            }
        }
    }

    /// Whether it is time to look at the files; true once.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        if self.has_hint() {
            self.clock.hint(now);
        }
        self.clock.is_due(now)
    }

    fn has_hint(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(inotify, &mut buffer);
        let mut has_hint = false;
        let mut gone = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => {
                    has_hint = true;
                    // One that was removed, or goes by another name, has to be watched again.
                    if event.events().intersects(inotify::ReadFlags::IGNORED | inotify::ReadFlags::MOVE_SELF) {
                        gone.push(event.wd());
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        self.directories.retain(|_, descriptor| {
            let is_gone = gone.contains(descriptor);
            if is_gone {
                let _ = inotify::remove_watch(inotify, *descriptor);
            }
            !is_gone
        });
        has_hint
    }
}

impl Clock {
    fn hint(&mut self, now: Instant) {
        let first = self.hinted.map_or(now, |(first, _)| first);
        self.hinted = Some((first, now));
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let is_quiet = self.hinted.is_some_and(|(first, last)| now >= last + QUIET || now >= first + QUIET_MAX);
        let is_due = is_quiet || now >= self.polled_at + POLL_EVERY;
        if is_due {
            (self.polled_at, self.hinted) = (now, None);
        }
        is_due
    }
}

/// Adds the directories in which the way to `path` can change.
fn directories(path: &Path, found: &mut BTreeSet<PathBuf>) {
    let mut links = 0;
    // Components that are still to be walked, the next one last.
    let mut ahead = reversed(path);
    let mut at = if path.is_absolute() { PathBuf::from("/") } else { PathBuf::from(".") };
    while let Some(part) = ahead.pop() {
        if part == ".." {
            at = fs::canonicalize(at.join("..")).unwrap_or_else(|_| at.join(".."));
            continue;
        }
        let next = at.join(&part);
        match fs::read_link(&next) {
            Ok(target) if links < LINKS_MAX => {
                links += 1;
                found.insert(at.clone());
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                ahead.extend(reversed(&target));
            }
            _ if ahead.is_empty() => {
                found.insert(at.clone());
            }
            _ => at = next,
        }
    }
}

fn reversed(path: &Path) -> Vec<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_hint_is_followed_when_it_is_quiet() {
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let mut clock = Clock { polled_at: begun, hinted: None };
        assert!(!clock.is_due(at(1_000)));
        clock.hint(at(1_000));
        clock.hint(at(1_500));
        assert!(!clock.is_due(at(2_400)) && clock.is_due(at(2_500)) && !clock.is_due(at(9_000)));
        for millis in (10_000..=15_000).step_by(500) {
            clock.hint(at(millis));
            assert_eq!(clock.is_due(at(millis)), millis == 15_000, "{millis}");
        }
        assert!(!clock.is_due(at(74_999)) && clock.is_due(at(75_000)));
    }

    #[test]
    fn links_are_followed_to_every_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["live", "archive", "mount/..2026"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::write(root.join("archive/chain1.pem"), "").unwrap();
        symlink("../archive/chain1.pem", root.join("live/chain.pem")).unwrap();
        symlink("..2026", root.join("mount/..data")).unwrap();
        symlink("..data/tls.crt", root.join("mount/tls.crt")).unwrap();
        symlink("loop", root.join("live/loop")).unwrap();
        let found = |path: &str| {
            let mut found = BTreeSet::new();
            directories(&root.join(path), &mut found);
            let relative = |path: &PathBuf| path.strip_prefix(&root).map(|path| path.display().to_string()).ok();
            found.iter().filter_map(relative).collect::<Vec<_>>()
        };
        assert_eq!(found("live/chain.pem"), ["archive", "live"]);
        assert_eq!(found("mount/tls.crt"), ["mount", "mount/..2026"]);
        assert_eq!(found("archive/absent.pem"), ["archive"]);
        assert_eq!(found("live/loop"), ["live"]);
    }

    #[test]
    fn the_kernel_tells_of_a_link_that_turns() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("chain.pem");
        symlink("a", &file).unwrap();
        let now = Instant::now();
        let mut watch = Watch::new(now);
        watch.set([file.as_path()].into_iter());
        assert!(!watch.is_due(now + QUIET));
        symlink("b", dir.path().join("new")).unwrap();
        fs::rename(dir.path().join("new"), &file).unwrap();
        assert!(!watch.is_due(now + QUIET));
        assert!(watch.is_due(now + 2 * QUIET));
    }
}
