//! A topology with its backend and all peers up at once, so that peers are measured back to back.

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use super::super::cpu::{self, Participants, Snapshot, Usage};
use super::super::interrupt::{Interrupt, Interrupted};
use super::super::load::counters::Counters;
use super::super::load::{Direction, Latencies, pin};
use super::super::process::{Launch, Process};
use super::super::record::Machine;
use super::super::topology::{Layout, Topology};
use super::peers::{DIRECT, Peer, Site};
use super::record::Document;

const BACKEND_PORT: u16 = 9000;
const FIRST_PORT: u16 = 8400;
/// A backend ends with its stage; this bounds its life if it is forgotten.
const BACKEND_SECS: u32 = 6 * 3600;
const PROBE_SECS: u32 = 8;
const WARM_UP: Duration = Duration::from_millis(300);
const SETUP_LIMIT: Duration = Duration::from_secs(90);
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
const LOG_TAIL: usize = 800;

/// What every stage of a run shares.
#[derive(Debug)]
pub(super) struct Setting<'a> {
    pub(super) interrupt: &'a Interrupt,
    pub(super) machine: Machine,
    /// For counters, configurations and logs; on tmpfs.
    pub(super) work_dir: &'a Path,
    /// The peers that can run here, with their programs.
    pub(super) peers: Vec<(&'static Peer, PathBuf)>,
    pub(super) window: Duration,
}

/// A peer that is up; `direct` has no process.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) name: &'static str,
    pub(super) process: Option<Process>,
    addr: SocketAddrV4,
}

impl Running {
    /// The proxy's processes.
    pub(super) fn pids(&self) -> anyhow::Result<Vec<i32>> {
        self.process.as_ref().map_or_else(|| Ok(Vec::new()), |process| cpu::descendants(process.pid()))
    }

    /// Moves all threads of the proxy to one CPU.
    pub(super) fn pin(&self, cpu: usize) -> anyhow::Result<()> {
        for thread in self.pids()?.into_iter().flat_map(cpu::threads) {
            pin(rustix::process::Pid::from_raw(thread), cpu)?;
        }
        Ok(())
    }
}

/// What a client did within its window.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) usage: Usage,
    /// Differences over the window.
    pub(super) client: Counters,
    pub(super) backend: Counters,
    /// Of roles that measure them.
    pub(super) latencies: Option<Latencies>,
}

/// Fields are dropped in order: proxies, backend, namespaces.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) running: Vec<Running>,
    backend: Process,
    pub(super) topology: Topology,
    pub(super) setting: &'a Setting<'a>,
}

impl<'a> Stage<'a> {
    /// Makes the namespaces and starts everything; a peer that does not pass bytes unharmed is left out with a note.
    pub(super) fn set_up(setting: &'a Setting<'a>, layout: Layout, document: &mut Document) -> anyhow::Result<Self> {
        let topology = Topology::create(layout)?;
        let addr = SocketAddrV4::new(topology.backend_ip, BACKEND_PORT);
        let backend = start_backend(setting, &topology, addr)?;
        let direct = Running { name: DIRECT, process: None, addr };
        let mut stage = Self { running: vec![direct], backend, topology, setting };
        stage.probe(addr, None).context("no traffic even without a proxy")?;
        for (port, (peer, program)) in (FIRST_PORT..).zip(&setting.peers) {
            let site = Site {
                listen: SocketAddrV4::new(stage.topology.listen, port),
                backend: addr,
                // What a peer keeps there names the addresses of one topology.
                dir: setting.work_dir.join(format!("{}-{}", peer.name, stage.topology.listen)),
            };
            match stage.start(peer, program, &site) {
                Ok(running) => {
                    document.configurations.insert(peer.name, peer.configuration(&site));
                    stage.running.push(running);
                }
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => document.note(format!("{} is left out of {layout}: {error:#}", peer.name)),
            }
        }
        Ok(stage)
    }

    /// Runs one client against a peer and watches the clocks for the window of its steady state.
    pub(super) fn load(&self, peer: &Running, role: &[&str]) -> anyhow::Result<Window> {
        let mut client = self.client(peer, role)?;
        let outcome = self.watch(peer, &mut client, has_latencies(role));
        drop(client);
        self.wait_until_drained()?;
        outcome
    }

    /// Runs one client until it reports that it is set up, then `observe`s, and ends it.
    pub(super) fn hold<T>(
        &self,
        peer: &Running,
        role: &[&str],
        observe: impl FnOnce(Counters) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let mut client = self.client(peer, role)?;
        let observed = self.wait_until_ready(&mut client).and_then(observe);
        drop(client);
        self.wait_until_drained()?;
        observed
    }

    /// Sets up connections whose readers will stall, then `observe`s, which lets them begin, and ends it all.
    pub(super) fn stall<T>(
        &self,
        peer: &Running,
        role: &[&str],
        observe: impl FnOnce(&dyn Fn() -> anyhow::Result<()>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let go = self.setting.work_dir.join("go");
        remove_if_there(&go)?;
        let go_path = go.to_string_lossy();
        let role: Vec<&str> = ["stall"].iter().chain(role).copied().chain(["--go", &go_path]).collect();
        let mut client = self.client(peer, &role)?;
        let begin = || fs::write(&go, []).with_context(|| format!("creating {}", go.display()));
        let observed = self.wait_until_ready(&mut client).and_then(|_| observe(&begin));
        drop(client);
        // A reader that stalls does not see the end behind the bytes that it does not read.
        let release = self.release();
        fs::write(&release, []).with_context(|| format!("creating {}", release.display()))?;
        self.setting.interrupt.wait_until(DRAIN_LIMIT, || Ok(!release.exists()))?;
        self.wait_until_drained()?;
        observed
    }

    /// Bytes that the sending side got rid of.
    pub(super) fn sent(&self, direction: Direction) -> anyhow::Result<u64> {
        let side = match direction {
            Direction::Up => "client",
            Direction::Down => "backend",
        };
        Ok(self.counters(side)?.bytes_sent)
    }

    fn watch(&self, peer: &Running, client: &mut Process, has_latencies: bool) -> anyhow::Result<Window> {
        let setting = self.setting;
        self.wait_until_ready(client)?;
        setting.interrupt.pause(WARM_UP)?;
        let participants = Participants { proxy: peer.pids()?, load: vec![client.pid(), self.backend.pid()] };
        let start = Snapshot::take(&participants)?;
        let (client_from, backend_from) = (self.counters("client")?, self.counters("backend")?);
        setting.interrupt.pause(setting.window)?;
        let (client_to, backend_to) = (self.counters("client")?, self.counters("backend")?);
        let usage = start.until(&Snapshot::take(&participants)?);
        anyhow::ensure!(!client.is_over()?, "the client ended early");
        let latencies = if has_latencies {
            let stop = self.stop();
            fs::write(&stop, []).with_context(|| format!("creating {}", stop.display()))?;
            let printed = client.output(setting.interrupt, SETUP_LIMIT).context("the client")?;
            Some(serde_json::from_str(&printed).with_context(|| format!("what the client printed: {printed:?}"))?)
        } else {
            None
        };
        let (client, backend) = (client_to.since(client_from), backend_to.since(backend_from));
        Ok(Window { usage, client, backend, latencies })
    }

    fn start(&self, peer: &'static Peer, program: &Path, site: &Site) -> anyhow::Result<Running> {
        let mut args = vec!["exec".to_owned(), "--".to_owned()];
        args.extend(peer.prepare(program, site)?);
        let log = site.dir.join("log");
        let mut launch = Launch::new(self.topology.proxy(), self.setting.machine.proxy_cpu, &args)?.log_to(&log)?;
        for (key, value) in peer.env {
            launch = launch.env(key, value);
        }
        let mut running = Running { name: peer.name, process: Some(launch.start()?), addr: site.listen };
        match self.probe(running.addr, running.process.as_mut()) {
            Err(error) if !error.is::<Interrupted>() => {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let tail = said.char_indices().rev().nth(LOG_TAIL).map_or(0, |(at, _)| at);
                Err(error.context(format!("it said {:?}", said[tail..].trim())))
            }
            outcome => outcome.map(|()| running),
        }
    }

    /// Waits until bytes pass a peer unharmed; an error at once when its process ends.
    fn probe(&self, addr: SocketAddrV4, mut proxy: Option<&mut Process>) -> anyhow::Result<()> {
        let log = self.setting.work_dir.join("probe.log");
        let args = role_args(&["probe"], addr, PROBE_SECS.into(), None);
        let launch = Launch::new(self.topology.client(), self.setting.machine.load_cpu, &args)?.log_to(&log)?;
        let mut probe = launch.start()?;
        let mut is_gone = || proxy.as_mut().map_or(Ok(false), |proxy| proxy.is_over());
        self.setting.interrupt.wait_until(SETUP_LIMIT, || Ok(probe.is_over()? || is_gone()?))?;
        anyhow::ensure!(!is_gone()?, "it ended at once");
        let Err(error) = probe.output(self.setting.interrupt, SETUP_LIMIT) else { return Ok(()) };
        if error.is::<Interrupted>() {
            return Err(error);
        }
        bail!("{}", fs::read_to_string(&log).unwrap_or_default().trim().trim_start_matches("cargo xtask: "))
    }

    fn client(&self, peer: &Running, role: &[&str]) -> anyhow::Result<Process> {
        let counters = self.setting.work_dir.join("client");
        // Or the last client's counters would be taken for this one's.
        remove_if_there(&counters)?;
        remove_if_there(&self.stop())?;
        // Clients are ended from here: their life is only bounded.
        let life = self.setting.window + 2 * SETUP_LIMIT;
        let mut args = role_args(role, peer.addr, life.as_secs_f64(), Some(&counters));
        args.extend(["--stop".to_owned(), self.stop().to_string_lossy().into_owned()]);
        Launch::new(self.topology.client(), self.setting.machine.load_cpu, &args)?.keep_output().start()
    }

    /// The file that ends a client.
    fn stop(&self) -> PathBuf {
        self.setting.work_dir.join("stop")
    }

    /// The file that closes connections with stalled readers.
    fn release(&self) -> PathBuf {
        release(self.setting)
    }

    fn wait_until_ready(&self, client: &mut Process) -> anyhow::Result<Counters> {
        let is_ready = self
            .setting
            .interrupt
            .wait_until(SETUP_LIMIT, || Ok(self.counters("client")?.ready == 1 || client.is_over()?))?;
        let counters = self.counters("client")?;
        anyhow::ensure!(is_ready && counters.ready == 1, "the client did not get its connections: {counters:?}");
        Ok(counters)
    }

    fn wait_until_drained(&self) -> anyhow::Result<()> {
        if !self.setting.interrupt.wait_until(DRAIN_LIMIT, || Ok(self.counters("backend")?.open == 0))? {
            println!("  note: {} connections of the last case are still open", self.counters("backend")?.open);
        }
        Ok(())
    }

    fn counters(&self, of: &str) -> anyhow::Result<Counters> {
        Counters::read(&self.setting.work_dir.join(of))
    }
}

fn start_backend(setting: &Setting<'_>, topology: &Topology, addr: SocketAddrV4) -> anyhow::Result<Process> {
    let counters = setting.work_dir.join("backend");
    let mut args = role_args(&["backend"], addr, BACKEND_SECS.into(), Some(&counters));
    args.extend(["--release".to_owned(), release(setting).to_string_lossy().into_owned()]);
    Launch::new(topology.backend(), setting.machine.load_cpu, &args)?.start()
}

fn release(setting: &Setting<'_>) -> PathBuf {
    setting.work_dir.join("release")
}

/// Roles that print latencies when they are stopped.
fn has_latencies(role: &[&str]) -> bool {
    matches!(role, ["rate" | "ping" | "mixed", ..])
}

fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn role_args(role: &[&str], addr: SocketAddrV4, secs: f64, counters: Option<&Path>) -> Vec<String> {
    let mut args: Vec<String> = role.iter().map(|&word| word.to_owned()).collect();
    args.extend(["--addr".to_owned(), addr.to_string(), "--secs".to_owned(), secs.to_string()]);
    args.extend(["--warm-up".to_owned(), WARM_UP.as_secs_f64().to_string()]);
    if let Some(path) = counters {
        args.extend(["--counters".to_owned(), path.to_string_lossy().into_owned()]);
    }
    args
}
