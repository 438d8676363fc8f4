//! The real binaries: an installation (files of one daemon) and the process that runs on it.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::IpAddr,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        net::{UnixDatagram, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{admin::Admin, log::Log, manager::ServiceManager, topology::Namespace, wait};

/// Where the binaries are, when they are not beside the test's own.
pub const BINARIES_VARIABLE: &str = "MC_PROXY_BIN_DIR";

const START_LIMIT: Duration = Duration::from_secs(30);

/// A directory with configuration, database and admin socket, and how the daemon is to be started on them.
#[derive(Debug)]
pub struct Installation {
    directory: TempDir,
    namespace: Option<Namespace>,
    wrapper: Vec<String>,
    binary: PathBuf,
}

/// A running daemon, killed on drop. When the test is panicking, its log is printed.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: Log,
    readers: Vec<JoinHandle<()>>,
    ready_after: Duration,
    status: Option<ExitStatus>,
}

/// The path of `mc-proxy` or `mcproxyctl`.
///
/// # Errors
/// When it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let directory = match env::var_os(BINARIES_VARIABLE) {
        Some(directory) => PathBuf::from(directory),
        None => {
            let own = env::current_exe().context("the path of this test")?;
            let parent = own.parent().context("this test has no directory")?;
            if parent.ends_with("deps") { parent.join("..") } else { parent.to_owned() }
        }
    };
    let path = directory.join(name);
    ensure!(
        path.is_file(),
        "there is no {name} in {}: run `cargo xtask test`, which builds it, or set {BINARIES_VARIABLE}",
        directory.display()
    );
    Ok(path)
}

impl Installation {
    /// An installation whose TOML is `body` with `[database]` and `[grpc]` before it.
    pub fn new(body: &str) -> Result<Self> {
        let installation = Self::without_config()?;
        installation.configure(body)?;
        Ok(installation)
    }

    /// An installation without a configuration file.
    pub fn without_config() -> Result<Self> {
        Ok(Self {
            directory: TempDir::with_prefix("mc-proxy-test-").context("making a directory for the daemon")?,
            namespace: None,
            wrapper: Vec::new(),
            binary: binary("mc-proxy")?,
        })
    }

    /// Writes the TOML anew; it counts from the next start on.
    pub fn configure(&self, body: &str) -> Result<()> {
        self.write_config(&format!(
            "[database]\npath = \"{}\"\n\n[grpc]\naddr = \"unix:{}\"\n\n{body}",
            self.database().display(),
            self.socket().display(),
        ))
    }

    /// Writes exactly `toml`.
    pub fn write_config(&self, toml: &str) -> Result<()> {
        fs::write(self.config(), toml).context("writing the configuration")
    }

    /// The daemon is to run in `namespace`.
    pub fn within(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }

    /// The daemon is to see other files in place of some of the system's: pairs of what it sees and what is there. They
    /// can be changed while it runs, by writing to what is there.
    pub fn with_files(mut self, files: &[(&Path, &Path)]) -> Self {
        let script = "while [ \"$1\" != -- ]; do mount --bind \"$2\" \"$1\" || exit; shift 2; done; shift; exec \"$@\"";
        self.wrapper =
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh"].map(Into::into).into();
        self.wrapper
            .extend(files.iter().flat_map(|pair| <[&Path; 2]>::from(*pair)).map(|path| path.display().to_string()));
        self.wrapper.push("--".into());
        self
    }

    /// The daemon is to run as nobody with exactly `capabilities` (names without `cap_`), started by `setpriv`. The
    /// binary is copied to where that user can read it, and the files become his.
    pub fn as_nobody_with(mut self, capabilities: &[&str]) -> Result<Self> {
        const NOBODY: u32 = 65_534;
        let copy = self.directory.path().join("mc-proxy");
        fs::copy(&self.binary, &copy).context("copying the daemon")?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(self.directory.path())? {
            chown(entry?.path(), Some(NOBODY), Some(NOBODY))?;
        }
        chown(self.directory.path(), Some(NOBODY), Some(NOBODY))?;
        self.binary = copy;
        let list = ["-all".to_owned()].into_iter().chain(capabilities.iter().map(|name| format!("+{name}")));
        let list = list.collect::<Vec<_>>().join(",");
        self.wrapper = vec![
            "setpriv".into(),
            format!("--reuid={NOBODY}"),
            format!("--regid={NOBODY}"),
            "--clear-groups".into(),
            "--no-new-privs".into(),
            format!("--inh-caps={list}"),
            format!("--ambient-caps={list}"),
            format!("--bounding-set={list}"),
        ];
        Ok(self)
    }

    /// The daemon is to have no more than `max` open files.
    pub fn with_open_files(mut self, max: u32) -> Self {
        self.wrapper = vec!["prlimit".into(), format!("--nofile={max}:{max}")];
        self
    }

    /// From the next start on another copy of the daemon runs, as after an upgrade.
    pub fn upgrade(&mut self) -> Result<()> {
        let copy = self.directory.path().join("mc-proxy-upgraded");
        fs::copy(&self.binary, &copy).context("copying the daemon")?;
        self.binary = copy;
        Ok(())
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub fn start(&self) -> Result<Daemon> {
        self.start_with(&[])
    }

    fn start_with(&self, options: &[&str]) -> Result<Daemon> {
        let path = self.directory.path().join("notify.sock");
        if path.exists() {
            fs::remove_file(&path)?;
        }
        let notify = UnixDatagram::bind(&path).context("binding the notification socket")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        notify.set_read_timeout(Some(Duration::from_millis(50)))?;

        let begin = Instant::now();
        let mut daemon = self.launch(self.server().args(options).env("NOTIFY_SOCKET", &path))?;
        daemon.wait_for_ready(begin + START_LIMIT, || {
            let mut message = [0; 4096];
            let length = notify.recv(&mut message).unwrap_or(0);
            Ok(message[..length].split(|b| *b == b'\n').any(|line| line == b"READY=1"))
        })?;
        daemon.ready_after = begin.elapsed();
        Ok(daemon)
    }

    fn launch(&self, command: &mut Command) -> Result<Daemon> {
        let mut child = self.spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let log = Log::default();
        let readers = [
            child.stdout.take().map(|output| log.collect(output)),
            child.stderr.take().map(|output| log.collect(output)),
        ];
        let readers = readers.into_iter().flatten().collect();
        Ok(Daemon { child, log, readers, ready_after: Duration::ZERO, status: None })
    }

    /// Starts the daemon under a service manager and waits until it is ready.
    pub fn start_under(&self, manager: &mut ServiceManager) -> Result<Daemon> {
        let (mut command, copies) = manager.wrap(&self.server())?;
        let begin = Instant::now();
        let mut daemon = self.launch(command.stdin(Stdio::null()))?;
        drop(copies);
        daemon.wait_for_ready(begin + START_LIMIT, || manager.hear())?;
        daemon.ready_after = begin.elapsed();
        Ok(daemon)
    }

    /// Starts another daemon that takes the place of the one that runs, and waits until it is ready.
    pub fn take_over(&self) -> Result<Daemon> {
        self.start_with(&["--takeover"])
    }

    /// Starts another daemon that takes the place of the one that runs, and does not wait for it.
    pub fn begin_take_over(&self) -> Result<Daemon> {
        self.launch(self.server().arg("--takeover"))
    }

    /// Asks the daemon that runs for its place, as a successor that has got everything and does not serve yet: it has
    /// failed when the connection is dropped.
    pub fn ask_for_place(&self) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(self.directory.path().join("mc-proxy.db.takeover"))?;
        stream.set_read_timeout(Some(wait::SOON))?;
        stream.write_all(b"mc-proxy takeover 2\n")?;
        // The descriptors are not asked for, so the kernel closes them.
        let mut byte = [0];
        while byte != *b"r" {
            stream.read_exact(&mut byte).context("the daemon has not made room")?;
        }
        Ok(stream)
    }

    /// Runs the daemon to its end: for starts that are to fail.
    pub fn start_and_fail(&self) -> Result<Output> {
        self.fail_with(&[])
    }

    /// The same for one that is to take the place of another.
    pub fn take_over_and_fail(&self) -> Result<Output> {
        self.fail_with(&["--takeover"])
    }

    fn fail_with(&self, options: &[&str]) -> Result<Output> {
        let mut command = self.server();
        command.args(options);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.spawn(&mut command)?;
        finish(child, START_LIMIT).context("a daemon that should not start")
    }

    /// Runs `mc-proxy SUBCOMMAND -c CONFIG`.
    pub fn run(&self, subcommand: &str) -> Result<Output> {
        let mut command = clean(&self.binary);
        command.arg(subcommand).arg("-c").arg(self.config()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(self.spawn(&mut command)?, START_LIMIT).with_context(|| format!("mc-proxy {subcommand}"))
    }

    /// Runs `mcproxyctl` against the admin socket and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let output = self.ctl_output(args)?;
        ensure!(
            output.status.success(),
            "mcproxyctl {}: {}: {}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `mcproxyctl` with `--json` and returns what it printed, line by line.
    pub fn ctl_json(&self, args: &[&str]) -> Result<Vec<serde_json::Value>> {
        let text = self.ctl(&[&["--json"], args].concat())?;
        let stream = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
        stream.map(|value| value.with_context(|| format!("mcproxyctl --json {}: {text}", args.join(" ")))).collect()
    }

    /// The same as [`Self::ctl_output`] for somebody who has come from an address by SSH.
    pub fn ctl_by_ssh(&self, from: IpAddr, args: &[&str]) -> Result<Output> {
        let mut command = clean(&binary("mcproxyctl")?);
        command.arg("--socket").arg(self.socket()).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("SSH_CONNECTION", format!("{from} 50000 192.0.2.10 22"));
        finish(command.spawn().context("starting mcproxyctl")?, START_LIMIT)
    }

    /// The same, however it ends.
    pub fn ctl_output(&self, args: &[&str]) -> Result<Output> {
        let mut command = clean(&binary("mcproxyctl")?);
        command.arg("--socket").arg(self.socket()).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(command.spawn().context("starting mcproxyctl")?, START_LIMIT)
    }

    /// A client of the admin API.
    pub fn admin(&self) -> Result<Admin> {
        Admin::connect(&self.socket())
    }

    /// The directory with everything.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The TOML file.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("mc-proxy.toml")
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.directory.path().join("mc-proxy.db")
    }

    /// The admin socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("mc-proxy.sock")
    }

    fn server(&self) -> Command {
        let mut words = self.wrapper.iter().map(PathBuf::from).chain([self.binary.clone()]);
        let mut command = clean(&words.next().unwrap_or_default());
        command.args(words).arg("server").arg("-c").arg(self.config()).stdin(Stdio::null());
        command
    }

    /// A process starts in the namespace of the thread that starts it.
    fn spawn(&self, command: &mut Command) -> Result<Child> {
        let child = match &self.namespace {
            Some(namespace) => namespace.run(|| command.spawn())?,
            None => command.spawn(),
        };
        child.with_context(|| format!("starting {:?}", command.get_program()))
    }
}

impl Daemon {
    /// From the start of the process until it was ready.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// What it writes.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its memory that is not on disk or elsewhere.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    /// The most that [`Self::resident_bytes`] has ever been.
    pub fn peak_resident_bytes(&self) -> Result<u64> {
        self.status_bytes("VmHWM:")
    }

    /// A line of proc_pid_status(5) that counts in kB.
    fn status_bytes(&self, name: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }

    /// Processor time that it has spent.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let (_, after_name) = stat.rsplit_once(')').context("no name in stat")?;
        // proc_pid_stat(5): utime and stime are fields 14 and 15, and the first after the name is the third.
        let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_millis(1000 * ticks / rustix::param::clock_ticks_per_second()))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).context("signalling the daemon")
    }

    /// SIGKILL, and waits for the process to be gone.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("killing the daemon")?;
        self.status = Some(self.child.wait()?);
        Ok(())
    }

    /// SIGTERM, and waits for a clean end.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.wait(wait::SOON)?;
        ensure!(status.success(), "after SIGTERM the daemon ended with {status}; the log:\n{}", self.tail());
        Ok(())
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        let mut ended = None;
        wait::until("the end of the daemon", limit, || {
            ended = child.try_wait()?;
            Ok(ended.is_some())
        })?;
        for reader in self.readers.drain(..) {
            // A reader only ends, it cannot fail; a panic in it has been printed.
            let _ = reader.join();
        }
        self.status = ended;
        ended.context("the daemon has not ended")
    }

    /// `hear` waits a little for what the daemon says, and tells whether it is ready.
    fn wait_for_ready(&mut self, deadline: Instant, mut hear: impl FnMut() -> Result<bool>) -> Result<()> {
        while Instant::now() < deadline {
            if hear()? {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                self.wait(wait::SOON)?;
                bail!("the daemon ended with {status} instead of starting; the log:\n{}", self.tail());
            }
        }
        bail!("the daemon was not ready within {START_LIMIT:?}; the log:\n{}", self.tail());
    }

    fn tail(&self) -> String {
        let lines = self.log.lines();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.tail());
        }
    }
}

/// A command without this process's settings for the daemon.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("MCPROXY_") {
            command.env_remove(name);
        }
    }
    command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM").env("NO_COLOR", "1");
    command
}

fn finish(mut child: Child, limit: Duration) -> Result<Output> {
    let log = (Log::default(), Log::default());
    let out = child.stdout.take().map(|output| log.0.collect(output));
    let err = child.stderr.take().map(|output| log.1.collect(output));
    let mut status = None;
    let ended = wait::until("the end of the process", limit, || {
        status = child.try_wait()?;
        Ok(status.is_some())
    });
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    for reader in [out, err].into_iter().flatten() {
        let _ = reader.join();
    }
    let text = |log: &Log| log.lines().iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect();
    match status {
        Some(status) => Ok(Output { status, stdout: text(&log.0), stderr: text(&log.1) }),
        None => bail!("still running after {limit:?}; it wrote:\n{}", log.1.lines().join("\n")),
    }
}
