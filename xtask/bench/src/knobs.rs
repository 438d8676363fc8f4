//! Machine-wide settings that a run needs, put back afterwards.
//!
//! What was there is kept in a file, so that the next run can put it back if this one is killed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

const ALLOWED_CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
const AUTOGROUP: &str = "/proc/sys/kernel/sched_autogroup_enabled";

/// The settings changed by this run.
#[derive(Debug)]
pub(super) struct Knobs {
    saved: BTreeMap<PathBuf, String>,
    file: PathBuf,
}

impl Knobs {
    /// Changes what has to be changed; `file` remembers what was there.
    pub(super) fn turn(file: PathBuf) -> anyhow::Result<Self> {
        let mut knobs = Self { saved: BTreeMap::new(), file };
        // A namespace may choose only what the machine allows.
        let allowed = fs::read_to_string(ALLOWED_CONGESTION_CONTROL).context(ALLOWED_CONGESTION_CONTROL)?;
        if !allowed.split_whitespace().any(|name| name == "cubic") {
            knobs.set(Path::new(ALLOWED_CONGESTION_CONTROL), &format!("{} cubic", allowed.trim()))?;
        }
        // With autogroups, the nice level of somebody else's build counts for nothing.
        if fs::read_to_string(AUTOGROUP).is_ok_and(|enabled| enabled.trim() == "1") {
            knobs.set(Path::new(AUTOGROUP), "0")?;
        }
        Ok(knobs)
    }

    fn set(&mut self, path: &Path, value: &str) -> anyhow::Result<()> {
        let before = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        self.saved.insert(path.to_owned(), before.trim().to_owned());
        fs::write(&self.file, serde_json::to_vec(&self.saved)?)
            .with_context(|| format!("writing {}", self.file.display()))?;
        fs::write(path, value).with_context(|| format!("writing {value:?} to {}", path.display()))
    }
}

impl Drop for Knobs {
    fn drop(&mut self) {
        if let Err(error) = restore(&self.file) {
            eprintln!("putting settings back: {error:#}");
        }
    }
}

/// Puts back what `file` remembers, and forgets it; nothing if there is no such file.
pub(super) fn restore(file: &Path) -> anyhow::Result<()> {
    let saved = match fs::read(file) {
        Ok(saved) => saved,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    let saved: BTreeMap<PathBuf, String> =
        serde_json::from_slice(&saved).with_context(|| format!("reading {}", file.display()))?;
    for (path, value) in saved {
        fs::write(&path, value).with_context(|| format!("writing {}", path.display()))?;
    }
    fs::remove_file(file).with_context(|| format!("removing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_from_the_file() {
        let dir = std::env::temp_dir().join(format!("mc-proxy-knobs-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let (knob, file) = (dir.join("knob"), dir.join("saved.json"));
        fs::write(&knob, "before\n").unwrap();
        let mut knobs = Knobs { saved: BTreeMap::new(), file: file.clone() };
        knobs.set(&knob, "during").unwrap();
        assert_eq!(fs::read_to_string(&knob).unwrap(), "during");
        drop(knobs);
        assert_eq!(fs::read_to_string(&knob).unwrap(), "before");
        assert!(!file.exists());
        restore(&file).unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}
