//! The API as clients meet it: a real socket, a real server, and a control thread that the test plays.

mod desk;
mod firewall;
mod rules;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use mc_proxy_proto::v1::{self, proxy_admin_service_client::ProxyAdminServiceClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{broadcast, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use super::{AdminSocket, incoming, serve};
use crate::{
    config::Grpc,
    control::{ChangeOptions, Control, DropEvent},
};
use desk::Desk;
pub(crate) use rules::PENDING;

/// A served API; everything ends when the test's runtime does.
pub(crate) struct Served {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
    shutdown: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
    /// What watchers are told.
    pub(crate) drops: broadcast::Sender<DropEvent>,
    asked: Arc<Mutex<Vec<ChangeOptions>>>,
}

impl Served {
    pub(crate) fn start() -> Self {
        let (control, commands) = Control::answered_by_test();
        let desk = Desk::default();
        let asked = Arc::clone(&desk.rules.asked);
        tokio::spawn(desk.answer(commands));
        Self { asked, ..Self::with(control) }
    }

    /// The options of the last change of rules.
    pub(crate) fn last_options(&self) -> ChangeOptions {
        self.asked.lock().unwrap().last().cloned().unwrap()
    }

    fn with(control: Control) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let socket = AdminSocket::bind(&Grpc { path: path.clone(), mode: 0o600, group: None }).unwrap();
        let shutdown = CancellationToken::new();
        let drops = control.drops().clone();
        let server = tokio::spawn(serve(socket, control, shutdown.clone(), shutdown.clone()));
        Self { _dir: dir, path, shutdown, server, drops, asked: Arc::default() }
    }

    async fn stop(self) -> std::io::Result<()> {
        self.shutdown.cancel();
        self.server.await.unwrap()
    }

    async fn channel(&self) -> Channel {
        channel(&self.path).await
    }

    async fn client(&self) -> ProxyAdminServiceClient<Channel> {
        ProxyAdminServiceClient::new(self.channel().await)
    }
}

async fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}

fn add_route(listener: &str, route: v1::Route) -> v1::AddRouteRequest {
    v1::AddRouteRequest { listener_addr: listener.into(), route: Some(route) }
}

fn route(hostname: &str, backend: &str) -> v1::Route {
    v1::Route { hostname: hostname.into(), backend: backend.into(), ..v1::Route::default() }
}

#[tokio::test]
async fn routes() {
    let served = Served::start();
    let mut client = served.client().await;
    client.add_route(add_route(":443", route("App.Example.com", "127.0.0.1:1"))).await.unwrap();
    client.add_route(add_route(":443", route("*.example.com", "a:2"))).await.unwrap();
    let again = v1::Route { backends: vec!["b:3".into()], backend_tls: true, ..route("app.example.com", "a:9") };
    client.add_route(add_route(":443", again)).await.unwrap();

    let list = v1::ListRoutesRequest { listener_addr: ":443".into() };
    let listed = client.list_routes(list.clone()).await.unwrap().into_inner();
    let stored = |hostname: &str, backend: &str| v1::Route {
        mode: "l4".into(),
        backend_protocol: "auto".into(),
        ..route(hostname, backend)
    };
    let again = v1::Route { backends: vec!["b:3".into()], backend_tls: true, ..stored("app.example.com", "a:9") };
    assert_eq!(listed.listener_addr, ":443");
    assert_eq!(listed.routes, [again, stored("*.example.com", "a:2")]);
    assert_eq!(listed.default_route.unwrap().backend, "unix:/run/default.sock");

    let remove = |hostname: &str| v1::RemoveRouteRequest {
        listener_addr: ":443".into(),
        hostname: hostname.into(),
        alpn: Vec::new(),
    };
    client.remove_route(remove("APP.example.com.")).await.unwrap();
    let gone = client.remove_route(remove("app.example.com")).await.unwrap_err();
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "there is no route \"app.example.com\""));
    assert_eq!(client.list_routes(list).await.unwrap().into_inner().routes.len(), 1);

    let elsewhere = client.add_route(add_route(":444", route("a.b", "a:1"))).await.unwrap_err();
    assert_eq!((elsewhere.code(), elsewhere.message()), (Code::NotFound, "there is no listener \":444\""));
    let nowhere = client.add_route(add_route("", route("a.b", "a:1"))).await.unwrap_err();
    assert_eq!(nowhere.code(), Code::InvalidArgument);
    assert!(nowhere.message().starts_with("listener_addr: "), "{nowhere}");
    let bad = client.add_route(add_route(":443", route("a.b", "foo"))).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(bad.message().starts_with("route.backend: \"foo\" is not "), "{bad}");
    served.stop().await.unwrap();
}

#[tokio::test]
async fn policies() {
    let served = Served::start();
    let mut client = served.client().await;
    client.add_route(add_route(":443", route("a.b", "a:1"))).await.unwrap();
    let (listener_addr, hostname) = (":443".to_owned(), "a.b".to_owned());
    let policy = v1::L7Policy { r#type: "block_user_agent".into(), value: "curl".into(), ..Default::default() };
    let add = v1::AddL7PolicyRequest {
        listener_addr: listener_addr.clone(),
        hostname: hostname.clone(),
        policy: Some(policy.clone()),
        alpn: Vec::new(),
    };
    client.add_l7_policy(add.clone()).await.unwrap();
    let list = v1::ListL7PoliciesRequest {
        listener_addr: listener_addr.clone(),
        hostname: hostname.clone(),
        alpn: Vec::new(),
    };
    let listed = client.list_l7_policies(list.clone()).await.unwrap().into_inner();
    assert_eq!(listed.policies, [v1::L7Policy { hits: 7, ..policy.clone() }]);
    let remove = v1::RemoveL7PolicyRequest { listener_addr, hostname, policy: Some(policy), alpn: Vec::new() };
    client.remove_l7_policy(remove).await.unwrap();
    assert!(client.list_l7_policies(list).await.unwrap().into_inner().policies.is_empty());

    let bad = client.add_l7_policy(v1::AddL7PolicyRequest { policy: None, ..add.clone() }).await.unwrap_err();
    assert_eq!((bad.code(), bad.message()), (Code::InvalidArgument, "policy: is required"));
    let bad = client.add_l7_policy(v1::AddL7PolicyRequest { hostname: "a b".into(), ..add }).await.unwrap_err();
    assert!(bad.code() == Code::InvalidArgument && bad.message().starts_with("hostname: "), "{bad}");
}

#[tokio::test]
async fn limits_and_status() {
    let served = Served::start();
    let mut client = served.client().await;
    let set = |addr: &str, max_connections| v1::SetListenerMaxConnectionsRequest {
        listener_addr: addr.into(),
        max_connections,
    };
    client.set_listener_max_connections(set(":443", 1000)).await.unwrap();
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.version.as_str(), status.total_connections), (env!("CARGO_PKG_VERSION"), 12));
    assert_eq!(status.listeners[0].max_connections, 1000);
    let kernel = status.kernel.unwrap();
    assert_eq!((kernel.dropped_packets, kernel.map_memory_bytes, kernel.generation), (8, 4096, 2));
    assert_eq!((kernel.interfaces[0].driver.as_str(), kernel.interfaces[0].mtu), ("veth", 1500));
    assert_eq!(status.firewall.unwrap().geoip.unwrap().database_type, "DBIP-Country-Lite");

    let code = |result: Result<_, tonic::Status>| result.unwrap_err().code();
    assert_eq!(code(client.set_listener_max_connections(set(":444", 1)).await), Code::NotFound);
    assert_eq!(code(client.set_listener_max_connections(set(":443", 99)).await), Code::FailedPrecondition);
    let bad = client.set_listener_max_connections(set(":443", -1)).await.unwrap_err();
    assert!(bad.code() == Code::InvalidArgument && bad.message().starts_with("max_connections: "), "{bad}");
}

#[tokio::test]
async fn a_control_thread_that_is_gone_is_unavailable() {
    let (control, commands) = Control::answered_by_test();
    drop(commands);
    let served = Served::with(control);
    let error = served.client().await.get_status(v1::GetStatusRequest {}).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unavailable, "the daemon is shutting down"));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_answered_ends() {
    let (control, commands) = Control::answered_by_test();
    let served = Served::with(control);
    let mut client = served.client().await;
    let began = tokio::time::Instant::now();
    let error = client.get_status(v1::GetStatusRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!((30..=32).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    drop(commands);
}

#[tokio::test]
async fn an_oversized_request_is_refused() {
    let served = Served::start();
    let mut client = served.client().await;
    let error = client.add_route(add_route(":443", route(&"a".repeat(300_000), "a:1"))).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
}

#[tokio::test]
async fn health() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus::Serving, health_client::HealthClient,
    };
    let served = Served::start();
    let mut client = HealthClient::new(served.channel().await);
    for service in ["", "mc_proxy.v1.ProxyAdminService"] {
        let answer = client.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(answer.into_inner().status(), Serving, "{service}");
    }
    let error = client.check(HealthCheckRequest { service: "nope".into() }).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

/// What grpcurl does before a call: list, find the file of the service, then each of its imports.
macro_rules! reflection_test {
    ($name:ident, $version:ident) => {
        #[tokio::test]
        async fn $name() {
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };
            let served = Served::start();
            let mut client = ServerReflectionClient::new(served.channel().await);
            let mut ask = async |question| {
                let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
                let mut answers =
                    client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
                answers.message().await.unwrap().unwrap().message_response.unwrap()
            };
            let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())).await
            else {
                panic!("not a list")
            };
            let names = list.service.into_iter().map(|service| service.name).collect::<BTreeSet<_>>();
            assert!(names.contains("mc_proxy.v1.ProxyAdminService"), "{names:?}");
            assert!(names.contains("grpc.health.v1.Health"), "{names:?}");

            for (question, content) in [
                (MessageRequest::FileContainingSymbol("mc_proxy.v1.ProxyAdminService".into()), "AddFirewallRule"),
                (MessageRequest::FileContainingSymbol("mc_proxy.v1.FirewallRuleType".into()), "FIREWALL_RULE_TYPE_IP"),
                (MessageRequest::FileByFilename("mc_proxy/v1/admin.proto".into()), "listener_addr"),
                (MessageRequest::FileByFilename("google/protobuf/timestamp.proto".into()), "Timestamp"),
            ] {
                let MessageResponse::FileDescriptorResponse(files) = ask(question.clone()).await else {
                    panic!("no file for {question:?}")
                };
                let bytes = files.file_descriptor_proto.concat();
                let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
                assert!(has(content), "{content} is not in the file for {question:?}");
            }
        }
    };
}

reflection_test!(reflection_v1, v1);
reflection_test!(reflection_v1alpha, v1alpha);

#[tokio::test]
async fn a_stop_removes_the_file_and_ends_idle_connections() {
    let served = Served::start();
    let path = served.path.clone();
    let mut client = served.client().await;
    client.get_status(v1::GetStatusRequest {}).await.unwrap();
    tokio::time::timeout(Duration::from_secs(2), served.stop()).await.unwrap().unwrap();
    assert!(!path.exists());
    assert_eq!(client.get_status(v1::GetStatusRequest {}).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_client_that_never_ends() {
    let served = Served::start();
    // Headers of a request, and never its body.
    let (body, messages) = mpsc::channel(1);
    let mut client =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(served.channel().await);
    let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut answers = client.server_reflection_info(stream).await.unwrap().into_inner();
    let began = tokio::time::Instant::now();
    served.stop().await.unwrap();
    assert!(began.elapsed() <= Duration::from_secs(6), "{:?}", began.elapsed());
    assert!(answers.message().await.is_err());
    drop(body);
}

#[tokio::test(start_paused = true)]
async fn silence_is_closed() {
    let served = Served::start();
    let mut stream = UnixStream::connect(&served.path).await.unwrap();
    let began = tokio::time::Instant::now();
    let mut rest = Vec::new();
    // The server's first SETTINGS frame may come; then nothing, then the end.
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 200);
    let range = incoming::IDLE..=incoming::IDLE + Duration::from_secs(1);
    assert!(range.contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn connections_are_bounded() {
    let served = Served::start();
    let mut held = Vec::new();
    for _ in 0..incoming::OTHERS + incoming::OWN {
        held.push(UnixStream::connect(&served.path).await.unwrap());
    }
    let mut refused = UnixStream::connect(&served.path).await.unwrap();
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(5), refused.read(&mut byte)).await.unwrap();
    assert_eq!(read.unwrap(), 0);

    // A place that is given back is taken again.
    let mut one = held.pop().unwrap();
    one.shutdown().await.unwrap();
    drop(one);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    loop {
        let mut stream = UnixStream::connect(&served.path).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.ok();
        if stream.read(&mut byte).await.is_ok_and(|n| n == 1) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the place is not given back");
    }
}
