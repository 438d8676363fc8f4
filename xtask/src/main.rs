//! The project's front door: one subcommand per task, one module per subcommand.

#![forbid(unsafe_code)]

mod bench;

use std::process::ExitCode;

use clap::Parser;

/// Builds, tests, demonstrates and measures mc-proxy.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Measures mc-proxy beside the proxies a user would take instead.
    Bench(bench::Args),
    /// Generates load, or answers it, inside a benchmark's namespace.
    #[command(hide = true)]
    Load(bench::load::Args),
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Bench(args) => bench::run(&args),
        Task::Load(args) => bench::load::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
