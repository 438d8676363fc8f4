use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    time::UNIX_EPOCH,
};

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::{
    fixture::{
        BUILT,
        Value::{self, Map, Text, U32},
        asn, countries, file, flat, iso, mmdb, mmdb_with_aliases,
    },
    *,
};

const ALIASES: [&str; 3] = ["::ffff:0:0/96", "2001::/32", "2002::/16"];

fn both_families(record: fn(&'static str) -> Value) -> [(&'static str, Value); 4] {
    [
        ("192.0.2.0/24", record("RU")),
        ("198.51.100.7/32", record("cn")),
        ("2001:db8::/32", record("DE")),
        ("2001:db9::1/128", record("FR")),
    ]
}

fn opened(bytes: Vec<u8>) -> Result<GeoIp, GeoIpError> {
    GeoIp::from_bytes(&bytes, Path::new("test.mmdb"), Stamp::default())
}

fn found(geoip: &GeoIp, addrs: &[&'static str]) -> BTreeMap<&'static str, Option<String>> {
    let country = |addr: &str| geoip.country(addr.parse().unwrap()).map(|code| code.to_string());
    addrs.iter().map(|addr| (*addr, country(addr))).collect()
}

#[test]
fn both_layouts_in_every_record_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("country.mmdb");
    for (layout, record_bits) in [(iso as fn(_) -> _, 24), (iso, 28), (iso, 32), (flat, 24), (flat, 28), (flat, 32)] {
        fs::write(&path, mmdb(6, record_bits, &both_families(layout))).unwrap();
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

/// All prefixes of some countries, as in `RU 192.0.2.0/24`.
fn prefixes(geoip: &GeoIp, countries: &[&str]) -> Vec<String> {
    let wanted = countries.iter().map(|code| code.parse().unwrap()).collect();
    geoip.prefixes(&wanted).unwrap().into_iter().map(|(net, code)| format!("{code} {net}")).collect()
}

#[test]
fn countries_as_prefixes_in_both_layouts() {
    for layout in [iso as fn(_) -> _, flat] {
        for record_bits in [24, 28, 32] {
            let geoip = opened(mmdb_with_aliases(6, record_bits, &ALIASES, &both_families(layout))).unwrap();
            let all = ["CN 198.51.100.7/32", "DE 2001:db8::/32", "FR 2001:db9::1/128", "RU 192.0.2.0/24"];
            let mut found = prefixes(&geoip, &["RU", "CN", "DE", "FR", "SE"]);
            assert_eq!(found, [all[3], all[0], all[1], all[2]], "{record_bits} bits; ascending, IPv4 first");
            found.sort();
            assert_eq!(found, all);
            assert_eq!(prefixes(&geoip, &["FR", "CN"]), [all[0], all[2]]);
            assert!(prefixes(&geoip, &["SE"]).is_empty());
            assert!(prefixes(&geoip, &[]).is_empty());
        }
    }
}

#[test]
fn an_ipv4_database_has_ipv4_prefixes() {
    let geoip = opened(mmdb(4, 24, &[("192.0.2.0/25", iso("RU")), ("192.0.2.128/25", iso("RU"))])).unwrap();
    assert_eq!(prefixes(&geoip, &["RU"]), ["RU 192.0.2.0/24"]);
}

#[test]
fn neighbours_become_one_prefix_when_they_are_its_halves() {
    let entries = [
        ("10.0.0.0/26", iso("RU")),
        ("10.0.0.64/27", iso("RU")),
        ("10.0.0.96/27", flat("ru")),
        ("10.0.0.128/25", iso("RU")),
        ("10.0.1.0/24", iso("DE")),
        // Neighbours of one length, but not of one parent.
        ("10.0.5.0/24", iso("DE")),
        ("10.0.6.0/24", iso("DE")),
        ("2001:db8::/33", iso("RU")),
        ("2001:db8:8000::/33", iso("RU")),
        ("2001:db9::/32", iso("RU")),
    ];
    let geoip = opened(mmdb(6, 28, &entries)).unwrap();
    let found = ["RU 10.0.0.0/24", "DE 10.0.1.0/24", "DE 10.0.5.0/24", "DE 10.0.6.0/24", "RU 2001:db8::/31"];
    assert_eq!(prefixes(&geoip, &["DE", "RU"]), found);
}

#[test]
fn aliases_of_ipv4_are_no_ipv6() {
    let entries = || [("0.0.0.0/1", iso("RU")), ("192.0.2.0/24", iso("CN")), ("2001:db8::/32", iso("CN"))];
    let aliases = [&ALIASES[..], &["64:ff9b::/96"]].concat();
    for aliases in [&[][..], &aliases] {
        let geoip = opened(mmdb_with_aliases(6, 24, aliases, &entries())).unwrap();
        assert_eq!(prefixes(&geoip, &["RU", "CN"]), ["RU 0.0.0.0/1", "CN 192.0.2.0/24", "CN 2001:db8::/32"]);
        for addr in ["2002:102:304::1", "2001:0:102:304::1", "64:ff9b::1.2.3.4", "::1.2.3.4", "::"] {
            assert_eq!(geoip.country(addr.parse().unwrap()), None, "{addr}");
        }
        assert_eq!(geoip.country("::ffff:1.2.3.4".parse().unwrap()).unwrap().as_str(), "RU");
    }
}

#[test]
fn what_is_no_alias_is_ipv6_of_its_own() {
    let entries = [
        ("1.0.0.0/8", iso("RU")),
        ("2002::/16", iso("DE")),
        ("2001::/32", iso("DE")),
        // Never asked for: such addresses are asked for as IPv4.
        ("::ffff:5.0.0.0/104", iso("DE")),
    ];
    let geoip = opened(mmdb(6, 24, &entries)).unwrap();
    assert_eq!(prefixes(&geoip, &["DE", "RU"]), ["RU 1.0.0.0/8", "DE 2001::/32", "DE 2002::/16"]);
    assert_eq!(geoip.country("2002:102:304::1".parse().unwrap()).unwrap().as_str(), "DE");
    assert_eq!(geoip.country("5.0.0.1".parse().unwrap()), None);
}

#[test]
fn a_record_above_ipv4_holds_for_ipv4() {
    let geoip = opened(mmdb(6, 24, &[("::/8", iso("RU")), ("100::/8", iso("RU")), ("8000::/1", iso("DE"))])).unwrap();
    assert_eq!(prefixes(&geoip, &["DE", "RU"]), ["RU 0.0.0.0/0", "RU ::/7", "DE 8000::/1"]);
    for addr in ["192.0.2.1", "::1", "1ff::1"] {
        assert_eq!(geoip.country(addr.parse().unwrap()).unwrap().as_str(), "RU", "{addr}");
    }
}

#[test]
fn age() {
    let geoip = opened(mmdb(6, 24, &both_families(iso))).unwrap();
    let built = UNIX_EPOCH + Duration::from_secs(BUILT);
    assert_eq!(geoip.age(built + Duration::from_secs(90)), Duration::from_secs(90));
    assert_eq!(geoip.age(built - Duration::from_secs(90)), Duration::ZERO, "built in the future");
}

fn damage(ip_version: u16, nodes: &[[u32; 2]], data: &[u8]) -> String {
    let error = opened(file(BUILT, ip_version, 32, nodes, data)).unwrap_err();
    assert!(matches!(error, GeoIpError::Damaged { .. }), "{error:?}");
    crate::telemetry::describe(&error)
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut data = Vec::new();
    value.encode(&mut data);
    data
}

#[test]
fn trees_that_are_none_are_refused_soon() {
    let data = encoded(&iso("RU"));
    for ip_version in [4, 6] {
        // The root is its own child.
        assert!(damage(ip_version, &[[0, 0]], &data).contains("goes on below 0.0.0.0/32"));
        // A path of nodes of which both branches lead to the next: there are 2^depth ways to the end.
        let depth = if ip_version == 4 { 31 } else { 127 };
        let mut nodes: Vec<_> = (1..=depth).map(|next| [next, next]).collect();
        nodes.push([depth + 1 + 16; 2]);
        assert!(damage(ip_version, &nodes, &data).contains("grow together"));
    }
    // The same, where every way leads to IPv4.
    let mut nodes: Vec<_> = (1..=96).map(|next| [next, next]).collect();
    nodes.push([97 + 16, 97]);
    assert!(damage(6, &nodes, &data).contains("grow together"));
}

#[test]
fn a_record_that_cannot_be_read_is_no_unknown_country() {
    let data = encoded(&iso("RU"));
    let at = |offset: usize| 1 + 16 + u32::try_from(offset).unwrap();
    // Into the 16 bytes between tree and data; behind the data; into the middle of a value that is then too long.
    for bad in [2, 16, at(data.len()), at(1 << 20)] {
        assert!(damage(4, &[[at(0), bad]], &data).contains("the record of 128.0.0.0/1"), "{bad}");
    }
    let cut = &data[..data.len() - 1];
    assert!(damage(4, &[[at(0), 1]], cut).contains("the record of 0.0.0.0/1"));
}

#[test]
fn a_file_is_told_apart_from_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("country.mmdb");
    fs::write(&path, mmdb(6, 24, &both_families(iso))).unwrap();
    let geoip = GeoIp::open(&path).unwrap();
    assert_eq!(geoip.stamp(), Stamp::from(&fs::metadata(&path).unwrap()));
    fs::write(&path, mmdb(6, 28, &both_families(iso))).unwrap();
    assert_ne!(GeoIp::open(&path).unwrap().stamp(), geoip.stamp());
}

/// Of few addresses, so that networks meet.
fn networks() -> impl Strategy<Value = Vec<(IpNet, &'static str)>> {
    let v4 = (0..16_u32, 24..=32_u8).prop_map(|(last, length)| {
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from_bits(0xc000_0200 | last << 4 | last), length).trunc())
    });
    let v6 = (0..16_u128, 60..=72_u8).prop_map(|(part, length)| {
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(0x2001_0db8 << 96 | part << 60), length).trunc())
    });
    let net = (prop_oneof![v4, v6], prop::sample::select(vec!["RU", "RU", "CN", "DE", "--"]));
    prop::collection::vec(net, 1..60).prop_map(|nets| {
        let mut apart: Vec<(IpNet, &str)> = vec![("203.0.113.0/24".parse().unwrap(), "SE")];
        for (net, code) in nets {
            if apart.iter().all(|(other, _)| !other.contains(&net) && !net.contains(other)) {
                apart.push((net, code));
            }
        }
        apart
    })
}

/// The first and last address of networks, and their neighbours.
fn borders(nets: &[(IpNet, &str)]) -> Vec<IpAddr> {
    let near = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => [-1, 0, 1].map(|by| Ipv4Addr::from_bits(addr.to_bits().wrapping_add_signed(by)).into()),
        IpAddr::V6(addr) => [-1, 0, 1].map(|by| Ipv6Addr::from_bits(addr.to_bits().wrapping_add_signed(by)).into()),
    };
    nets.iter().flat_map(|(net, _)| [near(net.network()), near(net.broadcast())]).flatten().collect()
}

proptest! {
    #[test]
    fn prefixes_agree_with_look_ups(
        nets in networks(),
        layout in prop::sample::select(vec![iso as fn(&'static str) -> Value, flat]),
        record_bits in prop::sample::select(vec![24_u16, 28, 32]),
        aliases in prop::sample::select(vec![&[][..], &ALIASES]),
        addrs in prop::collection::vec(any::<IpAddr>(), 20),
    ) {
        let texts: Vec<_> = nets.iter().map(|(net, code)| (net.to_string(), *code)).collect();
        let entries: Vec<_> = texts.iter().map(|(net, code)| (net.as_str(), layout(code))).collect();
        let bytes = mmdb_with_aliases(6, record_bits, aliases, &entries);
        let reader = Reader::from_source(bytes.as_slice()).unwrap();
        let geoip = opened(bytes.clone()).unwrap();
        let wanted: BTreeSet<CountryCode> = ["RU", "CN"].iter().map(|code| code.parse().unwrap()).collect();
        let found = geoip.prefixes(&wanted).unwrap();

        for addr in borders(&nets).into_iter().chain(addrs).map(|addr| addr.to_canonical()) {
            let covering: Vec<_> =
                found.iter().filter(|(net, _)| net.contains(&addr)).map(|(_, code)| *code).collect();
            let country = geoip.country(addr);
            let expected: Vec<_> = country.into_iter().filter(|code| wanted.contains(code)).collect();
            prop_assert_eq!(covering, expected, "{}", addr);
            // The library goes another way through the tree.
            let is_alias = addr.is_ipv6() && !"2001:db8::/29".parse::<IpNet>().unwrap().contains(&addr);
            if !is_alias {
                prop_assert_eq!(decode(&reader.lookup(addr).unwrap()).unwrap(), country);
            }
        }
        for country in wanted {
            let mine: Vec<IpNet> = found.iter().filter(|(_, code)| *code == country).map(|(net, _)| *net).collect();
            prop_assert_eq!(IpNet::aggregate(&mine).len(), mine.len(), "there are no fewer prefixes for {}", country);
        }
        prop_assert!(found.is_sorted());
    }

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
