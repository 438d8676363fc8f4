use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{format, string::String, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::frames::{self, Dice, Shape};

const V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 50);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);
const PORT: u16 = 443;

fn corpus() -> Vec<Shape> {
    frames::corpus(V4, V6, PORT)
}

fn outcome(bytes: &[u8]) -> Result<(IpAddr, Transport), Unjudged> {
    let packet = Packet::parse(bytes)?;
    Ok((packet.source().addr(), packet.transport()))
}

#[test]
fn every_shape_is_understood() {
    use Transport::*;
    let tcp = Tcp { destination: PORT, is_opening: true };
    for shape in corpus() {
        let expected = match shape.name {
            "arp" | "lldp" => Err(Unjudged::NotIp),
            name if name.contains("three tags") => Err(Unjudged::NotIp),
            "ipv4 wrong version" | "ipv4 short header" | "ipv4 short total length" | "ipv6 wrong version" => {
                Err(Unjudged::Malformed)
            }
            "ipv4 tcp empty first fragment"
            | "ipv6 tcp nine extensions"
            | "ipv6 tcp, too many extensions"
            | "ipv6 tcp longest extension"
            | "ipv6 first fragment ends in the chain" => Ok(Hidden),
            "ipv6 empty payload" => Ok(Truncated),
            "ipv6 router solicitation" | "ipv6 neighbor solicitation" | "ipv6 redirect" => Ok(NeighborDiscovery),
            name if name.contains("later fragment") || name.contains("last fragment") => Ok(LaterFragment),
            name if name.contains("tcp") || name.contains("jumbogram") || name == "ipv4 no total length" => Ok(tcp),
            _ => Ok(Other),
        };
        let source = if shape.is_v4 { IpAddr::V4(V4) } else { IpAddr::V6(V6) };
        assert_eq!(outcome(&shape.bytes), expected.map(|transport| (source, transport)), "{}", shape.label());
    }
}

#[test]
fn a_truncated_frame_never_says_another_thing_than_the_whole() {
    for shape in corpus() {
        let whole = outcome(&shape.bytes);
        for length in 0..shape.bytes.len() {
            let label = format!("{} cut to {length}", shape.name);
            match (outcome(&shape.bytes[..length]), whole) {
                (Err(Unjudged::Malformed), _) => {}
                (Err(Unjudged::NotIp), whole) => assert_eq!(whole, Err(Unjudged::NotIp), "{label}"),
                (Ok((source, transport)), Ok((whole_source, whole_transport))) => {
                    assert_eq!(source, whole_source, "{label}");
                    let is_cut = matches!(transport, Transport::Truncated | Transport::Hidden);
                    assert!(is_cut || transport == whole_transport, "{label}: {transport:?}");
                }
                (cut, whole) => panic!("{label}: {cut:?}, but whole {whole:?}"),
            }
        }
    }
}

#[test]
fn a_first_fragment_that_ends_early_hides_its_port() {
    let first = frames::ethernet(&[], 0x86dd, &frames::ipv6(V6, 44, 64, &frames::fragment(6, 0, true, &[1, 2, 3])));
    assert_eq!(outcome(&first), Ok((IpAddr::V6(V6), Transport::Hidden)));
    let whole = frames::ethernet(&[], 0x86dd, &frames::ipv6(V6, 6, 64, &[1, 2, 3]));
    assert_eq!(outcome(&whole), Ok((IpAddr::V6(V6), Transport::Truncated)));
}

/// The whole of RFC 8200 §4 written down another way: a cursor over the payload that the header delimits.
fn reference_v6(next: u8, payload: &[u8]) -> Transport {
    let (mut next, mut rest, mut is_first) = (next, payload, false);
    let cut = |is_first| if is_first { Transport::Hidden } else { Transport::Truncated };
    loop {
        let walked = payload.len() - rest.len();
        let bytes = match (next, rest) {
            (0 | 43 | 44 | 51 | 60, _) if walked >= EXTENSION_BYTES_MAX => return Transport::Hidden,
            (0 | 43 | 60, [following, length, _, _, ..]) => {
                next = *following;
                8 + 8 * usize::from(*length)
            }
            (51, [_, length, _, _, ..]) if length % 2 == 1 => return Transport::Hidden,
            (51, [following, length, _, _, ..]) => {
                next = *following;
                8 + 4 * usize::from(*length)
            }
            (44, [following, _, high, low, ..]) => {
                if (u16::from(*high) << 8 | u16::from(*low)) >> 3 != 0 {
                    return Transport::LaterFragment;
                }
                is_first |= low & 1 == 1;
                next = *following;
                8
            }
            (0 | 43 | 44 | 51 | 60, _) => return cut(is_first),
            (6, [_, _, high, low, rest @ ..]) => {
                let is_opening = rest.get(9).is_none_or(|flags| flags & 0x12 == 0x02);
                return Transport::Tcp { destination: u16::from_be_bytes([*high, *low]), is_opening };
            }
            (58, [133..=137, ..]) if !is_first => return Transport::NeighborDiscovery,
            (6, _) | (58, []) => return cut(is_first),
            _ => return Transport::Other,
        };
        // Whichever ends first: the payload, in whole units, or what is walked.
        if rest.len() < bytes && walked + rest.len() / 8 * 8 < EXTENSION_BYTES_MAX {
            return cut(is_first);
        }
        if walked + bytes > EXTENSION_BYTES_MAX {
            return Transport::Hidden;
        }
        rest = &rest[bytes..];
    }
}

proptest! {
    #[test]
    fn no_frame_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = outcome(&bytes);
    }

    #[test]
    fn no_mutation_panics(seed in any::<u64>(), flips in 1_usize..8) {
        let (mut dice, shapes) = (Dice::new(seed), corpus());
        let mut bytes = shapes[dice.below(shapes.len() as u64) as usize].bytes.clone();
        for _ in 0..flips {
            let at = dice.below(bytes.len() as u64) as usize;
            bytes[at] = dice.below(256) as u8;
        }
        let _ = outcome(&bytes);
    }

    #[test]
    fn extension_chains_agree_with_the_reference(
        headers in prop::collection::vec((prop::sample::select(&[0_u8, 43, 44, 51, 60][..]), 0_u8..10, 0_u8..4), 0..10),
        last in prop::sample::select(&[6_u8, 17, 58, 59][..]),
        cut in 0_usize..120,
        kind in 130_u8..140,
    ) {
        let mut payload = std::vec![kind, 0, 1, 187, 0, 0, 0, 0];
        let mut next = last;
        for (header, length, flags) in headers {
            let bytes = match header { 44 => 8, 51 => (usize::from(length) + 2) * 4, _ => (usize::from(length) + 1) * 8 };
            // Rarely a later fragment, often a first one.
            let mut this = std::vec![next, length, 0, if flags == 3 { 9 } else { flags & 1 }];
            this.resize(bytes, 0);
            this.extend(payload);
            (payload, next) = (this, header);
        }
        payload.truncate(payload.len().saturating_sub(cut));
        let mut frame = frames::ethernet(&[], 0x86dd, &frames::ipv6(V6, next, 255, &payload));
        // Padding is never read.
        frame.extend([6; 40]);
        let is_jumbo = payload.is_empty() && next == 0;
        prop_assume!(!is_jumbo);
        prop_assert_eq!(outcome(&frame), Ok((IpAddr::V6(V6), reference_v6(next, &payload))), "{}", String::from("chain"));
    }
}
