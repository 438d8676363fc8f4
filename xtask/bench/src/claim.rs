//! One run at a time on a machine: namespaces have fixed names, so that leftovers can be found.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::firewall;
use super::interrupt::Interrupt;
use super::knobs::{self, Knobs};
use super::topology;

const LOCK: &str = "/run/mc-proxy-bench.lock";
/// On tmpfs: counters and logs must not wait for a disk.
const WORK_DIR: &str = "/dev/shm/mc-proxy-bench";
/// Outlives the directory above if a run is killed.
const KNOBS_FILE: &str = "/dev/shm/mc-proxy-bench.knobs";
const RETRY: Duration = Duration::from_millis(200);

/// The machine made ready for one run, until dropped: settings back first, then the files, then the lock.
#[derive(Debug)]
pub(super) struct Claim {
    _knobs: Knobs,
    work_dir: WorkDir,
    _lock: File,
}

impl Claim {
    /// Waits for another run to end, and removes what a run left that was killed.
    pub(super) fn wait(interrupt: &Interrupt) -> anyhow::Result<Self> {
        let mut lock = try_lock()?;
        if lock.is_none() {
            println!("Waiting for another run to end");
        }
        let lock = loop {
            if let Some(lock) = lock {
                break lock;
            }
            interrupt.pause(RETRY)?;
            lock = try_lock()?;
        };
        remove_leftovers()?;
        let work_dir = WorkDir::create()?;
        Ok(Self { _knobs: Knobs::turn(KNOBS_FILE.into())?, work_dir, _lock: lock })
    }

    /// For counters, configurations and logs.
    pub(super) fn work_dir(&self) -> &Path {
        &self.work_dir.0
    }
}

/// Removes what a run left that was killed, unless another is under way.
pub(super) fn clean_up() -> anyhow::Result<()> {
    match try_lock()? {
        Some(_lock) => remove_leftovers(),
        None => Ok(()),
    }
}

/// The lock is held as long as the file is open.
fn try_lock() -> anyhow::Result<Option<File>> {
    let file = File::create(LOCK).with_context(|| format!("creating {LOCK}"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("locking {LOCK}")),
    }
}

fn remove_leftovers() -> anyhow::Result<()> {
    topology::sweep()?;
    firewall::remove_leftovers()?;
    knobs::restore(Path::new(KNOBS_FILE))?;
    WorkDir::remove()
}

#[derive(Debug)]
struct WorkDir(PathBuf);

impl WorkDir {
    fn create() -> anyhow::Result<Self> {
        fs::create_dir(WORK_DIR).with_context(|| format!("creating {WORK_DIR}"))?;
        Ok(Self(WORK_DIR.into()))
    }

    fn remove() -> anyhow::Result<()> {
        match fs::remove_dir_all(WORK_DIR) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context(WORK_DIR),
            _ => Ok(()),
        }
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = Self::remove() {
            eprintln!("{error:#}");
        }
    }
}
