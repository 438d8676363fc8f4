//! Keys and values of the kernel maps.
//!
//! Addresses are kept as the bytes of the wire and come in and out as `core::net` types, so that byte order cannot be
//! got wrong. No type here has padding: the kernel compares and copies every byte.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Version of these layouts and of their meaning; it is in [`Settings`], and maps of another version are not reused.
pub const ABI: u32 = 1;

/// Entries of each map of blocked addresses.
pub const ADDRESSES_MAX: u32 = 1_048_576;
/// Entries of each map of blocked prefixes.
pub const PREFIXES_MAX: u32 = 1_048_576;
/// Entries of each map of allowed prefixes.
pub const ALLOWED_MAX: u32 = 65_536;
/// Words of the set of listener ports, one bit a port.
pub const PORT_WORDS: u32 = 65_536 / 64;
/// Counters, some of them spare so that a new [`Reason`](crate::reason::Reason) does not change the map's shape.
pub const COUNTERS_MAX: u32 = 32;

/// Rule groups that are counted.
pub const GROUPS_MAX: u32 = 1024;
/// Words of the set of ports, two bits a port.
pub const PORT_FLAG_WORDS: u32 = 65_536 / 32;
/// Lines of the table of rate-limited sources, four sources a line.
pub const RATE_LINES: u32 = 65_536;
/// Bytes of the ring buffer of drop events.
pub const EVENT_BYTES: u32 = 256 * 1024;
/// Words of `CONTROL`: see [`Control`].
pub const CONTROL_WORDS: u32 = 3;

/// What the program is told while it runs: indices of `CONTROL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Control {
    /// A number; when it changes each CPU's budgets are new.
    Epoch = 0,
    /// Events of dropped packets per CPU and epoch.
    DropBudget = 1,
    /// Events of rate violations per CPU and epoch.
    RateBudget = 2,
}

/// What is known of a TCP port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortFlags(u64);

impl PortFlags {
    /// No listener.
    pub const NONE: Self = Self(0);
    /// A listener, whose new connections are not limited in the kernel.
    pub const LISTENER: Self = Self(1);
    /// A listener whose new connections are limited by source.
    pub const LIMITED: Self = Self(3);

    /// The flags of a port in the word with index `port / 32`.
    #[inline(always)]
    pub const fn in_word(word: u64, port: u16) -> Self {
        Self(word >> (port % 32 * 2) & 3)
    }

    /// The word with the flags of `port` set.
    pub const fn set_in(self, word: u64, port: u16) -> u64 {
        let shift = port % 32 * 2;
        word & !(3 << shift) | self.0 << shift
    }

    /// Whether a listener is bound to the port.
    #[inline(always)]
    pub const fn is_listener(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether new connections are limited by source.
    #[inline(always)]
    pub const fn is_limited(self) -> bool {
        self.0 & 2 != 0
    }
}

/// Packets and bytes of one rule group on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GroupCounter {
    /// Packets dropped.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that rules which only count would have dropped.
    pub would_packets: u64,
    /// Their bytes.
    pub would_bytes: u64,
}

/// Events that a CPU may still send in an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    /// The epoch that the rest is for.
    pub epoch: u64,
    /// Of dropped packets.
    pub drops: u64,
    /// Of rate violations.
    pub rate: u64,
}

/// Key of the maps of blocked IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Address4([u8; 4]);

/// Key of the maps of blocked IPv6 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Address6([u8; 16]);

/// Key of the IPv4 tries (`struct bpf_lpm_trie_key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Prefix4 {
    length: u32,
    address: [u8; 4],
}

/// Key of the IPv6 tries (`struct bpf_lpm_trie_key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Prefix6 {
    length: u32,
    address: [u8; 16],
}

/// What a map says of an address or a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RuleValue {
    expires_at: u64,
    group: u32,
    // Room for rules that hold for one listener or only count; zero, and not read, in this version.
    scope: u16,
    action: u8,
    flags: u8,
}

/// Packets and bytes of one reason on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of the frames, from the Ethernet header on; 0 before Linux 5.18, which cannot tell.
    pub bytes: u64,
}

/// How the program judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    abi: u32,
    scope: u32,
}

/// Which packets of a blocked source are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Scope {
    /// TCP to a listener's port.
    Listeners = 1,
    /// All.
    Host = 2,
}

/// A map of the kernel program: what it must look like to be taken over from an earlier daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Symbol in the object and name of the pin.
    pub name: &'static str,
    /// Type.
    pub kind: MapKind,
    /// Bytes.
    pub key_size: u32,
    /// Bytes.
    pub value_size: u32,
    /// Entries.
    pub max_entries: u32,
}

/// The map types in use, with the kernel's numbers (`enum bpf_map_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_HASH`.
    Hash = 1,
    /// `BPF_MAP_TYPE_ARRAY`.
    Array = 2,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray = 6,
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    Trie = 11,
}

/// `SETTINGS`: one [`Settings`].
pub const SETTINGS: MapShape = shape::<u32, Settings>("SETTINGS", MapKind::Array, 1);
/// `PORTS`: the set of listener ports; bit `port % 64` of word `port / 64`.
pub const PORTS: MapShape = shape::<u32, u64>("PORTS", MapKind::Array, PORT_WORDS);
/// `COUNTERS`: a [`Counter`] for each reason.
pub const COUNTERS: MapShape = shape::<u32, Counter>("COUNTERS", MapKind::PerCpuArray, COUNTERS_MAX);
/// `ALLOW4`: allowed IPv4 prefixes.
pub const ALLOW4: MapShape = shape::<Prefix4, RuleValue>("ALLOW4", MapKind::Trie, ALLOWED_MAX);
/// `ALLOW6`: allowed IPv6 prefixes.
pub const ALLOW6: MapShape = shape::<Prefix6, RuleValue>("ALLOW6", MapKind::Trie, ALLOWED_MAX);
/// `BLOCK4`: blocked IPv4 addresses.
pub const BLOCK4: MapShape = shape::<Address4, RuleValue>("BLOCK4", MapKind::Hash, ADDRESSES_MAX);
/// `BLOCK6`: blocked IPv6 addresses.
pub const BLOCK6: MapShape = shape::<Address6, RuleValue>("BLOCK6", MapKind::Hash, ADDRESSES_MAX);
/// `NET4`: blocked IPv4 prefixes.
pub const NET4: MapShape = shape::<Prefix4, RuleValue>("NET4", MapKind::Trie, PREFIXES_MAX);
/// `NET6`: blocked IPv6 prefixes.
pub const NET6: MapShape = shape::<Prefix6, RuleValue>("NET6", MapKind::Trie, PREFIXES_MAX);
/// All maps.
pub const MAPS: [MapShape; 9] = [SETTINGS, PORTS, COUNTERS, ALLOW4, ALLOW6, BLOCK4, BLOCK6, NET4, NET6];

const fn shape<K, V>(name: &'static str, kind: MapKind, max_entries: u32) -> MapShape {
    MapShape { name, kind, key_size: size_of::<K>() as u32, value_size: size_of::<V>() as u32, max_entries }
}

const _: () = {
    assert!(size_of::<Address4>() == 4 && size_of::<Address6>() == 16);
    assert!(size_of::<Prefix4>() == 8 && size_of::<Prefix6>() == 20);
    assert!(size_of::<RuleValue>() == 16 && align_of::<RuleValue>() == 8);
    assert!(size_of::<Counter>() == 16 && size_of::<Settings>() == 8);
};

impl RuleValue {
    /// A rule that holds until it is removed.
    pub const PERMANENT: Self = Self { expires_at: 0, group: 0, scope: 0, action: 0, flags: 0 };

    /// The same until `expires_at`, in nanoseconds of the boot-time clock; 0 is for ever.
    pub const fn until(self, expires_at: u64) -> Self {
        Self { expires_at, ..self }
    }

    /// The same as a member of `group`.
    pub const fn in_group(self, group: u32) -> Self {
        Self { group, ..self }
    }

    /// Nanoseconds of the boot-time clock; 0 = never.
    #[inline(always)]
    pub const fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// The list that the rule came with; 0 = none.
    pub const fn group(&self) -> u32 {
        self.group
    }
}

impl Settings {
    /// For this version's program.
    pub const fn new(scope: Scope) -> Self {
        Self { abi: ABI, scope: scope as u32 }
    }

    /// [`ABI`] of the program that the maps belong to; 0 in maps that were never filled.
    pub const fn abi(&self) -> u32 {
        self.abi
    }

    /// The scope, unless these are another version's settings.
    #[inline(always)]
    pub const fn scope(&self) -> Option<Scope> {
        match (self.abi, self.scope) {
            (ABI, 1) => Some(Scope::Listeners),
            (ABI, 2) => Some(Scope::Host),
            _ => None,
        }
    }
}

impl Address4 {
    /// The address.
    pub const fn addr(self) -> Ipv4Addr {
        Ipv4Addr::from_octets(self.0)
    }
}

impl Address6 {
    /// The address.
    pub const fn addr(self) -> Ipv6Addr {
        Ipv6Addr::from_octets(self.0)
    }
}

impl From<Ipv4Addr> for Address4 {
    #[inline(always)]
    fn from(addr: Ipv4Addr) -> Self {
        Self(addr.octets())
    }
}

impl From<Ipv6Addr> for Address6 {
    #[inline(always)]
    fn from(addr: Ipv6Addr) -> Self {
        Self(addr.octets())
    }
}

impl Prefix4 {
    /// The prefix of `addr` with `length` bits; lengths above 32 are 32, as for the kernel's look-ups.
    #[inline(always)]
    pub const fn new(addr: Ipv4Addr, length: u8) -> Self {
        Self { length: if length > 32 { 32 } else { length as u32 }, address: addr.octets() }
    }

    /// Lowest address of the prefix.
    pub const fn addr(self) -> Ipv4Addr {
        Ipv4Addr::from_octets(self.address)
    }

    /// 0–32.
    pub const fn length(self) -> u8 {
        self.length as u8
    }
}

impl Prefix6 {
    /// The prefix of `addr` with `length` bits; lengths above 128 are 128, as for the kernel's look-ups.
    #[inline(always)]
    pub const fn new(addr: Ipv6Addr, length: u8) -> Self {
        Self { length: if length > 128 { 128 } else { length as u32 }, address: addr.octets() }
    }

    /// Lowest address of the prefix.
    pub const fn addr(self) -> Ipv6Addr {
        Ipv6Addr::from_octets(self.address)
    }

    /// 0–128.
    pub const fn length(self) -> u8 {
        self.length as u8
    }
}

/// Word and bit of a port in [`PORTS`].
#[inline(always)]
pub const fn port_bit(port: u16) -> (u32, u64) {
    (port as u32 / 64, 1 << (port % 64))
}

/// The form under which an address is looked up: IPv4-mapped IPv6 (RFC 4291 §2.5.5.2) is IPv4.
#[inline(always)]
pub const fn canonical(addr: IpAddr) -> IpAddr {
    addr.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_keep_wire_order_and_bound_the_length() {
        let prefix = Prefix4::new(Ipv4Addr::new(198, 51, 100, 0), 24);
        assert_eq!((prefix.addr(), prefix.length()), (Ipv4Addr::new(198, 51, 100, 0), 24));
        assert_eq!(prefix.address, [198, 51, 100, 0]);
        assert_eq!(Prefix4::new(Ipv4Addr::LOCALHOST, 255).length(), 32);
        assert_eq!(Prefix6::new(Ipv6Addr::LOCALHOST, 255).length(), 128);
    }

    #[test]
    fn settings_of_another_version_have_no_scope() {
        assert_eq!(Settings::new(Scope::Host).scope(), Some(Scope::Host));
        assert_eq!(Settings::new(Scope::Listeners).scope(), Some(Scope::Listeners));
        assert_eq!(Settings { abi: ABI + 1, scope: 1 }.scope(), None);
        assert_eq!(Settings { abi: ABI, scope: 0 }.scope(), None);
    }

    #[test]
    fn ports_have_distinct_bits() {
        assert_eq!(port_bit(0), (0, 1));
        assert_eq!(port_bit(443), (6, 1 << 59));
        assert_eq!(port_bit(u16::MAX), (PORT_WORDS - 1, 1 << 63));
    }
}
