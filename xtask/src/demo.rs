//! `cargo xtask demo`: builds the daemon for release and runs the demonstration on it.

use std::process::Command;

use anyhow::Result;

use crate::cargo::{cargo, succeed, target};

/// How the demonstration runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Shows the user plane on loopback even if the kernel plane could be shown.
    #[arg(long)]
    user_plane: bool,
}

/// Builds and runs.
pub(crate) fn run(args: &Args) -> Result<()> {
    succeed(&mut cargo(&["build", "--release", "--package", "mc-proxy", "--package", "mc-proxy-tests", "--bins"]))?;
    let directory = target().join("release");
    let mut demo = Command::new(directory.join("demo"));
    demo.env("MC_PROXY_BIN_DIR", &directory);
    if args.user_plane {
        demo.arg("--user-plane");
    }
    succeed(&mut demo)
}
