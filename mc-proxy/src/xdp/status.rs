//! What the plane tells of itself.

use std::fmt;

use super::{Obstacle, PlaneError};

/// What [`Dataplane::status`](super::Dataplane::status) tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaneStatus {
    /// Whether at least one interface has the program.
    pub is_active: bool,
    /// Why rules are not enforced in the kernel, or not everywhere; empty when they are.
    pub detail: String,
    /// Why there is no kernel plane at all; `None` when there is one.
    pub obstacle: Option<Obstacle>,
    /// One for each of `xdp.interfaces`.
    pub interfaces: Vec<InterfaceStatus>,
    /// Rules in the tables; the plane itself does not know, who fills them does.
    pub rules: u64,
    /// Packets by reason, all reasons, summed over CPUs and interfaces.
    pub counters: Vec<ReasonCount>,
    /// Packets by rule group; groups that have had none are left out.
    pub groups: Vec<GroupCount>,
    /// Bytes of kernel memory that the maps in force take.
    pub map_bytes: u64,
    /// Generations that were put in force since the start.
    pub generation: u64,
}

/// One interface of [`PlaneStatus`]. Displays one line.
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
    /// Name of the driver, or kind of a virtual interface; empty when neither is known.
    pub driver: String,
    /// Bytes; 0 without the interface.
    pub mtu: u32,
    /// Kernel id of another's program that is on the interface; 0 when there is none.
    pub foreign_program_id: u32,
    /// Why the mode is generic where native was to be tried; empty when it is as good as it was asked for.
    pub note: String,
    /// What is in the way: of the program when there is none, or else of native mode; `None` when nothing is.
    pub obstacle: Option<Obstacle>,
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

/// The counters of a rule group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupCount {
    /// Its number in the tables.
    pub group: u32,
    /// Packets dropped.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that rules which only count would have dropped.
    pub would_packets: u64,
    /// Their bytes.
    pub would_bytes: u64,
}

impl InterfaceStatus {
    /// Without a program.
    pub(super) fn without(name: &str, error: &PlaneError) -> Self {
        Self { name: name.to_owned(), error: error.chain(), obstacle: Some(error.obstacle()), ..Self::default() }
    }
}

impl fmt::Display for InterfaceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        if self.mode.is_empty() {
            write!(f, "no program")?;
        } else {
            write!(f, "{} XDP, program {}", self.mode, self.program_id)?;
        }
        if !self.driver.is_empty() {
            write!(f, ", driver {}", self.driver)?;
        }
        if self.mtu != 0 {
            write!(f, ", mtu {}", self.mtu)?;
        }
        for text in [&self.error, &self.note] {
            if !text.is_empty() {
                write!(f, ": {text}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_a_line() {
        let good = InterfaceStatus {
            name: "eth0".into(),
            mode: "native",
            program_id: 12,
            driver: "virtio_net".into(),
            mtu: 1500,
            ..InterfaceStatus::default()
        };
        assert_eq!(good.to_string(), "eth0: native XDP, program 12, driver virtio_net, mtu 1500");
        let slow = InterfaceStatus { mode: "generic", note: "the driver has no native XDP".into(), ..good };
        assert_eq!(
            slow.to_string(),
            "eth0: generic XDP, program 12, driver virtio_net, mtu 1500: the driver has no native XDP"
        );
        let error = PlaneError::new("interface eth1 does not exist").because(Obstacle::NoInterface);
        let missing = InterfaceStatus::without("eth1", &error);
        assert_eq!(missing.to_string(), "eth1: no program: interface eth1 does not exist");
    }
}
