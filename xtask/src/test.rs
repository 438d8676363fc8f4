//! `cargo xtask test`: the binaries first, for the tests run the real ones, then `cargo test`.

use std::{collections::BTreeSet, fs, io::ErrorKind};

use anyhow::{Context as _, Result, bail};

use xtask::cargo::{cargo, succeed, target};

/// Which tests, and how.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// A test that cannot run here fails, instead of being skipped.
    #[arg(long)]
    pub(crate) require_kernel: bool,
    /// Passed on to `cargo test`, such as `--test relay` or the name of a test.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) cargo_args: Vec<String>,
}

/// Builds, tests, and lists what was skipped and why.
pub(crate) fn run(args: &Args) -> Result<()> {
    succeed(&mut cargo(&["build", "--package", "mc-proxy", "--bins"]))?;

    let skipped = target().join("skipped-tests.txt");
    forget(&skipped)?;
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"]);
    tests.args(&args.cargo_args).env("MC_PROXY_SKIPPED", &skipped);
    if args.require_kernel {
        tests.env("MC_PROXY_REQUIRE_KERNEL", "1").env("MC_PROXY_REQUIRE_PEERS", "1");
    }
    let result = succeed(&mut tests);
    report(&skipped)?;
    result
}

fn report(path: &std::path::Path) -> Result<()> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => bail!("reading {}: {error}", path.display()),
    };
    let lines = text.lines().collect::<BTreeSet<_>>();
    println!("\n{} tests were skipped:", lines.len());
    for line in lines {
        println!("  {line}");
    }
    forget(path)
}

fn forget(path: &std::path::Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
