//! What is blocked: tables of addresses or prefixes that the packet source can compute without looking them up.
//!
//! `programs.c` computes the same entries, so that a random blocked source costs the generator no memory access.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// The entries that a table can have at most, and how far behind it the sources lie that nothing blocks.
pub(crate) const ENTRIES_MAX: u32 = 1 << 21;

/// Which addresses the entries of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) is_ipv6: bool,
    /// Prefixes instead of single addresses.
    pub(crate) is_prefixes: bool,
    /// All over the address space instead of one after the other.
    pub(crate) is_spread: bool,
}

impl Shape {
    /// All shapes, in the order of the report.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let bits = (0..8).map(|bits: u8| [4, 2, 1].map(|bit| bits & bit != 0));
        bits.map(|[is_ipv6, is_prefixes, is_spread]| Self { is_ipv6, is_prefixes, is_spread })
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = if self.is_ipv6 { "v6" } else { "v4" };
        let kind = if self.is_prefixes { "prefix" } else { "address" };
        let layout = if self.is_spread { "spread" } else { "dense" };
        write!(f, "{family}-{kind}-{layout}")
    }
}

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::all().find(|shape| shape.to_string() == text).ok_or_else(|| {
            let all: Vec<String> = Self::all().map(|shape| shape.to_string()).collect();
            format!("there are {}", all.join(", "))
        })
    }
}

/// A number of entries of one shape. No two of them overlap.
///
/// `dense`: IPv4 from 10.128.0.0, one in four addresses, or every second /31; IPv6 below 2001:db8::/32, one in four
/// addresses of one /64, or every second /64. `spread`: pseudo-random. IPv4 addresses in half of the unicast space;
/// prefixes from /20 (one in 32) over /24 (half) to /30. IPv6 below 4096 /32s, up to 8 /64s in a /48; prefixes are /64,
/// and one in 32 is a /48.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) shape: Shape,
    pub(crate) count: u32,
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.shape, self.count)
    }
}

impl Table {
    /// An entry, with its prefix length.
    pub(crate) fn entry(&self, index: u32) -> (IpAddr, u8) {
        if self.shape.is_ipv6 {
            let (address, length) = self.entry6(index);
            (Ipv6Addr::from_bits(address).into(), length)
        } else {
            let (address, length) = self.entry4(index);
            (Ipv4Addr::from_bits(address).into(), length)
        }
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
        (0..self.count).map(|index| self.entry(index))
    }

    /// Writes every entry with something before and after it, addresses without their length.
    pub(crate) fn write(&self, out: &mut impl Write, before: &str, after: &str) -> io::Result<()> {
        for (address, length) in self.entries() {
            if self.shape.is_prefixes {
                write!(out, "{before}{address}/{length}{after}")?;
            } else {
                write!(out, "{before}{address}{after}")?;
            }
        }
        Ok(())
    }

    fn entry4(&self, index: u32) -> (u32, u8) {
        let Shape { is_prefixes, is_spread, .. } = self.shape;
        if !is_spread {
            return (0x0a80_0000 + 4 * index, if is_prefixes { 31 } else { 32 });
        }
        if !is_prefixes {
            let x = permute(index, 31);
            return (if x < 1 << 30 { 0x2000_0000 + x } else { 0x4000_0000 + x }, 32);
        }
        if index.is_multiple_of(32) {
            return (0x8000_0000 + (permute(index / 32, 18) << 12), 20);
        }
        let hashed = index.wrapping_mul(0x9e37_79b1);
        let host_bits: u8 = match hashed >> 29 {
            4 => 6,
            5 => 4,
            6 => 3,
            7 => 2,
            _ => 8,
        };
        let network = (0x2000_0000 + (permute(index, 22) << 8)) | (hashed & 0xff & !((1 << host_bits) - 1));
        (network, 32 - host_bits)
    }

    fn entry6(&self, index: u32) -> (u128, u8) {
        let Shape { is_prefixes, is_spread, .. } = self.shape;
        let join = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        let documentation: u64 = 0x2001_0db8 << 32;
        match (is_spread, is_prefixes) {
            (false, true) => (join(documentation + 2 * u64::from(index), 0), 64),
            (false, false) => (join(documentation, 4 * u64::from(index)), 128),
            (true, true) if index.is_multiple_of(32) => {
                let x = permute(index / 32, 28);
                (join(site6(x, 0x2c00_0000) | u64::from(x >> 12) << 16, 0), 48)
            }
            (true, _) => {
                let x = permute(index, 31);
                let subnet = u64::from(x >> 12);
                let high = site6(x, 0x2a00_0000) | (subnet >> 3) << 16 | (subnet & 7);
                if is_prefixes {
                    return (join(high, 0), 64);
                }
                (join(high, u64::from(x).wrapping_mul(0x9e37_79b9_7f4a_7c15)), 128)
            }
        }
    }
}

/// One of 4096 /32s.
fn site6(x: u32, first: u32) -> u64 {
    u64::from(first + (x & 0xfff) * 0xa31) << 32
}

/// A permutation of the numbers of `bits` bits.
fn permute(x: u32, bits: u32) -> u32 {
    let mask = (1 << bits) - 1;
    let mut x = x & mask;
    for odd in [0x7feb_352d, 0x846c_a68b] {
        x ^= x >> (bits / 2);
        x = x.wrapping_mul(odd) & mask;
    }
    x ^ (x >> (bits / 2))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn shapes_have_names() {
        let names: Vec<String> = Shape::all().map(|shape| shape.to_string()).collect();
        assert_eq!(names.len(), 8);
        for (shape, name) in Shape::all().zip(&names) {
            assert_eq!(name.parse::<Shape>(), Ok(shape));
        }
        assert!("v5".parse::<Shape>().unwrap_err().contains("v6-prefix-spread"));
    }

    #[test]
    fn entries_are_networks_and_do_not_overlap() {
        for shape in Shape::all() {
            // Every 16th index, of the table and of what lies behind it: the whole in a second.
            let table = Table { shape, count: ENTRIES_MAX };
            let mut ends = BTreeMap::new();
            for index in (0..if shape.is_spread { 2 * ENTRIES_MAX } else { ENTRIES_MAX }).step_by(16) {
                let (address, length) = table.entry(index);
                let (first, bits) = match address {
                    IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
                    IpAddr::V6(address) => (address.to_bits(), 128),
                };
                let host_bits = bits - u32::from(length);
                let size = 1_u128 << host_bits;
                assert_eq!(first % size, 0, "{shape}: {address}/{length} has host bits");
                assert!(!address.is_multicast() && !address.is_loopback(), "{shape}: {address}");
                assert_eq!(ends.insert(first, first + (size - 1)), None, "{shape}: {address} twice");
            }
            let starts = ends.keys().skip(1);
            assert!(ends.values().zip(starts).all(|(end, start)| end < start), "{shape}");
        }
    }

    #[test]
    fn prefixes_have_many_lengths() {
        let shape = "v4-prefix-spread".parse().unwrap();
        let mut lengths = BTreeMap::new();
        for (_, length) in (Table { shape, count: 3200 }).entries() {
            *lengths.entry(length).or_insert(0) += 1;
        }
        assert_eq!(lengths.keys().copied().collect::<Vec<u8>>(), [20, 24, 26, 28, 29, 30]);
        assert_eq!(lengths[&20], 100);
        assert!(lengths[&24] > 1000);
    }

    #[test]
    fn lists_have_an_entry_a_line() {
        let mut out = Vec::new();
        Table { shape: "v4-prefix-dense".parse().unwrap(), count: 2 }.write(&mut out, "add ", "\n").unwrap();
        Table { shape: "v6-address-dense".parse().unwrap(), count: 2 }.write(&mut out, "", ",").unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "add 10.128.0.0/31\nadd 10.128.0.4/31\n2001:db8::,2001:db8::4,");
    }
}
