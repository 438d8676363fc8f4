//! Installs the programs to compare with, or to talk to, from Debian's packages.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Where Debian puts what relays TCP in nginx.
pub const NGINX_STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// What has to be there, and the package it comes in.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// By its name at Debian.
    pub package: &'static str,
    /// A program to be found, or a file by its absolute path.
    pub evidence: &'static str,
}

/// Finds a program as root's shell would, in the sbin directories too; an absolute path stands for itself.
pub fn find(program: &str) -> Option<PathBuf> {
    if Path::new(program).is_absolute() {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Installs what is not there; what cannot be installed is said, and the caller goes on without.
pub fn install_lacking(needs: impl IntoIterator<Item = Need>) {
    let lacks = needs.into_iter().filter(|need| find(need.evidence).is_none());
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

fn install(packages: &[&str]) -> Result<()> {
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(packages);
    if apt_get(&install).is_ok() {
        return Ok(());
    }
    println!("Reading the package lists first: apt-get update");
    apt_get(&["update"])?;
    apt_get(&install)
}

fn apt_get(args: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .arg("-qq")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()
        .context("running apt-get")?;
    ensure!(status.success(), "apt-get {}: {status}", args.join(" "));
    Ok(())
}

/// Debian starts what it installs; a proxy that nobody configured must not sit on port 80 after a benchmark.
fn stop_services(packages: &[&str]) {
    if !Path::new("/run/systemd/system").exists() {
        return;
    }
    for service in packages.iter().filter(|package| ["haproxy", "nginx", "sniproxy"].contains(package)) {
        let disabled = Command::new("systemctl").args(["disable", "--now", service]).stdin(Stdio::null()).status();
        if !disabled.as_ref().is_ok_and(ExitStatus::success) {
            println!("The service {service}, just installed, could not be stopped: {disabled:?}");
        }
    }
}
