//! The API as clients meet it: a real socket, a real server, and a control thread that the test plays.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use hyper_util::rt::TokioIo;
use mc_proxy_proto::v1::{self, proxy_admin_service_client::ProxyAdminServiceClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::mpsc,
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
    control::{Command, Control, ControlError, ListenerRoutes, ListenerStatus, Status},
    desired::{Listener, Target},
    firewall::Rule,
    xdp::{InterfaceStatus, PlaneStatus, ReasonCount},
};

/// A served API; everything ends when the test's runtime does.
pub(crate) struct Served {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
    shutdown: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
}

impl Served {
    pub(crate) fn start() -> Self {
        let (control, commands) = Control::answered_by_test();
        tokio::spawn(Desk::default().answer(commands));
        Self::with(control)
    }

    fn with(control: Control) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let socket = AdminSocket::bind(&Grpc { path: path.clone(), mode: 0o600, group: None }).unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(socket, control, shutdown.clone(), shutdown.clone()));
        Self { _dir: dir, path, shutdown, server }
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

/// What the control thread does, in memory: listener `:443` exists.
struct Desk {
    listener: Listener,
    rules: BTreeSet<Rule>,
}

impl Default for Desk {
    fn default() -> Self {
        let mut listener = Listener::new(":443".parse().unwrap());
        listener.default = Some(Target::passthrough("unix:/run/default.sock".parse().unwrap()));
        Self { listener, rules: BTreeSet::new() }
    }
}

impl Desk {
    async fn answer(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            self.one(command);
        }
    }

    fn one(&mut self, command: Command) {
        let unknown = |what: &dyn std::fmt::Display| ControlError::NotFound(format!("there is no {what}"));
        let known = |name: &str| {
            if name == ":443" { Ok(()) } else { Err(unknown(&format_args!("listener \"{name}\""))) }
        };
        let routes = &mut self.listener.routes;
        // A caller that has gone does not wait for its answer.
        match command {
            Command::Routes(name, reply) => {
                let answer = ListenerRoutes { routes: routes.clone(), default: self.listener.default.clone() };
                let _ = reply.send(known(&name).map(|()| answer));
            }
            Command::AddRoute(name, route, reply) => {
                let added = known(&name).map(|()| match routes.iter_mut().find(|r| r.hostname == route.hostname) {
                    Some(old) => *old = route,
                    None => routes.push(route),
                });
                let _ = reply.send(added);
            }
            Command::RemoveRoute(name, hostname, reply) => {
                let before = routes.len();
                let _ = reply.send(known(&name).and_then(|()| {
                    routes.retain(|r| r.hostname != hostname);
                    if routes.len() < before { Ok(()) } else { Err(unknown(&format_args!("route \"{hostname}\""))) }
                }));
            }
            Command::Policies(name, hostname, reply) => {
                let route = routes.iter().find(|r| r.hostname == hostname);
                let policies = route.map(|r| r.target.l7_policies.clone()).ok_or_else(|| unknown(&"route"));
                let _ = reply.send(known(&name).and(policies));
            }
            Command::AddPolicy(_, hostname, policy, reply) => {
                let route = routes.iter_mut().find(|r| r.hostname == hostname).ok_or_else(|| unknown(&"route"));
                let _ = reply.send(route.map(|r| r.target.l7_policies.push(policy)));
            }
            Command::RemovePolicy(_, hostname, policy, reply) => {
                let route = routes.iter_mut().find(|r| r.hostname == hostname).ok_or_else(|| unknown(&"route"));
                let _ = reply.send(route.map(|r| r.target.l7_policies.retain(|p| *p != policy)));
            }
            Command::Rules(reply) => {
                let _ = reply.send(Ok(self.rules.iter().copied().collect()));
            }
            Command::AddRule(rule, reply) => {
                self.rules.insert(rule);
                let _ = reply.send(Ok(()));
            }
            Command::RemoveRule(rule, reply) => {
                let removed = self.rules.remove(&rule).then_some(()).ok_or_else(|| unknown(&"such rule"));
                let _ = reply.send(removed);
            }
            Command::SetMaxConnections(name, max, reply) => {
                self.listener.max_connections = max;
                let refused = || Err(ControlError::Refused("the listener is going away".to_owned()));
                let _ = reply.send(known(&name).and_then(|()| if max == 99 { refused() } else { Ok(()) }));
            }
            // Not part of the API.
            Command::ReloadGeoIp(reply) => {
                let _ = reply.send(Err(ControlError::Stopping));
            }
            Command::Stop(reply) => {
                let _ = reply.send(Err(ControlError::Stopping));
            }
            Command::Status(reply) => {
                let _ = reply.send(Ok(self.status()));
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            started_at: SystemTime::UNIX_EPOCH,
            uptime: Duration::from_secs(16_330),
            listeners: vec![ListenerStatus {
                addr: ":443".to_owned(),
                routes: self.listener.routes.len(),
                active: 12,
                max_connections: self.listener.max_connections,
                accepted: 40,
            }],
            plane: PlaneStatus {
                is_active: true,
                detail: String::new(),
                interfaces: vec![InterfaceStatus {
                    name: "eth0".to_owned(),
                    mode: "native",
                    program_id: 57,
                    error: String::new(),
                    is_adopted: false,
                    ..InterfaceStatus::default()
                }],
                rules: 3,
                counters: vec![ReasonCount { reason: "blocked_ip", is_drop: true, packets: 8, bytes: 480 }],
                ..PlaneStatus::default()
            },
            outcomes: vec![("closed", 28)],
            client_bytes: 1,
            backend_bytes: 2,
        }
    }
}

fn add_route(listener: &str, route: v1::Route) -> v1::AddRouteRequest {
    v1::AddRouteRequest { listener_addr: listener.into(), route: Some(route) }
}

fn route(hostname: &str, backend: &str) -> v1::Route {
    v1::Route { hostname: hostname.into(), backend: backend.into(), ..v1::Route::default() }
}

fn rule(kind: v1::FirewallRuleType, value: &str) -> Option<v1::FirewallRule> {
    Some(v1::FirewallRule { r#type: kind.into(), value: value.into(), action: 0 })
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
    let stored = v1::Route {
        mode: "l4".into(),
        backends: vec!["b:3".into()],
        backend_tls: true,
        ..route("app.example.com", "a:9")
    };
    assert_eq!(listed.listener_addr, ":443");
    assert_eq!(listed.routes, [stored, v1::Route { mode: "l4".into(), ..route("*.example.com", "a:2") }]);
    assert_eq!(listed.default_route.unwrap().backend, "unix:/run/default.sock");

    let remove = |hostname: &str| v1::RemoveRouteRequest { listener_addr: ":443".into(), hostname: hostname.into() };
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
    let policy = v1::L7Policy { r#type: "block_user_agent".into(), value: "curl".into() };
    let add = v1::AddL7PolicyRequest {
        listener_addr: listener_addr.clone(),
        hostname: hostname.clone(),
        policy: Some(policy.clone()),
    };
    client.add_l7_policy(add.clone()).await.unwrap();
    let list = v1::ListL7PoliciesRequest { listener_addr: listener_addr.clone(), hostname: hostname.clone() };
    let listed = client.list_l7_policies(list.clone()).await.unwrap().into_inner();
    assert_eq!(listed.policies, std::slice::from_ref(&policy));
    let remove = v1::RemoveL7PolicyRequest { listener_addr, hostname, policy: Some(policy) };
    client.remove_l7_policy(remove).await.unwrap();
    assert!(client.list_l7_policies(list).await.unwrap().into_inner().policies.is_empty());

    let bad = client.add_l7_policy(v1::AddL7PolicyRequest { policy: None, ..add.clone() }).await.unwrap_err();
    assert_eq!((bad.code(), bad.message()), (Code::InvalidArgument, "policy: is required"));
    let bad = client.add_l7_policy(v1::AddL7PolicyRequest { hostname: "a b".into(), ..add }).await.unwrap_err();
    assert!(bad.code() == Code::InvalidArgument && bad.message().starts_with("hostname: "), "{bad}");
}

#[tokio::test]
async fn firewall_rules() {
    use v1::FirewallRuleType::{Cidr, Country, Ip};
    let served = Served::start();
    let mut client = served.client().await;
    let add = |rule| v1::AddFirewallRuleRequest { rule };
    for (kind, value) in [(Ip, "203.0.113.50"), (Cidr, "198.51.100.0/24"), (Country, "ru"), (Ip, "::ffff:203.0.113.50")]
    {
        client.add_firewall_rule(add(rule(kind, value))).await.unwrap();
    }
    let allow = v1::FirewallRule { action: v1::FirewallAction::Allow.into(), ..rule(Ip, "203.0.113.51").unwrap() };
    client.add_firewall_rule(add(Some(allow))).await.unwrap();

    let rules = client.get_firewall_rules(v1::GetFirewallRulesRequest {}).await.unwrap().into_inner().rules;
    let texts = rules.iter().map(|r| (r.r#type().as_str_name(), r.value.as_str(), r.action().as_str_name()));
    let (block, allow) = ("FIREWALL_ACTION_BLOCK", "FIREWALL_ACTION_ALLOW");
    assert_eq!(
        texts.collect::<BTreeSet<_>>(),
        BTreeSet::from([
            ("FIREWALL_RULE_TYPE_CIDR", "198.51.100.0/24", block),
            ("FIREWALL_RULE_TYPE_IP", "203.0.113.50", block),
            ("FIREWALL_RULE_TYPE_COUNTRY", "RU", block),
            ("FIREWALL_RULE_TYPE_IP", "203.0.113.51", allow),
        ])
    );

    let remove = || v1::RemoveFirewallRuleRequest { rule: rule(Ip, "203.0.113.50") };
    client.remove_firewall_rule(remove()).await.unwrap();
    assert_eq!(client.remove_firewall_rule(remove()).await.unwrap_err().code(), Code::NotFound);
    let bad = client.add_firewall_rule(add(rule(Cidr, "198.51.100.7/24"))).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(bad.message().starts_with("rule.value: ") && bad.message().contains("\"198.51.100.0/24\""), "{bad}");
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
    assert_eq!(status.kernel.unwrap().dropped_packets, 8);

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
