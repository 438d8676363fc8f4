//! Ethernet frames of every shape that the parser knows and of many that it does not, for tests.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    string::String,
    vec,
    vec::Vec,
};

/// A frame and what it is.
#[derive(Clone, Debug)]
pub struct Shape {
    /// For messages of a failed test.
    pub name: &'static str,
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Whether it is IPv4.
    pub is_v4: bool,
}

/// Every shape once, from the given sources, TCP ones to `port`.
pub fn corpus(v4: Ipv4Addr, v6: Ipv6Addr, port: u16) -> Vec<Shape> {
    let mut shapes = corpus_v4(v4, port);
    shapes.extend(corpus_v6(v6, port));
    shapes.push(Shape { name: "arp", bytes: ethernet(&[], 0x0806, &[0; 28]), is_v4: false });
    shapes.push(Shape { name: "lldp", bytes: ethernet(&[], 0x88cc, &[2, 7, 4]), is_v4: false });
    shapes
}

fn corpus_v4(source: Ipv4Addr, port: u16) -> Vec<Shape> {
    let plain = ipv4(source, 6, 0, 0, &tcp(port));
    let padded = [ethernet(&[], 0x0800, &plain), vec![0; 30]].concat();
    let mut wrong_version = plain.clone();
    wrong_version[0] = 0x65;
    let mut short_header = plain.clone();
    short_header[0] = 0x44;
    let mut short_total = plain.clone();
    short_total[2..4].copy_from_slice(&10_u16.to_be_bytes());
    let mut no_total = plain.clone();
    no_total[2..4].copy_from_slice(&[0, 0]);
    let mut hidden_in_padding = ipv4(source, 6, 0, 0x2000, &[]);
    hidden_in_padding.extend(tcp(port));
    [
        ("ipv4 tcp", ethernet(&[], 0x0800, &plain)),
        ("ipv4 tcp padded", padded),
        ("ipv4 tcp vlan", ethernet(&[0x8100], 0x0800, &plain)),
        ("ipv4 tcp qinq", ethernet(&[0x88a8, 0x8100], 0x0800, &plain)),
        ("ipv4 tcp three tags", ethernet(&[0x88a8, 0x8100, 0x8100], 0x0800, &plain)),
        ("ipv4 tcp options", ethernet(&[], 0x0800, &ipv4(source, 6, 3, 0, &tcp(port)))),
        ("ipv4 tcp most options", ethernet(&[0x8100], 0x0800, &ipv4(source, 6, 10, 0, &tcp(port)))),
        ("ipv4 tcp do not fragment", ethernet(&[], 0x0800, &ipv4(source, 6, 0, 0x4000, &tcp(port)))),
        ("ipv4 tcp first fragment", ethernet(&[], 0x0800, &ipv4(source, 6, 0, 0x2000, &tcp(port)))),
        ("ipv4 tcp later fragment", ethernet(&[], 0x0800, &ipv4(source, 6, 0, 0x2003, &tcp(port)))),
        ("ipv4 tcp last fragment", ethernet(&[], 0x0800, &ipv4(source, 6, 0, 0x0003, &tcp(port)))),
        ("ipv4 tcp empty first fragment", ethernet(&[], 0x0800, &hidden_in_padding)),
        ("ipv4 udp", ethernet(&[], 0x0800, &ipv4(source, 17, 0, 0, &udp(port)))),
        ("ipv4 icmp", ethernet(&[], 0x0800, &ipv4(source, 1, 0, 0, &[8, 0, 0, 0, 0, 0, 0, 0]))),
        ("ipv4 wrong version", ethernet(&[], 0x0800, &wrong_version)),
        ("ipv4 short header", ethernet(&[], 0x0800, &short_header)),
        ("ipv4 short total length", ethernet(&[], 0x0800, &short_total)),
        ("ipv4 no total length", ethernet(&[], 0x0800, &no_total)),
    ]
    .map(|(name, bytes)| Shape { name, bytes, is_v4: true })
    .to_vec()
}

fn corpus_v6(source: Ipv6Addr, port: u16) -> Vec<Shape> {
    let v6 = |next, payload: &[u8]| ethernet(&[], 0x86dd, &ipv6(source, next, 255, payload));
    let plain = ipv6(source, 6, 64, &tcp(port));
    let chain = |count: usize| {
        let mut payload = tcp(port);
        let mut next = 6;
        for _ in 0..count {
            payload = extension(next, 1, &payload);
            next = 60;
        }
        v6(next, &payload)
    };
    let all_kinds = extension(43, 0, &extension(60, 0, &extension(51, 2, &authentication(6, &tcp(port)))));
    let mut jumbo = ipv6(source, 0, 64, &extension(6, 0, &tcp(port)));
    jumbo[4..6].copy_from_slice(&[0, 0]);
    let mut empty = plain.clone();
    empty[4..6].copy_from_slice(&[0, 0]);
    let mut wrong_version = plain.clone();
    wrong_version[0] = 0x45;
    // The first fragment ends within the chain, and its padding looks like TCP to another port.
    let mut hidden = ipv6(source, 44, 64, &fragment(60, 0, true, &[6, 0]));
    hidden.extend([0, 0, 0, 0, 0, 0]);
    hidden.extend(tcp(port ^ 1));
    let neighbor = |kind: u8, hop_limit| {
        ethernet(&[], 0x86dd, &ipv6(source, 58, hop_limit, &[&[kind, 0, 0, 0][..], &[0; 20]].concat()))
    };
    [
        ("ipv6 tcp", ethernet(&[], 0x86dd, &plain)),
        ("ipv6 tcp vlan", ethernet(&[0x8100], 0x86dd, &plain)),
        ("ipv6 tcp qinq", ethernet(&[0x88a8, 0x8100], 0x86dd, &plain)),
        ("ipv6 tcp three tags", ethernet(&[0x88a8, 0x88a8, 0x8100], 0x86dd, &plain)),
        ("ipv6 tcp hop-by-hop", v6(0, &extension(6, 0, &tcp(port)))),
        ("ipv6 tcp every extension", v6(0, &all_kinds)),
        ("ipv6 tcp eight extensions", chain(8)),
        ("ipv6 tcp, too many extensions", chain(9)),
        ("ipv6 tcp extensions of 128 bytes", v6(60, &extension(60, 7, &extension(6, 7, &tcp(port))))),
        ("ipv6 tcp longest extension", v6(60, &extension(6, 255, &tcp(port)))),
        ("ipv6 tcp atomic fragment", v6(44, &fragment(6, 0, false, &tcp(port)))),
        ("ipv6 tcp first fragment", v6(44, &fragment(6, 0, true, &tcp(port)))),
        ("ipv6 tcp first fragment, chain", v6(44, &fragment(60, 0, true, &extension(6, 0, &tcp(port))))),
        ("ipv6 tcp two fragment headers", v6(44, &fragment(44, 0, true, &fragment(6, 0, false, &tcp(port))))),
        ("ipv6 tcp later fragment", v6(44, &fragment(6, 5, true, &tcp(port)))),
        ("ipv6 tcp last fragment", v6(44, &fragment(6, 5, false, &tcp(port)))),
        ("ipv6 first fragment ends in the chain", ethernet(&[], 0x86dd, &hidden)),
        ("ipv6 udp", v6(17, &udp(port))),
        ("ipv6 esp", v6(50, &[0; 16])),
        ("ipv6 no next header", v6(59, &[])),
        ("ipv6 echo", neighbor(128, 255)),
        ("ipv6 router solicitation", neighbor(133, 255)),
        ("ipv6 neighbor solicitation", neighbor(135, 255)),
        ("ipv6 redirect", neighbor(137, 255)),
        ("ipv6 neighbor solicitation from afar", neighbor(135, 64)),
        ("ipv6 fragmented solicitation", v6(44, &fragment(58, 0, true, &[135, 0, 0, 0, 0, 0, 0, 0]))),
        ("ipv6 jumbogram", ethernet(&[], 0x86dd, &jumbo)),
        ("ipv6 empty payload", ethernet(&[], 0x86dd, &empty)),
        ("ipv6 wrong version", ethernet(&[], 0x86dd, &wrong_version)),
    ]
    .map(|(name, bytes)| Shape { name, bytes, is_v4: false })
    .to_vec()
}

/// A frame with VLAN tags, outermost first.
pub fn ethernet(tags: &[u16], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 42]);
    }
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet with `options` words of no-operation and the given flags and fragment offset.
pub fn ipv4(source: Ipv4Addr, protocol: u8, options: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let header = 20 + usize::from(options) * 4;
    let mut packet = vec![0x45 + options, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend([192, 0, 2, 1]);
    packet.resize(header, 1);
    packet.extend(payload);
    packet
}

/// An IPv6 packet.
pub fn ipv6(source: Ipv6Addr, next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, hop_limit]);
    packet.extend(source.octets());
    packet.extend(Ipv6Addr::LOCALHOST.octets());
    packet.extend(payload);
    packet
}

/// An options or routing header of `(length + 1) * 8` bytes.
pub fn extension(next: u8, length: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, length];
    header.resize((usize::from(length) + 1) * 8, 0);
    header.extend(payload);
    header
}

/// A fragment header (RFC 8200 §4.5), `offset` in units of eight bytes.
pub fn fragment(next: u8, offset: u16, has_more: bool, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend((offset << 3 | u16::from(has_more)).to_be_bytes());
    header.extend([0, 0, 0, 7]);
    header.extend(payload);
    header
}

/// A TCP SYN.
pub fn tcp(destination: u16) -> Vec<u8> {
    let mut header = vec![0xc0, 0];
    header.extend(destination.to_be_bytes());
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

/// A UDP datagram.
pub fn udp(destination: u16) -> Vec<u8> {
    let mut header = vec![0xc0, 0];
    header.extend(destination.to_be_bytes());
    header.extend([0, 8, 0, 0]);
    header
}

/// Authentication header (RFC 4302) of 24 bytes.
fn authentication(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 4];
    header.resize(24, 0);
    header.extend(payload);
    header
}

/// A random number generator for reproducible tests (xorshift64*).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same throws.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `bound`, which is above 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound
    }
}

impl Shape {
    /// Name and length, for messages.
    pub fn label(&self) -> String {
        std::format!("{} ({} bytes)", self.name, self.bytes.len())
    }
}
