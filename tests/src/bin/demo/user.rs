//! What can be shown without rights: the user plane, on loopback.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    backend::Backend,
    client::{End, ask_from},
    config::{listener, loopback},
    daemon::{Daemon, Installation},
    hello::Hello,
    tls::Authority,
    wait::{SOON, until},
};

use crate::{
    report::{Figures, Report, watch},
    rules::{shown, told},
    visits::visit,
    web::{Places, Web},
};

struct Site {
    edge: Installation,
    _backends: [Backend; 2],
    web: Web,
    authority: Authority,
    proxy: SocketAddr,
    places: Places,
    attacker: IpAddr,
}

pub(crate) fn show(report: &mut Report, reason: &str) -> Result<()> {
    report.say(&format!(
        "NOT SHOWN: {reason}.\n\
         Not shown are therefore: drops in the kernel, a block that outlives SIGKILL, adoption, a country dropped by XDP,\n\
         a rule that ends while the daemon is stopped, the packet counters of a group.\n\
         Shown is what the user plane does, on loopback. Run as root to see the rest."
    ));
    let site = report.must("backends and the configuration", build)?;
    let daemon = report.must("the daemon starts", |figures| {
        let daemon = site.edge.start()?;
        figures.add(format!("ready after {:.0} ms", daemon.ready_after().as_secs_f64() * 1e3));
        Ok(daemon)
    })?;
    report.must("the name in the ClientHello decides who answers", |figures| route(&site, figures))?;
    let mut browser = report.must("a browser: TLS ends at the edge, HTTP goes on to the backend", |figures| {
        site.web.browse(&site.authority, site.places, figures)
    })?;
    report.must("a policy, added at run time, refuses a user agent", |figures| {
        site.web.refuse_agent(&site.edge, &site.places.https.to_string(), &mut browser, figures)
    })?;
    drop(browser);
    report.must("a WebSocket", |figures| site.web.talk(&site.authority, site.places, figures))?;
    report
        .must("gRPC, unary and in both directions", |figures| site.web.call(&site.authority, site.places, figures))?;
    report.must("HTTP without TLS is sent to https", |figures| site.web.redirect(site.places, figures))?;
    report.must("one command blocks a source, in user space", |figures| block(&site, figures))?;
    let daemon = report.must("SIGKILL: what was acknowledged is not lost", |figures| kill(&site, daemon, figures))?;
    report.must("the rule is removed, and the traffic returns", |figures| {
        let source = site.attacker.to_string();
        site.edge.ctl(&["firewall", "remove", &source])?;
        figures.add(format!("$ mcproxyctl firewall remove {source}"));
        ensure!(is_served(&site)?, "still refused");
        Ok(())
    })?;
    report.must("a rule with an end, and a list, in user space", |figures| rules_of_user_space(&site, figures))?;
    report.must("SIGTERM: a clean end", |_| daemon.stop())
}

fn build(figures: &mut Figures) -> Result<Site> {
    let authority = Authority::new()?;
    let shop = authority.backend("shop", &["shop.example.com"])?;
    let tenants = authority.backend("tenants", &["*.tenants.example.com"])?;
    let proxy = loopback();
    let routes = [("shop.example.com", shop.addr()), ("*.tenants.example.com", tenants.addr())];
    let places = Places { https: loopback(), http: loopback() };
    let web = Web::new(None, None)?;
    let edge = Installation::without_config()?;
    watch(edge.directory());
    let http = web.listeners(&edge, &authority, &places.https.to_string(), &places.http.to_string())?;
    edge.configure(&(listener(proxy, &routes, None) + &http))?;
    figures.add(format!("the proxy listens on {proxy} (TLS passes through),"));
    figures.add(format!("{} (TLS ends there, HTTP goes on) and {} (sends to https)", places.https, places.http));
    Ok(Site { edge, _backends: [shop, tenants], web, authority, proxy, places, attacker: loopback().ip() })
}

fn route(site: &Site, figures: &mut Figures) -> Result<()> {
    for route in [("shop.example.com", "shop"), ("a.tenants.example.com", "tenants")] {
        let visits = visit(None, &site.authority, site.proxy, route, Duration::from_secs(1))?;
        figures.add(format!("{:<22} -> {:<8} {visits}", route.0, route.1));
    }
    Ok(())
}

fn block(site: &Site, figures: &mut Figures) -> Result<()> {
    ensure!(is_served(site)?, "{} is refused before the block", site.attacker);
    let source = site.attacker.to_string();
    let begin = Instant::now();
    site.edge.ctl(&["firewall", "add", &source])?;
    figures.add(format!("$ mcproxyctl firewall add {source}     ({:.0} ms)", begin.elapsed().as_secs_f64() * 1e3));
    for _ in 0..100 {
        ensure!(!is_served(site)?, "served after the block");
    }
    figures.add("100 connections of it: 100 resets, not one byte");
    let visits = visit(None, &site.authority, site.proxy, ("shop.example.com", "shop"), Duration::from_secs(1))?;
    figures.add(format!("others: {visits}"));
    Ok(())
}

fn kill(site: &Site, daemon: Daemon, figures: &mut Figures) -> Result<Daemon> {
    figures.add(format!("$ kill -9 {}", daemon.pid()));
    daemon.kill()?;
    let daemon = site.edge.start()?;
    figures.add(format!("ready again after {:.0} ms", daemon.ready_after().as_secs_f64() * 1e3));
    ensure!(!is_served(site)?, "the rule is lost");
    figures.quote("mcproxyctl firewall list", &site.edge.ctl(&["firewall", "list"])?);
    Ok(daemon)
}

fn rules_of_user_space(site: &Site, figures: &mut Figures) -> Result<()> {
    let source = site.attacker.to_string();
    let ctl = |figures: &mut Figures, arguments: &[&str]| {
        let output = site.edge.ctl_output(arguments)?;
        figures.quote(&shown(arguments), &told(&output));
        ensure!(output.status.success(), "mcproxyctl {}: {}", arguments.join(" "), output.status);
        Ok(())
    };
    let begin = Instant::now();
    ctl(figures, &["firewall", "add", &source, "--ttl", "2s"])?;
    ensure!(!is_served(site)?, "served after the block");
    ctl(figures, &["firewall", "explain", &source, "shop.example.com"])?;
    until("the end of the rule", SOON, || is_served(site))?;
    ensure!(begin.elapsed() >= Duration::from_secs(2), "the rule held for {:?} only", begin.elapsed());
    figures.add(format!("{source} is served again after {:.1} s", begin.elapsed().as_secs_f64()));

    let path = site.edge.directory().join("list.netset");
    fs::write(&path, format!("# one entry a line\n{source}   ; comment\n192.0.2.128/25\n"))?;
    let name = path.to_str().context("the directory has no name in UTF-8")?;
    ctl(figures, &["firewall", "import", name, "--group", "feeds/demo"])?;
    for _ in 0..10 {
        ensure!(!is_served(site)?, "served after the import");
    }
    ctl(figures, &["firewall", "groups"])
}

/// Whether a connection of the attacker gets as far as a backend.
fn is_served(site: &Site) -> Result<bool> {
    let end = ask_from(site.attacker, site.proxy, &Hello::to("shop.example.com").bytes())?;
    Ok(match end {
        End::Reset(bytes) => !bytes.is_empty(),
        // The backend answers half a handshake with an alert.
        End::Closed(bytes) | End::Silent(bytes) => !bytes.is_empty(),
    })
}
