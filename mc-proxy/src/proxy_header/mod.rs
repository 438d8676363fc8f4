//! The PROXY protocol, versions 1 and 2: the header that a proxy puts before the first byte of a connection to tell whom
//! it is from. Pure. Sections are those of HAProxy's `proxy-protocol.txt` (written `PROXY §2.1`).
//!
//! The reader takes what the specification allows and refuses everything else as soon as it is known, since whoever can
//! write a header chooses the address that is judged. Where it leaves a choice to the receiver:
//!
//! * `LOCAL`, `UNKNOWN` and unspecified families are taken; all that the header says beyond that is ignored.
//! * A checksum (`CRC32C`) is verified wherever it is present, but with `LOCAL`, where nothing may be looked at.
//! * A host name (`AUTHORITY`) that is not UTF-8 is treated as absent.
//! * What is behind the addresses has to be TLVs to the last byte; those of types that are used may come once. Others
//!   are skipped, whatever their value.
//! * A v2 header of more than [`MAX_V2`] bytes is refused, as HAProxy does with its default buffer.
//!
//! Whether a header is expected, and from whom, is not decided here: see `conn::identify`.

mod crc32c;
mod tlv;
mod v1;
mod v2;

use std::net::SocketAddr;

pub use tlv::{MAX_TLVS, MAX_UNIQUE_ID, Ssl, Tlvs};
pub use v1::{MAX_V1, write as write_v1};
pub use v2::{MAX_V2, WriteError, write as write_v2};

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who speaks with whom.
    pub endpoints: Endpoints,
    /// What else is told of the connection (v2 only).
    pub tlvs: Tlvs,
}

/// The ends of the connection on whose behalf the header was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// The proxy speaks for itself, as in a health check (v2 `LOCAL`).
    Local,
    /// Not told (v1 `UNKNOWN`, v2 `UNSPEC`).
    Unknown,
    /// Internet addresses of one family: exactly as they came, an IPv4-mapped one is not folded.
    Inet {
        /// `Stream` in v1.
        transport: Transport,
        /// The client.
        source: SocketAddr,
        /// What the client connected to.
        destination: SocketAddr,
    },
    /// Paths of Unix sockets (v2 only).
    Unix {
        /// Of the sockets.
        transport: Transport,
        /// Of source and destination, padded with NUL.
        paths: Box<[[u8; UNIX_PATH]; 2]>,
    },
}

/// What kind of connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, or a Unix stream.
    Stream,
    /// UDP, or Unix datagrams.
    Datagram,
}

/// What is known of a header after some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// As far as it goes, it is one; at least this many bytes are missing (1 or more, never more than are).
    Incomplete(usize),
    /// A header; what comes after its bytes is the client's.
    Complete {
        /// What it says.
        header: Header,
        /// Its bytes.
        consumed: usize,
    },
    /// Not a header, whatever follows.
    Invalid(HeaderError),
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It begins neither like version 1 nor like version 2.
    #[error("no PROXY header")]
    Missing,
    /// PROXY §2.1: protocol word, separators or the end of the line.
    #[error("v1: not a line as specified")]
    V1Line,
    /// No end of the line within [`MAX_V1`] bytes.
    #[error("v1: longer than {MAX_V1} bytes")]
    V1TooLong,
    /// Not an address of the family that was announced.
    #[error("v1: not an address")]
    V1Address,
    /// Not 0–65535 in decimal without sign and leading zeros.
    #[error("v1: not a port")]
    V1Port,
    /// The upper half of the 13th byte is not 2.
    #[error("v2: unknown version")]
    V2Version,
    /// Neither `LOCAL` nor `PROXY`.
    #[error("v2: unknown command")]
    V2Command,
    /// A combination of family and transport that is not in the list of PROXY §2.2.
    #[error("v2: unknown address family or transport")]
    V2Family,
    /// Too short for the addresses of its family.
    #[error("v2: too short for its addresses")]
    V2TooShort,
    /// Longer than [`MAX_V2`].
    #[error("v2: longer than {MAX_V2} bytes")]
    V2TooLong,
    /// The lengths of the TLVs do not add up to the header's.
    #[error("v2: TLVs do not end with the header")]
    TlvFraming,
    /// A TLV that may come once came twice.
    #[error("v2: a TLV is repeated")]
    TlvRepeated,
    /// More TLVs than [`MAX_TLVS`].
    #[error("v2: more than {MAX_TLVS} TLVs")]
    TlvTooMany,
    /// A value that its type does not allow.
    #[error("v2: a TLV has a value that its type does not allow")]
    TlvValue,
    /// The checksum is not that of the header.
    #[error("v2: wrong checksum")]
    Checksum,
}

/// Bytes of a Unix path in a header.
pub const UNIX_PATH: usize = 108;

/// Reads the header that `bytes` begin with: everything received on the connection so far. The answer to more bytes is the
/// same once it was not `Incomplete`.
pub fn parse(bytes: &[u8]) -> Progress {
    let progress = match bytes.first() {
        None => Ok(Progress::Incomplete(v1::SHORTEST)),
        Some(b'P') => v1::parse(bytes),
        Some(b'\r') => v2::parse(bytes),
        Some(_) => Err(HeaderError::Missing),
    };
    progress.unwrap_or_else(Progress::Invalid)
}

impl Header {
    /// A header on behalf of a TCP connection. IPv4-mapped addresses are folded; if the families then differ, the IPv4 one
    /// is mapped, as HAProxy does, so that both can be told.
    pub fn forwarded(source: SocketAddr, destination: SocketAddr) -> Self {
        let [source, destination] =
            [source, destination].map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()));
        let (source, destination) = match (source, destination) {
            (SocketAddr::V4(v4), SocketAddr::V6(_)) => {
                (SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()), destination)
            }
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
                (source, SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()))
            }
            (SocketAddr::V4(_), SocketAddr::V4(_)) | (SocketAddr::V6(_), SocketAddr::V6(_)) => (source, destination),
        };
        Self { endpoints: Endpoints::Inet { transport: Transport::Stream, source, destination }, tlvs: Tlvs::default() }
    }
}

impl HeaderError {
    /// Every error.
    pub const ALL: [Self; 15] = [
        Self::Missing,
        Self::V1Line,
        Self::V1TooLong,
        Self::V1Address,
        Self::V1Port,
        Self::V2Version,
        Self::V2Command,
        Self::V2Family,
        Self::V2TooShort,
        Self::V2TooLong,
        Self::TlvFraming,
        Self::TlvRepeated,
        Self::TlvTooMany,
        Self::TlvValue,
        Self::Checksum,
    ];

    /// The reason as counters and logs name it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "proxy_missing",
            Self::V1Line => "proxy_v1_line",
            Self::V1TooLong => "proxy_v1_too_long",
            Self::V1Address => "proxy_v1_address",
            Self::V1Port => "proxy_v1_port",
            Self::V2Version => "proxy_v2_version",
            Self::V2Command => "proxy_v2_command",
            Self::V2Family => "proxy_v2_family",
            Self::V2TooShort => "proxy_v2_too_short",
            Self::V2TooLong => "proxy_v2_too_long",
            Self::TlvFraming => "proxy_v2_tlv_framing",
            Self::TlvRepeated => "proxy_v2_tlv_repeated",
            Self::TlvTooMany => "proxy_v2_tlv_too_many",
            Self::TlvValue => "proxy_v2_tlv_value",
            Self::Checksum => "proxy_v2_checksum",
        }
    }
}
