//! `mcproxyctl status` and `mc-proxy status`.

use std::fmt::Write as _;

use mc_proxy_proto::v1;

use super::{
    CtlError,
    client::{Client, answer},
    json,
    output::{Output, printable},
};

pub(super) async fn run(client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let status = answer(client.admin.get_status(v1::GetStatusRequest {})).await?;
    out.answer(|| json::status(&status), || text(&status))
}

/// The lines of the runbook, then the kernel plane and its interfaces, then how connections ended.
fn text(status: &v1::GetStatusResponse) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "mc-proxy v{}", printable(&status.version));
    let _ = writeln!(out, "uptime: {}", uptime(status.uptime_seconds));
    let _ = writeln!(out, "connections: {}", status.total_connections);
    for v1::ListenerStatus { addr, route_count, active_connections, .. } in &status.listeners {
        let _ = writeln!(out, "{} routes={route_count} active={active_connections}", printable(addr));
    }
    if let Some(kernel) = &status.kernel {
        write_kernel(&mut out, kernel);
    }
    if let Some(splice) = &status.kernel_splice {
        write_splice(&mut out, &status.splice, splice);
    }
    if let Some(firewall) = &status.firewall {
        write_firewall(&mut out, firewall);
    }
    if let Some(memory) = &status.memory {
        write_memory(&mut out, memory, status.accept_failures);
    }
    // Whoever has no backend by name need not read of them.
    if let Some(names) = status.names.as_ref().filter(|names| names.lookups > 0) {
        let _ = writeln!(
            out,
            "names: kept={} failing={} lookups={} failures={}",
            names.kept, names.failing, names.lookups, names.failures
        );
    }
    if let Some(certificates) = status.certificates.as_ref().filter(|certificates| certificates.count > 0) {
        write_certificates(&mut out, certificates);
    }
    if let Some(v1::AccessStatus { dropped, failed }) = status.access.filter(|lost| lost.dropped + lost.failed > 0) {
        let _ = writeln!(out, "access: dropped={dropped} failed={failed}");
    }
    if let Some(http) = &status.http {
        write_http(&mut out, http);
    }
    let ended: Vec<_> = status.outcomes.iter().filter(|count| count.connections > 0).collect();
    if !ended.is_empty() {
        let _ = write!(out, "ended:");
        for v1::OutcomeCount { outcome, connections } in ended {
            let _ = write!(out, " {}={connections}", printable(outcome));
        }
        let _ = writeln!(out);
    }
    out
}

/// Writing to a `String` cannot fail, hence the discarded results here, above and below.
fn write_splice(out: &mut String, mode: &str, splice: &v1::SpliceStatus) {
    let v1::SpliceStatus { pairs, taken, latched, bytes, .. } = splice;
    let _ =
        write!(out, "splice: {} kernel_pairs={pairs} taken={taken} latched={latched} bytes={bytes}", printable(mode));
    let _ = match splice.detail.as_str() {
        "" => writeln!(out),
        detail => writeln!(out, " (user space only: {})", printable(detail)),
    };
}

/// As Go prints a duration of whole seconds: `4h32m10s`, `1m0s`, `10s`.
fn uptime(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

fn write_kernel(out: &mut String, kernel: &v1::KernelPlaneStatus) {
    let v1::KernelPlaneStatus { rules, dropped_packets, dropped_bytes, .. } = kernel;
    let state = if kernel.active { "on" } else { "off" };
    let _ =
        write!(out, "kernel: {state} rules={rules} dropped_packets={dropped_packets} dropped_bytes={dropped_bytes}");
    let _ = match kernel.detail.as_str() {
        "" => writeln!(out),
        detail => writeln!(out, " ({})", printable(detail)),
    };
    for interface in &kernel.interfaces {
        let name = printable(&interface.name);
        let _ = match interface.mode.as_str() {
            // The reason has been told above.
            "" if interface.error == kernel.detail => writeln!(out, "{name} xdp=none"),
            "" => writeln!(out, "{name} xdp=none ({})", printable(&interface.error)),
            mode => {
                let adopted = if interface.adopted { " adopted" } else { "" };
                writeln!(
                    out,
                    "{name} xdp={} program={}{adopted}{}",
                    printable(mode),
                    interface.program_id,
                    link(interface)
                )
            }
        };
    }
}

fn write_certificates(out: &mut String, certificates: &v1::CertificateStatus) {
    let _ = write!(out, "certificates: {}", certificates.count);
    if certificates.failing > 0 {
        let _ = write!(out, " failing={}", certificates.failing);
    }
    let _ = match &certificates.earliest_expiry {
        Some(expiry) => writeln!(out, " earliest_expiry={expiry}"),
        None => writeln!(out),
    };
}

/// Of what has not happened nothing is said.
fn write_http(out: &mut String, http: &v1::HttpStatus) {
    let v1::HttpStatus { requests, responses, malformed, retries, tunnels, abuse, .. } = http;
    let _ = write!(out, "http: requests={requests}");
    let responses = responses.iter().map(|count| (count.name.as_str(), count.count));
    let malformed = malformed.iter().map(|count| count.count).sum();
    let others = [("retries", *retries), ("tunnels", *tunnels), ("malformed", malformed), ("abuse", *abuse)];
    for (name, count) in responses.chain(others).filter(|(_, count)| *count > 0) {
        let _ = write!(out, " {}={count}", printable(name));
    }
    let _ = writeln!(out);
}

/// In MiB, as `proxy.memory_limit` is written.
fn write_memory(out: &mut String, memory: &v1::MemoryStatus, accept_failures: u64) {
    let mib = |bytes: u64| format!("{:.1}MiB", bytes as f64 / (1 << 20) as f64);
    let _ = write!(out, "memory: connections={}", mib(memory.used_bytes));
    if memory.limit_bytes > 0 {
        let _ = write!(out, " limit={}", mib(memory.limit_bytes));
    }
    let _ = write!(out, " kernel_sockets={}", mib(memory.kernel_socket_bytes));
    if accept_failures > 0 {
        let _ = write!(out, " accept_failures={accept_failures}");
    }
    let _ = writeln!(out);
}

/// What is known of the interface beyond its program.
fn link(interface: &v1::InterfaceStatus) -> String {
    let mut text = String::new();
    if !interface.driver.is_empty() {
        let _ = write!(text, " driver={}", printable(&interface.driver));
    }
    if interface.mtu > 0 {
        let _ = write!(text, " mtu={}", interface.mtu);
    }
    if !interface.mode_reason.is_empty() {
        let _ = write!(text, " ({})", printable(&interface.mode_reason));
    }
    text
}

fn write_firewall(out: &mut String, firewall: &v1::FirewallStatus) {
    let v1::FirewallStatus { rules, bans, groups, .. } = firewall;
    let _ = write!(out, "firewall: rules={rules} groups={} bans={bans}", groups.len());
    let _ = match &firewall.geoip {
        Some(geoip) => {
            let days = geoip.age_seconds / (24 * 3600);
            writeln!(out, " geoip={} age={days}d", printable(&geoip.database_type))
        }
        None => writeln!(out),
    };
    if let Some(v1::PendingConfirmation { id, confirm_by: Some(confirm_by) }) = &firewall.pending {
        let _ = writeln!(
            out,
            "change {id} is taken back at {confirm_by} unless confirmed: mcproxyctl firewall confirm {id}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(addr: &str, route_count: i32, active_connections: i64) -> v1::ListenerStatus {
        v1::ListenerStatus { addr: addr.into(), route_count, active_connections, ..v1::ListenerStatus::default() }
    }

    fn runbook() -> v1::GetStatusResponse {
        v1::GetStatusResponse {
            version: "0.1.0".into(),
            uptime_seconds: 4 * 3600 + 32 * 60 + 10,
            total_connections: 1247,
            listeners: vec![listener(":443", 2, 12), listener(":8443", 1, 3), listener(":9443", 1, 0)],
            ..v1::GetStatusResponse::default()
        }
    }

    #[test]
    fn the_lines_of_the_runbook() {
        assert_eq!(
            text(&runbook()),
            "mc-proxy v0.1.0\nuptime: 4h32m10s\nconnections: 1247\n:443 routes=2 active=12\n:8443 routes=1 active=3\n\
             :9443 routes=1 active=0\n"
        );
    }

    #[test]
    fn the_splice_has_a_line() {
        let line = |detail: &str| {
            let splice = v1::SpliceStatus {
                pairs: 2,
                taken: 5,
                latched: 1,
                bytes: 77,
                detail: detail.into(),
                ..Default::default()
            };
            let status = v1::GetStatusResponse { splice: "auto".into(), kernel_splice: Some(splice), ..runbook() };
            text(&status).lines().find(|line| line.starts_with("splice")).unwrap().to_owned()
        };
        assert_eq!(line(""), "splice: auto kernel_pairs=2 taken=5 latched=1 bytes=77");
        let without = "splice: auto kernel_pairs=2 taken=5 latched=1 bytes=77 (user space only: no CAP_BPF)";
        assert_eq!(line("no CAP_BPF"), without);
    }

    #[test]
    fn the_kernel_plane_follows() {
        let interface = |name: &str, mode: &str, error: &str| v1::InterfaceStatus {
            name: name.into(),
            mode: mode.into(),
            program_id: 57,
            error: error.into(),
            adopted: mode == "generic",
            driver: if mode == "generic" { "dummy".into() } else { String::new() },
            mode_reason: if mode == "generic" { "the driver has no XDP".into() } else { String::new() },
            ..v1::InterfaceStatus::default()
        };
        let mut kernel = v1::KernelPlaneStatus {
            active: true,
            interfaces: vec![interface("eth0", "native", ""), interface("eth1", "generic", "")],
            rules: 3,
            dropped_packets: 8,
            dropped_bytes: 480,
            ..v1::KernelPlaneStatus::default()
        };
        let lines = |kernel: &v1::KernelPlaneStatus| {
            let text = text(&v1::GetStatusResponse { kernel: Some(kernel.clone()), ..runbook() });
            text.lines().skip(6).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            lines(&kernel),
            [
                "kernel: on rules=3 dropped_packets=8 dropped_bytes=480",
                "eth0 xdp=native program=57",
                "eth1 xdp=generic program=57 adopted driver=dummy (the driver has no XDP)",
            ]
        );
        kernel.active = false;
        kernel.detail = "CAP_BPF is missing\n".into();
        kernel.interfaces = vec![interface("eth0", "", "program 12 is attached by somebody else")];
        assert_eq!(
            lines(&kernel),
            [
                "kernel: off rules=3 dropped_packets=8 dropped_bytes=480 (CAP_BPF is missing\\n)",
                "eth0 xdp=none (program 12 is attached by somebody else)",
            ]
        );
    }

    #[test]
    fn a_change_that_waits_is_shown() {
        let mut out = String::new();
        let pending =
            v1::PendingConfirmation { id: 7, confirm_by: Some(prost_types::Timestamp { seconds: 60, nanos: 0 }) };
        write_firewall(
            &mut out,
            &v1::FirewallStatus { rules: 3, bans: 1, pending: Some(pending), ..v1::FirewallStatus::default() },
        );
        assert_eq!(
            out,
            "firewall: rules=3 groups=0 bans=1\nchange 7 is taken back at 1970-01-01T00:01:00Z unless confirmed: \
             mcproxyctl firewall confirm 7\n"
        );
    }

    #[test]
    fn records_that_were_lost_have_a_line() {
        let lost =
            |dropped| v1::GetStatusResponse { access: Some(v1::AccessStatus { dropped, failed: 0 }), ..runbook() };
        assert_eq!(text(&lost(0)), text(&runbook()));
        assert_eq!(text(&lost(3)), text(&runbook()) + "access: dropped=3 failed=0\n");
    }

    #[test]
    fn http_has_its_line() {
        let count = |name: &str, count| v1::HttpCount { name: name.into(), count };
        let http = v1::HttpStatus {
            requests: 9,
            responses: vec![count("none", 1), count("1xx", 0), count("2xx", 8)],
            malformed: vec![count("http_host", 2), count("http_line", 3)],
            tunnels: 4,
            ..v1::HttpStatus::default()
        };
        let status = |http| v1::GetStatusResponse { http: Some(http), ..runbook() };
        assert_eq!(text(&status(http)), text(&runbook()) + "http: requests=9 none=1 2xx=8 tunnels=4 malformed=5\n");
        assert_eq!(text(&status(v1::HttpStatus::default())), text(&runbook()) + "http: requests=0\n");
    }

    #[test]
    fn memory_has_its_line() {
        let mut out = String::new();
        let memory = v1::MemoryStatus { used_bytes: 3 << 19, limit_bytes: 0, kernel_socket_bytes: 7 << 20 };
        write_memory(&mut out, &memory, 0);
        write_memory(&mut out, &v1::MemoryStatus { limit_bytes: 512 << 20, ..memory }, 4);
        assert_eq!(
            out,
            "memory: connections=1.5MiB kernel_sockets=7.0MiB\n\
             memory: connections=1.5MiB limit=512.0MiB kernel_sockets=7.0MiB accept_failures=4\n"
        );
    }

    #[test]
    fn uptimes_are_gos() {
        for (seconds, text) in
            [(0, "0s"), (10, "10s"), (60, "1m0s"), (3600, "1h0m0s"), (16_330, "4h32m10s"), (360_000, "100h0m0s")]
        {
            assert_eq!(uptime(seconds), text);
        }
    }
}
