//! What can be said of an interface without touching it, and why a driver does not take a program.

use std::io;

use mc_proxy_common::user::{self, XdpMode};
use rustix::io::Errno;

use super::{
    Obstacle, PlaneError, attach,
    netlink::{self, Interface},
    pins::Pins,
};
use crate::config;

/// The greatest MTU that leaves room in a page for what most drivers keep beside a frame.
const MTU_OF_ONE_PAGE: u32 = 3498;

/// One of `xdp.interfaces`, before a start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// As configured.
    pub name: String,
    /// Name of the driver, or kind of a virtual interface; empty when neither is known.
    pub driver: String,
    /// Bytes.
    pub mtu: u32,
    /// The program on it: kernel id, mode, and whether it is one of ours; `None` when that cannot be told for lack of rights.
    pub program: Option<(u32, &'static str, Option<bool>)>,
}

/// Looks at one of `config.interfaces`. No right is needed, but to tell one's own program from others.
///
/// # Errors
/// When there is no such interface.
pub fn survey(config: &config::Xdp, name: &str) -> Result<Survey, PlaneError> {
    let asking = |error| PlaneError::caused(format!("asking for the state of interface {name}"), error);
    let index = netlink::index(name).map_err(asking)?.ok_or_else(|| attach::no_interface(name))?;
    let interface = netlink::interface(index).map_err(asking)?;
    let program = interface.attached.map(|attached| {
        let found = attach::find(&Pins::new(&config.pin_path)).and_then(|found| attach::position(&found, name));
        (attached.program_id, attached.mode.as_str(), found.ok().map(|position| position.is_some()))
    });
    Ok(Survey { name: name.to_owned(), driver: driver(name, &interface), mtu: interface.mtu, program })
}

impl Survey {
    /// Whether native XDP is likely to fail for the size of frames, unless the driver splits them.
    pub fn has_large_frames(&self) -> bool {
        self.mtu > MTU_OF_ONE_PAGE
    }
}

/// Name of the driver; for virtual interfaces that do not tell, what kind they are.
pub(super) fn driver(name: &str, interface: &Interface) -> String {
    match user::driver(name) {
        Ok(driver) if !driver.is_empty() => driver,
        Ok(_) | Err(_) => interface.kind.clone(),
    }
}

/// A program that an interface did not take.
#[derive(Debug)]
pub(super) struct Refused<'a> {
    pub(super) name: &'a str,
    pub(super) interface: &'a Interface,
    pub(super) mode: XdpMode,
}

impl Refused<'_> {
    /// What the kernel's number means, and what helps.
    pub(super) fn explain(&self, has_frags: bool, error: io::Error) -> PlaneError {
        let Self { name, interface, mode } = self;
        let known = driver(name, interface);
        let driver = if known.is_empty() { "its driver".to_owned() } else { format!("its driver {known}") };
        if *mode == XdpMode::Generic {
            return PlaneError::caused(format!("attaching the XDP program to {name} in generic mode"), error);
        }
        let mtu = interface.mtu;
        let errno = Errno::from_io_error(&error);
        // Without a driver of its own there is nothing that could not be supported but all of it.
        let is_mtu = match errno {
            Some(Errno::INVAL | Errno::RANGE) => true,
            Some(Errno::OPNOTSUPP) => !known.is_empty(),
            _ => false,
        };
        if is_mtu && mtu > MTU_OF_ONE_PAGE {
            let split = if has_frags { "" } else { ", boot Linux 5.18 or later, where drivers may split frames" };
            let context = format!(
                "mtu {mtu} of {name} is too large for native XDP on {driver}; lower it to <= {MTU_OF_ONE_PAGE} with `ip \
                 link set dev {name} mtu {MTU_OF_ONE_PAGE}`{split}, or set `xdp.mode = \"generic\"`"
            );
            return PlaneError::caused(context, error).because(Obstacle::MtuTooLarge);
        }
        let (what, obstacle) = match errno {
            Some(Errno::OPNOTSUPP) => (format!("{driver} has no native XDP"), Obstacle::NoNative),
            Some(Errno::NOMEM) => {
                (format!("{driver} has not the queues or the memory for native XDP"), Obstacle::NoNative)
            }
            Some(Errno::INVAL | Errno::RANGE) => {
                (format!("{driver} refuses native XDP as it is set up; `dmesg` may tell why"), Obstacle::NoNative)
            }
            _ => ("attaching the XDP program failed".to_owned(), Obstacle::Other),
        };
        let context =
            format!("no native mode on {name}: {what}; `xdp.mode = \"generic\"` works on every interface, more slowly");
        match PlaneError::caused(context, error) {
            // A missing right stays one.
            error if obstacle == Obstacle::Other => error,
            error => error.because(obstacle),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(mtu: u32, errno: Errno, has_frags: bool) -> PlaneError {
        let interface = Interface { mtu, kind: "veth".into(), attached: None };
        let refused = Refused { name: "absent0", interface: &interface, mode: XdpMode::Native };
        refused.explain(has_frags, errno.into())
    }

    #[test]
    fn a_large_mtu_is_told_from_a_driver_without_xdp() {
        for errno in [Errno::INVAL, Errno::RANGE, Errno::OPNOTSUPP] {
            let error = explain(9000, errno, true);
            assert_eq!(error.obstacle(), Obstacle::MtuTooLarge);
            let text = error.to_string();
            assert!(text.contains("mtu 9000 of absent0 is too large for native XDP on its driver veth"), "{text}");
            assert!(text.contains("lower it to <= 3498") && !text.contains("5.18"), "{text}");
            assert!(explain(9000, errno, false).to_string().contains("5.18"));
            assert_eq!(explain(1500, errno, true).obstacle(), Obstacle::NoNative);
        }
        assert!(explain(1500, Errno::OPNOTSUPP, true).to_string().contains("has no native XDP"));
        assert_eq!(explain(9000, Errno::PERM, true).obstacle(), Obstacle::Privilege);
    }

    #[test]
    fn the_loopback_is_surveyed_without_rights() {
        let config = config::Xdp {
            interfaces: vec!["lo".into()],
            mode: config::XdpMode::Auto,
            required: false,
            require_native: false,
            scope: config::Scope::Host,
            on_exit: config::OnExit::Keep,
            pin_path: "/sys/fs/bpf/mc-proxy-absent".into(),
        };
        let found = survey(&config, "lo").unwrap();
        assert!(found.mtu > 1500 && found.program.is_none(), "{found:?}");
        assert_eq!(survey(&config, "absent0").unwrap_err().obstacle(), Obstacle::NoInterface);
    }
}
