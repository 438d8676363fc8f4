use std::net::{IpAddr, SocketAddr};

use mc_proxy::proxy_header::{
    Endpoints, Header, MAX_UNIQUE_ID, MAX_V1, Progress, Tlvs, Transport, parse, write_v1, write_v2,
};
use proptest::{collection::vec, option, prelude::*, sample::Index};

use crate::{check, wire::tlv};

fn arb_endpoints() -> impl Strategy<Value = Endpoints> {
    let transport = prop_oneof![Just(Transport::Stream), Just(Transport::Datagram)];
    let ports = any::<[u16; 2]>();
    let inet = |ips: [IpAddr; 2], ports: [u16; 2], transport| Endpoints::Inet {
        transport,
        source: SocketAddr::new(ips[0], ports[0]),
        destination: SocketAddr::new(ips[1], ports[1]),
    };
    prop_oneof![
        (any::<[[u8; 4]; 2]>(), ports, transport.clone()).prop_map(move |(ips, p, t)| inet(ips.map(Into::into), p, t)),
        (any::<[[u8; 16]; 2]>(), ports, transport.clone()).prop_map(move |(ips, p, t)| inet(ips.map(Into::into), p, t)),
        (vec(any::<u8>(), 216), transport).prop_map(|(bytes, transport)| {
            let (paths, _) = bytes.as_chunks();
            Endpoints::Unix { transport, paths: Box::new([paths[0], paths[1]]) }
        }),
    ]
}

fn arb_bytes() -> impl Strategy<Value = Box<[u8]>> {
    vec(any::<u8>(), 0..60).prop_map(Into::into)
}

/// TLVs that nobody writes here: SSL with some of its own, and those of other types.
fn arb_received() -> impl Strategy<Value = Vec<u8>> {
    let inner = vec((0x20..=0x26_u8, arb_bytes()), 0..5);
    let ssl = (any::<[u8; 5]>(), inner).prop_map(|(head, inner)| {
        let inner = inner.into_iter().flat_map(|(kind, value)| tlv(kind, &value));
        tlv(0x20, &head.into_iter().chain(inner).collect::<Vec<_>>())
    });
    let others = vec((0x30..=0xff_u8, arb_bytes()), 0..5);
    (option::of(ssl), others).prop_map(|(ssl, others)| {
        let others = others.into_iter().flat_map(|(kind, value)| tlv(kind, &value));
        ssl.unwrap_or_default().into_iter().chain(others).collect()
    })
}

prop_compose! {
    fn arb_tlvs()(
        alpn in option::of(arb_bytes()),
        authority in option::of("\\PC{0,80}".prop_map(Into::into)),
        unique_id in option::of(vec(any::<u8>(), 0..=MAX_UNIQUE_ID).prop_map(Into::into)),
    ) -> Tlvs {
        Tlvs { alpn, authority, unique_id, ssl: None }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(endpoints in arb_endpoints(), tlvs in arb_tlvs(), after in vec(any::<u8>(), 0..40)) {
        let header = Header { endpoints, tlvs };
        let mut wire = write_v2(&header).unwrap();
        let consumed = wire.len();
        wire.extend(&after);
        prop_assert_eq!(check(&wire), Progress::Complete { header: header.clone(), consumed });
        prop_assert!(matches!(parse(&wire[..consumed - 1]), Progress::Incomplete(1)));

        let mut line = write_v1(&header.endpoints);
        prop_assert!(line.len() <= MAX_V1);
        let consumed = line.len();
        line.extend(after);
        let is_tcp = matches!(header.endpoints, Endpoints::Inet { transport: Transport::Stream, .. });
        let endpoints = if is_tcp { header.endpoints } else { Endpoints::Unknown };
        prop_assert_eq!(check(&line), Progress::Complete { header: Header { endpoints, tlvs: Tlvs::default() }, consumed });
    }

    #[test]
    fn mutated_headers_do_no_harm(
        endpoints in arb_endpoints(),
        tlvs in arb_tlvs(),
        received in arb_received(),
        is_text: bool,
        flips in vec((any::<Index>(), any::<u8>()), 1..4),
        cut_at in option::of(any::<Index>()),
    ) {
        let header = Header { endpoints, tlvs };
        let mut wire = if is_text { write_v1(&header.endpoints) } else { write_v2(&header).unwrap() };
        if !is_text {
            // Without a checksum that would hide the rest; its length is dropped from the header's.
            wire.truncate(wire.len() - 7);
            wire.extend(received);
            let len = u16::try_from(wire.len() - 16).unwrap();
            wire[14..16].copy_from_slice(&len.to_be_bytes());
        }
        for (at, byte) in flips {
            let at = at.index(wire.len());
            wire[at] = byte;
        }
        if let Some(at) = cut_at {
            wire.truncate(at.index(wire.len()));
        }
        check(&wire);
    }

    #[test]
    fn any_line(line in "(PROXY )?(TCP4|TCP6|UNKNOWN|TCP)?[ 0-9a-f.:+\r\n]{0,90}(\r\n)?.{0,10}") {
        check(line.as_bytes());
    }

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..200), is_signed: bool) {
        let start: &[u8] = if is_signed { crate::wire::SIGNATURE } else { &[] };
        check(&[start, &bytes].concat());
    }
}
