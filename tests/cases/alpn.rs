//! Routes of one server name that differ in the application protocols (ALPN) that the client offers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    backend::Backend,
    client::{End, ask, connect},
    config::loopback,
    daemon::Installation,
    hello::Hello,
    tls::{Authority, Client},
};

const SOON: Duration = Duration::from_secs(20);

fn offering(names: &[&str]) -> Vec<u8> {
    Hello::to("a.example.com").offering(names).bytes()
}

fn from(name: &str) -> End {
    End::Closed(format!("{name}\n").into_bytes())
}

#[test]
fn the_offer_decides_among_routes_of_one_name() -> Result<()> {
    let authority = Authority::new()?;
    let web = authority.backend("web", &["a.example.com"])?;
    let acme = authority.backend("acme", &["a.example.com"])?;
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[[listeners]]\naddr = \"{proxy}\"\n\
         [[listeners.routes]]\nhostname = \"a.example.com\"\nbackend = \"{}\"\n\
         [[listeners.routes]]\nhostname = \"a.example.com\"\nalpn = [\"acme-tls/1\"]\nbackend = \"{}\"\n",
        web.addr(),
        acme.addr()
    ))?;
    let daemon = edge.start()?;

    for (offer, backend, logged) in [
        (vec!["acme-tls/1"], "acme", "alpn=acme-tls/1 tls=1.3,1.2"),
        (vec!["h2", "http/1.1"], "web", "alpn=h2,http/1.1 tls=1.3,1.2"),
        (vec!["h2", "acme-tls/1"], "acme", "alpn=h2,acme-tls/1 tls=1.3,1.2"),
        (vec![], "web", "sni=a.example.com tls=1.3,1.2"),
    ] {
        let mut config = authority.client_config()?;
        config.alpn_protocols = offer.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut client = Client::greet(connect(proxy)?, config, "a.example.com")?;
        ensure!(client.answered_by() == backend, "{offer:?} was answered by {}", client.answered_by());
        client.echo("a line")?;
        client.close()?;
        daemon.log().wait_for(&["connection closed", logged], SOON)?;
    }
    Ok(())
}

#[test]
fn routes_are_managed_while_it_runs() -> Result<()> {
    let (web, _) = Backend::named("web")?;
    let (acme, _) = Backend::named("acme")?;
    let (wild, _) = Backend::named("wild")?;
    let proxy = loopback();
    let edge = Installation::new(&format!("[[listeners]]\naddr = \"{proxy}\"\n"))?;
    let daemon = edge.start()?;
    let (listener, name) = (proxy.to_string(), "a.example.com");
    let [web, acme, wild] = [&web, &acme, &wild].map(|backend| backend.addr().to_string());

    edge.ctl(&["routes", "add", &listener, name, &web])?;
    ensure!(ask(proxy, &offering(&["acme-tls/1"]))? == from("web"));
    edge.ctl(&["routes", "add", &listener, name, &web, "--alpn", "acme-tls/1"])?;
    edge.ctl(&["routes", "add", &listener, name, &acme, "--alpn", "acme-tls/1"]).context("the same route once more")?;
    ensure!(ask(proxy, &offering(&["acme-tls/1"]))? == from("acme"));
    ensure!(ask(proxy, &offering(&["h2"]))? == from("web"));
    edge.ctl(&["routes", "add", &listener, name, &wild, "--alpn", "http/1.1,h2"])?;
    ensure!(ask(proxy, &offering(&["h2"]))? == from("wild"));
    ensure!(ask(proxy, &offering(&[]))? == from("web"));

    let table = edge.ctl(&["routes", "list"])?;
    for alpn in ["any", "acme-tls/1", "h2,http/1.1"] {
        ensure!(table.lines().any(|line| line.split_whitespace().nth(2) == Some(alpn)), "no {alpn} in\n{table}");
    }
    let explain = |alpn: &str| edge.ctl(&["firewall", "explain", "192.0.2.1", name, "--alpn", alpn]);
    ensure!(explain("acme-tls/1")?.contains(&acme) && explain("smtp")?.contains(&web));
    daemon.stop()?;

    // What is left when the route for everybody has gone: the wildcard, and with that nothing.
    let daemon = edge.start()?;
    ensure!(ask(proxy, &offering(&["acme-tls/1"]))? == from("acme"), "after a restart");
    edge.ctl(&["routes", "remove", &listener, name])?;
    ensure!(ask(proxy, &offering(&[]))? == End::Reset(Vec::new()));
    edge.ctl(&["routes", "add", &listener, "*.example.com", &web])?;
    ensure!(ask(proxy, &offering(&["smtp"]))? == from("web"));
    ensure!(ask(proxy, &offering(&["acme-tls/1"]))? == from("acme"));
    let gone = edge.ctl_output(&["routes", "remove", &listener, name])?;
    let text = String::from_utf8_lossy(&gone.stderr).into_owned();
    ensure!(!gone.status.success() && text.contains("it has a.example.com (ALPN acme-tls/1)"), "{text}");
    edge.ctl(&["routes", "remove", &listener, name, "--alpn", "acme-tls/1"])?;
    ensure!(ask(proxy, &offering(&["acme-tls/1"]))? == from("web"));
    daemon.stop()
}

#[test]
fn a_malformed_offer_is_refused_whatever_the_routes_are() -> Result<()> {
    let (rest, _) = Backend::named("rest")?;
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[[listeners]]\naddr = \"{proxy}\"\n[listeners.default]\nbackend = \"{}\"\n",
        rest.addr()
    ))?;
    let _daemon = edge.start()?;
    for data in [vec![], vec![0, 0], vec![0, 1, 0], vec![0, 3, 2, b'h', b'2', 0], vec![0, 9, 2, b'h', b'2']] {
        let hello = Hello::to("a.example.com").with_extension(16, &data).bytes();
        ensure!(ask(proxy, &hello)? == End::Reset(Vec::new()), "{data:?}");
    }
    ensure!(rest.accepts() == 0);
    let outcomes = edge.admin()?.status()?.outcomes;
    let count = outcomes.iter().find(|outcome| outcome.outcome == "alpn_malformed").map(|outcome| outcome.connections);
    ensure!(count == Some(5), "{outcomes:?}");
    ensure!(ask(proxy, &offering(&["h2"]))? == from("rest"));
    Ok(())
}

#[test]
fn the_splice_switch_is_thrown_and_forgotten() -> Result<()> {
    let (rest, _) = Backend::named("rest")?;
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[[listeners]]\naddr = \"{proxy}\"\n[listeners.default]\nbackend = \"{}\"\n",
        rest.addr()
    ))?;
    let daemon = edge.start()?;
    ensure!(edge.admin()?.status()?.splice == "auto");
    edge.ctl(&["splice", "userspace"])?;
    ensure!(edge.admin()?.status()?.splice == "userspace");
    daemon.log().wait_for(&["splice mode set", "mode=userspace", "previous=auto"], SOON)?;
    daemon.stop()?;
    let _daemon = edge.start()?;
    ensure!(edge.admin()?.status()?.splice == "auto", "a restart goes back to the file");
    Ok(())
}
