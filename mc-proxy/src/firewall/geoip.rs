//! Countries of addresses, from a MaxMind database (MaxMind DB file format specification, version 2.0).
//!
//! Two layouts are read: `country.iso_code` (GeoIP2, GeoLite2, DB-IP) and a flat `country_code` (the free databases of
//! ip-location-db). The `registered_country` is not consulted: it says where a network is registered, not where it is.

use std::{
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use maxminddb::{LookupResult, PathElement, Reader, WithinOptions};

use super::CountryCode;

/// Largest file that is read into memory; the largest city databases have some 150 MB.
const MAX_BYTES: u64 = 1 << 30;

/// Networks that are looked at for a first country before a database counts as having none.
const PROBED_NETWORKS: usize = 100_000;

/// A database in memory; a file that is replaced or truncated later does not matter.
pub struct GeoIp {
    reader: Reader<Vec<u8>>,
    built_at: SystemTime,
}

/// Why a file cannot serve as a GeoIP database.
#[derive(Debug, thiserror::Error)]
pub enum GeoIpError {
    /// Missing, or not allowed to be read.
    #[error("reading the GeoIP database {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Not in MaxMind's format, or cut off.
    #[error("{} is not a GeoIP database; firewall.geoip_db needs an .mmdb file, whole and unpacked", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// In MaxMind's format, but about something else.
    #[error(
        "the database {} ({database_type}) has no countries (neither country.iso_code nor country_code); \
         firewall.geoip_db needs a country or city database", .path.display()
    )]
    NoCountries {
        /// The file.
        path: PathBuf,
        /// What the file says of itself.
        database_type: String,
    },
}

impl GeoIp {
    /// Reads a database whole into memory.
    ///
    /// # Errors
    /// See [`GeoIpError`].
    pub fn open(path: &Path) -> Result<Self, GeoIpError> {
        let bytes = read(path).map_err(|source| GeoIpError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(bytes, path)
    }

    fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self, GeoIpError> {
        let format = |source| GeoIpError::Format { path: path.to_owned(), source };
        let reader = Reader::from_source(bytes).map_err(|e| format(e.into()))?;
        let built_at = reader.metadata().build_time().map_err(|e| format(e.into()))?;
        if !has_countries(&reader).map_err(|e| format(e.into()))? {
            let database_type = reader.metadata().database_type.clone();
            return Err(GeoIpError::NoCountries { path: path.to_owned(), database_type });
        }
        Ok(Self { reader, built_at })
    }

    /// The country of an address; IPv4-mapped IPv6 is asked for as IPv4. `None` when the database does not know the
    /// address, and when it has a record for it that cannot be decoded.
    pub fn country(&self, ip: IpAddr) -> Option<CountryCode> {
        // An IPv6 address in an IPv4 database is an error of the library; to us it is an address without a country.
        country_of(&self.reader.lookup(ip.to_canonical()).ok()?)
    }

    /// What the database says that it is, such as `GeoLite2-Country`.
    pub fn database_type(&self) -> &str {
        &self.reader.metadata().database_type
    }

    /// When the database was built, by its own account.
    pub fn built_at(&self) -> SystemTime {
        self.built_at
    }
}

impl fmt::Debug for GeoIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GeoIp")
            .field("database_type", &self.database_type())
            .field("built_at", &self.built_at)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if meta.len() > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 GiB"));
    }
    std::fs::read(path)
}

/// An ASN database opens just as well, and would silently block nobody.
fn has_countries(reader: &Reader<Vec<u8>>) -> Result<bool, maxminddb::MaxMindDbError> {
    let mut networks = reader.networks(WithinOptions::default())?.take(PROBED_NETWORKS);
    Ok(networks.any(|network| network.is_ok_and(|found| country_of(&found).is_some())))
}

fn country_of(found: &LookupResult<'_, Vec<u8>>) -> Option<CountryCode> {
    let text = |path: &[PathElement<'_>]| found.decode_path::<&str>(path).ok().flatten();
    text(&[PathElement::Key("country"), PathElement::Key("iso_code")])
        .or_else(|| text(&[PathElement::Key("country_code")]))?
        .parse()
        .ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        collections::BTreeMap,
        time::{Duration, UNIX_EPOCH},
    };

    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;

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
        fn encode(&self, out: &mut Vec<u8>) {
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

    /// A database of one network, for other tests.
    pub(crate) fn countries(built: u64, record: Value) -> Vec<u8> {
        mmdb_built(built, 6, 24, &[("192.0.2.0/24", record)])
    }

    /// A record without a country.
    pub(crate) fn asn() -> Value {
        Map(vec![("autonomous_system_number", U32(64_496))])
    }

    const BUILT: u64 = 1_750_000_000;

    pub(crate) fn iso(code: &'static str) -> Value {
        Map(vec![
            ("continent", Map(vec![("code", Text("EU"))])),
            ("country", Map(vec![("geoname_id", U32(1)), ("iso_code", Text(code))])),
        ])
    }

    fn flat(code: &'static str) -> Value {
        Map(vec![("country_code", Text(code))])
    }

    fn mmdb(ip_version: u16, record_bits: u16, entries: &[(&str, Value)]) -> Vec<u8> {
        mmdb_built(BUILT, ip_version, record_bits, entries)
    }

    /// Writes a database of disjoint networks. In a tree for IPv6, IPv4 lives below `::/96`.
    fn mmdb_built(built: u64, ip_version: u16, record_bits: u16, entries: &[(&str, Value)]) -> Vec<u8> {
        #[derive(Clone, Copy)]
        enum Slot {
            Empty,
            Node(usize),
            Data(usize),
        }
        let (mut nodes, mut data) = (vec![[Slot::Empty; 2]], Vec::new());
        for (net, value) in entries {
            let (bits, length) = match net.parse().unwrap() {
                IpNet::V4(net) if ip_version == 4 => (u128::from(net.addr().to_bits()) << 96, net.prefix_len()),
                IpNet::V4(net) => (u128::from(net.addr().to_bits()), net.prefix_len() + 96),
                IpNet::V6(net) => (net.addr().to_bits(), net.prefix_len()),
            };
            let side = |depth: u8| usize::from(bits >> (127 - depth) & 1 == 1);
            let mut node = 0;
            for depth in 0..length - 1 {
                node = match nodes[node][side(depth)] {
                    Slot::Node(next) => next,
                    Slot::Empty => {
                        nodes.push([Slot::Empty; 2]);
                        let next = nodes.len() - 1;
                        nodes[node][side(depth)] = Slot::Node(next);
                        next
                    }
                    Slot::Data(_) => panic!("{net} is inside another"),
                };
            }
            nodes[node][side(length - 1)] = Slot::Data(data.len());
            value.encode(&mut data);
        }
        let mut out = Vec::new();
        for pair in &nodes {
            let [left, right] = pair.map(|slot| match slot {
                Slot::Empty => nodes.len(),
                Slot::Node(at) => at,
                Slot::Data(at) => nodes.len() + 16 + at,
            });
            let [left, right] = [left, right].map(|record| u32::try_from(record).unwrap().to_be_bytes());
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

    fn both_families(record: fn(&'static str) -> Value) -> [(&'static str, Value); 4] {
        [
            ("192.0.2.0/24", record("RU")),
            ("198.51.100.7/32", record("cn")),
            ("2001:db8::/32", record("DE")),
            ("2001:db9::1/128", record("FR")),
        ]
    }

    fn opened(bytes: Vec<u8>) -> Result<GeoIp, GeoIpError> {
        GeoIp::from_bytes(bytes, Path::new("test.mmdb"))
    }

    fn found(geoip: &GeoIp, addrs: &[&'static str]) -> BTreeMap<&'static str, Option<String>> {
        let country = |addr: &str| geoip.country(addr.parse().unwrap()).map(|code| code.to_string());
        addrs.iter().map(|addr| (*addr, country(addr))).collect()
    }

    #[test]
    fn both_layouts_in_every_record_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("country.mmdb");
        for (layout, record_bits) in [(iso as fn(_) -> _, 24), (iso, 28), (iso, 32), (flat, 24), (flat, 28), (flat, 32)]
        {
            std::fs::write(&path, mmdb(6, record_bits, &both_families(layout))).unwrap();
            let geoip = GeoIp::open(&path).unwrap();
            for (addr, country) in [
                ("192.0.2.0", Some("RU")),
                ("192.0.2.255", Some("RU")),
                ("::ffff:192.0.2.9", Some("RU")),
                ("192.0.3.0", None),
                ("198.51.100.7", Some("CN")),
                ("198.51.100.6", None),
                ("2001:db8:ffff::1", Some("DE")),
                ("2001:db9::1", Some("FR")),
                ("2001:db9::2", None),
            ] {
                assert_eq!(found(&geoip, &[addr])[addr].as_deref(), country, "{addr}, {record_bits} bits");
            }
            assert_eq!(geoip.built_at(), UNIX_EPOCH + Duration::from_secs(BUILT));
        }
    }

    #[test]
    fn an_ipv4_database_knows_no_ipv6() {
        let geoip = opened(mmdb(4, 24, &[("192.0.2.0/24", iso("RU"))])).unwrap();
        let known = found(&geoip, &["192.0.2.1", "2001:db8::1"]);
        assert_eq!((known["192.0.2.1"].as_deref(), known["2001:db8::1"].as_deref()), (Some("RU"), None));
    }

    #[test]
    fn a_record_that_makes_no_sense_is_an_unknown_country() {
        let odd = [
            ("192.0.2.0/32", Map(vec![("country", Text("RU"))])),
            ("192.0.2.1/32", Map(vec![("country", Map(vec![("iso_code", U32(7))]))])),
            ("192.0.2.2/32", Map(vec![("country_code", Text("RUS"))])),
            ("192.0.2.3/32", Map(vec![("country_code", Text(""))])),
            ("192.0.2.4/32", Text("RU")),
            ("192.0.2.5/32", Map(Vec::new())),
            ("192.0.2.6/32", Map(vec![("country", Map(Vec::new())), ("country_code", Text("SE"))])),
        ];
        let geoip = opened(mmdb(6, 24, &odd)).unwrap();
        for last in 0..6_u8 {
            assert_eq!(geoip.country([192, 0, 2, last].into()), None, "192.0.2.{last}");
        }
        assert_eq!(geoip.country([192, 0, 2, 6].into()).unwrap().as_str(), "SE");
    }

    #[test]
    fn what_is_no_country_database_is_refused() {
        let error = opened(countries(BUILT, asn())).unwrap_err();
        assert!(matches!(error, GeoIpError::NoCountries { .. }), "{error}");
        assert!(error.to_string().contains("(Test-Country) has no countries"), "{error}");

        let whole = mmdb(6, 24, &both_families(iso));
        for bytes in [Vec::new(), b"\x1f\x8b gzip".to_vec(), whole[..whole.len() / 2].to_vec()] {
            assert!(matches!(opened(bytes), Err(GeoIpError::Format { .. })));
        }
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path(), &dir.path().join("none.mmdb"), Path::new("/dev/zero")] {
            assert!(matches!(GeoIp::open(path), Err(GeoIpError::Read { .. })), "{}", path.display());
        }
    }

    proptest! {
        #[test]
        fn no_damage_makes_it_panic(
            hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
            addrs in prop::collection::vec(any::<IpAddr>(), 4),
        ) {
            let mut bytes = mmdb(6, 24, &both_families(iso));
            prop_assert!(opened(bytes.clone()).is_ok());
            for (at, byte) in hits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(geoip) = opened(bytes) {
                let known = ["192.0.2.1", "198.51.100.7", "2001:db8::1"].map(|addr| addr.parse().unwrap());
                for addr in known.into_iter().chain(addrs) {
                    // Any answer is as good as another; what counts is that there is one.
                    prop_assert!(geoip.country(addr).is_none_or(|code| code.as_str().len() == 2));
                }
            }
        }
    }
}
