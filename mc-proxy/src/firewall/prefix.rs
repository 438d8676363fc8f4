//! Prefixes of both families as one kind of number, in the order in which a prefix comes before those inside it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mc_proxy_common::table;

/// A prefix; the bits of its first address begin at the uppermost, of an IPv4 address too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix {
    pub(super) first: u128,
    pub(super) length: u8,
}

/// What the tables know of IPv4 or IPv6.
pub(super) trait Family {
    /// A prefix in the rule book, in the same order.
    type Key: Copy + Ord + 'static;
    /// Length of an address.
    const BITS: u8;
    /// Length of a granule: what has a word of its own in the tree.
    const GRANULE: u8;
    /// By how much the levels below a granule are longer than each other.
    const STEP: u8;
    const IS_V6: bool;

    fn key(prefix: Prefix) -> Self::Key;
    fn prefix(key: Self::Key) -> Prefix;
    /// Bit of a level in a word.
    fn level_bit(level: u8) -> u32;
    fn entries(entries: &Entries) -> &BTreeMap<Self::Key, u32>;
    fn entries_mut(entries: &mut Entries) -> &mut BTreeMap<Self::Key, u32>;

    /// The level that keeps prefixes of a length beyond the granule's.
    fn level(length: u8) -> u8 {
        (length - Self::GRANULE).div_ceil(Self::STEP)
    }

    /// Length of what a level's slots of one neighbourhood have in common.
    fn parent_length(level: u8) -> u8 {
        Self::GRANULE + (level - 1) * Self::STEP
    }

    fn granule(address: u128) -> u32 {
        (address >> (128 - u32::from(Self::GRANULE))) as u32
    }

    fn net(prefix: Prefix) -> IpNet {
        prefix.to_net(Self::IS_V6)
    }
}

/// What is at each prefix of both families.
#[derive(Debug, Default)]
pub(super) struct Entries {
    v4: BTreeMap<u64, u32>,
    v6: BTreeMap<Key6, u32>,
}

/// Two halves and the length: 24 bytes where a `u128` would make it 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key6 {
    high: u64,
    low: u64,
    length: u8,
}

pub(super) enum V4 {}
pub(super) enum V6 {}

impl Prefix {
    pub(super) fn of(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self { first: u128::from(net.network().to_bits()) << 96, length: net.prefix_len() },
            IpNet::V6(net) => Self { first: net.network().to_bits(), length: net.prefix_len() },
        }
    }

    pub(super) fn address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self { first: u128::from(address.to_bits()) << 96, length: 32 },
            IpAddr::V6(address) => Self { first: address.to_bits(), length: 128 },
        }
    }

    pub(super) fn to_net(self, is_v6: bool) -> IpNet {
        if is_v6 {
            Ipv6Net::new_assert(Ipv6Addr::from_bits(self.first), self.length).into()
        } else {
            Ipv4Net::new_assert(Ipv4Addr::from_bits((self.first >> 96) as u32), self.length).into()
        }
    }

    /// The last address; for IPv4 with ones behind it.
    pub(super) fn last(self) -> u128 {
        self.first | host_bits(self.length)
    }

    /// The prefix of this one with a length that is not greater.
    pub(super) fn parent(self, length: u8) -> Self {
        Self { first: self.first & !host_bits(length), length }
    }

    pub(super) fn contains(self, other: Self) -> bool {
        self.length <= other.length && other.parent(self.length).first == self.first
    }
}

fn host_bits(length: u8) -> u128 {
    u128::MAX.checked_shr(length.into()).unwrap_or(0)
}

impl Family for V4 {
    type Key = u64;
    const BITS: u8 = 32;
    const GRANULE: u8 = 24;
    const STEP: u8 = 1;
    const IS_V6: bool = false;

    fn key(prefix: Prefix) -> u64 {
        (prefix.first >> 96) as u64 * 256 + u64::from(prefix.length)
    }

    fn prefix(key: u64) -> Prefix {
        Prefix { first: u128::from(key / 256) << 96, length: (key % 256) as u8 }
    }

    fn level_bit(level: u8) -> u32 {
        1 << (level - 1)
    }

    fn entries(entries: &Entries) -> &BTreeMap<u64, u32> {
        &entries.v4
    }

    fn entries_mut(entries: &mut Entries) -> &mut BTreeMap<u64, u32> {
        &mut entries.v4
    }
}

impl Family for V6 {
    type Key = Key6;
    const BITS: u8 = 128;
    const GRANULE: u8 = 32;
    const STEP: u8 = 4;
    const IS_V6: bool = true;

    fn key(prefix: Prefix) -> Key6 {
        Key6 { high: (prefix.first >> 64) as u64, low: prefix.first as u64, length: prefix.length }
    }

    fn prefix(key: Key6) -> Prefix {
        Prefix { first: u128::from(key.high) << 64 | u128::from(key.low), length: key.length }
    }

    fn level_bit(level: u8) -> u32 {
        table::level_bit6(level.into())
    }

    fn entries(entries: &Entries) -> &BTreeMap<Key6, u32> {
        &entries.v6
    }

    fn entries_mut(entries: &mut Entries) -> &mut BTreeMap<Key6, u32> {
        &mut entries.v6
    }
}

impl Entries {
    /// From values in order, without a prefix twice.
    pub(super) fn from_sorted(v4: Vec<(Prefix, u32)>, v6: Vec<(Prefix, u32)>) -> Self {
        Self {
            v4: v4.into_iter().map(|(prefix, value)| (V4::key(prefix), value)).collect(),
            v6: v6.into_iter().map(|(prefix, value)| (V6::key(prefix), value)).collect(),
        }
    }

    pub(super) fn get(&self, net: IpNet) -> Option<u32> {
        let prefix = Prefix::of(net);
        match net {
            IpNet::V4(_) => self.v4.get(&V4::key(prefix)).copied(),
            IpNet::V6(_) => self.v6.get(&V6::key(prefix)).copied(),
        }
    }

    /// Sets or removes; returns what was there.
    pub(super) fn set(&mut self, net: IpNet, value: Option<u32>) -> Option<u32> {
        fn set<F: Family>(entries: &mut Entries, prefix: Prefix, value: Option<u32>) -> Option<u32> {
            let entries = F::entries_mut(entries);
            match value {
                Some(value) => entries.insert(F::key(prefix), value),
                None => entries.remove(&F::key(prefix)),
            }
        }
        match net {
            IpNet::V4(_) => set::<V4>(self, Prefix::of(net), value),
            IpNet::V6(_) => set::<V6>(self, Prefix::of(net), value),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Those inside a prefix, itself included, in order.
    pub(super) fn inside<F: Family>(&self, prefix: Prefix) -> impl Iterator<Item = (Prefix, u32)> + '_ {
        let last = Prefix { first: prefix.last(), length: F::BITS };
        F::entries(self).range(F::key(prefix)..=F::key(last)).map(|(key, value)| (F::prefix(*key), *value))
    }

    /// All, IPv4 first, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, u32)> + '_ {
        let v4 = self.v4.iter().map(|(key, value)| (V4::net(V4::prefix(*key)), *value));
        v4.chain(self.v6.iter().map(|(key, value)| (V6::net(V6::prefix(*key)), *value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_comes_before_what_is_inside() {
        for nets in [["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/32"], ["::/0", "2001:db8::/32", "2001:db8::/128"]] {
            let nets = nets.map(|net| net.parse::<IpNet>().unwrap());
            let prefixes = nets.map(Prefix::of);
            assert!(prefixes.is_sorted());
            let is_v6 = matches!(nets[0], IpNet::V6(_));
            assert_eq!(prefixes.map(|prefix| prefix.to_net(is_v6)), nets);
            assert!(prefixes[0].contains(prefixes[2]) && !prefixes[2].contains(prefixes[1]));
        }
        assert_eq!((V6::level(33), V6::level(36), V6::level(37), V6::level(128)), (1, 1, 2, 24));
        assert_eq!((V6::parent_length(1), V6::parent_length(24), V4::parent_length(8)), (32, 124, 31));
        assert_eq!(Prefix { first: 0, length: 0 }.last(), u128::MAX);
    }
}
