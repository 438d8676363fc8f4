//! An edge under attack: namespaces, a backend, and an installation with the kernel plane on the edge's interface.

use std::{
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::{Domain, Socket, Type};

use crate::{
    admin::Admin,
    backend::Backend,
    bpffs::Bpffs,
    client::{End, ask},
    config::{listener, xdp},
    daemon::Installation,
    hello::Hello,
    privilege::{can_run, missing_for_kernel_plane},
    topology::{Leaf, Topology},
    wait::{SOON, until},
};

/// A port that no listener of the daemon has.
pub const PROBE_PORT: u16 = 9_999;

/// Fields are dropped in this order: the namespaces go last.
#[derive(Debug)]
pub struct Site {
    /// The daemon's files; it listens on port 443 and knows `app.example.com`.
    pub edge: Installation,
    /// Where that leads.
    pub backend: Backend,
    /// Where the daemon pins.
    pub bpffs: Bpffs,
    /// Who there is.
    pub net: Topology,
}

impl Site {
    /// With more TOML before `[xdp]`, which comes last. `None` when the test is to be skipped.
    pub fn for_test(test: &str, scope: &str, more: &str) -> Result<Option<Self>> {
        if !can_run(test, missing_for_kernel_plane())? {
            return Ok(None);
        }
        let net = Topology::new()?;
        let bpffs = Bpffs::mount()?;
        let (backend, _) = Backend::named_in(&net.edge.namespace, "app")?;
        let edge = Installation::without_config()?.within(&net.edge.namespace);
        let site = Self { edge, backend, bpffs, net };
        site.configure(scope, more)?;
        Ok(Some(site))
    }

    /// Writes the configuration anew.
    pub fn configure(&self, scope: &str, more: &str) -> Result<()> {
        let listener = listener(":443", &[("app.example.com", self.backend.addr())], None);
        self.edge.configure(&format!("{more}{listener}{}", xdp(&self.bpffs, scope)))
    }

    /// Writes the configuration anew, with more lines in `[xdp]`.
    pub fn configure_xdp(&self, scope: &str, more: &str) -> Result<()> {
        let listener = listener(":443", &[("app.example.com", self.backend.addr())], None);
        self.edge.configure(&format!("{listener}{}{more}", xdp(&self.bpffs, scope)))
    }

    /// The edge over IPv4.
    pub fn v4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.net.edge.v4, port)
    }

    /// The edge over IPv6.
    pub fn v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.net.edge.v6, port)
    }

    /// A socket of the edge, for both families, that is no listener of the daemon.
    pub fn probe(&self) -> Result<UdpSocket> {
        let socket = self.net.edge.namespace.run(|| UdpSocket::bind(("::", PROBE_PORT)))??;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(socket)
    }

    /// Whether a datagram of `source`, an address of `leaf`, reaches the probe; see [`Self::arrives`].
    pub fn passes(&self, inbox: &UdpSocket, leaf: &Leaf, source: IpAddr) -> Result<bool> {
        let outbox = leaf.namespace.run(|| UdpSocket::bind((source, 0)))??;
        self.arrives(inbox, &outbox, &self.fence(source.is_ipv6())?)
    }

    /// A socket of the client, whom nothing blocks.
    pub fn fence(&self, is_ipv6: bool) -> Result<UdpSocket> {
        let client = &self.net.client;
        let source = if is_ipv6 { client.v6 } else { client.v4 };
        Ok(client.namespace.run(|| UdpSocket::bind((source, 0)))??)
    }

    /// Whether a datagram reaches the probe. One of the fence, of the same family, follows it, and shows that it would
    /// have come.
    pub fn arrives(&self, inbox: &UdpSocket, outbox: &UdpSocket, fence: &UdpSocket) -> Result<bool> {
        let to = if outbox.local_addr()?.is_ipv4() { self.v4(PROBE_PORT) } else { self.v6(PROBE_PORT) };
        outbox.send_to(b"probe", to)?;
        fence.send_to(b"fence", to)?;
        let mut buffer = [0; 64];
        let mut has_passed = false;
        loop {
            let (length, _) = inbox.recv_from(&mut buffer).context("the fence did not arrive")?;
            match &buffer[..length] {
                b"fence" => return Ok(has_passed),
                b"probe" => has_passed = true,
                other => bail!("{other:?} arrived"),
            }
        }
    }

    /// An error unless `leaf` gets the backend's answer.
    pub fn serve(&self, leaf: &Leaf, to: SocketAddr) -> Result<()> {
        let end = leaf.namespace.run(|| ask(to, &Hello::to("app.example.com").bytes()))??;
        ensure!(end == End::Closed(b"app\n".to_vec()), "{end:?}");
        Ok(())
    }

    /// Whether a SYN of `leaf` to a port is dropped in the kernel: `Some(reason)`, as the counters have it.
    pub fn drop_of_syn(&self, admin: &Admin, leaf: &Leaf, to: SocketAddr) -> Result<Option<String>> {
        let before = admin.status()?.kernel.unwrap_or_default();
        let accepted = admin.accepted()?;
        let knock = leaf.namespace.run(|| begin_connect(to))??;
        let mut reason = None;
        until("a SYN to be accepted or dropped", SOON, || {
            let after = admin.status()?.kernel.unwrap_or_default();
            if after.dropped_packets > before.dropped_packets {
                let risen = after.counters.iter().find(|now| {
                    let then = before.counters.iter().find(|then| then.reason == now.reason);
                    is_drop(&now.reason) && now.packets > then.map_or(0, |then| then.packets)
                });
                reason = Some(risen.context("no reason was counted")?.reason.clone());
                return Ok(true);
            }
            Ok(admin.accepted()? > accepted)
        })?;
        drop(knock);
        Ok(reason)
    }
}

/// Whether packets that are counted under a reason are dropped.
pub fn is_drop(reason: &str) -> bool {
    matches!(reason, "blocked_address" | "blocked_prefix" | "banned" | "blocked_country" | "rate_limited")
}

/// Sends a SYN and does not wait for the answer.
pub fn begin_connect(to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Ok(socket.into()),
        Ok(()) => Ok(socket.into()),
        Err(error) => Err(error).context("connecting"),
    }
}
