//! `cargo xtask ci`: everything that has to hold before a change lands, with the time that each step takes.

use std::{
    io::ErrorKind,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{FsWord, statfs},
    mount::{MountFlags, mount},
    process::geteuid,
};

use xtask::{
    cargo::{cargo, root, succeed},
    packages::{NGINX_STREAM_MODULE, Need, install_lacking},
};

use crate::test;

/// Other proxies, with which the end-to-end tests speak PROXY protocol.
const TEST_NEEDS: [Need; 3] = [
    Need { package: "haproxy", evidence: "haproxy" },
    Need { package: "nginx", evidence: "nginx" },
    Need { package: "libnginx-mod-stream", evidence: NGINX_STREAM_MODULE },
];

const BPFFS: &str = "/sys/fs/bpf";
const BPFFS_MAGIC: FsWord = 0xcafe_4a11;

/// How strict.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Skips tests that need more rights or another kernel, instead of failing.
    #[arg(long)]
    without_kernel: bool,
}

/// A step: its name, and what it does.
type Step<'a> = (&'static str, Box<dyn Fn() -> Result<()> + 'a>);

/// Runs all steps; the first that fails ends it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let steps: [Step<'_>; 9] = [
        ("format", Box::new(|| succeed(&mut cargo(&["fmt", "--all", "--check"])))),
        ("lints", Box::new(lints)),
        ("dependencies", Box::new(dependencies)),
        ("documents", Box::new(documents)),
        ("kernel program", Box::new(kernel_program)),
        ("systemd unit", Box::new(unit)),
        ("BPF file system", Box::new(mount_bpffs)),
        ("other proxies", Box::new(other_proxies)),
        ("tests", Box::new(|| test::run(&test::Args { require_kernel: !args.without_kernel, cargo_args: Vec::new() }))),
    ];
    let mut times = Vec::new();
    for (name, step) in steps {
        println!("\n==> {name}");
        let start = Instant::now();
        let result = step();
        times.push((name, start.elapsed()));
        if let Err(error) = result {
            summary(&times);
            return Err(error.context(name));
        }
    }
    summary(&times);
    println!("\nall good");
    Ok(())
}

fn summary(times: &[(&str, Duration)]) {
    println!();
    for (name, time) in times {
        println!("{:>8.1} s  {name}", time.as_secs_f64());
    }
}

fn lints() -> Result<()> {
    succeed(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
}

/// With private items, for this is a program: its documents are for those who change it.
fn documents() -> Result<()> {
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"]);
    succeed(doc.env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private-intra-doc-links"))
}

/// The committed object is what its sources give. Without its toolchain, and without the means to install it, hashes
/// are compared instead of bytes; `MC_PROXY_REQUIRE_EBPF_TOOLCHAIN=1` turns that into a failure.
fn kernel_program() -> Result<()> {
    let xtask = |args: &[&str]| succeed(cargo(&["run", "--quiet", "--package", "xtask", "--"]).args(args));
    if let Err(error) = xtask(&["setup"]) {
        println!("SKIPPED: the object may not be rebuilt: {error:#}");
    }
    xtask(&["build-ebpf", "--check"])
}

/// The unit stays hardened: an exposure of at most 2.0, as systemd counts it.
fn unit() -> Result<()> {
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["security", "--offline=true", "--threshold=20", "--no-pager", "deploy/mc-proxy.service"]);
    analyze.current_dir(root());
    match analyze.output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            println!("{}", text.lines().last().unwrap_or_default());
            Ok(())
        }
        Ok(output) => bail!("{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("SKIPPED: systemd-analyze is not there");
            Ok(())
        }
        Err(error) => Err(error).context("running systemd-analyze"),
    }
}

/// The rules of `deny.toml`. Advisories need a database from the network and are left to `cargo deny check advisories`.
fn dependencies() -> Result<()> {
    let is_there = || {
        let version = cargo(&["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    };
    if !is_there() {
        println!("cargo-deny is not installed; installing it");
        if let Err(error) = succeed(&mut cargo(&["install", "cargo-deny", "--locked", "--quiet"])) {
            println!("SKIPPED: the rules of deny.toml are not checked: {error:#}");
            return Ok(());
        }
    }
    succeed(&mut cargo(&["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))
}

/// What is missing then is the tests' to tell.
fn other_proxies() -> Result<()> {
    if geteuid().is_root() {
        install_lacking(TEST_NEEDS);
    } else {
        println!("SKIPPED: only root can install packages");
    }
    Ok(())
}

/// The daemon's default place for pins; containers come without it.
fn mount_bpffs() -> Result<()> {
    if !geteuid().is_root() {
        println!("SKIPPED: only root can mount it");
        return Ok(());
    }
    let path = Path::new(BPFFS);
    if !path.is_dir() {
        bail!("{BPFFS} does not exist: this kernel has no BPF file system");
    }
    let kind = statfs(path).with_context(|| format!("looking at {BPFFS}"))?.f_type;
    if kind == BPFFS_MAGIC {
        println!("{BPFFS} is mounted");
        return Ok(());
    }
    println!("mounting {BPFFS}");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", path, "bpf", flags, None).with_context(|| format!("mounting bpf on {BPFFS}"))
}
