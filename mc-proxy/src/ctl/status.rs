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

/// As Go prints a duration of whole seconds: `4h32m10s`, `1m0s`, `10s`.
fn uptime(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

/// Writing to a `String` cannot fail, hence the discarded results here and above.
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
                writeln!(out, "{name} xdp={} program={}{adopted}", printable(mode), interface.program_id)
            }
        };
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
    fn the_kernel_plane_follows() {
        let interface = |name: &str, mode: &str, error: &str| v1::InterfaceStatus {
            name: name.into(),
            mode: mode.into(),
            program_id: 57,
            error: error.into(),
            adopted: mode == "generic",
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
                "eth1 xdp=generic program=57 adopted",
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
    fn uptimes_are_gos() {
        for (seconds, text) in
            [(0, "0s"), (10, "10s"), (60, "1m0s"), (3600, "1h0m0s"), (16_330, "4h32m10s"), (360_000, "100h0m0s")]
        {
            assert_eq!(uptime(seconds), text);
        }
    }
}
