//! The admin API from the outside, for threads that wait for each answer.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use mc_proxy_proto::v1::{
    AddFirewallRuleRequest, AddL7PolicyRequest, AddRouteRequest, FirewallAction, FirewallChangeOptions, FirewallGroup,
    FirewallRule, FirewallRuleType, GetFirewallRulesRequest, GetStatusRequest, GetStatusResponse, L7Policy,
    ListFirewallGroupsRequest, ListL7PoliciesRequest, ListRoutesRequest, ListRoutesResponse, ReloadCertificatesRequest,
    ReloadCertificatesResponse, RemoveFirewallRuleRequest, RemoveL7PolicyRequest, RemoveRouteRequest, Route,
    SetListenerMaxConnectionsRequest, proxy_admin_service_client::ProxyAdminServiceClient,
};
use tokio::runtime::{Builder, Runtime};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// A connection to the admin socket.
#[derive(Debug)]
pub struct Admin {
    runtime: Runtime,
    channel: Channel,
}

impl Admin {
    /// Connects to the Unix socket at `path`.
    pub fn connect(path: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix:{}", path.display()))?.timeout(Duration::from_secs(20));
        let channel = runtime
            .block_on(endpoint.connect())
            .with_context(|| format!("connecting to the admin socket {}", path.display()))?;
        Ok(Self { runtime, channel })
    }

    /// Makes any call with a client on this connection.
    pub fn call<T>(
        &self,
        call: impl AsyncFnOnce(ProxyAdminServiceClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        let client = ProxyAdminServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        self.runtime.block_on(call(client)).map(tonic::Response::into_inner)
    }

    /// Makes calls of another service on this connection.
    pub fn with_channel<T>(&self, calls: impl AsyncFnOnce(Channel) -> T) -> T {
        self.runtime.block_on(calls(self.channel.clone()))
    }

    /// `GetStatus`.
    pub fn status(&self) -> Result<GetStatusResponse, Status> {
        self.call(async |mut client| client.get_status(GetStatusRequest {}).await)
    }

    /// Packets that the kernel plane has dropped.
    pub fn kernel_drops(&self) -> Result<u64, Status> {
        Ok(self.status()?.kernel.unwrap_or_default().dropped_packets)
    }

    /// Connections that all listeners have accepted since the start.
    pub fn accepted(&self) -> Result<u64, Status> {
        Ok(self.status()?.listeners.iter().map(|listener| listener.accepted_total).sum())
    }

    /// Blocks an address or a prefix.
    pub fn block(&self, source: &str) -> Result<(), Status> {
        self.add_rule(rule(source, FirewallAction::Block))
    }

    /// Lets an address or a prefix in whatever blocks it.
    pub fn allow(&self, source: &str) -> Result<(), Status> {
        self.add_rule(rule(source, FirewallAction::Allow))
    }

    /// Takes a block back.
    pub fn unblock(&self, source: &str) -> Result<(), Status> {
        self.remove_rule(rule(source, FirewallAction::Block))
    }

    /// `AddFirewallRule`.
    pub fn add_rule(&self, rule: FirewallRule) -> Result<(), Status> {
        let request = AddFirewallRuleRequest { rule: Some(rule), ..AddFirewallRuleRequest::default() };
        self.call(async |mut client| client.add_firewall_rule(request).await).map(drop)
    }

    /// Blocks also what cuts off a backend.
    pub fn block_by_force(&self, source: &str) -> Result<(), Status> {
        let options = Some(FirewallChangeOptions { force: true, ..FirewallChangeOptions::default() });
        let rule = Some(rule(source, FirewallAction::Block));
        let request = AddFirewallRuleRequest { rule, options, ..AddFirewallRuleRequest::default() };
        self.call(async |mut client| client.add_firewall_rule(request).await).map(drop)
    }

    /// Packets that the kernel has counted under a reason, such as `rate_limited`.
    pub fn kernel_count(&self, reason: &str) -> Result<u64, Status> {
        let kernel = self.status()?.kernel.unwrap_or_default();
        Ok(kernel.counters.iter().find(|count| count.reason == reason).map_or(0, |count| count.packets))
    }

    /// A rule group with its counters; all zero when there is none of that name.
    pub fn group(&self, name: &str) -> Result<FirewallGroup, Status> {
        let request = ListFirewallGroupsRequest {};
        let groups = self.call(async |mut client| client.list_firewall_groups(request).await)?.groups;
        Ok(groups.into_iter().find(|group| group.name == name).unwrap_or_default())
    }

    /// `RemoveFirewallRule`.
    pub fn remove_rule(&self, rule: FirewallRule) -> Result<(), Status> {
        let request = RemoveFirewallRuleRequest { rule: Some(rule), options: None };
        self.call(async |mut client| client.remove_firewall_rule(request).await).map(drop)
    }

    /// `GetFirewallRules`.
    pub fn rules(&self) -> Result<Vec<FirewallRule>, Status> {
        self.call(async |mut client| client.get_firewall_rules(GetFirewallRulesRequest {}).await)
            .map(|response| response.rules)
    }

    /// `ListRoutes`.
    pub fn routes(&self, listener: &str) -> Result<ListRoutesResponse, Status> {
        let request = ListRoutesRequest { listener_addr: listener.to_owned() };
        self.call(async |mut client| client.list_routes(request).await)
    }

    /// `AddRoute` with a passthrough route.
    pub fn add_route(&self, listener: &str, hostname: &str, backend: &str) -> Result<(), Status> {
        let route = Route { hostname: hostname.to_owned(), backend: backend.to_owned(), ..Route::default() };
        let request = AddRouteRequest { listener_addr: listener.to_owned(), route: Some(route) };
        self.call(async |mut client| client.add_route(request).await).map(drop)
    }

    /// `RemoveRoute`.
    pub fn remove_route(&self, listener: &str, hostname: &str) -> Result<(), Status> {
        let request = RemoveRouteRequest {
            listener_addr: listener.to_owned(),
            hostname: hostname.to_owned(),
            ..RemoveRouteRequest::default()
        };
        self.call(async |mut client| client.remove_route(request).await).map(drop)
    }

    /// `AddL7Policy`.
    pub fn add_policy(&self, listener: &str, hostname: &str, policy: L7Policy) -> Result<(), Status> {
        let request = AddL7PolicyRequest {
            listener_addr: listener.to_owned(),
            hostname: hostname.to_owned(),
            policy: Some(policy),
            ..AddL7PolicyRequest::default()
        };
        self.call(async |mut client| client.add_l7_policy(request).await).map(drop)
    }

    /// `RemoveL7Policy`.
    pub fn remove_policy(&self, listener: &str, hostname: &str, policy: L7Policy) -> Result<(), Status> {
        let request = RemoveL7PolicyRequest {
            listener_addr: listener.to_owned(),
            hostname: hostname.to_owned(),
            policy: Some(policy),
            ..RemoveL7PolicyRequest::default()
        };
        self.call(async |mut client| client.remove_l7_policy(request).await).map(drop)
    }

    /// `ListL7Policies`.
    pub fn policies(&self, listener: &str, hostname: &str) -> Result<Vec<L7Policy>, Status> {
        let request = ListL7PoliciesRequest {
            listener_addr: listener.to_owned(),
            hostname: hostname.to_owned(),
            ..ListL7PoliciesRequest::default()
        };
        Ok(self.call(async |mut client| client.list_l7_policies(request).await)?.policies)
    }

    /// `ReloadCertificates`.
    pub fn reload_certificates(&self) -> Result<ReloadCertificatesResponse, Status> {
        self.call(async |mut client| client.reload_certificates(ReloadCertificatesRequest {}).await)
    }

    /// `SetListenerMaxConnections`.
    pub fn set_max_connections(&self, listener: &str, max: i64) -> Result<(), Status> {
        let request = SetListenerMaxConnectionsRequest { listener_addr: listener.to_owned(), max_connections: max };
        self.call(async |mut client| client.set_listener_max_connections(request).await).map(drop)
    }
}

/// A rule about an address, a prefix (with a slash) or a country (two letters).
pub fn rule(value: &str, action: FirewallAction) -> FirewallRule {
    let kind = match value {
        _ if value.contains('/') => FirewallRuleType::Cidr,
        _ if value.len() == 2 => FirewallRuleType::Country,
        _ => FirewallRuleType::Ip,
    };
    FirewallRule { r#type: kind.into(), value: value.to_owned(), action: action.into(), ..FirewallRule::default() }
}
