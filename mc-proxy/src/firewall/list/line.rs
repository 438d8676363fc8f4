//! One line of a list.

use std::{borrow::Cow, net::IpAddr};

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;

use super::{COMMENTS_MAX, ENTRIES_MAX, LINE_MAX};

/// Characters of a line that an error quotes.
const QUOTED_MAX: usize = 60;

/// What a line says.
#[derive(Debug)]
pub(super) enum Line<'a> {
    /// Nothing, or only a comment.
    Nothing,
    Net {
        net: IpNet,
        comment: Cow<'a, str>,
    },
    /// From `first`, which has its full length, to `last`, both included.
    Range {
        first: IpNet,
        last: u128,
        comment: Cow<'a, str>,
    },
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Neither an address, nor a CIDR, nor a range.
    #[error("{0} is not an address, a CIDR or a range")]
    Unreadable(String),
    /// The number behind the slash.
    #[error("{given} has no valid prefix length, which is a number from 0 to {max}")]
    PrefixLength {
        /// As given, quoted.
        given: String,
        /// 32 or 128.
        max: u8,
    },
    /// Bits are set below the prefix length.
    #[error("{given} has host bits set; the canonical CIDR is \"{canonical}\"")]
    HostBits {
        /// As given, quoted.
        given: String,
        /// The prefix that contains it.
        canonical: IpNet,
    },
    /// One end is IPv4 and the other IPv6.
    #[error("{0} is a range between two address families")]
    MixedRange(String),
    /// The end is before the beginning.
    #[error("{0} is a range that ends before it begins")]
    Backwards(String),
    /// A second entry, or a comment that is not marked as one.
    #[error("{0} follows the entry; a line has one entry, and a comment begins with # or ;")]
    Trailing(String),
    /// A binary file, or one in UTF-16.
    #[error("there is a NUL byte; a list is a text file (ASCII or UTF-8)")]
    Nul,
    /// More than a line of a list has.
    #[error("the line is longer than {LINE_MAX} bytes")]
    TooLong,
    /// Not an object that a list is made of.
    #[error("{0}")]
    Json(String),
    /// More than is held in memory.
    #[error("there are more than {ENTRIES_MAX} entries")]
    Entries,
    /// More than is held in memory.
    #[error("there are more than {} MiB of comments; --no-comments leaves them out", COMMENTS_MAX >> 20)]
    Comments,
}

impl LineError {
    /// Whether reading on is of no use.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Nul | Self::Entries | Self::Comments)
    }
}

/// What Spamhaus writes a line, and the object at the end of its files.
#[derive(Deserialize)]
struct Record {
    cidr: Option<String>,
    sblid: Option<String>,
    r#type: Option<String>,
}

impl<'a> Line<'a> {
    /// Reads a line without its newline; the flag says that host bits were cleared.
    pub(super) fn read(line: &'a [u8], fix_host_bits: bool) -> Result<(Self, bool), LineError> {
        if line.len() > LINE_MAX {
            return Err(LineError::TooLong);
        }
        if line.contains(&0) {
            return Err(LineError::Nul);
        }
        let line = line.trim_ascii();
        match line.first() {
            None | Some(b'#' | b';') => return Ok((Self::Nothing, false)),
            Some(b'{') => return record(line, fix_host_bits),
            Some(_) => {}
        }
        let (entry, comment) = match line.iter().position(|byte| matches!(byte, b'#' | b';')) {
            Some(at) => line.split_at(at),
            None => (line, [].as_slice()),
        };
        let entry = entry.trim_ascii_end();
        let comment = String::from_utf8_lossy(without_marks(comment));
        subject(entry, comment, fix_host_bits)
    }
}

/// A comment without its marks, however many, and the blanks around them.
fn without_marks(comment: &[u8]) -> &[u8] {
    let start = comment.iter().position(|byte| !matches!(byte, b'#' | b';') && !byte.is_ascii_whitespace());
    start.and_then(|start| comment.get(start..)).unwrap_or_default()
}

fn record(line: &[u8], fix_host_bits: bool) -> Result<(Line<'static>, bool), LineError> {
    let record: Record = serde_json::from_slice(line)
        .map_err(|error| LineError::Json(format!("not a JSON object of a list: {error}")))?;
    match (record.cidr, record.r#type.as_deref()) {
        (Some(cidr), _) => {
            let comment = Cow::Owned(record.sblid.unwrap_or_default());
            let (line, is_fixed) = subject(cidr.as_bytes(), comment, fix_host_bits)?;
            Ok((line, is_fixed))
        }
        (None, Some("metadata")) => Ok((Line::Nothing, false)),
        (None, _) => Err(LineError::Json("the JSON object has no \"cidr\"".to_owned())),
    }
}

fn subject<'a>(entry: &[u8], comment: Cow<'a, str>, fix_host_bits: bool) -> Result<(Line<'a>, bool), LineError> {
    let unreadable = || LineError::Unreadable(quote(entry));
    let text = str::from_utf8(entry).map_err(|_| unreadable())?;
    if let Some((first, last)) = text.split_once('-') {
        let ends = (first.trim_ascii_end().parse(), last.trim_ascii_start().parse());
        let (Ok(first), Ok(last)): (Result<IpAddr, _>, Result<IpAddr, _>) = ends else { return Err(unreadable()) };
        return match (first.to_canonical(), last.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
                Ok((Line::Range { first: IpNet::from(IpAddr::V4(first)), last: last.to_bits().into(), comment }, false))
            }
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
                Ok((Line::Range { first: IpNet::from(IpAddr::V6(first)), last: last.to_bits(), comment }, false))
            }
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => Err(LineError::Backwards(quote(entry))),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Err(LineError::MixedRange(quote(entry))),
        };
    }
    let (addr, length) = text.split_once('/').map_or((text, None), |(addr, length)| (addr, Some(length)));
    let Ok(addr) = addr.parse::<IpAddr>() else {
        return Err(match text.split_once(|c: char| c.is_ascii_whitespace()) {
            Some((before, after)) if is_entry(before) => LineError::Trailing(quote(after.trim_ascii().as_bytes())),
            _ => unreadable(),
        });
    };
    let Some(length) = length else {
        return Ok((Line::Net { net: IpNet::from(addr.to_canonical()), comment }, false));
    };
    let max = if addr.is_ipv4() { 32 } else { 128 };
    let valid = |digits: &str| prefix_length(digits.as_bytes()).filter(|length| *length <= max);
    let Some(prefix_len) = valid(length) else {
        return Err(match length.split_once(|c: char| c.is_ascii_whitespace()) {
            Some((number, after)) if valid(number).is_some() => {
                LineError::Trailing(quote(after.trim_ascii().as_bytes()))
            }
            _ => LineError::PrefixLength { given: quote(entry), max },
        });
    };
    let net = IpNet::new(addr, prefix_len).map_err(|_| LineError::PrefixLength { given: quote(entry), max })?;
    let canonical = fold(net.trunc());
    let has_host_bits = net.trunc() != net;
    if has_host_bits && !fix_host_bits {
        return Err(LineError::HostBits { given: quote(entry), canonical });
    }
    Ok((Line::Net { net: canonical, comment }, has_host_bits))
}

fn is_entry(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok()
}

/// Digits without leading zeros: `/010` is 8 to some and 10 to others.
fn prefix_length(digits: &[u8]) -> Option<u8> {
    match *digits {
        [a @ b'0'..=b'9'] => Some(a - b'0'),
        [a @ b'1'..=b'9', b @ b'0'..=b'9'] => Some((a - b'0') * 10 + b - b'0'),
        [b'1', b @ b'0'..=b'2', c @ b'0'..=b'9'] => Some(100 + (b - b'0') * 10 + c - b'0'),
        _ => None,
    }
}

/// `::ffff:192.0.2.0/120` is `192.0.2.0/24`: such packets are IPv4.
fn fold(net: IpNet) -> IpNet {
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(addr) => IpNet::V4(Ipv4Net::new(addr, v6.prefix_len() - 96).expect("128 - 96 = 32")),
            None => net,
        },
        IpNet::V4(_) | IpNet::V6(_) => net,
    }
}

/// The line at the front of `bytes`, if it is an IPv4 address or prefix without host bits and nothing else, and its end
/// is there: address, length, bytes used.
#[inline]
pub(super) fn plain_v4(bytes: &[u8]) -> Option<(u32, u8, usize)> {
    let mut at = 0;
    let mut addr = 0_u32;
    for part in 0..4 {
        let first = bytes.get(at)?.wrapping_sub(b'0');
        if first > 9 {
            return None;
        }
        let mut octet = u32::from(first);
        at += 1;
        for _ in 0..2 {
            let digit = bytes.get(at)?.wrapping_sub(b'0');
            if digit > 9 {
                break;
            }
            // A leading zero is an error, which the careful reader tells.
            if octet == 0 {
                return None;
            }
            octet = octet * 10 + u32::from(digit);
            at += 1;
        }
        if octet > 255 {
            return None;
        }
        addr = addr << 8 | octet;
        if part < 3 {
            if *bytes.get(at)? != b'.' {
                return None;
            }
            at += 1;
        }
    }
    let mut len = 32;
    if *bytes.get(at)? == b'/' {
        let start = at + 1;
        at = start;
        while bytes.get(at)?.is_ascii_digit() {
            at += 1;
        }
        len = prefix_length(bytes.get(start..at)?)?;
        if len > 32 || u64::from(addr) & ((1 << (32 - len)) - 1) != 0 {
            return None;
        }
    }
    if *bytes.get(at)? == b'\r' {
        at += 1;
    }
    (*bytes.get(at)? == b'\n').then_some((addr, len, at + 1))
}

/// The fewest prefixes that make up a range of addresses of `bits` bits.
pub(super) fn split_range(mut first: u128, last: u128, bits: u8, mut each: impl FnMut(u128, u8)) {
    while first <= last {
        let aligned = first.trailing_zeros().min(u32::from(bits));
        let fits = match (last - first).checked_add(1) {
            Some(addresses) => addresses.ilog2(),
            None => 128,
        };
        let size = aligned.min(fits);
        each(first, bits - u8::try_from(size).expect("size <= bits <= 128"));
        match 1_u128.checked_shl(size).and_then(|addresses| first.checked_add(addresses)) {
            Some(next) => first = next,
            None => return,
        }
    }
}

/// The beginning of a text, on one line and without what a terminal would act on.
fn quote(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut quoted = text.chars().take(QUOTED_MAX).flat_map(char::escape_debug).collect::<String>();
    if text.chars().nth(QUOTED_MAX).is_some() {
        quoted.push('…');
    }
    format!("\"{quoted}\"")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::Ipv6Net;

    use super::*;

    #[test]
    fn ranges_split_into_the_fewest_prefixes() {
        let split = |first: &str, last: &str| {
            let mut nets = Vec::new();
            match (first.parse().unwrap(), last.parse().unwrap()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    split_range(first.to_bits().into(), last.to_bits().into(), 32, |addr, len| {
                        nets.push(format!("{}/{len}", Ipv4Addr::from_bits(addr.try_into().unwrap())));
                    });
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    split_range(first.to_bits(), last.to_bits(), 128, |addr, len| {
                        nets.push(Ipv6Net::new(Ipv6Addr::from_bits(addr), len).unwrap().to_string());
                    });
                }
                _ => panic!("two families"),
            }
            nets
        };
        assert_eq!(split("10.0.0.1", "10.0.0.6"), ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]);
        assert_eq!(split("0.0.0.0", "255.255.255.255"), ["0.0.0.0/0"]);
        assert_eq!(split("255.255.255.255", "255.255.255.255"), ["255.255.255.255/32"]);
        assert_eq!(split("0.0.0.1", "255.255.255.254").len(), 62);
        assert_eq!(split("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), ["::/0"]);
        assert_eq!(split("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe").len(), 254);
        assert_eq!(split("2001:db8::", "2001:db8::2"), ["2001:db8::/127", "2001:db8::2/128"]);
    }
}
