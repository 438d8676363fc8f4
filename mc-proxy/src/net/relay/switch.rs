//! The run-time switch of `proxy.splice`.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::config::Splice;

/// How bytes are moved where a route does not say it: as configured, until somebody sets it. Not stored: a restart goes
/// back to the configuration.
#[derive(Debug)]
pub struct Switch(AtomicU8);

impl Default for Switch {
    fn default() -> Self {
        Self::new(Splice::default())
    }
}

impl Switch {
    /// As `mode`.
    pub fn new(mode: Splice) -> Self {
        Self(AtomicU8::new(mode as u8))
    }

    /// What is in force now; cheap enough to be asked for every decision.
    pub fn mode(&self) -> Splice {
        let mode = self.0.load(Relaxed);
        [Splice::Sockmap, Splice::Userspace].into_iter().find(|known| *known as u8 == mode).unwrap_or(Splice::Auto)
    }

    /// Decisions from now on are made in this mode; returns the one before.
    pub fn set(&self, mode: Splice) -> Splice {
        Self(AtomicU8::new(self.0.swap(mode as u8, Relaxed))).mode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_set() {
        for mode in [Splice::Auto, Splice::Sockmap, Splice::Userspace] {
            let switch = Switch::new(mode);
            assert_eq!(switch.mode(), mode);
            for next in [Splice::Auto, Splice::Sockmap, Splice::Userspace] {
                let before = switch.mode();
                assert_eq!(switch.set(next), before);
                assert_eq!(switch.mode(), next);
            }
        }
    }
}
