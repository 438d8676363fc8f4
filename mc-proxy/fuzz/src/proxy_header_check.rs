//! The PROXY header reader against itself (whole and cut off), against its writer, and against the crate `ppp`.
//!
//! `ppp` 2.3 is an oracle for what both take. Where it takes more, or less, than PROXY §2 says is listed in
//! [`is_stricter_than_ppp`] and [`is_more_lenient_than_ppp`].

use std::net::SocketAddr;

use crate::proxy_header::{
    Endpoints, Header, HeaderError, MAX_V1, MAX_V2, Progress, Tlvs, Transport, WriteError, parse, write_v1, write_v2,
};

/// # Panics
/// When the reader disagrees with itself or its writer, or with `ppp` where the two have to agree.
pub fn check(wire: &[u8]) -> Progress {
    let whole = parse(wire);
    check_prefixes(wire, &whole);
    match &whole {
        Progress::Complete { header, consumed } => {
            assert!(*consumed <= wire.len() && *consumed <= MAX_V2);
            assert_eq!(parse(&wire[..*consumed]), whole, "what follows has no say");
            check_writers(header);
        }
        Progress::Incomplete(missing) => {
            assert!(*missing >= 1 && wire.len() + missing <= MAX_V2, "{missing} more than {}", wire.len());
        }
        Progress::Invalid(_) => {}
    }
    if wire.first() == Some(&b'P') {
        if wire.len() >= MAX_V1 {
            assert!(!matches!(whole, Progress::Incomplete(_)), "a line without an end");
        }
        check_v1(wire, &whole);
    } else {
        check_v2(wire, &whole);
    }
    whole
}

/// Every beginning is incomplete, and says so truly, until the answer is known; then the answer stays.
fn check_prefixes(wire: &[u8], whole: &Progress) {
    let step = wire.len() / 2048 + 1;
    let mut last = Progress::Incomplete(1);
    for len in (0..wire.len()).step_by(step) {
        let progress = parse(&wire[..len]);
        assert!(matches!(last, Progress::Incomplete(_)) || progress == last, "{last:?} became {progress:?} at {len}");
        if let (Progress::Incomplete(missing), Progress::Complete { consumed, .. }) = (&progress, whole) {
            assert!(len + missing <= *consumed, "wants {missing} at {len} of {consumed}");
        }
        last = progress;
    }
    assert!(matches!(last, Progress::Incomplete(_)) || last == *whole, "{last:?} became {whole:?}");
}

/// What was read can be written, but for what is said of SSL, and read again as the same.
fn check_writers(header: &Header) {
    match write_v2(header) {
        Ok(written) => {
            let tlvs = Tlvs { ssl: None, ..header.tlvs.clone() };
            let expected = Header { tlvs, ..header.clone() };
            assert_eq!(parse(&written), complete(expected, written.len()));
        }
        // The checksum that is always written may be what was too much.
        Err(WriteError) => {
            let (alpn, authority) = (header.tlvs.alpn.as_deref(), header.tlvs.authority.as_deref());
            assert!(alpn.map_or(0, <[u8]>::len) + authority.map_or(0, str::len) > MAX_V2 - 512);
        }
    }
    let line = write_v1(&header.endpoints);
    assert!(line.len() <= MAX_V1);
    let endpoints = match &header.endpoints {
        known @ Endpoints::Inet { transport: Transport::Stream, .. } => known.clone(),
        Endpoints::Inet { .. } | Endpoints::Unix { .. } | Endpoints::Local | Endpoints::Unknown => Endpoints::Unknown,
    };
    assert_eq!(parse(&line), complete(Header { endpoints, tlvs: Default::default() }, line.len()));
}

fn complete(header: Header, consumed: usize) -> Progress {
    Progress::Complete { header, consumed }
}

fn check_v1(wire: &[u8], ours: &Progress) {
    use ppp::v1::{Addresses, Header as Theirs};
    let addrs = |endpoints: &Addresses| -> Option<[SocketAddr; 2]> {
        match endpoints {
            Addresses::Unknown => None,
            Addresses::Tcp4(ip) => {
                Some([(ip.source_address, ip.source_port).into(), (ip.destination_address, ip.destination_port).into()])
            }
            Addresses::Tcp6(ip) => {
                Some([(ip.source_address, ip.source_port).into(), (ip.destination_address, ip.destination_port).into()])
            }
        }
    };
    match (ours, Theirs::try_from(wire)) {
        // ppp splits at spaces and CR alike, and takes a field that is a lone LF for the end.
        (_, Ok(theirs)) if theirs.header.strip_suffix("\r\n").is_none_or(|line| line.contains('\n')) => {
            assert!(!matches!(endpoints_of(ours), Some(Endpoints::Inet { .. })), "{theirs:?}");
        }
        (Progress::Complete { header, consumed }, Ok(theirs)) => {
            assert_eq!(theirs.header.len(), *consumed);
            assert_eq!(inet(&header.endpoints), addrs(&theirs.addresses));
        }
        (Progress::Complete { header, consumed }, Err(error)) => {
            assert!(is_more_lenient_than_ppp(header, &wire[..*consumed]), "{header:?} but ppp says {error}");
        }
        (Progress::Invalid(error), Ok(theirs)) => {
            assert!(is_stricter_than_ppp(*error), "{error:?} but ppp says {theirs:?}");
            assert!(theirs.header.contains('+'), "{error:?} but ppp says {theirs:?}");
        }
        (Progress::Incomplete(_), Ok(theirs)) => panic!("incomplete, but ppp says {theirs:?}"),
        (Progress::Incomplete(_) | Progress::Invalid(_), Err(_)) => {}
    }
}

fn check_v2(wire: &[u8], ours: &Progress) {
    use ppp::v2::{Addresses, Header as Theirs, ParseError};
    match (ours, Theirs::try_from(wire)) {
        (Progress::Complete { header, consumed }, Ok(theirs)) => {
            assert_eq!(theirs.len(), *consumed);
            let is_unused = matches!(header.endpoints, Endpoints::Local | Endpoints::Unknown);
            match theirs.addresses {
                // A receiver has to ignore these; ppp leaves that to its caller.
                _ if is_unused => {}
                Addresses::Unspecified => panic!("no addresses, but {header:?}"),
                Addresses::IPv4(ip) => assert_eq!(
                    inet(&header.endpoints),
                    Some([
                        (ip.source_address, ip.source_port).into(),
                        (ip.destination_address, ip.destination_port).into()
                    ])
                ),
                Addresses::IPv6(ip) => assert_eq!(
                    inet(&header.endpoints),
                    Some([
                        (ip.source_address, ip.source_port).into(),
                        (ip.destination_address, ip.destination_port).into()
                    ])
                ),
                Addresses::Unix(unix) => {
                    let Endpoints::Unix { paths, .. } = &header.endpoints else { panic!("{header:?}") };
                    assert_eq!(**paths, [unix.source, unix.destination]);
                }
            }
            if !is_unused {
                check_tlvs(header, &theirs);
            }
        }
        (Progress::Complete { header, .. }, Err(error)) => {
            assert!(is_more_lenient_than_ppp(header, wire), "{header:?} but ppp says {error}");
        }
        (Progress::Invalid(HeaderError::TlvFraming), Ok(theirs)) => {
            let is_inner = |kind| kind == 0x20;
            let is_bad = theirs.tlvs().any(|tlv| tlv.is_err() || tlv.is_ok_and(|tlv| is_inner(tlv.kind)));
            assert!(is_bad, "TLVs that ppp can read");
        }
        (Progress::Invalid(error), Ok(theirs)) => {
            assert!(is_stricter_than_ppp(*error), "{error:?} but ppp says {theirs:?}");
        }
        (Progress::Incomplete(_), Ok(theirs)) => panic!("incomplete, but ppp says {theirs:?}"),
        (Progress::Incomplete(missing), Err(ParseError::Partial(has, of))) => assert_eq!(*missing, of - has),
        (Progress::Incomplete(_), Err(error)) => {
            // `LOCAL` is what has to be skipped whatever its family is.
            let is_local = wire.get(12) == Some(&0x20);
            assert!(is_local || matches!(error, ParseError::Incomplete(_)), "incomplete, but ppp says {error}");
        }
        (Progress::Invalid(_), Err(_)) => {}
    }
}

fn check_tlvs(header: &Header, theirs: &ppp::v2::Header<'_>) {
    let of = |kind: u8| {
        let mut values = theirs.tlvs().map(|tlv| tlv.expect("we could read them")).filter(|tlv| tlv.kind == kind);
        let value = values.next().map(|tlv| tlv.value.into_owned());
        assert!(values.next().is_none());
        value
    };
    let tlvs = &header.tlvs;
    assert_eq!(tlvs.alpn.as_deref(), of(0x01).as_deref());
    let authority = of(0x02).filter(|name| std::str::from_utf8(name).is_ok());
    assert_eq!(tlvs.authority.as_deref().map(str::as_bytes), authority.as_deref());
    assert_eq!(tlvs.unique_id.as_deref(), of(0x05).as_deref());
    assert_eq!(tlvs.ssl.is_some(), of(0x20).is_some());
}

fn endpoints_of(progress: &Progress) -> Option<&Endpoints> {
    match progress {
        Progress::Complete { header, .. } => Some(&header.endpoints),
        Progress::Incomplete(_) | Progress::Invalid(_) => None,
    }
}

fn inet(endpoints: &Endpoints) -> Option<[SocketAddr; 2]> {
    match endpoints {
        Endpoints::Inet { source, destination, .. } => Some([*source, *destination]),
        Endpoints::Unix { .. } | Endpoints::Local | Endpoints::Unknown => None,
    }
}

/// What we refuse and `ppp` takes.
fn is_stricter_than_ppp(error: HeaderError) -> bool {
    match error {
        // `+80` is a port to ppp.
        HeaderError::V1Line
        // The halves of the family byte are looked at one by one, so that 0x01 and 0x10 pass.
        | HeaderError::V2Family
        // ppp has no bound below that of the length field.
        | HeaderError::V2TooLong
        // ppp gives TLVs raw: repeated, with any value, unverified.
        | HeaderError::TlvRepeated
        | HeaderError::TlvTooMany
        | HeaderError::TlvValue
        | HeaderError::Checksum => true,
        HeaderError::Missing
        | HeaderError::V1Port
        | HeaderError::V1TooLong
        | HeaderError::V1Address
        | HeaderError::V2Version
        | HeaderError::V2Command
        | HeaderError::V2TooShort
        | HeaderError::TlvFraming => false,
    }
}

/// What we take, since the specification says so, and `ppp` does not.
fn is_more_lenient_than_ppp(header: &Header, wire: &[u8]) -> bool {
    match header.endpoints {
        // The family of `LOCAL` is to be ignored, and with it how many bytes it would need.
        Endpoints::Local => true,
        // Anything up to the CRLF is to be ignored: a lone CR or LF, what is not UTF-8, and any number of words. ppp stops at
        // the first CR, and at a word that is a lone LF, and takes no more words than a line of TCP has.
        Endpoints::Unknown => {
            let line = wire.strip_suffix(b"\r\n").unwrap_or(wire);
            let is_odd = line.contains(&b'\r') || line.contains(&b'\n') || std::str::from_utf8(line).is_err();
            is_odd || line.split(|byte| *byte == b' ').count() > 6
        }
        Endpoints::Inet { .. } | Endpoints::Unix { .. } => false,
    }
}
