//! A small internet in network namespaces.
//!
//! ```text
//!   client   198.51.100.10 ──┐
//!                            ├── internet (routes) ── eth0 192.0.2.10  edge
//!   attacker 203.0.113.50  ──┘
//! ```
//! Every leaf has IPv6 as well. Threads enter a namespace by `setns` and never by `ip netns exec`, which would hide
//! the BPF file system. Sockets stay in the namespace that they were made in, whichever thread uses them.

use std::{
    fs::{self, File},
    io::Write as _,
    net::IpAddr,
    os::fd::AsFd as _,
    panic,
    path::Path,
    process::{self, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const DIRECTORY: &str = "/run/netns";
const PREFIX: &str = "mcp";

/// Client, attacker and edge, joined by a router.
#[derive(Debug)]
pub struct Topology {
    /// The host under attack: the daemon runs here.
    pub edge: Leaf,
    /// Whoever should be served.
    pub client: Leaf,
    /// Whoever should not.
    pub attacker: Leaf,
    internet: Namespace,
}

/// A host with one interface, `eth0`.
#[derive(Debug)]
pub struct Leaf {
    /// Where its processes live.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub v4: IpAddr,
    /// Its IPv6 address.
    pub v6: IpAddr,
}

/// A network namespace, removed when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Named>);

#[derive(Debug)]
struct Named {
    name: String,
    file: File,
}

impl Topology {
    /// Makes the namespaces and waits until the edge is reachable from everywhere.
    pub fn new() -> Result<Self> {
        remove_leftovers();
        let internet = Namespace::new("internet")?;
        let topology = Self {
            edge: Leaf::new(&internet, "edge", "192.0.2", "10", 1)?,
            client: Leaf::new(&internet, "client", "198.51.100", "10", 2)?,
            attacker: Leaf::new(&internet, "attacker", "203.0.113", "50", 3)?,
            internet: internet.clone(),
        };
        internet.run(|| -> Result<()> {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("turning on IPv4 forwarding")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").context("turning on IPv6 forwarding")
        })??;
        Ok(topology)
    }
}

impl Topology {
    /// Removes the edge's interface.
    pub fn unplug_edge(&self) -> Result<()> {
        self.edge.namespace.ip("link del eth0\n")
    }

    /// Makes it anew, with the same addresses.
    pub fn plug_edge(&self) -> Result<()> {
        self.edge.plug(&self.internet, "edge", "192.0.2", 1)
    }

    /// Lets the router send what is for an address's /64 to the attacker.
    pub fn route_to_attacker(&self, addr: IpAddr) -> Result<()> {
        self.internet.ip(&format!("route replace {addr}/128 via {} dev attacker\n", self.attacker.v6))
    }
}

impl Leaf {
    fn new(internet: &Namespace, role: &str, v4_net: &str, host: &str, v6_net: u8) -> Result<Self> {
        let leaf = Self {
            namespace: Namespace::new(role)?,
            v4: format!("{v4_net}.{host}").parse()?,
            v6: format!("2001:db8:0:{v6_net}::{host}").parse()?,
        };
        leaf.plug(internet, role, v4_net, v6_net)?;
        Ok(leaf)
    }

    /// Makes `eth0`, with the router at the other end.
    fn plug(&self, internet: &Namespace, role: &str, v4_net: &str, v6_net: u8) -> Result<()> {
        let Self { namespace, v4, v6 } = self;
        internet.ip(&format!(
            "link add {role} type veth peer name eth0 netns {leaf}\n\
             addr add {v4_net}.1/24 dev {role}\n\
             addr add 2001:db8:0:{v6_net}::1/64 dev {role} nodad\n\
             link set {role} up\n",
            leaf = namespace.name(),
        ))?;
        namespace.ip(&format!(
            "addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {v4_net}.1\n\
             route add default via 2001:db8:0:{v6_net}::1\n"
        ))
    }

    /// Gives `eth0` one more address, of either family, which sockets have to ask for.
    pub fn add(&self, addr: IpAddr) -> Result<()> {
        // A deprecated address is never chosen as a source; an IPv4 one is not, being the second of its subnet.
        let rest = if addr.is_ipv4() { "/24 dev eth0" } else { "/64 dev eth0 nodad preferred_lft 0" };
        self.namespace.ip(&format!("addr add {addr}{rest}\n"))
    }

    /// Gives `eth0` one more IPv4 address.
    pub fn add_v4(&self, addr: &str) -> Result<()> {
        self.namespace.ip(&format!("addr add {addr} dev eth0\n"))
    }
}

impl Namespace {
    /// An empty namespace with its loopback up. The name is unique: it carries the process id.
    pub fn new(role: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}-{}-{}-{role}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name])?;
        let file = File::open(Path::new(DIRECTORY).join(&name)).with_context(|| format!("opening namespace {name}"));
        let file = match file {
            Ok(file) => file,
            Err(error) => {
                remove(&name);
                return Err(error);
            }
        };
        let namespace = Self(Arc::new(Named { name, file }));
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs `work` on a thread inside and returns what it returns. Panics go on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// Starts a thread inside.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> JoinHandle<Result<T>> {
        let namespace = self.clone();
        thread::spawn(move || {
            namespace.enter()?;
            work()
        })
    }

    /// Runs lines of `ip -batch` inside.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.0.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("running `ip`")?;
        child.stdin.take().context("`ip` has no input")?.write_all(batch.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip -n {}: {}\n{batch}", self.0.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("entering namespace {}", self.0.name))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Names of the namespaces that this process has made and not yet removed.
pub fn own_namespaces() -> Vec<String> {
    let own = format!("{PREFIX}-{}-", process::id());
    names().into_iter().filter(|name| name.starts_with(&own)).collect()
}

/// A test that was killed outright could not clean up; the next one does it.
fn remove_leftovers() {
    for name in names() {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')?.split('-').next());
        let is_dead = pid
            .and_then(|pid| pid.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
        if is_dead {
            remove(&name);
        }
    }
}

fn names() -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn remove(name: &str) {
    if let Err(error) = ip(&["netns", "del", name]) {
        eprintln!("namespace {name} stays: {error:#}");
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("running `ip`")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
