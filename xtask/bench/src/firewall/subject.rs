//! What is compared, and how each is told to block the same.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::super::interrupt::Interrupt;
use super::super::packages;
use super::super::process::{Launch, Process, run};
use super::super::record::{Machine, Metrics};
use super::daemon;
use super::jobs::Job;
use super::memory::{self, Maps};
use super::object::{self, Packets, Program};
use super::rpc::Client;
use super::table::Table;
use super::wire::{DEVICE, Wire};

/// Where maps are pinned that have to be; removed after each use.
pub(super) const PINS: &str = "/sys/fs/bpf/mcbench-firewall";
/// Made by xdp-filter itself, once on a machine.
const XDP_FILTER_PINS: &str = "/sys/fs/bpf/xdp-filter";
/// The entries that xdp-filter's own maps hold.
const XDP_FILTER_MAX: u32 = 10_000;
const LOAD_LIMIT: Duration = Duration::from_secs(600);
/// The listener's port where the subject does not listen itself, and where it does.
const PORT: u16 = 443;
const DAEMON_PORT: u16 = 8443;

/// One way to block sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// No filter: what a packet costs that gets in.
    Nothing,
    /// A bare program of the benchmark.
    Control(&'static str),
    /// An nftables set, asked in the input chain or at the interface's ingress.
    Nftables { at_ingress: bool },
    /// An ipset, asked by iptables in INPUT or in PREROUTING of the raw table.
    Ipset { is_raw: bool },
    /// Loaded by its own tool, behind libxdp's dispatcher.
    XdpFilter,
    /// Its program alone, with a map made to measure.
    XdpFilterBare,
    /// The daemon, as root or with the three capabilities that it asks for.
    McProxy { has_all_capabilities: bool },
}

/// All subjects, in the order of the report.
pub(super) const SUBJECTS: [Subject; 12] = [
    Subject::Nothing,
    Subject::Control("drop"),
    Subject::Control("hash"),
    Subject::Control("lpm"),
    Subject::Nftables { at_ingress: false },
    Subject::Nftables { at_ingress: true },
    Subject::Ipset { is_raw: false },
    Subject::Ipset { is_raw: true },
    Subject::XdpFilter,
    Subject::XdpFilterBare,
    Subject::McProxy { has_all_capabilities: true },
    Subject::McProxy { has_all_capabilities: false },
];

impl Subject {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Control("drop") => "ctl-drop",
            Self::Control("hash") => "ctl-hash",
            Self::Control(_) => "ctl-lpm",
            Self::Nftables { at_ingress: false } => "nft-input",
            Self::Nftables { at_ingress: true } => "nft-ingress",
            Self::Ipset { is_raw: false } => "ipset-input",
            Self::Ipset { is_raw: true } => "ipset-raw",
            Self::XdpFilter => "xdp-filter",
            Self::XdpFilterBare => "xdp-filter-bare",
            Self::McProxy { has_all_capabilities: true } => "mc-proxy",
            Self::McProxy { has_all_capabilities: false } => "mc-proxy-caps",
        }
    }

    /// Controls take no command to block one more.
    pub(super) fn is_control(self) -> bool {
        matches!(self, Self::Nothing | Self::Control(_) | Self::XdpFilterBare)
    }

    /// Whether its packets get in although a table blocks them.
    pub(super) fn lets_all_in(self) -> bool {
        self == Self::Nothing
    }

    /// Whether it can hold these tables.
    pub(super) fn takes(self, tables: &[Table]) -> bool {
        let single = match tables {
            [] => None,
            [table] => Some(table),
            _ => {
                return matches!(
                    self,
                    Self::Nothing | Self::Nftables { .. } | Self::Ipset { .. } | Self::McProxy { .. }
                );
            }
        };
        match self {
            Self::Control("hash") => single.is_some_and(|table| !table.shape.is_prefixes),
            Self::Control("lpm") => single.is_some_and(|table| table.shape.is_prefixes),
            Self::XdpFilter => single.is_none_or(|table| !table.shape.is_prefixes && table.count <= XDP_FILTER_MAX),
            Self::XdpFilterBare => single.is_some_and(|table| !table.shape.is_prefixes),
            Self::Nothing | Self::Control(_) | Self::Nftables { .. } | Self::Ipset { .. } | Self::McProxy { .. } => {
                true
            }
        }
    }

    /// An error says why it cannot run here.
    pub(super) fn check(self) -> anyhow::Result<()> {
        let needs: &[&str] = match self {
            Self::Nothing | Self::Control(_) => &[],
            Self::Nftables { .. } => &["nft"],
            Self::Ipset { .. } => &["ipset", "iptables", "ip6tables"],
            Self::XdpFilter => &["xdp-filter"],
            Self::XdpFilterBare => {
                xdp_filter_object()?;
                &[]
            }
            Self::McProxy { .. } => &["setpriv"],
        };
        for program in needs {
            packages::find(program).with_context(|| format!("{program} is not installed"))?;
        }
        if self == Self::XdpFilter && Path::new(XDP_FILTER_PINS).exists() {
            bail!("{XDP_FILTER_PINS} exists: xdp-filter is in use on this machine");
        }
        Ok(())
    }

    pub(super) fn port(self) -> u16 {
        if matches!(self, Self::McProxy { .. }) { DAEMON_PORT } else { PORT }
    }
}

/// Where subjects are installed.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) interrupt: &'a Interrupt,
    pub(super) machine: &'a Machine,
    pub(super) wire: &'a Wire,
    /// For lists, configurations and logs; on tmpfs.
    pub(super) dir: &'a Path,
    /// The benchmark's own programs, compiled.
    pub(super) object: &'a Path,
    /// Where the daemon and its client were built.
    pub(super) release_dir: &'a Path,
}

impl Place<'_> {
    /// Runs a command in the receiver's namespace to its end.
    pub(super) fn run(&self, command: &[&str]) -> anyhow::Result<()> {
        let log = self.dir.join("command.log");
        let mut args = vec!["exec".to_owned(), "--".to_owned()];
        args.extend(command.iter().map(|&word| word.to_owned()));
        let mut process = Launch::new(self.wire.receiver(), None, &args)?.log_to(&log)?.start()?;
        let outcome = process.output(self.interrupt, LOAD_LIMIT);
        outcome.map(drop).with_context(|| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let tail = said.char_indices().rev().nth(500).map_or(0, |(at, _)| at);
            format!("{}: {}", command.join(" "), said[tail..].trim())
        })
    }

    /// Writes a file with one entry of a table after the other.
    pub(super) fn list(&self, table: &Table, name: &str, before: &str, after: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name);
        let write = || {
            let mut file = BufWriter::new(File::create(&path)?);
            table.write(&mut file, before, after)?;
            file.flush()
        };
        write().with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// A subject in force on the receiver's interface, until dropped.
#[derive(Debug)]
pub(super) struct Installed {
    pub(super) subject: Subject,
    /// How long it took to load the tables, and what memory it takes.
    pub(super) metrics: Metrics,
    /// What to run to block `@ADDRESS@`.
    pub(super) add: Vec<String>,
    process: Option<Process>,
    daemon: Option<daemon::Running>,
    /// Run in reverse.
    pub(super) undo: Vec<Vec<String>>,
    pub(super) receiver: String,
}

impl Installed {
    /// Puts `tables` in force. `packets` are those of the first table.
    pub(super) fn new(
        subject: Subject,
        tables: &[Table],
        packets: &Packets,
        place: &Place<'_>,
    ) -> anyhow::Result<Self> {
        let receiver = place.wire.receiver().to_owned();
        let (metrics, add, undo) = Default::default();
        let mut installed = Self { subject, metrics, add, process: None, daemon: None, undo, receiver };
        match subject {
            Subject::Nothing => {}
            Subject::Control(name) => installed.attach(place.object.to_owned(), name, tables, packets, place)?,
            Subject::XdpFilterBare => {
                installed.attach(xdp_filter_object()?, "xdpfilt_alw_ip", tables, packets, place)?
            }
            Subject::Nftables { at_ingress } => installed.nftables(at_ingress, tables, place)?,
            Subject::Ipset { is_raw } => installed.ipset(is_raw, tables, place)?,
            Subject::XdpFilter => installed.xdp_filter(tables, place)?,
            Subject::McProxy { has_all_capabilities } => {
                let running = daemon::start(has_all_capabilities, DAEMON_PORT, place)?;
                installed.add = running.add();
                installed.metrics = running.load(tables, place)?;
                installed.daemon = Some(running);
            }
        }
        let mut maps =
            installed.daemon.as_ref().map_or_else(|| Ok(Maps::new()), |d| memory::open_maps(d.process.pid()))?;
        if let Some(program) = place.wire.program()? {
            maps.extend(memory::maps_of_program(program)?);
            installed.metrics.insert("maps_mb", maps.values().sum::<u64>() as f64 / 1e6);
        }
        Ok(installed)
    }

    /// Blocks one more address; returns when the command is back.
    pub(super) fn add(&self, address: IpAddr) -> anyhow::Result<()> {
        let netns = format!("--net=/run/netns/{}", self.receiver);
        // The daemon's client needs no namespace: its socket is a file.
        let enter: &[&str] = if self.daemon.is_some() { &[] } else { &["nsenter", &netns, "--"] };
        let address = address.to_string();
        let add = self.add.iter().map(|word| if word == "@ADDRESS@" { address.as_str() } else { word });
        let words: Vec<&str> = enter.iter().copied().chain(add).collect();
        let (program, args) = words.split_first().context("there is no command to block an address")?;
        let output = Command::new(program)
            .args(args)
            .env_remove("SSH_CONNECTION")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {program}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{}: {}: {}", self.add.join(" "), output.status, said.trim());
        Ok(())
    }

    /// A connection to the daemon, if the subject is one.
    pub(super) fn client(&self) -> anyhow::Result<Option<Client>> {
        self.daemon.as_ref().map(|daemon| Client::connect(&daemon.socket)).transpose()
    }

    pub(super) fn timed(&mut self, load: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let began = Instant::now();
        load()?;
        self.metrics.insert("load_s", began.elapsed().as_secs_f64());
        Ok(())
    }

    fn attach(
        &mut self,
        object: PathBuf,
        name: &str,
        tables: &[Table],
        packets: &Packets,
        place: &Place<'_>,
    ) -> anyhow::Result<()> {
        remove(Path::new(PINS))?;
        fs::create_dir(PINS).with_context(|| format!("creating {PINS}"))?;
        let fill = tables.first().copied();
        let job = Job::Attach {
            program: Program { object, name: name.to_owned(), fill, pins: PINS.into() },
            packets: packets.clone(),
            interface: DEVICE.to_owned(),
            ready: place.dir.join("attached"),
        };
        self.process = Some(job.start(place.wire.receiver(), place.machine.proxy_cpu, place.interrupt)?);
        // What the object wanted pinned lives on in the program.
        remove(Path::new(PINS))
    }

    fn xdp_filter(&mut self, tables: &[Table], place: &Place<'_>) -> anyhow::Result<()> {
        let is_ipv6 = tables.first().is_some_and(|table| table.shape.is_ipv6);
        let family = if is_ipv6 { "ipv6" } else { "ipv4" };
        self.undo.push(words(&["xdp-filter", "unload", DEVICE]));
        place.run(&["xdp-filter", "load", "-m", "native", "-p", "allow", "-f", family, DEVICE])?;
        self.add = words(&["xdp-filter", "ip", "-m", "src", "@ADDRESS@"]);
        // The tool takes one address a call; its map is filled directly, so there is no time of loading.
        let map = Path::new(XDP_FILTER_PINS).join(format!("filter_{family}"));
        tables.iter().try_for_each(|table| {
            // One place is left for one more rule; so one source in 10,000 gets in.
            object::fill_pinned(&map, Table { count: table.count.min(XDP_FILTER_MAX - 1), ..*table })
        })
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        drop((self.process.take(), self.daemon.take()));
        let netns = format!("--net=/run/netns/{}", self.receiver);
        for command in self.undo.iter().rev() {
            let mut args = vec![netns.as_str(), "--"];
            args.extend(command.iter().map(String::as_str));
            if let Err(error) = run("nsenter", &args) {
                eprintln!("{error:#}");
            }
        }
        if let Err(error) = remove(Path::new(PINS)) {
            eprintln!("{error:#}");
        }
    }
}

pub(super) fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|&word| word.to_owned()).collect()
}

/// Where Debian's xdp-tools has the program for an allow policy on addresses.
fn xdp_filter_object() -> anyhow::Result<PathBuf> {
    let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
    let path = PathBuf::from(format!("/usr/lib/{machine}-linux-gnu/bpf/xdpfilt_alw_ip.o"));
    anyhow::ensure!(path.exists(), "{} is not installed (xdp-tools)", path.display());
    Ok(path)
}

/// Removes what a run left that was killed.
pub(crate) fn remove_leftovers() -> anyhow::Result<()> {
    remove(Path::new(PINS))
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, count: u32) -> Table {
        Table { shape: name.parse().unwrap(), count }
    }

    #[test]
    fn subjects_have_their_own_names() {
        let names: std::collections::HashSet<&str> = SUBJECTS.iter().map(|subject| subject.name()).collect();
        assert_eq!(names.len(), SUBJECTS.len());
    }

    #[test]
    fn each_takes_what_it_can_hold() {
        let taking = |tables: &[Table]| -> Vec<&str> {
            SUBJECTS.into_iter().filter(|subject| subject.takes(tables)).map(Subject::name).collect()
        };
        let addresses = taking(&[table("v4-address-dense", XDP_FILTER_MAX)]);
        assert!(
            addresses.contains(&"xdp-filter") && addresses.contains(&"ctl-hash") && !addresses.contains(&"ctl-lpm")
        );
        assert!(!taking(&[table("v4-address-dense", XDP_FILTER_MAX + 1)]).contains(&"xdp-filter"));
        let prefixes = taking(&[table("v6-prefix-spread", 1)]);
        assert!(prefixes.contains(&"ctl-lpm") && !prefixes.iter().any(|name| name.starts_with("xdp-filter")));
        let both = taking(&[table("v4-address-dense", 1), table("v4-prefix-dense", 1)]);
        assert!(!both.iter().any(|name| name.starts_with("ctl") || name.starts_with("xdp-filter")));
        assert!(both.contains(&"mc-proxy") && both.contains(&"nft-ingress"));
    }
}
