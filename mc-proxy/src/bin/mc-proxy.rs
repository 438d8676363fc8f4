//! The daemon.

use std::process::ExitCode;

use clap::Parser as _;
use mc_proxy::cli;

fn main() -> ExitCode {
    cli::run(cli::Args::parse()).into()
}
