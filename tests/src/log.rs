//! What a process wrote, line by line, while it is still writing.

use std::{
    io::{BufRead as _, BufReader, Read},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Lines of a process; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

impl Log {
    /// Collects everything from `output` until its end, on a thread of its own.
    pub fn collect(&self, output: impl Read + Send + 'static) -> thread::JoinHandle<()> {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n') {
                let Ok(line) = line else { break };
                log.lock().push(String::from_utf8_lossy(&line).into_owned());
                log.0.grown.notify_all();
            }
        })
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.lock().clone()
    }

    /// Lines so far that contain all of `parts`.
    pub fn matching(&self, parts: &[&str]) -> Vec<String> {
        self.lines().into_iter().filter(|line| parts.iter().all(|part| line.contains(part))).collect()
    }

    /// Waits for a line that contains all of `parts`.
    pub fn wait_for(&self, parts: &[&str], limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut lines = self.lock();
        loop {
            if let Some(line) = lines.iter().find(|line| parts.iter().all(|part| line.contains(part))) {
                return Ok(line.clone());
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                bail!("no log line with {parts:?} within {limit:?}; the log:\n{}", lines.join("\n"));
            };
            (lines, _) = self.0.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
