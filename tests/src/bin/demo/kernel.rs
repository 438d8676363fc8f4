//! The whole of it: three namespaces around a router, and the daemon with XDP on the edge's interface.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use mc_proxy_proto::v1::KernelPlaneStatus;
use mc_proxy_tests::{
    admin::Admin,
    backend::Backend,
    bpffs::Bpffs,
    client::connect,
    config::{listener, xdp},
    daemon::{Daemon, Installation},
    flood::Flood,
    hello::Hello,
    tls::Authority,
    topology::Topology,
    wait::{SOON, pass, until},
};

use crate::{
    report::{Figures, Report, watch},
    rules,
    visits::{Visits, visit},
    web::{Places, Web},
};

const WINDOW: Duration = Duration::from_secs(3);

/// Everything that stands around the daemon. Dropped in this order.
pub(crate) struct Site {
    pub(crate) edge: Installation,
    backends: Vec<Backend>,
    web: Web,
    authority: Authority,
    bpffs: Bpffs,
    pub(crate) net: Topology,
}

/// The attack: connections, each with a hello for a host that exists, and bare SYNs on top.
struct Attack {
    connections: Flood,
    syns: Flood,
}

pub(crate) fn show(report: &mut Report) -> Result<()> {
    let site = report.must("an edge host with an internet around it", build)?;
    report.say(
        "client   198.51.100.10 --+\n\
         \u{20}                        +-- router -- eth0 192.0.2.10  edge (mc-proxy, backends behind it)\n\
         attacker 203.0.113.50  --+\n\
         mc-proxy listens on :443 (TLS ends there, HTTP goes on), :8443 (TLS passes through) and :80 (sends to https).",
    );
    let daemon = report.must("the daemon starts, with XDP on the edge's interface", |figures| start(&site, figures))?;
    report.must("the name in the ClientHello decides who answers", |figures| route(&site, figures))?;
    let mut browser = report.must("a browser: TLS ends at the edge, HTTP goes on to the backend", |figures| {
        site.web.browse(&site.authority, site.places(), figures)
    })?;
    report.must("a policy, added at run time, refuses a user agent", |figures| {
        site.web.refuse_agent(&site.edge, ":443", &mut browser, figures)
    })?;
    drop(browser);
    report.must("a WebSocket", |figures| site.web.talk(&site.authority, site.places(), figures))?;
    report
        .must("gRPC, unary and in both directions", |figures| site.web.call(&site.authority, site.places(), figures))?;
    report.must("HTTP without TLS is sent to https", |figures| site.web.redirect(site.places(), figures))?;
    let attack = report.must("203.0.113.50 attacks", |figures| attack(&site, figures))?;
    report.must("one command blocks it in the kernel", |figures| block(&site, &attack, figures))?;
    let drops = report
        .must("SIGKILL: the daemon is gone, the block is not", |figures| kill(&site, daemon, &attack, figures))?;
    let daemon =
        report.must("the next daemon adopts what is in force", |figures| adopt(&site, drops, &attack, figures))?;
    report.must("the rule is removed, and the traffic returns", |figures| unblock(&site, attack, figures))?;
    report.must("a country is blocked in the kernel", |figures| rules::country(&site, figures))?;
    report.must("a rule with an end: the kernel ends it, not the daemon", |figures| {
        rules::ban(&site, &daemon, figures)
    })?;
    report.must("a list is imported, and its group counts", |figures| rules::list(&site, figures))?;
    report.must("SIGTERM, with on_exit = \"detach\": the program is taken off", |figures| stop(&site, daemon, figures))
}

fn build(figures: &mut Figures) -> Result<Site> {
    let net = Topology::new()?;
    let bpffs = Bpffs::mount()?;
    let authority = Authority::new()?;
    let inside = &net.edge.namespace;
    let shop = authority.backend_in(inside, "shop", &["shop.example.com"])?;
    let mail = authority.backend_in(inside, "mail", &["mail.example.com"])?;
    let tenants = authority.backend_in(inside, "tenants", &["*.tenants.example.com"])?;
    let routes = [
        ("shop.example.com", shop.addr()),
        ("mail.example.com", mail.addr()),
        ("*.tenants.example.com", tenants.addr()),
    ];
    let web = Web::new(Some(inside), Some(&net.client.namespace))?;
    let edge = Installation::without_config()?.within(inside);
    edge.configure(&format!(
        "{}{}{}on_exit = \"detach\"\n{}",
        web.listeners(&edge, &authority, ":443", ":80")?,
        listener(":8443", &routes, None),
        xdp(&bpffs, "listeners"),
        rules::geoip(&edge)?
    ))?;
    watch(edge.directory());
    watch(bpffs.root());
    figures.add(
        "4 network namespaces, 3 TLS backends with certificates made a moment ago, a GeoIP database of 3 networks,",
    );
    figures.add("a certificate for the edge, 3 backends without TLS: HTTP/1.1, WebSocket, gRPC");
    Ok(Site { edge, backends: vec![shop, mail, tenants], web, authority, bpffs, net })
}

fn start(site: &Site, figures: &mut Figures) -> Result<Daemon> {
    let daemon = site.edge.start()?;
    let kernel = kernel(&site.edge.admin()?)?;
    ensure!(kernel.active, "the kernel plane is not active: {}", kernel.detail);
    let interface = kernel.interfaces.first().context("no interface")?;
    figures.add(format!("ready after {:.0} ms", daemon.ready_after().as_secs_f64() * 1e3));
    figures.add(format!("{}: {} XDP, program {}", interface.name, interface.mode, interface.program_id));
    let status = site.edge.run("status")?;
    ensure!(status.status.success(), "mc-proxy status: {}", String::from_utf8_lossy(&status.stderr));
    figures.quote("mc-proxy status -c mc-proxy.toml", &String::from_utf8_lossy(&status.stdout));
    Ok(daemon)
}

fn route(site: &Site, figures: &mut Figures) -> Result<()> {
    for (hostname, backend) in
        [("shop.example.com", "shop"), ("MAIL.example.com", "mail"), ("a.tenants.example.com", "tenants")]
    {
        let visits = site.visits((hostname, backend), Duration::from_millis(400))?;
        figures.add(format!("{hostname:<22} -> {backend:<8} {visits}"));
    }
    let refused = site.net.client.namespace.run(|| site.authority.client(site.proxy(), "unknown.example.com"))?;
    ensure!(refused.is_err(), "a name without a route was served");
    figures.add("unknown.example.com    -> refused");
    Ok(())
}

fn attack(site: &Site, figures: &mut Figures) -> Result<Attack> {
    let (SocketAddr::V4(to), IpAddr::V4(source)) = (site.proxy(), site.net.attacker.v4) else {
        bail!("the demonstration attacks over IPv4");
    };
    let attacker = &site.net.attacker.namespace;
    let hello = Hello::to("shop.example.com").bytes();
    let connections = Flood::connections(attacker, site.proxy(), hello);
    let admin = site.edge.admin()?;
    until("the attack at the daemon", SOON, || Ok(connections.connected() > 0))?;
    let accepted = admin.accepted()?;
    let start = Instant::now();
    let visits = site.visits(("mail.example.com", "mail"), WINDOW)?;
    let rate = (admin.accepted()? - accepted - visits.count()) as f64 / start.elapsed().as_secs_f64();
    figures.add(format!("the daemon accepts {rate:.0} connections of the attacker a second"));
    figures.add(format!("good clients meanwhile: {visits}"));
    ensure!(rate > 100.0, "an attack of {rate:.0} connections a second is none");
    // Only now: before the block, the edge would answer these and the attacker's host would reset each.
    Ok(Attack { connections, syns: Flood::syn(attacker, source, SocketAddrV4::new(*to.ip(), to.port())) })
}

fn block(site: &Site, attack: &Attack, figures: &mut Figures) -> Result<()> {
    let begin = Instant::now();
    site.edge.ctl(&["firewall", "add", "203.0.113.50"])?;
    let took = begin.elapsed();
    figures.add(format!(
        "$ mcproxyctl firewall add 203.0.113.50     ({:.0} ms, start of the program included)",
        took.as_secs_f64() * 1e3
    ));

    // Connections of the attacker whose handshake was complete before the rule are still on their way to `accept`.
    let admin = site.edge.admin()?;
    settle(&admin)?;
    let before = (admin.accepted()?, kernel(&admin)?, attack.connections.connected(), Instant::now());
    let visits = site.visits(("mail.example.com", "mail"), WINDOW)?;
    let after = (admin.accepted()?, kernel(&admin)?, attack.connections.connected());
    let seconds = before.3.elapsed().as_secs_f64();

    let accepted = after.0 - before.0;
    let drops = after.1.dropped_packets - before.1.dropped_packets;
    let bytes = after.1.dropped_bytes - before.1.dropped_bytes;
    figures.add(format!(
        "the kernel dropped {drops} packets, {bytes} bytes, in {seconds:.1} s: {:.0} a second",
        drops as f64 / seconds
    ));
    figures.add(format!(
        "the daemon accepted {accepted} connections, {} of them of good clients: {} of the attacker",
        visits.count(),
        accepted.saturating_sub(visits.count())
    ));
    figures.add(format!("good clients meanwhile: {visits}"));
    ensure!(drops > 1_000, "the drop counter rose by {drops} only");
    ensure!(accepted == visits.count(), "somebody else was accepted");
    ensure!(after.2 == before.2, "{} connections of the attacker were established", after.2 - before.2);
    Ok(())
}

fn kill(site: &Site, daemon: Daemon, attack: &Attack, figures: &mut Figures) -> Result<u64> {
    let drops = kernel(&site.edge.admin()?)?.dropped_packets;
    let pid = daemon.pid();
    daemon.kill()?;
    figures.add(format!("$ kill -9 {pid}"));

    // Nothing stands between the interface and this socket but the program that the daemon has left.
    let proxy = site.proxy();
    let listener = bind_when_free(site)?;
    let bare = Backend::on(listener, |_| Ok(()))?;
    let (connected, sent) = (attack.connections.connected(), attack.connections.sent() + attack.syns.sent());
    let begin = Instant::now();
    let mut served = 0;
    while begin.elapsed() < Duration::from_secs(2) {
        site.net.client.namespace.run(|| connect(proxy))??;
        served += 1;
        pass(Duration::from_millis(20));
    }
    until("the client's connections", SOON, || Ok(bare.accepts() >= served))?;
    let sent = attack.connections.sent() + attack.syns.sent() - sent;
    figures.add(format!("a bare socket in the daemon's place, for 2 s: {served} connections of the client,"));
    figures.add(format!("{} of the attacker, who sent {sent} SYNs", bare.accepts() - served));
    ensure!(bare.accepts() == served && attack.connections.connected() == connected, "the block does not hold");
    ensure!(sent > 1_000, "the attack has stopped by itself");
    Ok(drops)
}

fn adopt(site: &Site, drops: u64, attack: &Attack, figures: &mut Figures) -> Result<Daemon> {
    let connected = attack.connections.connected();
    let daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let kernel = kernel(&admin)?;
    let interface = kernel.interfaces.first().context("no interface")?;
    ensure!(kernel.active && interface.adopted, "the program was not adopted: {kernel:?}");
    figures.add(format!(
        "ready after {:.0} ms; {} has program {}, adopted",
        daemon.ready_after().as_secs_f64() * 1e3,
        interface.name,
        interface.program_id
    ));
    figures.add(format!("dropped while nobody was watching: {} packets", kernel.dropped_packets.saturating_sub(drops)));
    ensure!(kernel.dropped_packets > drops, "the counter does not go on from where it was");
    let rules = site.edge.ctl(&["firewall", "list"])?;
    ensure!(rules.contains("203.0.113.50"), "the rule is lost:\n{rules}");
    figures.quote("mcproxyctl firewall list", &rules);

    let accepted = admin.accepted()?;
    let visits = site.visits(("shop.example.com", "shop"), Duration::from_secs(1))?;
    figures.add(format!("good clients: {visits}"));
    ensure!(admin.accepted()? - accepted == visits.count(), "somebody else was accepted");
    ensure!(attack.connections.connected() == connected, "the attacker came through");
    Ok(daemon)
}

fn unblock(site: &Site, attack: Attack, figures: &mut Figures) -> Result<()> {
    attack.syns.stop()?;
    let connected = attack.connections.connected();
    let begin = Instant::now();
    site.edge.ctl(&["firewall", "remove", "203.0.113.50"])?;
    figures.add("$ mcproxyctl firewall remove 203.0.113.50");
    until("a connection of 203.0.113.50", SOON, || Ok(attack.connections.connected() > connected))?;
    figures.add(format!("203.0.113.50 is served again after {:.0} ms", begin.elapsed().as_secs_f64() * 1e3));
    attack.connections.stop()?;
    let visits = site.net.attacker.namespace.run(|| site.authority.client(site.proxy(), "shop.example.com"))?;
    ensure!(visits?.answered_by() == "shop");
    Ok(())
}

fn stop(site: &Site, daemon: Daemon, figures: &mut Figures) -> Result<()> {
    let begin = Instant::now();
    daemon.stop()?;
    figures.add(format!("ended after {:.0} ms", begin.elapsed().as_secs_f64() * 1e3));
    let output = Command::new("ip").args(["-n", site.net.edge.namespace.name(), "link", "show", "eth0"]).output()?;
    let link = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && !link.contains("xdp"), "eth0 still has a program:\n{link}");
    let pins = site.bpffs.pin_path();
    ensure!(!pins.exists() || pins.read_dir()?.next().is_none(), "pins are left below {}", pins.display());
    figures.add("eth0 has no XDP program, and nothing is pinned");
    let served = site.backends.iter().map(Backend::accepts).sum::<u64>();
    figures.add(format!("the backends had {served} connections, the attacker's included"));
    Ok(())
}

impl Site {
    pub(crate) fn proxy(&self) -> SocketAddr {
        SocketAddr::new(self.net.edge.v4, 8443)
    }

    fn places(&self) -> Places {
        Places { https: SocketAddr::new(self.net.edge.v4, 443), http: SocketAddr::new(self.net.edge.v4, 80) }
    }

    fn visits(&self, route: (&str, &str), duration: Duration) -> Result<Visits> {
        visit(Some(&self.net.client.namespace), &self.authority, self.proxy(), route, duration)
    }
}

pub(crate) fn kernel(admin: &Admin) -> Result<KernelPlaneStatus> {
    admin.status()?.kernel.context("the daemon says nothing of its kernel plane")
}

/// Waits until the accept counter stands still.
fn settle(admin: &Admin) -> Result<()> {
    let mut last = admin.accepted()?;
    until("the end of what was queued", SOON, || {
        pass(Duration::from_millis(100));
        let now = admin.accepted()?;
        Ok(std::mem::replace(&mut last, now) == now)
    })
}

/// The port is free as soon as the kernel has taken down the dead daemon's sockets.
fn bind_when_free(site: &Site) -> Result<TcpListener> {
    let mut listener = None;
    until("port 8443", SOON, || {
        listener = site.net.edge.namespace.run(|| TcpListener::bind(site.proxy()))?.ok();
        Ok(listener.is_some())
    })?;
    listener.context("port 8443 is not free")
}
