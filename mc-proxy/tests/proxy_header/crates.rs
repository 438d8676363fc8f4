//! Input that the crates `ppp` 2.3.0 and `proxy-header` 0.1.3 were seen to get wrong (July 2026), one test a line.

use mc_proxy::proxy_header::{Endpoints, HeaderError, MAX_V1};

use crate::{
    cases::outcome,
    wire::{INET, LOCAL, PROXY, tlv, v2, with_tlvs},
};

fn endpoints(wire: &[u8]) -> Result<Endpoints, HeaderError> {
    outcome(wire).map(|(header, _)| header.endpoints)
}

/// `ppp` refuses it; `proxy-header` waits until its caller gives up.
#[test]
fn local_with_a_family_and_no_addresses() {
    assert_eq!(endpoints(&v2(LOCAL, 0x11, &[])), Ok(Endpoints::Local));
}

/// `ppp` gives them to its caller.
#[test]
fn local_with_addresses() {
    assert_eq!(endpoints(&v2(LOCAL, 0x11, INET)), Ok(Endpoints::Local));
}

/// `ppp` calls it an error of version 1; `proxy-header` waits.
#[test]
fn less_than_its_addresses() {
    assert_eq!(endpoints(&v2(PROXY, 0x11, &INET[..4])), Err(HeaderError::V2TooShort));
}

/// `ppp` takes it for IPv4.
#[test]
fn family_0x10() {
    assert_eq!(endpoints(&v2(PROXY, 0x10, INET)), Err(HeaderError::V2Family));
}

/// `proxy-header` finds two TLVs in it.
#[test]
fn unspecified_with_opaque_bytes() {
    let (header, _) = outcome(&v2(PROXY, 0, INET)).unwrap();
    assert_eq!(header.endpoints, Endpoints::Unknown);
    assert_eq!(header.tlvs, Default::default());
}

/// `proxy-header` takes it.
#[test]
fn no_space_behind_the_first_word() {
    assert_eq!(endpoints(b"PROXYxTCP4 192.0.2.1 198.51.100.2 1 2\r\n"), Err(HeaderError::Missing));
}

/// `proxy-header` takes both, `ppp` the second.
#[test]
fn ports_with_zero_or_sign() {
    assert_eq!(endpoints(b"PROXY TCP4 192.0.2.1 198.51.100.2 080 443\r\n"), Err(HeaderError::V1Port));
    // Refused at the sign, which no field has.
    assert_eq!(endpoints(b"PROXY TCP4 192.0.2.1 198.51.100.2 +80 443\r\n"), Err(HeaderError::V1Line));
}

/// `proxy-header` takes it.
#[test]
fn unknown_and_more_in_one_word() {
    assert_eq!(endpoints(b"PROXY UNKNOWNfoo\r\n"), Err(HeaderError::V1Line));
}

/// `proxy-header` takes it.
#[test]
fn a_line_of_316_bytes() {
    let line = format!("PROXY UNKNOWN {}\r\n", "x".repeat(300));
    assert_eq!(line.len(), 316);
    assert_eq!(endpoints(line.as_bytes()), Err(HeaderError::V1TooLong));
    assert_eq!(endpoints(&line.as_bytes()[..MAX_V1]), Err(HeaderError::V1TooLong));
}

/// Neither verifies it.
#[test]
fn a_wrong_checksum() {
    assert_eq!(endpoints(&with_tlvs(&tlv(0x03, &[1, 2, 3, 4]))), Err(HeaderError::Checksum));
}
