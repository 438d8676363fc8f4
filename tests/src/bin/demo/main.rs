//! The demonstration: an edge host in namespaces, an attack, and what mc-proxy does about it. Every claim is checked
//! and comes with a figure; the first that does not hold ends it.

#![forbid(unsafe_code)]

mod kernel;
mod report;
mod rules;
mod user;
mod visits;
mod web;

use std::{env, fs, path::Path, process::ExitCode, time::Instant};

use anyhow::{Result, bail, ensure};
use mc_proxy_tests::{privilege::missing_for_kernel_plane, topology::own_namespaces};

use crate::report::Report;

fn main() -> ExitCode {
    let start = Instant::now();
    let mut report = Report::new();
    let result = run(&mut report);
    report.step("nothing is left behind", |figures| {
        let left = leftovers();
        ensure!(left.is_empty(), "left behind: {}", left.join(", "));
        figures.add("no namespace, no process, no mount, no file");
        Ok(())
    });
    if let Err(error) = result {
        report.broke_off(&error);
    }
    if report.finish(start.elapsed()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(report: &mut Report) -> Result<()> {
    let arguments = env::args().skip(1).collect::<Vec<_>>();
    let missing = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => missing_for_kernel_plane(),
        ["--user-plane"] => Some("--user-plane was given".to_owned()),
        _ => bail!("unknown arguments {arguments:?}; the only one is --user-plane"),
    };
    match missing {
        None => kernel::show(report),
        Some(reason) => user::show(report, &reason),
    }
}

/// What carries this process's mark and should be gone.
fn leftovers() -> Vec<String> {
    let mut left = own_namespaces();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let directories = report::directories();
    let is_own =
        |line: &&str| line.split(' ').nth(1).is_some_and(|at| directories.iter().any(|own| own == Path::new(at)));
    left.extend(mounts.lines().filter(is_own).map(ToOwned::to_owned));
    let own = std::process::id().to_string();
    let tasks = fs::read_dir(Path::new("/proc/self/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    left.extend(
        children
            .flat_map(|list| list.split_whitespace().map(|pid| format!("process {pid} of {own}")).collect::<Vec<_>>()),
    );
    left.extend(directories.into_iter().filter(|path| path.exists()).map(|path| path.display().to_string()));
    left
}
