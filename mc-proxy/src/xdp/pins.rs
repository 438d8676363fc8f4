//! Where things are in the BPF file system.
//!
//! ```text
//! <xdp.pin_path>/maps/<NAME>        counters, ports, events, rate limits: what outlives a generation; the next daemon goes
//!                                  on with the counters by reason alone
//!                links/<interface>  the attachment; as long as it is there the program runs
//! ```
//! The tables of the rules are not pinned: the program keeps them, and each generation has its own.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::{fs::FlockOperation, io::Errno};

use super::{Obstacle, PlaneError};

/// The directories below `xdp.pin_path`.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

/// The right to change what is pinned; the kernel ends it with the process.
#[derive(Debug)]
pub(super) struct Lock {
    directory: File,
}

impl Drop for Lock {
    /// Closing is not enough while a child between fork and exec has a copy of the descriptor.
    fn drop(&mut self) {
        // Should it fail, the end of the process does the same.
        let _ = rustix::fs::flock(&self.directory, FlockOperation::Unlock);
    }
}

impl Pins {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Keeps a second daemon with the same `xdp.pin_path` from taking over, or removing, what this one has in force.
    /// `None` when there is no such directory.
    pub(super) fn lock(&self) -> Result<Option<Lock>, PlaneError> {
        let root = self.root.display();
        let failed = |error| PlaneError::caused(format!("locking {root}"), error);
        let directory = match File::open(&self.root) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { directory })),
            Err(Errno::WOULDBLOCK) => Err(PlaneError::new(format!(
                "xdp.pin_path {root} is in use by another mc-proxy; stop that one, or give this one its own xdp.pin_path"
            ))
            .because(Obstacle::InUse)),
            Err(error) => Err(failed(error.into())),
        }
    }

    fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// What an earlier version has left: maps with other names than `kept`, and the directory in which it filled maps.
    pub(super) fn remove_stale(&self, kept: &[&str]) -> Result<(), PlaneError> {
        remove_directory(&self.root.join("maps-new"))?;
        for (name, path) in Self::entries(&self.maps())? {
            if !kept.contains(&name.as_str()) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    pub(super) fn link(&self, interface: &str) -> PathBuf {
        self.links().join(encode(interface))
    }

    /// Interface names and paths of all links.
    pub(super) fn pinned_links(&self) -> Result<Vec<(String, PathBuf)>, PlaneError> {
        Self::entries(&self.links())
    }

    fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, PlaneError> {
        let context = |error| PlaneError::caused(format!("reading {}", directory.display()), error);
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(context(error)),
        };
        entries
            .map(|entry| {
                let path = entry.map_err(context)?.path();
                let name = path.file_name().and_then(|name| name.to_str()).map(decode).unwrap_or_default();
                Ok((name, path))
            })
            .collect()
    }

    pub(super) fn make_links(&self) -> Result<(), PlaneError> {
        make(&self.links())
    }

    pub(super) fn make_maps(&self) -> Result<(), PlaneError> {
        make(&self.maps())
    }

    /// Removes everything but the root itself, which may be the administrator's.
    pub(super) fn remove_all(&self) -> Result<(), PlaneError> {
        for directory in [self.links(), self.maps(), self.root.join("maps-new")] {
            remove_directory(&directory)?;
        }
        Ok(())
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }
}

fn make(directory: &Path) -> Result<(), PlaneError> {
    fs::create_dir_all(directory)
        .map_err(|error| PlaneError::caused(format!("making the directory {}", directory.display()), error))
}

fn remove_directory(directory: &Path) -> Result<(), PlaneError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PlaneError::caused(format!("removing {}", directory.display()), error))
        }
        _ => Ok(()),
    }
}

pub(super) fn remove(path: &Path) -> Result<(), PlaneError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PlaneError::caused(format!("removing the pin {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// The BPF file system reserves the dot, which VLAN interfaces have in their names.
fn encode(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2E")
}

fn decode(file_name: &str) -> String {
    file_name.replace("%2E", ".").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_have_one_daemon_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::new(&dir.path().join("pins"));
        assert!(pins.lock().unwrap().is_none());
        fs::create_dir(&pins.root).unwrap();
        let first = pins.lock().unwrap();
        assert!(first.is_some());
        let error = pins.lock().unwrap_err();
        assert!(error.to_string().contains("in use by another mc-proxy"), "{error}");
        drop(first);
        assert!(pins.lock().unwrap().is_some());
    }

    #[test]
    fn names_of_vlan_interfaces_have_no_dot() {
        for name in ["eth0", "eth0.100", "a%2Eb.c", "%.%25"] {
            assert!(!encode(name).contains('.'));
            assert_eq!(decode(&encode(name)), name);
        }
    }
}
