//! What the kernel says of an interface, by rtnetlink; no right is needed to ask.

use std::io;

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
};

use crate::net::netlink;
pub(super) use crate::net::netlink::interface_name as name;

/// What the kernel says of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    /// Bytes.
    pub(super) mtu: u32,
    /// Kind of a virtual interface, such as `veth`; empty for hardware.
    pub(super) kind: String,
    pub(super) attached: Option<Attached>,
}

/// A program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) program_id: u32,
    pub(super) mode: Mode,
}

/// Where in the receive path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Native,
    Generic,
    Other,
}

impl Mode {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Other => "other",
        }
    }
}

/// Index of the interface with this name in the network namespace of the thread.
pub(super) fn index(name: &str) -> io::Result<Option<u32>> {
    match rustix::net::netdevice::name_to_index(&socket()?, name) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn socket() -> io::Result<std::os::fd::OwnedFd> {
    Ok(rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?)
}

/// The XDP program of an interface.
pub(super) fn attached(index: u32) -> io::Result<Option<Attached>> {
    interface(index).map(|interface| interface.attached)
}

/// All that is of interest here.
#[expect(clippy::wildcard_enum_match_arm, reason = "attributes that are of no interest, now and later")]
pub(super) fn interface(index: u32) -> io::Result<Interface> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let reply = netlink::ask(RouteNetlinkMessage::GetLink(link))?;
    let RouteNetlinkMessage::NewLink(link) = reply else {
        return Err(io::Error::other("the kernel answered a question about a link with something else"));
    };
    let mut interface = Interface::default();
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Xdp(xdp) => interface.attached = of_attributes(xdp),
            LinkAttribute::LinkInfo(info) => {
                let kind = info.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None });
                interface.kind = kind.map(ToString::to_string).unwrap_or_default();
            }
            _ => {}
        }
    }
    Ok(interface)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "attributes that are of no interest, now and later")]
fn of_attributes(attributes: &[LinkXdp]) -> Option<Attached> {
    let mut mode = None;
    let mut program_id = 0;
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(XdpAttached::Driver) => mode = Some(Mode::Native),
            LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Some(Mode::Generic),
            LinkXdp::Attached(XdpAttached::None) => {}
            LinkXdp::Attached(_) => mode = Some(Mode::Other),
            LinkXdp::ProgId(id) => program_id = *id,
            // With several programs on one interface there is no single id.
            LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) if program_id == 0 => {
                program_id = *id;
            }
            _ => {}
        }
    }
    Some(Attached { program_id, mode: mode? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_an_index_and_no_program() {
        let index = index("lo").unwrap().expect("every namespace has a loopback");
        assert_eq!(name(index).unwrap(), "lo");
        let interface = interface(index).unwrap();
        assert_eq!((interface.attached, interface.kind.as_str()), (None, ""));
        assert!(interface.mtu > 1500, "{interface:?}");
        assert_eq!(super::index("no-such-if0").unwrap(), None);
    }
}
