//! The service, and the server that it runs in.
//!
//! h2 answers an `:authority` that is no host with PROTOCOL_ERROR, before this code sees the request. Clients that put
//! the path of a Unix socket there (gRPC's C core from 1.57, grpcurl before 1.9) have to be told what to say instead:
//! `grpc.default_authority=localhost`, `grpcurl -authority localhost`.

use std::time::Duration;

use mc_proxy_proto::{
    FILE_DESCRIPTOR_SET, v1,
    v1::proxy_admin_service_server::{ProxyAdminService, ProxyAdminServiceServer},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};
use tonic_reflection::server::Builder as ReflectionBuilder;

use super::{
    AdminSocket, convert,
    incoming::{Caller, GRACE, Incoming, LIFETIME},
};
use crate::control::Control;

/// A route with a policy or two is a kilobyte.
const REQUEST_MAX: usize = 256 * 1024;
const STREAMS_PER_CONNECTION: u32 = 16;
const CALLS_PER_CONNECTION: usize = 8;
const HEADERS_MAX: u32 = 16 * 1024;
/// From the first byte of a request to its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stop waits for calls in flight.
const DRAIN: Duration = Duration::from_secs(5);

type Answer<T> = Result<Response<T>, Status>;

/// Serves the API until `shutdown` is cancelled; then the socket file is removed, and calls in flight have five seconds
/// to end. From the moment that `draining` is cancelled the health service says that connections are not served any more.
///
/// # Errors
/// When the socket cannot be registered with the runtime.
pub async fn serve(
    socket: AdminSocket,
    control: Control,
    draining: CancellationToken,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let (listener, file) = socket.into_parts();
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let force_close = CancellationToken::new();
    let incoming = Incoming::new(listener, force_close.clone());

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ProxyAdminServiceServer<Admin>>().await;
    let reflection = || {
        ReflectionBuilder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = Server::builder()
        .timeout(CALL_TIMEOUT)
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADERS_MAX)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_connection_age(LIFETIME - GRACE)
        .add_service(ProxyAdminServiceServer::new(Admin::new(control)).max_decoding_message_size(REQUEST_MAX))
        .add_service(health_service.max_decoding_message_size(REQUEST_MAX))
        .add_service(reflection().build_v1().map_err(std::io::Error::other)?)
        // What older versions of grpcurl and the Python client ask for.
        .add_service(reflection().build_v1alpha().map_err(std::io::Error::other)?);

    let stop = async {
        draining.cancelled().await;
        health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        health.set_not_serving::<ProxyAdminServiceServer<Admin>>().await;
        shutdown.cancelled().await;
        drop(file);
    };
    let serving = router.serve_with_incoming_shutdown(incoming, stop);
    let force = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
        force_close.cancel();
        std::future::pending().await
    };
    tokio::select! {
        result = serving => result.map_err(std::io::Error::other),
        () = force => Ok(()),
    }
}

/// `mc_proxy.v1.ProxyAdminService` over a [`Control`].
#[derive(Clone, Debug)]
pub struct Admin {
    control: Control,
}

impl Admin {
    /// The service; changes go through `control`.
    pub fn new(control: Control) -> Self {
        Self { control }
    }
}

#[tonic::async_trait]
impl ProxyAdminService for Admin {
    async fn list_routes(&self, request: Request<v1::ListRoutesRequest>) -> Answer<v1::ListRoutesResponse> {
        let listener = convert::listener(request.into_inner().listener_addr)?;
        let routes = self.control.routes(listener.clone()).await.map_err(convert::control_error)?;
        Ok(Response::new(convert::routes_to_proto(listener, routes)))
    }

    async fn add_route(&self, request: Request<v1::AddRouteRequest>) -> Answer<v1::AddRouteResponse> {
        let by = By::of(&request);
        let v1::AddRouteRequest { listener_addr, route } = request.into_inner();
        let listener = convert::listener(listener_addr)?;
        let route = convert::route(route)?;
        let hostname = route.hostname.clone();
        if route.target.tls_cert.is_some() || route.target.tls_key.is_some() {
            tracing::warn!(listener, %hostname, "tls_cert and tls_key have no effect on an l4 route");
        }
        self.control.add_route(listener.clone(), route).await.map_err(convert::control_error)?;
        tracing::info!(listener, %hostname, uid = by.uid, pid = by.pid, "route added");
        Ok(Response::new(v1::AddRouteResponse {}))
    }

    async fn remove_route(&self, request: Request<v1::RemoveRouteRequest>) -> Answer<v1::RemoveRouteResponse> {
        let by = By::of(&request);
        let v1::RemoveRouteRequest { listener_addr, hostname } = request.into_inner();
        let listener = convert::listener(listener_addr)?;
        let hostname = convert::hostname("hostname", &hostname)?;
        self.control.remove_route(listener.clone(), hostname.clone()).await.map_err(convert::control_error)?;
        tracing::info!(listener, %hostname, uid = by.uid, pid = by.pid, "route removed");
        Ok(Response::new(v1::RemoveRouteResponse {}))
    }

    async fn list_l7_policies(
        &self,
        request: Request<v1::ListL7PoliciesRequest>,
    ) -> Answer<v1::ListL7PoliciesResponse> {
        let v1::ListL7PoliciesRequest { listener_addr, hostname } = request.into_inner();
        let listener = convert::listener(listener_addr)?;
        let hostname = convert::hostname("hostname", &hostname)?;
        let policies = self.control.policies(listener, hostname).await.map_err(convert::control_error)?;
        let policies = policies.into_iter().map(convert::policy_to_proto).collect();
        Ok(Response::new(v1::ListL7PoliciesResponse { policies }))
    }

    async fn add_l7_policy(&self, request: Request<v1::AddL7PolicyRequest>) -> Answer<v1::AddL7PolicyResponse> {
        let by = By::of(&request);
        let v1::AddL7PolicyRequest { listener_addr, hostname, policy } = request.into_inner();
        let listener = convert::listener(listener_addr)?;
        let hostname = convert::hostname("hostname", &hostname)?;
        let policy = convert::new_policy("policy", policy)?;
        let (kind, value) = (policy.kind.as_str(), policy.value.clone());
        self.control.add_policy(listener.clone(), hostname.clone(), policy).await.map_err(convert::control_error)?;
        tracing::info!(listener, %hostname, kind, value, uid = by.uid, pid = by.pid, "policy added");
        Ok(Response::new(v1::AddL7PolicyResponse {}))
    }

    async fn remove_l7_policy(
        &self,
        request: Request<v1::RemoveL7PolicyRequest>,
    ) -> Answer<v1::RemoveL7PolicyResponse> {
        let by = By::of(&request);
        let v1::RemoveL7PolicyRequest { listener_addr, hostname, policy } = request.into_inner();
        let listener = convert::listener(listener_addr)?;
        let hostname = convert::hostname("hostname", &hostname)?;
        let policy = convert::policy("policy", policy)?;
        let (kind, value) = (policy.kind.as_str(), policy.value.clone());
        self.control.remove_policy(listener.clone(), hostname.clone(), policy).await.map_err(convert::control_error)?;
        tracing::info!(listener, %hostname, kind, value, uid = by.uid, pid = by.pid, "policy removed");
        Ok(Response::new(v1::RemoveL7PolicyResponse {}))
    }

    async fn get_firewall_rules(
        &self,
        _: Request<v1::GetFirewallRulesRequest>,
    ) -> Answer<v1::GetFirewallRulesResponse> {
        let rules = self.control.rules().await.map_err(convert::control_error)?;
        let rules = rules.iter().map(convert::rule_to_proto).collect();
        Ok(Response::new(v1::GetFirewallRulesResponse { rules }))
    }

    async fn add_firewall_rule(
        &self,
        request: Request<v1::AddFirewallRuleRequest>,
    ) -> Answer<v1::AddFirewallRuleResponse> {
        let by = By::of(&request);
        let rule = convert::rule(request.into_inner().rule)?;
        self.control.add_rule(rule).await.map_err(convert::control_error)?;
        tracing::info!(action = %rule.key.action, subject = %rule.key.subject, uid = by.uid, pid = by.pid, "firewall rule added");
        Ok(Response::new(v1::AddFirewallRuleResponse {}))
    }

    async fn remove_firewall_rule(
        &self,
        request: Request<v1::RemoveFirewallRuleRequest>,
    ) -> Answer<v1::RemoveFirewallRuleResponse> {
        let by = By::of(&request);
        let rule = convert::rule(request.into_inner().rule)?;
        self.control.remove_rule(rule).await.map_err(convert::control_error)?;
        tracing::info!(action = %rule.key.action, subject = %rule.key.subject, uid = by.uid, pid = by.pid, "firewall rule removed");
        Ok(Response::new(v1::RemoveFirewallRuleResponse {}))
    }

    async fn set_listener_max_connections(
        &self,
        request: Request<v1::SetListenerMaxConnectionsRequest>,
    ) -> Answer<v1::SetListenerMaxConnectionsResponse> {
        let by = By::of(&request);
        let v1::SetListenerMaxConnectionsRequest { listener_addr, max_connections } = request.into_inner();
        let listener = convert::listener(listener_addr)?;
        let max_connections = convert::max_connections(max_connections)?;
        self.control.set_max_connections(listener.clone(), max_connections).await.map_err(convert::control_error)?;
        tracing::info!(listener, max_connections, uid = by.uid, pid = by.pid, "connection limit set");
        Ok(Response::new(v1::SetListenerMaxConnectionsResponse {}))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        let status = self.control.status().await.map_err(convert::control_error)?;
        Ok(Response::new(convert::status_to_proto(status)))
    }
}

/// Who changed something, for the log.
struct By {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl By {
    fn of<T>(request: &Request<T>) -> Self {
        let caller = request.extensions().get::<Caller>();
        Self { uid: caller.map(|caller| caller.uid), pid: caller.and_then(|caller| caller.pid) }
    }
}
