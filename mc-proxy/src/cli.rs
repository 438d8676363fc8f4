//! The command line of `mc-proxy`.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{Parser, Subcommand};

use crate::{config::Config, ctl, exit::Exit};

const PROGRAM: &str = "mc-proxy";

/// TLS SNI proxy with an XDP firewall, for edge hosts under attack.
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "Exit codes: 0 done, 1 failed, 2 usage, 69 the daemon cannot be reached, 70 internal error, \
                          75 no answer in time, 77 no permission or missing capability, 78 configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon in the foreground.
    Server(ConfigFile),
    /// Shows what a running daemon does.
    Status {
        #[command(flatten)]
        file: ConfigFile,
        /// Write one JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Writes a consistent copy of the database, also while the daemon runs.
    Snapshot {
        #[command(flatten)]
        file: ConfigFile,
        /// The copy; `backups/mc-proxy-<UTC timestamp>.db` beside the database when absent.
        #[arg(short, long, value_name = "OUT")]
        output: Option<PathBuf>,
    },
    /// Checks the configuration and what the host provides, and says how to fix what fails.
    Check(ConfigFile),
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// Configuration file (TOML).
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
}

/// Why a command ended without having done its work.
struct Failure {
    exit: Exit,
    message: String,
}

/// Runs the command and says on stderr why it failed, if it did.
pub fn run(args: Args) -> Exit {
    let result = match args.command {
        Command::Server(file) => server(&file.config),
        Command::Status { file, json } => status(&file.config, json),
        Command::Snapshot { file, output } => snapshot(&file.config, output.as_deref()),
        Command::Check(file) => check(&file.config),
    };
    result.unwrap_or_else(|failure| {
        // Without stderr the exit code has to do.
        let _ = writeln!(io::stderr(), "{PROGRAM}: {}", failure.message);
        failure.exit
    })
}

fn status(file: &Path, is_json: bool) -> Result<Exit, Failure> {
    let grpc = load(file)?.grpc.ok_or_else(|| Failure {
        exit: Exit::Config,
        message: format!(
            "{}: grpc.addr is not set, so the daemon has no admin API; set it to a path such as \
             \"/srv/mc-proxy/mc-proxy.sock\" and restart the daemon",
            file.display()
        ),
    })?;
    Ok(ctl::print_status(PROGRAM, &grpc.path, is_json))
}

fn load(file: &Path) -> Result<Config, Failure> {
    Err(missing("config::load", file))
}

fn server(file: &Path) -> Result<Exit, Failure> {
    Err(missing("daemon::run", file))
}

fn snapshot(file: &Path, output: Option<&Path>) -> Result<Exit, Failure> {
    Err(missing("store::snapshot", output.unwrap_or(file)))
}

fn check(file: &Path) -> Result<Exit, Failure> {
    Err(missing("check::run", file))
}

/// For parts that are merged after this one.
fn missing(part: &str, path: &Path) -> Failure {
    Failure { exit: Exit::Internal, message: format!("{}: {part} is not part of this build", path.display()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_command_lines_of_the_runbook() {
        for line in [
            "mc-proxy server -c /srv/mc-proxy/mc-proxy.toml",
            "mc-proxy status -c /srv/mc-proxy/mc-proxy.toml",
            "mc-proxy status --config mc-proxy.toml --json",
            "mc-proxy snapshot -c /srv/mc-proxy/mc-proxy.toml",
            "mc-proxy snapshot -c /srv/mc-proxy/mc-proxy.toml -o /var/tmp/mc-proxy-backup.db",
            "mc-proxy check -c mc-proxy.toml",
        ] {
            assert!(Args::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in ["mc-proxy", "mc-proxy server", "mc-proxy status -c", "mc-proxy nope -c f"] {
            let error = Args::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(Exit::Usage as u8), "{line}");
        }
        let version = Args::try_parse_from(["mc-proxy", "--version"]).unwrap_err();
        assert_eq!(
            (version.exit_code(), version.to_string()),
            (0, format!("mc-proxy {}\n", env!("CARGO_PKG_VERSION")))
        );
    }
}
