//! Which tests can run here, and a loud word about those that cannot.

use std::{
    env,
    fs::OpenOptions,
    io::{self, Write as _},
    path::Path,
};

use anyhow::{Result, bail};

use crate::bpffs::Bpffs;

/// With this set to `1`, a test that cannot run fails instead of being skipped.
pub const REQUIRE_VARIABLE: &str = "MC_PROXY_REQUIRE_KERNEL";

/// A file that `cargo xtask test` collects the skipped tests in.
pub const SKIPPED_VARIABLE: &str = "MC_PROXY_SKIPPED";

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// Why network namespaces cannot be made here.
pub fn missing_for_namespaces() -> Option<String> {
    if !has_capability(CAP_SYS_ADMIN) || !has_capability(CAP_NET_ADMIN) {
        return Some("network namespaces need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)".to_owned());
    }
    find_program("ip").is_none().then(|| "network namespaces need `ip`, from the package iproute2".to_owned())
}

/// Why the daemon cannot have a kernel plane here.
pub fn missing_for_kernel_plane() -> Option<String> {
    missing_for_namespaces().or_else(|| {
        if !has_capability(CAP_BPF) {
            return Some("the kernel plane needs CAP_BPF".to_owned());
        }
        Bpffs::mount().err().map(|error| format!("a BPF file system cannot be mounted: {error:#}"))
    })
}

/// Why the daemon cannot splice in the kernel here.
pub fn missing_for_kernel_splice() -> Option<String> {
    let has_all = has_capability(CAP_BPF) && has_capability(CAP_NET_ADMIN);
    (!has_all).then(|| "splicing in the kernel needs CAP_BPF and CAP_NET_ADMIN".to_owned())
}

/// `true` when nothing is missing. Otherwise says that `test` is skipped, and why.
///
/// # Errors
/// When something is missing and [`REQUIRE_VARIABLE`] forbids to skip.
pub fn can_run(test: &str, missing: Option<String>) -> Result<bool> {
    let Some(reason) = missing else { return Ok(true) };
    if env::var_os(REQUIRE_VARIABLE).is_some_and(|value| value == "1") {
        bail!("{test} may not be skipped ({REQUIRE_VARIABLE}=1), but {reason}");
    }
    skip(test, &reason)?;
    Ok(false)
}

/// Says that `test` is skipped, and why.
///
/// # Errors
/// When it cannot be said.
pub fn skip(test: &str, reason: &str) -> Result<()> {
    // Not `eprintln!`: the test runner swallows what a passing test prints through it.
    writeln!(io::stderr(), "SKIPPED {test}: {reason}")?;
    if let Some(path) = env::var_os(SKIPPED_VARIABLE) {
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        writeln!(file, "{test}: {reason}")?;
    }
    Ok(())
}

/// The full path of a program in `PATH` or in the directories that a user's `PATH` may lack.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(Into::into));
    directories.map(|directory| directory.join(name)).find(|file| Path::is_file(file))
}

fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    u64::from_str_radix(effective.trim(), 16).is_ok_and(|bits| bits & (1 << number) != 0)
}
