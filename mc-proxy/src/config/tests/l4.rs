//! Passthrough routes and their listeners, with every feature available.

use super::*;
use crate::desired::{AcceptProxy, ProxyVersion};

const LISTENER: &str = "[[listeners]]\naddr = \":443\"\n";

fn parse_all(text: &str) -> Result<Loaded, ConfigErrors> {
    parse_with(&format!("{DATABASE}{text}"), "f.toml", NO_ENV, &[])
}

fn valid(text: &str) -> Loaded {
    parse_all(text).unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

fn route(keys: &str) -> String {
    format!("{LISTENER}[[listeners.routes]]\nhostname = \"a.b\"\nbackend = \"a:1\"\n{keys}")
}

#[test]
fn a_listener_behind_load_balancers() {
    let Loaded { config, warnings } = valid(
        r#"
        [[listeners]]
        addr = ":443"
        proxy_protocol = true
        proxy_trusted = ["192.0.2.0/24", "10.0.0.0/8", "2001:db8::/32", "10.0.0.0/8"]
        max_connections_per_source = 100
        [[listeners.routes]]
        hostname = "a.b"
        alpn = ["http/1.1", "h2", "h2"]
        backend = "a:1"
        send_proxy_protocol = true
        transparent = true
        splice = "sockmap"
        [[listeners.routes]]
        hostname = "A.b."
        alpn = ["acme-tls/1"]
        backend = "a:1"
        send_proxy_protocol = true
        proxy_protocol_version = "v1"
        [[listeners.routes]]
        hostname = "a.b"
        backend = "a:1"
        [[listeners]]
        addr = ":444"
        proxy_protocol = true
        proxy_trust_any = true
        [proxy]
        transparent_mark = 1
        transparent_table = 100
        memory_limit = "512MiB"
        splice = "sockmap"
        "#,
    );
    assert_eq!(warnings, []);
    let [first, second] = &config.seed.listeners[..] else { panic!("{:?}", config.seed) };
    let trusted = ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"].map(|net| net.parse().unwrap()).to_vec();
    assert_eq!(first.proxy, Some(AcceptProxy { trusted, trust_any: false }));
    assert_eq!(first.max_connections_per_source, 100);
    assert_eq!(second.proxy, Some(AcceptProxy { trusted: Vec::new(), trust_any: true }));
    let keys = first.routes.iter().map(|route| route.key().to_string()).collect::<Vec<_>>();
    assert_eq!(keys, ["a.b (ALPN h2,http/1.1)", "a.b (ALPN acme-tls/1)", "a.b"]);
    let targets = first.routes.iter().map(|r| (r.target.send_proxy, r.target.transparent, r.target.splice));
    assert_eq!(
        targets.collect::<Vec<_>>(),
        [
            (Some(ProxyVersion::V2), true, Some(Splice::Sockmap)),
            (Some(ProxyVersion::V1), false, None),
            (None, false, None)
        ]
    );
    let Proxy { transparent_mark, transparent_table, memory_limit, splice, .. } = config.proxy;
    assert_eq!((transparent_mark, transparent_table, memory_limit), (1, 100, 512 << 20));
    assert_eq!(splice, Splice::Sockmap);
}

#[test]
fn errors_say_where_and_what_instead() {
    let long = "x".repeat(256);
    for (text, expected) in [
        (
            format!("{LISTENER}proxy_protocol = true"),
            "5:18: listeners.proxy_protocol = true with no proxy_trusted: nobody could connect; write proxy_trusted = \
             [\"10.0.0.0/8\"]",
        ),
        (
            format!("{LISTENER}proxy_protocol = true\nproxy_trusted = []"),
            "5:18: listeners.proxy_protocol = true with no proxy_trusted",
        ),
        (
            format!("{LISTENER}proxy_protocol = true\nproxy_trusted = [\"10.0.0.1/8\"]"),
            "6:18: listeners.proxy_trusted: ",
        ),
        (format!("{LISTENER}proxy_protocol = true\nproxy_trusted = [\"lb\"]"), "6:18: listeners.proxy_trusted: "),
        (
            format!("{LISTENER}max_connections_per_source = -1"),
            "5:30: listeners.max_connections_per_source must not be negative: -1",
        ),
        (route("alpn = [\"h2\", \"\"]"), "8:15: listeners.routes.alpn: \"\" is not 1 to 255 bytes long; write a name"),
        (route(&format!("alpn = [\"{long}\"]")), "8:9: listeners.routes.alpn: \"xxx"),
        (route("alpn = [\"h2,http/1.1\"]"), "8:9: listeners.routes.alpn: \"h2,http/1.1\" has a character"),
        (route("alpn = \"h2\""), "8:8: listeners.routes.alpn: a string (\"h2\") where a list of strings belongs"),
        (
            route(&format!("alpn = [{}]", "\"h2\",".repeat(33))),
            "8:9: listeners.routes.alpn has 33 names; 32 is the most",
        ),
        (
            route(
                "alpn = [\"h2\", \"x\"]\n[[listeners.routes]]\nhostname = \"a.b\"\nalpn = [\"x\", \"h2\"]\nbackend = \"a:1\"",
            ),
            "10:12: listeners.routes.hostname: \"a.b\" with this alpn has a route at line 6 already; remove one",
        ),
        (
            format!("{LISTENER}[listeners.default]\nbackend = \"a:1\"\nalpn = [\"h2\"]"),
            "7:8: listeners.default.alpn: a default route takes every client",
        ),
        (
            route("send_proxy_protocol = true\nproxy_protocol_version = \"v3\""),
            "9:26: listeners.routes.proxy_protocol_version: \"v3\" is not one of \"v2\", \"v1\"",
        ),
        (
            route("proxy_protocol_version = \"v1\""),
            "8:26: listeners.routes.proxy_protocol_version has no effect without send_proxy_protocol = true",
        ),
        (route("splice = \"kernel\""), "8:10: listeners.routes.splice: \"kernel\" is not one of \"auto\", \"sockmap\""),
        (
            format!("{LISTENER}[listeners.default]\nbackends = [\"a:1\", \"unix:/a\"]\ntransparent = true"),
            "7:15: listeners.default.transparent = true with the backend \"unix:/a\": a Unix socket shows no client",
        ),
        (
            "[proxy]\ntransparent_mark = 0".to_owned(),
            "4:20: proxy.transparent_mark must be from 1 to 4294967295: 0; write 28016",
        ),
        ("[proxy]\ntransparent_mark = 4294967296".to_owned(), "4:20: proxy.transparent_mark must be from 1 to"),
        (
            "[proxy]\ntransparent_table = 254".to_owned(),
            "4:21: proxy.transparent_table: 254 is one of the kernel's own tables, 253 to 255; write 28016",
        ),
        ("[proxy]\ntransparent_table = 0".to_owned(), "4:21: proxy.transparent_table must be from 1 to 4294967295: 0"),
        (
            "[proxy]\nmemory_limit = \"512MB\"".to_owned(),
            "4:16: proxy.memory_limit: \"512MB\" is not a size; write bytes without quotes, or a number with its unit",
        ),
        ("[proxy]\nmemory_limit = -1".to_owned(), "4:16: proxy.memory_limit must not be negative: -1; write 0"),
        (
            "[proxy]\nmemory_limit = 1024".to_owned(),
            "4:16: proxy.memory_limit: 1024 bytes serve nobody; write \"1MiB\"",
        ),
        ("[proxy]\nmemory_limit = true".to_owned(), "4:16: proxy.memory_limit: a boolean (true) where a size belongs"),
    ] {
        let errors = parse_all(&text).expect_err(&text).to_string();
        let expected = format!("f.toml:{expected}");
        assert!(errors.starts_with(&expected) && errors.lines().count() == 1, "{errors}\n{expected}");
    }
}

#[test]
fn what_has_no_effect_is_warned_of() {
    for (text, expected) in [
        (
            format!("{LISTENER}proxy_trusted = [\"10.0.0.0/8\"]"),
            "listeners.proxy_trusted has no effect without proxy_protocol = true",
        ),
        (
            format!("{LISTENER}proxy_trust_any = true"),
            "listeners.proxy_trust_any has no effect without proxy_protocol = true",
        ),
        (
            format!("{LISTENER}proxy_protocol = true\nproxy_trust_any = true\nproxy_trusted = [\"10.0.0.0/8\"]"),
            "listeners.proxy_trusted has no effect with proxy_trust_any = true; remove one of the two",
        ),
    ] {
        let Loaded { config, warnings } = valid(&text);
        assert_eq!(warnings.iter().map(|warning| warning.text.as_str()).collect::<Vec<_>>(), [expected]);
        assert!(config.seed.listeners[0].routes.iter().all(|route| route.target.send_proxy.is_none()));
    }
}

#[test]
fn sizes_and_numbers_come_from_the_environment_too() {
    let env = [
        ("MCPROXY_PROXY_MEMORY_LIMIT", "64MiB"),
        ("MCPROXY_PROXY_TRANSPARENT_MARK", "7"),
        ("MCPROXY_PROXY_TRANSPARENT_TABLE", "8"),
    ];
    let proxy = parse_with(DATABASE, "f.toml", env, &[]).unwrap().config.proxy;
    assert_eq!((proxy.memory_limit, proxy.transparent_mark, proxy.transparent_table), (64 << 20, 7, 8));
    let proxy = parse_with(DATABASE, "f.toml", [("MCPROXY_PROXY_MEMORY_LIMIT", "1048576")], &[]).unwrap().config.proxy;
    assert_eq!(proxy.memory_limit, 1 << 20);
}
