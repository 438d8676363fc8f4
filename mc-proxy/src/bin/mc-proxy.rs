//! The daemon.
//!
//! With glibc's allocator: with mimalloc requests of HTTP/2 cost 7 % less, and long content two thirds more (docs/performance.md,
//! "HTTP/2").

use std::process::ExitCode;

use clap::Parser as _;
use mc_proxy::cli;

fn main() -> ExitCode {
    cli::run(cli::Args::parse()).into()
}
