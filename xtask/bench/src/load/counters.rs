//! Counters that a running load generator or backend lets the benchmark read.
//!
//! They pass through a small file on tmpfs rather than shared memory, which would need `unsafe`. The writer publishes at
//! most once a millisecond, so the file costs it nothing that a measurement could see.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

const FIELDS: usize = 6;
const LEN: usize = 8 * FIELDS;
const PUBLISH_EVERY: Duration = Duration::from_millis(1);

/// What a load generator or backend has done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// 1 once all is set up: the port listens, the connections are open.
    pub(crate) ready: u64,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    /// Connections, or round trips, completed.
    pub(crate) done: u64,
    pub(crate) errors: u64,
    /// Connections open now.
    pub(crate) open: u64,
}

impl Counters {
    /// Reads what a process has published; all zero until it has.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let mut bytes = [0; LEN];
        match File::open(path).and_then(|file| file.read_exact_at(&mut bytes, 0)) {
            Ok(()) => Ok(Self::from_bytes(&bytes)),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::UnexpectedEof) => {
                Ok(Self::default())
            }
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// What was counted after `earlier`; what is open and ready is as it is now.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            bytes_received: self.bytes_received.saturating_sub(earlier.bytes_received),
            bytes_sent: self.bytes_sent.saturating_sub(earlier.bytes_sent),
            done: self.done.saturating_sub(earlier.done),
            errors: self.errors.saturating_sub(earlier.errors),
            ..self
        }
    }

    fn to_bytes(self) -> [u8; LEN] {
        let fields = [self.ready, self.bytes_received, self.bytes_sent, self.done, self.errors, self.open];
        let mut bytes = [0; LEN];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; LEN]) -> Self {
        let (fields, _) = bytes.as_chunks::<8>();
        let field = |at: usize| u64::from_ne_bytes(fields[at]);
        Self {
            ready: field(0),
            bytes_received: field(1),
            bytes_sent: field(2),
            done: field(3),
            errors: field(4),
            open: field(5),
        }
    }
}

/// The writing side.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) now: Counters,
    written: Counters,
    written_at: Instant,
    file: Option<File>,
}

impl Published {
    /// Publishes to `path`, or nowhere.
    pub(super) fn new(path: Option<&Path>) -> anyhow::Result<Self> {
        let file = match path {
            Some(path) => Some(File::create(path).with_context(|| format!("creating {}", path.display()))?),
            None => None,
        };
        Ok(Self { now: Counters::default(), written: Counters::default(), written_at: Instant::now(), file })
    }

    /// Writes the counters if they changed and the last time is long enough ago; true if something is left to write.
    pub(super) fn publish(&mut self, now: Instant) -> anyhow::Result<bool> {
        if self.now == self.written {
            return Ok(false);
        }
        if now.duration_since(self.written_at) < PUBLISH_EVERY {
            return Ok(true);
        }
        self.flush(now)?;
        Ok(false)
    }

    /// Writes the counters at once.
    pub(super) fn flush(&mut self, now: Instant) -> anyhow::Result<()> {
        if let Some(file) = &self.file {
            file.write_all_at(&self.now.to_bytes(), 0).context("publishing counters")?;
        }
        (self.written, self.written_at) = (self.now, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_every_field() {
        let counters =
            Counters { ready: 1, bytes_received: u64::MAX, bytes_sent: 3, done: 4, errors: 5, open: 1 << 40 };
        assert_eq!(Counters::from_bytes(&counters.to_bytes()), counters);
    }

    #[test]
    fn a_file_not_written_yet_reads_as_zero() {
        let path = std::env::temp_dir().join(format!("mc-proxy-counters-{}", std::process::id()));
        assert_eq!(Counters::read(&path).unwrap(), Counters::default());
        let mut published = Published::new(Some(&path)).unwrap();
        assert_eq!(Counters::read(&path).unwrap(), Counters::default());
        published.now.done = 7;
        assert!(published.publish(published.written_at).unwrap(), "too early to write");
        assert!(!published.publish(published.written_at + PUBLISH_EVERY).unwrap());
        assert_eq!(Counters::read(&path).unwrap().done, 7);
        std::fs::remove_file(&path).unwrap();
    }
}
