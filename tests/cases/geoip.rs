//! Countries as prefixes, from databases of the size that publishers have.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use mc_proxy::firewall::{CountryCode, GeoIp};
use mc_proxy_tests::mmdb::{self, COUNTRIES, Style};

const IPV4: usize = 230_000;
const IPV6: usize = 90_000;

/// For one walk; measured are some 20 ms.
const WALK_MAX: Duration = Duration::from_millis(300);

#[test]
fn the_lists_of_large_countries_in_both_layouts() -> Result<()> {
    let places = mmdb::registry(1, IPV4, IPV6);
    ensure!(places.len() > 300_000, "{} networks", places.len());
    let wanted: BTreeSet<CountryCode> = ["CN", "RU", "IR"].iter().map(|code| code.parse()).collect::<Result<_, _>>()?;
    let mut expected = BTreeMap::new();
    for code in &wanted {
        let nets: Vec<IpNet> =
            places.iter().filter(|(_, country)| *country == code.as_str()).map(|(net, _)| *net).collect();
        // Another algorithm than that of the walk.
        let mut fewest = IpNet::aggregate(&nets);
        fewest.sort();
        expected.insert(*code, fewest);
    }

    let directory = tempfile::tempdir()?;
    for (name, style) in [("nested", Style::nested()), ("flat", Style::flat())] {
        let path = directory.path().join(name);
        fs::write(&path, mmdb::write(style, &places))?;
        let begin = Instant::now();
        let geoip = GeoIp::open(&path)?;
        let opened = begin.elapsed();
        let begin = Instant::now();
        let found = geoip.prefixes(&wanted)?;
        let walked = begin.elapsed();

        let mut lists = BTreeMap::<CountryCode, Vec<IpNet>>::new();
        for (net, code) in &found {
            lists.entry(*code).or_default().push(*net);
        }
        for (code, nets) in &expected {
            let list = lists.remove(code).unwrap_or_default();
            let wrong = list.iter().zip(nets).find(|(is, should)| is != should);
            ensure!(
                list == *nets,
                "{name}, {code}: {} prefixes instead of {}, first {wrong:?}",
                list.len(),
                nets.len()
            );
        }
        ensure!(lists.is_empty(), "{name}: unwanted {:?}", lists.keys());
        let large = &expected[&"CN".parse()?];
        let ipv4 = large.iter().filter(|net| net.addr().is_ipv4()).count();
        let ipv6 = large.len() - ipv4;
        ensure!(ipv4 > 10_000 && ipv6 > 5_000, "{name}: {ipv4} IPv4 and {ipv6} IPv6 prefixes are no large country");
        ensure!(found.is_sorted(), "{name}: out of order");
        agree(&geoip, &found, &wanted).with_context(|| name.to_owned())?;
        println!(
            "{name}: {} networks, {} bytes; opened in {opened:?}, {} prefixes in {walked:?}",
            places.len(),
            fs::metadata(&path)?.len(),
            found.len(),
        );
        ensure!(cfg!(debug_assertions) || walked < WALK_MAX, "{name}: the walk took {walked:?}");
    }
    Ok(())
}

#[test]
fn every_country_of_an_ipv4_database() -> Result<()> {
    let places = mmdb::registry(2, 100_000, 0);
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("country.mmdb");
    fs::write(&path, mmdb::write(Style { has_ipv6: false, record_bits: 32, ..Style::nested() }, &places))?;
    let geoip = GeoIp::open(&path)?;
    let wanted = COUNTRIES.iter().map(|code| code.parse()).collect::<Result<BTreeSet<CountryCode>, _>>()?;
    let found = geoip.prefixes(&wanted)?;
    let addresses =
        |nets: &mut dyn Iterator<Item = IpNet>| nets.map(|net| 1_u64 << (32 - net.prefix_len())).sum::<u64>();
    let given = addresses(&mut places.iter().map(|(net, _)| *net));
    ensure!(addresses(&mut found.iter().map(|(net, _)| *net)) == given, "some addresses are lost, or there twice");
    ensure!(found.len() < places.len(), "{} networks did not become fewer than {}", places.len(), found.len());
    agree(&geoip, &found, &wanted)
}

/// Asks for addresses at the borders of prefixes, and for others all over the place.
fn agree(geoip: &GeoIp, found: &[(IpNet, CountryCode)], wanted: &BTreeSet<CountryCode>) -> Result<()> {
    let covering = |addr: IpAddr| {
        let below = found.partition_point(|(net, _)| net.network() <= addr);
        found[..below].last().filter(|(net, _)| net.contains(&addr)).map(|(_, code)| *code)
    };
    let mut asked = 0;
    let mut ask = |addr: IpAddr| {
        let country = geoip.country(addr).filter(|code| wanted.contains(code));
        asked += 1;
        ensure!(covering(addr) == country, "{addr}: the prefixes say {:?}, the look-up {country:?}", covering(addr));
        Ok(())
    };
    for (net, _) in found {
        for (edge, by) in [(net.network(), -1), (net.network(), 0), (net.broadcast(), 0), (net.broadcast(), 1)] {
            ask(near(edge, by))?;
        }
    }
    // Of every part of the space, whether somebody has it or not.
    for at in (0..u32::MAX).step_by(65_521) {
        ask(Ipv4Addr::from_bits(at).into())?;
        ask(Ipv6Addr::from_bits(u128::from(at) << 96 | 1).into())?;
        ask(Ipv6Addr::from_bits(0x2001 << 112 | u128::from(at) << 80).into())?;
        ask(Ipv6Addr::from_bits(0x2002 << 112 | u128::from(at) << 80).into())?;
    }
    ensure!(asked > 4 * found.len() + 200_000, "only {asked} addresses were asked for");
    Ok(())
}

fn near(addr: IpAddr, by: i8) -> IpAddr {
    match addr {
        IpAddr::V4(addr) => Ipv4Addr::from_bits(addr.to_bits().wrapping_add_signed(by.into())).into(),
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits().wrapping_add_signed(by.into())).into(),
    }
}

#[test]
fn equal_seeds_make_equal_databases() -> Result<()> {
    let written = |seed| mmdb::write(Style::flat(), &mmdb::registry(seed, 2_000, 2_000));
    ensure!(written(7) == written(7), "not reproducible");
    ensure!(written(7) != written(8), "the seed means nothing");
    ensure!(GeoIp::open(Path::new("/proc/self/cmdline")).is_err(), "that is no database");
    Ok(())
}
