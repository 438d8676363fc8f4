//! `cargo xtask bench`: mc-proxy beside direct traffic, HAProxy, nginx and sniproxy, in one run.
//!
//! All peers of a topology are up at once and measured back to back, in another order each round; what counts are
//! ratios within a round, since the machine is not the same from minute to minute. Traffic stays in namespaces made for
//! the run. `docs/benchmarks.md` says what the figures mean. No figure makes the run fail: it reports.

pub(crate) mod firewall;
pub(crate) mod load;

mod cases;
mod claim;
mod cpu;
mod interrupt;
mod knobs;
mod packages;
mod peers;
mod process;
mod record;
mod report;
mod stage;
mod stats;
mod topology;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::cargo;
use cases::{cases, measure_all};
use claim::Claim;
use interrupt::Interrupt;
use peers::MC_PROXY;
use record::{Document, Figure, Machine};
use stage::{Setting, Stage};
use topology::Layout;

const WORKER: &str = "--worker";
/// What a measurement takes beside its window: start, warm-up, drain.
const OVERHEAD_SECS: f64 = 1.2;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    suite: Option<Suite>,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement (0.1 to 60).
    #[arg(long, default_value_t = 1.0)]
    secs: f64,
    /// Measure only these.
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<Figure>>,
    /// Over loopback, over veth pairs, or both; idle connections are measured over loopback only.
    #[arg(long, value_delimiter = ',', default_values = ["lo", "veth"])]
    topo: Vec<Layout>,
    /// Compare only these (direct always runs).
    #[arg(long, value_delimiter = ',')]
    peers: Option<Vec<String>>,
    /// Where the JSON and Markdown files go [default: bench in the target directory].
    #[arg(long)]
    out: Option<PathBuf>,
    #[arg(long, hide = true)]
    worker: bool,
}

/// What else is measured than proxies.
#[derive(Debug, clap::Subcommand)]
enum Suite {
    /// Measures the kernel's firewall beside nftables, ipset and xdp-filter.
    Firewall(firewall::Args),
}

impl Args {
    fn figures(&self) -> Vec<Figure> {
        self.only.clone().unwrap_or_else(|| vec![Figure::Relay, Figure::Rate, Figure::Ping, Figure::Idle])
    }
}

/// Prepares in the foreground, then measures in a worker that cleans up whatever ends it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(Suite::Firewall(args)) = &args.suite {
        return firewall::run(args);
    }
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
    if chosen.iter().any(|peer| peer.name == MC_PROXY) {
        build_daemon(&[MC_PROXY])?;
    }
    run_worker()
}

/// Measures in a process of its own, and cleans up after it if it was killed.
fn run_worker() -> anyhow::Result<()> {
    let status = interrupt::run_worker(WORKER)?;
    if status.code().is_none() {
        claim::clean_up()?;
    }
    anyhow::ensure!(status.success(), "the run did not finish: {status}");
    Ok(())
}

fn build_daemon(programs: &[&str]) -> anyhow::Result<()> {
    println!("Building the release daemon");
    let mut build = vec!["build", "--release", "--package", MC_PROXY];
    build.extend(programs.iter().flat_map(|program| ["--bin", program]));
    let status = cargo::cargo(&build).status().context("running cargo")?;
    anyhow::ensure!(status.success(), "the daemon does not build: {status}");
    Ok(())
}

fn measure(args: &Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::at_end_of_stdin();
    let claim = Claim::wait(&interrupt)?;

    let out = args.out.clone().unwrap_or_else(|| cargo::target().join("bench"));
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let started = process::run("date", &["-u", "+%Y%m%dT%H%M%SZ"])?.trim().to_owned();
    let machine = Machine::here()?;
    let mut document = Document {
        path: out.join(format!("{started}.json")),
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
    record::write_whole(&markdown, report.as_bytes())?;
    outcome?;
    println!("\n{report}\n{}\n{}", document.path.display(), markdown.display());
    Ok(())
}

fn measure_round(args: &Args, setting: &Setting<'_>, round: u32, document: &mut Document) -> anyhow::Result<()> {
    let figures = args.figures();
    let under_load: Vec<Figure> = figures.iter().copied().filter(|figure| *figure != Figure::Idle).collect();
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
    if figures.contains(&Figure::Idle) {
        // Fresh processes: memory that load has left behind would hide what a connection takes.
        let stage = Stage::set_up(setting, Layout::Lo, document)?;
        for case in cases(Figure::Idle) {
            measure_all(&stage, (Figure::Idle, case), round, document)?;
        }
    }
    Ok(())
}

/// The peers that can run here; a note for each that cannot.
fn available(args: &Args, document: &mut Document) -> anyhow::Result<Vec<(&'static peers::Peer, PathBuf)>> {
    let release_dir = cargo::target().join("release");
    let mut available = Vec::new();
    for peer in peers::chosen(args.peers.as_deref())? {
        match peer.program(&release_dir).and_then(|program| Ok((peer.version(&program)?, program))) {
            Ok((version, program)) => {
                document.versions.insert(peer.name, version);
                available.push((peer, program));
            }
            Err(error) => document.note(format!("{} is missing: {error:#}", peer.name)),
        }
    }
    Ok(available)
}

fn announce(args: &Args, setting: &Setting<'_>) {
    let count = |figures: &[Figure]| figures.iter().map(|&figure| cases(figure).len()).sum::<usize>();
    let figures = args.figures();
    let idle = usize::from(figures.contains(&Figure::Idle));
    let each_round = (count(&figures) - idle) * args.topo.len() + idle;
    let measurements = each_round * (setting.peers.len() + 1) * args.rounds as usize;
    let minutes = measurements as f64 * (args.secs + OVERHEAD_SECS) / 60.0;
    println!("{measurements} measurements, about {minutes:.0} min");
}

/// What ran, for the record: this workspace, and the packet filters installed beside the proxies.
fn versions() -> std::collections::BTreeMap<&'static str, String> {
    let root = cargo::root().to_string_lossy().into_owned();
    let commands: [(&str, &str, &[&str]); 4] = [
        ("commit", "git", &["-C", &root, "describe", "--always", "--dirty"]),
        ("nftables", "nft", &["--version"]),
        ("ipset", "ipset", &["--version"]),
        ("xdp-tools", "dpkg-query", &["-W", "-f", "${Version}", "xdp-tools"]),
    ];
    let version = |(name, program, args): (&'static str, &str, &[&str])| {
        // One that is not there has no version.
        let said = process::run(program, args).ok()?;
        Some((name, said.lines().next()?.trim().to_owned()))
    };
    commands.into_iter().filter_map(version).collect()
}
