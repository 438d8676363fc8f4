//! What the project's tasks share.

#![forbid(unsafe_code)]

pub mod cargo;
pub mod packages;

use std::process::ExitCode;

/// How a task ends: with its error on standard error, if it has one.
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
