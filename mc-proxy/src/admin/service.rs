//! The service: each call to a command of the control thread, and a line in the log for each change.

use std::{fmt, sync::Arc};

use mc_proxy_proto::{v1, v1::proxy_admin_service_server::ProxyAdminService};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{convert, incoming::Caller, upload, watch};
use crate::{
    control::{ChangeOptions, ChangeSummary, Control, ControlError, RuleFilter},
    desired::Mode,
    firewall::RuleKey,
};

/// What `GetFirewallRules` answers at most, some 10 MB.
const RULES_IN_ONE_MESSAGE: usize = 100_000;

type Answer<T> = Result<Response<T>, Status>;

/// `mc_proxy.v1.ProxyAdminService` over a [`Control`].
#[derive(Clone, Debug)]
pub struct Admin {
    control: Control,
    stop: CancellationToken,
    uploads: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
}

impl Admin {
    /// The service; changes go through `control`, and streams end when `stop` is cancelled.
    pub fn new(control: Control, stop: CancellationToken) -> Self {
        Self {
            control,
            stop,
            uploads: Arc::new(Semaphore::new(upload::UPLOADS)),
            watchers: Arc::new(Semaphore::new(watch::WATCHERS)),
        }
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
        let key = route.key();
        if route.target.mode == Mode::L4 && (route.target.tls_cert.is_some() || route.target.tls_key.is_some()) {
            tracing::warn!(listener, hostname = %key, "tls_cert and tls_key have no effect on an l4 route");
        }
        self.control.add_route(listener.clone(), route).await.map_err(convert::control_error)?;
        tracing::info!(listener, hostname = %key, uid = by.uid, pid = by.pid, "route added");
        Ok(Response::new(v1::AddRouteResponse {}))
    }

    async fn remove_route(&self, request: Request<v1::RemoveRouteRequest>) -> Answer<v1::RemoveRouteResponse> {
        let by = By::of(&request);
        let v1::RemoveRouteRequest { listener_addr, hostname, alpn } = request.into_inner();
        let listener = convert::listener(listener_addr)?;
        let key = convert::route_key(&hostname, alpn)?;
        self.control.remove_route(listener.clone(), key.clone()).await.map_err(convert::control_error)?;
        tracing::info!(listener, hostname = %key, uid = by.uid, pid = by.pid, "route removed");
        Ok(Response::new(v1::RemoveRouteResponse {}))
    }

    async fn list_l7_policies(
        &self,
        request: Request<v1::ListL7PoliciesRequest>,
    ) -> Answer<v1::ListL7PoliciesResponse> {
        let v1::ListL7PoliciesRequest { listener_addr, hostname, alpn } = request.into_inner();
        let listener = convert::listener(listener_addr)?;
        let key = convert::route_key(&hostname, alpn)?;
        let policies = self.control.policies(listener, key).await.map_err(convert::control_error)?;
        let policies = policies
            .into_iter()
            .map(|(policy, hits)| v1::L7Policy { hits, ..convert::policy_to_proto(policy) })
            .collect();
        Ok(Response::new(v1::ListL7PoliciesResponse { policies }))
    }

    async fn add_l7_policy(&self, request: Request<v1::AddL7PolicyRequest>) -> Answer<v1::AddL7PolicyResponse> {
        let by = By::of(&request);
        let v1::AddL7PolicyRequest { listener_addr, hostname, policy, alpn } = request.into_inner();
        let listener = convert::listener(listener_addr)?;
        let key = convert::route_key(&hostname, alpn)?;
        let policy = convert::new_policy("policy", policy)?;
        let (kind, value) = (policy.kind.as_str(), policy.value.clone());
        self.control.add_policy(listener.clone(), key.clone(), policy).await.map_err(convert::control_error)?;
        tracing::info!(listener, hostname = %key, kind, value, uid = by.uid, pid = by.pid, "policy added");
        Ok(Response::new(v1::AddL7PolicyResponse {}))
    }

    async fn remove_l7_policy(
        &self,
        request: Request<v1::RemoveL7PolicyRequest>,
    ) -> Answer<v1::RemoveL7PolicyResponse> {
        let by = By::of(&request);
        let v1::RemoveL7PolicyRequest { listener_addr, hostname, policy, alpn } = request.into_inner();
        let listener = convert::listener(listener_addr)?;
        let key = convert::route_key(&hostname, alpn)?;
        let policy = convert::policy("policy", policy)?;
        let (kind, value) = (policy.kind.as_str(), policy.value.clone());
        self.control.remove_policy(listener.clone(), key.clone(), policy).await.map_err(convert::control_error)?;
        tracing::info!(listener, hostname = %key, kind, value, uid = by.uid, pid = by.pid, "policy removed");
        Ok(Response::new(v1::RemoveL7PolicyResponse {}))
    }

    type ListFirewallRulesStream = ReceiverStream<Result<v1::ListFirewallRulesResponse, Status>>;
    type WatchDropsStream = ReceiverStream<Result<v1::WatchDropsResponse, Status>>;

    async fn get_firewall_rules(
        &self,
        _: Request<v1::GetFirewallRulesRequest>,
    ) -> Answer<v1::GetFirewallRulesResponse> {
        let all = RuleFilter::default();
        let rules = self.control.list(all, None, RULES_IN_ONE_MESSAGE + 1).await.map_err(convert::control_error)?;
        if rules.len() > RULES_IN_ONE_MESSAGE {
            let problem = format!("there are more than {RULES_IN_ONE_MESSAGE} rules; call ListFirewallRules");
            return Err(Status::resource_exhausted(problem));
        }
        let rules = rules.into_iter().map(convert::listed_to_proto).collect();
        Ok(Response::new(v1::GetFirewallRulesResponse { rules }))
    }

    async fn add_firewall_rule(
        &self,
        request: Request<v1::AddFirewallRuleRequest>,
    ) -> Answer<v1::AddFirewallRuleResponse> {
        let by = By::of(&request);
        let v1::AddFirewallRuleRequest { rule, ttl, options } = request.into_inner();
        let rule = convert::one_new_rule(rule, ttl)?;
        let change = Change::new("added", options, by)?;
        let key = rule.rule.key;
        let result = self.control.put_rules(vec![rule], change.options.clone()).await;
        Ok(Response::new(v1::AddFirewallRuleResponse { summary: change.summary(result, &key)? }))
    }

    async fn add_firewall_rules(
        &self,
        request: Request<v1::AddFirewallRulesRequest>,
    ) -> Answer<v1::AddFirewallRulesResponse> {
        let by = By::of(&request);
        let v1::AddFirewallRulesRequest { rules, ttl, options } = request.into_inner();
        let rules = convert::new_rules(rules, ttl)?;
        let change = Change::new("added", options, by)?;
        let what = several(rules.iter().map(|rule| rule.rule.key));
        let result = self.control.put_rules(rules, change.options.clone()).await;
        Ok(Response::new(v1::AddFirewallRulesResponse { summary: change.summary(result, &what)? }))
    }

    async fn remove_firewall_rule(
        &self,
        request: Request<v1::RemoveFirewallRuleRequest>,
    ) -> Answer<v1::RemoveFirewallRuleResponse> {
        let by = By::of(&request);
        let v1::RemoveFirewallRuleRequest { rule, options } = request.into_inner();
        let key = convert::key("rule", rule.as_ref())?;
        let change = Change::new("removed", options, by)?;
        let result = self.control.remove_rules(vec![key], change.options.clone()).await;
        Ok(Response::new(v1::RemoveFirewallRuleResponse { summary: change.summary(result, &key)? }))
    }

    async fn remove_firewall_rules(
        &self,
        request: Request<v1::RemoveFirewallRulesRequest>,
    ) -> Answer<v1::RemoveFirewallRulesResponse> {
        let by = By::of(&request);
        let v1::RemoveFirewallRulesRequest { rules, options } = request.into_inner();
        let keys = convert::keys(rules)?;
        let change = Change::new("removed", options, by)?;
        let what = several(keys.iter().copied());
        let result = self.control.remove_rules(keys, change.options.clone()).await;
        Ok(Response::new(v1::RemoveFirewallRulesResponse { summary: change.summary(result, &what)? }))
    }

    async fn list_firewall_rules(
        &self,
        request: Request<v1::ListFirewallRulesRequest>,
    ) -> Answer<Self::ListFirewallRulesStream> {
        let filter = convert::filter(request.get_ref())?;
        Ok(Response::new(watch::list(self.control.clone(), filter)))
    }

    async fn list_firewall_groups(
        &self,
        _: Request<v1::ListFirewallGroupsRequest>,
    ) -> Answer<v1::ListFirewallGroupsResponse> {
        let groups = self.control.groups().await.map_err(convert::control_error)?;
        let groups = groups.into_iter().map(convert::group_to_proto).collect();
        Ok(Response::new(v1::ListFirewallGroupsResponse { groups }))
    }

    async fn replace_firewall_group(
        &self,
        request: Request<Streaming<v1::ReplaceFirewallGroupRequest>>,
    ) -> Answer<v1::ReplaceFirewallGroupResponse> {
        let by = By::of(&request);
        let place = self.uploads.acquire().await;
        let _place = place.map_err(|_| convert::control_error(ControlError::Stopping))?;
        let (import, options) = tokio::select! {
            read = upload::read(request.into_inner()) => read?,
            () = self.stop.cancelled() => return Err(convert::control_error(ControlError::Stopping)),
        };
        let change = Change { word: "replaced", options, by };
        let what = format!("group {} by {} entries", import.group, import.entries.len());
        let result = self.control.replace_group(import, change.options.clone()).await;
        Ok(Response::new(v1::ReplaceFirewallGroupResponse { summary: change.summary(result, &what)? }))
    }

    async fn explain_firewall(
        &self,
        request: Request<v1::ExplainFirewallRequest>,
    ) -> Answer<v1::ExplainFirewallResponse> {
        let request = convert::explain_request(request.into_inner())?;
        let explanation = self.control.explain(request).await.map_err(convert::control_error)?;
        Ok(Response::new(convert::explanation_to_proto(explanation)))
    }

    async fn confirm_firewall(
        &self,
        request: Request<v1::ConfirmFirewallRequest>,
    ) -> Answer<v1::ConfirmFirewallResponse> {
        let by = By::of(&request);
        let id = Some(request.into_inner().id).filter(|id| *id != 0);
        self.control.confirm(id).await.map_err(convert::control_error)?;
        tracing::info!(id, uid = by.uid, pid = by.pid, "firewall change confirmed");
        Ok(Response::new(v1::ConfirmFirewallResponse {}))
    }

    async fn revert_firewall(&self, request: Request<v1::RevertFirewallRequest>) -> Answer<v1::RevertFirewallResponse> {
        let by = By::of(&request);
        let id = Some(request.into_inner().id).filter(|id| *id != 0);
        self.control.revert(id).await.map_err(convert::control_error)?;
        tracing::info!(id, uid = by.uid, pid = by.pid, "firewall change taken back");
        Ok(Response::new(v1::RevertFirewallResponse {}))
    }

    async fn watch_drops(&self, request: Request<v1::WatchDropsRequest>) -> Answer<Self::WatchDropsStream> {
        let filter = convert::drop_filter(request.get_ref())?;
        let permit = Arc::clone(&self.watchers).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{} calls watch already; end one of them", watch::WATCHERS))
        })?;
        Ok(Response::new(watch::drops(self.control.watch(), filter, self.stop.clone(), permit)))
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

    async fn set_splice(&self, request: Request<v1::SetSpliceRequest>) -> Answer<v1::SetSpliceResponse> {
        let by = By::of(&request);
        let mode = convert::splice_mode(&request.into_inner().mode)?;
        let previous = self.control.set_splice(mode).await.map_err(convert::control_error)?;
        let (mode, previous) = (mode.as_str(), previous.as_str());
        tracing::info!(mode, previous, uid = by.uid, pid = by.pid, "splice mode set until the daemon ends");
        Ok(Response::new(v1::SetSpliceResponse { previous: previous.to_owned() }))
    }

    async fn list_certificates(&self, _: Request<v1::ListCertificatesRequest>) -> Answer<v1::ListCertificatesResponse> {
        let listed = self.control.certificates().await.map_err(convert::control_error)?;
        Ok(Response::new(convert::certificates_to_proto(listed)))
    }

    async fn reload_certificates(
        &self,
        request: Request<v1::ReloadCertificatesRequest>,
    ) -> Answer<v1::ReloadCertificatesResponse> {
        let by = By::of(&request);
        let reloaded = self.control.reload_certificates().await.map_err(convert::control_error)?;
        let (replaced, unchanged, failed) = (reloaded.replaced, reloaded.unchanged, reloaded.failed.len());
        tracing::info!(replaced, unchanged, failed, uid = by.uid, pid = by.pid, "certificates reloaded");
        Ok(Response::new(convert::reloaded_to_proto(reloaded)))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        let status = self.control.status().await.map_err(convert::control_error)?;
        Ok(Response::new(convert::status_to_proto(status)))
    }
}

/// A change of firewall rules, on its way.
struct Change {
    word: &'static str,
    options: ChangeOptions,
    by: By,
}

impl Change {
    fn new(word: &'static str, options: Option<v1::FirewallChangeOptions>, by: By) -> Result<Self, Status> {
        Ok(Self { word, options: convert::options(options)?, by })
    }

    /// The answer, after a line in the log.
    fn summary(
        self,
        result: Result<ChangeSummary, ControlError>,
        what: &dyn fmt::Display,
    ) -> Result<Option<v1::FirewallChangeSummary>, Status> {
        let Self { word, options, by: By { uid, pid } } = self;
        let summary = result.map_err(convert::control_error)?;
        if !options.dry_run {
            let ChangeSummary { added, replaced, removed, confirm_id, .. } = summary;
            let force = options.force;
            tracing::info!(%what, added, replaced, removed, confirm_id, force, uid, pid, "firewall rules {word}");
        }
        Ok(Some(convert::summary_to_proto(summary, options.dry_run)))
    }
}

/// The first of some rules, for the log.
fn several(mut keys: impl ExactSizeIterator<Item = RuleKey>) -> String {
    let others = keys.len().saturating_sub(1);
    let first = keys.next().map(|key| key.to_string()).unwrap_or_default();
    if others == 0 { first } else { format!("{first} and {others} more") }
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
