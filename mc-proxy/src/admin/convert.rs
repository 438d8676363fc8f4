//! Messages of `mc_proxy.v1` to domain types and back. What is wrong with a message is said under the name of the field.

use std::{fmt, path::PathBuf, str::FromStr};

use mc_proxy_proto::v1;
use tonic::Status;

use crate::{
    control::{self, ControlError, ListenerRoutes},
    desired::{L7Policy, L7PolicyKind, Mode, Route, Target},
    firewall::{Action, Rule, Subject},
    net::addr::BackendAddr,
    route::Pattern,
    xdp,
};

/// Longest file name that Linux opens.
const PATH_MAX: usize = 4096;

/// Bytes of an error's text.
const MESSAGE_MAX: usize = 1024;

pub(super) fn listener(addr: String) -> Result<String, Status> {
    if addr.is_empty() { Err(invalid("listener_addr", "is required, such as \":443\"")) } else { Ok(addr) }
}

pub(super) fn hostname(field: &str, text: &str) -> Result<Pattern, Status> {
    if text.is_empty() {
        return Err(invalid(field, "is required"));
    }
    text.parse().map_err(|error| invalid(field, format_args!("\"{text}\": {error}")))
}

pub(super) fn max_connections(given: i64) -> Result<u64, Status> {
    u64::try_from(given).map_err(|_| invalid("max_connections", "must not be negative; 0 is unlimited"))
}

/// A route of `AddRoute`. What a later version acts on and this one does not is refused, but for what has no effect on
/// an L4 route: deploy agents send it, and it is kept.
pub(super) fn route(route: Option<v1::Route>) -> Result<Route, Status> {
    let route = route.ok_or_else(|| invalid("route", "is required"))?;
    let hostname = hostname("route.hostname", &route.hostname)?;
    let backends = backends(&route.backend, &route.backends)?;
    let mode = match route.mode.as_str() {
        "" => Mode::L4,
        word => parse("route.mode", word)?,
    };
    if mode == Mode::L7 {
        return Err(unavailable("route.mode", "\"l7\""));
    }
    if route.send_proxy_protocol {
        return Err(unavailable("route.send_proxy_protocol", "true"));
    }
    let mut l7_policies = Vec::with_capacity(route.l7_policies.len());
    for (index, policy) in route.l7_policies.into_iter().enumerate() {
        let policy = new_policy(&format!("route.l7_policies[{index}]"), Some(policy))?;
        if !l7_policies.contains(&policy) {
            l7_policies.push(policy);
        }
    }
    let target = Target {
        backends,
        mode,
        tls_cert: path("route.tls_cert", route.tls_cert)?,
        tls_key: path("route.tls_key", route.tls_key)?,
        backend_tls: route.backend_tls,
        send_proxy_protocol: route.send_proxy_protocol,
        l7_policies,
    };
    Ok(Route { hostname, target })
}

/// A policy that is to be added: beyond being well-formed, it can match something.
pub(super) fn new_policy(field: &str, given: Option<v1::L7Policy>) -> Result<L7Policy, Status> {
    let policy = policy(field, given)?;
    if policy.kind == L7PolicyKind::RequireHeader && !policy.value.bytes().all(is_token) {
        let problem = format_args!("\"{}\" is not the name of a header", policy.value);
        return Err(invalid(format_args!("{field}.value"), problem));
    }
    Ok(policy)
}

pub(super) fn policy(field: &str, given: Option<v1::L7Policy>) -> Result<L7Policy, Status> {
    let given = given.ok_or_else(|| invalid(field, "is required"))?;
    let kind = parse(format_args!("{field}.type"), &given.r#type)?;
    if given.value.is_empty() {
        return Err(invalid(format_args!("{field}.value"), "is required"));
    }
    Ok(L7Policy { kind, value: given.value })
}

pub(super) fn rule(given: Option<v1::FirewallRule>) -> Result<Rule, Status> {
    let given = given.ok_or_else(|| invalid("rule", "is required"))?;
    let kind = v1::FirewallRuleType::try_from(given.r#type).unwrap_or_default();
    let subject = match kind {
        v1::FirewallRuleType::Ip => Subject::ip(&given.value),
        v1::FirewallRuleType::Cidr => Subject::cidr(&given.value),
        v1::FirewallRuleType::Country => Subject::country(&given.value),
        v1::FirewallRuleType::Unspecified => {
            let expected = "is required: FIREWALL_RULE_TYPE_IP, FIREWALL_RULE_TYPE_CIDR or FIREWALL_RULE_TYPE_COUNTRY";
            return Err(invalid("rule.type", expected));
        }
    };
    let subject = subject.map_err(|error| invalid("rule.value", error))?;
    let action = match v1::FirewallAction::try_from(given.action) {
        Ok(v1::FirewallAction::Unspecified | v1::FirewallAction::Block) => Action::Block,
        Ok(v1::FirewallAction::Allow) => Action::Allow,
        Err(_) => {
            return Err(invalid("rule.action", "is neither FIREWALL_ACTION_BLOCK nor FIREWALL_ACTION_ALLOW"));
        }
    };
    Rule::permanent(action, subject).map_err(|error| invalid("rule.action", error))
}

/// The message with the canonical text of the rule.
pub(crate) fn rule_to_proto(rule: &Rule) -> v1::FirewallRule {
    let kind = match (rule.key.subject, rule.key.subject.as_ip()) {
        (Subject::Country(_), _) => v1::FirewallRuleType::Country,
        (Subject::Net(_), Some(_)) => v1::FirewallRuleType::Ip,
        (Subject::Net(_), None) => v1::FirewallRuleType::Cidr,
    };
    let action = match rule.key.action {
        Action::Block | Action::Count => v1::FirewallAction::Block,
        Action::Allow => v1::FirewallAction::Allow,
    };
    v1::FirewallRule { r#type: kind.into(), value: rule.key.subject.to_string(), action: action.into() }
}

pub(super) fn policy_to_proto(policy: L7Policy) -> v1::L7Policy {
    v1::L7Policy { r#type: policy.kind.as_str().to_owned(), value: policy.value }
}

pub(super) fn routes_to_proto(listener_addr: String, routes: ListenerRoutes) -> v1::ListRoutesResponse {
    v1::ListRoutesResponse {
        listener_addr,
        routes: routes.routes.into_iter().map(|r| target_to_proto(r.hostname.to_string(), r.target)).collect(),
        default_route: routes.default.map(|target| target_to_proto(String::new(), target)),
    }
}

pub(super) fn status_to_proto(status: control::Status) -> v1::GetStatusResponse {
    let active = status.listeners.iter().fold(0_u64, |sum, listener| sum.saturating_add(listener.active));
    let listeners = status.listeners.into_iter().map(|listener| v1::ListenerStatus {
        addr: listener.addr,
        route_count: i32::try_from(listener.routes).unwrap_or(i32::MAX),
        active_connections: to_i64(listener.active),
        // Listeners with PROXY protocol come with a later version.
        proxy_protocol: false,
        max_connections: to_i64(listener.max_connections),
        accepted_total: listener.accepted,
    });
    let outcomes = status.outcomes.into_iter();
    v1::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: Some(status.started_at.into()),
        total_connections: to_i64(active),
        listeners: listeners.collect(),
        kernel: Some(plane_to_proto(status.plane)),
        outcomes: outcomes
            .map(|(outcome, connections)| v1::OutcomeCount { outcome: outcome.to_owned(), connections })
            .collect(),
        uptime_seconds: status.uptime.as_secs(),
        client_bytes: status.client_bytes,
        backend_bytes: status.backend_bytes,
    }
}

pub(super) fn control_error(error: ControlError) -> Status {
    match error {
        ControlError::NotFound(what) => Status::not_found(what),
        ControlError::Refused(why) => Status::failed_precondition(why),
        ControlError::Failed(why) => Status::internal(why),
        ControlError::Stopping => Status::unavailable(ControlError::Stopping.to_string()),
    }
}

fn target_to_proto(hostname: String, target: Target) -> v1::Route {
    let text = |path: Option<PathBuf>| path.map(|path| path.display().to_string()).unwrap_or_default();
    let mut backends = target.backends.iter().map(BackendAddr::to_string);
    v1::Route {
        hostname,
        backend: backends.next().unwrap_or_default(),
        backends: backends.collect(),
        mode: target.mode.as_str().to_owned(),
        tls_cert: text(target.tls_cert),
        tls_key: text(target.tls_key),
        backend_tls: target.backend_tls,
        send_proxy_protocol: target.send_proxy_protocol,
        l7_policies: target.l7_policies.into_iter().map(policy_to_proto).collect(),
    }
}

fn plane_to_proto(plane: xdp::PlaneStatus) -> v1::KernelPlaneStatus {
    let drops = || plane.counters.iter().filter(|counter| counter.is_drop);
    v1::KernelPlaneStatus {
        active: plane.is_active,
        rules: plane.rules,
        dropped_packets: drops().map(|counter| counter.packets).sum(),
        dropped_bytes: drops().map(|counter| counter.bytes).sum(),
        counters: plane
            .counters
            .iter()
            .map(|c| v1::PacketCount { reason: c.reason.to_owned(), packets: c.packets, bytes: c.bytes })
            .collect(),
        interfaces: plane.interfaces.into_iter().map(interface_to_proto).collect(),
        detail: plane.detail,
    }
}

fn interface_to_proto(interface: xdp::InterfaceStatus) -> v1::InterfaceStatus {
    v1::InterfaceStatus {
        name: interface.name,
        mode: interface.mode.to_owned(),
        program_id: interface.program_id,
        error: interface.error,
        adopted: interface.is_adopted,
    }
}

/// `backend` and `backends` are one list, in this order, without repetitions.
fn backends(first: &str, rest: &[String]) -> Result<Vec<BackendAddr>, Status> {
    let mut backends = Vec::with_capacity(1 + rest.len());
    if !first.is_empty() {
        backends.push(parse("route.backend", first)?);
    }
    for (index, text) in rest.iter().enumerate() {
        let backend = parse(format_args!("route.backends[{index}]"), text)?;
        if !backends.contains(&backend) {
            backends.push(backend);
        }
    }
    if backends.is_empty() {
        return Err(invalid("route.backend", "is required, such as \"127.0.0.1:8443\""));
    }
    Ok(backends)
}

fn path(field: &str, text: String) -> Result<Option<PathBuf>, Status> {
    match text {
        text if text.is_empty() => Ok(None),
        text if text.contains('\0') || text.len() >= PATH_MAX => Err(invalid(field, "is not a file name")),
        text => Ok(Some(text.into())),
    }
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn to_i64(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn parse<T: FromStr<Err: fmt::Display>>(field: impl fmt::Display, text: &str) -> Result<T, Status> {
    text.parse().map_err(|error: T::Err| invalid(field, error))
}

/// The text travels as a header, of which clients take a few kilobytes; it quotes what they sent.
fn invalid(field: impl fmt::Display, problem: impl fmt::Display) -> Status {
    let mut text = format!("{field}: {problem}");
    if text.len() > MESSAGE_MAX {
        text.truncate(text.floor_char_boundary(MESSAGE_MAX));
        text.push('…');
    }
    Status::invalid_argument(text)
}

fn unavailable(field: &str, value: &str) -> Status {
    let version = env!("CARGO_PKG_VERSION");
    Status::failed_precondition(format!("{field}: {value} is not available in mc-proxy {version}"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    fn message(hostname: &str, backend: &str) -> v1::Route {
        v1::Route { hostname: hostname.into(), backend: backend.into(), ..v1::Route::default() }
    }

    fn refusal<T: fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
        let status = result.unwrap_err();
        (status.code(), status.message().to_owned())
    }

    #[test]
    fn every_refusal_of_a_route_names_its_field() {
        let good = || message("app.example.com", "127.0.0.1:8443");
        let policy = |kind: &str, value: &str| v1::L7Policy { r#type: kind.into(), value: value.into() };
        let cases = [
            (None, "route: is required"),
            (Some(message("", "a:1")), "route.hostname: is required"),
            (Some(message("a*.b", "a:1")), "route.hostname: \"a*.b\": a wildcard is"),
            (Some(message("10.0.0.1", "a:1")), "route.hostname: \"10.0.0.1\": the name is an IP address"),
            (Some(message("a.b", "")), "route.backend: is required"),
            (Some(message("a.b", "foo")), "route.backend: \"foo\" is not a backend address"),
            (Some(v1::Route { backends: vec!["a:1".into(), "x".into()], ..good() }), "route.backends[1]: \"x\" is not"),
            (Some(v1::Route { mode: "L5".into(), ..good() }), "route.mode: \"L5\" is not one of"),
            (Some(v1::Route { tls_cert: "a\0b".into(), ..good() }), "route.tls_cert: is not a file name"),
            (Some(v1::Route { tls_key: "k".repeat(PATH_MAX), ..good() }), "route.tls_key: is not a file name"),
            (
                Some(v1::Route { l7_policies: vec![policy("nope", "x")], ..good() }),
                "route.l7_policies[0].type: \"nope\" is not one of",
            ),
            (
                Some(v1::Route { l7_policies: vec![policy("block_user_agent", "")], ..good() }),
                "route.l7_policies[0].value: is required",
            ),
            (
                Some(v1::Route { l7_policies: vec![policy("require_header", "X-A: b")], ..good() }),
                "route.l7_policies[0].value: \"X-A: b\" is not the name of a header",
            ),
        ];
        for (given, expected) in cases {
            let (code, text) = refusal(route(given));
            assert_eq!(code, Code::InvalidArgument, "{text}");
            assert!(text.starts_with(expected), "{text}");
        }
    }

    #[test]
    fn a_refusal_fits_into_a_header() {
        let (_, text) = refusal(route(Some(message(&"é".repeat(30_000), "a:1"))));
        assert!(text.starts_with("route.hostname: \"é") && text.len() < MESSAGE_MAX + 4, "{}", text.len());
    }

    #[test]
    fn what_comes_later_is_refused_not_ignored() {
        for (given, expected) in [
            (
                v1::Route { mode: "l7".into(), ..message("a.b", "a:1") },
                "route.mode: \"l7\" is not available in mc-proxy",
            ),
            (
                v1::Route { send_proxy_protocol: true, ..message("a.b", "a:1") },
                "route.send_proxy_protocol: true is not available in mc-proxy",
            ),
        ] {
            let (code, text) = refusal(route(Some(given)));
            assert_eq!(code, Code::FailedPrecondition);
            assert!(text.starts_with(expected), "{text}");
        }
    }

    #[test]
    fn a_route_of_a_deploy_agent() {
        let route = route(Some(v1::Route {
            backends: vec!["b:2".into(), "a:1".into(), "b:2".into()],
            tls_cert: "/certs/a.pem".into(),
            backend_tls: true,
            ..message("APP.example.com.", "a:1")
        }))
        .unwrap();
        assert_eq!(route.hostname.to_string(), "app.example.com");
        assert_eq!(route.target.mode, Mode::L4);
        assert_eq!(route.target.backends.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:1", "b:2"]);
        assert_eq!(route.target.tls_cert.as_deref(), Some("/certs/a.pem".as_ref()));
        assert!(route.target.backend_tls);
    }

    #[test]
    fn every_refusal_of_a_rule_names_its_field() {
        use v1::{FirewallAction::Allow, FirewallRuleType as T};
        let message = |kind: T, value: &str| v1::FirewallRule { r#type: kind.into(), value: value.into(), action: 0 };
        let cases = [
            (None, "rule: is required"),
            (Some(message(T::Unspecified, "10.0.0.1")), "rule.type: is required"),
            (Some(v1::FirewallRule { r#type: 77, ..message(T::Ip, "10.0.0.1") }), "rule.type: is required"),
            (Some(message(T::Ip, "10.0.0.0/8")), "rule.value: \"10.0.0.0/8\" is not an IP address"),
            (Some(message(T::Ip, "RU")), "rule.value: \"RU\" is not an IP address"),
            (Some(message(T::Cidr, "10.0.0.1")), "rule.value: \"10.0.0.1\" is not a CIDR"),
            (
                Some(message(T::Cidr, "198.51.100.7/24")),
                "rule.value: \"198.51.100.7/24\" has host bits set; the canonical CIDR is \"198.51.100.0/24\"",
            ),
            (Some(message(T::Country, "RUS")), "rule.value: \"RUS\" is not an ISO 3166-1"),
            (Some(v1::FirewallRule { action: 9, ..message(T::Ip, "10.0.0.1") }), "rule.action: is neither"),
            (Some(v1::FirewallRule { action: Allow.into(), ..message(T::Country, "RU") }), "rule.action: a country"),
        ];
        for (given, expected) in cases {
            let (code, text) = refusal(rule(given));
            assert_eq!(code, Code::InvalidArgument, "{text}");
            assert!(text.starts_with(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn rules_come_back_as_they_went(addr: std::net::IpAddr, length in 0_u8..=128, is_allowed: bool, letters in "[A-Z]{2}") {
            let action = if is_allowed { Action::Allow } else { Action::Block };
            let net = ipnet::IpNet::new(addr, if addr.is_ipv4() { length % 33 } else { length }).unwrap().trunc();
            let net: Subject = net.to_string().parse().unwrap();
            let country: Subject = letters.parse().unwrap();
            for given in [Rule::permanent(action, net).unwrap(), Rule::permanent(Action::Block, country).unwrap()] {
                prop_assert_eq!(rule(Some(rule_to_proto(&given))).unwrap(), given);
            }
        }
    }

    #[test]
    fn status_sums_up() {
        let count = |reason, is_drop, packets| xdp::ReasonCount { reason, is_drop, packets, bytes: packets * 60 };
        let listener = |addr: &str, active| control::ListenerStatus {
            addr: addr.into(),
            routes: 2,
            active,
            max_connections: 0,
            accepted: 100,
        };
        let status = status_to_proto(control::Status {
            started_at: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            uptime: Duration::from_millis(10_900),
            listeners: vec![listener(":443", 12), listener(":8443", u64::MAX)],
            plane: xdp::PlaneStatus {
                is_active: true,
                counters: vec![count("pass", false, 7), count("ip", true, 3), count("prefix", true, 4)],
                ..xdp::PlaneStatus::default()
            },
            outcomes: vec![("closed", 5)],
            client_bytes: 1,
            backend_bytes: 2,
        });
        let kernel = status.kernel.unwrap();
        assert_eq!((kernel.dropped_packets, kernel.dropped_bytes, kernel.counters.len()), (7, 420, 3));
        assert_eq!((status.version.as_str(), status.uptime_seconds), ("0.1.0", 10));
        assert_eq!(status.started_at.unwrap().to_string(), "2023-11-14T22:13:20Z");
        assert_eq!(status.total_connections, i64::MAX);
    }
}
