//! Version 1: one line of text (PROXY §2.1).

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{Endpoints, Header, HeaderError, Progress, Tlvs, Transport};

/// The longest line, its CRLF included.
pub const MAX_V1: usize = 107;

/// `PROXY UNKNOWN` and CRLF.
pub(super) const SHORTEST: usize = 15;

const START: &[u8] = b"PROXY ";
const CRLF: &[u8] = b"\r\n";

#[derive(Clone, Copy)]
enum Family {
    Tcp4,
    Tcp6,
    Unknown,
}

const FAMILIES: [(&[u8], Family); 3] =
    [(b"TCP4 ", Family::Tcp4), (b"TCP6 ", Family::Tcp6), (b"UNKNOWN", Family::Unknown)];

pub(super) fn parse(bytes: &[u8]) -> Result<Progress, HeaderError> {
    let line = bytes.get(..MAX_V1).unwrap_or(bytes);
    let Some(rest) = strip(line, START) else {
        return if is_start(line, START) { Ok(incomplete(line)) } else { Err(HeaderError::Missing) };
    };
    let Some((rest, family)) = FAMILIES.iter().find_map(|(word, family)| Some((strip(rest, word)?, *family))) else {
        let may_be = FAMILIES.iter().any(|(word, _)| is_start(rest, word));
        return if may_be { Ok(incomplete(line)) } else { Err(HeaderError::V1Line) };
    };
    let end = match family {
        Family::Tcp4 | Family::Tcp6 => find_end(rest)?,
        Family::Unknown => find_end_of_unknown(rest)?,
    };
    let Some(end) = end else {
        return if line.len() == MAX_V1 { Err(HeaderError::V1TooLong) } else { Ok(incomplete(line)) };
    };
    let endpoints = match family {
        Family::Tcp4 => endpoints(rest.get(..end).unwrap_or_default(), |text| text.parse::<Ipv4Addr>().ok())?,
        Family::Tcp6 => endpoints(rest.get(..end).unwrap_or_default(), |text| text.parse::<Ipv6Addr>().ok())?,
        Family::Unknown => Endpoints::Unknown,
    };
    let consumed = line.len() - rest.len() + end + CRLF.len();
    Ok(Progress::Complete { header: Header { endpoints, tlvs: Tlvs::default() }, consumed })
}

/// The line for a connection. What version 1 has no word for is `UNKNOWN`.
pub fn write(endpoints: &Endpoints) -> Vec<u8> {
    let mut line = String::with_capacity(MAX_V1);
    let written = match endpoints {
        Endpoints::Inet { transport: Transport::Stream, source, destination }
            if source.is_ipv4() == destination.is_ipv4() =>
        {
            let version = if source.is_ipv4() { 4 } else { 6 };
            let (from, to) = (source.ip(), destination.ip());
            write!(line, "PROXY TCP{version} {from} {to} {} {}\r\n", source.port(), destination.port())
        }
        Endpoints::Inet { .. } | Endpoints::Unix { .. } | Endpoints::Local | Endpoints::Unknown => {
            line.write_str("PROXY UNKNOWN\r\n")
        }
    };
    written.expect("a string takes whatever is written");
    line.into_bytes()
}

fn incomplete(line: &[u8]) -> Progress {
    // A line that ends in CR has only its LF to come; of the others nothing is known but where they can end at the
    // earliest.
    let earliest = if line.last() == Some(&b'\r') { 1 } else { 2 };
    Progress::Incomplete(SHORTEST.saturating_sub(line.len()).max(earliest))
}

fn strip<'a>(bytes: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    bytes.strip_prefix(word)
}

/// Whether `bytes` are less than `word`, and its beginning.
fn is_start(bytes: &[u8], word: &[u8]) -> bool {
    bytes.len() < word.len() && word.starts_with(bytes)
}

/// Where the CRLF is. Whatever cannot be part of such a line ends it at once.
fn find_end(rest: &[u8]) -> Result<Option<usize>, HeaderError> {
    let is_part = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':' | b' ');
    let Some(end) = rest.iter().position(|byte| !is_part(byte)) else { return Ok(None) };
    let tail = rest.get(end..).unwrap_or_default();
    if tail.starts_with(CRLF) {
        Ok(Some(end))
    } else if is_start(tail, CRLF) {
        Ok(None)
    } else {
        Err(HeaderError::V1Line)
    }
}

/// The same behind `UNKNOWN`: CRLF at once, or a space and anything.
fn find_end_of_unknown(rest: &[u8]) -> Result<Option<usize>, HeaderError> {
    match rest.first() {
        None => Ok(None),
        Some(b' ') => Ok(rest.windows(CRLF.len()).position(|window| window == CRLF)),
        Some(_) if rest.starts_with(CRLF) => Ok(Some(0)),
        Some(_) if is_start(rest, CRLF) => Ok(None),
        Some(_) => Err(HeaderError::V1Line),
    }
}

/// `source destination source-port destination-port`, with one space in between.
fn endpoints<T: Into<IpAddr>>(text: &[u8], parse: impl Fn(&str) -> Option<T>) -> Result<Endpoints, HeaderError> {
    let text = std::str::from_utf8(text).map_err(|_| HeaderError::V1Line)?;
    let mut fields = text.split(' ');
    let mut field = || fields.next().ok_or(HeaderError::V1Line);
    let [from, to, from_port, to_port] = [field()?, field()?, field()?, field()?];
    if fields.next().is_some() || text.split(' ').any(str::is_empty) {
        return Err(HeaderError::V1Line);
    }
    // The standard library's parsers are as strict as PROXY §2.1: no leading zeros in IPv4, 128 bits in IPv6, no zone.
    let addr = |text: &str, port: &str| {
        let ip = parse(text).ok_or(HeaderError::V1Address)?.into();
        Ok(SocketAddr::new(ip, parse_port(port).ok_or(HeaderError::V1Port)?))
    };
    let (source, destination) = (addr(from, from_port)?, addr(to, to_port)?);
    Ok(Endpoints::Inet { transport: Transport::Stream, source, destination })
}

/// `u16::from_str` takes a sign and leading zeros too.
fn parse_port(text: &str) -> Option<u16> {
    let is_canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if is_canonical { text.parse().ok() } else { None }
}
