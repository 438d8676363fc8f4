//! A backend by the `h2` crate, with prior knowledge or over TLS.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use ::http::{Request, Response};
use anyhow::Result;
use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    server::{Builder, SendResponse},
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    runtime::{self, Runtime},
};
use tokio_rustls::TlsAcceptor;

/// A backend; it is gone when dropped.
#[derive(Debug)]
pub struct H2Origin {
    addr: SocketAddr,
    accepts: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

/// A request, and what is needed to answer it.
#[derive(Debug)]
pub struct Incoming {
    /// Its head and its content.
    pub request: Request<RecvStream>,
    /// For the answer.
    pub respond: SendResponse<Bytes>,
    /// The number of its connection, from 0.
    pub connection: usize,
}

impl H2Origin {
    /// Over TCP.
    pub fn new<F>(serve: impl Fn(Incoming) -> F + Clone + Send + Sync + 'static) -> Result<Self>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        Self::with(None, Builder::new(), serve)
    }

    /// Over TLS with ALPN, if there is a configuration for it, and with other settings.
    pub fn with<F>(
        config: Option<ServerConfig>,
        builder: Builder,
        serve: impl Fn(Incoming) -> F + Clone + Send + Sync + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let addr = listener.local_addr()?;
        let (accepts, requests) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let acceptor = config.map(|mut config| {
            config.alpn_protocols = vec![b"h2".to_vec()];
            TlsAcceptor::from(Arc::new(config))
        });
        runtime.spawn({
            let (accepts, requests) = (Arc::clone(&accepts), Arc::clone(&requests));
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let connection = accepts.fetch_add(1, SeqCst);
                    let (acceptor, builder, serve) = (acceptor.clone(), builder.clone(), serve.clone());
                    let requests = Arc::clone(&requests);
                    tokio::spawn(async move {
                        let _ = stream.set_nodelay(true);
                        let served = match acceptor {
                            None => drive(stream, &builder, connection, &requests, serve).await,
                            Some(acceptor) => {
                                let stream = acceptor.accept(stream).await?;
                                drive(stream, &builder, connection, &requests, serve).await
                            }
                        };
                        if let Err(error) = &served {
                            println!("connection {connection} of a backend: {error:#}");
                        }
                        served
                    });
                }
            }
        });
        Ok(Self { addr, accepts, requests, runtime: Some(runtime) })
    }

    /// Answers with all of the request's content, its trailers, and what it has said of itself in `x-seen`.
    pub fn echo() -> Result<Self> {
        Self::new(echo)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections so far.
    pub fn accepts(&self) -> usize {
        self.accepts.load(SeqCst)
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }
}

/// See [`H2Origin::echo`].
pub async fn echo(mut incoming: Incoming) -> Result<()> {
    let request = &incoming.request;
    let seen = format!("{} {} {:?}", request.method(), request.uri(), request.version());
    let host = request.headers().contains_key("host");
    let ends = request.body().is_end_stream();
    let response = Response::builder().header("x-seen", seen).header("x-host", host.to_string()).body(())?;
    let mut send = incoming.respond.send_response(response, ends)?;
    if ends {
        return Ok(());
    }
    let mut body = incoming.request.into_body();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        write(&mut send, data).await?;
    }
    match body.trailers().await? {
        Some(trailers) => send.send_trailers(trailers)?,
        None => send.send_data(Bytes::new(), true)?,
    }
    Ok(())
}

/// Sends data as far as the window allows, and waits for the rest.
pub async fn write(send: &mut SendStream<Bytes>, mut data: Bytes) -> Result<()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = match send.capacity() {
            0 => match std::future::poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(room) => room?,
                None => anyhow::bail!("the stream is gone"),
            },
            room => room,
        };
        send.send_data(data.split_to(room.min(data.len())), false)?;
    }
    Ok(())
}

async fn drive<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    builder: &Builder,
    connection: usize,
    requests: &AtomicUsize,
    serve: impl Fn(Incoming) -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut streams = builder.handshake::<_, Bytes>(stream).await?;
    while let Some(next) = streams.accept().await {
        let (request, respond) = next?;
        requests.fetch_add(1, SeqCst);
        let served = serve(Incoming { request, respond, connection });
        tokio::spawn(async move {
            if let Err(error) = served.await {
                println!("a request at a backend: {error:#}");
            }
        });
    }
    Ok(())
}

impl Drop for H2Origin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
