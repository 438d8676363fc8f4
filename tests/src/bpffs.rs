//! A BPF file system of a test's own, so that tests share no pins with each other or with a daemon of this host.

use std::{
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// A mounted BPF file system; unmounted on drop, which also lets go of everything that is pinned in it.
#[derive(Debug)]
pub struct Bpffs {
    directory: TempDir,
}

impl Bpffs {
    /// Mounts one below the directory for temporary files.
    pub fn mount() -> Result<Self> {
        let directory = TempDir::with_prefix("mc-proxy-bpf-").context("making a mount point")?;
        mount("bpf", directory.path(), "bpf", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
            .with_context(|| format!("mounting bpf on {}", directory.path().display()))?;
        Ok(Self { directory })
    }

    /// Gives the root of the file system to a user without rights.
    pub fn give_to(&self, uid: u32, gid: u32) -> Result<()> {
        chown(self.directory.path(), Some(uid), Some(gid)).context("giving the BPF file system away")?;
        std::fs::set_permissions(self.directory.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Where a daemon may pin: a directory that does not exist yet.
    pub fn pin_path(&self) -> PathBuf {
        self.directory.path().join("mc-proxy")
    }

    /// The mount point.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.directory.path(), UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", self.directory.path().display());
        }
    }
}
