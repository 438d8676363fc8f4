//! The project's front door: `cargo xtask --help`.

mod build_ebpf;
mod setup;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the mc-proxy repository")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what rebuilding the kernel program needs; building and running mc-proxy needs none of it.
    Setup(setup::Args),
    /// Rebuilds the committed kernel program, or checks that it is what its sources say.
    BuildEbpf(build_ebpf::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Setup(args) => setup::run(&args),
        Task::BuildEbpf(args) => build_ebpf::run(&args),
    }
}
