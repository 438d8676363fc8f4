mod http;
mod l4;

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

use proptest::prelude::*;

use super::*;
use crate::{
    desired::{L7PolicyKind, Mode, Protocol},
    firewall::{Action, Subject},
};

const EXAMPLE: &str = include_str!("../../../deploy/mc-proxy.example.toml");
const NO_ENV: [(&str, &str); 0] = [];
const DATABASE: &str = "[database]\npath = \"a.db\"\n";

fn load_text(text: &str) -> Result<Loaded, ConfigErrors> {
    parse(text, "f.toml", NO_ENV)
}

/// With a database, so that only what is tested is wrong. Its two lines come first.
fn errors(text: &str) -> Vec<String> {
    let errors = load_text(&format!("{DATABASE}{text}")).expect_err(text);
    errors.to_string().lines().map(str::to_owned).collect()
}

fn valid(text: &str) -> Loaded {
    load_text(&format!("{DATABASE}{text}")).unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let Loaded { config, warnings } = valid("");
    assert_eq!(warnings, []);
    assert_eq!(config.database, Path::new("a.db"));
    assert_eq!(config.seed, Desired::default());
    assert_eq!(
        config.proxy,
        Proxy {
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(300),
            shutdown_timeout: Duration::from_secs(30),
            splice: Splice::Auto,
            refuse: Refuse::Reset,
            transparent_mark: 28_016,
            transparent_table: 28_016,
            memory_limit: 0,
        }
    );
    assert_eq!(config.proxy, Proxy::default());
    assert_eq!(
        config.xdp,
        Xdp {
            interfaces: Vec::new(),
            mode: XdpMode::Auto,
            required: false,
            require_native: false,
            scope: Scope::Listeners,
            on_exit: OnExit::Keep,
            pin_path: "/sys/fs/bpf/mc-proxy".into(),
        }
    );
    assert_eq!(config.grpc, None);
    assert_eq!(config.firewall, Firewall { geoip_db: None, rate_limit: None, auto_ban: None, max_bans: 65_536 });
    assert_eq!(config.log, Log { level: tracing::Level::INFO, format: LogFormat::Text });
}

#[test]
fn a_whole_configuration() {
    let Loaded { config, warnings } = valid(
        r#"
        [[listeners]]
        addr = ":443"
        max_connections = 10_000
        [listeners.default]
        backend = "unix:/run/default.sock"
        [[listeners.routes]]
        hostname = "APP.example.com."
        backend = "app.internal:8443"
        backend_tls = true
        [[listeners.routes]]
        hostname = "*.example.com"
        backends = ["[2001:db8::1]:443", "192.0.2.1:443"]
        [[listeners]]
        addr = "10.0.0.1:25"
        protocol = "tcp"
        default = { backend = "10.0.0.2:25" }
        [[listeners]]
        addr = ":80"
        protocol = "http-redirect"
        [firewall]
        geoip_db = "geo.mmdb"
        rate_limit = 20
        rate_window = "500ms"
        rate_prefix_v4 = 24
        rate_prefix_v6 = 48
        max_bans = 1048576
        auto_ban = { after = 3, within = "30s", ttl = "2h" }
        blocked_ips = ["203.0.113.50"]
        blocked_cidrs = ["198.51.100.0/24"]
        blocked_countries = ["kp"]
        allowed_cidrs = ["198.51.100.7/32"]
        [proxy]
        shutdown_timeout = "0s"
        idle_timeout = "1m30s"
        splice = "userspace"
        [xdp]
        interfaces = ["eth0", "eth1"]
        mode = "generic"
        required = true
        scope = "host"
        on_exit = "detach"
        pin_path = "/sys/fs/bpf/x"
        [grpc]
        addr = "/run/a.sock"
        socket_mode = "0600"
        socket_group = "admin"
        [metrics]
        path = "/m"
        [log]
        level = "debug"
        format = "json"
        "#,
    );
    assert_eq!(warnings, []);
    let [tls, tcp, redirect] = &config.seed.listeners[..] else { panic!("{:?}", config.seed) };
    assert_eq!((tls.addr.as_str(), tls.protocol, tls.max_connections), (":443", Protocol::Tls, 10_000));
    assert_eq!(tls.default.as_ref().unwrap().backends[0].to_string(), "unix:/run/default.sock");
    let routes = tls.routes.iter().map(|r| (r.hostname.to_string(), r.target.backends.len(), r.target.backend_tls));
    assert_eq!(
        routes.collect::<Vec<_>>(),
        [("app.example.com".to_owned(), 1, true), ("*.example.com".to_owned(), 2, false)]
    );
    assert_eq!((tcp.protocol, tcp.default.is_some()), (Protocol::Tcp, true));
    assert_eq!((redirect.protocol, redirect.default.is_some()), (Protocol::HttpRedirect, false));
    let rules =
        config.seed.rules.iter().map(|rule| (rule.key.action, rule.key.subject.to_string())).collect::<Vec<_>>();
    assert_eq!(
        rules,
        [
            (Action::Block, "203.0.113.50".to_owned()),
            (Action::Block, "198.51.100.0/24".to_owned()),
            (Action::Block, "KP".to_owned()),
            (Action::Allow, "198.51.100.7".to_owned()),
        ]
    );
    assert_eq!(
        config.firewall,
        Firewall {
            geoip_db: Some("geo.mmdb".into()),
            rate_limit: Some(RateLimit {
                connections: 20,
                window: Duration::from_millis(500),
                prefix_v4: 24,
                prefix_v6: 48
            }),
            auto_ban: Some(AutoBan { after: 3, within: Duration::from_secs(30), ttl: Duration::from_secs(7_200) }),
            max_bans: 1_048_576,
        }
    );
    assert_eq!(config.proxy.shutdown_timeout, Duration::ZERO);
    assert_eq!(config.proxy.idle_timeout, Duration::from_secs(90));
    assert_eq!(config.proxy.splice, Splice::Userspace);
    assert_eq!(
        config.xdp,
        Xdp {
            interfaces: vec!["eth0".into(), "eth1".into()],
            mode: XdpMode::Generic,
            required: true,
            require_native: false,
            scope: Scope::Host,
            on_exit: OnExit::Detach,
            pin_path: "/sys/fs/bpf/x".into(),
        }
    );
    assert_eq!(config.grpc, Some(Grpc { path: "/run/a.sock".into(), mode: 0o600, group: Some("admin".into()) }));
    assert_eq!(config.log, Log { level: tracing::Level::DEBUG, format: LogFormat::Json });
}

/// The text after `[database]`, and the one line it is answered with.
#[test]
fn every_error_has_place_key_value_and_remedy() {
    const BACKEND: &str = "write \"host:port\", \"[v6]:port\" or \"unix:/path\"";
    const ADDR: &str = "write \":443\", \"10.0.0.1:443\" or \"[::]:443\"";
    const DURATION: &str = "write a number with its unit in quotes, such as \"300ms\", \"5s\" or \"1m30s\"";
    const LISTENER: &str = "[[listeners]]\naddr = \":443\"\n";
    const ROUTE: &str = "[[listeners.routes]]\nhostname = \"a.b\"\nbackend = \"a:1\"\n";
    let cases: &[(&[&str], String)] = &[
        // Values of the wrong type.
        (&["[proxy]\nidle_timeout = 5"], format!("4:16: proxy.idle_timeout: an integer (5) where a duration belongs; {DURATION}")),
        (&["[proxy]\nidle_timeout = \"5 s\""], format!("4:16: proxy.idle_timeout: \"5 s\" is not a duration; {DURATION}")),
        (&["[proxy]\nidle_timeout = \"9999h\""], "4:16: proxy.idle_timeout: \"9999h\" is longer than a year; write \"8760h\" or less".into()),
        (&["[xdp]\nrequired = \"yes\""], "4:12: xdp.required: a string (\"yes\") where true or false belongs; write true or false, without quotes".into()),
        (&["[log]\nlevel = 3"], "4:9: log.level: an integer (3) where a string belongs; write \"3\"".into()),
        (&["[log]\nlevel = []"], "4:9: log.level: an array where a string belongs; write one value in quotes".into()),
        (&["[firewall]\nblocked_ips = \"1.2.3.4\""], "4:15: firewall.blocked_ips: a string (\"1.2.3.4\") where a list of strings belongs; write [\"1.2.3.4\"]".into()),
        (&["[firewall]\nblocked_ips = [\n  \"1.2.3.4\",\n  7,\n]"], "6:3: firewall.blocked_ips: an integer (7) where a string belongs; write \"7\"".into()),
        (&[LISTENER, "max_connections = \"9\""], "5:19: listeners.max_connections: a string (\"9\") where a whole number belongs; write digits, without quotes".into()),
        (&[LISTENER, "max_connections = 99999999999999999999"], "5:19: listeners.max_connections: an integer where a whole number belongs; write digits, without quotes".into()),
        (&["[listeners]\naddr = \":443\""], "3:1: listeners: a table where a list of tables belongs; write [[listeners]] in double brackets".into()),
        (&["[[log]]\nlevel = \"info\""], "3:1: log: an array where a table belongs; write [log] above its keys".into()),
        // Unknown keys.
        (&["[proxy]\nidle_timeuot = \"5s\""], "4:1: proxy.idle_timeuot: unknown key \"idle_timeuot\"; did you mean \"idle_timeout\"?".into()),
        (&["[loging]\n"], "3:2: loging: unknown key \"loging\"; did you mean \"log\"?".into()),
        (&[LISTENER, ROUTE, "bakend_tls = true"], "8:1: listeners.routes.bakend_tls: unknown key \"bakend_tls\"; did you mean \"backend_tls\"?".into()),
        (&["[log]\nidle_timeout = \"5s\""], "4:1: log.idle_timeout: unknown key \"idle_timeout\"; did you mean \"proxy.idle_timeout\"?".into()),
        (&["[log]\nünïcode_é = 1"], "4:".into()),
        (&["[log]\ncolour = true"], "4:1: log.colour: unknown key \"colour\"; valid here: level, format, access, access_format, access_sample, redact_clients, redact_queries".into()),
        (&["[log]\naccess = \"stdin\""], "4:10: log.access: \"stdin\" is not \"off\", \"stdout\", \"stderr\" or an absolute path; write one of these, such as \"/srv/mc-proxy/access.log\"".into()),
        (&["[log]\naccess_sample = 0"], "4:17: log.access_sample must be from 1 to 4294967295: 0; write 1".into()),
        (&["[log]\naccess_format = \"text\""], "4:17: log.access_format: \"text\" is not one of \"json\", \"logfmt\"".into()),
        (&[LISTENER, "[listeners.default]\nbackend = \"a:1\"\nhostname = \"a.b\""], "7:12: listeners.default.hostname: a default route has no hostname; remove it, or write [[listeners.routes]]".into()),
        // Listeners.
        (&["[[listeners]]\nprotocol = \"tls\""], "3:1: listeners.addr is required; write addr = \":443\"".into()),
        (&["[[listeners]]\naddr = \"443\""], format!("4:8: listeners.addr: \"443\" is not a listen address; {ADDR}")),
        (&[LISTENER, "max_connections = -1"], "5:19: listeners.max_connections must not be negative: -1; write 0 for no limit".into()),
        (&[LISTENER, "protocol = \"tsl\""], "5:12: listeners.protocol: \"tsl\" is not one of \"tls\", \"tcp\", \"http-redirect\"; did you mean \"tls\"?".into()),
        (&[LISTENER, "proxy_trusted = [\"10.0.0.1/8\"]"], "5:18: listeners.proxy_trusted: \"10.0.0.1/8\" has host bits set; the canonical CIDR is \"10.0.0.0/8\"".into()),
        (&[LISTENER, LISTENER], "6:8: listeners.addr: \":443\" binds the same socket as the listener at line 4; remove one of the two".into()),
        (&[LISTENER, "[[listeners]]\naddr = \"[::]:443\""], "6:8: listeners.addr: \"[::]:443\" binds the same socket as the listener at line 4; remove one of the two".into()),
        (&[LISTENER, "[[listeners]]\naddr = \"0.0.0.0:443\""], "6:8: listeners.addr: \"0.0.0.0:443\" binds the same socket as the listener at line 4; remove one of the two".into()),
        (&["[[listeners]]\naddr = \"0.0.0.0:443\"\n", LISTENER], "6:8: listeners.addr: \":443\" binds the same socket as the listener at line 4; remove one of the two".into()),
        (&[LISTENER, "protocol = \"tcp\""], "5:12: listeners.default is required with protocol = \"tcp\"; write [listeners.default] with a backend".into()),
        (&[LISTENER, "protocol = \"tcp\"\n", ROUTE], "6:1: listeners.routes: with protocol = \"tcp\" no server name is read; write [listeners.default] instead".into()),
        // Routes.
        (&[LISTENER, "[[listeners.routes]]\nbackend = \"a:1\""], "5:1: listeners.routes.hostname is required; write hostname = \"app.example.com\"".into()),
        (&[LISTENER, "[[listeners.routes]]\nhostname = \"10.0.0.1\"\nbackend = \"a:1\""], "6:12: listeners.routes.hostname: \"10.0.0.1\": the name is an IP address; write \"app.example.com\" or \"*.example.com\"".into()),
        (&[LISTENER, ROUTE, "[[listeners.routes]]\nhostname = \"A.B.\"\nbackend = \"a:2\""], "9:12: listeners.routes.hostname: \"a.b\" has a route at line 6 already; remove one of the two".into()),
        (&[LISTENER, "[[listeners.routes]]\nhostname = \"a.b\""], "5:1: listeners.routes.backend is required; write backend = \"127.0.0.1:8443\"".into()),
        (&[LISTENER, "[[listeners.routes]]\nhostname = \"a.b\"\nbackends = []"], "7:12: listeners.routes.backend is required; write backend = \"127.0.0.1:8443\"".into()),
        (&[LISTENER, "[[listeners.routes]]\nhostname = \"a.b\"\nbackend = \"foo\""], format!("7:11: listeners.routes.backend: \"foo\" is not a backend address; {BACKEND}")),
        (&[LISTENER, "[[listeners.routes]]\nhostname = \"a.b\"\nbackends = [\"a:1\", \"foo\"]"], format!("7:20: listeners.routes.backends: \"foo\" is not a backend address; {BACKEND}")),
        (&[LISTENER, ROUTE, "backends = [\"a:2\"]"], "8:12: listeners.routes.backends stands beside listeners.routes.backend; write all of them in backends".into()),
        (&[LISTENER, "[listeners.default]\nbackend = \"foo\""], format!("6:11: listeners.default.backend: \"foo\" is not a backend address; {BACKEND}")),
        (&[LISTENER, "[listeners.default]"], "5:1: listeners.default.backend is required; write backend = \"127.0.0.1:8443\"".into()),
        (&[LISTENER, "protocol = \"http-redirect\"\n", "[listeners.default]\nbackend = \"a:1\""], "6:1: listeners.default: with protocol = \"http-redirect\" every request is redirected to https; remove it".into()),
        (&[LISTENER, "protocol = \"http-redirect\"\n", ROUTE], "6:1: listeners.routes: with protocol = \"http-redirect\" every request is redirected to https; remove it".into()),
        (&[LISTENER, ROUTE, "mode = \"L4\""], "8:8: listeners.routes.mode: \"L4\" is not one of \"l4\", \"l7\"; did you mean \"l4\"?".into()),
        (&[LISTENER, ROUTE, "backend_protocol = \"http2\""], "8:20: listeners.routes.backend_protocol: \"http2\" is not one of \"auto\", \"http1\", \"h2\"; did you mean \"http1\"?".into()),
        (&[LISTENER, ROUTE, "[[listeners.routes.l7_policies]]\nvalue = \"x\""], "8:1: listeners.routes.l7_policies.type is required; write type = \"block_user_agent\" or \"require_header\"".into()),
        (&[LISTENER, ROUTE, "[[listeners.routes.l7_policies]]\ntype = \"block\"\nvalue = \"x\""], "9:8: listeners.routes.l7_policies.type: \"block\" is not one of \"block_user_agent\", \"require_header\"".into()),
        (&[LISTENER, ROUTE, "[[listeners.routes.l7_policies]]\ntype = \"require_header\"\nvalue = \"X-A: b\""], "10:9: listeners.routes.l7_policies.value: \"X-A: b\" is not the name of a header; write one such as \"X-Api-Key\"".into()),
        (&[LISTENER, ROUTE, "mode = \"l7\"\ntls_key = \"k\""], "5:1: listeners.routes.tls_cert is required with mode = \"l7\"; write tls_cert = \"/srv/mc-proxy/certs/app.pem\"".into()),
        (&[LISTENER, ROUTE, "[[listeners.routes.l7_policies]]\ntype = \"require_header\"\nvalue = \"\""], "10:9: listeners.routes.l7_policies.value is required; write value = \"…\"".into()),
        // Firewall.
        (&["[firewall]\nblocked_countries = [\"RU\"]"], "4:21: firewall: geoip_db is required by blocked_countries; write geoip_db = \"/srv/mc-proxy/GeoLite2-Country.mmdb\"".into()),
        (&["[firewall]\ngeoip_db = \"g\"\nblocked_countries = [\"RUS\"]"], "5:22: firewall.blocked_countries: \"RUS\" is not an ISO 3166-1 alpha-2 country code, such as \"RU\"".into()),
        (&["[firewall]\nblocked_ips = [\"1.2.3.0/24\"]"], "4:16: firewall.blocked_ips: \"1.2.3.0/24\" is not an IP address; write \"203.0.113.50\" or \"2001:db8::1\"".into()),
        (&["[firewall]\nblocked_cidrs = [\"1.2.3.4\"]"], "4:18: firewall.blocked_cidrs: \"1.2.3.4\" is not a CIDR; write \"198.51.100.0/24\" or \"2001:db8::/32\"".into()),
        (&["[firewall]\nallowed_cidrs = [\"1.2.3.4/24\"]"], "4:18: firewall.allowed_cidrs: \"1.2.3.4/24\" has host bits set; the canonical CIDR is \"1.2.3.0/24\"".into()),
        (&["[firewall]\nrate_limit = -1"], "4:14: firewall.rate_limit must be from 0 to 4294967295: -1; write 0".into()),
        (&["[firewall]\nrate_limit = 4294967296"], "4:14: firewall.rate_limit must be from 0 to 4294967295: 4294967296; write 0".into()),
        (&["[firewall]\nrate_window = \"0s\""], "4:15: firewall.rate_window must be above 0; write \"10s\"".into()),
        (&["[firewall]\nrate_window = \"3601s\""], "4:15: firewall.rate_window must be at most 1h; write \"10s\"".into()),
        (&["[firewall]\nrate_prefix_v4 = 7"], "4:18: firewall.rate_prefix_v4 must be from 8 to 32: 7; write 32".into()),
        (&["[firewall]\nrate_prefix_v6 = 65"], "4:18: firewall.rate_prefix_v6 must be from 16 to 64: 65; write 64".into()),
        (&["[firewall]\nmax_bans = 0"], "4:12: firewall.max_bans must be from 1 to 1048576: 0; write 65536".into()),
        (&["[firewall]\nmax_bans = 1048577"], "4:12: firewall.max_bans must be from 1 to 1048576: 1048577; write 65536".into()),
        (&["[firewall]\nauto_ban = 3"], "4:12: firewall.auto_ban: an integer (3) where a table belongs; write [firewall.auto_ban] above its keys".into()),
        (&["[firewall.auto_ban]\nafter = -1"], "4:9: firewall.auto_ban.after must be from 0 to 4294967295: -1; write 0".into()),
        (&["[firewall.auto_ban]\nwithin = \"2h\""], "4:10: firewall.auto_ban.within must be at most 1h; write \"60s\"".into()),
        (&["[firewall.auto_ban]\nttl = \"0s\""], "4:7: firewall.auto_ban.ttl must be above 0; write \"600s\"".into()),
        (&["[xdp]\nrequire_native = true"], "4:18: xdp.require_native = true with no xdp.interfaces; write interfaces = [\"eth0\"] or require_native = false".into()),
        (&["[xdp]\ninterfaces = [\"a\"]\nmode = \"generic\"\nrequire_native = true"], "6:18: xdp.require_native = true with xdp.mode = \"generic\"; write mode = \"auto\" or require_native = false".into()),
        // Deadlines.
        (&["[proxy]\nconnect_timeout = \"-5s\""], "4:19: proxy.connect_timeout must not be negative: \"-5s\"; write \"5s\"".into()),
        (&["[proxy]\nhandshake_timeout = \"-1ms\""], "4:21: proxy.handshake_timeout must not be negative: \"-1ms\"; write \"5s\"".into()),
        (&["[proxy]\nidle_timeout = -5"], "4:16: proxy.idle_timeout must not be negative: -5; write \"5s\"".into()),
        (&["[proxy]\nshutdown_timeout = \"-1s\""], "4:20: proxy.shutdown_timeout must not be negative: \"-1s\"; write \"5s\"".into()),
        (&["[proxy]\nconnect_timeout = \"0s\""], "4:19: proxy.connect_timeout must be above 0; write \"5s\"".into()),
        (&["[proxy]\nidle_timeout = \"0s\""], "4:16: proxy.idle_timeout must be above 0; write \"300s\"".into()),
        (&["[proxy]\nsplice = \"kernel\""], "4:10: proxy.splice: \"kernel\" is not one of \"auto\", \"sockmap\", \"userspace\"".into()),
        // Kernel plane.
        (&["[xdp]\ninterfaces = [\"eth0\", \"eth0\"]"], "4:23: xdp.interfaces: \"eth0\" is listed twice; remove one".into()),
        (&["[xdp]\ninterfaces = [\"../etc\"]"], "4:15: xdp.interfaces: \"../etc\" is not an interface name; write one that `ip link` shows".into()),
        (&["[xdp]\nrequired = true"], "4:12: xdp.required = true with no xdp.interfaces; write interfaces = [\"eth0\"] or required = false".into()),
        (&["[xdp]\nmode = \"skb\""], "4:8: xdp.mode: \"skb\" is not one of \"auto\", \"native\", \"generic\"".into()),
        (&["[xdp]\nscope = \"listener\""], "4:9: xdp.scope: \"listener\" is not one of \"listeners\", \"host\"; did you mean \"listeners\"?".into()),
        (&["[xdp]\non_exit = \"remove\""], "4:11: xdp.on_exit: \"remove\" is not one of \"keep\", \"detach\"".into()),
        (&["[xdp]\npin_path = \"bpf\""], "4:12: xdp.pin_path: \"bpf\" is not absolute; write \"/sys/fs/bpf/mc-proxy\"".into()),
        // Admin API, metrics, log.
        (&["[grpc]\naddr = \"unix:mc.sock\""], "4:8: grpc.addr: \"unix:mc.sock\" is not an absolute path of at most 107 bytes; write \"unix:/srv/mc-proxy/mc-proxy.sock\"".into()),
        (&["[grpc]\nsocket_mode = \"rw\""], "4:15: grpc.socket_mode: \"rw\" is not a file mode up to \"0777\"; write \"0660\"".into()),
        (&["[grpc]\nsocket_mode = \"1777\""], "4:15: grpc.socket_mode: \"1777\" is not a file mode up to \"0777\"; write \"0660\"".into()),
        (&["[grpc]\nsocket_mode = 660"], "4:15: grpc.socket_mode: an integer (660) where a string belongs; write \"660\"".into()),
        (&["[metrics]\npath = \"metrics\""], "4:8: metrics.path must start with \"/\": \"metrics\"; write \"/metrics\"".into()),
        (&["[log]\nlevel = \"warning\""], "4:9: log.level: \"warning\" is not one of \"info\", \"trace\", \"debug\", \"warn\", \"error\"; did you mean \"warn\"?".into()),
        (&["[log]\nformat = \"jsn\""], "4:10: log.format: \"jsn\" is not one of \"text\", \"json\"; did you mean \"json\"?".into()),
        (&["[firewall]\ngeoip_db = \"a\\u0000b\""], "4:12: firewall.geoip_db: \"a\\0b\" contains a NUL; write a path".into()),
    ];
    for (parts, expected) in cases {
        let found = errors(&parts.concat());
        let [found] = &found[..] else { panic!("{parts:?}: {found:#?}") };
        if expected.ends_with(':') {
            assert!(found.starts_with(&format!("f.toml:{expected}")), "{found}");
        } else {
            assert_eq!(*found, format!("f.toml:{expected}"));
        }
    }
}

#[test]
fn the_database_is_required() {
    let remedy = "database.path is required; write path = \"/srv/mc-proxy/mc-proxy.db\" in [database]";
    for (text, place) in [("", "f.toml"), ("\n[database]\n", "f.toml:2:1"), ("database.path = \"\"", "f.toml:1:17")] {
        assert_eq!(load_text(text).unwrap_err().to_string(), format!("{place}: {remedy}"));
    }
}

#[test]
fn features_of_later_versions_are_refused() {
    for (text, what) in [
        ("[grpc]\naddr = \"127.0.0.1:9090\"".to_owned(), "4:8: grpc.addr = \"127.0.0.1:9090\""),
        ("[grpc]\naddr = \":9090\"".to_owned(), "4:8: grpc.addr = \":9090\""),
        ("[metrics]\naddr = \"127.0.0.1:9090\"".to_owned(), "4:8: metrics.addr = \"127.0.0.1:9090\""),
        ("[log]\nformat = \"journald\"".to_owned(), "4:10: log.format = \"journald\""),
    ] {
        let found = errors(&text);
        let start = format!("f.toml:{what} is not available in mc-proxy {}; ", env!("CARGO_PKG_VERSION"));
        assert!(found.len() == 1 && found[0].starts_with(&start), "{found:#?} {start}");
        assert!(["remove", "write"].iter().any(|verb| found[0][start.len()..].starts_with(verb)), "{found:#?}");
    }
}

#[test]
fn features_of_later_versions_may_be_off() {
    let Loaded { config, warnings } = valid(
        "[[listeners]]\naddr = \":443\"\nproxy_protocol = false\nproxy_trusted = []\nproxy_trust_any = false
        [[listeners.routes]]\nhostname = \"a.b\"\nbackend = \"a:1\"\nmode = \"l4\"\nsend_proxy_protocol = false
        transparent = false\nalpn = []\nsplice = \"userspace\"\nbackend_insecure = false\nbackend_protocol = \"auto\"\nl7_policies = []
        [firewall]\nrate_limit = 0\nrate_window = \"10s\"\n[grpc]\naddr = \"\"\n[metrics]\naddr = \"\"",
    );
    assert_eq!(warnings, []);
    assert_eq!(config.grpc, None);
    assert_eq!(config.seed.listeners[0].routes[0].target.mode, Mode::L4);
}

#[test]
fn all_errors_are_told_in_the_order_of_the_file() {
    let text = "[log]\nlevel = \"loud\"\n[proxy]\nidle_timeout = 5\nspliec = \"auto\"\n[[listeners]]\naddr = \"x\"\n\
                [[listeners.routes]]\nbackend = \"foo\"";
    let found = load_text(text).unwrap_err();
    let places = found.to_string().lines().map(|line| line.split(": ").next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(
        places,
        ["f.toml", "f.toml:2:9", "f.toml:4:16", "f.toml:5:1", "f.toml:7:8", "f.toml:8:1", "f.toml:9:11"]
    );
}

#[test]
fn a_flood_of_errors_is_counted() {
    let text = format!("[firewall]\nblocked_ips = [{}]", "\"x\",".repeat(1000));
    let found = errors(&text);
    assert_eq!(found.len(), 101);
    assert_eq!(found[100], "and 900 more errors");
}

#[test]
fn columns_count_characters() {
    let found = errors("[firewall]\nblocked_ips = [\"ä\", \"1.2.3.4\",\t\"é\"] # ü\r\n");
    assert_eq!(found.iter().map(|l| l.split(": ").next().unwrap()).collect::<Vec<_>>(), ["f.toml:4:16", "f.toml:4:32"]);
}

#[test]
fn an_error_is_one_line_whatever_the_value() {
    let found = errors("[log]\nlevel = \"a\\nb\\u001b[2J\"\n[[listeners]]\naddr = \"a\\nb\\u001b\"");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found.iter().all(|line| !line.contains('\u{1b}')), "{found:#?}");
}

#[test]
fn syntax_errors_have_a_place() {
    let found = load_text("[database]\npath = \"a.db\"\n[log\n").unwrap_err().to_string();
    assert!(found.starts_with("f.toml:3:5: not TOML: ") && found.lines().count() == 1, "{found}");
    let found = load_text("[database]\npath = \"a.db\"\npath = \"b.db\"\n").unwrap_err().to_string();
    assert!(found.starts_with("f.toml:3:1: not TOML: duplicate key"), "{found}");
}

#[test]
fn settings_without_effect_are_warnings() {
    let text = "[[listeners]]\naddr = \":443\"\n[[listeners.routes]]\nhostname = \"a.b\"\nbackend = \"a:1\"
tls_cert = \"c\"\ntls_key = \"k\"\nbackend_tls = true\nbackend_insecure = true
[[listeners.routes.l7_policies]]\ntype = \"require_header\"\nvalue = \"X-A\"
[firewall]\nblocked_ips = [\"1.2.3.4\", \"1.2.3.4\"]
[grpc]\naddr = \"unix:/a\"\nclient_ca = \"x\"\nsocket_mode = \"0666\"";
    let Loaded { config, warnings } = valid(text);
    let effect = "has no effect on a route with mode \"l4\"; remove it";
    let warnings = warnings.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        warnings,
        [
            format!("f.toml:8:12: listeners.routes.tls_cert {effect}"),
            format!("f.toml:9:11: listeners.routes.tls_key {effect}"),
            format!("f.toml:11:20: listeners.routes.backend_insecure {effect}"),
            format!("f.toml:12:1: listeners.routes.l7_policies {effect}"),
            "f.toml:16:27: firewall.blocked_ips: \"1.2.3.4\" is listed twice; remove one".to_owned(),
            "f.toml:19:13: grpc.client_ca has no effect on a Unix socket, which socket_mode guards; remove it"
                .to_owned(),
            "f.toml:20:15: grpc.socket_mode: \"0666\" lets every user of this host change routes and rules".to_owned(),
        ]
    );
    let target = &config.seed.listeners[0].routes[0].target;
    assert!(target.backend_tls);
    assert_eq!(target.tls_cert.as_deref(), Some(Path::new("c")));
    assert_eq!(target.l7_policies[0].kind, L7PolicyKind::RequireHeader);
    assert_eq!(config.seed.rules.len(), 1);
}

#[test]
fn the_environment_wins() {
    let env = [
        ("MCPROXY_DATABASE_PATH", "env.db"),
        ("MCPROXY_FIREWALL_BLOCKED_IPS", "192.0.2.1, 192.0.2.2,"),
        ("MCPROXY_PROXY_CONNECT_TIMEOUT", "1s"),
        ("MCPROXY_XDP_INTERFACES", "eth0,eth1"),
        ("MCPROXY_XDP_REQUIRED", "true"),
        ("MCPROXY_GRPC_ADDR", ""),
        ("MCPROXY_LOG_FORMAT", "json"),
        ("MC_PROXY_SOCKET", "elsewhere"),
        ("PATH", "/bin"),
    ];
    let text = "[grpc]\naddr = \"/a\"\n[proxy]\nconnect_timeout = 7\n[firewall]\nblocked_ips = [\"1.1.1.1\"]";
    let Loaded { config, .. } = parse(text, "f.toml", env).unwrap();
    assert_eq!(config.database, Path::new("env.db"));
    assert_eq!(config.proxy.connect_timeout, Duration::from_secs(1));
    assert_eq!(config.xdp.interfaces, ["eth0", "eth1"]);
    assert!(config.xdp.required);
    assert_eq!(config.grpc, None);
    assert_eq!(config.log.format, LogFormat::Json);
    let subjects = config.seed.rules.iter().map(|rule| rule.key.subject).collect::<Vec<_>>();
    assert_eq!(subjects, [Subject::ip("192.0.2.1").unwrap(), Subject::ip("192.0.2.2").unwrap()]);
}

#[test]
fn every_plain_key_has_a_variable_that_is_read() {
    for (variable, path) in lower::variables() {
        // A control character is wrong for paths (NUL), words, numbers, durations, addresses and names alike; the group
        // and what a Unix socket ignores take anything.
        let result = parse(DATABASE, "f.toml", [(variable.as_str(), "\0")]);
        if ["grpc.socket_group", "grpc.tls_cert", "grpc.tls_key", "grpc.client_ca"].contains(&path.as_str()) {
            assert!(result.is_ok(), "{variable}");
        } else {
            let errors = result.expect_err(&variable).to_string();
            let start = format!("{variable}: {path}");
            assert!(errors.lines().any(|line| line.starts_with(&start)), "{errors}");
        }
    }
}

#[test]
fn bad_variables_are_named() {
    for (name, value, expected) in [
        (
            "MCPROXY_LOG_LEVLE",
            "info",
            "MCPROXY_LOG_LEVLE: stands for no key of the configuration; correct or unset it; did you mean \"MCPROXY_LOG_LEVEL\"?",
        ),
        (
            "MCPROXY_LISTENERS_ADDR",
            ":1",
            "MCPROXY_LISTENERS_ADDR: stands for no key of the configuration; correct or unset it",
        ),
        (
            "MCPROXY_XDP_REQUIRED",
            "maybe",
            "MCPROXY_XDP_REQUIRED: xdp.required: \"maybe\" is not true or false; write true or false, without quotes",
        ),
        (
            "MCPROXY_PROXY_IDLE_TIMEOUT",
            "-5s",
            "MCPROXY_PROXY_IDLE_TIMEOUT: proxy.idle_timeout must not be negative: -5s; write \"5s\"",
        ),
        (
            "MCPROXY_FIREWALL_AUTO_BAN_AFTER",
            "-5",
            "MCPROXY_FIREWALL_AUTO_BAN_AFTER: firewall.auto_ban.after must be from 0 to 4294967295: -5; write 0",
        ),
        (
            "MCPROXY_METRICS_ADDR",
            ":1",
            "MCPROXY_METRICS_ADDR: metrics.addr = :1 is not available in mc-proxy 0.1.0; remove it",
        ),
    ] {
        let errors = parse(DATABASE, "f.toml", [(name, value)]).unwrap_err();
        assert_eq!(errors.to_string(), expected);
    }
    let env = [(OsString::from("MCPROXY_LOG_LEVEL"), OsString::from_vec(vec![0xff]))];
    let errors = parse(DATABASE, "f.toml", env).unwrap_err().to_string();
    assert_eq!(errors, "MCPROXY_LOG_LEVEL: log.level: the value is not UTF-8; correct or unset it");
}

#[test]
fn a_file_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absent.toml");
    let errors = load(&path, NO_ENV).unwrap_err().to_string();
    assert!(
        errors.starts_with(&format!("{}: the configuration cannot be read: No such file", path.display())),
        "{errors}"
    );
    std::fs::write(&path, DATABASE).unwrap();
    assert_eq!(load(&path, NO_ENV).unwrap().config.database, Path::new("a.db"));
    std::fs::write(&path, b"[log]\n\xff").unwrap();
    assert!(load(&path, NO_ENV).unwrap_err().to_string().contains("UTF-8"));
}

#[test]
fn the_example_is_valid_without_warnings() {
    let Loaded { config, warnings } = load_text(EXAMPLE).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.seed.listeners.len(), 1);
    assert!(config.grpc.is_some());
}

#[test]
fn the_example_has_a_documented_line_for_every_key() {
    let lines = EXAMPLE.lines().map(|line| line.strip_prefix('#').unwrap_or(line)).collect::<Vec<_>>();
    let mut section = "";
    let mut found = Vec::new();
    for line in &lines {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_matches(|c| c == '[' || c == ']');
            found.push(section.to_owned());
        } else if let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.contains(' ')) {
            found.push(format!("{section}.{key}"));
        }
    }
    for (path, _) in file::key_paths() {
        // The default route has the keys of a route.
        let path = if path.starts_with("listeners.default.") { "listeners.default.backend" } else { &path };
        assert!(found.iter().any(|key| key == path), "{path} is not in the example");
    }
}

/// What stands behind `#` in the example is as valid as the rest, except the two alternatives of what stands there, and the
/// version of a header that is not sent by default.
#[test]
fn the_commented_lines_of_the_example_are_true() {
    let uncommented = EXAMPLE
        .lines()
        .filter(|line| {
            !["#backends = ", "#addr = ", "#proxy_protocol_version = "].iter().any(|key| line.starts_with(key))
        })
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with('[') || rest.contains(" = ") && !rest.starts_with(' ') => rest,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n");
    let Loaded { config, warnings } = load_text(&uncommented).unwrap();
    assert!(warnings.iter().all(|warning| warning.text.contains("has no effect")), "{warnings:#?}");
    let defaults = valid("").config;
    assert_eq!(config.proxy, defaults.proxy);
    assert_eq!(config.xdp, defaults.xdp);
    assert_eq!(Firewall { geoip_db: None, ..config.firewall }, defaults.firewall);
    assert_eq!((config.log, config.access), (defaults.log, defaults.access));
    assert_eq!((config.http, config.http_trusted), (defaults.http, defaults.http_trusted));
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*") {
        let _ = load_text(&text).map_err(|errors| errors.to_string());
    }

    #[test]
    fn toml_like_text_never_panics(text in "([\\[\\]{}=.,\"'#\\n -]|listeners|routes|default|addr|backend|proxy|idle_timeout|\"5s\"|[0-9]){0,60}") {
        let _ = load_text(&text).map_err(|errors| errors.to_string());
    }

    #[test]
    fn a_mutated_example_never_panics(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..8usize, "[\\x00-\\x7fä\"\\[\\]=]{0,6}"), 1..6)
    ) {
        let mut chars = EXAMPLE.chars().collect::<Vec<_>>();
        for (at, removed, inserted) in cuts {
            let at = at.index(chars.len());
            let end = (at + removed).min(chars.len());
            chars.splice(at..end, inserted.chars());
        }
        let text = chars.into_iter().collect::<String>();
        let _ = load_text(&text).map_err(|errors| errors.to_string());
    }

    /// Whatever word stands in the environment, the answer names the variable or the value is taken.
    #[test]
    fn arbitrary_variables_never_panic(index in any::<prop::sample::Index>(), value in "\\PC{0,12}") {
        let variables = lower::variables();
        let (name, _) = variables.iter().nth(index.index(variables.len())).unwrap();
        if let Err(errors) = parse(DATABASE, "f.toml", [(name.as_str(), value.as_str())]) {
            prop_assert!(errors.diagnostics().iter().any(|d| d.place == Place::Variable(name.clone())
                || d.text.contains("geoip_db is required")));
        }
    }
}
