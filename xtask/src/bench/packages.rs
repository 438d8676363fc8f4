//! Installs the programs to compare with from Debian's packages.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

/// What has to be there, and the package it comes in.
#[derive(Debug)]
struct Need {
    package: &'static str,
    /// A program to be found, or a file by its absolute path.
    evidence: &'static str,
    /// The peer that needs it; `None`: packet filters, which every full run has beside the proxies.
    peer: Option<&'static str>,
}

const NEEDS: [Need; 8] = [
    Need { package: "haproxy", evidence: "haproxy", peer: Some("haproxy") },
    Need { package: "haproxy", evidence: "haproxy", peer: Some("haproxy-splice") },
    Need { package: "nginx", evidence: "nginx", peer: Some("nginx") },
    Need { package: "libnginx-mod-stream", evidence: super::l4::NGINX_STREAM_MODULE, peer: Some("nginx") },
    Need { package: "sniproxy", evidence: "sniproxy", peer: Some("sniproxy") },
    Need { package: "xdp-tools", evidence: "xdp-filter", peer: None },
    Need { package: "nftables", evidence: "nft", peer: None },
    Need { package: "ipset", evidence: "ipset", peer: None },
];

/// What the firewall's benchmark needs: its peers, and what builds and runs its own programs.
const FIREWALL_NEEDS: [Need; 8] = [
    Need { package: "xdp-tools", evidence: "xdp-filter", peer: None },
    Need { package: "nftables", evidence: "nft", peer: None },
    Need { package: "ipset", evidence: "ipset", peer: None },
    Need { package: "iptables", evidence: "iptables", peer: None },
    Need { package: "ethtool", evidence: "ethtool", peer: None },
    Need { package: "util-linux", evidence: "setpriv", peer: None },
    Need { package: "clang", evidence: "clang", peer: None },
    Need { package: "libbpf-dev", evidence: "/usr/include/bpf/bpf_helpers.h", peer: None },
];

/// Other proxies that the end-to-end tests speak PROXY protocol with.
const TEST_NEEDS: [Need; 3] = [
    Need { package: "haproxy", evidence: "haproxy", peer: None },
    Need { package: "nginx", evidence: "nginx", peer: None },
    Need { package: "libnginx-mod-stream", evidence: super::l4::NGINX_STREAM_MODULE, peer: None },
];

/// Finds a program as root's shell would, in the sbin directories too; an absolute path stands for itself.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    if Path::new(program).is_absolute() {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Installs what the wanted peers lack; what cannot be installed is said, and the run goes on without.
pub(super) fn install_missing(wanted: Option<&[String]>) {
    let is_wanted = |need: &Need| match (wanted, need.peer) {
        (None, _) => true,
        (Some(names), Some(peer)) => names.iter().any(|name| name == peer),
        (Some(_), None) => false,
    };
    install_lacking(NEEDS.iter().filter(|need| is_wanted(need)));
}

/// Installs what the firewall's benchmark lacks.
pub(super) fn install_for_firewall() {
    install_lacking(FIREWALL_NEEDS.iter());
}

/// Installs what the end-to-end tests lack.
pub(crate) fn install_for_tests() {
    install_lacking(TEST_NEEDS.iter());
}

fn install_lacking(needs: impl Iterator<Item = &'static Need>) {
    let lacks = needs.filter(|need| find(need.evidence).is_none());
    let mut missing: Vec<&str> = lacks.map(|need| need.package).collect();
    missing.dedup();
    if missing.is_empty() {
        return;
    }
    let names = missing.join(" ");
    if find("apt-get").is_none() {
        println!("Not installed, and going on without: {names}");
        return;
    }
    println!("Installing from Debian's packages: {names}");
    match install(&missing) {
        Ok(()) => stop_services(&missing),
        Err(error) => println!("Going on without what could not be installed: {error:#}"),
    }
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(packages);
    if apt_get(&install).is_ok() {
        return Ok(());
    }
    println!("Reading the package lists first: apt-get update");
    apt_get(&["update"])?;
    apt_get(&install)
}

fn apt_get(args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("apt-get")
        .arg("-qq")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()
        .context("running apt-get")?;
    anyhow::ensure!(status.success(), "apt-get {}: {status}", args.join(" "));
    Ok(())
}

/// Debian starts what it installs; a proxy that nobody configured must not sit on port 80 after a benchmark.
fn stop_services(packages: &[&str]) {
    if !Path::new("/run/systemd/system").exists() {
        return;
    }
    for service in packages.iter().filter(|package| ["haproxy", "nginx", "sniproxy"].contains(package)) {
        let disabled = Command::new("systemctl").args(["disable", "--now", service]).stdin(Stdio::null()).status();
        if !disabled.as_ref().is_ok_and(std::process::ExitStatus::success) {
            println!("The service {service}, just installed, could not be stopped: {disabled:?}");
        }
    }
}
