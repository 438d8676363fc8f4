//! `cargo xtask bench`: mc-proxy beside what a user would take instead, each suite in one run.
//!
//! What counts are ratios within a round, since the machine is not the same from minute to minute: all peers are measured
//! back to back, in another order each round. Traffic stays in namespaces made for the run. No figure makes a run fail:
//! it reports.

#![forbid(unsafe_code)]

mod claim;
mod cpu;
mod firewall;
mod interrupt;
mod knobs;
mod l4;
mod l7;
mod load;
mod markdown;
mod packages;
mod process;
mod record;
mod stats;
mod topology;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use xtask::{cargo, exit_code};

const MC_PROXY: &str = "mc-proxy";
const WORKER: &str = "--worker";

/// Measures mc-proxy beside the proxies a user would take instead.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
enum Suite {
    /// Measures passthrough beside HAProxy, nginx, sniproxy and Envoy: bytes, connections, round trips, memory. A run
    /// with the defaults takes 12 to 15 minutes.
    L4(l4::Args),
    /// Measures TLS and HTTP beside nginx, HAProxy, Caddy, Envoy and sozu: requests, handshakes, calls.
    L7(l7::Args),
    /// Measures the kernel's firewall beside nftables, ipset and xdp-filter.
    Firewall(firewall::Args),
    /// Generates load, or answers it, inside a benchmark's namespace.
    #[command(hide = true)]
    Load(load::Args),
}

fn main() -> ExitCode {
    let result = match Suite::parse() {
        Suite::L4(args) => l4::run(&args),
        Suite::L7(args) => l7::run(&args),
        Suite::Firewall(args) => firewall::run(&args),
        Suite::Load(args) => load::run(&args),
    };
    exit_code(result)
}

/// Measures in a process of its own, and cleans up after it if it was killed.
fn run_worker() -> anyhow::Result<()> {
    let status = interrupt::run_worker(WORKER)?;
    if status.code().is_none() {
        claim::clean_up()?;
    }
    anyhow::ensure!(status.success(), "the run did not finish: {status}");
    Ok(())
}

fn build_daemon(programs: &[&str]) -> anyhow::Result<()> {
    println!("Building the release daemon");
    let mut build = vec!["build", "--release", "--package", MC_PROXY];
    build.extend(programs.iter().flat_map(|program| ["--bin", program]));
    let status = cargo::cargo(&build).status().context("running cargo")?;
    anyhow::ensure!(status.success(), "the daemon does not build: {status}");
    Ok(())
}

/// What ran, for the record: this workspace, and the packet filters installed beside the proxies.
fn versions() -> std::collections::BTreeMap<&'static str, String> {
    let root = cargo::root().to_string_lossy().into_owned();
    let commands: [(&str, &str, &[&str]); 4] = [
        ("commit", "git", &["-C", &root, "describe", "--always", "--dirty"]),
        ("nftables", "nft", &["--version"]),
        ("ipset", "ipset", &["--version"]),
        ("xdp-tools", "dpkg-query", &["-W", "-f", "${Version}", "xdp-tools"]),
    ];
    let version = |(name, program, args): (&'static str, &str, &[&str])| {
        // One that is not there has no version.
        let said = process::run(program, args).ok()?;
        Some((name, said.lines().next()?.trim().to_owned()))
    };
    commands.into_iter().filter_map(version).collect()
}
