//! The admin API on the command line.

use std::process::ExitCode;

use clap::Parser as _;
use mc_proxy::ctl;

fn main() -> ExitCode {
    ctl::run(ctl::Args::parse()).into()
}
