//! `cargo xtask bench l7`: mc-proxy terminating TLS beside nginx, HAProxy, Caddy, Envoy and sozu.
//!
//! All peers are up at once and measured back to back, in another order each round and row. `docs/benchmarks.md` says what
//! the figures mean.

mod floors;
mod peers;
mod report;
mod rows;
mod stage;
mod view;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::claim::Claim;
use super::interrupt::{Interrupt, Interrupted};
use super::record::{Machine, Metrics, write_whole};
use super::stats::{number, shuffled};
use super::{MC_PROXY, build_daemon, packages, process, run_worker, topology, versions};
use rows::Row;
use stage::{Document, Record, Running, Setting, Stage};
use xtask::cargo;

/// What a measurement takes beside its window: start, warm-up, end.
const OVERHEAD_SECS: f64 = 0.5;
/// The least share of resumed handshakes, in percent, that is worth its name: the first ones of a client are full.
const RESUMED_PCT: f64 = 95.0;

/// Options of `cargo xtask bench l7`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement (0.1 to 60).
    #[arg(long, default_value_t = 1.0)]
    secs: f64,
    /// Measure only these.
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<Row>>,
    /// Compare only these: nginx, haproxy, caddy, envoy, sozu, mc-proxy.
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
    fn rows(&self) -> Vec<Row> {
        let wanted = |row: &Row| self.only.as_ref().is_none_or(|only| only.contains(row));
        Row::ALL.into_iter().filter(wanted).collect()
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
    match &args.binary {
        Some(binary) => ensure!(binary.is_file(), "{} is not there", binary.display()),
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
        path: out.join(format!("{started}-l7.json")),
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
    let (work_dir, rows) = (claim.work_dir(), args.rows());
    let setting = Setting { interrupt: &interrupt, machine, work_dir, peers, rows, window };
    let outcome = measure_rounds(args, &setting, &mut document);
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

/// The peers that can run here; a note for each that cannot.
fn available(args: &Args, document: &mut Document) -> anyhow::Result<Vec<(&'static peers::Peer, PathBuf)>> {
    let binary = args.binary();
    // Proxies are started elsewhere.
    let binary = binary.canonicalize().unwrap_or(binary);
    let mut available = Vec::new();
    for peer in peers::chosen(args.peers.as_deref())? {
        match peer.program(&binary).and_then(|program| Ok((peer.version(&program)?, program))) {
            Ok((version, program)) => {
                document.versions.insert(peer.name, version);
                available.push((peer, program));
            }
            Err(error) => document.note(format!("{} is missing: {error:#}", peer.name)),
        }
    }
    Ok(available)
}

fn measure_rounds(args: &Args, setting: &Setting<'_>, document: &mut Document) -> anyhow::Result<()> {
    let stage = Stage::set_up(setting, document)?;
    let each: usize = stage.running.iter().map(|peer| peer.rows.len()).sum();
    ensure!(each > 0, "no proxy to measure");
    let measurements = each * args.rounds as usize;
    let minutes = (measurements as f64 * (args.secs + OVERHEAD_SECS)) / 60.0;
    println!("{measurements} measurements, about {minutes:.1} min");
    for round in 0..args.rounds {
        for &row in &setting.rows {
            measure_all(&stage, row, round, document)?;
        }
    }
    Ok(())
}

/// Measures every peer once at a row, in an order of this round and row, and keeps what comes of it.
fn measure_all(stage: &Stage<'_>, row: Row, round: u32, document: &mut Document) -> anyhow::Result<()> {
    let seed = u64::from(round) << 32 | row as u64;
    for peer in shuffled(stage.running.iter().filter(|peer| peer.rows.contains(&row)), seed) {
        match measure_one(stage, peer, row) {
            Ok(metrics) => {
                println!("  round {} {row}: {} {}", round + 1, peer.name, brief(&metrics));
                if metrics.get("resumed_pct").is_some_and(|&resumed| resumed < RESUMED_PCT) {
                    document.note(format!("{} resumed {:.0} % of its handshakes", peer.name, metrics["resumed_pct"]));
                }
                document.records.push(Record { row, peer: peer.name, round, metrics });
            }
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => document.note(format!("{} failed {row}: {error:#}", peer.name)),
        }
    }
    document.save()
}

fn measure_one(stage: &Stage<'_>, peer: &Running, row: Row) -> anyhow::Result<Metrics> {
    let window = stage.load(peer, row)?;
    let (usage, client, latencies) = (&window.usage, window.client, window.outcome.latencies);
    ensure!(client.done > 0 && latencies.done > 0, "nothing was done: {client:?}");
    let done = client.done as f64;
    let mut metrics = usage.shares(&stage.setting.machine, true);
    metrics.extend([
        ("req_s", done / usage.secs),
        ("p50_us", latencies.p50_us),
        ("p99_us", latencies.p99_us),
        ("p999_us", latencies.p999_us),
        ("proxy_us_per_req", 1e6 * usage.proxy / done),
        ("total_us_per_req", 1e6 * usage.total() / done),
        ("errors", client.errors as f64),
    ]);
    if row.is_bulk() {
        metrics.insert("gbit_s", 8.0 * client.bytes_received as f64 / 1e9 / usage.secs);
    }
    if row == Row::Resumed {
        let (full, resumed) = (window.outcome.full as f64, window.outcome.resumed as f64);
        metrics.insert("resumed_pct", 100.0 * resumed / (full + resumed).max(1.0));
    }
    Ok(metrics)
}

fn brief(metrics: &Metrics) -> String {
    let shown = ["req_s", "gbit_s", "p50_us", "p99_us", "proxy_us_per_req", "proxy_cpu_pct", "load_cpu_pct"];
    let each = shown.iter().filter_map(|name| Some(format!("{name}={}", number(*metrics.get(name)?))));
    each.collect::<Vec<_>>().join(" ")
}
