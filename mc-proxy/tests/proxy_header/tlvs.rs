use mc_proxy::proxy_header::{
    Header,
    HeaderError::{self, *},
    MAX_TLVS, MAX_UNIQUE_ID, Ssl, Tlvs, WriteError, write_v2,
};

use crate::{
    cases::outcome,
    wire::{LOCAL, PROXY, tlv, v2, with_tlvs},
};

fn tlvs(bytes: &[u8]) -> Result<Tlvs, HeaderError> {
    outcome(&with_tlvs(bytes)).map(|(header, _)| header.tlvs)
}

#[test]
fn what_is_used_of_every_type() {
    let ssl = [
        vec![7, 0, 0, 0, 0],
        tlv(0x21, b"TLSv1.3"),
        tlv(0x22, b"client \xe9"),
        tlv(0x23, b"TLS_AES_256_GCM_SHA384"),
        tlv(0x24, b"SHA256"),
        tlv(0x25, b"RSA2048"),
        tlv(0x26, b"x25519"),
    ];
    let bytes = [
        tlv(0x01, b"h2"),
        tlv(0x02, b"a.example"),
        tlv(0x04, &[0; 20]),
        tlv(0x05, b"id-1"),
        tlv(0x20, &ssl.concat()),
        tlv(0x30, b"blue"),
        tlv(0x04, &[]),
        tlv(0xea, b"\x01vpce-1"),
        tlv(0xea, b""),
    ];
    let expected = Tlvs {
        alpn: Some(b"h2".as_slice().into()),
        authority: Some("a.example".into()),
        unique_id: Some(b"id-1".as_slice().into()),
        ssl: Some(Box::new(Ssl {
            client: 7,
            verify: 0,
            version: Some("TLSv1.3".into()),
            common_name: Some(b"client \xe9".as_slice().into()),
        })),
    };
    assert_eq!(tlvs(&bytes.concat()), Ok(expected.clone()));
    let header = Header::forwarded("192.0.2.1:40000".parse().unwrap(), "198.51.100.2:443".parse().unwrap());
    let written = write_v2(&Header { tlvs: expected.clone(), ..header.clone() }).unwrap();
    let sent = Tlvs { ssl: None, ..expected };
    assert_eq!(outcome(&written), Ok((Header { tlvs: sent, ..header }, written.len())), "no word of SSL is passed on");
}

#[test]
fn what_ssl_says() {
    let ssl = |client, verify| Ssl { client, verify, ..Ssl::default() };
    assert!(ssl(3, 0).is_verified() && ssl(5, 0).is_verified());
    assert!(!ssl(1, 0).is_verified(), "no certificate");
    assert!(!ssl(3, 20).is_verified(), "a bad one");
}

/// The TLVs have to end with the header, and those of an SSL TLV with that.
#[test]
fn framing() {
    let good = [tlv(0x01, b"h2"), tlv(0x20, &[&[1, 0, 0, 0, 0], tlv(0x21, b"x").as_slice()].concat())].concat();
    assert!(tlvs(&good).is_ok());
    let ends: Vec<usize> = vec![0, 5];
    for len in 0..good.len() {
        assert_eq!(tlvs(&good[..len]).is_ok(), ends.contains(&len), "{len}");
    }
    assert_eq!(tlvs(&[&good, [0xff].as_slice()].concat()), Err(TlvFraming));
    assert_eq!(tlvs(&[0x04, 0, 2, 0]), Err(TlvFraming));
    assert_eq!(tlvs(&[0x04, 0xff, 0xff]), Err(TlvFraming));
    assert_eq!(tlvs(&tlv(0x20, &[1, 0, 0, 0, 0, 0x21])), Err(TlvFraming));
    assert_eq!(tlvs(&tlv(0x20, &[1, 0, 0, 0, 0, 0x21, 0, 2, b'x'])), Err(TlvFraming));
    for len in 0..5 {
        assert_eq!(tlvs(&tlv(0x20, &[1, 0, 0, 0, 0][..len])), Err(TlvValue), "SSL of {len} bytes");
    }
}

#[test]
fn values() {
    assert!(tlvs(&tlv(0x05, &[0xff; MAX_UNIQUE_ID])).is_ok());
    assert_eq!(tlvs(&tlv(0x05, &[0xff; MAX_UNIQUE_ID + 1])), Err(TlvValue));
    assert_eq!(tlvs(&tlv(0x02, b"\xff")), Ok(Tlvs::default()), "as if it were absent");
    assert_eq!(tlvs(&[tlv(0x02, b"\xff"), tlv(0x02, b"a")].concat()), Err(TlvRepeated));
    assert!(tlvs(&tlv(0x02, "bücher.example".as_bytes())).is_ok());
    assert_eq!(tlvs(&tlv(0x20, &[&[1, 0, 0, 0, 0], tlv(0x21, b"\xff").as_slice()].concat())), Err(TlvValue));
    let cipher = tlv(0x20, &[&[1, 0, 0, 0, 0], tlv(0x23, b"\xff").as_slice()].concat());
    assert!(tlvs(&cipher).is_ok() && tlvs(&tlv(0x30, b"\xff")).is_ok(), "of what is not used any value is one");
    for len in [0, 3, 5] {
        assert_eq!(tlvs(&tlv(0x03, &[0; 5][..len])), Err(TlvValue), "a checksum of {len} bytes");
    }
}

#[test]
fn what_may_come_once() {
    for kind in [0x01, 0x02, 0x05] {
        assert_eq!(tlvs(&[tlv(kind, b"a"), tlv(kind, b"a")].concat()), Err(TlvRepeated), "{kind:#x}");
    }
    let ssl = tlv(0x20, &[0; 5]);
    assert_eq!(tlvs(&[ssl.clone(), ssl].concat()), Err(TlvRepeated));
    for kind in [0x21, 0x22] {
        let twice = [&[1, 0, 0, 0, 0], tlv(kind, b"a").as_slice(), &tlv(kind, b"a")].concat();
        assert_eq!(tlvs(&tlv(0x20, &twice)), Err(TlvRepeated), "{kind:#x}");
    }
}

#[test]
fn how_many() {
    assert!(tlvs(&tlv(0x04, &[]).repeat(MAX_TLVS)).is_ok());
    assert_eq!(tlvs(&tlv(0x04, &[]).repeat(MAX_TLVS + 1)), Err(TlvTooMany));
    let inner = [&[1, 0, 0, 0, 0], tlv(0xe0, &[]).repeat(MAX_TLVS + 1).as_slice()].concat();
    assert_eq!(tlvs(&tlv(0x20, &inner)), Err(TlvTooMany));
}

/// Bit by bit, as in RFC 3720 §B.4.
fn reference_crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// Wherever the checksum is, and whatever is changed.
#[test]
fn checksums() {
    let header = Header::forwarded("192.0.2.1:40000".parse().unwrap(), "198.51.100.2:443".parse().unwrap());
    let tlvs = Tlvs { authority: Some("a.example".into()), ..Tlvs::default() };
    let good = write_v2(&Header { tlvs, ..header }).unwrap();
    assert!(outcome(&good).is_ok());
    // But for the type of the checksum: without that there is nothing to verify.
    let kind = good.len() - 7;
    for bit in (16 * 8..good.len() * 8).filter(|bit| bit / 8 != kind) {
        let mut wire = good.clone();
        wire[bit / 8] ^= 1 << (bit % 8);
        assert!(outcome(&wire).is_err(), "bit {bit}");
    }
    // Without addresses it counts, too, if the block is one of TLVs; with `LOCAL` nothing does.
    for (block, bad) in [
        (tlv(0x03, &[0; 4]), Some(Checksum)),
        ([tlv(0xee, b"x"), tlv(0x03, &[0; 3])].concat(), Some(TlvValue)),
        ([tlv(0x03, &[0; 4]), vec![0]].concat(), None),
    ] {
        let outcome_of = |command| outcome(&v2(command, 0, &block)).map(|(header, _)| header.tlvs);
        assert_eq!(outcome_of(PROXY), bad.map_or_else(|| Ok(Tlvs::default()), Err));
        assert_eq!(outcome_of(LOCAL), Ok(Tlvs::default()));
    }
    let mut right = v2(PROXY, 0, &tlv(0x03, &[0; 4]));
    let crc = reference_crc32c(&right);
    let value = right.len() - 4;
    right[value..].copy_from_slice(&crc.to_be_bytes());
    assert!(outcome(&right).is_ok());
    let twice = tlv(0x03, &[0; 4]).repeat(2);
    assert!(matches!(super::tlvs::tlvs(&twice), Err(Checksum | TlvRepeated)));
}

/// From HAProxy 2.6.12: `send-proxy-v2-ssl-cn` with `crc32c,unique-id,authority,ssl,cert-cn,cert-key,cert-sig,ssl-cipher`.
#[test]
fn what_haproxy_sends() {
    let wire = b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x9f\x7f\0\0\x01\x7f\0\0\x01\xb3\x06\x1b\xc0\
        \x03\0\x04\x05\x01\x85u\x01\0\x02h2\x02\0\ta.example\
        \x05\0+127.0.0.1:45830_127.0.0.1:7104_1796006177_5\
        \x20\0J\x07\0\0\0\0!\0\x07TLSv1.3\"\0\x08client-1%\0\x07RSA2048$\0\nRSA-SHA256#\0\x16TLS_AES_256_GCM_SHA384";
    let (header, consumed) = outcome(wire).unwrap();
    assert_eq!(consumed, wire.len());
    let addrs = Header::forwarded("127.0.0.1:45830".parse().unwrap(), "127.0.0.1:7104".parse().unwrap());
    assert_eq!(header.endpoints, addrs.endpoints);
    let ssl = header.tlvs.ssl.unwrap();
    assert!(ssl.is_verified());
    assert_eq!(ssl.version.as_deref(), Some("TLSv1.3"));
    assert_eq!(ssl.common_name.as_deref(), Some(b"client-1".as_slice()));
    assert_eq!(header.tlvs.authority.as_deref(), Some("a.example"));
}

#[test]
fn too_long_to_write() {
    let header = Header::forwarded("192.0.2.1:40000".parse().unwrap(), "198.51.100.2:443".parse().unwrap());
    for len in [16_400, 65_536, 70_000] {
        let tlvs = Tlvs { alpn: Some(vec![0; len].into()), ..Tlvs::default() };
        assert_eq!(write_v2(&Header { tlvs, ..header.clone() }), Err(WriteError), "{len}");
    }
}
