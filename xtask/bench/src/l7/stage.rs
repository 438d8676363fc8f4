//! Backends and all peers up at once in one namespace, so that peers are measured back to back.

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;

use super::super::cpu::{self, Participants, Snapshot, Usage};
use super::super::interrupt::{Interrupt, Interrupted};
use super::super::load::counters::Counters;
use super::super::load::https::Outcome;
use super::super::process::{Launch, Process};
use super::super::record::{self, Machine, Metrics};
use super::super::topology::{Layout, Topology};
use super::peers::{Certificate, Peer, Site};
use super::rows::Row;

const BACKEND_PORT: u16 = 9100;
const GRPC_BACKEND_PORT: u16 = 9101;
/// Each peer has two ports from here on.
const FIRST_PORT: u16 = 8500;
/// A backend ends with its stage; this bounds its life if it is forgotten.
const BACKEND_SECS: f64 = 6.0 * 3600.0;
/// How long a peer may take to come up, and how long any other row may take to answer once.
const START_SECS: f64 = 8.0;
const PROBE_SECS: f64 = 2.0;
const WARM_UP: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(30);
const LOG_TAIL: usize = 800;

/// One measurement of one peer.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record {
    pub(super) row: Row,
    pub(super) peer: &'static str,
    pub(super) round: u32,
    pub(super) metrics: Metrics,
}

/// Everything a run leaves.
pub(super) type Document = record::Document<Record>;

/// What a run is made with.
#[derive(Debug)]
pub(super) struct Setting<'a> {
    pub(super) interrupt: &'a Interrupt,
    pub(super) machine: Machine,
    /// For counters, configurations and logs; on tmpfs.
    pub(super) work_dir: &'a Path,
    /// The peers that can run here, with their programs.
    pub(super) peers: Vec<(&'static Peer, PathBuf)>,
    pub(super) rows: Vec<Row>,
    pub(super) window: Duration,
}

/// A peer that is up.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) name: &'static str,
    process: Process,
    site: Site,
    /// What it could do when asked once.
    pub(super) rows: Vec<Row>,
}

/// What a client did within its window.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) usage: Usage,
    /// Differences over the window.
    pub(super) client: Counters,
    pub(super) outcome: Outcome,
}

/// Fields are dropped in order: proxies, backends, namespace.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) running: Vec<Running>,
    backends: [Process; 2],
    topology: Topology,
    certificate: Certificate,
    pub(super) setting: &'a Setting<'a>,
}

impl<'a> Stage<'a> {
    /// Makes the namespace and starts everything; a peer that does not answer is left out with a note, and so are the
    /// rows that one cannot do.
    pub(super) fn set_up(setting: &'a Setting<'a>, document: &mut Document) -> anyhow::Result<Self> {
        let topology = Topology::create(Layout::Lo)?;
        let start = |speaks: &str, port| -> anyhow::Result<Process> {
            let addr = SocketAddrV4::new(topology.backend_ip, port);
            let args = role(&["https-backend", "--speaks", speaks], addr, BACKEND_SECS);
            Launch::new(topology.backend(), setting.machine.load_cpu, &args)?.start()
        };
        let backends = [start("http", BACKEND_PORT)?, start("grpc", GRPC_BACKEND_PORT)?];
        let certificate = Certificate::make(setting.work_dir)?;
        let mut stage = Self { running: Vec::new(), backends, topology, certificate, setting };
        for (port, (peer, program)) in (FIRST_PORT..).step_by(2).zip(&setting.peers) {
            let site = stage.site(peer, port);
            document.configurations.insert(peer.name, peer.configuration(&site));
            match stage.start(peer, program, site, document) {
                Ok(running) => stage.running.push(running),
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => document.note(format!("{} is left out: {error:#}", peer.name)),
            }
        }
        Ok(stage)
    }

    /// Runs one client against a peer and watches the clocks for the window of its steady state.
    pub(super) fn load(&self, peer: &Running, row: Row) -> anyhow::Result<Window> {
        let setting = self.setting;
        let (counters, stop) = (setting.work_dir.join("client"), setting.work_dir.join("stop"));
        // Or the last client's would be taken for this one's.
        remove_if_there(&counters)?;
        remove_if_there(&stop)?;
        let mut args = self.role_of(row, peer.addr(row), (setting.window + 2 * LIMIT).as_secs_f64());
        args.extend(["--counters".to_owned(), counters.to_string_lossy().into_owned()]);
        args.extend(["--stop".to_owned(), stop.to_string_lossy().into_owned()]);
        args.extend(["--warm-up".to_owned(), WARM_UP.as_secs_f64().to_string()]);
        let mut client = Launch::new(self.topology.client(), setting.machine.load_cpu, &args)?.keep_output().start()?;
        let read = || Counters::read(&counters);

        let is_up = || Ok(read()?.ready == 1 || client.is_over()?);
        let is_ready = setting.interrupt.wait_until(LIMIT, is_up)? && read()?.ready == 1;
        anyhow::ensure!(is_ready, "the client did not get its connections: {:?}", read()?);
        setting.interrupt.pause(WARM_UP)?;
        let load = std::iter::once(&client).chain(&self.backends).map(Process::pid).collect();
        let participants = Participants { proxy: cpu::descendants(peer.process.pid())?, load };
        let (start, from) = (Snapshot::take(&participants)?, read()?);
        setting.interrupt.pause(setting.window)?;
        let (to, end) = (read()?, Snapshot::take(&participants)?);
        anyhow::ensure!(!client.is_over()?, "the client ended early");
        fs::write(&stop, []).with_context(|| format!("creating {}", stop.display()))?;
        let printed = client.output(setting.interrupt, LIMIT).context("the client")?;
        let outcome = serde_json::from_str(&printed).with_context(|| format!("the client printed {printed:?}"))?;
        Ok(Window { usage: start.until(&end), client: to.since(from), outcome })
    }

    fn site(&self, peer: &Peer, port: u16) -> Site {
        let listen = |port| SocketAddrV4::new(self.topology.listen, port);
        let backend = |port| SocketAddrV4::new(self.topology.backend_ip, port);
        Site {
            listen: listen(port),
            grpc_listen: listen(port + 1),
            backend: backend(BACKEND_PORT),
            grpc_backend: backend(GRPC_BACKEND_PORT),
            certificate: self.certificate.clone(),
            dir: self.setting.work_dir.join(peer.name),
        }
    }

    fn start(
        &self,
        peer: &'static Peer,
        program: &Path,
        site: Site,
        document: &mut Document,
    ) -> anyhow::Result<Running> {
        let mut args = vec!["exec".to_owned(), "--".to_owned()];
        args.extend(peer.prepare(program, &site)?);
        let log = site.dir.join("log");
        let mut launch = Launch::new(self.topology.proxy(), self.setting.machine.proxy_cpu, &args)?.log_to(&log)?;
        for (key, value) in peer.env {
            launch = launch.env(key, &site.in_dir(value));
        }
        let mut running = Running { name: peer.name, process: launch.start()?, site, rows: Vec::new() };
        let mut secs = START_SECS;
        for &row in &self.setting.rows {
            match self.probe(&mut running, row, secs) {
                Ok(()) => running.rows.push(row),
                Err(error) if error.is::<Interrupted>() || running.process.is_over()? => {
                    return Err(error.context(format!("it said {:?}", tail(&log))));
                }
                Err(error) => document.note(format!("{} is left out of {row}: {error:#}", peer.name)),
            }
            // By now it is up, if it ever is.
            secs = PROBE_SECS;
        }
        if running.rows.is_empty() {
            bail!("it answers nothing; it said {:?}", tail(&log));
        }
        Ok(running)
    }

    /// Waits until a peer has done once what a row asks; an error at once when its process ends.
    fn probe(&self, running: &mut Running, row: Row, secs: f64) -> anyhow::Result<()> {
        let log = self.setting.work_dir.join("probe.log");
        let mut args = self.role_of(row, running.addr(row), secs);
        args.push("--probe".to_owned());
        let launch = Launch::new(self.topology.client(), self.setting.machine.load_cpu, &args)?.log_to(&log)?;
        let mut probe = launch.start()?;
        let process = &mut running.process;
        self.setting.interrupt.wait_until(LIMIT, || Ok(probe.is_over()? || process.is_over()?))?;
        anyhow::ensure!(!process.is_over()?, "it ended at once");
        let Err(error) = probe.output(self.setting.interrupt, LIMIT) else { return Ok(()) };
        if error.is::<Interrupted>() {
            return Err(error);
        }
        bail!("{}", tail(&log).trim_start_matches("cargo xtask: "))
    }

    fn role_of(&self, row: Row, addr: SocketAddrV4, secs: f64) -> Vec<String> {
        let certificate = self.certificate.chain.to_string_lossy();
        let words = ["https", "--kind", row.kind().word(), "--certificate", &certificate];
        let mut args = role(&words, addr, secs);
        args.extend(["--connections".to_owned(), row.connections().to_string()]);
        args.extend(["--streams".to_owned(), row.streams().to_string()]);
        args
    }
}

impl Running {
    fn addr(&self, row: Row) -> SocketAddrV4 {
        if row == Row::Grpc { self.site.grpc_listen } else { self.site.listen }
    }
}

fn role(words: &[&str], addr: SocketAddrV4, secs: f64) -> Vec<String> {
    let words = words.iter().map(|&word| word.to_owned());
    words.chain(["--addr".to_owned(), addr.to_string(), "--secs".to_owned(), secs.to_string()]).collect()
}

/// The end of a log.
fn tail(log: &Path) -> String {
    let said = fs::read_to_string(log).unwrap_or_default();
    let from = said.char_indices().rev().nth(LOG_TAIL).map_or(0, |(at, _)| at);
    said[from..].trim().to_owned()
}

fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
