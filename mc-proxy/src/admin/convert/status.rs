//! What `GetStatus` answers.

use std::time::SystemTime;

use mc_proxy_proto::v1;

use super::{certificates::figures_to_proto, firewall::group_to_proto};
use crate::{control, desired::AcceptProxy, net::relay::Figures, xdp};

pub(in crate::admin) fn status_to_proto(status: control::Status) -> v1::GetStatusResponse {
    let active = status.listeners.iter().fold(0_u64, |sum, listener| sum.saturating_add(listener.active));
    let trusted = |proxy: &AcceptProxy| proxy.trusted.iter().map(ToString::to_string).collect();
    let listeners = status.listeners.into_iter().map(|listener| v1::ListenerStatus {
        addr: listener.addr,
        route_count: i32::try_from(listener.routes).unwrap_or(i32::MAX),
        active_connections: to_i64(listener.active),
        proxy_protocol: listener.proxy.is_some(),
        max_connections: to_i64(listener.max_connections),
        accepted_total: listener.accepted,
        proxy_trusted: listener.proxy.as_ref().map(trusted).unwrap_or_default(),
        proxy_trust_any: listener.proxy.as_ref().is_some_and(|proxy| proxy.trust_any),
        max_connections_per_source: to_i64(listener.max_connections_per_source),
    });
    let outcomes = status.outcomes.into_iter();
    v1::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: Some(status.started_at.into()),
        total_connections: to_i64(active),
        listeners: listeners.collect(),
        kernel: Some(plane_to_proto(status.plane)),
        firewall: Some(firewall_to_proto(status.firewall)),
        outcomes: outcomes
            .map(|(outcome, connections)| v1::OutcomeCount { outcome: outcome.to_owned(), connections })
            .collect(),
        uptime_seconds: status.uptime.as_secs(),
        client_bytes: status.client_bytes,
        backend_bytes: status.backend_bytes,
        memory: Some(v1::MemoryStatus {
            used_bytes: status.memory.used,
            limit_bytes: status.memory.limit,
            kernel_socket_bytes: status.memory.kernel_sockets.unwrap_or(0),
        }),
        accept_failures: status.accept_failures,
        names: Some(v1::NameStatus {
            kept: status.names.kept,
            failing: status.names.failing,
            lookups: status.names.lookups,
            failures: status.names.failures,
        }),
        certificates: Some(figures_to_proto(status.certificates)),
        access: status.access.map(|access| v1::AccessStatus { dropped: access.dropped, failed: access.failed }),
        http: status.http.map(http_to_proto),
        splice: status.splice.as_str().to_owned(),
        kernel_splice: Some(kernel_splice(status.kernel_splice)),
    }
}

fn http_to_proto(http: control::HttpStatus) -> v1::HttpStatus {
    let control::HttpStatus { requests, responses, outcomes, malformed, retries, tunnels, abuse } = http;
    let [responses, outcomes, malformed] = [responses, outcomes, malformed]
        .map(|counts| counts.into_iter().map(|(name, count)| v1::HttpCount { name: name.to_owned(), count }).collect());
    v1::HttpStatus { requests, responses, outcomes, malformed, retries, tunnels, abuse }
}

fn kernel_splice((figures, obstacle): (Figures, Option<String>)) -> v1::SpliceStatus {
    let Figures { pairs, taken, refused, latched, bytes, credit } = figures;
    v1::SpliceStatus {
        available: obstacle.is_none(),
        detail: obstacle.unwrap_or_default(),
        pairs,
        taken,
        refused,
        latched,
        bytes,
        credit_bytes: credit,
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
        map_memory_bytes: plane.map_bytes,
        generation: plane.generation,
    }
}

fn firewall_to_proto(firewall: control::FirewallStatus) -> v1::FirewallStatus {
    let age = |built_at| SystemTime::now().duration_since(built_at).unwrap_or_default();
    v1::FirewallStatus {
        geoip: firewall.geoip.map(|geoip| v1::GeoIpStatus {
            database_type: geoip.database_type,
            built_at: Some(geoip.built_at.into()),
            age_seconds: age(geoip.built_at).as_secs(),
        }),
        groups: firewall.groups.into_iter().map(group_to_proto).collect(),
        pending: firewall
            .pending
            .map(|pending| v1::PendingConfirmation { id: pending.id, confirm_by: Some(pending.confirm_by.into()) }),
        bans: firewall.bans,
        rules: firewall.rules,
    }
}

fn interface_to_proto(interface: xdp::InterfaceStatus) -> v1::InterfaceStatus {
    v1::InterfaceStatus {
        name: interface.name,
        mode: interface.mode.to_owned(),
        program_id: interface.program_id,
        error: interface.error,
        adopted: interface.is_adopted,
        driver: interface.driver,
        mtu: interface.mtu,
        mode_reason: interface.note,
        foreign_program_id: interface.foreign_program_id,
    }
}

fn to_i64(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn status_sums_up() {
        let count = |reason, is_drop, packets| xdp::ReasonCount { reason, is_drop, packets, bytes: packets * 60 };
        let listener = |addr: &str, active| control::ListenerStatus {
            addr: addr.into(),
            routes: 2,
            active,
            max_connections: 0,
            max_connections_per_source: 0,
            proxy: None,
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
            firewall: control::FirewallStatus {
                geoip: Some(control::GeoIpStatus {
                    database_type: "DBIP-Country-Lite".into(),
                    built_at: SystemTime::now() - Duration::from_secs(90),
                }),
                groups: Vec::new(),
                pending: Some(control::Pending { id: 4, confirm_by: UNIX_EPOCH + Duration::from_secs(60) }),
                bans: 2,
                rules: 9,
            },
            outcomes: vec![("closed", 5)],
            splice: crate::config::Splice::Userspace,
            kernel_splice: (Figures { pairs: 3, credit: 9, ..Figures::default() }, Some("no CAP_BPF".to_owned())),
            client_bytes: 1,
            backend_bytes: 2,
            memory: control::MemoryStatus { used: 3, limit: 4, kernel_sockets: Some(5) },
            accept_failures: 6,
            names: crate::net::resolve::Figures { kept: 7, failing: 8, lookups: 9, failures: 10 },
            certificates: crate::tls::certs::Figures { count: 11, ..Default::default() },
            access: Some(control::AccessStatus { dropped: 12, failed: 13 }),
            http: Some(control::HttpStatus {
                requests: 14,
                responses: vec![("2xx", 13), ("none", 1)],
                retries: 15,
                ..Default::default()
            }),
        });
        let http = status.http.unwrap();
        assert_eq!((http.requests, http.responses[1].name.as_str(), http.responses[1].count), (14, "none", 1));
        assert_eq!(http.retries, 15);
        let kernel = status.kernel.unwrap();
        assert_eq!((kernel.dropped_packets, kernel.dropped_bytes, kernel.counters.len()), (7, 420, 3));
        assert_eq!(status.splice, "userspace");
        let splice = status.kernel_splice.unwrap();
        assert_eq!(
            (splice.available, splice.detail.as_str(), splice.pairs, splice.credit_bytes),
            (false, "no CAP_BPF", 3, 9)
        );
        assert_eq!((status.version.as_str(), status.uptime_seconds), ("0.1.0", 10));
        assert_eq!(status.started_at.unwrap().to_string(), "2023-11-14T22:13:20Z");
        let expected = v1::MemoryStatus { used_bytes: 3, limit_bytes: 4, kernel_socket_bytes: 5 };
        assert_eq!((status.memory, status.accept_failures), (Some(expected), 6));
        assert_eq!(status.names, Some(v1::NameStatus { kept: 7, failing: 8, lookups: 9, failures: 10 }));
        assert_eq!(status.certificates.unwrap().count, 11);
        assert_eq!(status.access, Some(v1::AccessStatus { dropped: 12, failed: 13 }));
        assert_eq!(status.total_connections, i64::MAX);
        let firewall = status.firewall.unwrap();
        assert!((90..100).contains(&firewall.geoip.unwrap().age_seconds));
        let pending = firewall.pending.unwrap();
        assert_eq!((pending.id, pending.confirm_by.unwrap().seconds), (4, 60));
        assert_eq!((firewall.bans, firewall.rules), (2, 9));
    }
}
