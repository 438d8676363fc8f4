//! Values to store.

use std::{collections::BTreeSet, path::PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use crate::{
    config::Splice,
    desired::{
        AcceptProxy, BackendProtocol, Desired, L7Policy, L7PolicyKind, Listener, Mode, Protocol, ProxyVersion, Route,
        RouteKey, Target,
    },
    firewall::{Action, Expiry, Rule, RuleKey, RuleScope, Subject},
    net::addr::BackendAddr,
    route::{Pattern, alpn},
    store::Change,
};

pub(super) fn block(subject: &str) -> Rule {
    Rule::block(subject.parse().unwrap())
}

pub(super) fn allow(subject: &str) -> Rule {
    Rule::permanent(Action::Allow, subject.parse().unwrap()).unwrap()
}

pub(super) fn pattern(text: &str) -> Pattern {
    text.parse().unwrap()
}

pub(super) fn route(hostname: &str, backend: &str) -> Route {
    Route { hostname: pattern(hostname), alpn: Vec::new(), target: Target::passthrough(backend.parse().unwrap()) }
}

/// The key of the route for any client.
pub(super) fn key(hostname: &str) -> RouteKey {
    pattern(hostname).into()
}

pub(super) fn policy(kind: L7PolicyKind, value: &str) -> L7Policy {
    L7Policy { kind, value: value.to_owned(), shadow: false }
}

/// `count` different addresses.
pub(super) fn rules(count: u32) -> Vec<Rule> {
    let net = |n: u32| Ipv4Net::from(std::net::Ipv4Addr::from(0x0a00_0000 + n));
    (0..count).map(|n| Rule::block(Subject::Net(net(n).into()))).collect()
}

prop_compose! {
    pub(super) fn desired()(
        listeners in prop::collection::btree_map(1_u16.., listener(), 0..4),
        rules in prop::collection::hash_set(rule(), 0..30),
    ) -> Desired {
        let addr = |port: u16, listener: Listener| Listener { addr: format!(":{port}").parse().unwrap(), ..listener };
        Desired {
            listeners: listeners.into_iter().map(|(port, listener)| addr(port, listener)).collect(),
            rules: rules.into_iter().collect(),
        }
    }
}

prop_compose! {
    fn listener()(
        protocol in prop::sample::select(vec![Protocol::Tls, Protocol::Tcp, Protocol::HttpRedirect]),
        max_connections in 0..=i64::MAX as u64,
        max_connections_per_source in 0..=i64::MAX as u64,
        proxy in prop::option::of(accept_proxy()),
        default in prop::option::of(target()),
        hostnames in prop::collection::hash_set("(\\*\\.)?[a-z0-9_-]{1,20}(\\.[a-z]{1,10}){1,3}", 0..5),
        alpn in prop::collection::vec("|(h2|http/1\\.1|[!-+./-~]{1,9})(,[a-z]{1,9}){0,2}", 5),
        targets in prop::collection::vec(target(), 10),
    ) -> Listener {
        // Each hostname twice, so that some differ in ALPN alone.
        let keys = hostnames.iter().zip(&alpn).flat_map(|(text, names)| {
            let alpn = alpn::parse_list(names).unwrap();
            [RouteKey { hostname: pattern(text), alpn }, key(text)]
        });
        // Without a default there is nothing for "tcp", and with one nothing else.
        let protocol = if default.is_none() && protocol == Protocol::Tcp { Protocol::Tls } else { protocol };
        let default = default.filter(|_| protocol != Protocol::HttpRedirect);
        let keys = keys.collect::<BTreeSet<_>>();
        let routes = keys.into_iter().rev().zip(targets).filter(|_| protocol == Protocol::Tls);
        Listener {
            addr: ":1".parse().unwrap(),
            protocol,
            max_connections,
            max_connections_per_source,
            proxy,
            default,
            routes: routes.map(|(RouteKey { hostname, alpn }, target)| Route { hostname, alpn, target }).collect(),
        }
    }
}

prop_compose! {
    fn accept_proxy()(
        nets in prop::collection::btree_set((any::<u32>(), 0_u8..=32), 0..4),
        trust_any: bool,
    ) -> AcceptProxy {
        let net = |(address, length): (u32, u8)| Ipv4Net::new(address.into(), length).unwrap().trunc().into();
        let trusted = nets.into_iter().map(net).collect::<BTreeSet<IpNet>>().into_iter().collect::<Vec<_>>();
        AcceptProxy { trust_any: trust_any || trusted.is_empty(), trusted }
    }
}

prop_compose! {
    fn target()(
        backends in prop::collection::vec(backend(), 1..4),
        mode in prop::sample::select(vec![Mode::L4, Mode::L7]),
        tls_cert in prop::option::of("/\\PC{0,20}"),
        tls_key in prop::option::of("/\\PC{0,20}"),
        backend_tls: bool,
        (backend_ca, backend_server_name, backend_insecure, backend_protocol) in (
            prop::option::of("/\\PC{0,20}"),
            prop::option::of("[a-z0-9_-]{1,20}(\\.[a-z]{1,10}){1,3}"),
            any::<bool>(),
            prop::sample::select(vec![BackendProtocol::Auto, BackendProtocol::Http1, BackendProtocol::H2]),
        ),
        send_proxy in prop::option::of(prop::sample::select(vec![ProxyVersion::V1, ProxyVersion::V2])),
        transparent: bool,
        splice in prop::option::of(prop::sample::select(vec![Splice::Auto, Splice::Sockmap, Splice::Userspace])),
        policies in prop::collection::vec((any::<bool>(), "\\PC{1,30}"), 0..4),
    ) -> Target {
        let kind = |is_agent| if is_agent { L7PolicyKind::BlockUserAgent } else { L7PolicyKind::RequireHeader };
        let transparent = transparent && !backends.iter().any(|backend| matches!(backend, BackendAddr::Unix(_)));
        Target {
            backends,
            mode,
            tls_cert: tls_cert.map(Into::into),
            tls_key: tls_key.map(Into::into),
            backend_tls,
            backend_ca: backend_ca.map(PathBuf::from),
            backend_server_name: backend_server_name.map(|name: String| name.parse().unwrap()),
            backend_insecure,
            backend_protocol,
            send_proxy,
            transparent,
            splice,
            l7_policies: policies.iter().map(|(is_agent, value)| policy(kind(*is_agent), value)).collect(),
        }
    }
}

fn backend() -> impl Strategy<Value = BackendAddr> {
    prop_oneof![
        (any::<std::net::IpAddr>(), 1_u16..).prop_map(|(ip, port)| BackendAddr::Ip((ip.to_canonical(), port).into())),
        ("[a-z]{1,10}(\\.[A-Za-z]{1,10}){0,2}", 1_u16..)
            .prop_map(|(host, port)| BackendAddr::Name { host: host.into(), port }),
        "/[a-z /']{1,40}".prop_map(|path| BackendAddr::Unix(path.into())),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let net = prop_oneof![
        (any::<std::net::Ipv4Addr>(), 0_u8..=32)
            .prop_map(|(addr, length)| IpNet::from(Ipv4Net::new(addr, length).unwrap().trunc())),
        (any::<std::net::Ipv6Addr>(), 0_u8..=128)
            .prop_map(|(addr, length)| IpNet::from(Ipv6Net::new(addr, length).unwrap().trunc())),
    ];
    prop_oneof![
        // Through the text: folding of mapped addresses is the parser's.
        (net, any::<bool>()).prop_map(|(net, is_allow)| {
            let action = if is_allow { Action::Allow } else { Action::Block };
            Rule::permanent(action, net.to_string().parse().unwrap()).unwrap()
        }),
        "[A-Z]{2}".prop_map(|code| block(&code)),
    ]
}

prop_compose! {
    /// About few rules, so that changes meet.
    pub(super) fn change()(
        group in prop::sample::select(vec!["default", "auto/x", "spamhaus", "a"]),
        action in prop::sample::select(Action::ALL.to_vec()),
        subject in prop::sample::select(vec!["0.0.0.0/0", "192.0.2.1", "192.0.2.0/24", "::/0", "2001:db8::1", "2001:db8::/47", "RU", "KP"]),
        scope in prop::sample::select(vec![RuleScope::Default, RuleScope::Host, RuleScope::Listener(443), RuleScope::Listener(65_535)]),
        expires_at in prop::option::of(prop_oneof![0_u64..4_000, Just(u64::MAX)]),
        comment in prop::option::of("[^\\p{Cc}]{0,40}"),
        is_put: bool,
    ) -> Change {
        let subject: Subject = subject.parse().unwrap();
        let action = if matches!(subject, Subject::Country(_)) { Action::Block } else { action };
        let key = RuleKey::new(group.parse().unwrap(), action, subject, scope).unwrap();
        let rule = Rule { key, expires_at: expires_at.map(Expiry::from_millis) };
        if is_put { Change::Put(rule, comment) } else { Change::Remove(key) }
    }
}
