//! Small GeoIP databases (MaxMind DB 2.0) of the nested layout, `{"country": {"iso_code": "DE"}}`.

use std::net::Ipv4Addr;

/// How a record of the search tree ends.
#[derive(Clone, Copy, Debug)]
enum Record {
    Nothing,
    Node(usize),
    Country(usize),
}

/// A database that places IPv4 prefixes in countries. Later prefixes must not lie within earlier ones.
pub fn database(places: &[(Ipv4Addr, u8, &str)]) -> Vec<u8> {
    let mut nodes = vec![[Record::Nothing; 2]];
    let mut data = Vec::new();
    for (addr, length, country) in places {
        let offset = data.len();
        data.extend(map(&[("country", map(&[("iso_code", text(country))]))]));
        let mut node = 0;
        for depth in 0..*length {
            let bit = (u32::from(*addr) >> (31 - depth) & 1) as usize;
            if depth + 1 == *length {
                nodes[node][bit] = Record::Country(offset);
            } else if let Record::Node(next) = nodes[node][bit] {
                node = next;
            } else {
                nodes.push([Record::Nothing; 2]);
                nodes[node][bit] = Record::Node(nodes.len() - 1);
                node = nodes.len() - 1;
            }
        }
    }

    let count = nodes.len();
    let mut file = Vec::new();
    for record in nodes.into_iter().flatten() {
        let value = match record {
            Record::Nothing => count,
            Record::Node(node) => node,
            // 16 bytes of zero separate the tree from the data.
            Record::Country(offset) => count + 16 + offset,
        };
        file.extend_from_slice(&u32::try_from(value).expect("a small database").to_be_bytes()[1..]);
    }
    file.extend([0; 16]);
    file.extend(data);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    file.extend(map(&[
        ("binary_format_major_version", unsigned(5, 2)),
        ("binary_format_minor_version", unsigned(5, 0)),
        ("build_epoch", long(1_750_000_000)),
        ("database_type", text("Test-Country")),
        ("description", map(&[("en", text("made by a test"))])),
        ("ip_version", unsigned(5, 4)),
        ("languages", vec![0x00, 0x04]),
        ("node_count", unsigned(6, count)),
        ("record_size", unsigned(5, 24)),
    ]));
    file
}

fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![7 << 5 | u8::try_from(entries.len()).expect("a small map")];
    for (key, value) in entries {
        bytes.extend(text(key));
        bytes.extend(value);
    }
    bytes
}

fn text(value: &str) -> Vec<u8> {
    assert!(value.len() < 29, "longer texts have another size byte");
    [&[2 << 5 | value.len() as u8], value.as_bytes()].concat()
}

/// Types 5 (16 bits) and 6 (32 bits).
fn unsigned(kind: u8, value: usize) -> Vec<u8> {
    let bytes = u32::try_from(value).expect("a small number").to_be_bytes();
    let size = if kind == 5 { 2 } else { 4 };
    [&[kind << 5 | size as u8], &bytes[4 - size..]].concat()
}

/// Type 9 (64 bits), an extended type: 9 - 7 in a second byte.
fn long(value: u64) -> Vec<u8> {
    [&[8, 2][..], &value.to_be_bytes()].concat()
}
