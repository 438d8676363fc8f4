//! `cargo xtask`: the project's front door. One module for each task.

#![forbid(unsafe_code)]

mod bench;
mod build_ebpf;
mod cargo;
mod ci;
mod demo;
mod setup;
mod test;

use std::process::ExitCode;

use clap::Parser;

/// Builds, checks, tests and shows mc-proxy.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Shows the edge at work: routing, an attack, a block in the kernel, SIGKILL, adoption.
    Demo(demo::Args),
    /// Builds the binaries and runs all tests.
    Test(test::Args),
    /// Everything that has to hold before a change lands.
    Ci(ci::Args),
    /// Installs what rebuilding the kernel program needs; building and running mc-proxy needs none of it.
    Setup(setup::Args),
    /// Rebuilds the committed kernel program, or checks that it is what its sources say.
    BuildEbpf(build_ebpf::Args),
    /// Measures mc-proxy beside the proxies a user would take instead.
    Bench(bench::Args),
    /// Generates load, or answers it, inside a benchmark's namespace.
    #[command(hide = true)]
    Load(bench::load::Args),
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Ci(args) => ci::run(&args),
        Task::Setup(args) => setup::run(&args),
        Task::BuildEbpf(args) => build_ebpf::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Load(args) => bench::load::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
