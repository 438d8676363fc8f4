//! PROXY protocol with HAProxy and nginx at the other end, both ways: what the client's address is in the end is what the
//! client knows its own to be.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    backend::{Backend, Received, echo},
    client::{End, connect_from, end_of},
    config::{listener, loopback},
    daemon::{Daemon, Installation},
    hello::Hello,
    peer::Program,
    tls::Client,
    wait::SOON,
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
    version::TLS13,
};

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 7, 7));

fn hello() -> Vec<u8> {
    Hello::to("app.example.com").bytes()
}

/// Sends a hello from [`SOURCE`] and hears the backend; the client's address.
fn visit(to: SocketAddr) -> Result<SocketAddr> {
    let mut stream = connect_from(SOURCE, to)?;
    let local = stream.local_addr()?;
    stream.write_all(&hello())?;
    stream.shutdown(Shutdown::Write)?;
    let end = end_of(&mut stream)?;
    ensure!(end == End::Closed(b"app\n".to_vec()), "{to}: {end:?}");
    Ok(local)
}

/// A daemon behind PROXY protocol, and a backend that keeps what it got.
struct Origin {
    addr: SocketAddr,
    received: Received,
    daemon: Daemon,
    _backend: Backend,
    _installation: Installation,
}

impl Origin {
    fn new() -> Result<Self> {
        let (backend, received) = Backend::named("app")?;
        let addr = loopback();
        let installation = Installation::new(&format!(
            "[[listeners]]\naddr = \"{addr}\"\nproxy_protocol = true\nproxy_trusted = [\"127.0.0.0/8\"]
             [[listeners.routes]]\nhostname = \"app.example.com\"\nbackend = \"{}\"\n",
            backend.addr()
        ))?;
        let daemon = installation.start()?;
        Ok(Self { addr, received, daemon, _backend: backend, _installation: installation })
    }

    /// The log line of a client's connection.
    fn line_of(&self, client: SocketAddr) -> Result<String> {
        self.daemon.log().wait_for(&["connection closed", &format!("client={client} "), "peer="], SOON)
    }
}

/// A daemon whose routes send both kinds of header to a backend.
fn sender(version: &str, backend: SocketAddr) -> Result<(SocketAddr, Installation, Daemon)> {
    let addr = loopback();
    let installation = Installation::new(&format!(
        "{}send_proxy_protocol = true\nproxy_protocol_version = \"{version}\"\n",
        listener(addr, &[("app.example.com", backend)], None)
    ))?;
    let daemon = installation.start()?;
    Ok((addr, installation, daemon))
}

#[test]
fn haproxy_sends() -> Result<()> {
    if !Program::Haproxy.is_there("haproxy_sends")? {
        return Ok(());
    }
    let origin = Origin::new()?;
    let options = [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id",
        "send-proxy-v2-ssl proxy-v2-options crc32c,unique-id,authority",
        "send-proxy-v2 check check-send-proxy inter 100ms",
    ];
    let fronts = options.map(|option| (loopback(), option));
    let config: String = fronts
        .iter()
        .map(|(front, option)| {
            format!(
                "listen on-{}\n bind {front}\n unique-id-format id-%cp\n server s {} {option}\n",
                front.ip(),
                origin.addr
            )
        })
        .collect();
    let _haproxy = Program::Haproxy.start(&config, &fronts.map(|(front, _)| front))?;
    for (front, option) in fronts {
        let client = visit(front).with_context(|| format!("by {option}"))?;
        let line = origin.line_of(client)?;
        let has_id = line.contains(&format!("id=id-{} ", client.port()));
        ensure!(has_id == option.contains("unique-id"), "{option}: {line}");
    }
    ensure!(origin.received.all().iter().all(|bytes| *bytes == hello()));
    Ok(())
}

/// TLS ends at HAProxy, which tells what it knows of it.
#[test]
fn haproxy_tells_of_tls() -> Result<()> {
    if !Program::Haproxy.is_there("haproxy_tells_of_tls")? {
        return Ok(());
    }
    let backend = Backend::start(|mut stream| {
        writeln!(stream, "app")?;
        echo(stream)
    })?;
    let [front, addr] = [loopback(), loopback()];
    let installation = Installation::new(&format!(
        "[[listeners]]\naddr = \"{addr}\"\nprotocol = \"tcp\"\nproxy_protocol = true\nproxy_trusted = [\"127.0.0.0/8\"]
         [listeners.default]\nbackend = \"{}\"\n",
        backend.addr()
    ))?;
    let daemon = installation.start()?;

    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["app.example.com".to_owned()])?;
    let path = installation.directory().join("both.pem");
    std::fs::write(&path, format!("{}{}", cert.pem(), signing_key.serialize_pem()))?;
    let path = path.display();
    let config = format!(
        "listen tls\n bind {front} ssl crt {path} ca-file {path} verify optional crt-ignore-err all ca-ignore-err all\n \
         unique-id-format id-%cp\n server s {addr} send-proxy-v2-ssl-cn \
         proxy-v2-options ssl,cert-cn,cert-key,cert-sig,ssl-cipher,crc32c,unique-id,authority\n"
    );
    let _haproxy = Program::Haproxy.start(&config, &[front])?;
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone())?;
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots);
    let key = PrivateKeyDer::from_pem_slice(signing_key.serialize_pem().as_bytes())?;
    for config in [config.clone().with_no_client_auth(), config.with_client_auth_cert(vec![cert.der().clone()], key)?] {
        let stream = connect_from(SOURCE, front)?;
        let local = stream.local_addr()?;
        let mut client = Client::greet(stream, config, "app.example.com")?;
        ensure!(client.answered_by() == "app");
        client.echo("through both")?;
        drop(client);
        let line = daemon.log().wait_for(&["connection closed", &format!("client={local} ")], SOON);
        let line = match line {
            Ok(line) => line,
            // The client's end may come as a reset.
            Err(_) => daemon.log().wait_for(&[&format!("client={local} ")], SOON)?,
        };
        for part in [&format!("id=id-{} ", local.port()), "authority=app.example.com ", "proxy_tls=TLSv1.3 "] {
            ensure!(line.contains(part), "no {part} in {line}");
        }
    }
    Ok(())
}

#[test]
fn haproxy_receives() -> Result<()> {
    if !Program::Haproxy.is_there("haproxy_receives")? {
        return Ok(());
    }
    let (backend, received) = Backend::named("app")?;
    let back = loopback();
    let config = format!(
        "listen back\n bind {back} accept-proxy\n log global\n \
         log-format \"from=%ci:%cp to=%fi:%fp sni=%[fc_pp_authority] id=%[fc_pp_unique_id];\"\n server s {}\n",
        backend.addr()
    );
    let haproxy = Program::Haproxy.start(&config, &[back])?;
    for version in ["v1", "v2"] {
        let (edge, _installation, daemon) = sender(version, back)?;
        let client = visit(edge).with_context(|| format!("by {version}"))?;
        let line = haproxy.log().wait_for(&[&format!("from={client} to={edge} ")], SOON)?;
        if version == "v2" {
            ensure!(line.contains("sni=app.example.com "), "{line}");
            let id = line.split_once(" id=").and_then(|(_, id)| id.strip_suffix(';')).context("no id")?;
            ensure!(id.len() == 32, "{line}");
            daemon.log().wait_for(&[&format!("id={id} ")], SOON)?;
        }
        daemon.stop()?;
    }
    ensure!(received.all() == [hello(), hello()]);
    Ok(())
}

#[test]
fn nginx_sends() -> Result<()> {
    if !Program::Nginx.is_there("nginx_sends")? {
        return Ok(());
    }
    let origin = Origin::new()?;
    let front = loopback();
    let config =
        format!("server {{ listen {front}; proxy_pass {}; proxy_protocol on; proxy_half_close on; }}", origin.addr);
    let _nginx = Program::Nginx.start(&config, &[front])?;
    let client = visit(front)?;
    origin.line_of(client)?;
    ensure!(origin.received.all() == [hello()]);
    Ok(())
}

#[test]
fn nginx_receives() -> Result<()> {
    if !Program::Nginx.is_there("nginx_receives")? {
        return Ok(());
    }
    let (backend, received) = Backend::named("app")?;
    let back = loopback();
    let config = format!(
        "log_format pp \"from=$proxy_protocol_addr:$proxy_protocol_port \
         to=$proxy_protocol_server_addr:$proxy_protocol_server_port;\";
         server {{ listen {back} proxy_protocol; access_log /dev/stdout pp; proxy_half_close on; proxy_pass {}; }}",
        backend.addr()
    );
    let nginx = Program::Nginx.start(&config, &[back])?;
    for version in ["v1", "v2"] {
        let (edge, _installation, daemon) = sender(version, back)?;
        let client = visit(edge).with_context(|| format!("by {version}"))?;
        nginx.log().wait_for(&[&format!("from={client} to={edge};")], SOON)?;
        daemon.stop()?;
    }
    ensure!(received.all() == [hello(), hello()]);
    Ok(())
}

#[test]
fn one_edge_behind_another() -> Result<()> {
    let origin = Origin::new()?;
    for version in ["v1", "v2"] {
        let (edge, _installation, daemon) = sender(version, origin.addr)?;
        let client = visit(edge)?;
        let line = origin.line_of(client)?;
        if version == "v2" {
            let id = line.split_once(" id=").and_then(|(_, rest)| rest.split(' ').next()).context("no id")?;
            daemon.log().wait_for(&[&format!("client={client} "), &format!("id={id} ")], SOON)?;
        }
        daemon.stop()?;
    }
    ensure!(origin.received.all() == [hello(), hello()]);
    Ok(())
}
