//! Real TLS on both sides of the proxy: certificates made on the spot, servers that say who they are, clients that
//! check the certificate and hear who answered.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::aws_lc_rs::default_provider,
    pki_types::{PrivateKeyDer, ServerName},
    version::{TLS12, TLS13},
};

use crate::{backend::Backend, client::connect, topology::Namespace};

/// A certificate authority of one test.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    certificate: Certificate,
    key: KeyPair,
}

/// A TLS connection whose server has said its name.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
    answered_by: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        // A name of its own: OpenSSL takes a certificate for self-signed whose issuer is named like itself.
        params.distinguished_name.push(DnType::CommonName, "mc-proxy test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    /// A certificate for names and addresses.
    pub fn issue(&self, names: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let certificate = CertificateParams::new(names)?.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate, key })
    }

    /// The authority's own certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A server that shows a certificate for `hostnames`, says `name` and echoes line by line.
    pub fn backend(&self, name: &str, hostnames: &[&str]) -> Result<Backend> {
        Backend::start(self.identity(name, hostnames)?)
    }

    /// The same on the loopback of a namespace.
    pub fn backend_in(&self, namespace: &Namespace, name: &str, hostnames: &[&str]) -> Result<Backend> {
        Backend::start_in(namespace, self.identity(name, hostnames)?)
    }

    /// A configuration for clients that trust this authority and nothing else.
    pub fn client_config(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        Ok(ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }

    /// Connects to `proxy` and asks for `hostname`; the certificate has to be for it.
    pub fn client(&self, proxy: SocketAddr, hostname: &str) -> Result<Client> {
        Client::greet(connect(proxy)?, self.client_config()?, hostname)
    }

    fn identity(
        &self,
        name: &str,
        hostnames: &[&str],
    ) -> Result<impl Fn(TcpStream) -> Result<()> + Send + Sync + use<>> {
        let config = self.issue(hostnames)?.server_config()?;
        let (config, name) = (Arc::new(config), name.to_owned());
        Ok(move |stream: TcpStream| {
            stream.set_nodelay(true)?;
            let mut tls = BufReader::new(StreamOwned::new(ServerConnection::new(Arc::clone(&config))?, stream));
            writeln!(tls.get_mut(), "{name}")?;
            let mut line = Vec::new();
            while tls.read_until(b'\n', &mut line)? > 0 {
                tls.get_mut().write_all(&line)?;
                line.clear();
            }
            tls.get_mut().conn.send_close_notify();
            tls.get_mut().flush()?;
            Ok(())
        })
    }
}

impl Identity {
    /// A configuration for servers that show it.
    pub fn server_config(&self) -> Result<ServerConfig> {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.der().clone()], key)?)
    }

    /// The certificate as it is sent.
    pub fn der(&self) -> &[u8] {
        self.certificate.der()
    }

    /// Puts a PEM pair in the place of another one, each file at once.
    pub fn write(&self, certificate: &Path, key: &Path) -> Result<()> {
        for (path, pem) in [(key, self.key.serialize_pem()), (certificate, self.certificate.pem())] {
            let next = path.with_extension("next");
            fs::write(&next, pem)?;
            fs::rename(&next, path).with_context(|| format!("replacing {}", path.display()))?;
        }
        Ok(())
    }
}

impl Client {
    /// Shakes hands on a connection and hears who is at the other end.
    pub fn greet(stream: TcpStream, config: ClientConfig, hostname: &str) -> Result<Self> {
        let name = ServerName::try_from(hostname.to_owned()).with_context(|| format!("{hostname} as SNI"))?;
        let connection = ClientConnection::new(Arc::new(config), name)?;
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        let mut answer = String::new();
        stream.read_line(&mut answer).with_context(|| format!("shaking hands as {hostname}"))?;
        ensure!(answer.ends_with('\n'), "the connection ended before {hostname} said who it is");
        Ok(Self { stream, answered_by: answer.trim_end().to_owned() })
    }

    /// The name of the backend.
    pub fn answered_by(&self) -> &str {
        &self.answered_by
    }

    /// Sends a line and expects it back.
    pub fn echo(&mut self, line: &str) -> Result<()> {
        writeln!(self.stream.get_mut(), "{line}").context("sending a line")?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).context("reading the echo")?;
        ensure!(answer.strip_suffix('\n') == Some(line), "the echo of {line:?} is {answer:?}");
        Ok(())
    }

    /// Says goodbye in TLS and expects the same from the server.
    pub fn close(mut self) -> Result<()> {
        self.stream.get_mut().conn.send_close_notify();
        self.stream.get_mut().flush()?;
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).context("reading the end")?;
        ensure!(rest.is_empty(), "bytes after the last echo");
        Ok(())
    }
}
