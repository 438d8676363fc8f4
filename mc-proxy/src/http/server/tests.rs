//! Counts and records: one for each request, whatever becomes of it.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    config::Proxy,
    conn::{Access, Counters, Edge, Listening, Local, Offences, Shared},
    desired::{Listener, Mode, Route, Target},
    firewall::Firewall,
    http::{
        access::{
            Sample, Style,
            writer::{AccessLog, Destination},
        },
        limits::HttpLimits,
    },
    net::{
        addr::{ClientAddr, PeerAddr},
        memory, relay,
        resolve::Resolver,
    },
};

const PATIENCE: Duration = Duration::from_secs(10);

struct Bench {
    edge: Arc<Edge>,
    shared: Arc<Shared>,
    drain: relay::Drain,
    site: Site,
    dir: tempfile::TempDir,
    writer: crate::http::access::writer::Writer,
}

impl Bench {
    fn new(backend: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (log, writer) = AccessLog::start(Destination::File(dir.path().join("log"))).unwrap();
        let style = Style { format: Default::default(), redact_clients: true, redact_query: false };
        let edge = Arc::new(Edge {
            firewall: Firewall::default(),
            resolver: Resolver::default(),
            counters: Counters::default(),
            offences: Offences::queue().0,
            drops: crate::control::drops(),
            proxy: Proxy { connect_timeout: PATIENCE, idle_timeout: PATIENCE, ..Proxy::default() },
            splicing: relay::Splicing::userspace(),
            memory: memory::Budget::new(0),
            geoip: Default::default(),
            http: HttpLimits { header_timeout: Duration::from_millis(100), ..HttpLimits::default() },
            http_trusted: Default::default(),
            http_counters: Default::default(),
            redact_clients: true,
            access: Some(Access { log, style, sample: Sample::ALL }),
        });
        let mut target = Target::passthrough(backend.parse().unwrap());
        target.mode = Mode::L7;
        let route = Route { hostname: "a.example".parse().unwrap(), alpn: Vec::new(), target: target.clone() };
        let listener =
            Listener { routes: vec![route], default: Some(target), ..Listener::new(":443".parse().unwrap()) };
        let drain = relay::Drain::new(CancellationToken::new(), Duration::MAX);
        let client = ClientAddr::from_peer(PeerAddr::new("192.0.2.1:5000".parse().unwrap()));
        let shared = Arc::<Shared>::default();
        let site = Site::new(
            Arc::new(Local { edge: Arc::clone(&edge), drain: drain.clone() }),
            Arc::new(Listening::new(&listener)),
            client,
            false,
            false,
            None,
            Default::default(),
            None,
            Some("TLSv1.3"),
            None,
            Arc::clone(&shared),
        );
        Self { edge, shared, drain, site, dir, writer }
    }

    /// What the client gets that sends `bytes` and waits for the end, and the records.
    async fn exchange(self, bytes: &[u8], service: h1::Service) -> (String, Vec<Value>) {
        let (near, mut far) = pair().await;
        let client = async {
            far.write_all(bytes).await.unwrap();
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            String::from_utf8(got).unwrap()
        };
        let served = h1::serve(&self.site, near, &[], service);
        let (got, _) = timeout(PATIENCE, async { tokio::join!(client, served) }).await.unwrap();
        (got, self.records())
    }

    fn records(self) -> Vec<Value> {
        let Self { edge, site, dir, writer, .. } = self;
        let requests = edge.http_counters.requests();
        drop((edge, site));
        assert!(writer.finish(PATIENCE));
        let text = std::fs::read_to_string(dir.path().join("log")).unwrap();
        let records: Vec<_> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.len() as u64, requests);
        records
    }
}

async fn pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (near, _) = listener.accept().await.unwrap();
    (Socket::new(OwnedFd::from(near.into_std().unwrap())), far)
}

#[tokio::test]
async fn what_is_answered_here_has_its_record() {
    let (proxy, redirect) = (h1::Service::Proxy, h1::Service::Redirect);
    for (bytes, service, status, method, path, outcome) in [
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n",
            proxy,
            502,
            "GET",
            "/",
            "backend_unreachable",
        ),
        ("nonsense\r\n\r\n", proxy, 400, "-", "-", "refused"),
        ("GET / HTTP", proxy, 408, "-", "-", "refused"),
        ("GET /old HTTP/1.0\r\n\r\n", proxy, 400, "GET", "/old", "refused"),
        ("GET /x HTTP/1.0\r\nHost: a.example\r\n\r\n", redirect, 301, "GET", "/x", "completed"),
        ("OPTIONS * HTTP/1.0\r\nHost: a.example\r\n\r\n", redirect, 400, "OPTIONS", "*", "refused"),
    ] {
        let (got, records) = Bench::new("127.0.0.1:9").exchange(bytes.as_bytes(), service).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{got}");
        let [record] = &records[..] else { panic!("{records:?}") };
        let content = got.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(
            (record["status"].as_u64(), record["method"].as_str(), record["path"].as_str(), record["outcome"].as_str()),
            (Some(status), Some(method), Some(path), Some(outcome)),
            "{record}"
        );
        assert_eq!(record["response_bytes"].as_u64(), Some(content.len() as u64), "{record}");
        assert_eq!((record["client"].as_str(), record["tls"].as_str()), (Some("192.0.2.0"), Some("TLSv1.3")));
    }
}

#[tokio::test]
async fn what_is_cut_off_has_its_record() {
    for (answer, stops, outcome, status, bytes) in [
        ("", false, "client_aborted", None, 0),
        ("", true, "shutdown", None, 0),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", true, "shutdown", Some(200), 5),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bench = Bench::new(&listener.local_addr().unwrap().to_string());
        let (near, mut far) = pair().await;
        let request = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
        far.write_all(request.as_bytes()).await.unwrap();
        let meet = async {
            let (mut backend, _) = listener.accept().await.unwrap();
            backend.read_u8().await.unwrap();
            backend.write_all(answer.as_bytes()).await.unwrap();
            let mut got = Vec::new();
            while !answer.is_empty() && !got.ends_with(b"hello") {
                got.push(far.read_u8().await.unwrap());
            }
            if stops {
                bench.drain.begin();
            }
            backend
        };
        let served = Box::pin(h1::serve(&bench.site, near, &[], h1::Service::Proxy));
        tokio::select! {
            _ = served => panic!("it has ended"),
            met = timeout(PATIENCE, meet) => drop(met.unwrap()),
        }
        assert_eq!(bench.shared.bytes(), (request.len() as u64, bytes));
        let records = bench.records();
        let [record] = &records[..] else { panic!("{records:?}") };
        assert_eq!((record["outcome"].as_str(), record["status"].as_u64()), (Some(outcome), status), "{record}");
        assert_eq!(record["response_bytes"].as_u64(), Some(bytes), "{record}");
    }
}
