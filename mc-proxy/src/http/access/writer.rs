//! Lines to a file or a stream, by a thread of their own: a request never waits for a disk, or for whoever reads a pipe.
//!
//! Waiting lines are bounded by number and by bytes. Beyond that they are dropped and counted.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use crate::telemetry::batch::Batch;

/// Lines that may wait.
const LINES_MAX: usize = 16 * 1024;

/// Bytes of them.
const BYTES_MAX: usize = 16 << 20;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The daemon's standard output.
    Stdout,
    /// The daemon's standard error.
    Stderr,
    /// A file that is appended to, made with mode 0640.
    File(PathBuf),
}

/// The queue's end for those who write. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: SyncSender<Job>,
    shared: Arc<Shared>,
}

/// The thread that writes.
#[derive(Debug)]
pub struct Writer {
    queue: SyncSender<Job>,
    ended: Receiver<()>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Of the lines that wait.
    bytes: AtomicUsize,
    dropped: AtomicU64,
    failed: AtomicU64,
}

#[derive(Debug)]
enum Job {
    Line(Vec<u8>),
    Reopen,
    Stop,
}

impl Destination {
    fn open(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::Stdout => Box::new(io::stdout()),
            Self::Stderr => Box::new(io::stderr()),
            Self::File(path) => Box::new(OpenOptions::new().append(true).create(true).mode(0o640).open(path)?),
        })
    }
}

impl AccessLog {
    /// Opens the destination and starts the thread.
    ///
    /// # Errors
    /// When the file cannot be opened, or no thread be had.
    pub fn start(to: Destination) -> io::Result<(Self, Writer)> {
        Self::start_with(move || to.open(), LINES_MAX)
    }

    fn start_with<W: Write + Send + 'static>(
        mut open: impl FnMut() -> io::Result<W> + Send + 'static,
        lines: usize,
    ) -> io::Result<(Self, Writer)> {
        let mut to = Batch::new(open()?);
        let (queue, jobs) = sync_channel(lines);
        let (end, ended) = sync_channel(1);
        let shared = Arc::new(Shared::default());
        let log = Self { queue: queue.clone(), shared: Arc::clone(&shared) };
        thread::Builder::new().name("access".to_owned()).spawn(move || {
            write_all(&jobs, &mut to, &mut open, &shared);
            // What came behind the end, and what comes from now on, is dropped.
            let rest = jobs.try_iter().filter(|job| matches!(job, Job::Line(_))).count();
            drop(jobs);
            shared.dropped.fetch_add(u64::try_from(rest).unwrap_or(u64::MAX), Ordering::Relaxed);
            // Nobody may wait for it.
            let _ = end.try_send(());
        })?;
        Ok((log, Writer { queue, ended }))
    }

    /// Hands over a line with its end. Never waits.
    pub fn send(&self, line: Vec<u8>) {
        let bytes = line.len();
        let waiting = self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting.saturating_add(bytes) > BYTES_MAX || self.queue.try_send(Job::Line(line)).is_err() {
            self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens the file anew, after a rotation. Where that fails the old one is written on.
    pub fn reopen(&self) -> bool {
        self.queue.try_send(Job::Reopen).is_ok()
    }

    /// Lines for which there was no room.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Writes and openings that failed, as on a full disk; the lines of a write are lost.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Writes what is waiting, for so long at most; whether that was enough.
    pub fn finish(self, within: Duration) -> bool {
        let half = within / 2;
        // A queue that is full has a reader who is stuck, or soon has room.
        let step = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        while self.queue.try_send(Job::Stop).is_err() {
            if waited >= half || self.ended.recv_timeout(step) != Err(RecvTimeoutError::Timeout) {
                return false;
            }
            waited += step;
        }
        self.ended.recv_timeout(within - half).is_ok()
    }
}

fn write_all<W: Write>(
    jobs: &Receiver<Job>,
    to: &mut Batch<W>,
    open: &mut impl FnMut() -> io::Result<W>,
    shared: &Shared,
) {
    let check = |result: io::Result<()>| {
        if result.is_err() {
            shared.failed.fetch_add(1, Ordering::Relaxed);
        }
    };
    while let Ok(first) = jobs.recv() {
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Line(line) => {
                    shared.bytes.fetch_sub(line.len(), Ordering::Relaxed);
                    check(to.write_all(&line));
                }
                Job::Reopen => {
                    check(to.flush());
                    match open() {
                        Ok(opened) => *to = Batch::new(opened),
                        Err(error) => check(Err(error)),
                    }
                }
                Job::Stop => {
                    check(to.flush());
                    return;
                }
            }
            next = jobs.try_recv().ok();
        }
        // It pauses after that, in which lines gather.
        check(to.flush());
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Mutex};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn lines_get_into_the_file_and_into_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (path, rotated) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        fs::write(&path, "old\n").unwrap();
        let (log, writer) = AccessLog::start(Destination::File(path.clone())).unwrap();
        log.send(b"one\n".to_vec());
        // The thread has the old file open, and gets to it in the order of the queue.
        fs::rename(&path, &rotated).unwrap();
        assert!(log.reopen());
        log.clone().send(b"two\n".to_vec());
        assert!(writer.finish(LONG));
        assert_eq!(fs::read_to_string(rotated).unwrap(), "old\none\n");
        assert_eq!(fs::read_to_string(path).unwrap(), "two\n");
        log.send(b"late\n".to_vec());
        assert_eq!((log.dropped(), log.failed()), (1, 0));
        assert!(AccessLog::start(Destination::File(dir.path().into())).is_err());
    }

    /// Writes once it may.
    struct Stuck(Arc<Mutex<Vec<u8>>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whoever_writes_never_waits() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let lock = written.lock().unwrap();
        let to = Arc::clone(&written);
        let (log, writer) = AccessLog::start_with(move || Ok(Stuck(Arc::clone(&to))), 8).unwrap();
        // 64 KiB of lines are taken from the queue before the first write, which is stuck.
        let line = [vec![b'x'; 70_000], b"\n".to_vec()].concat();
        for _ in 0..100 {
            log.send(line.clone());
        }
        let dropped = log.dropped();
        assert!((90..=92).contains(&dropped), "{dropped}");
        drop(lock);
        assert!(writer.finish(LONG));
        let written = written.lock().unwrap();
        assert_eq!(written.len() as u64, (100 - dropped) * line.len() as u64);
        assert_eq!(log.shared.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let lock = written.lock().unwrap();
        let to = Arc::clone(&written);
        let (log, writer) = AccessLog::start_with(move || Ok(Stuck(Arc::clone(&to))), 1_000).unwrap();
        log.send(vec![b'x'; BYTES_MAX + 1]);
        assert_eq!(log.dropped(), 1);
        for _ in 0..40 {
            log.send(vec![b'x'; 1 << 20]);
        }
        assert!(log.shared.bytes.load(Ordering::Relaxed) <= BYTES_MAX && log.dropped() > 20);
        assert!(!writer.finish(Duration::from_millis(20)), "who is stuck is left behind");
        drop(lock);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (log, writer) = AccessLog::start_with(|| Ok(Full), 8).unwrap();
        log.send(b"x\n".to_vec());
        assert!(writer.finish(LONG));
        assert!(log.failed() >= 1);
    }
}
