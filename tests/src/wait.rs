//! Waiting for something that can only be asked for, not be notified of.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long anything that should happen at once may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(15);

/// Asks until `condition` holds; an error after `limit`, with `what` was waited for.
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition()? {
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}");
        }
        thread::park_timeout(Duration::from_millis(5));
    }
    Ok(())
}

/// Lets time pass: for tests of deadlines and for measuring windows, never for waiting on an event.
pub fn pass(duration: Duration) {
    let end = Instant::now() + duration;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}
