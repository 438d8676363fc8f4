//! The objects of `--json`. Fields are added, never renamed or removed.
//!
//! | command | object |
//! |---|---|
//! | `status` | `GetStatusResponse`; `started_at` as RFC 3339 |
//! | `routes list` | `{"listeners": [ListRoutesResponse]}`; `default_route` is null without one |
//! | `routes add` | `AddRouteRequest` |
//! | `routes remove` | `{"listener_addr", "hostnames": []}` |
//! | `policies list` | `ListL7PoliciesResponse` |
//! | `policies add`, `remove` | `{"listener_addr", "hostname", "policy"}` |
//! | `listeners list` | `{"listeners": [ListenerStatus]}` |
//! | `listeners set-max-connections` | `{"listener_addr", "max_connections"}` |
//! | `firewall list`, `add`, `remove` | `{"rules": [FirewallRule]}`; enumerations by name |
//! | `health` | `{"service", "status": "SERVING"}` |

use mc_proxy_proto::v1;
use serde_json::{Value, json};

pub(super) fn status(status: &v1::GetStatusResponse) -> Value {
    let kernel = status.kernel.as_ref();
    let outcomes = status.outcomes.iter().map(|o| json!({"outcome": o.outcome, "connections": o.connections}));
    json!({
        "version": status.version,
        "started_at": status.started_at.as_ref().map(ToString::to_string),
        "uptime_seconds": status.uptime_seconds,
        "total_connections": status.total_connections,
        "listeners": status.listeners.iter().map(listener).collect::<Value>(),
        "kernel": kernel.map(self::kernel),
        "outcomes": outcomes.collect::<Value>(),
        "client_bytes": status.client_bytes,
        "backend_bytes": status.backend_bytes,
    })
}

pub(super) fn listener(listener: &v1::ListenerStatus) -> Value {
    json!({
        "addr": listener.addr,
        "route_count": listener.route_count,
        "active_connections": listener.active_connections,
        "proxy_protocol": listener.proxy_protocol,
        "max_connections": listener.max_connections,
        "accepted_total": listener.accepted_total,
    })
}

pub(super) fn routes(response: &v1::ListRoutesResponse) -> Value {
    json!({
        "listener_addr": response.listener_addr,
        "routes": response.routes.iter().map(route).collect::<Value>(),
        "default_route": response.default_route.as_ref().map(route),
    })
}

pub(super) fn route(route: &v1::Route) -> Value {
    json!({
        "hostname": route.hostname,
        "backend": route.backend,
        "backends": route.backends,
        "mode": route.mode,
        "tls_cert": route.tls_cert,
        "tls_key": route.tls_key,
        "backend_tls": route.backend_tls,
        "send_proxy_protocol": route.send_proxy_protocol,
        "l7_policies": route.l7_policies.iter().map(policy).collect::<Value>(),
    })
}

pub(super) fn policy(policy: &v1::L7Policy) -> Value {
    json!({"type": policy.r#type, "value": policy.value})
}

pub(super) fn rules(rules: &[v1::FirewallRule]) -> Value {
    json!({"rules": rules.iter().map(rule).collect::<Value>()})
}

fn rule(rule: &v1::FirewallRule) -> Value {
    json!({"type": rule.r#type().as_str_name(), "value": rule.value, "action": rule.action().as_str_name()})
}

fn kernel(kernel: &v1::KernelPlaneStatus) -> Value {
    let counters = kernel.counters.iter().map(|c| json!({"reason": c.reason, "packets": c.packets, "bytes": c.bytes}));
    let interfaces = kernel.interfaces.iter().map(|i| {
        json!({
            "name": i.name,
            "mode": i.mode,
            "program_id": i.program_id,
            "error": i.error,
            "adopted": i.adopted,
        })
    });
    json!({
        "active": kernel.active,
        "detail": kernel.detail,
        "interfaces": interfaces.collect::<Value>(),
        "rules": kernel.rules,
        "dropped_packets": kernel.dropped_packets,
        "dropped_bytes": kernel.dropped_bytes,
        "counters": counters.collect::<Value>(),
    })
}
