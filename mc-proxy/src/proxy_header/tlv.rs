//! What a version 2 header tells beside the addresses: types, lengths, values (PROXY §2.2.1–2.2.8).

use super::{HeaderError, crc32c::crc32c};

/// TLVs of a header, and of an SSL TLV: more are refused.
pub const MAX_TLVS: usize = 64;
/// The longest unique id, in bytes (PROXY §2.2.5).
pub const MAX_UNIQUE_ID: usize = 128;

const ALPN: u8 = 0x01;
const AUTHORITY: u8 = 0x02;
const CRC32C: u8 = 0x03;
const UNIQUE_ID: u8 = 0x05;
const SSL: u8 = 0x20;
const SSL_VERSION: u8 = 0x21;
const SSL_CN: u8 = 0x22;

/// Facts of the connection, as the sender has them; those that somebody here asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tlvs {
    /// The application protocol, as in RFC 7301.
    pub alpn: Option<Box<[u8]>>,
    /// The host name that the client asked for. UTF-8 (one that is not is absent); nothing more is known of it.
    pub authority: Option<Box<str>>,
    /// The sender's name for the connection, at most [`MAX_UNIQUE_ID`] opaque bytes.
    pub unique_id: Option<Box<[u8]>>,
    /// How the client's side is encrypted. Read only: nothing vouches for it on the way out.
    pub ssl: Option<Box<Ssl>>,
}

/// PROXY §2.2.6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ssl {
    /// Bits: 1 = over SSL, 2 = a certificate in this connection, 4 = one in the session.
    pub client: u8,
    /// Zero if the client's certificate was verified, or there is none.
    pub verify: u32,
    /// Such as `TLSv1.3`. ASCII.
    pub version: Option<Box<str>>,
    /// The common name of the client's certificate. It is meant to be UTF-8, but senders copy what the certificate has.
    pub common_name: Option<Box<[u8]>>,
}

impl Tlvs {
    /// Reads what is behind the addresses of `header`, which `bytes` are the end of.
    pub(super) fn parse(bytes: &[u8], header: &[u8]) -> Result<Self, HeaderError> {
        let mut tlvs = Self::default();
        let (mut is_checked, mut authority) = (false, None);
        for_each(bytes, |kind, value, rest| match kind {
            ALPN => once(&mut tlvs.alpn, value.into()),
            // Senders copy what the client said.
            AUTHORITY => once(&mut authority, utf8(value).ok()),
            CRC32C => {
                if std::mem::replace(&mut is_checked, true) {
                    return Err(HeaderError::TlvRepeated);
                }
                verify(header, value, rest)
            }
            UNIQUE_ID if value.len() > MAX_UNIQUE_ID => Err(HeaderError::TlvValue),
            UNIQUE_ID => once(&mut tlvs.unique_id, value.into()),
            SSL => once(&mut tlvs.ssl, Box::new(Ssl::parse(value)?)),
            _ => Ok(()),
        })?;
        tlvs.authority = authority.flatten();
        Ok(tlvs)
    }

    /// Verifies the checksum of a header whose block has no meaning beyond that; one that is not TLVs has none.
    pub(super) fn check(bytes: &[u8], header: &[u8]) -> Result<(), HeaderError> {
        if for_each(bytes, |_, _, _| Ok(())).is_err() {
            return Ok(());
        }
        for_each(bytes, |kind, value, rest| if kind == CRC32C { verify(header, value, rest) } else { Ok(()) })
    }

    /// Appends all of them but SSL, the checksum with a value of zero; where in `bytes` that is.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) -> usize {
        write(bytes, ALPN, self.alpn.as_deref());
        write(bytes, AUTHORITY, self.authority.as_deref().map(str::as_bytes));
        write(bytes, UNIQUE_ID, self.unique_id.as_deref());
        write(bytes, CRC32C, Some(&[0; 4]));
        bytes.len() - 4
    }
}

impl Ssl {
    fn parse(value: &[u8]) -> Result<Self, HeaderError> {
        let (client, rest) = value.split_first().ok_or(HeaderError::TlvValue)?;
        let (verify, rest) = rest.split_first_chunk().ok_or(HeaderError::TlvValue)?;
        let mut ssl = Self { client: *client, verify: u32::from_be_bytes(*verify), ..Self::default() };
        for_each(rest, |kind, value, _| match kind {
            SSL_VERSION => once(&mut ssl.version, ascii(value)?),
            SSL_CN => once(&mut ssl.common_name, value.into()),
            _ => Ok(()),
        })?;
        Ok(ssl)
    }

    /// Whether the client has shown a certificate, and the sender has verified it.
    pub fn is_verified(&self) -> bool {
        self.client & 6 != 0 && self.verify == 0
    }
}

/// Calls `each` with type, value and what is behind it.
fn for_each(
    mut bytes: &[u8],
    mut each: impl FnMut(u8, &[u8], &[u8]) -> Result<(), HeaderError>,
) -> Result<(), HeaderError> {
    let mut count = 0;
    while !bytes.is_empty() {
        let ([kind, high, low], rest) = bytes.split_first_chunk().ok_or(HeaderError::TlvFraming)?;
        let len = u16::from_be_bytes([*high, *low]).into();
        let (value, rest) = rest.split_at_checked(len).ok_or(HeaderError::TlvFraming)?;
        count += 1;
        if count > MAX_TLVS {
            return Err(HeaderError::TlvTooMany);
        }
        each(*kind, value, rest)?;
        bytes = rest;
    }
    Ok(())
}

/// Two of the same would leave it to the reader which to believe.
fn once<T>(place: &mut Option<T>, value: T) -> Result<(), HeaderError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(HeaderError::TlvRepeated),
    }
}

fn utf8(value: &[u8]) -> Result<Box<str>, HeaderError> {
    std::str::from_utf8(value).map(Into::into).map_err(|_| HeaderError::TlvValue)
}

fn ascii(value: &[u8]) -> Result<Box<str>, HeaderError> {
    if value.is_ascii() { utf8(value) } else { Err(HeaderError::TlvValue) }
}

/// The checksum is over the whole header with zeros in the place of the value, which `rest` follows.
fn verify(header: &[u8], value: &[u8], rest: &[u8]) -> Result<(), HeaderError> {
    let value: [u8; 4] = value.try_into().map_err(|_| HeaderError::TlvValue)?;
    let before = header.get(..header.len().saturating_sub(rest.len() + value.len())).unwrap_or_default();
    let is_right = crc32c(&[before, &[0; 4], rest]) == u32::from_be_bytes(value);
    if is_right { Ok(()) } else { Err(HeaderError::Checksum) }
}

/// Writes one; a value that is longer than a TLV can be makes the header too long, which its length then tells.
fn write(bytes: &mut Vec<u8>, kind: u8, value: Option<&[u8]>) {
    let Some(value) = value else { return };
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    bytes.push(kind);
    bytes.extend(len.to_be_bytes());
    bytes.extend_from_slice(value);
}
