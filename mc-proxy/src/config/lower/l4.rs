//! What passthrough routes and their listeners have beyond addresses.

use ipnet::IpNet;

use super::{
    super::{file::Given, size::Size},
    Lower, file, is_set,
};
use crate::{
    desired::{AcceptProxy, ProxyVersion},
    firewall::Subject,
    net::addr::BackendAddr,
    route::alpn,
};

/// `default`, `main` and `local`, which are the kernel's.
const KERNEL_TABLES: [u32; 3] = [253, 254, 255];

/// Below this no connection could be served.
const LEAST_MEMORY: u64 = 1 << 20;

impl Lower<'_, '_> {
    /// `proxy_protocol` and what belongs to it.
    pub(super) fn accept_proxy(&mut self, listener: &file::Listener) -> Option<AcceptProxy> {
        let given = listener.proxy_trusted.as_ref();
        let trusted = self.networks(given, "listeners.proxy_trusted");
        let is_listed = given.is_some_and(|given| !given.value.is_empty());
        let trust_any = is_set(&listener.proxy_trust_any);
        match &listener.proxy_protocol {
            Some(on) if on.value => {
                if !is_listed && !trust_any {
                    let text = "listeners.proxy_protocol = true with no proxy_trusted: nobody could connect; write \
                                proxy_trusted = [\"10.0.0.0/8\"] with the networks of your load balancers, or \
                                proxy_trust_any = true";
                    self.report.error(&on.at, text);
                }
                if let (Some(given), true, true) = (given, is_listed, trust_any) {
                    let text =
                        "listeners.proxy_trusted has no effect with proxy_trust_any = true; remove one of the two";
                    self.report.warn(&given.at, text);
                }
                Some(AcceptProxy { trusted, trust_any })
            }
            _ => {
                let listed = given.filter(|_| is_listed).map(|given| (&given.at, "proxy_trusted"));
                let any = listener.proxy_trust_any.as_ref().filter(|_| trust_any);
                for (at, key) in listed.into_iter().chain(any.map(|given| (&given.at, "proxy_trust_any"))) {
                    let text = format!("listeners.{key} has no effect without proxy_protocol = true");
                    self.report.warn(at, text);
                }
                None
            }
        }
    }

    /// Networks, canonical, sorted and distinct.
    pub(super) fn networks(&mut self, given: Option<&Given<Vec<Given<String>>>>, key: &str) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for cidr in given.map(|given| given.value.as_slice()).unwrap_or_default() {
            match Subject::cidr(&cidr.value) {
                Ok(Subject::Net(net)) => networks.push(net),
                Ok(Subject::Country(_)) => {}
                Err(error) => self.report.error(&cidr.at, format!("{key}: {error}")),
            }
        }
        networks.sort_unstable();
        networks.dedup();
        networks
    }

    /// Canonical; none after an error.
    pub(super) fn alpn(&mut self, given: Option<Given<Vec<Given<String>>>>) -> Option<Vec<String>> {
        let given = given.map(|given| given.value).unwrap_or_default();
        let count = given.len();
        if let Some(first) = given.first().filter(|_| count > alpn::MAX_NAMES) {
            let text = format!("listeners.routes.alpn has {count} names; {} is the most", alpn::MAX_NAMES);
            self.report.error(&first.at, text);
            return None;
        }
        let mut is_valid = true;
        for name in &given {
            if let Err(error) = alpn::check_name(&name.value) {
                is_valid = false;
                let text = format!(
                    "listeners.routes.alpn: {:?} {error}; write a name such as \"h2\" or \"http/1.1\"",
                    name.value
                );
                self.report.error(&name.at, text);
            }
        }
        is_valid.then(|| alpn::canonical(given.into_iter().map(|name| name.value).collect()))
    }

    pub(super) fn send_proxy(
        &mut self,
        on: &Option<Given<bool>>,
        version: Option<Given<String>>,
        path: &str,
    ) -> Option<ProxyVersion> {
        let version_at = version.as_ref().map(|version| version.at.clone());
        let versions = [("v2", ProxyVersion::V2), ("v1", ProxyVersion::V1)];
        let version = self.word(version, &format!("{path}.proxy_protocol_version"), &versions);
        if is_set(on) {
            return Some(version);
        }
        if let Some(at) = version_at {
            let text = format!("{path}.proxy_protocol_version has no effect without send_proxy_protocol = true");
            self.report.error(&at, text);
        }
        None
    }

    /// A Unix socket has no place for a client's address.
    pub(super) fn refuse_transparent_unix(
        &mut self,
        transparent: Option<&Given<bool>>,
        backends: Option<&[BackendAddr]>,
        path: &str,
    ) {
        let unix = backends.into_iter().flatten().find(|backend| matches!(backend, BackendAddr::Unix(_)));
        if let (Some(transparent), Some(unix)) = (transparent.filter(|given| given.value), unix) {
            let text = format!(
                "{path}.transparent = true with the backend \"{unix}\": a Unix socket shows no client address; write \
                 send_proxy_protocol = true instead"
            );
            self.report.error(&transparent.at, text);
        }
    }

    pub(super) fn routing_table(&mut self, given: Option<Given<i64>>, default: u32) -> u32 {
        let at = given.as_ref().map(|given| given.at.clone()).unwrap_or_default();
        let key = "proxy.transparent_table";
        let table = self.within(given, key, 1..=u32::MAX, default);
        if KERNEL_TABLES.contains(&table) {
            let text = format!("{key}: {table} is one of the kernel's own tables, 253 to 255; write {default}");
            self.report.error(&at, text);
        }
        table
    }

    pub(super) fn memory_limit(&mut self, given: Option<Given<Size>>) -> u64 {
        let Some(Given { value: Size(bytes), at }) = given else { return 0 };
        if (1..LEAST_MEMORY).contains(&bytes) {
            let text =
                format!("proxy.memory_limit: {bytes} bytes serve nobody; write \"1MiB\" or more, or 0 for no limit");
            self.report.error(&at, text);
        }
        bytes
    }
}
