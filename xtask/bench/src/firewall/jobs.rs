//! What runs in processes of its own, inside the benchmark's namespaces.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use aya::programs::{Xdp, XdpMode};
use serde::{Deserialize, Serialize};

use super::super::interrupt::Interrupt;
use super::super::process::{Launch, Process};
use super::object::{self, Packets, Program};
use super::stream;

/// A job ends with the benchmark; this bounds its life if it is forgotten.
const LIFE: Duration = Duration::from_secs(3600);
const READY_LIMIT: Duration = Duration::from_secs(120);

/// One job, as the benchmark passes it to its process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Attaches a program to an interface.
    Attach { program: Program, packets: Packets, interface: String, ready: PathBuf },
    /// Sends packets as fast as it can.
    Generate { object: PathBuf, packets: Packets, interface: String },
    /// Times a program by id; prints [`object::Timing`].
    Time { object: PathBuf, id: u32, packets: Packets, repeat: u32 },
    /// Listens on a TCP port and does nothing.
    Listen { port: u16, ready: PathBuf },
    /// A steady stream from one source; prints [`stream::Seen`].
    Stream { from: Ipv4Addr, to: SocketAddrV4, a_second: u32, secs: f64 },
}

/// Does one job to its end.
pub(crate) fn run(job: &str) -> anyhow::Result<()> {
    match serde_json::from_str(job).context("the job")? {
        Job::Attach { program, packets, interface, ready } => {
            let mut loaded = object::load(&program, &packets)?;
            let xdp: &mut Xdp = loaded.program_mut(&program.name).context("no such program")?.try_into()?;
            xdp.attach(&interface, XdpMode::Driver).with_context(|| format!("attaching to {interface}"))?;
            wait(&ready)
        }
        Job::Generate { object, packets, interface } => object::generate(&object, &packets, &interface, LIFE),
        Job::Time { object, id, packets, repeat } => print(&object::time(&object, id, &packets, repeat)?),
        Job::Listen { port, ready } => {
            let _listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("listening")?;
            wait(&ready)
        }
        Job::Stream { from, to, a_second, secs } => {
            let secs = Duration::try_from_secs_f64(secs).context("the stream's length")?;
            print(&stream::run(from, to, a_second, secs)?)
        }
    }
}

fn print(result: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}

/// Says that the job is set up, and stays until killed.
fn wait(ready: &Path) -> anyhow::Result<()> {
    fs::write(ready, "").with_context(|| format!("writing {}", ready.display()))?;
    rustix::event::poll(&mut [], Some(&LIFE.try_into().context("a job's life")?)).context("waiting")?;
    Ok(())
}

impl Job {
    /// Prepares the job in a namespace, pinned to a CPU.
    pub(super) fn launch(&self, netns: &str, cpu: usize) -> anyhow::Result<Launch> {
        Launch::new(netns, Some(cpu), &["firewall".to_owned(), serde_json::to_string(self)?])
    }

    /// Starts a job that stays, and waits until it is set up.
    pub(super) fn start(&self, netns: &str, cpu: usize, interrupt: &Interrupt) -> anyhow::Result<Process> {
        let (Self::Attach { ready, .. } | Self::Listen { ready, .. }) = self else {
            anyhow::bail!("not a job that stays");
        };
        match fs::remove_file(ready) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("a job's mark"),
            _ => {}
        }
        let log = ready.with_extension("log");
        let mut process = self.launch(netns, cpu)?.log_to(&log)?.start()?;
        let is_ready = interrupt.wait_until(READY_LIMIT, || Ok(ready.exists() || process.is_over()?))?;
        if !is_ready || !ready.exists() {
            anyhow::bail!("{}", fs::read_to_string(&log).unwrap_or_default().trim());
        }
        Ok(process)
    }

    /// Runs a job that prints its result.
    pub(super) fn result<T: serde::de::DeserializeOwned>(
        &self,
        netns: &str,
        cpu: usize,
        interrupt: &Interrupt,
        errors: &Path,
    ) -> anyhow::Result<T> {
        let mut process = self.launch(netns, cpu)?.log_to(errors)?.keep_output().start()?;
        finish(&mut process, interrupt, errors)
    }
}

/// Waits for a job's end and reads what it printed.
pub(super) fn finish<T: serde::de::DeserializeOwned>(
    process: &mut Process,
    interrupt: &Interrupt,
    errors: &Path,
) -> anyhow::Result<T> {
    let printed = process.output(interrupt, READY_LIMIT);
    let printed = printed.with_context(|| fs::read_to_string(errors).unwrap_or_default().trim().to_owned())?;
    serde_json::from_str(&printed).with_context(|| format!("what a job printed: {printed:?}"))
}
