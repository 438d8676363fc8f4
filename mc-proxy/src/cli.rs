//! The command line of `mc-proxy`.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{Parser, Subcommand};

use crate::{
    check,
    config::{self, Config},
    ctl,
    daemon::{self, Start},
    exit::Exit,
    store, telemetry,
};

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
    Server {
        #[command(flatten)]
        file: ConfigFile,
        /// Take the place of the daemon that runs on the same database, without refusing a connection: it passes its
        /// listening sockets on, and ends when its connections have. Not for a daemon that a service manager runs.
        #[arg(long)]
        takeover: bool,
    },
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
        Command::Server { file, takeover } => {
            server(&file.config, if takeover { Start::Takeover } else { Start::Fresh })
        }
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
    let loaded = config::load(file, std::env::vars_os())
        .map_err(|errors| Failure { exit: Exit::Config, message: errors.to_string() })?;
    Ok(loaded.config)
}

fn server(file: &Path, start: Start) -> Result<Exit, Failure> {
    daemon::run(file, start)
        .map(|()| Exit::Success)
        .map_err(|failure| Failure { exit: failure.exit, message: failure.to_string() })
}

fn snapshot(file: &Path, output: Option<&Path>) -> Result<Exit, Failure> {
    let database = load(file)?.database;
    let path = store::snapshot(&database, output)
        .map_err(|error| Failure { exit: Exit::Failure, message: telemetry::describe(&error) })?;
    print(&format!("{}\n", path.display()))
}

fn check(file: &Path) -> Result<Exit, Failure> {
    let checklist = check::run(file, std::env::vars_os());
    print(&checklist.to_string())?;
    Ok(if checklist.is_ok() { Exit::Success } else { Exit::Config })
}

/// Writes to stdout; a reader that has gone away has seen what it wanted.
fn print(text: &str) -> Result<Exit, Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure { exit: Exit::Failure, message: format!("stdout: {error}") })
        }
        Ok(()) | Err(_) => Ok(Exit::Success),
    }
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
            "mc-proxy server -c /srv/mc-proxy/mc-proxy.toml --takeover",
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
