//! Where pairs may be carried: by the kernel, where it can, or in user space.

use std::sync::Arc;

use super::{
    Splice,
    kernel::{Figures, Kernel},
    switch::Switch,
};

/// What relays have at hand; one for all workers.
#[derive(Debug)]
pub struct Splicing {
    switch: Switch,
    kernel: Result<Arc<Kernel>, Box<str>>,
}

impl Splicing {
    /// With an engine, or the reason why there is none: then every pair stays in user space.
    pub fn new(mode: Splice, kernel: Result<Arc<Kernel>, Box<str>>) -> Self {
        Self { switch: Switch::new(mode), kernel }
    }

    /// In user space only.
    pub fn userspace() -> Self {
        Self::new(Splice::Userspace, Err("off".into()))
    }

    /// What a pair is to be carried by now whose route has this mode of its own.
    pub fn mode(&self, route: Option<Splice>) -> Splice {
        match self.kernel() {
            Ok(_) => self.switch.resolve(route),
            Err(_) => Splice::Userspace,
        }
    }

    /// The mode that was configured, or set since.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// Sets the mode of all pairs, those that run included: one that the kernel carries is carried in user space from
    /// here on, if that is the new mode. Returns the mode before.
    pub fn set_mode(&self, mode: Splice) -> Splice {
        let before = self.switch.set(mode);
        if let Ok(kernel) = &self.kernel {
            kernel.look();
        }
        before
    }

    /// The engine, or why there is none.
    ///
    /// # Errors
    /// Why there is none.
    pub fn kernel(&self) -> Result<&Arc<Kernel>, &str> {
        let kernel = self.kernel.as_ref().map_err(AsRef::as_ref)?;
        if kernel.has_failed() { Err("its events cannot be read; the log says why") } else { Ok(kernel) }
    }

    /// What the engine has done.
    pub fn figures(&self) -> Figures {
        self.kernel.as_ref().map(|kernel| kernel.figures()).unwrap_or_default()
    }
}
