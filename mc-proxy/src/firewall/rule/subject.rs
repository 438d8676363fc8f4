//! Whom a rule is about, in one spelling.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net};

use super::RuleError;

/// Whom a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A prefix without host bits; one address is a `/32` or `/128`. IPv4-mapped IPv6 is folded to IPv4.
    Net(IpNet),
    /// Every address that the GeoIP database places in the country.
    Country(CountryCode),
}

/// ISO 3166-1 alpha-2, upper case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CountryCode([u8; 2]);

impl Subject {
    /// One address.
    ///
    /// # Errors
    /// [`RuleError::Ip`].
    pub fn ip(text: &str) -> Result<Self, RuleError> {
        let ip = text.parse::<IpAddr>().map_err(|_| RuleError::Ip(text.to_owned()))?;
        Ok(Self::Net(IpNet::from(ip.to_canonical())))
    }

    /// A prefix in canonical form.
    ///
    /// # Errors
    /// [`RuleError::Cidr`], [`RuleError::HostBits`].
    pub fn cidr(text: &str) -> Result<Self, RuleError> {
        let net = text.parse::<IpNet>().map_err(|_| RuleError::Cidr(text.to_owned()))?;
        if net.trunc() != net {
            return Err(RuleError::HostBits { given: text.to_owned(), canonical: net.trunc() });
        }
        Ok(Self::Net(fold(net)))
    }

    /// A prefix, brought into canonical form: host bits are cleared and IPv4-mapped IPv6 is folded.
    pub fn covering(net: IpNet) -> Self {
        Self::Net(fold(net.trunc()))
    }

    /// Whether this is the one spelling of its subject, as every constructor here makes it.
    pub(super) fn is_canonical(&self) -> bool {
        match self {
            Self::Net(net) => Self::covering(*net) == *self,
            Self::Country(_) => true,
        }
    }

    /// A country.
    ///
    /// # Errors
    /// [`RuleError::Country`].
    pub fn country(text: &str) -> Result<Self, RuleError> {
        text.parse().map(Self::Country)
    }

    /// The address when the subject is exactly one.
    pub fn as_ip(&self) -> Option<IpAddr> {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => Some(net.addr()),
            Self::Net(_) | Self::Country(_) => None,
        }
    }
}

/// Infers the kind from the text, as the command line does: an address, a CIDR, or a country code.
impl FromStr for Subject {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text.len() == 2 && text.bytes().all(|b| b.is_ascii_alphabetic()) {
            Self::country(text)
        } else if text.contains('/') {
            Self::cidr(text)
        } else {
            Self::ip(text)
        }
    }
}

/// The form that [`Subject::from_str`] reads back.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.as_ip(), self) {
            (Some(ip), _) => ip.fmt(f),
            (None, Self::Net(net)) => net.fmt(f),
            (None, Self::Country(code)) => code.fmt(f),
        }
    }
}

impl CountryCode {
    /// Two upper-case letters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("letters are ASCII")
    }
}

impl FromStr for CountryCode {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match *text.as_bytes() {
            [a, b] if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                Ok(Self([a.to_ascii_uppercase(), b.to_ascii_uppercase()]))
            }
            _ => Err(RuleError::Country(text.to_owned())),
        }
    }
}

impl fmt::Display for CountryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `::ffff:192.0.2.0/120` is `192.0.2.0/24`; the kernel sees such packets as IPv4.
fn fold(net: IpNet) -> IpNet {
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(addr) => IpNet::V4(v4_net(addr, v6.prefix_len() - 96)),
            None => net,
        },
        IpNet::V4(_) | IpNet::V6(_) => net,
    }
}

fn v4_net(addr: Ipv4Addr, prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new(addr, prefix_len).expect("128 - 96 = 32 is the longest IPv4 prefix")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_for_one_subject() {
        for (text, canonical) in [
            ("203.0.113.50", "203.0.113.50"),
            ("203.0.113.50/32", "203.0.113.50"),
            ("::ffff:203.0.113.50", "203.0.113.50"),
            ("::ffff:198.51.100.0/120", "198.51.100.0/24"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("2001:db8::1/128", "2001:db8::1"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("ru", "RU"),
        ] {
            let subject: Subject = text.parse().unwrap();
            assert_eq!(subject.to_string(), canonical);
            assert_eq!(canonical.parse::<Subject>().unwrap(), subject);
        }
    }

    #[test]
    fn host_bits_are_named_with_their_remedy() {
        let error = Subject::cidr("198.51.100.7/24").unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"198.51.100.7/24\" has host bits set; the canonical CIDR is \"198.51.100.0/24\""
        );
    }
}
