//! The application protocols that a client offers (RFC 7301).

use std::fmt;

use super::cursor::Cursor;

/// Bytes of an offer that are kept, a length byte for each name included. Real offers have below 100; what a client may
/// send is up to 64 KiB, which is neither held for as long as its connection lives nor compared with every route.
pub const KEPT_BYTES: usize = 512;

/// The names that a client offers, in its order: those that fit into [`KEPT_BYTES`], of a list that was valid to its end.
/// Displays as `h2,http/1.1`, what is not visible ASCII or is a comma, quote or backslash as `\x2c`; with `,…` for names
/// that were not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlpnOffer {
    /// Names behind their lengths, as on the wire.
    names: Box<[u8]>,
    is_cut: bool,
}

impl AlpnOffer {
    /// The offer of these names; for tests and fixtures. Names that are empty or longer than 255 bytes are left out.
    pub fn of<N: AsRef<[u8]>>(names: impl IntoIterator<Item = N>) -> Self {
        let mut list = Vec::new();
        for name in names {
            if let Some(len) = u8::try_from(name.as_ref().len()).ok().filter(|len| *len > 0) {
                list.push(len);
                list.extend_from_slice(name.as_ref());
            }
        }
        Self::keep(&list)
    }

    /// Reads the extension's data: a list of one name or more, none of them empty (RFC 7301 §3.1).
    pub(super) fn parse(data: Cursor<'_>) -> Option<Self> {
        let mut data = data;
        let list = data.vec16().filter(|list| data.is_empty() && !list.is_empty())?;
        let mut rest = list;
        while !rest.is_empty() {
            rest.vec8().filter(|name| !name.is_empty())?;
        }
        Some(Self::keep(list.bytes()))
    }

    /// Of a valid list the names at its front.
    fn keep(list: &[u8]) -> Self {
        let mut rest = Cursor::new(list);
        let mut kept = 0;
        while let Some(name) = rest.vec8()
            && kept + 1 + name.len() <= KEPT_BYTES
        {
            kept += 1 + name.len();
        }
        Self { names: list.get(..kept).unwrap_or_default().into(), is_cut: kept < list.len() }
    }

    /// Whether nothing is offered: the hello is without the extension.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.is_cut
    }

    /// The names that are kept, the client's favourite first.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = Cursor::new(&self.names);
        std::iter::from_fn(move || rest.vec8().map(Cursor::bytes))
    }

    /// The name, if it is the only one that is offered.
    pub fn only(&self) -> Option<&[u8]> {
        let mut names = self.names();
        names.next().filter(|_| names.next().is_none() && !self.is_cut)
    }

    /// Whether one of `names` is offered.
    pub fn has_any(&self, names: &[String]) -> bool {
        self.names().any(|offered| names.iter().any(|name| name.as_bytes() == offered))
    }
}

impl fmt::Display for AlpnOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.names().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            for byte in name {
                if byte.is_ascii_graphic() && !b",\"\\".contains(byte) {
                    write!(f, "{}", char::from(*byte))?;
                } else {
                    write!(f, "\\x{byte:02x}")?;
                }
            }
        }
        if self.is_cut { f.write_str(",…") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &[u8]) -> Option<AlpnOffer> {
        AlpnOffer::parse(Cursor::new(data))
    }

    fn data(names: &[&[u8]]) -> Vec<u8> {
        let list = names.iter().flat_map(|name| [&[u8::try_from(name.len()).unwrap()], *name].concat());
        let list = list.collect::<Vec<_>>();
        [&u16::try_from(list.len()).unwrap().to_be_bytes()[..], &list].concat()
    }

    #[test]
    fn names_in_their_order() {
        let offer = parse(&data(&[b"h2", b"http/1.1"])).unwrap();
        assert_eq!(offer.names().collect::<Vec<_>>(), [b"h2".as_slice(), b"http/1.1"]);
        assert_eq!(offer.to_string(), "h2,http/1.1");
        assert_eq!(offer, AlpnOffer::of(["h2", "http/1.1"]));
        assert!(!offer.is_empty() && AlpnOffer::default().is_empty());
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(offer.has_any(&names(&["x", "http/1.1"])));
        assert!(!offer.has_any(&names(&["x", "http/1", "H2", ""])) && !offer.has_any(&[]));
        assert!(!AlpnOffer::default().has_any(&names(&["h2"])));
        assert_eq!(AlpnOffer::of(["h2"]).only(), Some(b"h2".as_slice()));
        assert_eq!((offer.only(), AlpnOffer::default().only()), (None, None));
    }

    #[test]
    fn what_people_cannot_read_is_escaped() {
        let offer = parse(&data(&[&[0x0a, 0x0a], b"a,b", b"c\"\\ d", b"\xff"])).unwrap();
        assert_eq!(offer.to_string(), "\\x0a\\x0a,a\\x2cb,c\\x22\\x5c\\x20d,\\xff");
    }

    #[test]
    fn every_other_length_is_refused() {
        let good = data(&[b"h2", b"http/1.1"]);
        for len in 0..good.len() {
            assert_eq!(parse(&good[..len]), None, "{len}");
        }
        assert_eq!(parse(&[good.as_slice(), &[0]].concat()), None, "a byte after the list");
        for bad in [
            data(&[]),
            data(&[b""]),
            data(&[b"h2", b""]),
            data(&[b"", b"h2"]),
            vec![0, 3, 3, b'h', b'2'],
            vec![0, 4, 2, b'h', b'2', 9],
        ] {
            assert_eq!(parse(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_long_list_is_checked_whole_and_kept_in_part() {
        let name = [b'x'; 255];
        let two = data(&[&name, &name]);
        assert_eq!(parse(&two).unwrap().names().count(), 2, "they fit exactly");
        let mut names = vec![name.as_slice(); 255];
        names[2] = b"h2";
        let offer = parse(&data(&names)).unwrap();
        assert_eq!(offer.names().count(), 2);
        let cut = parse(&data(&[&name, &name, b"h2"])).unwrap();
        assert_eq!((cut.names().count(), cut.only()), (2, None));
        assert!(!offer.has_any(&["h2".to_owned()]) && !offer.is_empty());
        assert!(offer.to_string().ends_with("x,…"));
        names[254] = b"";
        assert_eq!(parse(&data(&names)), None);
        let many = data(&vec![b"x".as_slice(); 30_000]);
        assert_eq!(parse(&many).unwrap().names().count(), KEPT_BYTES / 2);
    }
}
