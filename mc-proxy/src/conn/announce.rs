//! What the backend is told of the client before the client's first byte: the PROXY header of routes that send one.

use std::{net::SocketAddr, sync::Arc};

use rustix::{
    net::{SocketAddrAny, getsockname},
    rand::{GetRandomFlags, getrandom},
};

use super::{record::Record, shared::Shared};
use crate::{
    desired::ProxyVersion,
    net::socket::Socket,
    proxy_header::{Header, Tlvs, write_v1, write_v2},
};

/// What headers tell of one connection.
#[derive(Debug)]
pub struct Announced {
    source: SocketAddr,
    destination: SocketAddr,
    authority: Option<Box<str>>,
    alpn: Option<Box<[u8]>>,
    shared: Arc<Shared>,
}

impl Announced {
    /// Of a client whose hello has been read.
    pub(super) fn new(client: &Socket, record: &mut Record) -> Self {
        // Of a TCP socket that was accepted there is always a name; were there none, the listener's would be the next best.
        let listener = record.permit().listener().addr.socket();
        let destination = record.destination.or_else(|| local(client)).unwrap_or(listener);
        let shared = Arc::clone(record.shared());
        let told = record.told.as_deref();
        let authority = match &record.server_name {
            Some(name) => Some(name.as_str().into()),
            None => told.and_then(|told| told.authority.clone()),
        };
        // What will be chosen of several is for the backend to say.
        let alpn = told.and_then(|told| told.alpn.clone()).or_else(|| record.alpn.only().map(Into::into));
        Self { source: record.client.socket(), destination, authority, alpn, shared }
    }

    /// The header for a connection to a backend.
    pub fn header(&self, version: ProxyVersion) -> Vec<u8> {
        let header = Header::forwarded(self.source, self.destination);
        match version {
            ProxyVersion::V1 => write_v1(&header.endpoints),
            ProxyVersion::V2 => {
                let unique_id = Some(self.shared.unique_id().into());
                let tlvs =
                    Tlvs { alpn: self.alpn.clone(), authority: self.authority.clone(), unique_id, ..Tlvs::default() };
                // Too long it can only be for what a sender told; the addresses always fit.
                write_v2(&Header { tlvs, ..header.clone() })
                    .or_else(|_| write_v2(&header))
                    .expect("addresses alone are short")
            }
        }
    }
}

/// A name for a connection that no other has: 128 random bits in hexadecimal.
pub(super) fn unique_id() -> Box<[u8]> {
    let mut random = [0; 16];
    // Only a kernel that is still starting has none; the name is then not unique, and nothing depends on it.
    if let Err(error) = getrandom(&mut random, GetRandomFlags::NONBLOCK) {
        tracing::debug!(%error, "no random bytes for a connection's id");
    }
    format!("{:032x}", u128::from_be_bytes(random)).into_bytes().into()
}

fn local(socket: &Socket) -> Option<SocketAddr> {
    let name: SocketAddrAny = getsockname(socket).ok()?;
    SocketAddr::try_from(name).ok()
}
