//! Ends a run early and in order.
//!
//! The benchmark runs in a process of its own, in its own process group, with a pipe from the foreground process as
//! standard input. Whatever ends the foreground process (Ctrl-C, SIGTERM, even SIGKILL) closes the pipe; the benchmark
//! sees it, unwinds, and every destructor puts back what it changed. No signal handler is needed, so no `unsafe` either.

use std::convert::Infallible;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::Context;

/// The foreground process is gone, or was told to go.
#[derive(Debug)]
pub(super) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Runs this program again with `argument` appended, as a worker that notices the end of the caller.
pub(super) fn run_worker(argument: &str) -> anyhow::Result<ExitStatus> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut worker = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg(argument)
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("starting the worker")?;
    // `wait` would close the pipe first, and that means "stop".
    let pipe = worker.stdin.take();
    let status = worker.wait().context("waiting for the worker");
    drop(pipe);
    status
}

/// Tells the worker when to stop.
#[derive(Debug)]
pub(super) struct Interrupt(Receiver<Infallible>);

impl Interrupt {
    /// Watches standard input in a thread: its end is the interrupt.
    pub(super) fn at_end_of_stdin() -> Self {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
            drop(sender);
        });
        Self(receiver)
    }

    /// Waits for `duration`; [`Interrupted`] as soon as the run is to end.
    pub(super) fn pause(&self, duration: Duration) -> Result<(), Interrupted> {
        match self.0.recv_timeout(duration) {
            Ok(never) => match never {},
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(Interrupted),
        }
    }

    /// Asks `is_done` every 10 ms until it is true; false if that takes longer than `limit`.
    pub(super) fn wait_until(
        &self,
        limit: Duration,
        mut is_done: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<bool> {
        let deadline = std::time::Instant::now() + limit;
        while !is_done()? {
            if std::time::Instant::now() >= deadline {
                return Ok(false);
            }
            self.pause(Duration::from_millis(10))?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_lasts_or_ends_with_the_sender() {
        let (sender, receiver) = mpsc::channel();
        let interrupt = Interrupt(receiver);
        assert!(interrupt.pause(Duration::from_millis(1)).is_ok());
        assert!(!interrupt.wait_until(Duration::ZERO, || Ok(false)).unwrap());
        drop(sender);
        assert!(interrupt.pause(Duration::from_secs(60)).is_err());
        let error = interrupt.wait_until(Duration::from_secs(60), || Ok(false)).unwrap_err();
        assert!(error.is::<Interrupted>());
    }
}
