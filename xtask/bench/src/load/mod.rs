//! The load generator and backend: processes of their own, which the benchmark starts inside its namespaces.
//!
//! Every role ends by itself after its time, and is killed when the benchmark dies.

pub(crate) mod counters;
pub(crate) mod hello;
pub(crate) mod https;

mod backend;
mod client;
mod histogram;
mod mixed;
mod socket;
mod stall;
mod turns;

use std::net::SocketAddrV4;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::CpuSet;

pub(crate) use client::{Direction, Latencies};
pub(crate) use mixed::Mix;
pub(crate) use stall::{Before, OFFERED};

use counters::Published;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The CPU to stay on.
    #[arg(long)]
    cpu: Option<usize>,
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serves connections as their hello asks.
    Backend {
        #[command(flatten)]
        common: Common,
        /// Connections with stalled readers are closed when this file appears.
        #[arg(long)]
        release: Option<PathBuf>,
    },
    /// Streams bytes over connections that stay open.
    Stream {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value = "up")]
        direction: Direction,
    },
    /// Opens short connections, one after the other.
    Rate {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 64)]
        size: u32,
    },
    /// Sends a message there and back over connections that stay open.
    Ping {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 1)]
        size: usize,
    },
    /// Holds silent connections.
    Idle(Common),
    /// Chats and bursts by turns, or side by side.
    Mixed {
        #[command(flatten)]
        common: Common,
        #[arg(long)]
        mix: Mix,
    },
    /// Sends, or has sent, 10 GB a connection to a reader that has stopped to read.
    Stall {
        #[command(flatten)]
        common: Common,
        /// Which way the bytes go.
        #[arg(long)]
        direction: Direction,
        #[arg(long)]
        before: Before,
        /// Begins when this file appears.
        #[arg(long)]
        go: PathBuf,
    },
    /// Checks that bytes come back unharmed.
    Probe(Common),
    /// Asks over TLS.
    Https(https::Client),
    /// Answers in plaintext what a proxy was asked over TLS.
    HttpsBackend {
        #[command(flatten)]
        common: Common,
        #[arg(long)]
        speaks: https::Speaks,
    },
    /// A job of the firewall benchmark, in JSON.
    Firewall { job: String },
    /// Becomes another program, tied to the benchmark's life.
    Exec {
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    #[arg(long)]
    addr: SocketAddrV4,
    /// Seconds until the role ends by itself.
    #[arg(long)]
    secs: f64,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Seconds at the start whose latencies are not counted.
    #[arg(long, default_value_t = 0.3)]
    warm_up: f64,
    /// Where to publish counters.
    #[arg(long)]
    counters: Option<PathBuf>,
    /// Ends when this file appears.
    #[arg(long)]
    stop: Option<PathBuf>,
}

impl Common {
    fn plan(&self) -> anyhow::Result<client::Plan> {
        Ok(client::Plan {
            addr: self.addr,
            connections: self.connections,
            lifetime: Duration::try_from_secs_f64(self.secs).context("--secs")?,
            warm_up: Duration::try_from_secs_f64(self.warm_up).context("--warm-up")?,
            stop: self.stop.clone(),
        })
    }

    fn counters(&self) -> anyhow::Result<Published> {
        Published::new(self.counters.as_deref())
    }
}

/// Plays one role; latencies are printed as one line of JSON.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("prctl")?;
    raise_descriptor_limit()?;
    if let Some(cpu) = args.cpu {
        pin(None, cpu)?;
    }
    match &args.role {
        Role::Backend { common, release } => {
            backend::serve(common.addr, common.plan()?.lifetime, release.as_deref(), common.counters()?)
        }
        Role::Stream { common, direction } => client::stream(&common.plan()?, *direction, common.counters()?),
        Role::Rate { common, size } => print(client::rate(&common.plan()?, *size, common.counters()?)?),
        Role::Ping { common, size } => print(client::ping(&common.plan()?, *size, common.counters()?)?),
        Role::Idle(common) => client::idle(&common.plan()?, common.counters()?),
        Role::Mixed { common, mix } => print(mixed::mixed(&common.plan()?, *mix, common.counters()?)?),
        Role::Stall { common, direction, before, go } => {
            stall::stall(&common.plan()?, (*direction, *before), go, common.counters()?)
        }
        Role::Probe(common) => client::probe(&common.plan()?),
        Role::Https(client) => print(https::client(client)?),
        Role::HttpsBackend { common, speaks } => https::backend(common, *speaks),
        Role::Firewall { job } => super::firewall::jobs::run(job),
        Role::Exec { command } => {
            let (program, arguments) = command.split_first().context("no command")?;
            Err(Command::new(program).args(arguments).exec()).with_context(|| format!("running {program}"))
        }
    }
}

/// Pins a thread, or the caller, to one CPU.
pub(crate) fn pin(thread: Option<rustix::process::Pid>, cpu: usize) -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    rustix::thread::sched_setaffinity(thread, &cpus).with_context(|| format!("pinning to CPU {cpu}"))
}

fn raise_descriptor_limit() -> anyhow::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).context("setrlimit")
}

fn print(outcome: impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}
