//! The daemon, with routes of mode `l7` to backends of the test.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::client::{Client, Response, get};
use crate::{
    client::{connect, connect_from},
    config::loopback,
    daemon::{Daemon, Installation},
    tls::Authority,
    topology::Namespace,
    wait::SOON,
};

/// The name of the route that most tests have.
pub const HOST: &str = "app.example.com";

/// A running daemon and whoever has signed its certificate.
#[derive(Debug)]
pub struct Edge {
    /// It is killed first.
    pub daemon: Daemon,
    /// Its files.
    pub installation: Installation,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Whom clients trust.
    pub authority: Authority,
}

/// A daemon to be.
#[derive(Debug)]
pub struct Plan {
    installation: Installation,
    authority: Authority,
    addr: SocketAddr,
    sections: String,
    listener: String,
    routes: String,
}

impl Plan {
    /// Without routes. The certificate, in `app.crt` and `app.key` of the installation, is for every `*.example.com`.
    pub fn new() -> Result<Self> {
        let (installation, authority) = (Installation::without_config()?, Authority::new()?);
        let directory = installation.directory();
        authority.issue(&["*.example.com"])?.write(&directory.join("app.crt"), &directory.join("app.key"))?;
        fs::write(directory.join("ca.crt"), authority.pem())?;
        Ok(Self {
            installation,
            authority,
            addr: loopback(),
            sections: "[log]\nlevel = \"debug\"\n".to_owned(),
            listener: String::new(),
            routes: String::new(),
        })
    }

    /// With one route, for [`HOST`].
    pub fn to(backend: SocketAddr) -> Result<Self> {
        Ok(Self::new()?.route(HOST, &[backend], ""))
    }

    /// More lines of `[http]`; once.
    pub fn http(self, lines: &str) -> Self {
        self.section(&format!("[http]\n{lines}\n"))
    }

    /// More tables.
    pub fn section(mut self, toml: &str) -> Self {
        self.sections.push_str(toml);
        self.sections.push('\n');
        self
    }

    /// More lines of the listener.
    pub fn listener(mut self, lines: &str) -> Self {
        self.listener.push_str(lines);
        self.listener.push('\n');
        self
    }

    /// Another address to listen on.
    pub fn at(mut self, addr: SocketAddr) -> Self {
        self.addr = addr;
        self
    }

    /// In a namespace.
    pub fn within(mut self, namespace: &Namespace) -> Self {
        self.installation = self.installation.within(namespace);
        self
    }

    /// A route of mode `l7`, with more lines.
    pub fn route(mut self, hostname: &str, backends: &[SocketAddr], lines: &str) -> Self {
        let route = self.l7(backends, lines);
        let _ = writeln!(self.routes, "[[listeners.routes]]\nhostname = \"{hostname}\"\n{route}");
        self
    }

    /// The default route, of mode `l7`.
    pub fn default_route(self, backends: &[SocketAddr], lines: &str) -> Self {
        let route = self.l7(backends, lines);
        self.routes(&format!("[listeners.default]\n{route}"))
    }

    /// Routes as they are.
    pub fn routes(mut self, toml: &str) -> Self {
        self.routes.push_str(toml);
        self.routes.push('\n');
        self
    }

    /// A file of the installation.
    pub fn file(&self, name: &str) -> PathBuf {
        self.installation.directory().join(name)
    }

    /// Whom clients trust.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Starts it.
    pub fn start(self) -> Result<Edge> {
        let Self { installation, authority, addr, sections, listener, routes } = self;
        installation.configure(&format!("{sections}\n[[listeners]]\naddr = \"{addr}\"\n{listener}\n{routes}"))?;
        let daemon = installation.start()?;
        Ok(Edge { daemon, installation, addr, authority })
    }

    fn l7(&self, backends: &[SocketAddr], lines: &str) -> String {
        let backends = backends.iter().map(|addr| format!("\"{addr}\"")).collect::<Vec<_>>().join(", ");
        let (certificate, key) = (self.file("app.crt"), self.file("app.key"));
        format!(
            "backends = [{backends}]\nmode = \"l7\"\ntls_cert = \"{}\"\ntls_key = \"{}\"\n{lines}\n",
            certificate.display(),
            key.display()
        )
    }
}

impl Edge {
    /// A daemon with one route, for [`HOST`], and lines of `[http]`.
    pub fn to(backend: SocketAddr, http: &str) -> Result<Self> {
        Plan::to(backend)?.http(http).start()
    }

    /// A client of [`HOST`].
    pub fn client(&self) -> Result<Client> {
        self.client_of(HOST)
    }

    /// A client of another name.
    pub fn client_of(&self, name: &str) -> Result<Client> {
        Client::new(connect(self.addr)?, self.authority.client_config()?, name)
    }

    /// A client that does not say whom it wants.
    pub fn client_without_name(&self) -> Result<Client> {
        let mut config = self.authority.client_config()?;
        config.enable_sni = false;
        Client::new(connect(self.addr)?, config, HOST)
    }

    /// A client of another address.
    pub fn client_from(&self, source: IpAddr) -> Result<Client> {
        Client::new(connect_from(source, self.addr)?, self.authority.client_config()?, HOST)
    }

    /// Asks on a connection of its own.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Result<Response> {
        self.client()?.ask(request)
    }

    /// An error unless a good client gets its 200, at once.
    pub fn serves(&self) -> Result<()> {
        let begun = Instant::now();
        self.ask(get("/good"))?.expect(200)?;
        ensure!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
        Ok(())
    }

    /// Waits for a line of the log.
    pub fn logs(&self, parts: &[&str]) -> Result<String> {
        self.daemon.log().wait_for(parts, SOON)
    }
}
