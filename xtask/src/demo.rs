//! `cargo xtask demo`: builds the daemon for release and runs the demonstration on it.
//!
//! The demonstration itself is built like a test: with its TLS library it takes longer to optimise than the daemon.

use std::process::Command;

use anyhow::Result;

use xtask::cargo::{cargo, succeed, target};

/// How the demonstration runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Shows the user plane on loopback even if the kernel plane could be shown.
    #[arg(long)]
    user_plane: bool,
}

/// Builds and runs.
pub(crate) fn run(args: &Args) -> Result<()> {
    succeed(&mut cargo(&["build", "--release", "--package", "mc-proxy", "--bins"]))?;
    succeed(&mut cargo(&["build", "--package", "mc-proxy-tests", "--bin", "demo"]))?;
    let mut demo = Command::new(target().join("debug/demo"));
    demo.env("MC_PROXY_BIN_DIR", target().join("release"));
    if args.user_plane {
        demo.arg("--user-plane");
    }
    succeed(&mut demo)
}
