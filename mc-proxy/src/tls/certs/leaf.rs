//! What operators want to know of a certificate.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Names that are kept: a certificate with more is served all the same.
const NAMES_MAX: usize = 256;

/// Facts of an end-entity certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// DNS names and addresses of the subject alternative name, as they are written there; without any, the common name.
    pub names: Vec<String>,
    /// Not valid before.
    pub not_before: SystemTime,
    /// Not valid after.
    pub not_after: SystemTime,
    /// The common name of who issued it, or its whole name.
    pub issuer: String,
    /// In hexadecimal, as `openssl x509 -serial` has it.
    pub serial: String,
}

/// A certificate that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no X.509 certificate")]
pub struct LeafError;

impl Leaf {
    /// Reads a certificate.
    ///
    /// # Errors
    /// When it is not one certificate, whole and without anything behind it.
    pub fn parse(der: &[u8]) -> Result<Self, LeafError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| LeafError)?;
        if !rest.is_empty() {
            return Err(LeafError);
        }
        let validity = certificate.validity();
        let common_name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let alternative = certificate.subject_alternative_name().map_err(|_| LeafError)?;
        let mut names = match &alternative {
            Some(extension) => extension.value.general_names.iter().filter_map(name).take(NAMES_MAX).collect(),
            None => Vec::new(),
        };
        if names.is_empty() {
            names.extend(common_name.map(str::to_owned));
        }
        let issuer = certificate.issuer();
        let issuer_name = issuer.iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Self {
            names,
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
            issuer: issuer_name.map_or_else(|| issuer.to_string(), str::to_owned),
            serial: significant(certificate.raw_serial()).iter().map(|byte| format!("{byte:02X}")).collect(),
        })
    }

    /// Whole days from `now` to the end of its validity; negative when that is past.
    pub fn days_left(&self, now: SystemTime) -> i64 {
        const DAY: u64 = 24 * 3600;
        match self.not_after.duration_since(now) {
            Ok(left) => i64::try_from(left.as_secs() / DAY).unwrap_or(i64::MAX),
            Err(past) => -i64::try_from(past.duration().as_secs().div_ceil(DAY)).unwrap_or(i64::MAX),
        }
    }

    /// Whether clients who ask for `hostname` take it (RFC 9525 §6.3: a star is one label). The wildcard of a route,
    /// `*.example.com`, needs the same one here.
    pub fn covers(&self, hostname: &str) -> bool {
        let fold = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
        let wanted = fold(hostname);
        let parent = wanted.split_once('.').map(|(_, parent)| parent);
        self.names.iter().map(|name| fold(name)).any(|name| {
            let suffix = name.strip_prefix("*.");
            name == wanted || (suffix.is_some() && suffix == parent)
        })
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(name) = name {
        return Some((*name).to_owned());
    }
    let GeneralName::IPAddress(bytes) = name else { return None };
    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|address| address.to_string())
}

/// Of seconds since 1970, which may be before it.
fn time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let moved = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    moved.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Without the byte that DER puts before a number whose first bit is set.
fn significant(serial: &[u8]) -> &[u8] {
    match serial {
        [0, rest @ ..] if !rest.is_empty() => rest,
        _ => serial,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(names: &[&str]) -> Leaf {
        Leaf {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(30 * 24 * 3600),
            issuer: String::new(),
            serial: String::new(),
        }
    }

    #[test]
    fn a_star_is_one_label() {
        let leaf = leaf(&["a.example", "*.B.example", "192.0.2.1"]);
        for (hostname, is_covered) in [
            ("a.example", true),
            ("A.example.", true),
            ("x.b.example", true),
            ("*.b.example", true),
            ("x.y.b.example", false),
            ("b.example", false),
            ("*.example", false),
            ("*.a.example", false),
        ] {
            assert_eq!(leaf.covers(hostname), is_covered, "{hostname}");
        }
    }

    #[test]
    fn days_are_whole() {
        let leaf = leaf(&[]);
        let at = |seconds| leaf.days_left(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let day = 24 * 3600;
        assert_eq!(
            [at(0), at(1), at(29 * day), at(30 * day), at(30 * day + 1), at(31 * day + 1)],
            [30, 29, 1, 0, -1, -2]
        );
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for bad in [&b""[..], b"\x30\x00", b"\x30\x82\xff\xff", &[0x30; 64]] {
            assert_eq!(Leaf::parse(bad), Err(LeafError));
        }
    }
}
