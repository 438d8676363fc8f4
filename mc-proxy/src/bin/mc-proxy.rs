//! The daemon.
//!
//! With glibc's allocator. mimalloc saves a request of HTTP/2 a seventh of its CPU, and makes long content cost two thirds more:
//! it hands out another buffer each time, where glibc hands out the one that was freed last and is still in the cache
//! (docs/performance.md, "HTTP/2").

use std::process::ExitCode;

use clap::Parser as _;
use mc_proxy::cli;

fn main() -> ExitCode {
    cli::run(cli::Args::parse()).into()
}
