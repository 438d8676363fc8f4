//! What the audience reads: steps with figures, and a verdict.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Error, Result, anyhow};

/// Directories that a demonstration made and that have to be gone at its end.
static DIRECTORIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Steps so far. After one has failed, the others are not run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: u32,
    failed: u32,
}

/// Lines below the title of a step.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<String>);

impl Report {
    pub(crate) fn new() -> Self {
        println!("mc-proxy: a demonstration");
        println!("=========================\n");
        Self::default()
    }

    /// Text between the steps.
    pub(crate) fn say(&self, text: &str) {
        for line in text.lines() {
            println!("       {line}");
        }
        println!();
    }

    /// Does one step and prints how it went; `None` when it failed.
    pub(crate) fn step<T>(&mut self, title: &str, work: impl FnOnce(&mut Figures) -> Result<T>) -> Option<T> {
        let start = Instant::now();
        let mut figures = Figures::default();
        let result = work(&mut figures);
        let word = if result.is_ok() { "PASS" } else { "FAIL" };
        println!("{word}   {title}  ({:.1} s)", start.elapsed().as_secs_f64());
        for line in &figures.0 {
            println!("         {line}");
        }
        let value = match result {
            Ok(value) => {
                self.passed += 1;
                Some(value)
            }
            Err(error) => {
                self.failed += 1;
                println!("         {}", format!("{error:#}").replace('\n', "\n         "));
                None
            }
        };
        println!();
        value
    }

    /// The same for steps that the rest stands on.
    ///
    /// # Errors
    /// When it failed; it has been printed.
    pub(crate) fn must<T>(&mut self, title: &str, work: impl FnOnce(&mut Figures) -> Result<T>) -> Result<T> {
        self.step(title, work).ok_or_else(|| anyhow!("the steps after \"{title}\" were not run"))
    }

    /// Why the demonstration did not come to its end.
    pub(crate) fn broke_off(&mut self, error: &Error) {
        self.failed = self.failed.max(1);
        println!("broken off: {error:#}\n");
    }

    /// The last lines; `true` when everything held.
    pub(crate) fn finish(&self, duration: Duration) -> bool {
        let verdict = if self.failed == 0 { "PASS" } else { "FAIL" };
        println!("{verdict}   {} steps passed, {} failed, {:.0} s", self.passed, self.failed, duration.as_secs_f64());
        self.failed == 0
    }
}

impl Figures {
    pub(crate) fn add(&mut self, line: impl Into<String>) {
        self.0.push(line.into());
    }

    /// Output of a program, set off from the rest.
    pub(crate) fn quote(&mut self, command: &str, output: &str) {
        self.add(format!("$ {command}"));
        for line in output.trim_end().lines() {
            self.add(format!("  {line}"));
        }
    }
}

/// The directory has to be gone at the end.
pub(crate) fn watch(directory: &Path) {
    DIRECTORIES.lock().expect("nobody panics with this list").push(directory.to_owned());
}

/// All that are watched.
pub(crate) fn directories() -> Vec<PathBuf> {
    DIRECTORIES.lock().expect("nobody panics with this list").clone()
}
