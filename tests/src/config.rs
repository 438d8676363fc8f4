//! Pieces of TOML, and addresses to put into them.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::bpffs::Bpffs;

/// One `[[listeners]]` with routes from hostname to backend, and a default backend.
pub fn listener(addr: impl ToString, routes: &[(&str, SocketAddr)], default: Option<SocketAddr>) -> String {
    let mut toml = format!("\n[[listeners]]\naddr = \"{}\"\n", addr.to_string());
    if let Some(backend) = default {
        let _ = writeln!(toml, "[listeners.default]\nbackend = \"{backend}\"");
    }
    for (hostname, backend) in routes {
        let _ = writeln!(toml, "[[listeners.routes]]\nhostname = \"{hostname}\"\nbackend = \"{backend}\"");
    }
    toml
}

/// An address that no other test uses: the whole of 127.0.0.0/8 is local, and the port is below the range that the
/// kernel takes ports for outgoing connections from.
pub fn loopback() -> SocketAddr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let low = process::id().wrapping_mul(61).wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed)) % 0x00fe_0000;
    let [_, b, c, d] = low.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, b + 1, c, d), 4443))
}

/// `[xdp]` with `eth0`, which has to work, and pins that no other test sees.
pub fn xdp(bpffs: &Bpffs, scope: &str) -> String {
    format!(
        "\n[xdp]\ninterfaces = [\"eth0\"]\nrequired = true\nscope = \"{scope}\"\npin_path = \"{}\"\n",
        bpffs.pin_path().display()
    )
}
