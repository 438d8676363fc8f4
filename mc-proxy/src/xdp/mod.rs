//! The kernel plane behind one small interface.
//!
//! [`Dataplane`] is all that the daemon knows of eBPF. Every rule that the kernel enforces is enforced in user space
//! too: this plane is an optimisation that an attacker feels, never the only guard.
//!
//! ```text
//! prepare(sizes) ─► a generation: program + tables, in force nowhere ─► the engine fills the tables ─► commit()
//!                                                                             │ a change: stores into the tables
//!                                                                             ▼ they are too small: prepare again
//! ```
//! A program and its tables are a generation. Committing replaces the program of every interface at once, each by one
//! system call; so growing, a restart and an upgrade are the same thing to a packet.

mod attach;
mod error;
mod events;
mod kernel;
mod netlink;
mod object;
mod pins;
mod probe;
mod shared;
mod status;
mod survey;
mod userspace;

use std::{collections::BTreeMap, sync::Arc};

use mc_proxy_common::rate::RateLimit;

pub use error::{Obstacle, PlaneError};
pub use events::{Events, KernelDrop};
pub use mc_proxy_common::user::TestRun;
pub use object::PROGRAM;
pub use status::{GroupCount, InterfaceStatus, PlaneStatus, ReasonCount};
pub use survey::{Survey, survey};

use crate::{
    config,
    firewall::{Generations, Sizes, TableMemory},
};

/// A place that enforces the rules of the desired state. Calls block on system calls; one thread makes them.
pub trait Dataplane: Generations + Send {
    /// Sees to it that the program is on every interface, whatever happened to them: one that was not there, or that has
    /// come back under the same name, gets it. A few system calls when there is nothing to do; to be called every second.
    /// What can be put right is, before an error is returned.
    ///
    /// # Errors
    /// With the first interface that could not be provided for.
    fn keep_attached(&mut self) -> Result<Repairs, PlaneError>;

    /// Sets the counters of a rule group to zero, before its number stands for another group.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn clear_group(&mut self, group: u32) -> Result<(), PlaneError>;

    /// Interfaces, sizes and counters, read from the kernel now.
    fn status(&self) -> PlaneStatus;

    /// Packets that are dropped, as they are told by the kernel; `None` without a kernel plane.
    fn events(&self) -> Option<Events>;

    /// Runs the program that is in force on a frame. The frame is counted and limited like any other, and is not passed on.
    ///
    /// # Errors
    /// Without a program in force, or when the kernel does not take the frame.
    fn test_run(&self, frame: &[u8]) -> Result<TestRun, PlaneError>;

    /// What a clean stop does: leaves everything in force, or removes it (`xdp.on_exit`).
    ///
    /// # Errors
    /// When something could not be removed.
    fn shutdown(&mut self) -> Result<(), PlaneError>;
}

/// What the program is loaded with beside the tables.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// The listeners' ports, and whether the rate of new connections to a port is limited in the kernel.
    pub ports: BTreeMap<u16, bool>,
    /// New connections of a source.
    pub rate: RateLimit,
    /// Random: keeps who chooses addresses from choosing lines of the tables.
    pub seed: u64,
}

/// What [`Dataplane::keep_attached`] had to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// Interfaces that have got the program.
    pub attached: u64,
    /// Pins that had been removed.
    pub repinned: u64,
}

/// The plane that `config` asks for: the kernel's where that is possible, or else one that leaves the enforcement to user
/// space and says why. Nothing is in force, and what an earlier daemon has left goes on, until the first commit.
///
/// # Errors
/// With `xdp.required`, when there can be no kernel plane.
pub fn open(config: &config::Xdp, parameters: Parameters) -> Result<Box<dyn Dataplane>, PlaneError> {
    let seed = parameters.seed;
    match kernel::KernelPlane::open(config, parameters) {
        Ok(plane) => Ok(Box::new(Plane {
            userspace: userspace::UserspacePlane::new(config, seed),
            kernel: Some(plane),
            is_required: config.required,
        })),
        Err(error) if config.required => Err(error),
        Err(error) => Ok(Box::new(userspace::UserspacePlane::because(config, seed, &error))),
    }
}

/// The kernel's plane, until its first generation proves to be impossible.
#[derive(Debug)]
struct Plane {
    kernel: Option<kernel::KernelPlane>,
    userspace: userspace::UserspacePlane,
    is_required: bool,
}

impl Plane {
    fn current(&self) -> &dyn Dataplane {
        match &self.kernel {
            Some(kernel) => kernel,
            None => &self.userspace,
        }
    }

    fn current_mut(&mut self) -> &mut dyn Dataplane {
        match &mut self.kernel {
            Some(kernel) => kernel,
            None => &mut self.userspace,
        }
    }
}

impl Generations for Plane {
    fn prepare(&mut self, sizes: &Sizes) -> Result<Arc<TableMemory>, PlaneError> {
        match self.current_mut().prepare(sizes) {
            Err(error) if !self.is_required && self.kernel.as_ref().is_some_and(|kernel| !kernel.is_running()) => {
                self.userspace.set_reason(&error);
                self.kernel = None;
                self.userspace.prepare(sizes)
            }
            result => result,
        }
    }

    fn commit(&mut self) -> Result<(), PlaneError> {
        self.current_mut().commit()
    }

    fn discard(&mut self) {
        self.current_mut().discard();
    }

    fn settle(&mut self) -> Result<(), PlaneError> {
        self.current_mut().settle()
    }
}

impl Dataplane for Plane {
    fn keep_attached(&mut self) -> Result<Repairs, PlaneError> {
        self.current_mut().keep_attached()
    }

    fn clear_group(&mut self, group: u32) -> Result<(), PlaneError> {
        self.current_mut().clear_group(group)
    }

    fn status(&self) -> PlaneStatus {
        self.current().status()
    }

    fn events(&self) -> Option<Events> {
        self.current().events()
    }

    fn test_run(&self, frame: &[u8]) -> Result<TestRun, PlaneError> {
        self.current().test_run(frame)
    }

    fn shutdown(&mut self) -> Result<(), PlaneError> {
        self.current_mut().shutdown()
    }
}
