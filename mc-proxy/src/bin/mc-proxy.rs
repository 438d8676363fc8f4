//! The daemon.

use std::process::ExitCode;

use clap::Parser as _;
use mc_proxy::cli;

/// A request of HTTP/2 allocates some forty times, more than half of it for a task and its heads of some KiB each, which glibc
/// splits and joins again: with it such a request costs a sixth more (docs/performance.md). What is free is given back in 10 ms.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(cli::Args::parse()).into()
}
