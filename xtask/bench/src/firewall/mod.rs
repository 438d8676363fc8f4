//! `cargo xtask bench firewall`: the kernel's firewall beside nftables, ipset and xdp-filter, in one run.
//!
//! A generator sends XDP live frames with random sources over a veth pair; what filters stands at its other end. All
//! subjects hold the same table and are measured one after the other, in another order each round; what counts are
//! ratios within a round. `docs/performance.md` says what the figures mean. No figure makes the run fail: it reports.

pub(crate) mod jobs;

mod chart;
mod daemon;
mod measure;
mod memory;
mod netfilter;
mod object;
mod report;
mod rpc;
mod stream;
mod subject;
mod table;
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::claim::Claim;
use super::interrupt::{Interrupt, Interrupted};
use super::record::{Machine, write_whole};
use super::stats::{number, shuffled};
use super::{MC_PROXY, build_daemon, packages, process, run_worker, versions};
use measure::{Part, Stage};
use subject::{SUBJECTS, Subject};
use table::{ENTRIES_MAX, Shape, Table};
use xtask::cargo;

pub(super) use subject::remove_leftovers;

const CLIENT: &str = "mcproxyctl";
/// Tables smaller than this are only timed: as a flood they differ in nothing from larger ones.
const FLOOD_MIN: u32 = 1000;
/// What loading and removing an entry takes about, for the announcement.
const LOAD_SECS: f64 = 4e-6;

/// Options of `cargo xtask bench firewall`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measured flood (0.1 to 60).
    #[arg(long, default_value_t = 1.0)]
    secs: f64,
    /// Sizes of the tables.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10_000, 1_000_000],
          value_parser = clap::value_parser!(u32).range(1..=i64::from(ENTRIES_MAX)))]
    entries: Vec<u32>,
    /// Compare only these (nothing and ctl-drop always run).
    #[arg(long, value_delimiter = ',')]
    subjects: Option<Vec<String>>,
    /// Only these tables: v4-address-dense, v6-prefix-spread, …; `full` and `full-v6`: addresses and prefixes; `empty`
    /// [default: all but those of IPv6 that are dense].
    #[arg(long, value_delimiter = ',')]
    cases: Option<Vec<String>>,
    /// Only these parts.
    #[arg(long, value_delimiter = ',')]
    parts: Option<Vec<Part>>,
    /// Where the JSON and Markdown files go [default: bench in the target directory].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Write docs/performance.md and its plots from this run.
    #[arg(long)]
    docs: bool,
    /// Measure nothing: report of these JSON files, all rounds together.
    #[arg(long, value_name = "JSON", num_args = 1.., conflicts_with = "rounds")]
    report: Vec<PathBuf>,
    #[arg(long, hide = true)]
    worker: bool,
}

/// What is in force during a measurement.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    tables: Vec<Table>,
    /// Whose addresses, or neighbours, the packets come from.
    sources: Table,
    parts: Vec<Part>,
}

/// One subject measured once with one case.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    case: String,
    subject: String,
    round: u32,
    /// By name; the names carry the units.
    metrics: BTreeMap<String, f64>,
}

/// Everything a run leaves.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    started: String,
    kernel: String,
    cpu_model: String,
    cpus: usize,
    rounds: u32,
    secs: f64,
    versions: BTreeMap<String, String>,
    notes: Vec<String>,
    records: Vec<Record>,
    #[serde(skip)]
    path: PathBuf,
}

impl Document {
    /// Prints a remark and keeps it, on one line whatever a program said.
    fn note(&mut self, note: &str) {
        let note = note.split_whitespace().collect::<Vec<_>>().join(" ");
        println!("  note: {note}");
        self.notes.push(note);
    }

    fn save(&self) -> anyhow::Result<()> {
        write_whole(&self.path, &serde_json::to_vec_pretty(self)?)
    }

    /// Reads runs and makes one of them, rounds counted on.
    fn read(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut whole: Option<Self> = None;
        for path in paths {
            let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            let read: Self = serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?;
            let Some(known) = &mut whole else {
                whole = Some(read);
                continue;
            };
            let rounds = known.rounds;
            known
                .records
                .extend(read.records.into_iter().map(|record| Record { round: record.round + rounds, ..record }));
            known.rounds += read.rounds;
            known.notes.extend(read.notes);
        }
        whole.context("no file")
    }
}

impl Args {
    fn subjects(&self) -> anyhow::Result<Vec<Subject>> {
        let Some(names) = &self.subjects else { return Ok(SUBJECTS.to_vec()) };
        if let Some(name) = names.iter().find(|name| !SUBJECTS.iter().any(|subject| subject.name() == **name)) {
            let all: Vec<&str> = SUBJECTS.iter().map(|subject| subject.name()).collect();
            bail!("no subject {name:?}; there are {}", all.join(", "));
        }
        let always = [Subject::Nothing, Subject::Control("drop")];
        let is_chosen = |subject: &Subject| always.contains(subject) || names.iter().any(|name| name == subject.name());
        Ok(SUBJECTS.into_iter().filter(is_chosen).collect())
    }

    fn cases(&self) -> anyhow::Result<Vec<Case>> {
        let default = || {
            let shapes = Shape::all().filter(|shape| !shape.is_ipv6 || shape.is_spread).map(|shape| shape.to_string());
            shapes.chain(["empty", "full", "full-v6"].map(str::to_owned)).collect()
        };
        let names = self.cases.clone().unwrap_or_else(default);
        let parts = |wanted: &[Part]| -> Vec<Part> {
            let is_asked = |part: &Part| self.parts.as_ref().is_none_or(|asked| asked.contains(part));
            wanted.iter().copied().filter(is_asked).collect()
        };
        let most = self.entries.iter().copied().max().unwrap_or(1);
        let table =
            |is_ipv6, is_prefixes, count| Table { shape: Shape { is_ipv6, is_prefixes, is_spread: true }, count };
        let mut cases = Vec::new();
        for name in &names {
            let (is_ipv6, tables) = match name.as_str() {
                "empty" => (false, Vec::new()),
                "full" | "full-v6" => {
                    let is_ipv6 = name == "full-v6";
                    (is_ipv6, vec![table(is_ipv6, false, most), table(is_ipv6, true, most)])
                }
                shape => {
                    let shape: Shape = shape
                        .parse()
                        .map_err(|known| anyhow::anyhow!("no case {name:?}; {known}, empty, full, full-v6"))?;
                    cases.extend(self.entries.iter().map(|&count| {
                        let table = Table { shape, count };
                        let parts = if count < FLOOD_MIN { parts(&[Part::Time]) } else { parts(&Part::ALL) };
                        Case { name: table.to_string(), tables: vec![table], sources: table, parts }
                    }));
                    continue;
                }
            };
            // What nothing blocks is what these are for.
            let wanted: &[Part] = if tables.is_empty() { &[Part::Pass, Part::Time, Part::Act] } else { &Part::ALL };
            let sources = table(is_ipv6, false, most);
            cases.push(Case { name: name.clone(), tables, sources, parts: parts(wanted) });
        }
        cases.retain(|case| !case.parts.is_empty());
        Ok(cases)
    }
}

/// Prepares in the foreground, then measures in a worker that cleans up whatever ends it.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if args.worker {
        return measure_all(args);
    }
    if !args.report.is_empty() {
        return finish(&Document::read(&args.report)?, args.docs);
    }
    if !(0.1..=60.0).contains(&args.secs) {
        bail!("--secs must be from 0.1 to 60");
    }
    let (subjects, _) = (args.subjects()?, args.cases()?);
    if !rustix::process::geteuid().is_root() {
        bail!("needs root, to make network namespaces and load programs");
    }
    packages::install_for_firewall();
    for program in ["ip", "nsenter", "ethtool", "chrt", "clang"] {
        packages::find(program).with_context(|| format!("{program} is not installed"))?;
    }
    if subjects.iter().any(|subject| matches!(subject, Subject::McProxy { .. })) {
        build_daemon(&[MC_PROXY, CLIENT])?;
    }
    run_worker()
}

fn measure_all(args: &Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::at_end_of_stdin();
    let claim = Claim::wait(&interrupt)?;
    let out = args.out.clone().unwrap_or_else(|| cargo::target().join("bench"));
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let started = process::run("date", &["-u", "+%Y%m%dT%H%M%SZ"])?.trim().to_owned();
    let machine = Machine::here()?;
    let mut document = Document {
        path: out.join(format!("firewall-{started}.json")),
        started,
        kernel: machine.kernel.clone(),
        cpu_model: machine.cpu_model.clone(),
        cpus: machine.cpus,
        rounds: args.rounds,
        secs: args.secs,
        versions: versions().into_iter().map(|(name, version)| (name.to_owned(), version)).collect(),
        notes: Vec::new(),
        records: Vec::new(),
    };
    let mut subjects = args.subjects()?;
    subjects.retain(|subject| match subject.check() {
        Ok(()) => true,
        Err(error) => {
            document.note(&format!("{} is missing: {error:#}", subject.name()));
            false
        }
    });
    let window = Duration::try_from_secs_f64(args.secs).context("--secs")?;
    announce(args, &subjects)?;
    let mut stage = Stage::set_up(&interrupt, machine, claim.work_dir(), window)?;
    let outcome = (0..args.rounds).try_for_each(|round| {
        for case in args.cases()? {
            measure_case(&mut stage, &subjects, &case, round, &mut document)?;
        }
        Ok(())
    });
    drop(stage);
    if document.records.is_empty() {
        return outcome;
    }
    document.save()?;
    outcome?;
    finish(&document, args.docs)?;
    println!("{}", document.path.display());
    Ok(())
}

fn announce(args: &Args, subjects: &[Subject]) -> anyhow::Result<()> {
    let (mut measurements, mut secs) = (0, 0.0);
    for case in args.cases()? {
        let taking = subjects.iter().filter(|subject| subject.takes(&case.tables)).count();
        measurements += taking;
        let entries: u32 = case.tables.iter().map(|table| table.count).sum();
        let parts: f64 = case.parts.iter().map(|part| part.expected_secs(args.secs)).sum();
        secs += taking as f64 * (1.0 + f64::from(entries) * LOAD_SECS + parts);
    }
    let rounds = args.rounds;
    println!("{measurements} measurements in {rounds} rounds, about {:.0} min", secs * f64::from(rounds) / 60.0);
    Ok(())
}

/// Measures every subject that takes a case, in an order of this round and case.
fn measure_case(
    stage: &mut Stage<'_>,
    subjects: &[Subject],
    case: &Case,
    round: u32,
    document: &mut Document,
) -> anyhow::Result<()> {
    let seed = u64::from(round) << 32 | case.name.bytes().map(u64::from).sum::<u64>();
    let taking = subjects.iter().copied().filter(|subject| subject.takes(&case.tables));
    for subject in shuffled(taking, seed) {
        let mut metrics = BTreeMap::new();
        let outcome = stage.measure(subject, &case.tables, case.sources, &case.parts, &mut metrics);
        let shown = ["load_s", "one_mpps", "own_mpps", "hot_ns", "cold_ns", "hot_pass_ns", "effect_ms"];
        let shown = shown.iter().filter_map(|name| Some(format!("{name}={}", number(*metrics.get(*name)?))));
        let shown: Vec<String> = shown.collect();
        println!("  round {} {}: {} {}", round + 1, case.name, subject.name(), shown.join(" "));
        if !metrics.is_empty() {
            let subject = subject.name().to_owned();
            document.records.push(Record { case: case.name.clone(), subject, round, metrics });
        }
        match outcome {
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => document.note(&format!("{} failed {}: {error:#}", subject.name(), case.name)),
            Ok(remarks) => {
                for remark in remarks {
                    document.note(&format!("{} {}: {remark}", subject.name(), case.name));
                }
            }
        }
    }
    document.save()
}

/// Prints the report, and writes it beside the JSON file or into the documentation.
fn finish(document: &Document, into_docs: bool) -> anyhow::Result<()> {
    let report = report::markdown(document);
    println!("\n{report}");
    if !document.path.as_os_str().is_empty() {
        write_whole(&document.path.with_extension("md"), report.as_bytes())?;
        write_plots(document, &document.path.with_extension(""))?;
    }
    if into_docs {
        let docs = cargo::root().join("docs");
        write_plots(document, &docs.join("performance"))?;
        let page = docs.join("performance.md");
        let text = fs::read_to_string(&page).with_context(|| format!("reading {}", page.display()))?;
        write_whole(&page, report::into_page(&text, document)?.as_bytes())?;
    }
    Ok(())
}

fn write_plots(document: &Document, directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    for (name, svg) in report::plots(document) {
        write_whole(&directory.join(name), svg.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Cli::try_parse_from([&["bench"], words].concat()).unwrap().args
    }

    #[test]
    fn cases_are_chosen_by_name() {
        let names = |words: &[&str]| -> Vec<String> {
            args(words).cases().unwrap().into_iter().map(|case| case.name).collect()
        };
        let all = names(&[]);
        assert!(all.contains(&"v4-address-dense 1000000".to_owned()) && all.contains(&"full-v6".to_owned()), "{all:?}");
        assert!(!all.iter().any(|name| name.starts_with("v6-address-dense")));
        assert_eq!(
            names(&["--cases", "v4-prefix-spread,empty", "--entries", "10000"]),
            ["v4-prefix-spread 10000", "empty"]
        );
        // A single entry is only timed.
        assert!(names(&["--entries", "1", "--cases", "v4-address-dense", "--parts", "flood"]).is_empty());
        let error = args(&["--cases", "v4"]).cases().unwrap_err().to_string();
        assert!(error.contains("v4-address-dense") && error.contains("full-v6"), "{error}");
    }

    #[test]
    fn the_least_controls_always_run() {
        let subjects = args(&["--subjects", "mc-proxy"]).subjects().unwrap();
        let names: Vec<&str> = subjects.into_iter().map(Subject::name).collect();
        assert_eq!(names, ["nothing", "ctl-drop", "mc-proxy"]);
        assert!(args(&["--subjects", "pf"]).subjects().unwrap_err().to_string().contains("xdp-filter-bare"));
    }
}
