//! Questions to the kernel by rtnetlink (rtnetlink(7)). No right is needed to ask, and the kernel answers within the
//! call that asks.

use std::io;

use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// Asks about one thing.
///
/// # Errors
/// The kernel's, and when its answer is no message of rtnetlink.
pub(crate) fn ask(question: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
    let socket = send(question, NLM_F_REQUEST, false)?;
    let (bytes, _) = socket.recv_from_full()?;
    let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).map_err(io::Error::other)?;
    match reply.payload {
        NetlinkPayload::InnerMessage(message) => Ok(message),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        NetlinkPayload::Done(_) | NetlinkPayload::Noop | NetlinkPayload::Overrun(_) => Err(unexpected()),
        _ => Err(unexpected()),
    }
}

/// Asks for everything that fits the question, which the kernel takes for a filter (`NETLINK_GET_STRICT_CHK`, Linux
/// 4.20).
///
/// # Errors
/// As [`ask`].
pub(crate) fn list(question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    let socket = send(question, NLM_F_REQUEST | NLM_F_DUMP, true)?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            // Messages begin at multiples of four (netlink(7)).
            let length = usize::try_from(reply.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            match reply.payload {
                NetlinkPayload::InnerMessage(message) => found.push(message),
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(found),
                NetlinkPayload::Done(done) => return Err(io::Error::from_raw_os_error(done.code.saturating_abs())),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::Noop => {}
                NetlinkPayload::Overrun(_) => return Err(unexpected()),
                _ => return Err(unexpected()),
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

/// Name of the interface with this index in the network namespace of the thread.
///
/// # Errors
/// When there is none.
pub(crate) fn interface_name(index: u32) -> io::Result<String> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(rustix::net::netdevice::index_to_name(&socket, index)?)
}

fn send(question: RouteNetlinkMessage, flags: u16, is_strict: bool) -> io::Result<Socket> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    if is_strict {
        socket.set_netlink_get_strict_chk(true)?;
    }
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    Ok(socket)
}

fn unexpected() -> io::Error {
    io::Error::other("the kernel's answer is not a message of rtnetlink")
}
