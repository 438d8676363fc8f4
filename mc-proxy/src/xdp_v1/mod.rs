//! The kernel plane behind one small interface.
//!
//! [`Dataplane`] is all that the daemon knows of eBPF. Every rule that the kernel enforces is enforced in user space
//! too: this plane is an optimisation that an attacker feels, never the only guard.

mod attach;
mod entries;
mod kernel;
mod maps;
mod netlink;
mod object;
mod pins;
mod probe;
mod userspace;

use std::collections::BTreeSet;

pub use crate::xdp::{InterfaceStatus, PlaneError, PlaneStatus, ReasonCount};

use crate::{
    config,
    firewall::{Rule, RuleSet},
};

/// A place that enforces the address rules of the desired state. Calls block on system calls; one thread makes them.
pub trait Dataplane: Send {
    /// Makes one added or removed rule effective: when this returns `Ok`, packets are judged by `rules`, which already
    /// has the change. Country rules are not this plane's business and change nothing.
    ///
    /// # Errors
    /// When the kernel refuses; its maps are then as before.
    fn apply(&mut self, change: Change, rules: &RuleSet) -> Result<(), PlaneError>;

    /// Makes the kernel's maps equal to `rules` and its programs attached, whatever happened to them, without a moment
    /// in which a source that is blocked before and after could pass. What can be put right is, before an error is
    /// returned.
    ///
    /// # Errors
    /// With the first thing that could not be put right.
    fn reconcile(&mut self, rules: &RuleSet) -> Result<Repairs, PlaneError>;

    /// Interfaces, rule count and counters, read from the kernel now.
    fn status(&self) -> PlaneStatus;

    /// What a clean stop does: leaves everything in force, or removes it (`xdp.on_exit`).
    ///
    /// # Errors
    /// When something could not be removed.
    fn shutdown(&mut self) -> Result<(), PlaneError>;
}

/// One difference between two rule sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A rule that was not there.
    Added(Rule),
    /// A rule that was.
    Removed(Rule),
}

/// What [`Dataplane::reconcile`] had to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// Entries that were missing or different.
    pub upserted: u64,
    /// Entries that no rule wants.
    pub removed: u64,
    /// Interfaces that had lost their program.
    pub reattached: u64,
}

/// The plane that `config` asks for, with `rules` in force: the kernel's where that is possible, or else one that leaves
/// the enforcement to user space and says why. `ports` are the listeners'. What an earlier daemon left in force is taken
/// over, and removed where `config` no longer asks for it.
///
/// # Errors
/// With `xdp.required`, when a rule or an interface could not be provided for.
pub fn open(config: &config::Xdp, ports: &BTreeSet<u16>, rules: &RuleSet) -> Result<Box<dyn Dataplane>, PlaneError> {
    let error = match kernel::KernelPlane::open(config, ports, rules) {
        Ok(plane) => {
            let detail = plane.status().detail;
            if detail.is_empty() || !config.required {
                return Ok(Box::new(plane));
            }
            return Err(PlaneError::new(format!("the kernel plane is incomplete: {detail}")));
        }
        Err(error) => error,
    };
    if config.required { Err(error) } else { Ok(Box::new(userspace::UserspacePlane::new(config, &error))) }
}
