//! Backends by name: addresses follow the name server, outlive it, and are tried side by side.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use mc_proxy_tests::{
    backend::{Backend, echo},
    client::{End, ask},
    config::loopback,
    daemon::{Daemon, Installation},
    dns::{ADDR, Mood, NameServer},
    hello::Hello,
    privilege::{can_run, missing_for_namespaces},
    topology::Namespace,
    wait::{SOON, pass, until},
};
use socket2::{Domain, Socket, Type};

const PORT: u16 = 8_443;

/// A host with a name server and files of its own.
struct Host {
    edge: Installation,
    proxy: SocketAddr,
    dns: NameServer,
    namespace: Namespace,
}

impl Host {
    /// With one route, to a backend that `backends` names. `None` when the test is to be skipped.
    fn for_test(test: &str, backends: &str, resolv: &str, hosts: &str) -> Result<Option<Self>> {
        if !can_run(test, missing_for_namespaces())? {
            return Ok(None);
        }
        let namespace = Namespace::new("names")?;
        let dns = NameServer::start_in(&namespace)?;
        let edge = Installation::without_config()?.within(&namespace);
        let [resolv_conf, hosts_file] = ["resolv.conf", "hosts"].map(|name| edge.directory().join(name));
        fs::write(&resolv_conf, format!("nameserver {ADDR}\noptions timeout:1 attempts:1\n{resolv}\n"))?;
        fs::write(&hosts_file, hosts)?;
        let edge =
            edge.with_files(&[(Path::new("/etc/resolv.conf"), &resolv_conf), (Path::new("/etc/hosts"), &hosts_file)]);
        let proxy = loopback();
        edge.configure(&format!(
            "[proxy]\nconnect_timeout = \"10s\"\n[[listeners]]\naddr = \"{proxy}\"\n\
             [[listeners.routes]]\nhostname = \"app.example.com\"\nbackends = [{backends}]\n"
        ))?;
        Ok(Some(Self { edge, proxy, dns, namespace }))
    }

    /// A backend that answers with its name.
    fn backend(&self, ip: &str, name: &'static str) -> Result<Backend> {
        let listener = self.namespace.run(|| TcpListener::bind((ip, PORT)))?.context("binding a backend")?;
        Backend::on(listener, move |mut stream| {
            use std::io::{Read as _, Write as _};
            stream.read_to_end(&mut Vec::new())?;
            Ok(stream.write_all(name.as_bytes())?)
        })
    }

    fn ask(&self) -> Result<End> {
        self.namespace.run(|| ask(self.proxy, &Hello::to("app.example.com").bytes()))?
    }

    fn asserts(&self, name: &str) -> Result<()> {
        let end = self.ask()?;
        ensure!(end == End::Closed(name.into()), "{end:?} is not {name}; asked: {:?}", self.dns.queries());
        Ok(())
    }

    fn moves_to(&self, name: &str) -> Result<()> {
        until(&format!("an answer of {name}"), SOON, || Ok(self.ask()? == End::Closed(name.into())))
    }

    fn start(&self) -> Result<Daemon> {
        self.edge.start()
    }
}

#[test]
fn an_address_follows_its_ttl_and_outlives_the_name_server() -> Result<()> {
    let backends = format!("\"app.test:{PORT}\"");
    let Some(host) = Host::for_test("an_address_follows_its_ttl", &backends, "", "")? else { return Ok(()) };
    let (_one, _two) = (host.backend("127.0.0.2", "one")?, host.backend("127.0.0.3", "two")?);
    host.dns.set("app.test", &["127.0.0.2"], 1)?;
    let daemon = host.start()?;
    let begin = Instant::now();
    for _ in 0..10 {
        host.asserts("one")?;
    }
    host.dns.set("app.test", &["127.0.0.3"], 1)?;
    host.moves_to("two")?;
    let (asked, most) = (host.dns.queries().len(), 2 * (begin.elapsed().as_secs() as usize + 2));
    ensure!(asked <= most, "{asked} queries in {:?}", begin.elapsed());

    host.dns.set_mood(Mood::Fails);
    let warning = daemon.log().wait_for(&["level=WARN", "could not be resolved", "app.test", "stale=1"], SOON)?;
    for mood in [Mood::Fails, Mood::Silent, Mood::Fails] {
        host.dns.set_mood(mood);
        let so_far = host.dns.queries().len();
        until("another query", SOON, || Ok(host.dns.queries().len() > so_far))?;
        host.asserts("two")?;
    }
    let warnings = daemon.log().matching(&["could not be resolved"]);
    ensure!(warnings == [warning], "one warning is enough: {warnings:?}");
    let names = host.edge.admin()?.status()?.names.context("no figures of names")?;
    ensure!((names.kept, names.failing) == (1, 1) && names.failures >= 2, "{names:?}");
    let shown = host.edge.ctl(&["status"])?;
    ensure!(shown.contains("names: kept=1 failing=1 "), "{shown}");

    host.dns.set("app.test", &["127.0.0.2"], 3_600)?;
    host.dns.set_mood(Mood::Answers);
    daemon.log().wait_for(&["level=INFO", "resolved again", "app.test"], 2 * SOON)?;
    host.asserts("one")?;
    let asked = host.dns.queries().len();
    pass(Duration::from_millis(1_500));
    host.asserts("one")?;
    ensure!(host.dns.queries().len() == asked, "asked again before the TTL was over");
    Ok(())
}

#[test]
fn many_first_connections_are_one_look_up() -> Result<()> {
    let backends = format!("\"app.test:{PORT}\"");
    let Some(host) = Host::for_test("many_first_connections", &backends, "", "")? else { return Ok(()) };
    let _one = host.backend("127.0.0.2", "one")?;
    host.dns.set("app.test", &["127.0.0.2"], 3_600)?;
    host.dns.set_delay(Duration::from_millis(100));
    let _daemon = host.start()?;
    thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..40).map(|_| scope.spawn(|| host.asserts("one"))).collect();
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    // A query that is not answered soon is sent again.
    let mut queries = host.dns.queries();
    ensure!(queries.len() <= 8, "{queries:?}");
    queries.sort();
    queries.dedup();
    ensure!(queries == ["A app.test", "AAAA app.test"], "{queries:?}");
    Ok(())
}

#[test]
fn names_of_the_hosts_file_need_no_name_server_and_follow_the_file() -> Result<()> {
    let backends = format!("\"App.test:{PORT}\"");
    let hosts = "127.0.0.2 other app.test # one\n";
    let Some(host) = Host::for_test("names_of_the_hosts_file", &backends, "", hosts)? else { return Ok(()) };
    let (_one, _two) = (host.backend("127.0.0.2", "one")?, host.backend("127.0.0.3", "two")?);
    host.dns.set_mood(Mood::Silent);
    let _daemon = host.start()?;
    host.asserts("one")?;
    ensure!(host.dns.queries().is_empty(), "{:?}", host.dns.queries());
    fs::write(host.edge.directory().join("hosts"), "127.0.0.3 app.test\n")?;
    host.moves_to("two")
}

#[test]
fn short_names_are_looked_for_in_the_search_domains() -> Result<()> {
    let backends = format!("\"app:{PORT}\"");
    let resolv = "search nowhere.test corp.test";
    let Some(host) = Host::for_test("short_names", &backends, resolv, "")? else { return Ok(()) };
    let _one = host.backend("127.0.0.2", "one")?;
    host.dns.set("app.corp.test", &["127.0.0.2"], 60)?;
    let _daemon = host.start()?;
    host.asserts("one")?;
    let queries = host.dns.queries();
    ensure!(
        queries.contains(&"A app.nowhere.test".to_owned()) && !queries.contains(&"A app".to_owned()),
        "{queries:?}"
    );
    Ok(())
}

#[test]
fn a_name_that_does_not_exist_is_a_failed_dial_until_it_does() -> Result<()> {
    let backends = format!("\"app.test:{PORT}\"");
    let Some(host) = Host::for_test("a_name_that_does_not_exist", &backends, "", "")? else { return Ok(()) };
    let _one = host.backend("127.0.0.2", "one")?;
    let daemon = host.start()?;
    ensure!(host.ask()? == End::Reset(Vec::new()));
    daemon.log().wait_for(&["level=WARN", "dial failed", "app.test"], SOON)?;
    host.dns.set("app.test", &["127.0.0.2"], 60)?;
    host.moves_to("one")
}

#[test]
fn several_addresses_are_tried_side_by_side_and_one_gets_the_bytes() -> Result<()> {
    let backends = format!("\"app.test:{PORT}\"");
    let Some(host) = Host::for_test("several_addresses", &backends, "", "")? else { return Ok(()) };
    let three = host.backend("127.0.0.3", "three")?;
    // Nobody is at ::1, and 127.0.0.2 is silent: its queue is full.
    let silent = host.namespace.run(|| -> Result<_> {
        let silent = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let addr = SocketAddr::from(([127, 0, 0, 2], PORT));
        silent.bind(&addr.into())?;
        silent.listen(0)?;
        Ok((TcpListener::from(silent), TcpStream::connect(addr)?))
    })??;
    host.dns.set("app.test", &["127.0.0.2", "127.0.0.3", "::1"], 3_600)?;
    let daemon = host.start()?;
    let begin = Instant::now();
    host.asserts("three")?;
    let first = begin.elapsed();
    ensure!((Duration::from_millis(250)..Duration::from_secs(8)).contains(&first), "took {first:?}");
    // Who has answered is asked first from now on.
    let begin = Instant::now();
    for _ in 0..10 {
        host.asserts("three")?;
    }
    ensure!(begin.elapsed() < 10 * Duration::from_millis(250), "ten took {:?}", begin.elapsed());
    ensure!(three.accepts() == 11, "{} connections", three.accepts());
    ensure!(daemon.log().matching(&["dial failed"]).is_empty());
    drop(silent);
    Ok(())
}

#[test]
fn ipv6_is_tried_first_and_a_name_server_without_aaaa_does_not_matter() -> Result<()> {
    let backends = format!("\"app.test:{PORT}\"");
    let Some(host) = Host::for_test("ipv6_is_tried_first", &backends, "", "")? else { return Ok(()) };
    let (_four, _six) = (host.backend("127.0.0.2", "four")?, host.backend("::1", "six")?);
    host.dns.set("app.test", &["127.0.0.2", "::1"], 1)?;
    let daemon = host.start()?;
    host.asserts("six")?;
    daemon.stop()?;

    host.dns.ignore_aaaa();
    let _daemon = host.start()?;
    host.asserts("four")
}

#[test]
fn the_second_backend_stands_in_for_a_name_that_is_unknown() -> Result<()> {
    let backends = format!("\"none.test:{PORT}\", \"127.0.0.2:{PORT}\"");
    let Some(host) = Host::for_test("the_second_backend", &backends, "", "")? else { return Ok(()) };
    let _one = host.backend("127.0.0.2", "one")?;
    let _daemon = host.start()?;
    for _ in 0..4 {
        host.asserts("one")?;
    }
    Ok(())
}

#[test]
fn a_backend_that_the_name_leads_to_is_not_cut_off_by_a_rule() -> Result<()> {
    let backends = format!("\"app.test:{PORT}\"");
    let Some(host) = Host::for_test("a_backend_that_the_name_leads_to", &backends, "", "")? else { return Ok(()) };
    let listener = host.namespace.run(|| TcpListener::bind(("127.0.0.2", PORT)))??;
    let _echo = Backend::on(listener, echo)?;
    host.dns.set("app.test", &["127.0.0.2"], 60)?;
    let _daemon = host.start()?;
    ensure!(matches!(host.ask()?, End::Closed(_)));
    let refused = host.edge.admin()?.block("127.0.0.2").expect_err("it is a backend");
    ensure!(refused.message().contains("backend"), "{refused}");
    Ok(())
}
