//! The wire that packets are sent over: a veth pair between a generator's and a receiver's namespace.
//!
//! The receiver's end polls (NAPI), as a network card's driver does: GRO is on there. Answers die in the generator's
//! driver, so that only the receiver's work is to be seen.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use anyhow::Context;
use rustix::process::Pid;
use serde::Deserialize;

use super::super::load::pin;
use super::super::process::run;
use super::super::topology::Namespace;

/// The generator's end, and the receiver's: not called as anything in the machine's own namespace.
pub(super) const GENERATOR_DEVICE: &str = "mcbench-g";
pub(super) const DEVICE: &str = "mcbench-r";

const GENERATOR_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const RECEIVER_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Addresses of the generator's from which single packets come that are answered.
pub(super) const CALLERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 3), Ipv4Addr::new(10, 77, 0, 4)];
const GENERATOR_IP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
const RECEIVER_IP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);

/// No state for a SYN, so that a flood does not change what the next one costs.
const RECEIVER_SYSCTL: [(&str, &str); 2] = [("net.ipv4.tcp_syncookies", "2"), ("net.ipv6.conf.all.accept_dad", "0")];

/// Both namespaces and the pair between them, until dropped.
#[derive(Debug)]
pub(super) struct Wire {
    generator: Namespace,
    receiver: Namespace,
    pub(super) generator_mac: [u8; 6],
    pub(super) receiver_mac: [u8; 6],
}

impl Wire {
    pub(super) fn create() -> anyhow::Result<Self> {
        let (generator, receiver) = (Namespace::create("generator")?, Namespace::create("receiver")?);
        receiver.sysctl(&RECEIVER_SYSCTL)?;
        let (from, to) = (generator.name.as_str(), receiver.name.as_str());
        let queues = ["numtxqueues", "1", "numrxqueues", "1"];
        let mut link = vec!["link", "add", GENERATOR_DEVICE];
        link.extend(queues);
        link.extend(["netns", from, "type", "veth", "peer", "name", DEVICE]);
        link.extend(queues);
        link.extend(["netns", to]);
        run("ip", &link)?;
        let addresses: [(&str, &str, String, &[&str]); 6] = [
            (from, GENERATOR_DEVICE, format!("{GENERATOR_IP}/24"), &[]),
            (from, GENERATOR_DEVICE, format!("{}/24", CALLERS[0]), &[]),
            (from, GENERATOR_DEVICE, format!("{}/24", CALLERS[1]), &[]),
            (from, GENERATOR_DEVICE, format!("{GENERATOR_IP6}/64"), &["nodad"]),
            (to, DEVICE, format!("{RECEIVER_IP}/24"), &[]),
            (to, DEVICE, format!("{RECEIVER_IP6}/64"), &["nodad"]),
        ];
        for (netns, device, address, more) in &addresses {
            let mut add = vec!["-n", netns, "addr", "add", address, "dev", device];
            add.extend(*more);
            run("ip", &add)?;
        }
        for (netns, device) in [(from, GENERATOR_DEVICE), (to, DEVICE)] {
            run("ip", &["-n", netns, "link", "set", device, "up"])?;
        }
        run("nsenter", &[&format!("--net=/run/netns/{to}"), "--", "ethtool", "-K", DEVICE, "gro", "on"])?;

        let (generator_mac, receiver_mac) = (mac(from, GENERATOR_DEVICE)?, mac(to, DEVICE)?);
        let wire = Self { generator, receiver, generator_mac, receiver_mac };
        wire.route()?;
        Ok(wire)
    }

    /// The way back to all sources, and no neighbour discovery in between.
    fn route(&self) -> anyhow::Result<()> {
        let (from, to) = (self.generator(), self.receiver());
        let mac = |mac: &[u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        let (generator_mac, receiver_mac) = (mac(&self.generator_mac), mac(&self.receiver_mac));
        for (netns, ip, mac, device) in [
            (to, GENERATOR_IP.to_string(), &generator_mac, DEVICE),
            (to, CALLERS[0].to_string(), &generator_mac, DEVICE),
            (to, CALLERS[1].to_string(), &generator_mac, DEVICE),
            (to, GENERATOR_IP6.to_string(), &generator_mac, DEVICE),
            (from, RECEIVER_IP.to_string(), &receiver_mac, GENERATOR_DEVICE),
            (from, RECEIVER_IP6.to_string(), &receiver_mac, GENERATOR_DEVICE),
        ] {
            let neighbour = ["-n", netns, "neigh", "replace", &ip, "lladdr", mac, "dev", device, "nud", "permanent"];
            run("ip", &neighbour)?;
        }
        run("ip", &["-n", to, "route", "add", "default", "via", &GENERATOR_IP.to_string()])?;
        run("ip", &["-n", to, "-6", "route", "add", "default", "via", &GENERATOR_IP6.to_string(), "dev", DEVICE])?;
        Ok(())
    }

    pub(super) fn generator(&self) -> &str {
        &self.generator.name
    }

    pub(super) fn receiver(&self) -> &str {
        &self.receiver.name
    }

    /// The receiver's address.
    pub(super) fn receiver_ip(is_ipv6: bool) -> IpAddr {
        if is_ipv6 { RECEIVER_IP6.into() } else { RECEIVER_IP.into() }
    }

    /// Moves the receiver's polling to a kernel thread on that CPU, whose id it returns, or back.
    pub(super) fn poll_on(&self, cpu: Option<usize>) -> anyhow::Result<Option<i32>> {
        // The sysfs that `ip netns exec` mounts is the namespace's.
        let set = format!("echo {} > /sys/class/net/{DEVICE}/threaded", u8::from(cpu.is_some()));
        run("ip", &["netns", "exec", self.receiver(), "sh", "-c", &set])?;
        let Some(cpu) = cpu else { return Ok(None) };
        let thread = polling_thread()?;
        pin(Pid::from_raw(thread), cpu)?;
        run("chrt", &["-f", "-p", "1", &thread.to_string()])?;
        Ok(Some(thread))
    }

    /// The XDP program on the receiver's interface.
    pub(super) fn program(&self) -> anyhow::Result<Option<u32>> {
        let printed = run("ip", &["-n", self.receiver(), "-j", "link", "show", DEVICE])?;
        let [link]: [Link; 1] = serde_json::from_str(&printed).context("ip -j link")?;
        Ok(link.xdp.and_then(|xdp| xdp.prog).map(|program| program.id))
    }
}

/// What has reached the receiver, at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) at: Instant,
    /// Packets that came to the driver.
    pub(super) received: u64,
    /// TCP segments that came to the stack.
    pub(super) passed: u64,
}

impl Counted {
    /// Reads the counters that a process in the receiver's namespace sees: without a process of one's own, it takes no time.
    pub(super) fn now(pid: i32) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/net/{name}");
            fs::read_to_string(&path).with_context(|| format!("reading {path}"))
        };
        let received = received(&read("dev")?).context("no counters of the receiver's interface")?;
        let passed = segments(&read("snmp")?).context("no counter of TCP segments")?;
        Ok(Self { at: Instant::now(), received, passed })
    }
}

#[derive(Debug, Deserialize)]
struct Link {
    #[serde(default)]
    address: String,
    xdp: Option<Attached>,
}

#[derive(Debug, Deserialize)]
struct Attached {
    prog: Option<AttachedProgram>,
}

#[derive(Debug, Deserialize)]
struct AttachedProgram {
    id: u32,
}

fn mac(netns: &str, device: &str) -> anyhow::Result<[u8; 6]> {
    let printed = run("ip", &["-n", netns, "-j", "link", "show", device])?;
    let [link]: [Link; 1] = serde_json::from_str(&printed).context("ip -j link")?;
    let mut mac = [0; 6];
    for (place, byte) in mac.iter_mut().zip(link.address.split(':')) {
        *place = u8::from_str_radix(byte, 16).with_context(|| format!("the address {:?}", link.address))?;
    }
    Ok(mac)
}

/// Packets received, in /proc/net/dev: bytes come first.
fn received(dev: &str) -> Option<u64> {
    let counters = dev.lines().find_map(|line| line.trim_start().strip_prefix(DEVICE)?.strip_prefix(':'))?;
    counters.split_whitespace().nth(1)?.parse().ok()
}

/// TCP has the same counter for both families.
fn segments(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|name| name == "InSegs")?;
    values.split_whitespace().nth(at)?.parse().ok()
}

/// The newest thread that polls a device of this name.
fn polling_thread() -> anyhow::Result<i32> {
    let name = format!("napi/{DEVICE}");
    let mut found = None;
    for entry in fs::read_dir("/proc").context("/proc")? {
        let Some(pid) = entry.context("/proc")?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // Processes end while one looks. The kernel cuts names at 15 characters.
        let Ok(comm) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
        if comm.starts_with(&name[..name.len().min(14)]) {
            found = found.max(Some(pid));
        }
    }
    found.with_context(|| format!("no thread polls {DEVICE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_found_by_name() {
        let snmp = "Ip: Forwarding\nIp: 1\nTcp: RtoMin InSegs OutSegs\nTcp: 200 4711 3\nUdp: InDatagrams\nUdp: 1\n";
        assert_eq!(segments(snmp), Some(4711));
        assert_eq!(segments("Ip: 1\n"), None);
    }

    #[test]
    fn packets_are_found_by_interface() {
        let dev = "Inter-|   Receive\n face |bytes    packets errs\n    lo: 1 2 3\nmcbench-r: 600 10 0 0\n";
        assert_eq!(received(dev), Some(10));
        assert_eq!(received("    lo: 1 2 3\n"), None);
    }

    #[test]
    fn links_are_read_as_ip_prints_them() {
        let printed = r#"[{"ifname":"eth0","address":"02:00:00:00:00:01","xdp":{"mode":1,"prog":{"id":7,"jited":1}}}]"#;
        let [link]: [Link; 1] = serde_json::from_str(printed).unwrap();
        assert_eq!(link.xdp.and_then(|xdp| xdp.prog).map(|program| program.id), Some(7));
    }
}
