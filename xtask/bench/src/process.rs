//! Processes inside namespaces, each in its own process group, stopped when dropped.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::interrupt::Interrupt;

const GRACE: Duration = Duration::from_secs(3);
/// How long a wait for a process goes on when the run is to end.
const TURN: Duration = Duration::from_millis(50);

/// A role of this program (see `load`) inside a namespace, not yet started.
#[derive(Debug)]
pub(super) struct Launch {
    command: Command,
}

impl Launch {
    /// Prepares `load --cpu CPU ARGS…` of this program in the network namespace `netns`; on any CPU without one.
    pub(super) fn new(netns: &str, cpu: impl Into<Option<usize>>, args: &[String]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{netns}")).arg("--").arg(program);
        command.arg("load");
        if let Some(cpu) = cpu.into() {
            command.args(["--cpu", &cpu.to_string()]);
        }
        command.args(args);
        // A group of its own, so that its children can be stopped with it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        // mc-proxy's client would take the one who started the benchmark for a caller to be protected.
        command.env_remove("SSH_CONNECTION");
        Ok(Self { command })
    }

    pub(super) fn env(mut self, key: &str, value: &str) -> Self {
        self.command.env(key, value);
        self
    }

    /// Sends both output streams to a file.
    pub(super) fn log_to(mut self, path: &Path) -> anyhow::Result<Self> {
        let log = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        self.command.stdout(log.try_clone()?).stderr(log);
        Ok(self)
    }

    /// Keeps standard output for [`Process::output`].
    pub(super) fn keep_output(mut self) -> Self {
        self.command.stdout(Stdio::piped());
        self
    }

    pub(super) fn start(mut self) -> anyhow::Result<Process> {
        let child = self.command.spawn().context("running nsenter")?;
        Ok(Process { child })
    }
}

/// A running process with its descendants.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
}

impl Process {
    pub(super) fn pid(&self) -> i32 {
        pid_of(&self.child).as_raw_pid()
    }

    /// True once it has ended by itself.
    pub(super) fn is_over(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait().context("waitpid")?.is_some())
    }

    /// Waits for the end, at most `limit`, and returns what it printed; an error unless it ended well.
    pub(super) fn output(&mut self, interrupt: &Interrupt, limit: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + limit;
        while !self.is_over()? {
            if Instant::now() >= deadline {
                bail!("still running after {limit:?}");
            }
            // Wakes at the end of the process: how long it ran is a figure.
            wait_exit(pid_of(&self.child), TURN);
            interrupt.pause(Duration::ZERO)?;
        }
        let status = self.child.wait().context("waitpid")?;
        // Read at the end: what these programs print fits a pipe.
        let mut output = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut output).context("reading a program's output")?;
        }
        if !status.success() {
            bail!("ended with {status}");
        }
        Ok(output)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let group = pid_of(&self.child);
        for signal in [Signal::TERM, Signal::KILL] {
            // The second also reaches children that outlived the first; there may be none.
            if rustix::process::kill_process_group(group, signal).is_err() || signal == Signal::KILL {
                break;
            }
            wait_exit(group, GRACE);
        }
        if let Err(error) = self.child.wait() {
            eprintln!("waiting for process {}: {error}", group.as_raw_pid());
        }
    }
}

/// Waits until the process ends, at most `limit`; the caller looks whether it has.
fn wait_exit(pid: Pid, limit: Duration) {
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
    let Ok(limit) = limit.try_into() else { return };
    let _looked_at_next = rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit));
}

fn pid_of(child: &Child) -> Pid {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a child's id is a process id")
}

/// Runs a command to its end and returns its standard output; an error with what it said unless it ended well.
pub(super) fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output =
        Command::new(program).args(args).stdin(Stdio::null()).output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}: {}", args.join(" "), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first line that a program prints about its version.
pub(super) fn version(program: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().context("asking for the version")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown");
    // Some begin with the path they were run by.
    Ok(line.replace(&*program.to_string_lossy(), "").trim().to_owned())
}
