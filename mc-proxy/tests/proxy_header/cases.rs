use mc_proxy::proxy_header::{
    Endpoints, Header,
    HeaderError::{self, *},
    MAX_V1, MAX_V2, Progress, Tlvs, Transport, parse, write_v1, write_v2,
};

use crate::{
    check,
    wire::{INET, LOCAL, PROXY, SIGNATURE, v2, v2_with_len},
};

pub(crate) fn outcome(wire: &[u8]) -> Result<(Header, usize), HeaderError> {
    match check(wire) {
        Progress::Complete { header, consumed } => Ok((header, consumed)),
        Progress::Invalid(error) => Err(error),
        Progress::Incomplete(missing) => panic!("{missing} bytes missing"),
    }
}

fn endpoints(wire: &[u8]) -> Result<Endpoints, HeaderError> {
    outcome(wire).map(|(header, _)| header.endpoints)
}

fn inet(transport: Transport, source: &str, destination: &str) -> Endpoints {
    let [source, destination] = [source, destination].map(|addr| addr.parse().expect("an address"));
    Endpoints::Inet { transport, source, destination }
}

#[test]
fn v1_lines() {
    let tcp = |line: &str| endpoints(line.as_bytes());
    let stream = Transport::Stream;
    for (line, expected) in [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 40000 443\r\n", inet(stream, "192.0.2.1:40000", "198.51.100.2:443")),
        ("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", inet(stream, "0.0.0.0:0", "255.255.255.255:65535")),
        ("PROXY TCP6 2001:db8::1 ::1 1 2\r\n", inet(stream, "[2001:db8::1]:1", "[::1]:2")),
        ("PROXY TCP6 2001:DB8::A :: 1 2\r\n", inet(stream, "[2001:db8::a]:1", "[::]:2")),
        ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", inet(stream, "[::ffff:192.0.2.1]:1", "[::1]:2")),
        ("PROXY UNKNOWN\r\n", Endpoints::Unknown),
        ("PROXY UNKNOWN \r\n", Endpoints::Unknown),
        ("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", Endpoints::Unknown),
        ("PROXY UNKNOWN \r x \n y\r\r\n", Endpoints::Unknown),
    ] {
        assert_eq!(tcp(line), Ok(expected), "{line:?}");
        let (_, consumed) = outcome(format!("{line}\x16\x03\x01").as_bytes()).unwrap();
        assert_eq!(consumed, line.len(), "{line:?}: what follows is the client's");
        for len in 0..line.len() {
            assert!(matches!(parse(&line.as_bytes()[..len]), Progress::Incomplete(_)), "{:?}", &line[..len]);
        }
    }
    assert_eq!(endpoints(b"PROXY UNKNOWN \xff\x00\xfe\r\n"), Ok(Endpoints::Unknown));
}

#[test]
fn v1_lines_that_are_not() {
    for (line, error) in [
        ("PROXX", Missing),
        ("PROXY\tTCP4 1.1.1.1 2.2.2.2 1 2\r\n", Missing),
        ("proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n", Missing),
        ("POST / HTTP/1.1\r\n\r\n", Missing),
        ("PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n", V1Line),
        ("PROXY tcp4 1.1.1.1 2.2.2.2 1 2\r\n", V1Line),
        ("PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n", V1Line),
        ("PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n", V1Line),
        ("PROXY TCP4\r\n", V1Line),
        ("PROXY TCP4 \r\n", V1Line),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n", V1Line),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n", V1Line),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n", V1Line),
        ("PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n", V1Line),
        ("PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n", V1Line),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1  2\r\n", V1Line),
        ("PROXY TCP4 1.1.1.1\t2.2.2.2 1 2\r\n", V1Line),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n", V1Line),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\r\n", V1Line),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\rx", V1Line),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 -2\r\n", V1Line),
        ("PROXY TCP6 fe80::1%1 2.2.2.2 1 2\r\n", V1Line),
        ("PROXY TCP4 01.1.1.1 2.2.2.2 1 2\r\n", V1Address),
        ("PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n", V1Address),
        ("PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n", V1Address),
        ("PROXY TCP4 1.1.1.1. 2.2.2.2 1 2\r\n", V1Address),
        ("PROXY TCP4 ::1 2.2.2.2 1 2\r\n", V1Address),
        ("PROXY TCP6 1.1.1.1 ::1 1 2\r\n", V1Address),
        ("PROXY TCP6 ::1 1:2:3:4:5:6:7 1 2\r\n", V1Address),
        ("PROXY TCP6 ::1 1:2:3:4:5:6:7:8:9 1 2\r\n", V1Address),
        ("PROXY TCP6 ::1 1::2::3 1 2\r\n", V1Address),
        ("PROXY TCP6 ::1 12345::1 1 2\r\n", V1Address),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n", V1Port),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 00\r\n", V1Port),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 a\r\n", V1Port),
    ] {
        assert_eq!(endpoints(line.as_bytes()), Err(error), "{line:?}");
    }
}

#[test]
fn v1_is_bounded() {
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1 - 16));
    assert_eq!(longest.len(), MAX_V1);
    assert_eq!(endpoints(longest.as_bytes()), Ok(Endpoints::Unknown));
    let longer = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1 - 15));
    assert_eq!(endpoints(longer.as_bytes()), Err(V1TooLong));
    assert_eq!(endpoints(&longer.as_bytes()[..MAX_V1]), Err(V1TooLong), "as soon as it is known");
    assert_eq!(parse(&longer.as_bytes()[..MAX_V1 - 1]), Progress::Incomplete(2));
    assert_eq!(endpoints(format!("PROXY TCP6 {}", "f".repeat(200)).as_bytes()), Err(V1TooLong));
    let ip = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255";
    let mapped = format!("PROXY TCP6 {ip} {ip} 65535 65535\r\n");
    assert!(mapped.len() > MAX_V1);
    assert_eq!(endpoints(mapped.as_bytes()), Err(V1TooLong));
}

#[test]
fn v2_families() {
    let addr = |n: u16| [&[0x20, 1, 0x0d, 0xb8], [0; 11].as_slice(), &[n as u8]].concat();
    let inet6 = [addr(1), addr(2), vec![0x9c, 0x40, 1, 0xbb]].concat();
    let [mut from, mut to] = [[0; 108]; 2];
    from[..6].copy_from_slice(b"/run/a");
    to[0] = b'/';
    let unix = [from, to].concat();
    for (transport, bits) in [(Transport::Stream, 1), (Transport::Datagram, 2)] {
        for (family, block, expected) in [
            (0x10, INET, inet(transport, "192.0.2.1:40000", "198.51.100.2:443")),
            (0x20, &inet6, inet(transport, "[2001:db8::1]:40000", "[2001:db8::2]:443")),
            (0x30, &unix, Endpoints::Unix { transport, paths: Box::new([from, to]) }),
        ] {
            let wire = v2(PROXY, family | bits, block);
            assert_eq!(outcome(&wire), Ok((Header { endpoints: expected, tlvs: Tlvs::default() }, wire.len())));
            for len in 0..wire.len() {
                let Progress::Incomplete(missing) = parse(&wire[..len]) else { panic!("{len}") };
                assert!(len < 16 || missing == wire.len() - len, "{missing} at {len}");
            }
            let (_, consumed) = outcome(&[wire.as_slice(), b"\x16\x03"].concat()).unwrap();
            assert_eq!(consumed, wire.len(), "what follows is the client's");
            // One byte less than the addresses need.
            let short = v2(PROXY, family | bits, &block[1..]);
            assert_eq!(endpoints(&short), Err(V2TooShort));
            assert_eq!(endpoints(&short[..16]), Err(V2TooShort), "before its block is there");
        }
    }
}

#[test]
fn v2_without_addresses() {
    for block in [&[][..], INET, b"\x02\xff\xff", &[0xff; 300]] {
        assert_eq!(endpoints(&v2(PROXY, 0, block)), Ok(Endpoints::Unknown));
        for family in [0, 0x11, 0x21, 0x31, 0x10, 0x41, 0xff] {
            let wire = v2(LOCAL, family, block);
            assert_eq!(
                outcome(&wire).unwrap(),
                (Header { endpoints: Endpoints::Local, tlvs: Tlvs::default() }, wire.len())
            );
        }
    }
}

#[test]
fn v2_fixed_part() {
    for at in 0..SIGNATURE.len() {
        let mut wire = v2(PROXY, 0x11, INET);
        wire[at] ^= 1;
        assert_eq!(endpoints(&wire[..=at]), Err(Missing), "at {at}");
    }
    for version_command in 0..=u8::MAX {
        let error = match version_command {
            LOCAL | PROXY => continue,
            0x20..=0x2f => V2Command,
            _ => V2Version,
        };
        assert_eq!(endpoints(&v2(version_command, 0x11, INET)[..13]), Err(error), "{version_command:#x}");
    }
    for family in 0..=u8::MAX {
        let is_known = matches!(family, 0 | 0x11 | 0x12 | 0x21 | 0x22 | 0x31 | 0x32);
        let result = endpoints(&v2(PROXY, family, &[0; 216]));
        // What is behind the addresses are no TLVs.
        assert_eq!(result == Err(V2Family), !is_known, "{family:#x}: {result:?}");
    }
}

#[test]
fn v2_is_bounded() {
    let most = MAX_V2 - 16;
    let padding = [&[4], u16::try_from(most - 12 - 3).unwrap().to_be_bytes().as_slice(), &vec![0; most - 15]].concat();
    let wire = v2(PROXY, 0x11, &[INET, &padding].concat());
    assert_eq!(wire.len(), MAX_V2);
    assert!(outcome(&wire).is_ok());
    let more = u16::try_from(most + 1).unwrap();
    for command in [PROXY, LOCAL] {
        assert_eq!(endpoints(&v2_with_len(command, 0x11, more, &[])), Err(V2TooLong));
        assert_eq!(endpoints(&v2_with_len(command, 0x11, u16::MAX, &[])), Err(V2TooLong));
    }
}

#[test]
fn what_is_not_a_header_is_refused_at_its_first_byte() {
    for wire in [b"\x16\x03\x01".as_slice(), b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\0", b"\n", b" PROXY"] {
        assert_eq!(endpoints(wire), Err(Missing), "{wire:?}");
        assert_eq!(endpoints(&wire[..1]), Err(Missing), "{wire:?}");
    }
    assert_eq!(parse(b""), Progress::Incomplete(15));
}

/// HAProxy maps too, so that both addresses can be told.
#[test]
fn forwarded_addresses_are_of_one_family() {
    for (source, destination, line) in [
        ("192.0.2.1:5", "198.51.100.2:443", "PROXY TCP4 192.0.2.1 198.51.100.2 5 443\r\n"),
        ("[::ffff:192.0.2.1]:5", "198.51.100.2:443", "PROXY TCP4 192.0.2.1 198.51.100.2 5 443\r\n"),
        ("[2001:db8::1]:5", "[2001:db8::2]:443", "PROXY TCP6 2001:db8::1 2001:db8::2 5 443\r\n"),
        ("192.0.2.1:5", "[2001:db8::2]:443", "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 5 443\r\n"),
        ("[2001:db8::1]:5", "198.51.100.2:443", "PROXY TCP6 2001:db8::1 ::ffff:198.51.100.2 5 443\r\n"),
    ] {
        let header = Header::forwarded(source.parse().unwrap(), destination.parse().unwrap());
        assert_eq!(String::from_utf8(write_v1(&header.endpoints)).unwrap(), line);
        check(&write_v2(&header).unwrap());
    }
    let mixed = Endpoints::Inet {
        transport: Transport::Stream,
        source: "192.0.2.1:5".parse().unwrap(),
        destination: "[::1]:6".parse().unwrap(),
    };
    assert_eq!(write_v1(&mixed), b"PROXY UNKNOWN\r\n");
    let header = Header { endpoints: mixed, tlvs: Tlvs::default() };
    assert_eq!(write_v2(&header).unwrap(), v2(PROXY, 0, &[]));
}

#[test]
fn reasons_are_distinct() {
    let reasons: std::collections::BTreeSet<_> = HeaderError::ALL.iter().map(|error| error.reason()).collect();
    assert_eq!(reasons.len(), HeaderError::ALL.len());
    assert!(reasons.iter().all(|reason| reason.starts_with("proxy_")));
}
