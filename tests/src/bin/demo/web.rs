//! TLS that ends at the proxy: a browser, a WebSocket, gRPC and plain HTTP, as clients that others have written speak them.

use std::{
    future::Future,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use mc_proxy_proto::FILE_DESCRIPTOR_SET;
use mc_proxy_tests::{
    backend::Backend,
    client::connect,
    daemon::Installation,
    http::{Origin, ok},
    tls::Authority,
    topology::Namespace,
};
use rustls::{ClientConnection, ProtocolVersion, StreamOwned, pki_types::ServerName};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{
    report::Figures,
    rules::{shown, told},
};

const APP: &str = "app.example.com";
const CHAT: &str = "chat.example.com";
const API: &str = "api.example.com";
/// What no browser says of itself.
const BAD_AGENT: &str = "BadBot/1.0 (+https://bad.example.net)";
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(10);
const MESSAGES: u32 = 100;

/// Backends that speak without TLS, and where their clients come from.
#[derive(Debug)]
pub(crate) struct Web {
    app: Origin,
    chat: Backend,
    api: Api,
    clients: Option<Namespace>,
}

/// Where the proxy listens, as clients see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    pub(crate) https: SocketAddr,
    pub(crate) http: SocketAddr,
}

/// A connection of HTTP/2 that stays open between the steps.
pub(crate) struct Browser {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
    local: SocketAddr,
}

impl Web {
    /// With the backends in `inside` and the clients in `clients`, both on the loopback where there is none.
    pub(crate) fn new(inside: Option<&Namespace>, clients: Option<&Namespace>) -> Result<Self> {
        let bind = || -> Result<TcpListener> {
            match inside {
                Some(namespace) => Ok(namespace.run(|| TcpListener::bind("127.0.0.1:0"))??),
                None => Ok(TcpListener::bind("127.0.0.1:0")?),
            }
        };
        let tell = |conn: &mut mc_proxy_tests::http::Conn| conn.answer(|request| ok(&request.line));
        let app = match inside {
            Some(namespace) => Origin::within(namespace, tell)?,
            None => Origin::new(tell)?,
        };
        Ok(Self { app, chat: Backend::on(bind()?, chat)?, api: Api::start(bind()?)?, clients: clients.cloned() })
    }

    /// The listeners, with a certificate that is made on the spot.
    pub(crate) fn listeners(
        &self,
        edge: &Installation,
        authority: &Authority,
        https: &str,
        http: &str,
    ) -> Result<String> {
        let (cert, key) = (edge.directory().join("web.crt"), edge.directory().join("web.key"));
        authority.issue(&[APP, CHAT, API])?.write(&cert, &key)?;
        let mut toml = format!("\n[[listeners]]\naddr = \"{https}\"\n");
        for (hostname, backend, more) in [
            (APP, self.app.addr(), ""),
            (CHAT, self.chat.addr(), ""),
            (API, self.api.addr, "backend_protocol = \"h2\"\n"),
        ] {
            toml.push_str(&format!(
                "[[listeners.routes]]\nhostname = \"{hostname}\"\nmode = \"l7\"\ntls_cert = \"{}\"\ntls_key = \"{}\"\n\
                 backend = \"{backend}\"\n{more}",
                cert.display(),
                key.display()
            ));
        }
        toml.push_str(&format!("\n[[listeners]]\naddr = \"{http}\"\nprotocol = \"http-redirect\"\n"));
        Ok(toml)
    }

    /// One request of a browser, and what the backend has seen of it.
    pub(crate) fn browse(&self, authority: &Authority, at: Places, figures: &mut Figures) -> Result<Browser> {
        let begin = Instant::now();
        let mut browser = Browser::open(self.connect(at.https)?, authority)?;
        figures.add(format!(
            "TLS 1.3, ALPN h2 (offered: h2, http/1.1), a certificate for {APP}: {:.1} ms",
            begin.elapsed().as_secs_f64() * 1e3
        ));
        let begin = Instant::now();
        let (response, body) = browser.get("/hello?x=1", "Mozilla/5.0")?;
        ensure!(response.status() == StatusCode::OK, "status {}", response.status());
        ensure!(response.version() == Version::HTTP_2, "{:?}", response.version());
        figures.add(format!(
            "GET https://{APP}/hello?x=1 -> {:?} {} in {:.1} ms; the backend got \"{body}\"",
            response.version(),
            response.status().as_u16(),
            begin.elapsed().as_secs_f64() * 1e3
        ));
        ensure!(body == "GET /hello?x=1 HTTP/1.1", "the backend was asked {body:?}");
        let seen = self.app.last()?;
        let client = browser.local.ip().to_string();
        for (name, value) in
            [("x-forwarded-for", client.as_str()), ("x-forwarded-proto", "https"), ("x-forwarded-host", APP)]
        {
            ensure!(seen.field(name) == Some(value), "{name}: {:?} instead of {value}", seen.field(name));
        }
        figures.add(format!(
            "it saw x-forwarded-for: {client}, the client's address; what the client had written there was 192.0.2.99"
        ));
        figures.add(format!("and forwarded: {}", seen.field("forwarded").unwrap_or_default()));
        Ok(browser)
    }

    /// A policy that is added while a connection is in use holds for its next request.
    pub(crate) fn refuse_agent(
        &self,
        edge: &Installation,
        listener: &str,
        browser: &mut Browser,
        figures: &mut Figures,
    ) -> Result<()> {
        let (before, _) = browser.get("/", BAD_AGENT)?;
        ensure!(before.status() == StatusCode::OK, "{} before the policy", before.status());
        figures.add(format!("User-Agent: {BAD_AGENT} -> {}", before.status().as_u16()));
        let ctl = |figures: &mut Figures, arguments: &[&str]| {
            let output = edge.ctl_output(arguments)?;
            figures.quote(&shown(arguments), &told(&output));
            ensure!(output.status.success(), "mcproxyctl {}: {}", arguments.join(" "), output.status);
            Ok(())
        };
        ctl(figures, &["policies", "add", listener, APP, "block_user_agent", "badbot"])?;
        let asked = self.app.requests().len();
        let (refused, body) = browser.get("/", BAD_AGENT)?;
        ensure!(refused.status() == StatusCode::FORBIDDEN, "{} after the policy", refused.status());
        ensure!(self.app.requests().len() == asked, "the backend was asked");
        let body = body.lines().next().unwrap_or_default();
        figures.add(format!("the next request on the same connection -> \"{body}\"; the backend was not asked"));
        let (good, _) = browser.get("/", "Mozilla/5.0")?;
        ensure!(good.status() == StatusCode::OK, "{} for a browser", good.status());
        figures.add(format!("User-Agent: Mozilla/5.0, on it too -> {}", good.status().as_u16()));
        ctl(figures, &["policies", "list", listener, APP])
    }

    /// A WebSocket, made by a library for WebSockets on both sides.
    pub(crate) fn talk(&self, authority: &Authority, at: Places, figures: &mut Figures) -> Result<()> {
        let mut config = authority.client_config()?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(CHAT)?;
        let tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name)?, self.connect(at.https)?);
        let (mut socket, response) =
            tungstenite::client(format!("wss://{CHAT}/talk"), tls).map_err(|error| anyhow::anyhow!("{error}"))?;
        figures.add(format!("GET wss://{CHAT}/talk -> {}", response.status()));
        let begin = Instant::now();
        for number in 0..MESSAGES {
            let text = format!("message {number}");
            socket.send(text.clone().into())?;
            let answer = socket.read()?;
            ensure!(answer.to_text()? == text, "{answer:?} instead of {text:?}");
        }
        figures
            .add(format!("{MESSAGES} messages came back one by one in {:.0} ms", begin.elapsed().as_secs_f64() * 1e3));
        socket.close(None)?;
        // Until both sides have said that it ends.
        while socket.read().is_ok() {}
        Ok(())
    }

    /// gRPC: one call with one answer, and one in which both sides talk.
    pub(crate) fn call(&self, authority: &Authority, at: Places, figures: &mut Figures) -> Result<()> {
        let runtime = runtime()?;
        let stream = self.connect(at.https)?;
        runtime.block_on(within(async {
            let channel = channel(stream, authority).await?;
            let begin = Instant::now();
            let request = HealthCheckRequest { service: String::new() };
            let health =
                HealthClient::new(channel.clone()).check(request).await.context("the unary call")?.into_inner();
            ensure!(health.status() == ServingStatus::Serving, "{health:?}");
            figures.add(format!(
                "unary: {API} grpc.health.v1.Health/Check -> {} in {:.1} ms",
                health.status().as_str_name(),
                begin.elapsed().as_secs_f64() * 1e3
            ));
            let begin = Instant::now();
            let services = converse(ServerReflectionClient::new(channel)).await.context("the streaming call")?;
            figures.add(format!(
                "bidirectional: ServerReflection, {MESSAGES} messages each way, each sent after the answer to the one \
                 before: {:.0} ms; {services} services",
                begin.elapsed().as_secs_f64() * 1e3
            ));
            Ok(())
        }))
    }

    /// What a client without TLS is told.
    pub(crate) fn redirect(&self, at: Places, figures: &mut Figures) -> Result<()> {
        let mut stream = self.connect(at.http)?;
        write!(stream, "GET /hello?x=1 HTTP/1.1\r\nHost: {APP}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.lines().next().unwrap_or_default();
        let location = answer.lines().find(|line| line.to_ascii_lowercase().starts_with("location:"));
        let location = location.with_context(|| format!("no Location: {answer:?}"))?;
        figures.add(format!("GET http://{APP}/hello?x=1 -> {status}, {location}"));
        ensure!(status == "HTTP/1.1 301 Moved Permanently", "{status}");
        ensure!(location.ends_with(&format!("https://{APP}/hello?x=1")), "{location}");
        Ok(())
    }

    fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        match &self.clients {
            Some(namespace) => namespace.run(|| connect(to))?,
            None => connect(to),
        }
    }
}

impl Browser {
    fn open(stream: TcpStream, authority: &Authority) -> Result<Self> {
        let runtime = runtime()?;
        let local = stream.local_addr()?;
        let sender = runtime.block_on(within(async {
            let tls = shake_hands(stream, authority, APP, &["h2", "http/1.1"]).await?;
            let session = tls.get_ref().1;
            ensure!(session.protocol_version() == Some(ProtocolVersion::TLSv1_3), "{:?}", session.protocol_version());
            ensure!(session.alpn_protocol() == Some(b"h2"), "ALPN has come to {:?}", session.alpn_protocol());
            let (sender, connection) = h2::client::handshake(tls).await?;
            tokio::spawn(connection);
            Ok(sender)
        }))?;
        Ok(Self { runtime, sender, local })
    }

    fn get(&mut self, path: &str, agent: &str) -> Result<(Response<()>, String)> {
        let request = Request::get(format!("https://{APP}{path}"))
            .header("user-agent", agent)
            // To be discarded: this client is no proxy.
            .header("x-forwarded-for", "192.0.2.99")
            .body(())?;
        let sender = self.sender.clone();
        self.runtime.block_on(within(async {
            let mut sender = sender.ready().await?;
            let (response, _) = sender.send_request(request, true)?;
            let (head, mut content) = response.await?.into_parts();
            let mut body = Vec::new();
            while let Some(data) = content.data().await.transpose()? {
                content.flow_control().release_capacity(data.len())?;
                body.extend_from_slice(&data);
            }
            Ok((Response::from_parts(head, ()), String::from_utf8(body)?))
        }))
    }
}

/// A gRPC server; it ends when it is dropped.
#[derive(Debug)]
struct Api {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Api {
    fn start(listener: TcpListener) -> Result<Self> {
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime()?.block_on(async {
                let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener)?);
                let (_reporter, health) = tonic_health::server::health_reporter();
                let reflection = tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                    .build_v1()?;
                let server = Server::builder().add_service(health).add_service(reflection);
                // The edge keeps its connection as long as it may, which is longer than anybody waits.
                tokio::select! {
                    served = server.serve_with_incoming(incoming) => Ok(served?),
                    _ = stopped => Ok(()),
                }
            })
        });
        Ok(Self { addr, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // One that has failed has nobody who hears it.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the gRPC server: {error:#}");
        }
    }
}

/// Echoes messages until the client has had enough.
fn chat(stream: TcpStream) -> Result<()> {
    let mut socket = tungstenite::accept(stream).map_err(|error| anyhow::anyhow!("{error}"))?;
    loop {
        match socket.read() {
            Ok(message) if message.is_text() => socket.send(message)?,
            Ok(_) => {}
            Err(tungstenite::Error::ConnectionClosed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends a message after each answer; how many services the server has told of.
async fn converse(mut client: ServerReflectionClient<Channel>) -> Result<usize> {
    let message = || ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let (sender, receiver) = mpsc::channel(1);
    sender.send(message()).await?;
    let mut answers = client.server_reflection_info(ReceiverStream::new(receiver)).await?.into_inner();
    let mut services = 0;
    for number in 1..=MESSAGES {
        let answer = answers.message().await?.with_context(|| format!("no answer to message {number}"))?;
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            bail!("the answer to message {number} is {:?}", answer.message_response);
        };
        services = list.service.len();
        if number < MESSAGES {
            sender.send(message()).await?;
        }
    }
    // The status comes in the trailers, and is an error unless it is OK.
    drop(sender);
    ensure!(answers.message().await?.is_none(), "more answers than messages");
    Ok(services)
}

/// A channel over one connection.
async fn channel(stream: TcpStream, authority: &Authority) -> Result<Channel> {
    let tls = shake_hands(stream, authority, API, &["h2"]).await?;
    let only = Arc::new(Mutex::new(Some(TokioIo::new(tls))));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = only.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.context("the connection has ended").map_err(std::io::Error::other) }
    });
    Ok(Endpoint::from_shared(format!("https://{API}"))?.connect_with_connector(connector).await?)
}

async fn shake_hands(
    stream: TcpStream,
    authority: &Authority,
    name: &'static str,
    alpn: &[&str],
) -> Result<TlsStream<tokio::net::TcpStream>> {
    stream.set_nonblocking(true)?;
    let mut config = authority.client_config()?;
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = tokio::net::TcpStream::from_std(stream)?;
    stream.set_nodelay(true)?;
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from(name)?, stream)
        .await
        .with_context(|| format!("shaking hands with {name}"))
}

async fn within<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(PATIENCE, work).await.context("no answer in time")?
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}
