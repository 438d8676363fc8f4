//! What the benchmarks need from Debian's packages.

pub(crate) use xtask::packages::find;
use xtask::packages::{NGINX_STREAM_MODULE, Need, install_lacking};

/// For a proxy of the L4 suite, by its name there; `None`: packet filters, which every full run has beside the proxies.
const NEEDS: [(Option<&str>, Need); 8] = [
    (Some("haproxy"), Need { package: "haproxy", evidence: "haproxy" }),
    (Some("haproxy-splice"), Need { package: "haproxy", evidence: "haproxy" }),
    (Some("nginx"), Need { package: "nginx", evidence: "nginx" }),
    (Some("nginx"), Need { package: "libnginx-mod-stream", evidence: NGINX_STREAM_MODULE }),
    (Some("sniproxy"), Need { package: "sniproxy", evidence: "sniproxy" }),
    (None, Need { package: "xdp-tools", evidence: "xdp-filter" }),
    (None, Need { package: "nftables", evidence: "nft" }),
    (None, Need { package: "ipset", evidence: "ipset" }),
];

/// What the firewall's benchmark needs: its peers, and what builds and runs its own programs.
const FIREWALL_NEEDS: [Need; 8] = [
    Need { package: "xdp-tools", evidence: "xdp-filter" },
    Need { package: "nftables", evidence: "nft" },
    Need { package: "ipset", evidence: "ipset" },
    Need { package: "iptables", evidence: "iptables" },
    Need { package: "ethtool", evidence: "ethtool" },
    Need { package: "util-linux", evidence: "setpriv" },
    Need { package: "clang", evidence: "clang" },
    Need { package: "libbpf-dev", evidence: "/usr/include/bpf/bpf_helpers.h" },
];

/// Installs what the wanted peers lack; all of them without names.
pub(crate) fn install_missing(wanted: Option<&[String]>) {
    let is_wanted = |peer: Option<&str>| match (wanted, peer) {
        (None, _) => true,
        (Some(names), Some(peer)) => names.iter().any(|name| name == peer),
        (Some(_), None) => false,
    };
    install_lacking(NEEDS.into_iter().filter_map(|(peer, need)| is_wanted(peer).then_some(need)));
}

/// Installs what the firewall's benchmark lacks.
pub(crate) fn install_for_firewall() {
    install_lacking(FIREWALL_NEEDS);
}
