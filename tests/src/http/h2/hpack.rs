//! HPACK (RFC 7541) as far as a client needs it that remembers nothing: literals without indexing.

use crate::http::HOST;

/// An integer with a prefix of so many bits, below `pattern` (RFC 7541 §5.1).
pub fn integer(pattern: u8, bits: u8, value: usize) -> Vec<u8> {
    let max = (1_usize << bits) - 1;
    if value < max {
        return vec![pattern | value as u8];
    }
    let mut bytes = vec![pattern | max as u8];
    let mut rest = value - max;
    while rest >= 128 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

/// A string that is not compressed (RFC 7541 §5.2).
pub fn string(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [integer(0, 7, bytes.len()).as_slice(), bytes].concat()
}

/// A literal field without indexing (RFC 7541 §6.2.2).
pub fn field(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [vec![0], string(name), string(value)].concat()
}

/// A literal field that becomes an entry of the table (RFC 7541 §6.2.1).
pub fn indexed(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [vec![0x40], string(name), string(value)].concat()
}

/// Fields in their order.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// A good request, with more fields.
pub fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "https"), (":authority", HOST), (":path", path)];
    [block(&pseudo), block(more)].concat()
}

/// GET.
pub fn get(path: &str) -> Vec<u8> {
    request("GET", path, &[])
}

/// The status at the beginning of a block of a peer that was told to have no table, or has not used it yet.
pub fn status(block: &[u8]) -> Option<u16> {
    // Sizes of the table.
    let mut block = block;
    while let Some((first, rest)) = block.split_first().filter(|(first, _)| *first & 0xe0 == 0x20) {
        let more = if first & 0x1f == 0x1f { rest.iter().position(|byte| byte & 0x80 == 0)? + 1 } else { 0 };
        block = rest.get(more..)?;
    }
    let (first, rest) = block.split_first()?;
    match first {
        0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500].get(usize::from(first - 0x88)).copied(),
        // Any literal whose name is entry 8, `:status`.
        0x48 | 0x08 | 0x18 => {
            let (length, text) = rest.split_first()?;
            let bytes = text.get(..usize::from(length & 0x7f))?;
            let digits = if length & 0x80 == 0 { bytes.to_vec() } else { digits(bytes) };
            std::str::from_utf8(&digits).ok()?.parse().ok()
        }
        _ => None,
    }
}

/// Digits of the Huffman code (RFC 7541 Appendix B): 0 to 2 have five bits, the others six.
fn digits(bytes: &[u8]) -> Vec<u8> {
    let bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect::<Vec<_>>();
    let number = |at: usize, count: usize| {
        let bits = bits.get(at..at + count)?;
        Some(bits.iter().fold(0_u8, |value, bit| value << 1 | bit))
    };
    let (mut at, mut text) = (0, Vec::new());
    loop {
        match (number(at, 5), number(at, 6)) {
            (Some(code @ 0..=2), _) => (text.push(b'0' + code), at += 5).1,
            (_, Some(code @ 0x19..=0x1f)) => (text.push(b'3' + code - 0x19), at += 6).1,
            _ => return text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_rfc_gives_as_examples() {
        // §C.1.
        assert_eq!(integer(0, 5, 10), [10]);
        assert_eq!(integer(0, 5, 1337), [31, 154, 10]);
        assert_eq!(integer(0, 8, 42), [42]);
        // §C.6.1 and §C.6.2, with Huffman.
        assert_eq!(status(&[0x48, 0x82, 0x64, 0x02, 0x58]), Some(302));
        assert_eq!(status(&[0x48, 0x83, 0x64, 0x0e, 0xff, 0xc1]), Some(307));
        assert_eq!((status(&[0x20, 0x88]), status(&[0x48, 3, b'4', b'3', b'1'])), (Some(200), Some(431)));
    }
}
