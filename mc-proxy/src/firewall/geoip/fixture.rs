//! Small databases for tests, sound and unsound.

use ipnet::IpNet;

/// A value of the format, as far as the tests need them.
pub(crate) enum Value {
    Text(&'static str),
    U16(u16),
    U32(u32),
    U64(u64),
    Map(Vec<(&'static str, Self)>),
    Texts(Vec<&'static str>),
}

use Value::{Map, Text, Texts, U16, U32, U64};

impl Value {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        // Type in the upper three bits, size in the lower five (§ "Output Data Section").
        let control = |kind: u8, size: usize| (kind << 5) | u8::try_from(size).expect("tests are small");
        match self {
            Text(text) => {
                assert!(text.len() < 29);
                out.push(control(2, text.len()));
                out.extend(text.as_bytes());
            }
            U16(number) => {
                out.push(control(5, 2));
                out.extend(number.to_be_bytes());
            }
            U32(number) => {
                out.push(control(6, 4));
                out.extend(number.to_be_bytes());
            }
            // Type 9 does not fit into three bits: 0, and 9 - 7 in the next byte.
            U64(number) => {
                out.extend([control(0, 8), 2]);
                out.extend(number.to_be_bytes());
            }
            Map(entries) => {
                out.push(control(7, entries.len()));
                for (key, value) in entries {
                    Text(key).encode(out);
                    value.encode(out);
                }
            }
            // Type 11, as above.
            Texts(items) => {
                out.extend([control(0, items.len()), 4]);
                items.iter().for_each(|item| Text(item).encode(out));
            }
        }
    }
}

pub(crate) const BUILT: u64 = 1_750_000_000;

/// A database of one network, for other tests.
pub(crate) fn countries(built: u64, record: Value) -> Vec<u8> {
    let (nodes, data) = tree(6, &[], &[("192.0.2.0/24", record)]);
    file(built, 6, 24, &nodes, &data)
}

/// A record without a country.
pub(crate) fn asn() -> Value {
    Map(vec![("autonomous_system_number", U32(64_496))])
}

pub(crate) fn iso(code: &'static str) -> Value {
    Map(vec![
        ("continent", Map(vec![("code", Text("EU"))])),
        ("country", Map(vec![("geoname_id", U32(1)), ("iso_code", Text(code))])),
    ])
}

pub(crate) fn flat(code: &'static str) -> Value {
    Map(vec![("country_code", Text(code))])
}

pub(crate) fn mmdb(ip_version: u16, record_bits: u16, entries: &[(&str, Value)]) -> Vec<u8> {
    mmdb_with_aliases(ip_version, record_bits, &[], entries)
}

/// With prefixes that lead to where IPv4 is, as MaxMind's databases have them.
pub(crate) fn mmdb_with_aliases(
    ip_version: u16,
    record_bits: u16,
    aliases: &[&str],
    entries: &[(&str, Value)],
) -> Vec<u8> {
    let (nodes, data) = tree(ip_version, aliases, entries);
    file(BUILT, ip_version, record_bits, &nodes, &data)
}

#[derive(Clone, Copy)]
enum Slot {
    Empty,
    Node(usize),
    Data(usize),
}

#[derive(Default)]
struct Nodes(Vec<[Slot; 2]>);

impl Nodes {
    /// The slot of a prefix; the nodes above it are made.
    fn slot(&mut self, bits: u128, length: u8) -> &mut Slot {
        let side = |depth: u8| usize::from(bits >> (127 - depth) & 1 == 1);
        if self.0.is_empty() {
            self.0.push([Slot::Empty; 2]);
        }
        let mut node = 0;
        for depth in 0..length - 1 {
            node = match self.0[node][side(depth)] {
                Slot::Node(next) => next,
                Slot::Empty => {
                    self.0.push([Slot::Empty; 2]);
                    let next = self.0.len() - 1;
                    self.0[node][side(depth)] = Slot::Node(next);
                    next
                }
                Slot::Data(_) => panic!("a network is inside another"),
            };
        }
        &mut self.0[node][side(length - 1)]
    }
}

/// A tree of disjoint networks, and its data. In a tree for IPv6, IPv4 lives below `::/96`.
fn tree(ip_version: u16, aliases: &[&str], entries: &[(&str, Value)]) -> (Vec<[u32; 2]>, Vec<u8>) {
    let place = |net: &str| match net.parse().unwrap() {
        IpNet::V4(net) if ip_version == 4 => (u128::from(net.addr().to_bits()) << 96, net.prefix_len()),
        IpNet::V4(net) => (u128::from(net.addr().to_bits()), net.prefix_len() + 96),
        IpNet::V6(net) => (net.addr().to_bits(), net.prefix_len()),
    };
    let (mut nodes, mut data) = (Nodes::default(), Vec::new());
    for (net, value) in entries {
        let (bits, length) = place(net);
        *nodes.slot(bits, length) = Slot::Data(data.len());
        value.encode(&mut data);
    }
    for alias in aliases {
        let ipv4 = *nodes.slot(0, 96);
        let (bits, length) = place(alias);
        *nodes.slot(bits, length) = ipv4;
    }
    let count = nodes.0.len();
    let record = |slot| match slot {
        Slot::Empty => count,
        Slot::Node(at) => at,
        Slot::Data(at) => count + 16 + at,
    };
    let nodes = nodes.0.iter().map(|pair| pair.map(|slot| u32::try_from(record(slot)).unwrap())).collect();
    (nodes, data)
}

/// A file of any nodes whatever.
pub(crate) fn file(built: u64, ip_version: u16, record_bits: u16, nodes: &[[u32; 2]], data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for pair in nodes {
        let [left, right] = pair.map(u32::to_be_bytes);
        match record_bits {
            24 => out.extend([&left[1..], &right[1..]].concat()),
            // The middle byte has the upper four bits of both.
            28 => out.extend([&left[1..], &[(left[0] << 4) | right[0]], &right[1..]].concat()),
            _ => out.extend([left, right].concat()),
        }
    }
    out.extend([0; 16]);
    out.extend(data);
    out.extend(b"\xab\xcd\xefMaxMind.com");
    Map(vec![
        ("binary_format_major_version", U16(2)),
        ("binary_format_minor_version", U16(0)),
        ("build_epoch", U64(built)),
        ("database_type", Text("Test-Country")),
        ("description", Map(vec![("en", Text("a test"))])),
        ("ip_version", U16(ip_version)),
        ("languages", Texts(vec!["en"])),
        ("node_count", U32(u32::try_from(nodes.len()).unwrap())),
        ("record_size", U16(record_bits)),
    ])
    .encode(&mut out);
    out
}
