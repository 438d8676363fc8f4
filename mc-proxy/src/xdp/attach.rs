//! The program on one interface.
//!
//! Each attachment is a BPF link that is pinned, so it outlives the daemon. A start takes such a link over, and a new
//! generation keeps it: its program is replaced in one step. Only what cannot be taken over is attached anew.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use mc_proxy_common::user::{self, XdpMode};
use rustix::io::Errno;

use super::{
    InterfaceStatus, Obstacle, PlaneError,
    netlink::{self, Mode},
    pins::{self, Pins},
    survey,
};
use crate::config;

/// A loaded program.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) fd: OwnedFd,
    pub(super) id: u32,
    /// Whether it takes frames of more than one buffer, as drivers have them for large MTUs.
    pub(super) has_frags: bool,
}

/// What is the same for all interfaces.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) mode: config::XdpMode,
    pub(super) pins: Pins,
}

/// One of `xdp.interfaces`.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) name: String,
    link: Option<OwnedFd>,
    // Where the link was found at start.
    pinned_at: Option<PathBuf>,
    is_adopted: bool,
    trouble: Option<PlaneError>,
    // Why native mode was refused where generic mode is what there is.
    native_refusal: Option<PlaneError>,
}

/// A pinned link.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    link: OwnedFd,
    at: user::Link,
}

impl Terms {
    /// The modes to try, in this order.
    fn modes(&self) -> &'static [XdpMode] {
        match self.mode {
            config::XdpMode::Auto => &[XdpMode::Native, XdpMode::Generic],
            config::XdpMode::Native => &[XdpMode::Native],
            config::XdpMode::Generic => &[XdpMode::Generic],
        }
    }
}

impl Attachment {
    /// Of an interface that has no program of ours, or the one of `found`.
    pub(super) fn new(name: &str, found: Option<Found>) -> Self {
        Self {
            name: name.to_owned(),
            is_adopted: found.is_some(),
            pinned_at: found.as_ref().map(|found| found.path.clone()),
            link: found.map(|found| found.link),
            trouble: None,
            native_refusal: None,
        }
    }

    /// Whether there is a link, which may have lost its interface.
    pub(super) fn has_link(&self) -> bool {
        self.link.is_some()
    }

    /// Whether the program was found in force at start.
    pub(super) fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    /// What is wrong; `None` when the program is in force.
    pub(super) fn trouble(&self) -> Option<&PlaneError> {
        self.trouble.as_ref()
    }

    /// Replaces the program of the link: `Ok(false)` when there is no link, or it has lost its interface.
    pub(super) fn replace(&self, program: &Program) -> Result<bool, PlaneError> {
        let Some(link) = &self.link else { return Ok(false) };
        match user::replace(link.as_fd(), program.fd.as_fd()) {
            Ok(()) => Ok(true),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOLINK) => Ok(false),
            Err(error) => {
                let context = format!("replacing the XDP program on {}; the earlier one goes on", self.name);
                Err(PlaneError::caused(context, error))
            }
        }
    }

    /// At start: takes the link over that was found, in the mode that is now asked for, or attaches.
    pub(super) fn take_over(&mut self, program: &Program, terms: &Terms) {
        let result = self.try_take_over(program, terms);
        match &result {
            Ok(()) => tracing::info!(interface = self.name, adopted = self.is_adopted, "XDP program attached"),
            Err(error) => {
                let error = error.chain();
                tracing::warn!(interface = self.name, error, "no XDP program on an interface, or an earlier one");
            }
        }
        self.trouble = result.err();
    }

    /// Sees to it that the program is attached to the interface that now has the name, and pinned; `true` if it was not.
    pub(super) fn ensure(&mut self, program: &Program, terms: &Terms) -> Result<bool, &PlaneError> {
        match self.try_ensure(program, terms) {
            Ok(is_new) => {
                self.trouble = None;
                Ok(is_new)
            }
            Err(error) => Err(self.trouble.insert(error)),
        }
    }

    /// Takes the program off the interface, and the pin away.
    pub(super) fn remove(&mut self, pins: &Pins) -> Result<(), PlaneError> {
        pins::remove(&pins.link(&self.name))?;
        self.link.take().map_or(Ok(()), |link| detach(&link))
    }

    /// Asks the kernel.
    pub(super) fn status(&self) -> InterfaceStatus {
        let mut status = match &self.trouble {
            Some(error) => InterfaceStatus::without(&self.name, error),
            None => InterfaceStatus { name: self.name.clone(), ..InterfaceStatus::default() },
        };
        if let Err(error) = self.ask(&mut status) {
            status.error = error.chain();
            status.obstacle = Some(error.obstacle());
        }
        status
    }

    fn ask(&self, status: &mut InterfaceStatus) -> Result<(), PlaneError> {
        let Some(index) = netlink::index(&self.name).map_err(|error| self.asking(error))? else {
            return Err(no_interface(&self.name));
        };
        let interface = netlink::interface(index).map_err(|error| self.asking(error))?;
        status.mtu = interface.mtu;
        status.driver = survey::driver(&self.name, &interface);
        let at = match &self.link {
            Some(link) => Some(user::Link::of(link.as_fd()).map_err(|error| self.asking(error))?),
            None => None,
        };
        match (interface.attached, at) {
            (Some(attached), Some(at)) if is_by(&at, index, attached) => {
                status.mode = attached.mode.as_str();
                status.program_id = attached.program_id;
                status.is_adopted = self.is_adopted;
                if let Some(refusal) = &self.native_refusal
                    && attached.mode == Mode::Generic
                {
                    status.note = refusal.chain();
                    status.obstacle.get_or_insert_with(|| refusal.obstacle());
                }
                Ok(())
            }
            (Some(attached), _) => {
                status.foreign_program_id = attached.program_id;
                Err(occupied(&self.name, attached))
            }
            (None, _) if status.error.is_empty() => {
                Err(PlaneError::new(format!("the program was detached from {}; it is attached again", self.name)))
            }
            (None, _) => Ok(()),
        }
    }

    fn try_take_over(&mut self, program: &Program, terms: &Terms) -> Result<(), PlaneError> {
        if self.link.is_none() {
            return self.try_ensure(program, terms).map(drop);
        }
        let index = self.index()?;
        let attached = netlink::attached(index).map_err(|error| self.asking(error))?;
        let is_other_mode = matches!(
            (terms.mode, attached.map(|attached| attached.mode)),
            (config::XdpMode::Native, Some(Mode::Generic)) | (config::XdpMode::Generic, Some(Mode::Native))
        );
        if is_other_mode {
            return self.change_mode(program, terms, index);
        }
        if !self.replace(program)? {
            return self.try_ensure(program, terms).map(drop);
        }
        if terms.mode == config::XdpMode::Auto && attached.is_some_and(|attached| attached.mode == Mode::Generic) {
            let context = "taken over from an earlier start in generic mode, which a link keeps for life; with `xdp.mode = \
                           \"native\"` a restart tries native mode, for which the interface is without a program for a moment";
            self.native_refusal = Some(PlaneError::new(context).because(Obstacle::NoNative));
        }
        // The interface may have had another name when the link was pinned; that pin is removed when all have theirs.
        let pin = terms.pins.link(&self.name);
        match &self.link {
            Some(link) if self.pinned_at.as_ref() != Some(&pin) => repin(link, &pin),
            _ => Ok(()),
        }
    }

    /// A link keeps its mode for life, and the kernel refuses both modes at once: between the two there is a moment
    /// without a program, in which only user space refuses. When the new mode cannot be had the old one comes back.
    fn change_mode(&mut self, program: &Program, terms: &Terms, index: u32) -> Result<(), PlaneError> {
        tracing::warn!(interface = self.name, "xdp.mode has changed: the program is detached and attached again");
        self.remove(&terms.pins)?;
        self.is_adopted = false;
        let Err(error) = self.attach(program, terms, index) else { return Ok(()) };
        let before =
            if terms.mode == config::XdpMode::Native { config::XdpMode::Generic } else { config::XdpMode::Native };
        self.attach(program, &Terms { mode: before, ..terms.clone() }, index)?;
        self.is_adopted = true;
        Err(error)
    }

    fn try_ensure(&mut self, program: &Program, terms: &Terms) -> Result<bool, PlaneError> {
        let index = self.index()?;
        let pin = terms.pins.link(&self.name);
        if let Some(link) = &self.link {
            let at = user::Link::of(link.as_fd()).map_err(|error| self.asking(error))?;
            let attached = netlink::attached(index).map_err(|error| self.asking(error))?;
            if attached.is_some_and(|attached| is_by(&at, index, attached)) {
                if at.program_id != program.id {
                    self.replace(program)?;
                }
                if !pin.exists() {
                    terms.pins.make_links()?;
                    repin(link, &pin)?;
                }
                return Ok(false);
            }
            // The link died with its interface, was detached by force, or its interface has another name now.
            if at.interface.is_some() {
                detach(link)?;
            }
        }
        self.link = None;
        self.is_adopted = false;
        self.attach(program, terms, index)?;
        Ok(true)
    }

    /// A new link, pinned.
    fn attach(&mut self, program: &Program, terms: &Terms, index: u32) -> Result<(), PlaneError> {
        let interface = netlink::interface(index).map_err(|error| self.asking(error))?;
        if let Some(foreign) = interface.attached {
            return Err(occupied(&self.name, foreign));
        }
        terms.pins.make_links()?;
        let mut refusal = None;
        for mode in terms.modes() {
            match user::attach(program.fd.as_fd(), index, *mode) {
                Ok(link) => {
                    repin(&link, &terms.pins.link(&self.name))?;
                    if let Some(refusal) = &refusal {
                        let error = PlaneError::chain(refusal);
                        tracing::warn!(interface = self.name, error, "generic XDP, which is slower");
                    }
                    (self.link, self.native_refusal) = (Some(link), refusal);
                    return Ok(());
                }
                Err(error) => {
                    // Somebody was quicker, or is in the other mode.
                    if matches!(Errno::from_io_error(&error), Some(Errno::BUSY | Errno::EXIST))
                        && let Some(foreign) = netlink::attached(index).map_err(|error| self.asking(error))?
                    {
                        return Err(occupied(&self.name, foreign));
                    }
                    let refused = survey::Refused { name: &self.name, interface: &interface, mode: *mode };
                    let error = refused.explain(program.has_frags, error);
                    refusal.get_or_insert(error);
                }
            }
        }
        Err(refusal.unwrap_or_else(|| PlaneError::new("no XDP mode to try")))
    }

    fn index(&self) -> Result<u32, PlaneError> {
        netlink::index(&self.name).map_err(|error| self.asking(error))?.ok_or_else(|| no_interface(&self.name))
    }

    fn asking(&self, error: io::Error) -> PlaneError {
        asking(&self.name, error)
    }
}

/// All pinned links.
pub(super) fn find(pins: &Pins) -> Result<Vec<Found>, PlaneError> {
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

/// The link, of those found, that is on the interface with this name.
pub(super) fn position(found: &[Found], name: &str) -> Result<Option<usize>, PlaneError> {
    let asking = |error| asking(name, error);
    let Some(index) = netlink::index(name).map_err(asking)? else { return Ok(None) };
    let Some(attached) = netlink::attached(index).map_err(asking)? else { return Ok(None) };
    Ok(found.iter().position(|found| is_by(&found.at, index, attached)))
}

impl Found {
    /// Takes the program off its interface, if it is on one.
    pub(super) fn detach(&self) -> Result<(), PlaneError> {
        if self.at.interface.is_some() { detach(&self.link) } else { Ok(()) }
    }
}

/// Whether a link has put a program on the interface. The same index is not enough: pins outlive network namespaces, and
/// each of these counts its interfaces from one.
fn is_by(link: &user::Link, index: u32, attached: netlink::Attached) -> bool {
    // Where a card runs a program of its own beside ours, there is no single id.
    link.interface == Some(index) && (attached.program_id == link.program_id || attached.mode == Mode::Other)
}

fn repin(link: &OwnedFd, pin: &std::path::Path) -> Result<(), PlaneError> {
    pins::remove(pin)?;
    user::pin(link.as_fd(), pin).map_err(|error| PlaneError::caused(format!("pinning {}", pin.display()), error))
}

fn detach(link: &OwnedFd) -> Result<(), PlaneError> {
    user::detach(link.as_fd()).map_err(|error| PlaneError::caused("detaching an XDP program", error))
}

pub(super) fn no_interface(name: &str) -> PlaneError {
    PlaneError::new(format!("interface {name} does not exist")).because(Obstacle::NoInterface)
}

pub(super) fn occupied(name: &str, foreign: netlink::Attached) -> PlaneError {
    let (id, mode) = (foreign.program_id, foreign.mode.as_str());
    PlaneError::new(format!(
        "another XDP program (id {id}, {mode}) is on {name} and is left alone; `bpftool prog show id {id}` tells what \
         it is, and when it is detached mc-proxy attaches by itself"
    ))
    .because(Obstacle::ForeignProgram)
}

fn asking(name: &str, error: io::Error) -> PlaneError {
    PlaneError::caused(format!("asking for the state of interface {name}"), error)
}
