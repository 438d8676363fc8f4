use std::sync::Mutex;

use ::http::HeaderName;
use proptest::prelude::*;

use super::{
    translate::{Malformed, check_h2, join_cookies},
    *,
};
use crate::{http::authority::Authority, net::addr::ClientAddr};

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut all = headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect::<Vec<_>>();
    all.sort();
    all
}

fn forwarded(client: &str, is_trusted: bool, given: &[(&str, &str)]) -> HeaderMap {
    let mut headers = map(given);
    let host = Authority::parse(b"A.example:8443").unwrap();
    let client = ClientAddr::from_header(client.parse().unwrap());
    let forwarding = Forwarding { client, is_trusted, is_tls: true, host: &host, random: 0xabc };
    strip_request(&mut headers, is_trusted);
    forwarding.write(&mut headers, &Mutex::default());
    headers
}

fn value<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

#[test]
fn the_backend_learns_who_asks() {
    let headers = forwarded("192.0.2.7:5000", false, &[("host", "A.example:8443"), ("accept", "*/*")]);
    let expected = [
        ("accept", "*/*"),
        ("forwarded", "for=\"192.0.2.7:5000\";host=\"a.example:8443\";proto=https"),
        ("host", "A.example:8443"),
        ("x-forwarded-for", "192.0.2.7"),
        ("x-forwarded-host", "a.example:8443"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "192.0.2.7"),
        ("x-request-id", "00000000000000000000000000000abc"),
    ];
    assert_eq!(fields(&headers), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));

    let headers = forwarded("[2001:db8::1]:5000", false, &[]);
    assert_eq!(value(&headers, "x-forwarded-for"), ["2001:db8::1"]);
    assert!(value(&headers, "forwarded")[0].starts_with("for=\"[2001:db8::1]:5000\";"));
    let headers = forwarded("[::ffff:192.0.2.7]:5000", false, &[]);
    assert_eq!(value(&headers, "x-real-ip"), ["192.0.2.7"]);
}

#[test]
fn a_client_cannot_say_who_it_is() {
    let spoofed = [
        "x-forwarded-for",
        "X_Forwarded_For",
        "x-forwarded_for",
        "x.forwarded.for",
        "x-forwarded-proto",
        "x-forwarded-port",
        "x-forwarded-host",
        "x-forwarded-server",
        "x-forwarded-anything",
        "x-forwarded",
        "forwarded",
        "x-real-ip",
        "x-real_ip",
        "x!real!ip",
        "x-client-ip",
        "true-client-ip",
        "cf-connecting-ip",
        "x-request-id",
        "x_request_id",
        "proxy",
        "any_thing",
        "transfer.encoding",
        "transfer_encoding",
        "te",
        "keep-alive",
        "proxy-authorization",
        "http2-settings",
    ];
    let clean = fields(&forwarded("192.0.2.7:1", false, &[]));
    for name in spoofed {
        let headers = forwarded("192.0.2.7:1", false, &[(name, "127.0.0.1"), (name, "10.0.0.1")]);
        assert_eq!(fields(&headers), clean, "{name}");
        let headers =
            forwarded("192.0.2.7:1", false, &[(name, "1"), ("connection", name), ("connection", "x-real-ip")]);
        assert_eq!(fields(&headers), clean, "{name} in Connection");
    }
    for name in
        ["x.custom", "traceparent", "tracestate", "via", "max-forwards", "trailer", "x-forward", "sec-websocket-key"]
    {
        assert_eq!(value(&forwarded("192.0.2.7:1", false, &[(name, "x")]), name), ["x"], "{name}");
    }
}

#[test]
fn a_trusted_peer_is_appended_to() {
    let headers = forwarded(
        "192.0.2.7:1",
        true,
        &[
            ("x-forwarded-for", "203.0.113.1"),
            ("x-forwarded-for", " 198.51.100.1 "),
            ("forwarded", "for=203.0.113.1"),
            ("x-real-ip", "203.0.113.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "b.example"),
            ("x-forwarded-port", "80"),
            ("x-request-id", "abc-1"),
            ("x_real_ip", "127.0.0.1"),
        ],
    );
    assert_eq!(value(&headers, "x-forwarded-for"), ["203.0.113.1, 198.51.100.1, 192.0.2.7"]);
    assert!(value(&headers, "forwarded")[0].starts_with("for=203.0.113.1, for=\"192.0.2.7:1\";"));
    for (name, expected) in [
        ("x-real-ip", "203.0.113.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "b.example"),
        ("x-forwarded-port", "80"),
        ("x-request-id", "abc-1"),
    ] {
        assert_eq!(value(&headers, name), [expected]);
    }
    assert!(!headers.contains_key("x_real_ip"));
}

#[test]
fn what_a_trusted_peer_sends_is_checked() {
    let long = "1".repeat(2_049);
    let id = "i".repeat(129);
    let bad = [
        ("x-forwarded-for", long.as_str()),
        ("forwarded", &long),
        ("x-real-ip", "a"),
        ("x-forwarded-proto", "gopher"),
        ("x-forwarded-host", "a@b"),
        ("x-request-id", &id),
        ("x-request-id", "a b"),
        ("x-request-id", ""),
        ("x-request-id", "é"),
        ("x-forwarded-for", "é"),
        ("x-forwarded-for", ""),
    ];
    let clean = fields(&forwarded("192.0.2.7:1", true, &[]));
    for given in bad {
        assert_eq!(fields(&forwarded("192.0.2.7:1", true, &[given])), clean, "{given:?}");
    }
    let two = [("x-request-id", "a"), ("x-request-id", "b")];
    assert_eq!(fields(&forwarded("192.0.2.7:1", true, &two)), clean);
}

#[test]
fn hop_by_hop_fields_end() {
    let given = [
        ("connection", "close, X-Custom ,,keep-alive"),
        ("connection", "host, Content-Length, authorization, cookie, bad name, é"),
        ("x-custom", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("http2-settings", "x"),
        ("proxy-authenticate", "Basic"),
        ("te", "gzip"),
        ("host", "a"),
        ("content-length", "1"),
        ("authorization", "x"),
        ("cookie", "a=b"),
    ];
    let mut headers = map(&given);
    forward_response(&mut headers, None);
    let names = fields(&headers).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names, ["authorization", "content-length", "cookie", "host"]);
}

#[test]
fn responses_keep_the_backends_name() {
    let mut headers = map(&[
        ("server", "nginx"),
        ("date", "x"),
        ("via", "1.1 x"),
        ("alt-svc", "h3=\":443\""),
        ("x_any", "1"),
        ("x-forwarded-for", "1"),
        ("set-cookie", "a"),
        ("set-cookie", "b"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
    ]);
    let protocol = upgrade_protocol(&headers);
    forward_response(&mut headers, protocol);
    assert!(!headers.contains_key("alt-svc"));
    assert_eq!(value(&headers, "set-cookie"), ["a", "b"]);
    for (name, expected) in [
        ("server", "nginx"),
        ("date", "x"),
        ("via", "1.1 x"),
        ("x_any", "1"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
    ] {
        assert_eq!(value(&headers, name), [expected]);
    }
}

#[test]
fn upgrades_that_are_forwarded() {
    let of = |connection: &str, upgrade: &str| {
        let found = upgrade_protocol(&map(&[("connection", connection), ("upgrade", upgrade)]));
        found.map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(of("Upgrade", "websocket").as_deref(), Some("websocket"));
    assert_eq!(of("keep-alive, upgrade", " SPDY/3.1").as_deref(), Some("SPDY/3.1"));
    for (connection, upgrade) in [
        ("close", "websocket"),
        ("", "websocket"),
        ("upgrade", ""),
        ("upgrade", "h2c"),
        ("upgrade", "H2C"),
        ("upgrade", "TLS/1.2"),
        ("upgrade", "HTTP/2.0"),
        ("upgrade", "websocket, h2c"),
        ("upgrade", "web socket"),
        ("upgrade", "a/"),
        ("upgrade", "/b"),
        ("upgrade", "é"),
    ] {
        assert_eq!(of(connection, upgrade), None, "{connection} {upgrade}");
    }
    let two = map(&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")]);
    assert_eq!(upgrade_protocol(&two), None);
}

#[test]
fn of_te_trailers_are_left() {
    for (te, left) in [("gzip, Trailers;q=1", &["trailers"][..]), ("gzip", &[]), ("x-trailers", &[]), ("", &[])] {
        let mut headers = map(&[("te", te), ("connection", "te")]);
        strip_request(&mut headers, false);
        assert_eq!(value(&headers, "te"), left, "{te}");
        assert!(!headers.contains_key("connection"));
    }
}

#[test]
fn trailers() {
    let given = [
        ("grpc-status", "0"),
        ("grpc-message", "x"),
        ("x_own", "1"),
        ("etag", "\"x\""),
        ("content-length", "1"),
        ("transfer-encoding", "chunked"),
        ("host", "a"),
        ("authorization", "x"),
        ("set-cookie", "x"),
        ("if-match", "x"),
        ("connection", "close"),
        ("x-forwarded-for", "1"),
        ("content-type", "x"),
        ("trailer", "x"),
        ("proxy", "x"),
    ];
    let names = |headers: &HeaderMap| fields(headers).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let mut headers = map(&given);
    forward_response_trailers(&mut headers);
    assert_eq!(names(&headers), ["etag", "grpc-message", "grpc-status", "x-forwarded-for", "x_own"]);
    let mut headers = map(&given);
    forward_request_trailers(&mut headers);
    assert_eq!(names(&headers), ["etag", "grpc-message", "grpc-status"]);
}

#[test]
fn http2_has_no_connection_fields() {
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        assert_eq!(check_h2(&map(&[(name, "x")])), Err(Malformed::ConnectionSpecific), "{name}");
    }
    for te in ["gzip", "trailers, gzip", "", "trailers;q=1"] {
        assert_eq!(check_h2(&map(&[("te", te)])), Err(Malformed::Te), "{te}");
    }
    assert_eq!(check_h2(&map(&[("te", "trailers"), ("te", "gzip")])), Err(Malformed::Te));
    for te in ["trailers", "Trailers"] {
        assert_eq!(check_h2(&map(&[("te", te), ("host", "a")])), Ok(()));
    }
}

#[test]
fn crumbs_of_cookies() {
    let mut headers = map(&[("cookie", "a=b"), ("x", "1"), ("cookie", "c=d"), ("cookie", "e=f")]);
    join_cookies(&mut headers);
    assert_eq!(value(&headers, "cookie"), ["a=b; c=d; e=f"]);
    join_cookies(&mut headers);
    assert_eq!(value(&headers, "cookie"), ["a=b; c=d; e=f"]);
}

fn any_fields() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let name = prop_oneof![
        "[a-z_.-]{1,12}",
        prop::sample::select(vec![
            "connection",
            "te",
            "upgrade",
            "x-forwarded-for",
            "forwarded",
            "x-real-ip",
            "cookie",
            "x-request-id",
            "host",
            "x_real_ip",
        ])
        .prop_map(str::to_owned),
    ];
    let value = prop_oneof![
        prop::collection::vec(prop_oneof![0x20_u8..0x7f, 0x80_u8..=0xff, Just(b'\t')], 0..40),
        "(connection|te|upgrade|host|cookie|x-real-ip|trailers|,| |;|=)*".prop_map(String::into_bytes),
    ];
    prop::collection::vec((name, value), 0..12)
}

proptest! {
    #[test]
    fn whatever_a_client_sends(given in any_fields(), is_trusted: bool) {
        let mut headers = HeaderMap::new();
        for (name, value) in &given {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_bytes(value)) {
                headers.append(name, value);
            }
        }
        let host = Authority::parse(b"a").unwrap();
        let client = ClientAddr::from_header("192.0.2.7:1".parse().unwrap());
        let forwarding = Forwarding { client, is_trusted, is_tls: true, host: &host, random: 1 };
        strip_request(&mut headers, is_trusted);
        let id = forwarding.write(&mut headers, &Mutex::default());
        prop_assert!(!id.is_empty() && id.len() <= 128);
        prop_assert_eq!(check_h2(&headers), Ok(()));
        prop_assert!(headers.keys().all(|name| !name.as_str().contains('_')));
        for name in ["x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-proto", "x-forwarded-host", "x-request-id"] {
            prop_assert_eq!(headers.get_all(name).iter().count(), 1);
        }
        let list = value(&headers, "x-forwarded-for")[0];
        if is_trusted {
            prop_assert!(list == "192.0.2.7" || list.ends_with(", 192.0.2.7"));
        } else {
            prop_assert_eq!(list, "192.0.2.7");
        }
        join_cookies(&mut headers);
        prop_assert!(headers.get_all("cookie").iter().count() <= 1);
    }
}
