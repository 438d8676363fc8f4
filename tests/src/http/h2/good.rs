//! A client by the `h2` crate, which does everything as it should be done.

use std::{future::poll_fn, net::SocketAddr, pin::Pin, sync::Arc};

use ::http::{HeaderMap, Method, Request, StatusCode};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{Builder, Connection, ResponseFuture, SendRequest},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, runtime, task::JoinHandle, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    http::{Edge, HOST},
    wait::SOON,
};

/// A connection.
#[derive(Debug)]
pub struct Good {
    /// Takes requests.
    pub sender: SendRequest<Bytes>,
    /// Ends with the connection.
    pub connection: JoinHandle<Result<(), h2::Error>>,
}

/// A response, whole.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Fields of the head.
    pub headers: HeaderMap,
    /// The content.
    pub body: Vec<u8>,
    /// Fields behind it.
    pub trailers: Option<HeaderMap>,
    /// What was said before.
    pub early: Vec<(StatusCode, HeaderMap)>,
}

/// Runs a test.
pub fn run(test: impl Future<Output = Result<()>>) -> Result<()> {
    runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(test)
}

/// An error unless it happens at once.
pub async fn soon<T>(what: impl Future<Output = T>) -> Result<T> {
    timeout(SOON, what).await.context("not in time")
}

/// TLS to an address.
pub async fn tls(addr: SocketAddr, mut config: ClientConfig, name: &str) -> Result<TlsStream<TcpStream>> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned())?, stream).await?;
    ensure!(stream.get_ref().1.alpn_protocol() == Some(b"h2"), "no h2");
    Ok(stream)
}

/// A request for a path of [`HOST`].
pub fn request(method: Method, path: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = method;
    if let Ok(uri) = format!("https://{HOST}{path}").parse() {
        *request.uri_mut() = uri;
    }
    request
}

/// GET.
pub fn get(path: &str) -> Request<()> {
    request(Method::GET, path)
}

impl Good {
    /// A connection for [`HOST`].
    pub async fn new(edge: &Edge) -> Result<Self> {
        Self::with(edge, &Builder::new()).await
    }

    /// The same with other settings.
    pub async fn with(edge: &Edge, builder: &Builder) -> Result<Self> {
        let stream = tls(edge.addr, edge.authority.client_config()?, HOST).await?;
        let (sender, connection): (_, Connection<_, Bytes>) = builder.handshake(stream).await?;
        let connection = tokio::spawn(connection);
        Ok(Self { sender: sender.ready().await?, connection })
    }

    /// Begins a request.
    pub async fn begin(&self, head: Request<()>, ends: bool) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        let mut sender = soon(self.sender.clone().ready()).await??;
        Ok(sender.send_request(head, ends)?)
    }

    /// Sends a request and reads its response.
    pub async fn ask(&self, head: Request<()>) -> Result<Reply> {
        let (response, _send) = self.begin(head, true).await?;
        read(response).await
    }

    /// The same with content, and fields behind it.
    pub async fn send(&self, head: Request<()>, body: Bytes, trailers: Option<HeaderMap>) -> Result<Reply> {
        let (response, mut send) = self.begin(head, false).await?;
        send.send_data(body, trailers.is_none())?;
        if let Some(trailers) = trailers {
            send.send_trailers(trailers)?;
        }
        read(response).await
    }

    /// Waits until the server has said that it takes extended CONNECT (RFC 8441 §3).
    pub async fn extended(&self) -> Result<()> {
        soon(async {
            while !self.sender.is_extended_connect_protocol_enabled() {
                tokio::task::yield_now().await;
            }
        })
        .await
    }
}

/// A response to its end.
pub async fn read(mut response: ResponseFuture) -> Result<Reply> {
    soon(async {
        let mut early = Vec::new();
        let response = poll_fn(|cx| {
            while let std::task::Poll::Ready(Some(Ok(head))) = response.poll_informational(cx) {
                early.push((head.status(), head.headers().clone()));
            }
            Pin::new(&mut response).poll(cx)
        })
        .await?;
        let (head, body) = response.into_parts();
        let (body, trailers) = content(body).await?;
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body, trailers, early })
    })
    .await?
}

/// Content to its end, and what is behind it.
pub async fn content(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>)> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, body.trailers().await?))
}

impl Reply {
    /// A field of the head; empty without it.
    pub fn field(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// An error unless it has this status.
    pub fn expect(self, status: u16) -> Result<Self> {
        ensure!(self.status == status, "not {status}: {self:?}");
        Ok(self)
    }
}
