//! `[http]`.

use super::*;

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
    let env = [("MCPROXY_HTTP_MAX_RESETS", "7"), ("MCPROXY_HTTP_MAX_HEAD_BYTES", "8KiB")];
    let limits = parse(DATABASE, "f.toml", env).unwrap().config.http;
    assert_eq!((limits.max_resets, limits.max_head_bytes), (7, 8_192));
}

#[test]
fn limits_that_are_none() {
    for (line, error) in [
        ("max_head_bytes = 100", "http.max_head_bytes must be from 1024 to 1048576: 100; write 32768"),
        ("max_head_bytes = \"4GiB\"", "http.max_head_bytes must be from 1024 to 1048576: 4294967296; write 32768"),
        ("max_fields = 0", "http.max_fields must be from 1 to 10000: 0; write 100"),
        ("max_resets = -1", "http.max_resets must be from 1 to 1000000: -1; write 100"),
        ("header_timeout = \"0s\"", "http.header_timeout must be above 0; write \"10s\""),
        ("window = \"2h\"", "http.window must be at most 1h; write \"10s\""),
    ] {
        let found = errors(&format!("[http]\n{line}"));
        assert!(found.len() == 1 && found[0].ends_with(error), "{line}: {found:?}");
    }
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
