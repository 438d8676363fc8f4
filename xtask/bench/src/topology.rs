//! The network namespaces of a run, and where client, proxy and backend stand in them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::Context;
use serde::Serialize;

use super::process::run;

/// All namespaces of the benchmark begin with this; any that exist when a run begins are left over.
const PREFIX: &str = "mcbench-";

/// Settings of every namespace. BBR's pacing timers, not the proxy, would limit loopback.
const SYSCTL: [(&str, &str); 7] = [
    ("net.ipv4.tcp_congestion_control", "cubic"),
    ("net.ipv4.ip_local_port_range", "10240 65535"),
    ("net.core.somaxconn", "65535"),
    ("net.ipv4.tcp_max_syn_backlog", "65535"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.tcp_max_tw_buckets", "20000"),
];

/// How client, proxy and backend are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Layout {
    /// All in one namespace, over loopback.
    Lo,
    /// Three namespaces joined by veth pairs; direct traffic is routed through the middle one.
    Veth,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lo => "lo",
            Self::Veth => "veth",
        })
    }
}

/// Namespaces that exist until this is dropped.
#[derive(Debug)]
pub(super) struct Topology {
    pub(super) layout: Layout,
    /// Where proxies listen.
    pub(super) listen: Ipv4Addr,
    pub(super) backend_ip: Ipv4Addr,
    namespaces: Vec<Namespace>,
}

impl Topology {
    pub(super) fn create(layout: Layout) -> anyhow::Result<Self> {
        match layout {
            Layout::Lo => Ok(Self {
                layout,
                listen: Ipv4Addr::LOCALHOST,
                backend_ip: Ipv4Addr::LOCALHOST,
                namespaces: vec![Namespace::create("lo")?],
            }),
            Layout::Veth => {
                let names = ["client", "proxy", "backend"];
                let topology = Self {
                    layout,
                    listen: Ipv4Addr::new(10, 77, 1, 2),
                    backend_ip: Ipv4Addr::new(10, 77, 2, 2),
                    namespaces: names.into_iter().map(Namespace::create).collect::<anyhow::Result<_>>()?,
                };
                topology.join()?;
                Ok(topology)
            }
        }
    }

    /// The client's namespace.
    pub(super) fn client(&self) -> &str {
        &self.namespaces[0].name
    }

    /// The proxy's namespace.
    pub(super) fn proxy(&self) -> &str {
        &self.namespaces[self.namespaces.len() / 2].name
    }

    /// The backend's namespace.
    pub(super) fn backend(&self) -> &str {
        &self.namespaces[self.namespaces.len() - 1].name
    }

    fn join(&self) -> anyhow::Result<()> {
        let (client, proxy, backend) = (self.client(), self.proxy(), self.backend());
        link((client, "eth0", "10.77.1.1/24"), (proxy, "eth0", "10.77.1.2/24"))?;
        link((proxy, "eth1", "10.77.2.1/24"), (backend, "eth0", "10.77.2.2/24"))?;
        run("ip", &["-n", client, "route", "add", "default", "via", "10.77.1.2"])?;
        run("ip", &["-n", backend, "route", "add", "default", "via", "10.77.2.1"])?;
        self.namespaces[1].sysctl(&[("net.ipv4.ip_forward", "1")])
    }
}

type End<'a> = (&'a str, &'a str, &'a str);

fn link(a: End<'_>, b: End<'_>) -> anyhow::Result<()> {
    run("ip", &["link", "add", a.1, "netns", a.0, "type", "veth", "peer", "name", b.1, "netns", b.0])?;
    for (netns, device, address) in [a, b] {
        run("ip", &["-n", netns, "addr", "add", address, "dev", device])?;
        run("ip", &["-n", netns, "link", "set", device, "up"])?;
    }
    Ok(())
}

/// The settings of every namespace, for the record.
pub(super) fn sysctl() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from(SYSCTL)
}

/// Removes what an earlier run left: the namespaces, and the processes inside them.
pub(super) fn sweep() -> anyhow::Result<()> {
    for line in run("ip", &["netns", "list"])?.lines() {
        let Some(name) = line.split_whitespace().next().filter(|name| name.starts_with(PREFIX)) else { continue };
        for pid in run("ip", &["netns", "pids", name])?.lines() {
            let pid = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw).context("ip netns pids")?;
            match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).context("stopping a process of an earlier run"),
            }
        }
        run("ip", &["netns", "del", name])?;
    }
    Ok(())
}

/// A network namespace that exists until this is dropped.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) name: String,
}

impl Namespace {
    pub(super) fn create(role: &str) -> anyhow::Result<Self> {
        let name = format!("{PREFIX}{role}");
        run("ip", &["netns", "add", &name])?;
        let namespace = Self { name };
        run("ip", &["-n", &namespace.name, "link", "set", "lo", "up"])?;
        namespace.sysctl(&SYSCTL)?;
        Ok(namespace)
    }

    pub(super) fn sysctl(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        let settings: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let netns = format!("--net=/run/netns/{}", self.name);
        let mut args = vec![netns.as_str(), "--", "sysctl", "-qw"];
        args.extend(settings.iter().map(String::as_str));
        run("nsenter", &args)?;
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run("ip", &["netns", "del", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}
