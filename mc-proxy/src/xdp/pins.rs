//! Where things are in the BPF file system.
//!
//! ```text
//! <xdp.pin_path>/maps/<NAME>        the maps in force
//!                maps-new/<NAME>    maps of another shape, being filled
//!                links/<interface>  the attachment; as long as it is there the program runs
//! ```
//! Every start loads the program anew, bound to one of the two map directories, and swaps it in when that directory
//! is filled. So whatever a crash left behind is either taken over or removed, and never decides anything.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::PlaneError;

/// The directories below `xdp.pin_path`.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub(super) fn new_maps(&self) -> PathBuf {
        self.root.join("maps-new")
    }

    pub(super) fn link(&self, interface: &str) -> PathBuf {
        self.links().join(encode(interface))
    }

    /// Interface names and paths of all links.
    pub(super) fn pinned_links(&self) -> Result<Vec<(String, PathBuf)>, PlaneError> {
        let context = |error| PlaneError::caused(format!("reading {}", self.links().display()), error);
        let entries = match fs::read_dir(self.links()) {
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

    /// Makes the new maps the ones in force.
    pub(super) fn promote_new_maps(&self) -> Result<(), PlaneError> {
        remove_directory(&self.maps())?;
        fs::rename(self.new_maps(), self.maps())
            .map_err(|error| PlaneError::caused(format!("renaming {}", self.new_maps().display()), error))
    }

    /// Removes everything but the root itself, which may be the administrator's.
    pub(super) fn remove_all(&self) -> Result<(), PlaneError> {
        for directory in [self.links(), self.maps(), self.new_maps()] {
            remove_directory(&directory)?;
        }
        Ok(())
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }
}

pub(super) fn make(directory: &Path) -> Result<(), PlaneError> {
    fs::create_dir_all(directory)
        .map_err(|error| PlaneError::caused(format!("making the directory {}", directory.display()), error))
}

pub(super) fn remove_directory(directory: &Path) -> Result<(), PlaneError> {
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
    fn names_of_vlan_interfaces_have_no_dot() {
        for name in ["eth0", "eth0.100", "a%2Eb.c", "%.%25"] {
            assert!(!encode(name).contains('.'));
            assert_eq!(decode(&encode(name)), name);
        }
    }
}
