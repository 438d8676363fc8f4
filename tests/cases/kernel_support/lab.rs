//! Namespaces joined by a veth pair, and a BPF file system of their own, for one test.

use std::{
    fs::File,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::kernel_support::{Privilege, needs};
use rustix::{
    mount::{MountFlags, UnmountFlags},
    thread::LinkNameSpaceType,
};

/// Removed with everything in it when dropped.
#[derive(Debug)]
pub(crate) struct Lab {
    edge: String,
    outside: String,
    bpffs: tempfile::TempDir,
}

/// Addresses of the two ends.
pub(crate) const EDGE: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];
pub(crate) const OUTSIDE: [&str; 2] = ["192.0.2.2", "2001:db8:2::2"];
/// The interfaces of the edge.
pub(crate) const INTERFACE: &str = "edge0";
#[allow(dead_code, reason = "each test file uses its own part")]
pub(crate) const SECOND: &str = "edge1.7";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Runs a test on a thread in the edge's namespace, as a daemon would run there.
pub(crate) fn run(test: impl FnOnce(&Lab) + Send) {
    if needs(Privilege::Root) {
        let lab = Lab::new();
        within(&lab.edge, || test(&lab));
    }
}

#[allow(dead_code, reason = "each test file uses its own part")]
impl Lab {
    fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |side: &str| format!("mcp-{}-{number}-{side}", std::process::id());
        let (edge, outside) = (name("edge"), name("out"));
        let bpffs = tempfile::tempdir().unwrap();
        rustix::mount::mount("bpf", bpffs.path(), "bpf", MountFlags::empty(), None).unwrap();
        let lab = Self { edge, outside, bpffs };
        ip(&format!("netns add {}", lab.edge));
        ip(&format!("netns add {}", lab.outside));
        lab.add_pair(INTERFACE);
        ip(&format!("-n {} link set lo up", lab.edge));
        lab
    }

    /// A veth pair with addresses; the other end is `out-…`.
    pub(crate) fn add_pair(&self, interface: &str) {
        let (edge, outside) = (&self.edge, &self.outside);
        ip(&format!("-n {edge} link add {interface} type veth peer name out0 netns {outside}"));
        for (space, end, addrs) in [(edge, interface, EDGE), (outside, "out0", OUTSIDE)] {
            ip(&format!("-n {space} addr add {}/24 dev {end}", addrs[0]));
            ip(&format!("-n {space} -6 addr add {}/64 dev {end} nodad", addrs[1]));
            ip(&format!("-n {space} link set {end} up"));
        }
    }

    /// A pair without addresses.
    pub(crate) fn add_second(&self) {
        ip(&format!("-n {} link add {SECOND} type veth peer name out1 netns {}", self.edge, self.outside));
        ip(&format!("-n {} link set {SECOND} up", self.edge));
    }

    pub(crate) fn edge(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.edge));
    }

    /// Of both ends of the first pair.
    pub(crate) fn set_mtu(&self, mtu: u32) {
        ip(&format!("-n {} link set out0 mtu {mtu}", self.outside));
        self.edge(&format!("link set {INTERFACE} mtu {mtu}"));
    }

    pub(crate) fn pin_path(&self) -> PathBuf {
        self.bpffs.path().join("mc-proxy")
    }

    pub(crate) fn bpffs(&self) -> &Path {
        self.bpffs.path()
    }

    /// A datagram socket outside and one on the edge.
    pub(crate) fn sockets(&self, family: usize, port: u16) -> (UdpSocket, UdpSocket, SocketAddr) {
        let to = SocketAddr::new(EDGE[family].parse().unwrap(), port);
        let receiver = within(&self.edge, || UdpSocket::bind(to).unwrap());
        let sender = within(&self.outside, || UdpSocket::bind((OUTSIDE[family], 0)).unwrap());
        (sender, receiver, to)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for space in [&self.edge, &self.outside] {
            let _ = Command::new("ip").args(["netns", "delete", space]).status();
        }
        let _ = rustix::mount::unmount(self.bpffs.path(), UnmountFlags::DETACH);
    }
}

fn within<T: Send>(space: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(Path::new("/run/netns").join(space)).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&file),
                Some(LinkNameSpaceType::Network),
            )
            .unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
