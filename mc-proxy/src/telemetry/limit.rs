//! A limit on log lines that an attacker can cause.

use std::sync::{Mutex, PoisonError};

use tokio::time::{Duration, Instant};

/// Lets so many lines through each second, and counts the others.
#[derive(Debug)]
pub struct LineLimit {
    per_second: u32,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    started_at: Option<Instant>,
    /// Lines let through in this window: lines <= per_second.
    lines: u32,
    /// Lines held back since the last that was let through.
    suppressed: u64,
}

impl LineLimit {
    /// A limit for one kind of line.
    pub const fn per_second(per_second: u32) -> Self {
        Self { per_second, window: Mutex::new(Window { started_at: None, lines: 0, suppressed: 0 }) }
    }

    /// Whether a line may be written now; with it, how many have been held back since the last one.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.started_at.is_none_or(|start| now.saturating_duration_since(start) >= Duration::from_secs(1)) {
            window.started_at = Some(now);
            window.lines = 0;
        }
        if window.lines < self.per_second {
            window.lines += 1;
            Some(std::mem::take(&mut window.suppressed))
        } else {
            window.suppressed += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_back_is_told_with_the_next_line() {
        let limit = LineLimit::per_second(2);
        let start = Instant::now();
        let admitted: Vec<_> = (0..5).map(|_| limit.admit(start)).collect();
        assert_eq!(admitted, [Some(0), Some(0), None, None, None]);
        let later = start + Duration::from_secs(1);
        assert_eq!([limit.admit(later), limit.admit(later), limit.admit(later)], [Some(3), Some(0), None]);
    }
}
