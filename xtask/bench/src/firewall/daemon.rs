//! mc-proxy as a subject: the daemon as it is run, told by its own client.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::super::process::{Launch, Process};
use super::super::record::Metrics;
use super::memory;
use super::subject::{PINS, Place};
use super::table::Table;
use super::wire::DEVICE;

const START_LIMIT: Duration = Duration::from_secs(30);
const GROUP: &str = "bench";
/// Fewer entries than this are added by hand, as an operator would.
const BY_HAND: u32 = 10;
/// What the daemon asks for, and no more.
const CAPABILITIES: &str = "-all,+bpf,+net_admin,+net_bind_service";

/// The daemon, up and attached.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) process: Process,
    /// Of its admin API.
    pub(super) socket: PathBuf,
    /// Its client, with the option that finds it.
    client: Vec<String>,
}

impl Running {
    /// The client's command that blocks one address.
    pub(super) fn add(&self) -> Vec<String> {
        [&self.client[..], &["firewall", "add", "@ADDRESS@"].map(str::to_owned)].concat()
    }

    /// Imports tables, each as a group of its own.
    pub(super) fn load(&self, tables: &[Table], place: &Place<'_>) -> anyhow::Result<Metrics> {
        let mut metrics = Metrics::new();
        let mut took = Duration::ZERO;
        for (number, table) in tables.iter().enumerate() {
            let list = place.list(table, "import", "", "\n")?;
            let (list, group) = (list.to_string_lossy(), format!("{GROUP}{number}"));
            let by_hand: Vec<String>;
            let mut command: Vec<&str> = self.client.iter().map(String::as_str).collect();
            if table.count < BY_HAND {
                by_hand = table.entries().map(|(address, length)| format!("{address}/{length}")).collect();
                command.extend(["firewall", "add"]);
                command.extend(by_hand.iter().map(String::as_str));
            } else {
                command.extend(["firewall", "import", &list, "--group", &group]);
            }
            let began = Instant::now();
            place.run(&command)?;
            took += began.elapsed();
        }
        if !tables.is_empty() {
            metrics.insert("load_s", took.as_secs_f64());
        }
        metrics.extend(memory::resident(self.process.pid())?);
        Ok(metrics)
    }
}

/// Starts the daemon with an empty database.
pub(super) fn start(has_all_capabilities: bool, port: u16, place: &Place<'_>) -> anyhow::Result<Running> {
    let dir = place.dir.join("mc-proxy");
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("the daemon's files"),
        _ => {}
    }
    let config = dir.join("config.toml");
    let text = include_str!("mc-proxy.toml")
        .replace("@DIR@", &dir.to_string_lossy())
        .replace("@INTERFACE@", DEVICE)
        .replace("@PINS@", PINS)
        .replace("@PORT@", &port.to_string());
    fs::create_dir(&dir)
        .and_then(|()| fs::write(&config, text))
        .with_context(|| format!("writing {}", config.display()))?;

    let program = |name: &str| place.release_dir.join(name).to_string_lossy().into_owned();
    let mut args = vec!["exec".to_owned(), "--".to_owned()];
    if !has_all_capabilities {
        let restrict = ["setpriv", "--bounding-set", CAPABILITIES, "--inh-caps", "-all", "--"];
        args.extend(restrict.map(str::to_owned));
    }
    args.extend([program("mc-proxy"), "server".to_owned(), "-c".to_owned(), config.to_string_lossy().into_owned()]);
    let log = dir.join("log");
    let launch = Launch::new(place.wire.receiver(), None, &args)?.log_to(&log)?;
    let mut process = launch.env("MCPROXY_LOG_LEVEL", "warn").start()?;

    let socket = dir.join("socket");
    let is_up = place.interrupt.wait_until(START_LIMIT, || Ok(socket.exists() || process.is_over()?))?;
    let is_attached = is_up
        && place.interrupt.wait_until(START_LIMIT, || Ok(place.wire.program()?.is_some() || process.is_over()?))?
        && place.wire.program()?.is_some();
    if !is_attached {
        bail!("the daemon does not judge packets: {}", fs::read_to_string(&log).unwrap_or_default().trim());
    }
    let client = vec![program("mcproxyctl"), "--socket".to_owned(), socket.to_string_lossy().into_owned()];
    Ok(Running { process, socket, client })
}
