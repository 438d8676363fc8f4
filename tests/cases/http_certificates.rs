//! Certificates that are replaced under load, without one failure.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use mc_proxy_tests::{
    http::{Edge, Origin, get},
    tls::Identity,
    wait::{SOON, until},
};
use rustix::process::Signal;

/// A daemon, and certificates for it.
fn site(origin: &Origin, count: usize) -> Result<(Edge, Vec<Identity>)> {
    let edge = Edge::to(origin.addr(), "")?;
    let identities = (0..count).map(|_| edge.authority.issue(&["*.example.com"])).collect::<Result<Vec<_>>>()?;
    Ok((edge, identities))
}

fn replace(edge: &Edge, identity: &Identity) -> Result<()> {
    let directory = edge.installation.directory();
    identity.write(&directory.join("app.crt"), &directory.join("app.key"))
}

#[test]
fn a_thousand_reloads_under_load() -> Result<()> {
    let origin = Origin::telling()?;
    let (edge, identities) = site(&origin, 8)?;
    let admin = edge.installation.admin()?;
    let (is_over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let load = || -> Result<()> {
        let mut steady = edge.client().context("the connection that stays")?;
        while !is_over.load(SeqCst) {
            for client in [&mut steady, &mut edge.client().context("a new connection")?] {
                client.ask(get("/")).context("a request")?.expect(200)?;
                served.fetch_add(1, SeqCst);
            }
            if served.load(SeqCst).is_multiple_of(500) {
                steady = edge.client()?;
            }
        }
        Ok(())
    };
    let reloads = || -> Result<()> {
        for number in 0..1_000 {
            let identity = &identities[number % identities.len()];
            replace(&edge, identity)?;
            let reloaded = admin.reload_certificates()?;
            ensure!(reloaded.replaced == 1 && reloaded.failed.is_empty(), "{number}: {reloaded:?}");
            if number % 16 == 0 {
                let shown = edge.client()?.certificate().context("no certificate")?;
                ensure!(shown == identity.der(), "{number}: the certificate of before is still shown");
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let clients = [scope.spawn(load), scope.spawn(load)];
        let reloaded = reloads();
        until("load", SOON, || Ok(served.load(SeqCst) >= 100))?;
        is_over.store(true, SeqCst);
        for client in clients {
            client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        reloaded
    })?;
    println!("{} requests during 1,000 reloads", served.load(SeqCst));
    ensure!(edge.daemon.log().matching(&["level=ERROR"]).is_empty());
    edge.daemon.stop()
}

#[test]
fn by_signal() -> Result<()> {
    let origin = Origin::telling()?;
    let (edge, identities) = site(&origin, 5)?;
    let mut steady = edge.client()?;
    for identity in &identities {
        replace(&edge, identity)?;
        edge.daemon.signal(Signal::HUP)?;
        until("the new certificate", SOON, || {
            Ok(edge.client()?.certificate().context("no certificate")? == identity.der())
        })?;
        steady.ask(get("/"))?.expect(200)?;
    }
    Ok(())
}

#[test]
fn what_cannot_be_used_changes_nothing() -> Result<()> {
    let origin = Origin::telling()?;
    let (edge, identities) = site(&origin, 2)?;
    let admin = edge.installation.admin()?;
    replace(&edge, &identities[0])?;
    ensure!(admin.reload_certificates()?.replaced == 1);
    let (certificate, key) =
        (edge.installation.directory().join("app.crt"), edge.installation.directory().join("app.key"));
    let good = fs::read(&certificate)?;
    // Half a file, none, and the key of another one.
    fs::write(&certificate, &good[..good.len() / 2])?;
    let failed = admin.reload_certificates()?.failed;
    ensure!(failed.len() == 1 && failed[0].tls_cert == certificate.display().to_string(), "{failed:?}");
    fs::remove_file(&certificate)?;
    ensure!(admin.reload_certificates()?.failed.len() == 1);
    fs::write(&certificate, &good)?;
    let elsewhere = edge.installation.directory().join("other.crt");
    identities[1].write(&elsewhere, &key)?;
    ensure!(admin.reload_certificates()?.failed.len() == 1);
    for _ in 0..3 {
        let mut client = edge.client()?;
        ensure!(client.certificate().context("no certificate")? == identities[0].der());
        client.ask(get("/"))?.expect(200)?;
    }
    fs::rename(&elsewhere, &certificate)?;
    let reloaded = admin.reload_certificates()?;
    ensure!(reloaded.replaced == 1 && reloaded.failed.is_empty(), "{reloaded:?}");
    ensure!(edge.client()?.certificate().context("no certificate")? == identities[1].der());
    Ok(())
}
