//! `setup`: the toolchain of the kernel program.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

use crate::build_ebpf::{self, LINKER_VERSION};

/// bpf-linker needs an LLVM at least as new as the compiler's.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LLVM_PACKAGES: [&str; 2] = ["llvm-22-dev", "libpolly-22-dev"];
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Take the compiler from rustup (a nightly with rust-src) instead of Debian's packages.
    #[arg(long)]
    rustup: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let steps = steps(args)?;
    if steps.is_empty() {
        println!("nothing to do: compiler with library sources and bpf-linker {LINKER_VERSION} are there");
        return Ok(());
    }
    println!("to rebuild the kernel program, this is missing and will be installed:");
    for step in &steps {
        println!("  {}", line(step));
    }
    if args.dry_run {
        return Ok(());
    }
    for mut step in steps {
        println!("+ {}", line(&step));
        let status = step.status().with_context(|| format!("running {}", line(&step)))?;
        ensure!(status.success(), "`{}` failed; mend that and run `cargo xtask setup` again", line(&step));
    }
    ensure!(
        !build_ebpf::toolchains().is_empty(),
        "there is still no compiler with its library sources and an LLVM that bpf-linker {LINKER_VERSION} can read"
    );
    ensure!(has_linker(), "bpf-linker {LINKER_VERSION} is installed but not found: add ~/.cargo/bin to PATH");
    println!("done: `cargo xtask build-ebpf` works now");
    Ok(())
}

fn steps(args: &Args) -> Result<Vec<Command>> {
    let mut steps = Vec::new();
    let mut packages = Vec::new();
    if build_ebpf::toolchains().is_empty() {
        if args.rustup {
            steps.push(command(
                "rustup",
                &["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"],
            ));
        } else {
            packages.extend(COMPILER_PACKAGES);
        }
    }
    if !has_linker() && !Path::new(LLVM_PREFIX).join("bin/llvm-config").exists() {
        packages.extend(LLVM_PACKAGES);
    }
    if !packages.is_empty() {
        if !Path::new("/usr/bin/apt-get").exists() {
            bail!(
                "no apt-get here: install LLVM 22 with its headers, and a nightly with rust-src (`cargo xtask setup --rustup`)"
            );
        }
        let install = [&["install", "--yes", "--no-install-recommends"][..], &packages].concat();
        for arguments in [&["update"][..], &install] {
            steps.push(if rustix::process::geteuid().is_root() {
                command("apt-get", arguments)
            } else {
                command("sudo", &[&["apt-get"][..], arguments].concat())
            });
        }
    }
    if !has_linker() {
        let mut install = command("cargo", &["install", "bpf-linker", "--version", LINKER_VERSION]);
        install.args(["--no-default-features", "--features", "llvm-22", "--locked", "--force"]);
        install.env("LLVM_PREFIX", LLVM_PREFIX);
        steps.push(install);
    }
    Ok(steps)
}

fn has_linker() -> bool {
    build_ebpf::linker().is_some_and(|version| version.split_whitespace().last() == Some(LINKER_VERSION))
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// As one would type it.
fn line(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), value?.to_string_lossy())));
    let words =
        [command.get_program()].into_iter().chain(command.get_args()).map(|word| word.to_string_lossy().into_owned());
    variables.chain(words).collect::<Vec<_>>().join(" ")
}
