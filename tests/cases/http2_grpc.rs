//! gRPC by tonic, through the proxy to a server of tonic over HTTP/2 with prior knowledge.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use ::http::uri::PathAndQuery;
use anyhow::{Context as _, Result, ensure};
use hyper_util::rt::TokioIo;
use mc_proxy_tests::{
    http::{
        Edge, HOST, Plan,
        h2::{
            Good,
            good::{request, run, soon, tls},
        },
    },
    wait::{SOON, until},
};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    client, server,
    server::NamedService,
    transport::{Channel, Endpoint, Server},
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

/// `google.protobuf.BytesValue`.
type Message = Vec<u8>;
type Messages = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

/// A service whose methods are the kinds that there are.
#[derive(Clone, Debug, Default)]
struct Echo {
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    calls: AtomicUsize,
    /// Of them, those that sleep, from the time on that giving them up shows.
    sleeping: AtomicUsize,
    has_timeout: AtomicBool,
    /// A call was given up before it had ended.
    dropped: AtomicBool,
}

struct Drops(Arc<Seen>);

impl Drop for Drops {
    fn drop(&mut self) {
        self.0.dropped.store(true, SeqCst);
    }
}

fn codec() -> ProstCodec<Message, Message> {
    ProstCodec::default()
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl Service<::http::Request<Body>> for Echo {
    type Response = ::http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ::http::Request<Body>) -> Self::Future {
        let seen = Arc::clone(&self.seen);
        seen.calls.fetch_add(1, SeqCst);
        seen.has_timeout.fetch_or(request.headers().contains_key("grpc-timeout"), SeqCst);
        Box::pin(async move {
            let mut grpc = server::Grpc::new(codec());
            let path = request.uri().path().to_owned();
            Ok(match path.as_str() {
                "/test.Echo/Unary" => {
                    let unary = async |request: Request<Message>| {
                        let mut response = Response::new(request.get_ref().clone());
                        if let Some(value) = request.metadata().get("x-own") {
                            response.metadata_mut().insert("x-own", value.clone());
                        }
                        Ok::<_, Status>(response)
                    };
                    grpc.unary(service_fn(move |request| Box::pin(unary(request))), request).await
                }
                "/test.Echo/Sleeps" => {
                    let sleeps = move |_: Request<Message>| {
                        let drops = Drops(Arc::clone(&seen));
                        seen.sleeping.fetch_add(1, SeqCst);
                        async move {
                            tokio::time::sleep(Duration::from_secs(20)).await;
                            drop(drops);
                            Ok::<_, Status>(Response::new(Message::new()))
                        }
                    };
                    grpc.unary(service_fn(sleeps), request).await
                }
                "/test.Echo/Fails" => {
                    let fails = |request: Request<Message>| async move {
                        let details = request.into_inner().into();
                        Err::<Response<Message>, _>(Status::with_details(
                            Code::FailedPrecondition,
                            "not so: ä%",
                            details,
                        ))
                    };
                    grpc.unary(service_fn(fails), request).await
                }
                "/test.Echo/Collects" => {
                    let collects = |request: Request<Streaming<Message>>| async move {
                        let mut messages = request.into_inner();
                        let mut lengths = Vec::new();
                        while let Some(message) = messages.next().await {
                            lengths.extend((message?.len() as u32).to_be_bytes());
                        }
                        Ok::<_, Status>(Response::new(lengths))
                    };
                    grpc.client_streaming(service_fn(collects), request).await
                }
                "/test.Echo/Counts" => {
                    let counts = |request: Request<Message>| async move {
                        let count = request.into_inner().len();
                        let messages = (0..count).map(|at| Ok(at.to_string().into_bytes()));
                        let last = std::iter::once(Err(Status::out_of_range("no more")));
                        let messages: Messages = Box::pin(tokio_stream::iter(messages.chain(last)));
                        Ok::<_, Status>(Response::new(messages))
                    };
                    grpc.server_streaming(service_fn(counts), request).await
                }
                "/test.Echo/Echoes" => {
                    let echoes = |request: Request<Streaming<Message>>| async move {
                        let messages: Messages = Box::pin(request.into_inner());
                        Ok::<_, Status>(Response::new(messages))
                    };
                    grpc.streaming(service_fn(echoes), request).await
                }
                _ => Status::unimplemented(path).into_http(),
            })
        })
    }
}

/// A server, as long as the runtime is there.
async fn serve() -> Result<(SocketAddr, Arc<Seen>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let echo = Echo::default();
    let seen = Arc::clone(&echo.seen);
    tokio::spawn(Server::builder().add_service(echo).serve_with_incoming(TcpListenerStream::new(listener)));
    Ok((addr, seen))
}

async fn channel(edge: &Edge) -> Result<Channel> {
    let (addr, config) = (edge.addr, edge.authority.client_config()?);
    let connect = move |_| {
        let config = config.clone();
        async move { tls(addr, config, HOST).await.map(TokioIo::new) }
    };
    let endpoint = Endpoint::from_shared(format!("http://{HOST}"))?.origin(format!("https://{HOST}").parse()?);
    Ok(endpoint.connect_with_connector(service_fn(connect)).await?)
}

fn edge(backend: SocketAddr, lines: &str) -> Result<Edge> {
    Plan::new()?.http(lines).route(HOST, &[backend], "backend_protocol = \"h2\"").start()
}

#[derive(Clone)]
struct Client(client::Grpc<Channel>);

impl Client {
    async fn new(edge: &Edge) -> Result<Self> {
        Ok(Self(client::Grpc::new(channel(edge).await?)))
    }

    async fn unary(&mut self, method: &'static str, request: Request<Message>) -> Result<Response<Message>, Status> {
        self.ready().await?;
        self.0.unary(request, PathAndQuery::from_static(method), codec()).await
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.0.ready().await.map_err(|error| Status::unknown(error.to_string()))
    }
}

fn bytes(length: usize) -> Message {
    (0..length).map(|at| (at * 7 % 251) as u8).collect()
}

#[test]
fn every_kind_of_call() -> Result<()> {
    run(async {
        let (addr, seen) = serve().await?;
        let edge = edge(addr, "")?;
        let mut client = Client::new(&edge).await?;
        for length in [0, 1, 100_000, 1 << 20] {
            let mut request = Request::new(bytes(length));
            request.metadata_mut().insert("x-own", "y".parse()?);
            let response = soon(client.unary("/test.Echo/Unary", request)).await??;
            ensure!(response.metadata().get("x-own").is_some_and(|value| value == "y"), "{:?}", response.metadata());
            ensure!(response.into_inner() == bytes(length), "{length}");
        }

        client.ready().await?;
        let path = PathAndQuery::from_static("/test.Echo/Collects");
        let lengths = [0, 5, 1 << 20, 70_000];
        let messages = Request::new(tokio_stream::iter(lengths.map(bytes)));
        let response = soon(client.0.client_streaming::<_, Message, Message, _>(messages, path, codec())).await??;
        ensure!(response.into_inner() == lengths.map(|length| (length as u32).to_be_bytes()).concat());

        client.ready().await?;
        let path = PathAndQuery::from_static("/test.Echo/Counts");
        let response = client.0.server_streaming(Request::new(bytes(500)), path, codec()).await?;
        let mut messages: Streaming<Message> = response.into_inner();
        for at in 0..500 {
            let message = soon(messages.message()).await??.context("an end")?;
            ensure!(message == at.to_string().into_bytes(), "{at}");
        }
        let end = soon(messages.message()).await?;
        ensure!(end.as_ref().is_err_and(|status| status.code() == Code::OutOfRange), "{end:?}");

        client.ready().await?;
        let (say, said) = tokio::sync::mpsc::channel::<Message>(1);
        let path = PathAndQuery::from_static("/test.Echo/Echoes");
        let said = Request::new(tokio_stream::wrappers::ReceiverStream::new(said));
        let response = soon(client.0.streaming(said, path, codec())).await??;
        let mut messages: Streaming<Message> = response.into_inner();
        for length in [3, 0, 1 << 20, 100] {
            say.send(bytes(length)).await?;
            // Each comes back before the next one is said.
            let message = soon(messages.message()).await??.context("an end")?;
            ensure!(message == bytes(length), "{length}");
        }
        drop(say);
        ensure!(soon(messages.message()).await??.is_none());
        ensure!(seen.calls.load(SeqCst) == 7);
        Ok(())
    })
}

#[test]
fn statuses_and_their_details() -> Result<()> {
    run(async {
        let (addr, _) = serve().await?;
        let edge = edge(addr, "")?;
        let mut client = Client::new(&edge).await?;
        let failed = soon(client.unary("/test.Echo/Fails", Request::new(b"\0\xffdetails".to_vec()))).await?;
        let status = failed.err().context("no error")?;
        ensure!(status.code() == Code::FailedPrecondition && status.message() == "not so: ä%", "{status:?}");
        ensure!(status.details() == b"\0\xffdetails", "{status:?}");
        let failed = soon(client.unary("/test.Echo/Nothing", Request::new(Message::new()))).await?;
        ensure!(failed.is_err_and(|status| status.code() == Code::Unimplemented));
        Ok(())
    })
}

#[test]
fn deadlines_and_cancellations() -> Result<()> {
    run(async {
        let (addr, seen) = serve().await?;
        let edge = edge(addr, "")?;
        let mut client = Client::new(&edge).await?;
        let mut request = Request::new(Message::new());
        // It counts from here on, and the call has to reach the server before.
        request.set_timeout(Duration::from_secs(3));
        let begun = Instant::now();
        let failed = soon(client.unary("/test.Echo/Sleeps", request)).await?;
        let after = begun.elapsed();
        let is = failed.as_ref().err().map(Status::code);
        ensure!(matches!(is, Some(Code::DeadlineExceeded | Code::Cancelled)), "{failed:?}");
        ensure!(after < Duration::from_secs(8) && seen.has_timeout.load(SeqCst), "after {after:?}");
        until("the end of the call", SOON, || Ok(seen.dropped.swap(false, SeqCst)))?;

        let (calls, sleeping) = (seen.calls.load(SeqCst), seen.sleeping.load(SeqCst));
        // Its connection stays: it is the call that is given up.
        let mut other = client.clone();
        let call = tokio::spawn(async move { other.unary("/test.Echo/Sleeps", Request::new(Message::new())).await });
        until("the call", SOON, || Ok(seen.sleeping.load(SeqCst) > sleeping))?;
        ensure!(!call.is_finished() && !seen.dropped.load(SeqCst), "it has ended by itself");
        call.abort();
        ensure!(call.await.is_err_and(|error| error.is_cancelled()));
        ensure!(seen.calls.load(SeqCst) == calls + 1);
        until("the end of a call that was given up", SOON, || Ok(seen.dropped.load(SeqCst)))?;
        let response = soon(client.unary("/test.Echo/Unary", Request::new(bytes(10)))).await??;
        ensure!(response.into_inner() == bytes(10));
        Ok(())
    })
}

/// Of each of the daemon's own answers a gRPC client gets a status that it understands.
#[test]
fn a_backend_that_is_down() -> Result<()> {
    run(async {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let edge = edge(nobody, "")?;
        let mut client = Client::new(&edge).await?;
        let failed = soon(client.unary("/test.Echo/Unary", Request::new(bytes(10)))).await?;
        let status = failed.err().context("no error")?;
        ensure!(status.code() == Code::Unavailable, "{status:?}");

        let good = Good::new(&edge).await?;
        let mut head = request(::http::Method::POST, "/test.Echo/Unary");
        head.headers_mut().insert("content-type", "application/grpc+proto".parse()?);
        head.headers_mut().insert("te", "trailers".parse()?);
        let reply = good.send(head, vec![0; 5].into(), None).await?.expect(200)?;
        ensure!(reply.field("grpc-status") == "14" && reply.field("content-type") == "application/grpc", "{reply:?}");
        ensure!(reply.body.is_empty() && reply.trailers.is_none(), "the head is all: {reply:?}");
        Ok(())
    })
}

/// A backend that is silent for `proxy.idle_timeout` is DEADLINE_EXCEEDED, and what is too long RESOURCE_EXHAUSTED.
#[test]
fn limits_in_the_words_of_grpc() -> Result<()> {
    run(async {
        let (addr, _) = serve().await?;
        let edge = Plan::new()?
            .http("max_body_bytes = 1000")
            .section("[proxy]\nidle_timeout = \"2s\"")
            .route(HOST, &[addr], "backend_protocol = \"h2\"")
            .start()?;
        let mut client = Client::new(&edge).await?;
        for (method, length, code) in
            [("/test.Echo/Sleeps", 1, Code::DeadlineExceeded), ("/test.Echo/Unary", 5_000, Code::ResourceExhausted)]
        {
            let failed = soon(client.unary(method, Request::new(bytes(length)))).await.context(method)?;
            let is = failed.as_ref().err().map(Status::code);
            ensure!(is == Some(code), "{method}: {failed:?}");
        }
        Ok(())
    })
}

/// Without a word in the configuration gRPC finds its way too.
#[test]
fn a_route_that_does_not_say_what_its_backend_speaks() -> Result<()> {
    run(async {
        let (addr, _) = serve().await?;
        let edge = Plan::to(addr)?.start()?;
        let mut client = Client::new(&edge).await?;
        let response = soon(client.unary("/test.Echo/Unary", Request::new(bytes(1_000)))).await??;
        ensure!(response.into_inner() == bytes(1_000));
        Ok(())
    })
}
