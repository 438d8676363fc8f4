//! `cargo xtask bench l4`: mc-proxy in each of its modes beside direct traffic, HAProxy, nginx, sniproxy and Envoy.
//!
//! All peers of a topology are up at once and measured back to back, in another order each round. `docs/benchmarks.md`
//! says what the figures mean.

mod cases;
mod digest;
mod floors;
mod limit;
mod measure;
mod memory;
mod peers;
mod record;
mod report;
mod stage;
mod view;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use super::claim::Claim;
use super::interrupt::Interrupt;
use super::record::{Machine, write_whole};
use super::topology::{self, Layout};
use super::{MC_PROXY, build_daemon, packages, process, run_worker, versions};
use cases::cases;
use measure::measure_all;
use record::{Document, Figure};
use stage::{Setting, Stage};
use xtask::cargo;

/// What a measurement takes beside its window: start, warm-up, end.
const OVERHEAD_SECS: f64 = 0.55;
/// What looking at memory takes, on average.
const MEMORY_SECS: f64 = 2.5;
/// Memory is looked at in the first of so many rounds: it hardly varies.
const MEMORY_EVERY: u32 = 3;

/// Options of `cargo xtask bench l4`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often everything is measured; memory in every third round, beginning with the first.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement (0.1 to 60).
    #[arg(long, default_value_t = 0.5)]
    secs: f64,
    /// Measure only these.
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<Figure>>,
    /// Over loopback, over veth pairs, or both; memory is looked at over loopback only.
    #[arg(long, value_delimiter = ',', default_values = ["lo", "veth"])]
    topo: Vec<Layout>,
    /// Compare only these (direct always runs): haproxy, haproxy-splice, nginx, sniproxy, envoy, mc-proxy,
    /// mc-proxy-sockmap, mc-proxy-userspace.
    #[arg(long, value_delimiter = ',')]
    peers: Option<Vec<String>>,
    /// The mc-proxy to measure, instead of one built for release from here.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Where the JSON and Markdown files go [default: bench in the target directory].
    #[arg(long)]
    out: Option<PathBuf>,
    #[arg(long, hide = true)]
    worker: bool,
}

impl Args {
    fn figures(&self) -> Vec<Figure> {
        let wanted = |figure: &Figure| self.only.as_ref().is_none_or(|only| only.contains(figure));
        Figure::ALL.into_iter().filter(wanted).collect()
    }

    fn binary(&self) -> PathBuf {
        self.binary.clone().unwrap_or_else(|| cargo::target().join("release").join(MC_PROXY))
    }
}

/// Prepares in the foreground, then measures in a worker that cleans up whatever ends it.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if args.worker {
        return measure(args);
    }
    if !(0.1..=60.0).contains(&args.secs) {
        bail!("--secs must be from 0.1 to 60");
    }
    let chosen = peers::chosen(args.peers.as_deref())?;
    if !rustix::process::geteuid().is_root() {
        bail!("needs root, to make network namespaces");
    }
    for program in ["ip", "nsenter", "sysctl"] {
        packages::find(program)
            .with_context(|| format!("{program} is not installed (iproute2, util-linux, procps)"))?;
    }
    packages::install_missing(args.peers.as_deref());
    match &args.binary {
        Some(binary) => anyhow::ensure!(binary.is_file(), "{} is not there", binary.display()),
        None if chosen.iter().any(|peer| peer.is_ours()) => build_daemon(&[MC_PROXY])?,
        None => {}
    }
    run_worker()
}

fn measure(args: &Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::at_end_of_stdin();
    let claim = Claim::wait(&interrupt)?;

    let out = args.out.clone().unwrap_or_else(|| cargo::target().join("bench"));
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let started = process::run("date", &["-u", "+%Y%m%dT%H%M%SZ"])?.trim().to_owned();
    let machine = Machine::here()?;
    let mut document = Document {
        path: out.join(format!("{started}-l4.json")),
        started,
        machine: machine.clone(),
        rounds: args.rounds,
        secs: args.secs,
        sysctl: topology::sysctl(),
        versions: versions(),
        configurations: Default::default(),
        notes: Vec::new(),
        records: Vec::new(),
    };
    let peers = available(args, &mut document)?;
    let window = Duration::try_from_secs_f64(args.secs).context("--secs")?;
    let setting = Setting { interrupt: &interrupt, machine, work_dir: claim.work_dir(), peers, window };
    announce(args, &setting);

    let outcome = (0..args.rounds).try_for_each(|round| measure_round(args, &setting, round, &mut document));
    if document.records.is_empty() {
        return outcome;
    }
    document.save()?;
    let report = report::markdown(&document);
    let markdown = document.path.with_extension("md");
    write_whole(&markdown, report.as_bytes())?;
    outcome?;
    println!("\n{report}\n{}\n{}", document.path.display(), markdown.display());
    Ok(())
}

fn measure_round(args: &Args, setting: &Setting<'_>, round: u32, document: &mut Document) -> anyhow::Result<()> {
    let (of_memory, under_load): (Vec<Figure>, Vec<Figure>) =
        args.figures().into_iter().partition(|figure| figure.is_of_memory());
    if !under_load.is_empty() {
        for &layout in &args.topo {
            let stage = Stage::set_up(setting, layout, document)?;
            for &figure in &under_load {
                for case in cases(figure) {
                    measure_all(&stage, (figure, case), round, document)?;
                }
            }
        }
    }
    if !round.is_multiple_of(MEMORY_EVERY) {
        return Ok(());
    }
    for figure in of_memory {
        // Fresh processes: memory that load has left behind would hide what a connection takes.
        let stage = Stage::set_up(setting, Layout::Lo, document)?;
        for case in cases(figure) {
            measure_all(&stage, (figure, case), round, document)?;
        }
    }
    Ok(())
}

/// The peers that can run here; a note for each that cannot.
fn available(args: &Args, document: &mut Document) -> anyhow::Result<Vec<(&'static peers::Peer, PathBuf)>> {
    let binary = args.binary();
    // Proxies are started elsewhere.
    let binary = binary.canonicalize().unwrap_or(binary);
    let mut available = Vec::new();
    for peer in peers::chosen(args.peers.as_deref())? {
        match find(peer, &binary) {
            Ok((version, program)) => {
                document.versions.insert(peer.name, version);
                available.push((peer, program));
            }
            Err(error) => document.note(format!("{} is missing: {error:#}", peer.name)),
        }
    }
    Ok(available)
}

fn find(peer: &peers::Peer, binary: &Path) -> anyhow::Result<(String, PathBuf)> {
    let program = peer.program(binary)?;
    Ok((peer.version(&program)?, program))
}

fn announce(args: &Args, setting: &Setting<'_>) {
    let (of_memory, under_load): (Vec<Figure>, Vec<Figure>) =
        args.figures().into_iter().partition(|figure| figure.is_of_memory());
    let count = |figures: &[Figure]| figures.iter().map(|&figure| cases(figure).len()).sum::<usize>();
    let subjects = setting.peers.len() + 1;
    let timed = count(&under_load) * args.topo.len() * subjects * args.rounds as usize;
    let looks = count(&of_memory) * subjects * args.rounds.div_ceil(MEMORY_EVERY) as usize;
    let minutes = (timed as f64 * (args.secs + OVERHEAD_SECS) + looks as f64 * MEMORY_SECS) / 60.0;
    println!("{} measurements, about {minutes:.0} min", timed + looks);
}
