//! The versions of TLS that a client offers.

use std::fmt;

use super::cursor::Cursor;

/// The number on the wire, and what people call it; newest first.
const KNOWN: [(u16, &str); 5] = [(0x0304, "1.3"), (0x0303, "1.2"), (0x0302, "1.1"), (0x0301, "1.0"), (0x0300, "ssl3")];

/// Versions that a client offers: those of `supported_versions` (RFC 8446 §4.2.1), or, without the extension, the one that
/// the hello begins with, which is the newest that such a client speaks. GREASE (RFC 8701) and versions that nobody has
/// heard of are left out. Displays as `1.3,1.2`, newest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsVersions {
    /// A bit for each of [`KNOWN`].
    known: u8,
}

impl TlsVersions {
    /// Reads the extension's data: 2 to 254 bytes of versions.
    pub(super) fn parse(data: Cursor<'_>) -> Option<Self> {
        let mut data = data;
        let mut list = data.vec8().filter(|list| data.is_empty() && list.len() >= 2 && list.len().is_multiple_of(2))?;
        let mut versions = Self::default();
        while let Some(version) = list.u16() {
            versions.add(version);
        }
        Some(versions)
    }

    /// Of a hello without the extension. A later version than 1.2 cannot be asked for that way (RFC 8446 §4.2.1), and is
    /// answered with 1.2 (RFC 5246 §E.1).
    pub(super) fn legacy(version: u16) -> Self {
        let mut versions = Self::default();
        versions.add(if (0x0304..0x0400).contains(&version) { 0x0303 } else { version });
        versions
    }

    /// Whether `version`, such as 0x0304 for TLS 1.3, is offered.
    fn has(self, version: u16) -> bool {
        KNOWN.iter().zip(0..).any(|((known, _), bit)| *known == version && self.known & (1 << bit) != 0)
    }

    /// Whether none is known.
    pub fn is_empty(self) -> bool {
        self.known == 0
    }

    fn add(&mut self, version: u16) {
        for ((known, _), bit) in KNOWN.iter().zip(0..) {
            self.known |= u8::from(*known == version) << bit;
        }
    }
}

impl fmt::Display for TlsVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (_, name) in KNOWN.iter().filter(|(version, _)| self.has(*version)) {
            write!(f, "{comma}{name}")?;
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &[u8]) -> Option<String> {
        TlsVersions::parse(Cursor::new(data)).map(|versions| versions.to_string())
    }

    #[test]
    fn newest_first_without_grease() {
        assert_eq!(parse(&[6, 0x7a, 0x7a, 3, 3, 3, 4]).as_deref(), Some("1.3,1.2"));
        assert_eq!(parse(&[10, 3, 0, 3, 1, 3, 2, 3, 3, 3, 4]).as_deref(), Some("1.3,1.2,1.1,1.0,ssl3"));
        assert_eq!(parse(&[4, 3, 4, 3, 4]).as_deref(), Some("1.3"));
        assert_eq!(parse(&[4, 0x0a, 0x0a, 0x7f, 0x1c]).as_deref(), Some(""), "GREASE and a draft");
        let longest = [vec![254], [3, 4].repeat(127)].concat();
        assert_eq!(parse(&longest).as_deref(), Some("1.3"));
        let versions = TlsVersions::parse(Cursor::new(&[2, 3, 4])).unwrap();
        assert!(versions.has(0x0304) && !versions.has(0x0303) && !versions.has(0x0a0a) && !versions.is_empty());
    }

    #[test]
    fn every_other_length_is_refused() {
        let good = [4, 3, 4, 3, 3];
        for len in 0..good.len() {
            assert_eq!(parse(&good[..len]), None, "{len}");
        }
        for bad in [[0].as_slice(), &[1, 3], &[3, 3, 4, 3], &[2, 3, 4, 0], &[2, 3], &[6, 3, 4, 3, 3]] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert_eq!(parse(&[vec![255], vec![3; 255]].concat()), None, "odd");
    }

    #[test]
    fn a_hello_without_the_extension() {
        for (version, text) in [
            (0x0300, "ssl3"),
            (0x0301, "1.0"),
            (0x0302, "1.1"),
            (0x0303, "1.2"),
            (0x0304, "1.2"),
            (0x03ff, "1.2"),
            (0x0400, ""),
            (0x0002, ""),
        ] {
            assert_eq!(TlsVersions::legacy(version).to_string(), text, "{version:#06x}");
        }
    }
}
