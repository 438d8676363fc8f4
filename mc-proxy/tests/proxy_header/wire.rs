//! Headers byte by byte, independent of the writer under test.

pub(crate) const SIGNATURE: &[u8] = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a";

pub(crate) const LOCAL: u8 = 0x20;
pub(crate) const PROXY: u8 = 0x21;

/// 192.0.2.1:40000 to 198.51.100.2:443.
pub(crate) const INET: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 0x9c, 0x40, 0x01, 0xbb];

/// A version 2 header with this length field and block.
pub(crate) fn v2_with_len(version_command: u8, family: u8, len: u16, block: &[u8]) -> Vec<u8> {
    [SIGNATURE, &[version_command, family], &len.to_be_bytes(), block].concat()
}

/// The same with the length that it has.
pub(crate) fn v2(version_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    v2_with_len(version_command, family, u16::try_from(block.len()).expect("a short block"), block)
}

/// `PROXY`, TCP over IPv4, with these TLVs.
pub(crate) fn with_tlvs(tlvs: &[u8]) -> Vec<u8> {
    v2(PROXY, 0x11, &[INET, tlvs].concat())
}

pub(crate) fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind], u16::try_from(value.len()).expect("a short value").to_be_bytes().as_slice(), value].concat()
}
