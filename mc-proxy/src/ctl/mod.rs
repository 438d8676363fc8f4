//! `mcproxyctl`: the admin API on the command line.
//!
//! Data goes to stdout, talk to stderr. With `--json` a command writes one object, with the field names of
//! `mc_proxy.v1` and numbers as numbers; see [`json`]. How it ended is an [`Exit`].

mod certs;
mod client;
mod firewall;
mod health;
mod json;
mod listeners;
mod output;
mod policies;
mod routes;
mod splice;
mod status;

#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
};

use clap::{Parser, Subcommand};

use crate::exit::Exit;

pub use client::CtlError;

use client::Client;
use output::{Output, Terminals};

/// Where the daemon listens in the layout of the runbook.
const DEFAULT_SOCKET: &str = "/srv/mc-proxy/mc-proxy.sock";

/// Administers a running mc-proxy.
#[derive(Debug, Parser)]
#[command(name = "mcproxyctl", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Args {
    /// Socket of the daemon (`grpc.addr` of its configuration).
    #[arg(long, global = true, value_name = "PATH", env = "MCPROXYCTL_SOCKET", default_value = DEFAULT_SOCKET)]
    #[arg(value_parser = socket_path)]
    socket: PathBuf,
    /// Write one JSON object instead of text; `watch` and `top` write one a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "Exit codes: 0 done, 1 refused or failed, 2 usage, 69 the daemon cannot be reached, \
                          75 no answer in time, 77 no permission for the socket.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Uptime, connections, listeners and the kernel plane.
    Status,
    /// Routes: which backend a server name goes to.
    #[command(subcommand)]
    Routes(routes::Command),
    /// HTTP policies of routes.
    #[command(subcommand)]
    Policies(policies::Command),
    /// Listeners and their limits.
    #[command(subcommand)]
    Listeners(listeners::Command),
    /// Firewall rules: groups, lists, what they drop and why.
    #[command(subcommand)]
    Firewall(firewall::Command),
    /// Certificates that routes terminate TLS with.
    Certs(certs::Args),
    /// How bytes of connections are moved, until the daemon ends.
    Splice(splice::Args),
    /// Whether the daemon is serving, as `grpc.health.v1` has it.
    Health(health::Args),
}

/// Runs the command and says on stderr why it failed, if it did.
pub fn run(args: Args) -> Exit {
    report("mcproxyctl", on_terminal(args))
}

/// As `grpc.addr` is written, with or without `unix:`.
fn socket_path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(text.strip_prefix("unix:").unwrap_or(text).into())
}

/// `status` of the daemon behind `socket`, for `mc-proxy status`.
pub(crate) fn print_status(program: &str, socket: &Path, is_json: bool) -> Exit {
    let command = Args { socket: socket.to_owned(), json: is_json, command: Command::Status };
    report(program, on_terminal(command))
}

fn on_terminal(args: Args) -> Result<(), CtlError> {
    let (mut data, mut talk) = (io::stdout().lock(), io::stderr());
    let terminals = Terminals { data: data.is_terminal(), talk: talk.is_terminal() };
    block_on(execute(args, &mut data, &mut talk, terminals))
}

fn block_on(work: impl Future<Output = Result<(), CtlError>>) -> Result<(), CtlError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CtlError::Runtime)?;
    runtime.block_on(work)
}

async fn execute(
    mut args: Args,
    data: &mut dyn Write,
    talk: &mut dyn Write,
    terminals: Terminals,
) -> Result<(), CtlError> {
    let mut out = Output::new(args.json, data, talk, terminals);
    if let Command::Firewall(command) = &mut args.command {
        command.prepare(&mut out)?;
    }
    let mut client = Client::connect(&args.socket).await?;
    match args.command {
        Command::Status => status::run(&mut client, &mut out).await,
        Command::Routes(command) => routes::run(command, &mut client, &mut out).await,
        Command::Policies(command) => policies::run(command, &mut client, &mut out).await,
        Command::Listeners(command) => listeners::run(command, &mut client, &mut out).await,
        Command::Firewall(command) => firewall::run(command, &args.socket, &mut client, &mut out).await,
        Command::Certs(args) => certs::run(args, &mut client, &mut out).await,
        Command::Splice(args) => splice::run(args, &mut client, &mut out).await,
        Command::Health(args) => health::run(args, &mut client, &mut out).await,
    }?;
    out.flush()
}

/// A reader that has closed the pipe has what it wanted: that is success.
fn report(program: &str, result: Result<(), CtlError>) -> Exit {
    match result {
        Ok(()) => Exit::Success,
        Err(CtlError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Success,
        Err(error) => {
            // Without stderr the exit code has to do.
            let _ = writeln!(io::stderr(), "{program}: {error}");
            error.exit()
        }
    }
}
