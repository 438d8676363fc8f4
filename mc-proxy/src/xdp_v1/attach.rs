//! The program on its interfaces.
//!
//! Each attachment is a BPF link that is pinned, so it outlives the daemon. A start takes such a link over by replacing
//! its program in one step; only what cannot be taken over is attached anew.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use mc_proxy_common::user;
use rustix::io::Errno;

use super::{
    InterfaceStatus, PlaneError,
    netlink::{self, Mode},
    pins::{self, Pins},
};
use crate::config;

/// One of `xdp.interfaces`.
#[derive(Debug)]
pub(super) struct Attachment {
    name: String,
    link: Option<OwnedFd>,
    is_adopted: bool,
    error: String,
}

/// A link found at start.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    link: OwnedFd,
    at: user::Link,
}

/// Takes over the links that are pinned, attaches to the interfaces that have none, and then removes links to interfaces
/// that are no longer configured. What fails is in the attachment's error.
pub(super) fn attach_all(program: &mut Xdp, config: &config::Xdp, pins: &Pins) -> Result<Vec<Attachment>, PlaneError> {
    pins.make_links()?;
    let mut found = find(pins)?;
    // All questions before the first change: a link must not be taken for a leftover because the kernel did not answer.
    let mut wanted = Vec::new();
    for name in &config.interfaces {
        let asking = |error| PlaneError::caused(format!("asking for the state of interface {name}"), error);
        let position = match netlink::index(name).map_err(asking)? {
            Some(index) => position(&found, index).map_err(asking)?,
            None => None,
        };
        wanted.push((name, position.map(|position| found.swap_remove(position))));
    }
    let mut attachments = Vec::new();
    for (name, link) in wanted {
        let mut attachment = Attachment { name: name.clone(), link: None, is_adopted: false, error: String::new() };
        let result = match link {
            Some(found) => attachment.adopt(program, config.mode, pins, found),
            None => attachment.ensure(program, config.mode, pins).map(drop),
        };
        attachment.error = result.err().map(|error| error.chain()).unwrap_or_default();
        if attachment.error.is_empty() {
            tracing::info!(interface = %name, adopted = attachment.is_adopted, "XDP program attached");
        } else {
            tracing::warn!(interface = %name, error = %attachment.error, "no XDP program on an interface");
        }
        attachments.push(attachment);
    }
    for found in found {
        // A link whose interface was recreated gave its path to the new one.
        if !attachments.iter().any(|attachment| attachment.link.is_some() && pins.link(&attachment.name) == found.path)
        {
            pins::remove(&found.path)?;
        }
        if found.at.interface.is_some() {
            detach(&found.link)?;
        }
    }
    Ok(attachments)
}

/// Detaches and unpins every link.
pub(super) fn detach_all(pins: &Pins) -> Result<(), PlaneError> {
    for found in find(pins)? {
        pins::remove(&found.path)?;
        if found.at.interface.is_some() {
            detach(&found.link)?;
        }
    }
    Ok(())
}

impl Attachment {
    /// Sees to it that the program is attached to the interface that now has the name, and pinned; `true` if it was not.
    pub(super) fn ensure(&mut self, program: &mut Xdp, mode: config::XdpMode, pins: &Pins) -> Result<bool, PlaneError> {
        let result = self.try_ensure(program, mode, pins);
        self.error = result.as_ref().err().map(PlaneError::chain).unwrap_or_default();
        result
    }

    /// Asks the kernel.
    pub(super) fn status(&self) -> InterfaceStatus {
        let mut status =
            InterfaceStatus { name: self.name.clone(), error: self.error.clone(), ..InterfaceStatus::default() };
        let Some(link) = &self.link else { return status };
        let attached = user::Link::of(link.as_fd()).and_then(|at| match at.interface {
            Some(index) => attached_by(&at, index),
            None => Ok(None),
        });
        match attached {
            Ok(Some(attached)) => {
                status.mode = attached.mode.as_str();
                status.program_id = attached.program_id;
                status.is_adopted = self.is_adopted;
            }
            Ok(None) if status.error.is_empty() => {
                status.error = format!("interface {} is gone, or the program was detached from it", self.name);
            }
            Ok(None) => {}
            Err(error) => status.error = format!("asking for the state of {}: {error}", self.name),
        }
        status
    }

    fn try_ensure(&mut self, program: &mut Xdp, mode: config::XdpMode, pins: &Pins) -> Result<bool, PlaneError> {
        let index = self.index()?;
        let pin = pins.link(&self.name);
        if let Some(link) = &self.link {
            let at = user::Link::of(link.as_fd()).map_err(|error| self.asking(error))?;
            if attached_by(&at, index).map_err(|error| self.asking(error))?.is_some() {
                if !pin.exists() {
                    pins.make_links()?;
                    repin(link, &pin)?;
                }
                return Ok(false);
            }
            // The link died with its interface, was detached by force, or its interface has another name now.
            if at.interface.is_some() {
                detach(link)?;
            }
        }
        pins.make_links()?;
        pins::remove(&pin)?;
        self.link = None;
        self.is_adopted = false;
        self.link = Some(attach(program, &self.name, index, mode, &pin)?);
        Ok(true)
    }

    fn adopt(&mut self, program: &mut Xdp, mode: config::XdpMode, pins: &Pins, found: Found) -> Result<(), PlaneError> {
        let index = self.index()?;
        let attached = netlink::attached(index).map_err(|error| self.asking(error))?;
        let is_other_mode = matches!(
            (mode, attached.map(|attached| attached.mode)),
            (config::XdpMode::Native, Some(Mode::Generic)) | (config::XdpMode::Generic, Some(Mode::Native))
        );
        if is_other_mode {
            // A link keeps its mode for life, and both modes at once are refused.
            tracing::warn!(interface = %self.name, "xdp.mode has changed: the program is detached and attached again");
            pins::remove(&found.path)?;
            detach(&found.link)?;
            drop(found);
            return self.try_ensure(program, mode, pins).map(drop);
        }
        replace_program(program, &found.path).map_err(|error| {
            PlaneError::caused(format!("replacing the XDP program on {}; the earlier one goes on", self.name), error)
        })?;
        let pin = pins.link(&self.name);
        if found.path != pin {
            repin(&found.link, &pin)?;
            pins::remove(&found.path)?;
        }
        self.link = Some(found.link);
        self.is_adopted = true;
        Ok(())
    }

    fn index(&self) -> Result<u32, PlaneError> {
        netlink::index(&self.name)
            .map_err(|error| self.asking(error))?
            .ok_or_else(|| PlaneError::new(format!("interface {} does not exist", self.name)))
    }

    fn asking(&self, error: io::Error) -> PlaneError {
        PlaneError::caused(format!("asking for the state of interface {}", self.name), error)
    }
}

/// A new link, pinned.
fn attach(program: &mut Xdp, name: &str, index: u32, mode: config::XdpMode, pin: &Path) -> Result<OwnedFd, PlaneError> {
    let asking = |error| PlaneError::caused(format!("asking for the state of interface {name}"), error);
    if let Some(foreign) = netlink::attached(index).map_err(asking)? {
        return Err(occupied(name, foreign));
    }
    let modes: &[(XdpMode, &str)] = match mode {
        config::XdpMode::Auto => &[(XdpMode::Driver, "native"), (XdpMode::Skb, "generic")],
        config::XdpMode::Native => &[(XdpMode::Driver, "native")],
        config::XdpMode::Generic => &[(XdpMode::Skb, "generic")],
    };
    let mut refusal = None;
    for (mode, mode_name) in modes {
        match try_attach(program, index, *mode) {
            Ok(link) => {
                if let Some(refusal) = refusal {
                    tracing::warn!(
                        interface = name,
                        error = %PlaneError::chain(&refusal),
                        "no native XDP on this interface; generic XDP is slower"
                    );
                }
                return keep(link, pin);
            }
            Err(error) => {
                // Somebody was quicker, or is in the other mode.
                if matches!(os_error(&*error), Some(Errno::BUSY | Errno::EXIST))
                    && let Some(foreign) = netlink::attached(index).map_err(asking)?
                {
                    return Err(occupied(name, foreign));
                }
                let hint = match *mode_name {
                    "native" => "; `xdp.mode = \"generic\"` works on every interface",
                    _ => "",
                };
                let context = format!("attaching the XDP program to {name} in {mode_name} mode{hint}");
                refusal.get_or_insert_with(|| PlaneError::caused(context, error));
            }
        }
    }
    Err(refusal.unwrap_or_else(|| PlaneError::new("no XDP mode to try")))
}

fn try_attach(
    program: &mut Xdp,
    index: u32,
    mode: XdpMode,
) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
    let id = program.attach_to_if_index(index, mode)?;
    let link = program.take_link(id)?;
    // Without a link of its own the program could not be pinned: aya then attached it by netlink, and dropping detaches.
    FdLink::try_from(link).map_err(|_| "the kernel has no BPF links for XDP; Linux 5.9 or later is needed".into())
}

fn keep(link: FdLink, pin: &Path) -> Result<OwnedFd, PlaneError> {
    let context = || format!("pinning the attachment {}", pin.display());
    let pinned = link.pin(pin).map_err(|error| PlaneError::caused(context(), error))?;
    let link = user::object(pin).map_err(|error| PlaneError::caused(context(), error))?;
    drop(pinned);
    Ok(link)
}

/// One system call: every packet is judged by the old program or by the new one.
fn replace_program(program: &mut Xdp, pin: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(pin)?))?;
    let id = program.attach_to_link(link)?;
    // The pin keeps it; ours is the descriptor of the pin.
    drop(program.take_link(id)?);
    Ok(())
}

fn find(pins: &Pins) -> Result<Vec<Found>, PlaneError> {
    pins.pinned_links()?
        .into_iter()
        .map(|(_, path)| {
            let context = |error| PlaneError::caused(format!("opening the pinned link {}", path.display()), error);
            let link = user::object(&path).map_err(context)?;
            let at = user::Link::of(link.as_fd()).map_err(context)?;
            Ok(Found { path: path.clone(), link, at })
        })
        .collect()
}

/// The link that is on the interface.
fn position(found: &[Found], index: u32) -> io::Result<Option<usize>> {
    for (position, found) in found.iter().enumerate() {
        if attached_by(&found.at, index)?.is_some() {
            return Ok(Some(position));
        }
    }
    Ok(None)
}

/// What a link has put on the interface. The same index is not enough: pins outlive network namespaces, and each of
/// these counts its interfaces from one.
fn attached_by(link: &user::Link, index: u32) -> io::Result<Option<netlink::Attached>> {
    if link.interface != Some(index) {
        return Ok(None);
    }
    // Where a card runs a program of its own beside ours, there is no single id.
    let is_ours = |attached: &netlink::Attached| attached.program_id == link.program_id || attached.mode == Mode::Other;
    Ok(netlink::attached(index)?.filter(is_ours))
}

fn repin(link: &OwnedFd, pin: &Path) -> Result<(), PlaneError> {
    pins::remove(pin)?;
    user::pin(link.as_fd(), pin).map_err(|error| PlaneError::caused(format!("pinning {}", pin.display()), error))
}

fn detach(link: &OwnedFd) -> Result<(), PlaneError> {
    user::detach(link.as_fd()).map_err(|error| PlaneError::caused("detaching an XDP program", error))
}

fn occupied(name: &str, foreign: netlink::Attached) -> PlaneError {
    let (id, mode) = (foreign.program_id, foreign.mode.as_str());
    PlaneError::new(format!(
        "another XDP program (id {id}, {mode}) is on {name} and is left alone; `bpftool prog show id {id}` tells what \
         it is, and when it is detached mc-proxy attaches by itself"
    ))
}

fn os_error(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Option<Errno> {
    match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::SyscallError(error)) => error.io_error.raw_os_error().map(Errno::from_raw_os_error),
        _ => None,
    }
}
