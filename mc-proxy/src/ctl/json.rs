//! The objects of `--json`. Fields are added, never renamed or removed.
//!
//! | command | object |
//! |---|---|
//! | `status` | `GetStatusResponse`; `started_at` as RFC 3339 |
//! | `routes list` | `{"listeners": [ListRoutesResponse]}`; `default_route` is null without one |
//! | `routes add` | `AddRouteRequest` |
//! | `routes remove` | `{"listener_addr", "hostnames": [], "alpn": []}` |
//! | `policies list` | `ListL7PoliciesResponse` |
//! | `policies add`, `remove` | `{"listener_addr", "hostname", "alpn": [], "policy"}` |
//! | `listeners list` | `{"listeners": [ListenerStatus]}` |
//! | `listeners set-max-connections` | `{"listener_addr", "max_connections"}` |
//! | `firewall list`, `add`, `remove` | `{"rules": [FirewallRule]}`; enumerations by name; not `list`: `"summary"` |
//! | `firewall import` | `{"group", "entries", "list": {}, "summary": FirewallChangeSummary}` |
//! | `firewall export` | `{"group", "written", "countries", "others", "ending"}` |
//! | `firewall groups` | `{"groups": [FirewallGroup]}` |
//! | `firewall explain` | `ExplainFirewallResponse` with `source` |
//! | `firewall watch` | one `DropEvent` a line, or `{"missed"}` |
//! | `firewall top` | a line `{"seconds", "groups": [], "sources": [], "missed"}` |
//! | `firewall confirm`, `revert` | `{"confirmed": true}`, `{"reverted": true}` |
//! | `certs list` | `{"certificates": [Certificate]}` |
//! | `certs reload` | `ReloadCertificatesResponse` |
//! | `splice` | `{"mode", "previous"}` |
//! | `health` | `{"service", "status": "SERVING"}` |

use std::net::IpAddr;

use mc_proxy_proto::v1;
use serde_json::{Value, json};

pub(super) fn status(status: &v1::GetStatusResponse) -> Value {
    let kernel = status.kernel.as_ref();
    let outcomes = status.outcomes.iter().map(|o| json!({"outcome": o.outcome, "connections": o.connections}));
    json!({
        "version": status.version,
        "started_at": time(status.started_at.as_ref()),
        "uptime_seconds": status.uptime_seconds,
        "total_connections": status.total_connections,
        "listeners": status.listeners.iter().map(listener).collect::<Value>(),
        "kernel": kernel.map(self::kernel),
        "outcomes": outcomes.collect::<Value>(),
        "client_bytes": status.client_bytes,
        "backend_bytes": status.backend_bytes,
        "memory": status.memory.as_ref().map(|memory| json!({
            "used_bytes": memory.used_bytes,
            "limit_bytes": memory.limit_bytes,
            "kernel_socket_bytes": memory.kernel_socket_bytes,
        })),
        "accept_failures": status.accept_failures,
        "names": status.names.as_ref().map(|names| json!({
            "kept": names.kept,
            "failing": names.failing,
            "lookups": names.lookups,
            "failures": names.failures,
        })),
        "firewall": status.firewall.as_ref().map(firewall),
        "access": status.access.map(|lost| json!({"dropped": lost.dropped, "failed": lost.failed})),
        "certificates": status.certificates.as_ref().map(|certificates| json!({
            "count": certificates.count,
            "failing": certificates.failing,
            "earliest_expiry": time(certificates.earliest_expiry.as_ref()),
            "load_failures": certificates.load_failures,
        })),
        "http": status.http.as_ref().map(http),
        "splice": status.splice,
        "kernel_splice": status.kernel_splice.as_ref().map(kernel_splice),
    })
}

fn http(http: &v1::HttpStatus) -> Value {
    let counts = |counts: &[v1::HttpCount]| {
        counts.iter().map(|count| json!({"name": count.name, "count": count.count})).collect::<Value>()
    };
    json!({
        "requests": http.requests,
        "responses": counts(&http.responses),
        "outcomes": counts(&http.outcomes),
        "malformed": counts(&http.malformed),
        "retries": http.retries,
        "tunnels": http.tunnels,
        "abuse": http.abuse,
    })
}

fn kernel_splice(splice: &v1::SpliceStatus) -> Value {
    json!({
        "available": splice.available,
        "detail": splice.detail,
        "pairs": splice.pairs,
        "taken": splice.taken,
        "refused": splice.refused,
        "latched": splice.latched,
        "bytes": splice.bytes,
        "credit_bytes": splice.credit_bytes,
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
        "proxy_trusted": listener.proxy_trusted,
        "proxy_trust_any": listener.proxy_trust_any,
        "max_connections_per_source": listener.max_connections_per_source,
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
        "backend_ca": route.backend_ca,
        "backend_server_name": route.backend_server_name,
        "backend_insecure": route.backend_insecure,
        "backend_protocol": route.backend_protocol,
        "send_proxy_protocol": route.send_proxy_protocol,
        "l7_policies": route.l7_policies.iter().map(policy).collect::<Value>(),
        "alpn": route.alpn,
        "proxy_protocol_version": route.proxy_protocol_version,
        "transparent": route.transparent,
        "splice": route.splice,
    })
}

pub(super) fn certificate(certificate: &v1::Certificate) -> Value {
    let uses = certificate.routes.iter();
    json!({
        "tls_cert": certificate.tls_cert,
        "tls_key": certificate.tls_key,
        "names": certificate.names,
        "not_before": time(certificate.not_before.as_ref()),
        "not_after": time(certificate.not_after.as_ref()),
        "days_left": certificate.not_after.as_ref().map(|_| certificate.days_left),
        "issuer": certificate.issuer,
        "serial": certificate.serial,
        "loaded_at": time(certificate.loaded_at.as_ref()),
        "routes": uses.map(|used| json!({"listener_addr": used.listener_addr, "route": used.route})).collect::<Value>(),
        "last_error": certificate.last_error,
    })
}

pub(super) fn reloaded(reloaded: &v1::ReloadCertificatesResponse) -> Value {
    let failed = reloaded.failed.iter().map(|failure| json!({"tls_cert": failure.tls_cert, "error": failure.error}));
    json!({
        "replaced": reloaded.replaced,
        "unchanged": reloaded.unchanged,
        "failed": failed.collect::<Value>(),
    })
}

pub(super) fn policy(policy: &v1::L7Policy) -> Value {
    json!({"type": policy.r#type, "value": policy.value, "shadow": policy.shadow})
}

/// With what the policy has refused.
pub(super) fn counted_policy(policy: &v1::L7Policy) -> Value {
    json!({"type": policy.r#type, "value": policy.value, "shadow": policy.shadow, "hits": policy.hits})
}

pub(super) fn rule(rule: &v1::FirewallRule) -> Value {
    json!({
        "type": rule.r#type().as_str_name(),
        "value": rule.value,
        "action": rule.action().as_str_name(),
        "group": rule.group,
        "scope": rule.scope,
        "expires_at": time(rule.expires_at.as_ref()),
        "comment": rule.comment,
        "created_at": time(rule.created_at.as_ref()),
    })
}

pub(super) fn summary(summary: &v1::FirewallChangeSummary) -> Value {
    json!({
        "added": summary.added,
        "replaced": summary.replaced,
        "removed": summary.removed,
        "unchanged": summary.unchanged,
        "confirm_by": time(summary.confirm_by.as_ref()),
        "confirm_id": summary.confirm_id,
        "dry_run": summary.dry_run,
    })
}

pub(super) fn group(group: &v1::FirewallGroup) -> Value {
    json!({
        "name": group.name,
        "rules": group.rules,
        "dropped_packets": group.dropped_packets,
        "dropped_bytes": group.dropped_bytes,
        "shadow_packets": group.shadow_packets,
        "shadow_bytes": group.shadow_bytes,
    })
}

pub(super) fn explanation(source: &IpAddr, explained: &v1::ExplainFirewallResponse) -> Value {
    let considered = explained.considered.iter().map(|considered| {
        json!({
            "rule": considered.rule.as_ref().map(rule),
            "tier": considered.tier,
            "holds": considered.holds,
            "why": considered.why,
        })
    });
    let kernel = explained.kernel.as_ref().map(|kernel| {
        json!({"ran": kernel.ran, "drop": kernel.drop, "reason": kernel.reason, "not_attached": kernel.not_attached})
    });
    json!({
        "source": source.to_string(),
        "verdict": explained.verdict,
        "reason": explained.reason,
        "decisive": explained.decisive.as_ref().map(rule),
        "considered": considered.collect::<Value>(),
        "country": explained.country,
        "kernel": kernel,
        "user": explained.user,
        "route": explained.route,
    })
}

pub(super) fn drop_event(event: &v1::DropEvent) -> Value {
    json!({
        "at": time(event.at.as_ref()),
        "interface": event.interface,
        "reason": event.reason,
        "group": event.group,
        "source": event.source,
        "port": event.port,
        "bytes": event.bytes,
        "plane": event.plane,
        "sampled": event.sampled,
    })
}

fn time(at: Option<&prost_types::Timestamp>) -> Option<String> {
    at.map(ToString::to_string)
}

fn firewall(firewall: &v1::FirewallStatus) -> Value {
    let geoip = firewall.geoip.as_ref().map(|geoip| {
        json!({
            "database_type": geoip.database_type,
            "built_at": time(geoip.built_at.as_ref()),
            "age_seconds": geoip.age_seconds,
        })
    });
    let pending = firewall
        .pending
        .as_ref()
        .map(|pending| json!({"id": pending.id, "confirm_by": time(pending.confirm_by.as_ref())}));
    json!({
        "geoip": geoip,
        "groups": firewall.groups.iter().map(group).collect::<Value>(),
        "pending": pending,
        "bans": firewall.bans,
        "rules": firewall.rules,
    })
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
            "driver": i.driver,
            "mtu": i.mtu,
            "mode_reason": i.mode_reason,
            "foreign_program_id": i.foreign_program_id,
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
        "map_memory_bytes": kernel.map_memory_bytes,
        "generation": kernel.generation,
    })
}
