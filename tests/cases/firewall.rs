//! The firewall in user space: the same rules as in the kernel, for hosts without the kernel plane.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
};

use anyhow::{Result, ensure};
use mc_proxy_tests::{
    backend::Backend,
    client::{End, ask_from},
    config::{listener, loopback},
    daemon::Installation,
    hello::Hello,
    mmdb,
    wait::{SOON, until},
};
use rustix::process::Signal;
use tonic::Code;

#[test]
fn a_blocked_source_gets_a_reset_and_not_one_byte() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("app.example.com", backend.addr())], Some(backend.addr())))?;
    let _daemon = edge.start()?;
    let admin = edge.admin()?;
    let (attacker, neighbour) = (loopback().ip(), loopback().ip());

    ensure!(is_served(attacker, proxy)?);
    for _ in 0..20 {
        admin.block(&attacker.to_string())?;
        ensure!(!is_served(attacker, proxy)?, "served after the block");
        ensure!(is_served(neighbour, proxy)?);
        admin.unblock(&attacker.to_string())?;
        ensure!(is_served(attacker, proxy)?, "refused after the block was removed");
    }
    let refused = admin.block("127.0.0.0/8").expect_err("the backend is within");
    ensure!(refused.code() == Code::FailedPrecondition && refused.message().contains("backend"), "{refused}");
    ensure!(is_served(attacker, proxy)?);
    admin.block_by_force("127.0.0.0/8")?;
    ensure!(!is_served(attacker, proxy)? && !is_served(neighbour, proxy)?);
    admin.allow(&attacker.to_string())?;
    admin.block(&attacker.to_string())?;
    ensure!(is_served(attacker, proxy)?, "allow beats block");
    ensure!(!is_served(neighbour, proxy)?);
    Ok(())
}

#[test]
fn rules_of_the_file_are_in_force_from_the_start() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let (one, two, three) = (loopback().ip(), loopback().ip(), loopback().ip());
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[firewall]\nblocked_ips = [\"{one}\"]\nblocked_cidrs = [\"{two}/32\"]\nallowed_cidrs = [\"{three}/32\"]\n{}",
        listener(proxy, &[("app.example.com", backend.addr())], None)
    ))?;
    let _daemon = edge.start()?;
    ensure!(!is_served(one, proxy)? && !is_served(two, proxy)? && is_served(three, proxy)?);
    ensure!(edge.admin()?.rules()?.len() == 3);
    Ok(())
}

#[test]
fn countries_are_blocked_and_sighup_reloads_them() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let (one, two) = (loopback().ip(), loopback().ip());
    let proxy = loopback();
    let edge = Installation::without_config()?;
    let path = edge.directory().join("country.mmdb");
    fs::write(&path, mmdb::database(&[(v4(one), 32, "RU"), (v4(two), 32, "DE")]))?;
    edge.configure(&format!(
        "[firewall]\ngeoip_db = \"{}\"\nblocked_countries = [\"RU\"]\n{}",
        path.display(),
        listener(proxy, &[("app.example.com", backend.addr())], None)
    ))?;
    let daemon = edge.start()?;
    ensure!(!is_served(one, proxy)? && is_served(two, proxy)?);

    fs::write(&path, mmdb::database(&[(v4(one), 32, "DE"), (v4(two), 32, "RU")]))?;
    daemon.signal(Signal::HUP)?;
    daemon.log().wait_for(&["received SIGHUP, reloading GeoIP database"], SOON)?;
    until("the new database", SOON, || Ok(is_served(one, proxy)? && !is_served(two, proxy)?))?;

    fs::write(&path, b"not a database")?;
    daemon.signal(Signal::HUP)?;
    until("a word about the bad database", SOON, || {
        Ok(!daemon.log().matching(&["level=ERROR"]).is_empty() || !daemon.log().matching(&["level=WARN"]).is_empty())
    })?;
    ensure!(is_served(one, proxy)? && !is_served(two, proxy)?, "the old database is kept");

    fs::write(&path, mmdb::database(&[(v4(one), 32, "CN"), (v4(two), 32, "CN")]))?;
    daemon.signal(Signal::HUP)?;
    until("the third database", SOON, || is_served(two, proxy))?;
    edge.admin()?.block("CN")?;
    ensure!(!is_served(one, proxy)? && !is_served(two, proxy)?, "a country over the admin API");
    Ok(())
}

#[test]
fn rules_change_while_connections_come_in() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("app.example.com", backend.addr())], None))?;
    let _daemon = edge.start()?;
    let good = loopback().ip();
    thread::scope(|scope| -> Result<()> {
        let client = scope.spawn(|| {
            (0..300).try_for_each(|_| {
                ensure!(is_served(good, proxy)?);
                Ok(())
            })
        });
        let admin = edge.admin()?;
        for number in 0..500_u32 {
            admin.block(&Ipv4Addr::from(0xcb00_7100 + number).to_string())?;
        }
        ensure!(admin.rules()?.len() == 500);
        client.join().expect("the client returns its error")
    })
}

fn is_served(source: IpAddr, proxy: SocketAddr) -> Result<bool> {
    let end = ask_from(source, proxy, &Hello::to("app.example.com").bytes())?;
    let is_served = end == End::Closed(b"app\n".to_vec());
    ensure!(is_served || end == End::Reset(Vec::new()), "neither served nor refused: {end:?}");
    Ok(is_served)
}

fn v4(addr: IpAddr) -> Ipv4Addr {
    match addr {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(_) => unreachable!("loopback() gives IPv4"),
    }
}
