//! Real clients over real sockets. The hello is read by the daemon's own reader first, as it is in the pipeline.

use std::{os::fd::OwnedFd, time::SystemTime};

use rustls::{
    ClientConfig, NamedGroup, RootCertStore, SupportedProtocolVersion,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    },
    pki_types::{CertificateDer, ServerName as Name, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::tls::{
    ClientHelloReader, Progress,
    certs::{Certificates, tests::make},
};

const PATIENCE: Duration = Duration::from_secs(10);

type Terminated = Result<(TlsStream, TlsFacts), HandshakeError>;

/// A certificate for `name`, and clients that trust it.
struct Bench {
    config: Arc<ServerConfig>,
    roots: RootCertStore,
}

impl Bench {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = make(name);
        let files = made.write(dir.path());
        let mut certificates = Certificates::new(std::time::Instant::now());
        certificates.open(&files, SystemTime::now()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(made.cert.as_bytes()).unwrap()).unwrap();
        Self { config: certificates.get(&files).unwrap().config().unwrap(), roots }
    }

    /// A client of these versions that offers `alpn`.
    fn client(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// A connection whose other end is being terminated.
    async fn serve(&self, patience: Duration) -> (TcpStream, JoinHandle<Terminated>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let socket = Socket::new(OwnedFd::from(accepted.into_std().unwrap()));
        let config = Arc::clone(&self.config);
        let served = tokio::spawn(async move {
            let (socket, begun) = greet(socket).await;
            terminate(socket, begun, config, Instant::now() + patience).await
        });
        (client, served)
    }

    /// A handshake that succeeds.
    async fn connect(&self, config: &Arc<ClientConfig>, name: &'static str) -> (Pair, TlsFacts) {
        let (tcp, served) = self.serve(PATIENCE).await;
        let client = TlsConnector::from(Arc::clone(config)).connect(name.try_into().unwrap(), tcp).await.unwrap();
        let (server, facts) = served.await.unwrap().unwrap();
        (Pair { client, server }, facts)
    }

    /// What the client and the server make of a handshake that fails.
    async fn refused(&self, config: ClientConfig, name: &'static str) -> (Option<rustls::Error>, HandshakeError) {
        let (tcp, served) = self.serve(PATIENCE).await;
        let error = TlsConnector::from(Arc::new(config)).connect(name.try_into().unwrap(), tcp).await.unwrap_err();
        let error = error.into_inner().and_then(|error| error.downcast::<rustls::Error>().ok()).map(|error| *error);
        (error, served.await.unwrap().unwrap_err())
    }
}

async fn greet(mut socket: Socket) -> (Socket, Vec<u8>) {
    let mut reader = ClientHelloReader::new();
    let mut begun = Vec::new();
    loop {
        let mut buffer = [0; 512];
        let read = socket.recv(&mut buffer).await.unwrap();
        assert!(read > 0, "a hello first");
        begun.extend_from_slice(&buffer[..read]);
        match reader.advance(&begun) {
            Progress::Incomplete => {}
            Progress::Complete(_) => return (socket, begun),
            Progress::Invalid(error) => panic!("{error}"),
        }
    }
}

struct Pair {
    client: client::TlsStream<TcpStream>,
    server: TlsStream,
}

impl Pair {
    /// Some bytes each way, then an end in order; what tickets there are have come to the client afterwards.
    async fn talk(mut self) {
        let upload: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let sent = upload.clone();
        let client = async move {
            self.client.write_all(&sent).await.unwrap();
            self.client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            self.client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let server = async move {
            let mut request = Vec::new();
            self.server.read_to_end(&mut request).await.unwrap();
            self.server.write_all(&request).await.unwrap();
            self.server.close().await.unwrap();
            request
        };
        let (answer, request) = tokio::join!(client, server);
        assert!(answer == upload && request == upload);
    }
}

#[tokio::test]
async fn both_versions_with_their_facts() {
    let bench = Bench::new("a.example");
    for (version, text, suite) in
        [(&TLS13, "TLSv1.3", "TLS_AES_256_GCM_SHA384"), (&TLS12, "TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384")]
    {
        let config = Arc::new(bench.client(&[version], &["http/1.1", "h2"]));
        let (pair, facts) = bench.connect(&config, "a.example").await;
        assert_eq!(
            facts,
            TlsFacts {
                alpn: Some(Alpn::H2),
                version: text,
                cipher_suite: suite,
                server_name: Some("a.example".parse().unwrap()),
                is_resumed: false,
            }
        );
        pair.talk().await;
    }
}

#[tokio::test]
async fn the_hybrid_group_is_used_where_it_is_offered() {
    let bench = Bench::new("a.example");
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = rustls::crypto::aws_lc_rs::ALL_KX_GROUPS.to_vec();
    provider.kx_groups.sort_by_key(|group| group.name() != NamedGroup::X25519MLKEM768);
    let config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(bench.roots.clone())
        .with_no_client_auth();
    let (pair, facts) = bench.connect(&Arc::new(config), "a.example").await;
    let group = pair.client.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!((group, facts.alpn), (NamedGroup::X25519MLKEM768, None));
}

#[tokio::test]
async fn alpn_is_http_or_nothing() {
    let bench = Bench::new("a.example");
    for (offer, expected) in
        [(&["http/1.1"][..], Some(Alpn::Http11)), (&["h3", "http/1.1"], Some(Alpn::Http11)), (&[], None)]
    {
        let (_pair, facts) = bench.connect(&Arc::new(bench.client(&[&TLS13, &TLS12], offer)), "a.example").await;
        assert_eq!(facts.alpn, expected, "{offer:?}");
    }
    for version in [&TLS13, &TLS12] {
        let (client, server) = bench.refused(bench.client(&[version], &["h3", "smtp"]), "a.example").await;
        assert_eq!(client, Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)));
        assert_eq!(server, HandshakeError::NoAlpn);
    }
}

#[tokio::test]
async fn a_ticket_is_good_for_its_certificate_and_name_only() {
    // A wildcard: one certificate, several names.
    let (bench, other) = (Bench::new("*.example"), Bench::new("*.example"));
    for version in [&TLS13, &TLS12] {
        let mut config = bench.client(&[version], &["h2"]);
        config.dangerous().set_certificate_verifier(Arc::new(Anyone));
        config.resumption = Resumption::in_memory_sessions(8);
        let config = Arc::new(config);
        let (pair, facts) = bench.connect(&config, "a.example").await;
        assert!(!facts.is_resumed);
        pair.talk().await;
        let (pair, facts) = bench.connect(&config, "a.example").await;
        assert!(facts.is_resumed, "{}", facts.version);
        pair.talk().await;
        // The same client with its ticket at another certificate: a full handshake.
        let (_pair, facts) = other.connect(&config, "a.example").await;
        assert!(!facts.is_resumed, "{}", facts.version);
    }
}

#[tokio::test]
async fn a_ticket_is_not_taken_under_another_name() {
    let bench = Bench::new("*.example");
    for version in [&TLS13, &TLS12] {
        let mut config = bench.client(&[version], &[]);
        config.dangerous().set_certificate_verifier(Arc::new(Anyone));
        config.resumption = Resumption::store(Arc::new(Misuse(ClientSessionMemoryCache::new(8))));
        let config = Arc::new(config);
        for name in ["a.example", "b.example"] {
            let (pair, facts) = bench.connect(&config, name).await;
            assert!(!facts.is_resumed, "{name} {}", facts.version);
            pair.talk().await;
        }
    }
}

#[tokio::test]
async fn an_old_client_gets_an_alert() {
    // A hello of TLS 1.1, with a cipher suite that 1.2 has too.
    let body = [&[3, 2][..], &[7; 32], &[0, 0, 2, 0xc0, 0x2b, 1, 0]].concat();
    let handshake = [&[1, 0, 0, u8::try_from(body.len()).unwrap()][..], &body].concat();
    let record = [&[22, 3, 1, 0, u8::try_from(handshake.len()).unwrap()][..], &handshake].concat();
    assert_eq!(said(&record, &[]).await, (alert(40), HandshakeError::Version));
}

#[tokio::test]
async fn garbage_behind_the_hello_is_malformed() {
    let bench = Bench::new("a.example");
    let mut hello = Vec::new();
    let config = Arc::new(bench.client(&[&TLS13], &[]));
    let mut client = rustls::ClientConnection::new(config, "a.example".try_into().unwrap()).unwrap();
    client.write_tls(&mut hello).unwrap();
    let (answer, error) = said(&hello, b"GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(error, HandshakeError::Malformed);
    assert!(!answer.is_empty());
    // The same in one piece with the hello.
    let (_, error) = said(&[&hello, &b"GET / HTTP/1.1\r\n\r\n"[..]].concat(), &[]).await;
    assert_eq!(error, HandshakeError::Malformed);
}

#[tokio::test]
async fn a_client_that_stops_is_given_up() {
    let bench = Bench::new("a.example");
    let mut hello = Vec::new();
    let config = Arc::new(bench.client(&[&TLS13], &[]));
    let mut hello_of = rustls::ClientConnection::new(config, "a.example".try_into().unwrap()).unwrap();
    hello_of.write_tls(&mut hello).unwrap();
    for (patience, closes, expected) in
        [(Duration::from_millis(50), false, HandshakeError::Timeout), (PATIENCE, true, HandshakeError::Gone)]
    {
        let (mut client, served) = bench.serve(patience).await;
        client.write_all(&hello).await.unwrap();
        if closes {
            client.shutdown().await.unwrap();
        }
        assert_eq!(served.await.unwrap().unwrap_err(), expected);
        let mut answer = Vec::new();
        assert!(client.read_to_end(&mut answer).await.is_err(), "reset");
    }
}

#[tokio::test]
async fn a_client_that_distrusts_says_so() {
    let bench = Bench::new("a.example");
    for version in [&TLS13, &TLS12] {
        let (_, server) = bench.refused(bench.client(&[version], &[]), "b.example").await;
        assert_eq!(server, HandshakeError::Refused);
    }
}

#[tokio::test]
async fn bytes_may_come_one_by_one() {
    let bench = Bench::new("a.example");
    let (tcp, served) = bench.serve(PATIENCE).await;
    let (near, mut far) = tokio::io::duplex(1);
    let relay = tokio::spawn(async move {
        let mut tcp = tcp;
        tokio::io::copy_bidirectional_with_sizes(&mut far, &mut tcp, 1, 1).await
    });
    let config = Arc::new(bench.client(&[&TLS13], &["h2"]));
    let client = TlsConnector::from(config).connect("a.example".try_into().unwrap(), near).await.unwrap();
    let (server, facts) = served.await.unwrap().unwrap();
    assert_eq!(facts.alpn, Some(Alpn::H2));
    drop((client, server));
    drop(relay.await);
}

/// What a raw client gets that sends `hello`, and `then` when it has got an answer.
async fn said(hello: &[u8], then: &[u8]) -> (Vec<u8>, HandshakeError) {
    let bench = Bench::new("a.example");
    let (mut client, served) = bench.serve(PATIENCE).await;
    client.write_all(hello).await.unwrap();
    client.write_all(then).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    drop(client);
    (answer, served.await.unwrap().unwrap_err())
}

/// A fatal alert in the clear.
fn alert(description: u8) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, description]
}

/// Trusts every certificate.
#[derive(Debug)]
struct Anyone;

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &Name<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client's store that has one session for all servers.
#[derive(Debug)]
struct Misuse(ClientSessionMemoryCache);

fn any() -> Name<'static> {
    Name::try_from("any.example").unwrap()
}

impl ClientSessionStore for Misuse {
    fn set_kx_hint(&self, _: Name<'static>, group: NamedGroup) {
        self.0.set_kx_hint(any(), group);
    }

    fn kx_hint(&self, _: &Name<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&any())
    }

    fn set_tls12_session(&self, _: Name<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(any(), value);
    }

    fn tls12_session(&self, _: &Name<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&any())
    }

    fn remove_tls12_session(&self, _: &Name<'static>) {
        self.0.remove_tls12_session(&any());
    }

    fn insert_tls13_ticket(&self, _: Name<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(any(), value);
    }

    fn take_tls13_ticket(&self, _: &Name<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&any())
    }
}
