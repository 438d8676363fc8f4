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

pub use object::PROGRAM;

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

/// What [`Dataplane::status`] tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaneStatus {
    /// Whether at least one interface has the program.
    pub is_active: bool,
    /// Why rules are not enforced in the kernel, or not everywhere; empty when they are.
    pub detail: String,
    /// One for each of `xdp.interfaces`.
    pub interfaces: Vec<InterfaceStatus>,
    /// Entries in the rule maps.
    pub rules: u64,
    /// Packets by reason, all reasons, summed over CPUs and interfaces.
    pub counters: Vec<ReasonCount>,
    /// Kernel memory of the maps, in bytes.
    pub map_memory: u64,
    /// How often the maps were built anew.
    pub generation: u64,
}

/// One interface of [`PlaneStatus`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceStatus {
    /// As configured.
    pub name: String,
    /// The mode obtained: `"native"`, `"generic"`, or `""` without a program.
    pub mode: &'static str,
    /// Kernel id of the attached program; 0 without one.
    pub program_id: u32,
    /// Why there is no program; empty when there is.
    pub error: String,
    /// Whether the program was found in force at start and taken over.
    pub is_adopted: bool,
    /// Driver of the interface; empty when it is not known.
    pub driver: String,
    /// 0 when it is not known.
    pub mtu: u32,
    /// Why the mode is not native; empty when it is.
    pub mode_reason: String,
    /// Kernel id of a program of somebody else that holds the place; 0 without one.
    pub foreign_program_id: u32,
}

/// A counter of the packet path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonCount {
    /// Name of the reason.
    pub reason: &'static str,
    /// Whether packets with this reason were dropped.
    pub is_drop: bool,
    /// Packets.
    pub packets: u64,
    /// Bytes of the frames, from the Ethernet header on; 0 before Linux 5.18, which cannot tell.
    pub bytes: u64,
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

/// A refusal of the kernel, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct PlaneError {
    context: String,
    is_privilege: bool,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl PlaneError {
    /// An error that says what was tried, on what, and how to mend it.
    pub fn new(context: impl Into<String>) -> Self {
        Self { context: context.into(), is_privilege: false, source: None }
    }

    /// The same with a cause; a refusal of permission makes it one of privileges.
    pub fn caused(context: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let source = source.into();
        let is_privilege = is_refusal(&*source);
        Self { context: context.into(), is_privilege, source: Some(source) }
    }

    /// The daemon lacks a right.
    pub fn privilege(context: impl Into<String>) -> Self {
        Self { context: context.into(), is_privilege: true, source: None }
    }

    /// Whether the daemon lacks a right, so that starting it in another way would help.
    pub fn is_privilege(&self) -> bool {
        self.is_privilege
    }

    /// The message with its causes, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let message = error.to_string();
            // Some libraries repeat the cause in the message.
            if !text.ends_with(&message) {
                text = format!("{text}: {message}");
            }
            cause = error.source();
        }
        text
    }
}

/// Whether a right that is missing is at the bottom of an error.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let is_denied = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    error.downcast_ref::<std::io::Error>().is_some_and(is_denied)
        || error.downcast_ref::<PlaneError>().is_some_and(PlaneError::is_privilege)
        || error.source().is_some_and(is_refusal)
}
