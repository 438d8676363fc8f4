//! `[http]`.

use super::*;
use crate::desired::BackendProtocol;

#[test]
fn limits_of_http() {
    assert_eq!(valid("").config.http, HttpLimits::default());
    let limits = valid(
        r#"
        [http]
        max_head_bytes = "64KiB"
        max_fields = 200
        header_timeout = "5s"
        max_body_bytes = "1GiB"
        max_requests = 0
        min_body_rate = 100
        window = "1m"
        "#,
    )
    .config
    .http;
    let expected = HttpLimits {
        max_head_bytes: 65_536,
        max_fields: 200,
        header_timeout: Duration::from_secs(5),
        max_body_bytes: 1 << 30,
        max_requests: 0,
        min_body_rate: 100,
        window: Duration::from_secs(60),
        ..HttpLimits::default()
    };
    assert_eq!(limits, expected);
    let pool = "[http]\npool_idle_timeout = \"4s\"\npool_max_idle = 0\nmax_backend_connections = 100";
    let limits = valid(pool).config.http;
    assert_eq!((limits.pool_idle_timeout, limits.pool_max_idle), (Duration::from_secs(4), 0));
    assert_eq!(limits.max_backend_connections, 100);
    let env = [("MCPROXY_HTTP_MAX_RESETS", "7"), ("MCPROXY_HTTP_MAX_HEAD_BYTES", "8KiB")];
    let limits = parse(DATABASE, "f.toml", env).unwrap().config.http;
    assert_eq!((limits.max_resets, limits.max_head_bytes, limits.max_target_bytes), (7, 8_192, 8_192));
}

#[test]
fn limits_that_are_none() {
    for (line, error) in [
        ("max_head_bytes = 100", "http.max_head_bytes must be from 1024 to 1048576: 100; write 32768"),
        ("max_head_bytes = \"4GiB\"", "http.max_head_bytes must be from 1024 to 1048576: 4294967296; write 32768"),
        ("max_fields = 0", "http.max_fields must be from 1 to 10000: 0; write 100"),
        ("max_resets = -1", "http.max_resets must be from 1 to 1000000: -1; write 256"),
        ("header_timeout = \"0s\"", "http.header_timeout must be above 0; write \"10s\""),
        ("pool_max_idle = -1", "http.pool_max_idle must be from 0 to 10000: -1; write 256"),
        ("pool_idle_timeout = \"0s\"", "http.pool_idle_timeout must be above 0; write \"60s\""),
        (
            "max_target_bytes = \"33KiB\"",
            "f.toml:4:20: http.max_target_bytes: 33792 is more than a whole head may have; write at most \
             http.max_head_bytes, 32768",
        ),
        (
            "trusted_proxies = [\"10.0.0.1/8\"]",
            "http.trusted_proxies: \"10.0.0.1/8\" has host bits set; the canonical CIDR is \"10.0.0.0/8\"",
        ),
        ("window = \"2h\"", "http.window must be at most 1h; write \"10s\""),
    ] {
        let found = errors(&format!("[http]\n{line}"));
        assert!(found.len() == 1 && found[0].ends_with(error), "{line}: {found:?}");
    }
}

#[test]
fn proxies_that_are_trusted() {
    let trusted = |text: &str| valid(&format!("[http]\ntrusted_proxies = {text}")).config.http_trusted;
    let trusts = |trusted: &TrustedProxies, ip: &str| trusted.trusts(ip.parse().unwrap());
    let some = trusted("[\"2001:db8::/32\", \"10.0.0.0/8\"]");
    for (ip, is) in
        [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("2001:db8::1", true), ("11.0.0.1", false), ("::1", false)]
    {
        assert_eq!(trusts(&some, ip), is, "{ip}");
    }
    assert_eq!(some, trusted("[\"10.0.0.0/8\", \"2001:db8::/32\", \"10.0.0.0/8\"]"));
    assert_eq!(valid("").config.http_trusted, TrustedProxies::default());
    assert!(!trusts(&TrustedProxies::default(), "127.0.0.1"));
    let env = [("MCPROXY_HTTP_TRUSTED_PROXIES", "192.0.2.0/24, 198.51.100.7/32")];
    assert!(trusts(&parse(DATABASE, "f.toml", env).unwrap().config.http_trusted, "198.51.100.7"));
}

#[test]
fn shadow_policies() {
    let Loaded { config, .. } = valid(
        r#"
        [[listeners]]
        addr = ":443"
        [[listeners.routes]]
        hostname = "a.b"
        backend = "a:1"
        l7_policies = [
            { type = "require_header", value = "x", shadow = true },
            { type = "require_header", value = "y" },
        ]
        "#,
    );
    let shadows = config.seed.listeners[0].routes[0].target.l7_policies.iter().map(|policy| policy.shadow);
    assert_eq!(shadows.collect::<Vec<_>>(), [true, false]);
}

#[test]
fn policies_that_no_request_could_pass() {
    let with = |name: &str| l7(&format!("l7_policies = [{{ type = \"require_header\", value = \"{name}\" }}]"));
    for name in ["Connection", "Upgrade", "Proxy-Authorization", "X_Api_Key", "Proxy", "host"] {
        let error = with(name).unwrap_err().to_string();
        assert!(error.contains(&format!("l7_policies.value: \"{name}\" would refuse every request: ")), "{error}");
    }
    let warnings = |name| with(name).unwrap().warnings.into_iter().map(|warning| warning.text).collect::<Vec<_>>();
    for name in ["X-Forwarded-For", "forwarded", "X-Request-Id"] {
        let found = warnings(name);
        assert!(found.len() == 1 && found[0].contains("http.trusted_proxies"), "{name}: {found:?}");
    }
    for name in ["X-Api-Key", "TE", "Authorization"] {
        assert_eq!(warnings(name), [""; 0], "{name}");
    }
}

/// With what the lines say, on a route of mode `l7`.
fn l7(lines: &str) -> Result<Loaded, ConfigErrors> {
    let text = format!(
        "{DATABASE}[[listeners]]\naddr = \":443\"\n[[listeners.routes]]\nhostname = \"a.b\"\nbackend = \"a:1\"\n\
         mode = \"l7\"\ntls_cert = \"c\"\ntls_key = \"k\"\n{lines}"
    );
    load_text(&text)
}

#[test]
fn what_a_backend_is_spoken_to_with() {
    let target = |lines| l7(lines).unwrap().config.seed.listeners[0].routes[0].target.clone();
    let default = target("");
    assert_eq!((default.mode, default.backend_protocol), (Mode::L7, BackendProtocol::Auto));
    assert_eq!((default.backend_ca, default.backend_server_name, default.backend_insecure), (None, None, false));
    let whole = target(
        "backend_tls = true\nbackend_ca = \"/ca.pem\"\nbackend_server_name = \"App.Internal.\"\n\
         backend_protocol = \"h2\"",
    );
    assert_eq!((whole.backend_tls, whole.backend_protocol), (true, BackendProtocol::H2));
    assert_eq!(
        (whole.backend_ca.as_deref(), whole.backend_roots()),
        (Some("/ca.pem".as_ref()), Some("/ca.pem".as_ref()))
    );
    assert_eq!(whole.backend_server_name, Some("app.internal".parse().unwrap()));
    let none = target("backend_ca = \"\"\nbackend_server_name = \"\"\nbackend_insecure = true");
    assert_eq!((none.backend_ca, none.backend_server_name, none.backend_insecure), (None, None, true));
    let error = l7("backend_server_name = \"10.0.0.1\"").unwrap_err().to_string();
    assert!(
        error.contains("listeners.routes.backend_server_name: \"10.0.0.1\": the name is an IP address; write"),
        "{error}"
    );
    let error = l7("[listeners.default]\nbackend = \"a:1\"\nmode = \"l7\"\ntls_cert = \"\"").unwrap_err().to_string();
    assert!(error.contains("listeners.default.tls_cert is required") && error.contains("tls_key is"), "{error}");
}

#[test]
fn what_has_no_effect_on_a_backend_is_told() {
    let warnings = |lines| l7(lines).unwrap().warnings.into_iter().map(|warning| warning.text).collect::<Vec<_>>();
    let without = "has no effect without backend_tls = true";
    assert_eq!(
        warnings("backend_ca = \"c\"\nbackend_server_name = \"a\"\nbackend_insecure = true"),
        ["ca", "server_name", "insecure"].map(|key| format!("listeners.routes.backend_{key} {without}"))
    );
    assert_eq!(
        warnings("backend_tls = true\nbackend_ca = \"c\"\nbackend_insecure = true"),
        ["listeners.routes.backend_ca has no effect with backend_insecure = true; remove one of the two"]
    );
    assert_eq!(warnings("backend_tls = true\nbackend_insecure = true\nbackend_server_name = \"a\""), [""; 0]);
}

#[test]
fn access_records() {
    use crate::http::access::Format;

    let access = |text: &str| valid(&format!("[log]\n{text}")).config.access;
    let json = Style { format: Format::Json, redact_clients: false, redact_query: false };
    assert_eq!(access(""), Access { to: None, style: json, sample: Sample::ALL });
    assert_eq!(access("access = \"off\"").to, None);
    assert_eq!(access("access = \"stderr\"").to, Some(Destination::Stderr));
    let whole = access(
        "access = \"/var/log/a\"\naccess_format = \"logfmt\"\naccess_sample = 10\nredact_clients = true\n\
         redact_queries = true",
    );
    let style = Style { format: Format::Logfmt, redact_clients: true, redact_query: true };
    let to = Some(Destination::File("/var/log/a".into()));
    assert_eq!(whole, Access { to, style, sample: Sample::one_in(10) });
    let env = [("MCPROXY_LOG_ACCESS", "stdout"), ("MCPROXY_LOG_REDACT_CLIENTS", "true")];
    let access = parse(DATABASE, "f.toml", env).unwrap().config.access;
    assert_eq!((access.to, access.style.redact_clients), (Some(Destination::Stdout), true));
}
