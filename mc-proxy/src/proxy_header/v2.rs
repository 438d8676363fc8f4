//! Version 2: binary (PROXY §2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Endpoints, Header, HeaderError, Progress, Tlvs, Transport, UNIX_PATH, crc32c::crc32c};

/// The longest header that is read, in bytes. The specification has no limit below 64 KiB; this is where HAProxy with its
/// default `tune.bufsize` stops too.
pub const MAX_V2: usize = 16 * 1024;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED: usize = SIGNATURE.len() + 4;

const VERSION: u8 = 0x20;
const LOCAL: u8 = 0x0;
const PROXY: u8 = 0x1;

const UNSPECIFIED: u8 = 0x00;
const INET: u8 = 0x10;
const INET6: u8 = 0x20;
const UNIX: u8 = 0x30;
const STREAM: u8 = 0x1;
const DATAGRAM: u8 = 0x2;

/// A header that cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header would be longer than {MAX_V2} bytes")]
pub struct WriteError;

pub(super) fn parse(bytes: &[u8]) -> Result<Progress, HeaderError> {
    let signature = bytes.get(..SIGNATURE.len()).unwrap_or(bytes);
    if !SIGNATURE.starts_with(signature) {
        return Err(HeaderError::Missing);
    }
    let mut rest = bytes.iter().skip(SIGNATURE.len());
    let Some(version_command) = rest.next() else { return Ok(Progress::Incomplete(FIXED - bytes.len())) };
    if version_command & 0xf0 != VERSION {
        return Err(HeaderError::V2Version);
    }
    let is_local = match version_command & 0x0f {
        LOCAL => true,
        PROXY => false,
        _ => return Err(HeaderError::V2Command),
    };
    let Some(family) = rest.next() else { return Ok(Progress::Incomplete(FIXED - bytes.len())) };
    // "Discard the protocol block including the family which is ignored."
    let shape = if is_local { Shape::Opaque } else { Shape::of(*family).ok_or(HeaderError::V2Family)? };
    let (Some(high), Some(low)) = (rest.next(), rest.next()) else {
        return Ok(Progress::Incomplete(FIXED - bytes.len()));
    };
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    if len < shape.len() {
        return Err(HeaderError::V2TooShort);
    }
    let consumed = FIXED + len;
    if consumed > MAX_V2 {
        return Err(HeaderError::V2TooLong);
    }
    let Some(whole) = bytes.get(..consumed) else { return Ok(Progress::Incomplete(consumed - bytes.len())) };
    let block = whole.get(FIXED..).unwrap_or_default();
    let header = match shape.read(block) {
        Some((endpoints, tlvs)) => Header { endpoints, tlvs: Tlvs::parse(tlvs, whole)? },
        None if is_local => Header { endpoints: Endpoints::Local, tlvs: Tlvs::default() },
        None => {
            Tlvs::check(block, whole)?;
            Header { endpoints: Endpoints::Unknown, tlvs: Tlvs::default() }
        }
    };
    Ok(Progress::Complete { header, consumed })
}

/// The header, always with its checksum. `LOCAL` and unknown endpoints are written without TLVs, since no receiver may
/// use them. An [`Endpoints::Inet`] of two families is written as unknown; [`Header::forwarded`] makes none.
///
/// # Errors
/// When it would be longer than [`MAX_V2`].
pub fn write(header: &Header) -> Result<Vec<u8>, WriteError> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(SIGNATURE);
    let is_local = header.endpoints == Endpoints::Local;
    bytes.push(VERSION | if is_local { LOCAL } else { PROXY });
    let has_block = write_endpoints(&header.endpoints, &mut bytes);
    if has_block {
        let checksum = header.tlvs.write(&mut bytes);
        let len = u16::try_from(bytes.len() - FIXED).ok().filter(|_| bytes.len() <= MAX_V2).ok_or(WriteError)?;
        put(&mut bytes, FIXED - 2, &len.to_be_bytes());
        let crc = crc32c(&[&bytes]);
        put(&mut bytes, checksum, &crc.to_be_bytes());
    }
    Ok(bytes)
}

/// Family, a length of zero, and addresses; whether there are any.
fn write_endpoints(endpoints: &Endpoints, bytes: &mut Vec<u8>) -> bool {
    let family = |family, transport: &Transport| match transport {
        Transport::Stream => family | STREAM,
        Transport::Datagram => family | DATAGRAM,
    };
    match endpoints {
        Endpoints::Inet { transport, source: SocketAddr::V4(source), destination: SocketAddr::V4(destination) } => {
            bytes.extend([family(INET, transport), 0, 0]);
            bytes.extend(source.ip().octets());
            bytes.extend(destination.ip().octets());
            bytes.extend([source.port().to_be_bytes(), destination.port().to_be_bytes()].as_flattened());
            true
        }
        Endpoints::Inet { transport, source: SocketAddr::V6(source), destination: SocketAddr::V6(destination) } => {
            bytes.extend([family(INET6, transport), 0, 0]);
            bytes.extend(source.ip().octets());
            bytes.extend(destination.ip().octets());
            bytes.extend([source.port().to_be_bytes(), destination.port().to_be_bytes()].as_flattened());
            true
        }
        Endpoints::Unix { transport, paths } => {
            bytes.extend([family(UNIX, transport), 0, 0]);
            bytes.extend(paths.as_flattened());
            true
        }
        Endpoints::Inet { .. } | Endpoints::Local | Endpoints::Unknown => {
            bytes.extend([UNSPECIFIED, 0, 0]);
            false
        }
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(value) {
        *to = *from;
    }
}

/// What the block behind the fixed part is made of.
#[derive(Clone, Copy)]
enum Shape {
    /// Nothing that may be used.
    Opaque,
    Inet(Transport),
    Inet6(Transport),
    Unix(Transport),
}

impl Shape {
    fn of(family: u8) -> Option<Self> {
        let transport = match family & 0x0f {
            _ if family == UNSPECIFIED => return Some(Self::Opaque),
            STREAM => Transport::Stream,
            DATAGRAM => Transport::Datagram,
            _ => return None,
        };
        match family & 0xf0 {
            INET => Some(Self::Inet(transport)),
            INET6 => Some(Self::Inet6(transport)),
            UNIX => Some(Self::Unix(transport)),
            _ => None,
        }
    }

    /// Bytes of its addresses.
    fn len(self) -> usize {
        match self {
            Self::Opaque => 0,
            Self::Inet(_) => 2 * (4 + 2),
            Self::Inet6(_) => 2 * (16 + 2),
            Self::Unix(_) => 2 * UNIX_PATH,
        }
    }

    /// The addresses, and what is behind them.
    fn read(self, block: &[u8]) -> Option<(Endpoints, &[u8])> {
        match self {
            Self::Opaque => None,
            Self::Inet(transport) => inet::<4>(block, transport, |octets| Ipv4Addr::from(octets).into()),
            Self::Inet6(transport) => inet::<16>(block, transport, |octets| Ipv6Addr::from(octets).into()),
            Self::Unix(transport) => {
                let (source, rest) = block.split_first_chunk()?;
                let (destination, rest) = rest.split_first_chunk()?;
                Some((Endpoints::Unix { transport, paths: Box::new([*source, *destination]) }, rest))
            }
        }
    }
}

fn inet<const LEN: usize>(
    block: &[u8],
    transport: Transport,
    ip: impl Fn([u8; LEN]) -> IpAddr,
) -> Option<(Endpoints, &[u8])> {
    let (from, rest) = block.split_first_chunk()?;
    let (to, rest) = rest.split_first_chunk()?;
    let (from_port, rest) = rest.split_first_chunk()?;
    let (to_port, rest) = rest.split_first_chunk()?;
    let source = SocketAddr::new(ip(*from), u16::from_be_bytes(*from_port));
    let destination = SocketAddr::new(ip(*to), u16::from_be_bytes(*to_port));
    Some((Endpoints::Inet { transport, source, destination }, rest))
}
