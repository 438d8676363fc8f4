//! Reads the ClientHello at the start of a connection, without consuming it, and refuses what it cannot read whole.
//!
//! Framing comes first: the records (RFC 8446 §5.1) are walked as they arrive, until the handshake message that they
//! carry is there to its last byte. Only then is the message parsed, once. Every check is made as soon as the bytes
//! that it depends on are there, so the outcome does not depend on how the bytes were cut on their way.
//!
//! What TLS asks of a server and routing does not need is left to the backend: versions, ciphers, the contents of
//! extensions other than `server_name`, ALPN and `supported_versions`. A hello without `signature_algorithms`, or without extensions, is routed.

#![warn(clippy::indexing_slicing)]

use std::borrow::Cow;

use super::{AlpnOffer, ServerName, ServerNameError, TlsVersions, cursor::Cursor};

/// The largest ClientHello that is read, in bytes of handshake, its four-byte header included.
pub const MAX_HELLO: usize = 64 << 10;

/// How many records a ClientHello may be cut into: enough for [`MAX_HELLO`] in records of 16 bytes, or for 4 KiB in
/// records of one byte. Legal clients cut it into one to five.
pub const MAX_RECORDS: usize = 4096;

/// Within so many bytes of a connection the reader is no longer [`Progress::Incomplete`]: what the caller must be ready
/// to buffer.
pub const MAX_WIRE: usize = MAX_HELLO + MAX_RECORDS * RECORD_HEADER;

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
/// RFC 8446 §5.1, for a record that is not encrypted.
const MAX_RECORD: usize = 1 << 14;

const CONTENT_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_SUPPORTED_VERSIONS: u16 = 43;
const NAME_TYPE_HOST_NAME: u8 = 0;

/// Reads one ClientHello as its bytes arrive. It keeps positions and no bytes; an [`advance`](Self::advance) costs time
/// in proportion to the bytes that are new, and the one that completes the hello parses it.
#[derive(Clone, Debug, Default)]
pub struct ClientHelloReader {
    /// How many bytes of the connection are behind: record headers, and the fragments that follow them.
    position: usize,
    /// Records begun.
    records: usize,
    /// How many bytes of the current record's fragment are ahead.
    record_left: usize,
    /// How many bytes of handshake are behind.
    received: usize,
    /// The first bytes of handshake, `received` of them.
    header: [u8; HANDSHAKE_HEADER],
}

/// How far a [`ClientHelloReader`] has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    Incomplete,
    /// The hello has been read to its end. Bytes that follow it, such as early data, were not looked at.
    Complete(ClientHello),
    /// Not a hello that is routed, whatever follows.
    Invalid(HelloError),
}

/// What a hello says about where it wants to go, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The one `host_name` of the `server_name` extension (RFC 6066 §3); `None` if the hello is without the extension.
    pub server_name: Option<ServerName>,
    /// The names of the `application_layer_protocol_negotiation` extension.
    pub alpn: AlpnOffer,
    /// Of `supported_versions`, or the one that the hello begins with.
    pub versions: TlsVersions,
}

/// Why bytes are not a ClientHello that is routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HelloError {
    /// The first byte is not that of a handshake record: HTTP, SSH, noise.
    #[error("not TLS")]
    NotTls,
    /// The major version of a record is not 3.
    #[error("a TLS record with an unknown version")]
    RecordVersion,
    /// A record of another content type before the end of the hello.
    #[error("a TLS record of another type inside the ClientHello")]
    UnexpectedRecord,
    /// A handshake record without a byte of handshake (RFC 8446 §5.1 forbids it).
    #[error("an empty TLS record")]
    EmptyRecord,
    /// A record above 16 KiB.
    #[error("a TLS record longer than 16 KiB")]
    RecordTooLong,
    /// More than [`MAX_RECORDS`].
    #[error("a ClientHello in more than {MAX_RECORDS} TLS records")]
    TooManyRecords,
    /// A handshake message of another type.
    #[error("the first handshake message is not a ClientHello")]
    NotClientHello,
    /// More than [`MAX_HELLO`].
    #[error("a ClientHello longer than 64 KiB")]
    TooLong,
    /// The record goes on after the hello. There is nothing that a client may say before it has heard the server
    /// (RFC 8446 §5.1, RFC 5246 §7.3).
    #[error("more handshake bytes after the ClientHello in its record")]
    TrailingHandshake,
    /// Lengths inside the hello that contradict each other, or a field that is empty, odd or too long.
    #[error("a malformed ClientHello")]
    Malformed,
    /// A `server_name` extension that is not a list of names.
    #[error("a malformed server_name extension")]
    ServerNameMalformed,
    /// The extension twice.
    #[error("the server_name extension twice")]
    ServerNameRepeated,
    /// More than one name in the extension.
    #[error("more than one server name")]
    ServerNameMany,
    /// A name of a type other than `host_name`.
    #[error("a server name of an unknown type")]
    ServerNameType,
    /// An ALPN extension that is not a list of names, or a list without a name, or with an empty one.
    #[error("a malformed ALPN extension")]
    AlpnMalformed,
    /// The extension twice.
    #[error("the ALPN extension twice")]
    AlpnRepeated,
    /// A `supported_versions` extension that is not a list of versions.
    #[error("a malformed supported_versions extension")]
    VersionsMalformed,
    /// The extension twice.
    #[error("the supported_versions extension twice")]
    VersionsRepeated,
    /// A `host_name` that is not one.
    #[error("server name: {0}")]
    ServerName(#[from] ServerNameError),
}

impl ClientHelloReader {
    /// A reader at the start of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads on. `bytes` is everything received on the connection so far: the caller keeps the buffer and appends to it
    /// between calls. After `Complete` and `Invalid` the answer stays the same.
    pub fn advance(&mut self, bytes: &[u8]) -> Progress {
        match self.read(bytes) {
            Ok(None) => Progress::Incomplete,
            Ok(Some(hello)) => Progress::Complete(hello),
            Err(error) => Progress::Invalid(error),
        }
    }

    fn read(&mut self, wire: &[u8]) -> Result<Option<ClientHello>, HelloError> {
        let Some(len) = self.find_end(wire)? else { return Ok(None) };
        let message = joined_fragments(wire, len).ok_or(HelloError::Malformed)?;
        let body = message.get(HANDSHAKE_HEADER..).unwrap_or_default();
        parse_body(body).map(Some)
    }

    /// Walks the records; the length of the handshake message when its last byte is there.
    fn find_end(&mut self, wire: &[u8]) -> Result<Option<usize>, HelloError> {
        loop {
            let rest = wire.get(self.position..).unwrap_or_default();
            if self.record_left > 0 {
                let available = rest.len().min(self.record_left);
                self.note_header(rest)?;
                self.position += available;
                self.record_left -= available;
                self.received += available;
                if self.record_left > 0 {
                    return Ok(None);
                }
            }
            let len = self.message_len();
            if let Some(len) = len
                && self.received == len
            {
                return Ok(Some(len));
            }

            let rest = wire.get(self.position..).unwrap_or_default();
            let is_first = self.records == 0;
            let Some(record_len) = read_record_header(rest, is_first)? else { return Ok(None) };
            if self.records == MAX_RECORDS {
                return Err(HelloError::TooManyRecords);
            }
            if len.is_some_and(|len| self.received + record_len > len) {
                return Err(HelloError::TrailingHandshake);
            }
            self.records += 1;
            self.position += RECORD_HEADER;
            self.record_left = record_len;
        }
    }

    /// Takes what is still wanted of the handshake header from the front of `rest`, and judges it.
    fn note_header(&mut self, rest: &[u8]) -> Result<(), HelloError> {
        let known = self.received;
        let wanted = self.header.iter_mut().skip(known);
        let fragment = rest.iter().take(self.record_left);
        let mut end = known;
        for (to, from) in wanted.zip(fragment) {
            *to = *from;
            end += 1;
        }
        if known == end {
            return Ok(());
        }
        let [kind, length @ ..] = self.header;
        if kind != HANDSHAKE_CLIENT_HELLO {
            return Err(HelloError::NotClientHello);
        }
        if end == HANDSHAKE_HEADER {
            let len = message_len(length);
            if len > MAX_HELLO {
                return Err(HelloError::TooLong);
            }
            if known + self.record_left > len {
                return Err(HelloError::TrailingHandshake);
            }
        }
        Ok(())
    }

    fn message_len(&self) -> Option<usize> {
        let [_, length @ ..] = self.header;
        (self.received >= HANDSHAKE_HEADER).then(|| message_len(length))
    }
}

impl HelloError {
    /// The reason as counters and logs name it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::RecordVersion => "record_version",
            Self::UnexpectedRecord => "unexpected_record",
            Self::EmptyRecord => "empty_record",
            Self::RecordTooLong => "record_too_long",
            Self::TooManyRecords => "too_many_records",
            Self::NotClientHello => "not_client_hello",
            Self::TooLong => "hello_too_long",
            Self::TrailingHandshake => "trailing_handshake",
            Self::Malformed => "malformed_hello",
            Self::ServerNameMalformed => "server_name_malformed",
            Self::ServerNameRepeated => "server_name_repeated",
            Self::ServerNameMany => "server_name_many",
            Self::ServerNameType => "server_name_type",
            Self::AlpnMalformed => "alpn_malformed",
            Self::AlpnRepeated => "alpn_repeated",
            Self::VersionsMalformed => "versions_malformed",
            Self::VersionsRepeated => "versions_repeated",
            Self::ServerName(ServerNameError::Empty) => "server_name_empty",
            Self::ServerName(ServerNameError::Nul) => "server_name_nul",
            Self::ServerName(ServerNameError::IpLiteral) => "server_name_ip_literal",
            Self::ServerName(ServerNameError::NotDns) => "server_name_not_dns",
        }
    }
}

/// The length of a handshake message, header included, by the length in its header.
fn message_len([high, middle, low]: [u8; 3]) -> usize {
    HANDSHAKE_HEADER + ((usize::from(high) << 16) | (usize::from(middle) << 8) | usize::from(low))
}

/// The length of the fragment that follows, when the header is there to its end. The first byte decides at once, so
/// that a client of another protocol is not kept waiting for bytes that it will never send.
fn read_record_header(rest: &[u8], is_first: bool) -> Result<Option<usize>, HelloError> {
    if rest.first().is_some_and(|kind| *kind != CONTENT_HANDSHAKE) {
        return Err(if is_first { HelloError::NotTls } else { HelloError::UnexpectedRecord });
    }
    if rest.get(1).is_some_and(|major| *major != 3) {
        return Err(HelloError::RecordVersion);
    }
    let Some([_, _, _, high, low]) = rest.first_chunk() else { return Ok(None) };
    match usize::from(u16::from_be_bytes([*high, *low])) {
        0 => Err(HelloError::EmptyRecord),
        len if len > MAX_RECORD => Err(HelloError::RecordTooLong),
        len => Ok(Some(len)),
    }
}

/// The handshake message of `len` bytes whose records `wire` begins with: in place when it is in one record.
fn joined_fragments(wire: &[u8], len: usize) -> Option<Cow<'_, [u8]>> {
    let (fragment, mut rest) = split_record(wire)?;
    if fragment.len() >= len {
        return fragment.get(..len).map(Cow::Borrowed);
    }
    let mut message = Vec::with_capacity(len);
    message.extend_from_slice(fragment);
    while message.len() < len {
        let fragment;
        (fragment, rest) = split_record(rest)?;
        message.extend_from_slice(fragment);
    }
    Some(Cow::Owned(message))
}

fn split_record(wire: &[u8]) -> Option<(&[u8], &[u8])> {
    let ([_, _, _, high, low], rest) = wire.split_first_chunk()?;
    rest.split_at_checked(u16::from_be_bytes([*high, *low]).into())
}

/// RFC 8446 §4.1.2, and RFC 5246 §7.4.1.2 for a hello without extensions.
fn parse_body(body: &[u8]) -> Result<ClientHello, HelloError> {
    let mut body = Cursor::new(body);
    let (legacy_version, extensions) = skip_to_extensions(&mut body).ok_or(HelloError::Malformed)?;
    let mut extensions = extensions.unwrap_or_else(|| Cursor::new(&[]));

    let (mut server_name, mut alpn, mut versions) = (None, None, None);
    while !extensions.is_empty() {
        let (kind, data) = extensions.extension().ok_or(HelloError::Malformed)?;
        let (place, repeated) = match kind {
            EXTENSION_SERVER_NAME => (&mut server_name, HelloError::ServerNameRepeated),
            EXTENSION_ALPN => (&mut alpn, HelloError::AlpnRepeated),
            EXTENSION_SUPPORTED_VERSIONS => (&mut versions, HelloError::VersionsRepeated),
            _ => continue,
        };
        if place.replace(data).is_some() {
            return Err(repeated);
        }
    }
    let alpn = alpn.map(|data| AlpnOffer::parse(data).ok_or(HelloError::AlpnMalformed));
    let versions = versions.map(|data| TlsVersions::parse(data).ok_or(HelloError::VersionsMalformed));
    Ok(ClientHello {
        server_name: server_name.map(parse_server_name).transpose()?,
        alpn: alpn.transpose()?.unwrap_or_default(),
        versions: versions.transpose()?.unwrap_or_else(|| TlsVersions::legacy(legacy_version)),
    })
}

/// The version that the hello begins with, and the extension block; `None` when the hello ends before it.
fn skip_to_extensions<'a>(body: &mut Cursor<'a>) -> Option<(u16, Option<Cursor<'a>>)> {
    let version = body.u16()?;
    let _random = body.take(32)?;
    let session_id = body.vec8()?;
    let cipher_suites = body.vec16()?;
    let compression_methods = body.vec8()?;
    let is_sound = session_id.len() <= 32
        && !cipher_suites.is_empty()
        && cipher_suites.len().is_multiple_of(2)
        && !compression_methods.is_empty();
    if !is_sound {
        return None;
    }
    if body.is_empty() {
        return Some((version, None));
    }
    let extensions = body.vec16()?;
    body.is_empty().then_some((version, Some(extensions)))
}

/// RFC 6066 §3.
fn parse_server_name(data: Cursor<'_>) -> Result<ServerName, HelloError> {
    let mut data = data;
    let mut list = data.vec16().filter(|_| data.is_empty()).ok_or(HelloError::ServerNameMalformed)?;
    let kind = list.u8().ok_or(HelloError::ServerNameMalformed)?;
    if kind != NAME_TYPE_HOST_NAME {
        return Err(HelloError::ServerNameType);
    }
    let name = list.vec16().ok_or(HelloError::ServerNameMalformed)?;
    if !list.is_empty() {
        return Err(HelloError::ServerNameMany);
    }
    Ok(ServerName::parse(name.bytes())?)
}
