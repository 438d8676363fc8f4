//! CRC32c (Castagnoli), as PROXY §2.2.3 and RFC 9260 appendix A have it. A header is a few hundred bytes: a table of one
//! byte a step is fast enough.

const TABLE: [u32; 256] = table();

/// The checksum of these parts, one after the other.
pub(super) fn crc32c(parts: &[&[u8]]) -> u32 {
    let bytes = parts.iter().copied().flatten();
    !bytes.fold(u32::MAX, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        TABLE.get(usize::from(low ^ byte)).copied().unwrap_or_default() ^ (crc >> 8)
    })
}

const fn table() -> [u32; 256] {
    // 0x1EDC6F41 with its bits in reverse.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ POLYNOMIAL };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720 appendix B.4, where the checksums are given with their least significant byte first.
    #[test]
    fn known_checksums() {
        let ascending: [u8; 32] = std::array::from_fn(|n| n as u8);
        let descending: [u8; 32] = std::array::from_fn(|n| 31 - n as u8);
        let mut iscsi_read = [0; 48];
        for (at, byte) in [(0, 0x01), (1, 0xc0), (16, 0x14), (22, 0x04), (27, 0x14), (31, 0x18), (32, 0x28), (40, 0x02)]
        {
            iscsi_read[at] = byte;
        }
        for (bytes, crc) in [
            ([0; 32].as_slice(), 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (&descending, 0x113f_db5c),
            (&iscsi_read, 0xd996_3a56),
            (b"123456789", 0xe306_9283),
            (b"", 0),
        ] {
            assert_eq!(crc32c(&[bytes]), crc, "{bytes:?}");
            for at in 0..bytes.len() {
                let (head, tail) = bytes.split_at(at);
                assert_eq!(crc32c(&[head, tail]), crc);
            }
        }
    }
}
