//! `cargo xtask`: the project's front door. One module for each task.

#![forbid(unsafe_code)]

mod build_ebpf;
mod ci;
mod demo;
mod setup;
mod test;

use std::{os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use xtask::{cargo::cargo, exit_code};

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
    #[command(disable_help_flag = true)]
    Bench {
        /// A suite and its options, see `cargo xtask bench --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Ci(args) => ci::run(&args),
        Task::Setup(args) => setup::run(&args),
        Task::BuildEbpf(args) => build_ebpf::run(&args),
        Task::Bench { args } => bench(&args),
    };
    exit_code(result)
}

/// A program of its own: what its clients are built from takes minutes, and no other task needs it.
fn bench(args: &[String]) -> anyhow::Result<()> {
    // In the place of this one: whoever ends it ends the benchmark.
    let error = cargo(&["run", "--package", "mc-proxy-bench", "--"]).args(args).exec();
    Err(error).context("running cargo")
}
