//! Who sent a packet, in the form in which it is looked up.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address; IPv4 is kept as IPv4-mapped IPv6 (RFC 4291 §2.5.5.2), so that both spellings are one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Source {
    /// The first 64 bits.
    pub high: u64,
    /// The last 64 bits.
    pub low: u64,
}

const MAPPED: u64 = 0xffff << 32;

impl Source {
    /// An IPv4 address.
    #[inline(always)]
    pub const fn v4(addr: u32) -> Self {
        Self { high: 0, low: MAPPED | addr as u64 }
    }

    /// The IPv4 address, if it is one.
    #[inline(always)]
    pub const fn as_v4(self) -> Option<u32> {
        if self.high == 0 && self.low >> 32 == MAPPED >> 32 { Some(self.low as u32) } else { None }
    }

    /// The address.
    pub const fn addr(self) -> IpAddr {
        match self.as_v4() {
            Some(addr) => IpAddr::V4(Ipv4Addr::from_bits(addr)),
            None => IpAddr::V6(Ipv6Addr::from_bits((self.high as u128) << 64 | self.low as u128)),
        }
    }
}

impl From<IpAddr> for Source {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => Self::v4(addr.to_bits()),
            IpAddr::V6(addr) => Self { high: (addr.to_bits() >> 64) as u64, low: addr.to_bits() as u64 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_for_both_spellings() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
        assert_eq!(source("192.0.2.1").addr().to_string(), "192.0.2.1");
        assert_eq!(source("2001:db8::1").addr().to_string(), "2001:db8::1");
        assert_eq!(source("::192.0.2.1").as_v4(), None);
    }
}
