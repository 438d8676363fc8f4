//! How established pairs are carried, and the run-time switch of it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

/// `proxy.splice`, and `splice` of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Splice {
    /// What is measured to be best for what the pair does.
    #[default]
    Auto,
    /// In the kernel wherever it can be.
    Sockmap,
    /// Never in the kernel.
    Userspace,
}

/// How pairs are carried whose route does not say it: as configured, until somebody sets it. Not stored: a restart goes
/// back to the configuration.
#[derive(Debug)]
pub struct Switch {
    mode: AtomicU8,
    /// Set at run time: then [`Splice::Userspace`] is for every route, whatever it says.
    is_set: AtomicBool,
}

impl Default for Switch {
    fn default() -> Self {
        Self::new(Splice::default())
    }
}

impl Splice {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Sockmap => "sockmap",
            Self::Userspace => "userspace",
        }
    }
}

impl Switch {
    /// As configured.
    pub fn new(mode: Splice) -> Self {
        Self { mode: AtomicU8::new(mode as u8), is_set: AtomicBool::new(false) }
    }

    /// What is in force now; cheap enough to be asked for every decision.
    pub fn mode(&self) -> Splice {
        decode(self.mode.load(Relaxed))
    }

    /// What is in force for a route that may have a mode of its own. The operator's `userspace` is a kill switch: it
    /// stands above what a route wants.
    pub fn resolve(&self, route: Option<Splice>) -> Splice {
        let mode = self.mode();
        if mode == Splice::Userspace && self.is_set.load(Relaxed) { mode } else { route.unwrap_or(mode) }
    }

    /// Decisions from now on are made in this mode; returns the one before.
    pub fn set(&self, mode: Splice) -> Splice {
        self.is_set.store(true, Relaxed);
        decode(self.mode.swap(mode as u8, Relaxed))
    }
}

fn decode(mode: u8) -> Splice {
    [Splice::Sockmap, Splice::Userspace].into_iter().find(|known| *known as u8 == mode).unwrap_or(Splice::Auto)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Splice; 3] = [Splice::Auto, Splice::Sockmap, Splice::Userspace];

    #[test]
    fn keeps_what_is_set() {
        for mode in ALL {
            let switch = Switch::new(mode);
            assert_eq!(switch.mode(), mode);
            for next in ALL {
                let before = switch.mode();
                assert_eq!(switch.set(next), before);
                assert_eq!(switch.mode(), next);
            }
        }
    }

    #[test]
    fn a_route_has_its_own_way_unless_the_kernel_is_switched_off() {
        for route in ALL {
            let switch = Switch::new(Splice::Userspace);
            assert_eq!(switch.resolve(Some(route)), route);
            assert_eq!(switch.resolve(None), Splice::Userspace);
            switch.set(Splice::Userspace);
            assert_eq!(switch.resolve(Some(route)), Splice::Userspace);
            switch.set(Splice::Auto);
            assert_eq!(switch.resolve(Some(route)), route);
        }
    }
}
