//! GeoIP databases (MaxMind DB 2.0) as their publishers make them: both layouts, both families, records shared by
//! pointers, aliases of IPv4 within IPv6.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Where the country of a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `{"country": {"iso_code": "DE"}}`, among names and other things.
    Nested,
    /// `{"country_code": "DE"}`.
    Flat,
}

/// What a database is like.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Of the records.
    pub layout: Layout,
    /// With an IPv6 tree, IPv4 is `::/96`, and `::ffff:0:0/96`, `2001::/32` and `2002::/16` lead there as well.
    pub has_ipv6: bool,
    /// 24, 28 or 32.
    pub record_bits: u8,
    /// By the database's own account.
    pub built_at: SystemTime,
}

/// 2025-06-15.
const BUILT: Duration = Duration::from_secs(1_750_000_000);

/// 16 bytes of zero separate the tree from the data.
const SEPARATOR: usize = 16;

const ALIASES: [(u128, u8); 3] = [(0xffff << 32, 96), (0x2001 << 112, 32), (0x2002 << 112, 16)];

impl Style {
    /// As GeoLite2 is.
    pub fn nested() -> Self {
        Self { layout: Layout::Nested, has_ipv6: true, record_bits: 24, built_at: UNIX_EPOCH + BUILT }
    }

    /// As the free databases of ip-location-db are.
    pub fn flat() -> Self {
        Self { layout: Layout::Flat, record_bits: 28, ..Self::nested() }
    }
}

/// A small IPv4 database that places prefixes in countries. Prefixes must not overlap.
pub fn database(places: &[(Ipv4Addr, u8, &str)]) -> Vec<u8> {
    let places: Vec<(IpNet, &str)> = places
        .iter()
        .map(|(addr, length, country)| (IpNet::V4(Ipv4Net::new(*addr, *length).expect("a prefix length")), *country))
        .collect();
    write(Style { has_ipv6: false, ..Style::nested() }, &places)
}

/// A database of any size. Prefixes must not overlap, and without an IPv6 tree all must be IPv4.
pub fn write(style: Style, places: &[(IpNet, &str)]) -> Vec<u8> {
    let mut tree = Tree { nodes: vec![[Record::Nothing; 2]] };
    let mut data = Data::default();
    let mut records = HashMap::new();
    for (net, country) in places {
        let offset = *records.entry(*country).or_insert_with(|| data.country(style.layout, country));
        let (bits, length) = match net {
            IpNet::V4(net) if style.has_ipv6 => (u128::from(net.addr().to_bits()), net.prefix_len() + 96),
            IpNet::V4(net) => (u128::from(net.addr().to_bits()) << 96, net.prefix_len()),
            IpNet::V6(net) => {
                assert!(style.has_ipv6, "{net} in an IPv4 database");
                (net.addr().to_bits(), net.prefix_len())
            }
        };
        tree.insert(bits, length, Record::Data(offset));
    }
    if style.has_ipv6 {
        let ipv4 = tree.at(0, 96);
        for (bits, length) in ALIASES {
            tree.insert(bits, length, ipv4);
        }
    }
    let mut file = tree.encode(style.record_bits);
    file.extend([0; SEPARATOR]);
    file.extend(data.bytes);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    file.extend(metadata(style, tree.nodes.len()));
    file
}

/// How a record of the search tree ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Record {
    Nothing,
    Node(usize),
    Data(usize),
}

struct Tree {
    nodes: Vec<[Record; 2]>,
}

impl Tree {
    fn insert(&mut self, bits: u128, length: u8, record: Record) {
        let mut node = 0;
        for depth in 0..length - 1 {
            let side = side(bits, depth);
            node = match self.nodes[node][side] {
                Record::Node(next) => next,
                Record::Nothing => {
                    self.nodes.push([Record::Nothing; 2]);
                    self.nodes[node][side] = Record::Node(self.nodes.len() - 1);
                    self.nodes.len() - 1
                }
                Record::Data(_) => panic!("a prefix of length {length} is within another"),
            };
        }
        let last = &mut self.nodes[node][side(bits, length - 1)];
        assert_eq!(*last, Record::Nothing, "a prefix of length {length} is there already, or contains another");
        *last = record;
    }

    fn at(&self, bits: u128, length: u8) -> Record {
        (0..length).fold(Record::Node(0), |record, depth| match record {
            Record::Node(node) => self.nodes[node][side(bits, depth)],
            Record::Nothing | Record::Data(_) => record,
        })
    }

    fn encode(&self, record_bits: u8) -> Vec<u8> {
        let count = self.nodes.len();
        let value = |record| match record {
            Record::Nothing => count,
            Record::Node(node) => node,
            Record::Data(offset) => count + SEPARATOR + offset,
        };
        let mut out = Vec::with_capacity(count * usize::from(record_bits) / 4);
        for pair in &self.nodes {
            let [left, right] = pair.map(|record| u32::try_from(value(record)).expect("a database below 4 GiB"));
            assert!(
                left.max(right).checked_shr(record_bits.into()).unwrap_or(0) == 0,
                "too large for {record_bits} bits"
            );
            let (left, right) = (left.to_be_bytes(), right.to_be_bytes());
            match record_bits {
                24 => out.extend_from_slice(&[left[1], left[2], left[3], right[1], right[2], right[3]]),
                // The byte in the middle has the upper four bits of both.
                28 => {
                    let middle = left[0] << 4 | right[0];
                    out.extend_from_slice(&[left[1], left[2], left[3], middle, right[1], right[2], right[3]]);
                }
                32 => out.extend([left, right].concat()),
                other => panic!("{other} bits"),
            }
        }
        out
    }
}

fn side(bits: u128, depth: u8) -> usize {
    usize::from(bits << depth >> 127 == 1)
}

/// The data section; a text that is there already is pointed to.
#[derive(Default)]
struct Data {
    bytes: Vec<u8>,
    texts: HashMap<String, usize>,
}

impl Data {
    /// Returns where the record begins.
    fn country(&mut self, layout: Layout, code: &str) -> usize {
        // A record does not begin with a pointer, so that what is pointed to is in an earlier record or in this one.
        let start = self.bytes.len();
        match layout {
            Layout::Flat => {
                self.map(1);
                self.text("country_code");
                self.text(code);
            }
            Layout::Nested => {
                self.map(3);
                self.text("continent");
                self.map(1);
                self.text("code");
                self.text("EU");
                // Before the country, and another one: where the network is registered is not where it is.
                self.text("registered_country");
                self.map(1);
                self.text("iso_code");
                self.text("ZZ");
                self.text("country");
                self.map(3);
                self.text("geoname_id");
                self.bytes.extend(unsigned(6, 2_921_044));
                self.text("names");
                self.map(2);
                for language in ["de", "en"] {
                    self.text(language);
                    self.text(&format!("{code} in {language}"));
                }
                self.text("iso_code");
                self.text(code);
            }
        }
        start
    }

    fn map(&mut self, entries: u8) {
        self.bytes.push(7 << 5 | entries);
    }

    fn text(&mut self, value: &str) {
        if let Some(at) = self.texts.get(value) {
            self.bytes.extend(pointer(*at));
        } else {
            self.texts.insert(value.to_owned(), self.bytes.len());
            self.bytes.extend(text(value));
        }
    }
}

fn metadata(style: Style, nodes: usize) -> Vec<u8> {
    let built = style.built_at.duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    map(&[
        ("binary_format_major_version", unsigned(5, 2)),
        ("binary_format_minor_version", unsigned(5, 0)),
        ("build_epoch", long(built)),
        ("database_type", text("Test-Country")),
        ("description", map(&[("en", text("made by a test"))])),
        ("ip_version", unsigned(5, if style.has_ipv6 { 6 } else { 4 })),
        ("languages", vec![0x00, 0x04]),
        ("node_count", unsigned(6, nodes)),
        ("record_size", unsigned(5, style.record_bits.into())),
    ])
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

/// Type 1, with 11 or 19 bits.
fn pointer(to: usize) -> Vec<u8> {
    let below = |to: usize| u32::try_from(to).expect("a data section below 4 GiB").to_be_bytes();
    if to < 2048 {
        let [_, _, high, low] = below(to);
        vec![1 << 5 | high, low]
    } else {
        let [_, high, middle, low] = below(to - 2048);
        assert!(high < 8, "pointers of more bits are not needed for countries");
        vec![1 << 5 | 1 << 3 | high, middle, low]
    }
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

/// Countries of [`registry`], the large ones first.
pub const COUNTRIES: [&str; 24] = [
    "US", "CN", "RU", "BR", "IN", "DE", "GB", "FR", "JP", "KR", "NL", "IT", "PL", "UA", "CA", "AU", "ES", "SE", "TR",
    "VN", "ID", "ZA", "MX", "IR",
];

/// Networks of the world as registries hand them out: ascending, apart, some space left free, mostly IPv4 `/24` to `/16`
/// and IPv6 `/48` to `/29`, the same country often twice in a row. Equal seeds give equal networks.
///
/// Ends early when the space is used up.
pub fn registry(seed: u64, ipv4: usize, ipv6: usize) -> Vec<(IpNet, &'static str)> {
    let mut random = Random(seed);
    let mut places = Vec::with_capacity(ipv4 + ipv6);
    hand_out(&mut random, ipv4, &V4_LENGTHS, 0x0100_0000..0xe000_0000, 32, &mut |addr, length, country| {
        let addr = Ipv4Addr::from_bits(u32::try_from(addr).expect("below 2^32"));
        // 10/8 and 127/8 belong to nobody.
        if !matches!(addr.octets()[0], 10 | 127) {
            places.push((IpNet::V4(Ipv4Net::new_assert(addr, length)), country));
        }
    });
    // In units of a /64; 2001:200::/23 on, which leaves Teredo out, and 2400::/12 on.
    let blocks = [0x2001_0200_u128 << 32..0x2002_0000 << 32, 0x2400_0000 << 32..0x2d00_0000 << 32];
    for (block, count) in blocks.into_iter().zip([ipv6 / 8, ipv6 - ipv6 / 8]) {
        hand_out(&mut random, count, &V6_LENGTHS, block, 64, &mut |addr, length, country| {
            places.push((IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(addr << 64), length)), country));
        });
    }
    places
}

/// Prefix lengths, and how many of a thousand networks have them.
type Lengths = [(u8, u64)];

const V4_LENGTHS: [(u8, u64); 11] =
    [(24, 430), (23, 140), (22, 190), (21, 80), (20, 60), (19, 45), (18, 25), (17, 14), (16, 13), (15, 2), (14, 1)];
const V6_LENGTHS: [(u8, u64); 8] = [(48, 460), (44, 60), (40, 50), (36, 50), (32, 260), (30, 20), (29, 90), (28, 10)];

fn hand_out(
    random: &mut Random,
    count: usize,
    lengths: &Lengths,
    space: std::ops::Range<u128>,
    width: u8,
    place: &mut dyn FnMut(u128, u8, &'static str),
) {
    let (mut next, mut country) = (space.start, COUNTRIES[0]);
    for _ in 0..count {
        let mut ticket = random.below(1000);
        let length = lengths.iter().find(|(_, share)| ticket.checked_sub(*share).map(|rest| ticket = rest).is_none());
        let length = length.map_or(24, |(length, _)| *length);
        let size = 1 << (width - length);
        if random.below(20) == 0 {
            next += size;
        }
        let addr = next.next_multiple_of(size);
        if addr + size > space.end {
            return;
        }
        next = addr + size;
        if random.below(3) > 0 {
            // The product of two favours the first ones.
            let at = random.below(24) * random.below(25) / 24;
            country = COUNTRIES[usize::try_from(at).expect("below 24")];
        }
        place(addr, length, country);
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % limit
    }
}
