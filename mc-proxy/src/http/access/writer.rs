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
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use crate::telemetry::batch::Batch;

/// Lines that may wait.
const LINES_MAX: usize = 16 * 1024;

/// Bytes of them.
const BYTES_MAX: usize = 16 << 20;

/// How often lines that were dropped are told of.
const TELL: Duration = Duration::from_secs(10);

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
    /// That the lines that wait have allocated.
    bytes: AtomicUsize,
    dropped: AtomicU64,
    failed: AtomicU64,
    /// Looked at before each write: in the queue there may be no room for it.
    reopen: AtomicBool,
}

#[derive(Debug)]
enum Job {
    Line(Vec<u8>),
    /// There is something in [`Shared`] to look at.
    Wake,
    Stop,
}

/// What the thread has, and what it has told of its troubles.
struct Lines<W, O> {
    to: Batch<W>,
    open: O,
    shared: Arc<Shared>,
    is_failing: bool,
    told_dropped: u64,
    told_at: Option<Instant>,
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
        let to = Batch::new(open()?);
        let (queue, jobs) = sync_channel(lines);
        let (end, ended) = sync_channel(1);
        let shared = Arc::new(Shared::default());
        let log = Self { queue: queue.clone(), shared: Arc::clone(&shared) };
        thread::Builder::new().name("access".to_owned()).spawn(move || {
            Lines { to, open, shared: Arc::clone(&shared), is_failing: false, told_dropped: 0, told_at: None }
                .write(&jobs);
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
        let bytes = line.capacity();
        let waiting = self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting.saturating_add(bytes) > BYTES_MAX || self.queue.try_send(Job::Line(line)).is_err() {
            self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has the file opened anew, after a rotation, before the next line is written. Where that fails the old one is written
    /// on.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        // Without room for it, there are lines to wake up for.
        let _ = self.queue.try_send(Job::Wake);
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

impl<W: Write, O: FnMut() -> io::Result<W>> Lines<W, O> {
    /// Until it is told to stop, or nobody is left who could write.
    fn write(mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut next = Some(first);
            while let Some(job) = next {
                if self.shared.reopen.swap(false, Ordering::Acquire) {
                    self.reopen();
                }
                match job {
                    Job::Line(line) => {
                        self.shared.bytes.fetch_sub(line.capacity(), Ordering::Relaxed);
                        if let Err(error) = self.to.write_all(&line) {
                            self.tell_failed(&error);
                        }
                    }
                    Job::Wake => {}
                    Job::Stop => return self.flush(),
                }
                next = jobs.try_recv().ok();
            }
            // It pauses after that, in which lines gather.
            self.flush();
            self.tell_dropped();
        }
    }

    fn reopen(&mut self) {
        self.flush();
        match (self.open)() {
            Ok(opened) => self.to = Batch::new(opened),
            Err(error) => {
                self.shared.failed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "the access log cannot be opened anew, the old file is written on");
            }
        }
    }

    fn flush(&mut self) {
        match self.to.flush() {
            Ok(()) => self.is_failing = false,
            Err(error) => self.tell_failed(&error),
        }
    }

    /// A disk that is full is told of once, not with every line.
    fn tell_failed(&mut self, error: &io::Error) {
        self.shared.failed.fetch_add(1, Ordering::Relaxed);
        if !self.is_failing {
            tracing::error!(%error, "access records cannot be written and are lost");
        }
        self.is_failing = true;
    }

    fn tell_dropped(&mut self) {
        let dropped = self.shared.dropped.load(Ordering::Relaxed);
        if dropped > self.told_dropped && self.told_at.is_none_or(|at| at.elapsed() >= TELL) {
            let lost = dropped - self.told_dropped;
            tracing::warn!(lost, "access records came faster than they could be written and are lost");
            self.told_dropped = dropped;
            self.told_at = Some(Instant::now());
        }
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
        let begun = Instant::now();
        while fs::read_to_string(&path).unwrap() != "old\none\n" {
            assert!(begun.elapsed() < LONG);
            thread::yield_now();
        }
        fs::rename(&path, &rotated).unwrap();
        log.reopen();
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
        // What a line has allocated counts, and not how long it is.
        log.send(Vec::with_capacity(BYTES_MAX + 1));
        assert_eq!(log.dropped(), 2);
        for _ in 0..40 {
            log.send(vec![b'x'; 1 << 20]);
        }
        assert!(log.shared.bytes.load(Ordering::Relaxed) <= BYTES_MAX && log.dropped() > 20);
        assert!(!writer.finish(Duration::from_millis(20)), "who is stuck is left behind");
        drop(lock);
    }

    #[test]
    fn a_file_is_opened_anew_though_the_queue_is_full() {
        let written = [(); 2].map(|()| Arc::new(Mutex::new(Vec::new())));
        let lock = written[0].lock().unwrap();
        let mut files = written.clone().into_iter();
        let open = move || files.next().map(Stuck).ok_or_else(|| io::ErrorKind::NotFound.into());
        let (log, writer) = AccessLog::start_with(open, 8).unwrap();
        let line = [vec![b'x'; 70_000], b"\n".to_vec()].concat();
        while log.dropped() < 2 {
            log.send(line.clone());
        }
        log.reopen();
        drop(lock);
        assert!(writer.finish(LONG));
        assert!(!written[1].lock().unwrap().is_empty(), "lines that waited");
        log.reopen();
        assert_eq!(log.failed(), 0);
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
