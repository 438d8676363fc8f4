//! Connections over real sockets whose peers say that they come from elsewhere.

use std::{net::IpAddr, time::Duration};

use mc_proxy_common::{
    rate::RateLimit,
    table::{Clause, ClauseAction},
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, error::TryRecvError},
    time::timeout,
};

use super::*;
use crate::{
    config::Proxy,
    conn::{Counters, Edge, Listening, Offence, Offences, sources::Source},
    desired::{AcceptProxy, Listener, Route, Target},
    firewall::{
        Firewall, Group, OffenceKind,
        guard_fixture::{BLOCK, firewall},
    },
    net::resolve::Resolver,
    tls::certs,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Proof of an offence must not wait for what the client does next.
const SOON: Duration = Duration::from_secs(1);

struct Bench {
    edge: Arc<Edge>,
    listening: Arc<Listening>,
    offences: Receiver<Offence>,
}

impl Bench {
    fn new(firewall: Firewall, protocol: Protocol, refuse: Refuse) -> Self {
        let (reporter, offences) = Offences::queue();
        let proxy = Proxy {
            connect_timeout: PATIENCE,
            handshake_timeout: PATIENCE,
            idle_timeout: PATIENCE,
            shutdown_timeout: PATIENCE,
            refuse,
            ..Proxy::default()
        };
        let resolver = Resolver::default();
        let (counters, drops) = (Counters::default(), crate::control::drops());
        let edge = Arc::new(Edge {
            firewall,
            resolver,
            counters,
            offences: reporter,
            drops,
            proxy,
            splicing: relay::Splicing::userspace(),
            memory: memory::Budget::new(0),
            geoip: Default::default(),
            http: Default::default(),
            http_trusted: Default::default(),
            http_counters: Default::default(),
            access: None,
            redact_clients: false,
        });
        let listener = Listener { protocol, ..Listener::new(":443".parse().unwrap()) };
        Self { edge, listening: Arc::new(Listening::new(&listener)), offences }
    }

    /// With another listener.
    fn on(self, listener: &Listener) -> Self {
        Self { listening: Arc::new(Listening::new(listener)), ..self }
    }

    /// Behind PROXY protocol, whose headers are believed of 192.0.2.0/24, or of anybody.
    fn behind_proxy(self, trust_any: bool) -> Self {
        let proxy = Some(AcceptProxy { trusted: vec!["192.0.2.0/24".parse().unwrap()], trust_any });
        self.on(&Listener { proxy, max_connections_per_source: 1, ..Listener::new(":443".parse().unwrap()) })
    }

    fn tls(firewall: Firewall) -> Self {
        Self::new(firewall, Protocol::Tls, Refuse::Reset)
    }

    /// A connection of `source` that is being served, and its other end.
    async fn connect(&self, source: &str) -> (impl Future<Output = ()> + use<>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let fd = OwnedFd::from(accepted.into_std().unwrap());
        let peer = PeerAddr::new((source.parse::<IpAddr>().unwrap(), 5_000).into());
        let local = Arc::new(Local { edge: Arc::clone(&self.edge), drain: relay::Drain::never() });
        (run(local, self.listening.admit().unwrap(), Anonymous::admit().unwrap(), fd, peer), client)
    }

    /// A client of `source` that says `bytes`, to its end by a reset without one byte.
    async fn refused(&self, source: &str, bytes: &[u8]) {
        let (served, mut client) = self.connect(source).await;
        client.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let (read, ()) =
            timeout(PATIENCE, async { tokio::join!(client.read_to_end(&mut answer), served) }).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert!(answer.is_empty());
    }

    fn outcome(&self, reason: &str) -> u64 {
        self.edge.counters.outcomes().iter().find(|(name, _)| *name == reason).unwrap().1
    }
}

fn hello(name: &'static str) -> Vec<u8> {
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(name).unwrap()).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    wire
}

fn offence(source: &str, kind: OffenceKind) -> Offence {
    Offence { source: source.parse().unwrap(), kind }
}

#[tokio::test]
async fn garbage_and_unknown_names_are_offences() {
    let mut bench = Bench::tls(Firewall::default());
    bench.refused("192.0.2.1", b"GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(bench.offences.try_recv(), Ok(offence("192.0.2.1", OffenceKind::Handshake)));
    bench.refused("2001:db8::1", &hello("unknown.example")).await;
    assert_eq!(bench.offences.try_recv(), Ok(offence("2001:db8::1", OffenceKind::ServerName)));
    assert_eq!(bench.offences.try_recv(), Err(TryRecvError::Empty));
    assert_eq!((bench.outcome("not_tls"), bench.outcome("no_route")), (1, 1));
}

#[tokio::test]
async fn a_name_that_is_served_to_others_is_no_offence() {
    let target = Target::passthrough("127.0.0.1:9".parse().unwrap());
    let route = Route { hostname: "*.example".parse().unwrap(), alpn: vec!["acme-tls/1".to_owned()], target };
    let listener = Listener { routes: vec![route], ..Listener::new(":443".parse().unwrap()) };
    let mut bench = Bench::new(Firewall::default(), Protocol::Tls, Refuse::Alert).on(&listener);
    for (name, alert) in [("known.example", NO_APPLICATION_PROTOCOL_ALERT), ("unknown.test", UNRECOGNIZED_NAME_ALERT)] {
        let (served, mut client) = bench.connect("192.0.2.1").await;
        client.write_all(&hello(name)).await.unwrap();
        let answer = async {
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            drop(client);
            answer
        };
        let (answer, ()) = timeout(PATIENCE, async { tokio::join!(answer, served) }).await.unwrap();
        assert_eq!(answer, alert, "{name}");
    }
    assert_eq!((bench.outcome("no_alpn"), bench.outcome("no_route")), (1, 1));
    assert_eq!(bench.offences.try_recv(), Ok(offence("192.0.2.1", OffenceKind::ServerName)));
    assert_eq!(bench.offences.try_recv(), Err(TryRecvError::Empty));
}

const UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

#[tokio::test]
async fn who_names_no_client_is_limited_unless_it_is_a_trusted_proxy() {
    for (trust_any, expected) in [(false, [3, 0, 0]), (true, [0, 2, 1])] {
        let firewall = firewall(&[], RateLimit::new(2, 1 << 40, 32, 64));
        let bench = Bench::tls(firewall).behind_proxy(trust_any);
        // There is a connection of the source already.
        let place = bench.listening.sources.take(Source::of("192.0.2.1".parse().unwrap()));
        assert_eq!(place, Ok(true));
        for _ in 0..3 {
            let (served, mut client) = bench.connect("192.0.2.1").await;
            // It may be reset before it has said anything.
            drop(client.write_all(&[UNKNOWN, b"garbage"].concat()).await);
            timeout(PATIENCE, served).await.unwrap();
        }
        let counts = ["not_tls", "over_source_limit", "rate_limited"].map(|reason| bench.outcome(reason));
        assert_eq!(counts, expected, "trust_any = {trust_any}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_header_is_not_the_clients_fault() {
    for (share, is_offence) in [(0.4, true), (0.6, false)] {
        let mut bench = Bench::tls(Firewall::default()).behind_proxy(false);
        let (served, mut proxy) = bench.connect("192.0.2.1").await;
        let late = async {
            tokio::time::sleep(PATIENCE.mul_f64(share)).await;
            proxy.write_all(b"PROXY TCP4 203.0.113.7 198.51.100.1 5000 443\r\n").await.unwrap();
        };
        timeout(2 * PATIENCE, async { tokio::join!(late, served) }).await.unwrap();
        assert_eq!(bench.outcome("handshake_timeout"), 1);
        let told = is_offence.then(|| offence("203.0.113.7", OffenceKind::Timeout));
        assert_eq!(bench.offences.try_recv().ok(), told, "{share}");
    }
}

/// What is read is charged before it is read, whether it is the hello's or the header's.
#[tokio::test]
async fn a_long_beginning_does_not_fit_into_a_small_budget() {
    let header = [b"\r\n\r\n\0\r\nQUIT\n\x21\x00".as_slice(), &8_000_u16.to_be_bytes(), &[0xff; 8_000]].concat();
    let long_hello = [[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc].as_slice(), [0; 12_000].as_slice()].concat();
    let both = [header.as_slice(), &long_hello].concat();
    for (bytes, is_proxy) in [(&long_hello, false), (&header, true), (&both, true)] {
        for (limit, outcome) in [(12 << 10, "over_memory"), (1 << 20, "client_gone")] {
            let (bytes, finish) = (bytes.clone(), tokio::runtime::Builder::new_current_thread());
            // An account belongs to a thread.
            let served = move || {
                let mut finish = finish;
                finish.enable_all().build().unwrap().block_on(async {
                    let mut bench = Bench::tls(Firewall::default());
                    if is_proxy {
                        bench = bench.behind_proxy(false);
                    }
                    memory::Budget::new(limit).open_account();
                    let (served, mut client) = bench.connect("192.0.2.1").await;
                    let said = async {
                        // It may be reset before it has said all.
                        drop(client.write_all(&bytes).await);
                        drop(client.shutdown().await);
                    };
                    timeout(PATIENCE, async { tokio::join!(said, served) }).await.unwrap();
                    assert_eq!(bench.outcome(outcome), 1, "{limit} {:?}", bench.edge.counters.outcomes());
                });
            };
            std::thread::spawn(served).join().unwrap();
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_has_done_nothing() {
    let mut bench = Bench::tls(Firewall::default());
    let (served, mut client) = bench.connect("192.0.2.1").await;
    client.write_all(&hello("unknown.example")[..20]).await.unwrap();
    drop(client);
    timeout(PATIENCE, served).await.unwrap();
    assert_eq!(bench.outcome("client_gone"), 1);
    assert_eq!(bench.offences.try_recv(), Err(TryRecvError::Empty));
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_does_not_come() {
    let mut bench = Bench::tls(Firewall::default());
    let (served, _client) = bench.connect("192.0.2.1").await;
    timeout(2 * PATIENCE, served).await.unwrap();
    assert_eq!(bench.outcome("handshake_timeout"), 1);
    assert_eq!(bench.offences.try_recv(), Ok(offence("192.0.2.1", OffenceKind::Timeout)));
}

#[tokio::test]
async fn an_offence_is_told_before_its_client_takes_the_alert() {
    let mut bench = Bench::new(Firewall::default(), Protocol::Tls, Refuse::Alert);
    let (served, mut client) = bench.connect("192.0.2.1").await;
    client.write_all(&hello("unknown.example")).await.unwrap();
    let told = tokio::select! {
        told = timeout(SOON, bench.offences.recv()) => told.unwrap(),
        () = served => panic!("the client has not closed"),
    };
    assert_eq!(told, Some(offence("192.0.2.1", OffenceKind::ServerName)));
}

#[tokio::test]
async fn a_listener_without_names_has_no_unknown_ones() {
    let mut bench = Bench::new(Firewall::default(), Protocol::Tcp, Refuse::Reset);
    let (served, _client) = bench.connect("192.0.2.1").await;
    timeout(PATIENCE, served).await.unwrap();
    assert_eq!(bench.outcome("no_route"), 1);
    assert_eq!(bench.offences.try_recv(), Err(TryRecvError::Empty));
}

#[tokio::test]
async fn whom_a_rule_allows_is_not_reported_and_whom_one_blocks_neither() {
    let allow = Clause { action: ClauseAction::Allow, ..BLOCK };
    let bench = Bench::tls(firewall(&[&[allow], &[BLOCK]], RateLimit::new(1, 1 << 40, 32, 64)));
    bench.edge.firewall.groups.set_names(vec![Group::DEFAULT, Group::literal("spamhaus")]);
    for _ in 0..3 {
        bench.refused("10.0.0.1", b"garbage").await;
    }
    let (served, _client) = bench.connect("10.1.0.1").await;
    timeout(PATIENCE, served).await.unwrap();
    assert_eq!((bench.outcome("not_tls"), bench.outcome("blocked_prefix")), (3, 1));
    assert!(bench.offences.is_empty());
}

#[tokio::test]
async fn one_connection_too_many() {
    let mut bench = Bench::tls(firewall(&[], RateLimit::new(2, 1 << 40, 32, 64)));
    for _ in 0..4 {
        let (served, mut client) = bench.connect("192.0.2.1").await;
        // It may be reset before it has said anything.
        drop(client.write_all(b"garbage").await);
        timeout(PATIENCE, served).await.unwrap();
    }
    bench.refused("192.0.2.2", b"garbage").await;
    assert_eq!((bench.outcome("not_tls"), bench.outcome("rate_limited")), (3, 2));
    let told: Vec<_> = std::iter::from_fn(|| bench.offences.try_recv().ok()).map(|offence| offence.kind).collect();
    assert_eq!(told.iter().filter(|kind| **kind == OffenceKind::Rate).count(), 2);
    assert_eq!(told.len(), 5);
}

/// A connection is this, its sockets and what is in flight. The limit is for those that wait for years.
#[tokio::test]
async fn the_task_of_a_connection_is_small() {
    let bench = Bench::tls(Firewall::default());
    let (served, _client) = bench.connect("192.0.2.1").await;
    let size = size_of_val(&served);
    assert!(size <= 2048, "{size} bytes");
}

/// A listener with one route that terminates TLS, and its certificate's store.
fn terminating(bench: Bench, files: &certs::CertFiles) -> Bench {
    let mut target = Target::passthrough("127.0.0.1:9".parse().unwrap());
    target.mode = Mode::L7;
    (target.tls_cert, target.tls_key) = (Some(files.cert.clone()), Some(files.key.clone()));
    let route = Route { hostname: "a.example".parse().unwrap(), alpn: Vec::new(), target };
    let listener = Listener { routes: vec![route], ..Listener::new(":443".parse().unwrap()) };
    let mut certificates = certs::Certificates::new(std::time::Instant::now());
    drop(certificates.open(files, std::time::SystemTime::now()));
    Bench { listening: Arc::new(Listening::with_certificates(&listener, &certificates)), ..bench }
}

#[tokio::test]
async fn tls_is_terminated_where_the_route_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let made = certs::tests::make("a.example");
    let mut bench = terminating(Bench::tls(Firewall::default()), &made.write(dir.path()));

    let mut roots = RootCertStore::empty();
    roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(made.cert.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let (served, tcp) = bench.connect("192.0.2.1").await;
    let client = async {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(ServerName::try_from("a.example").unwrap(), tcp).await.unwrap();
        // Nobody listens where the route leads.
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.unwrap();
        assert!(response.starts_with(b"HTTP/1.1 502 Bad Gateway\r\n"));
    };
    timeout(PATIENCE, async { tokio::join!(client, served) }).await.unwrap();
    assert_eq!(bench.outcome("closed"), 1);

    let (served, mut client) = bench.connect("192.0.2.2").await;
    client.write_all(&[&hello("a.example")[..], b"GET / HTTP/1.1\r\n\r\n"].concat()).await.unwrap();
    let answer = async {
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        drop(client);
        answer
    };
    let (answer, ()) = timeout(PATIENCE, async { tokio::join!(answer, served) }).await.unwrap();
    assert!(!answer.is_empty(), "an alert");
    assert_eq!(bench.outcome("tls_malformed"), 1);
    assert_eq!(bench.offences.try_recv(), Ok(offence("192.0.2.2", OffenceKind::Handshake)));

    // A route whose certificate could not be loaded: the client's fault it is not.
    let absent = certs::CertFiles { cert: dir.path().join("absent"), key: dir.path().join("absent") };
    let mut bench = terminating(Bench::tls(Firewall::default()), &absent);
    bench.refused("192.0.2.3", &hello("a.example")).await;
    assert_eq!(bench.outcome("tls_no_certificate"), 1);
    assert_eq!(bench.offences.try_recv(), Err(TryRecvError::Empty));
}

#[tokio::test]
async fn a_record_tells_the_network_of_a_client() {
    let shown = |redact_clients: bool, proxy: Option<AcceptProxy>| {
        let bench = Bench::tls(Firewall::default());
        let edge = Arc::new(Edge { redact_clients, ..Arc::into_inner(bench.edge).unwrap() });
        let listener = Listener { proxy, ..Listener::new(":443".parse().unwrap()) };
        let permit = Arc::new(Listening::new(&listener)).admit().unwrap();
        let local = Arc::new(Local { edge, drain: relay::Drain::never() });
        let mut record = Record::new(local, permit, PeerAddr::new("192.0.2.9:5000".parse().unwrap()));
        record.client = ClientAddr::from_header("[2001:db8:1:2::3]:6000".parse().unwrap());
        let shown = [record.shown_client().to_string(), record.shown_peer().to_string()];
        record.finish(Outcome::Closed);
        shown
    };
    let (some, any) = (AcceptProxy::default(), AcceptProxy { trust_any: true, ..AcceptProxy::default() });
    assert_eq!(shown(false, Some(any.clone())), ["[2001:db8:1:2::3]:6000", "192.0.2.9:5000"]);
    assert_eq!(shown(true, Some(some)), ["2001:db8:1::", "192.0.2.9:5000"]);
    assert_eq!(shown(true, Some(any)), ["2001:db8:1::", "192.0.2.0"]);
}
