use proptest::prelude::*;

use super::*;

fn record() -> Record<'static> {
    Record {
        time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_980_407_123_456),
        client: ClientAddr::from_header("192.0.2.77:5000".parse().unwrap()),
        country: Some("NL"),
        sni: Some("a.example"),
        host: Some(b"a.example"),
        route: Some("*.example"),
        method: b"GET",
        path: b"/x?token=1",
        status: Some(StatusCode::OK),
        request_bytes: 0,
        response_bytes: u64::MAX,
        timings: Timings {
            first_byte: Some(Duration::from_micros(1_500)),
            total: Duration::from_millis(2),
            ..Timings::default()
        },
        backend: Some("10.0.0.1:80"),
        protocol: Version::HTTP_2,
        tls: Some("TLSv1.3"),
        user_agent: Some(b"curl/8 \"x\""),
        request_id: b"abc",
        outcome: Outcome::Completed,
    }
}

const JSON: Style = Style { format: Format::Json, redact_clients: false, redact_query: false };
const LOGFMT: Style = Style { format: Format::Logfmt, ..JSON };

fn line(style: Style, record: &Record<'_>) -> String {
    let mut line = Vec::new();
    style.write(record, &mut line);
    String::from_utf8(line).unwrap()
}

#[test]
fn whole_lines() {
    assert_eq!(
        line(JSON, &record()),
        "{\"time\":\"2026-11-29T19:26:47.123456Z\",\"client\":\"192.0.2.77:5000\",\"country\":\"NL\",\"sni\":\"a.example\",\
         \"host\":\"a.example\",\"route\":\"*.example\",\"method\":\"GET\",\"path\":\"/x?token=1\",\"status\":200,\
         \"request_bytes\":0,\"response_bytes\":18446744073709551615,\"first_byte_ms\":1.500,\"total_ms\":2.000,\
         \"backend\":\"10.0.0.1:80\",\"protocol\":\"HTTP/2\",\"tls\":\"TLSv1.3\",\"user_agent\":\"curl/8 \\\"x\\\"\",\
         \"request_id\":\"abc\",\"outcome\":\"completed\"}\n"
    );
    assert_eq!(
        line(Style { redact_clients: true, redact_query: true, ..LOGFMT }, &record()),
        "time=2026-11-29T19:26:47.123456Z client=192.0.2.0 country=NL sni=a.example host=a.example route=*.example method=GET \
         path=\"/x?…\" status=200 request_bytes=0 response_bytes=18446744073709551615 first_byte_ms=1.500 total_ms=2.000 \
         backend=10.0.0.1:80 protocol=HTTP/2 tls=TLSv1.3 user_agent=\"curl/8 \\\"x\\\"\" request_id=abc outcome=completed\n"
    );
}

#[test]
fn times() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000Z"),
        (951_868_799, "2000-02-29T23:59:59.000000Z"),
        (951_868_800, "2000-03-01T00:00:00.000000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
    ] {
        let record = Record { time: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), ..record() };
        assert!(line(LOGFMT, &record).starts_with(&format!("time={text} ")), "{text}");
    }
    let record = Record { time: SystemTime::UNIX_EPOCH - Duration::from_secs(1), ..record() };
    assert!(line(LOGFMT, &record).starts_with("time=1970-01-01T00:00:00.000000Z "));
}

#[test]
fn a_client_cannot_forge_a_line_or_a_field() {
    let hostile = "a\" status=500\noutcome=\"x\r\t\\\u{0}\u{1b}[2J\u{7f}\u{85}\u{2028}\u{202e}\u{e0001}é'".as_bytes();
    let text = [hostile, b"\xff\xfe"].concat();
    let record = Record {
        user_agent: Some(&text),
        path: &text,
        host: Some(&text),
        method: &text,
        request_id: &text,
        ..record()
    };
    let quoted = r#""a\" status=500\noutcome=\"x\r\t\\\u0000\u001b[2J\u007f\u0085\u2028\u202e\udb40\udc01é'��""#;
    let logfmt = line(LOGFMT, &record);
    assert_eq!(logfmt.matches('\n').count(), 1);
    assert!(logfmt.contains(&format!(" user_agent={quoted} request_id={quoted} outcome=completed\n")), "{logfmt}");
    let json = line(JSON, &record);
    assert_eq!(json.matches('\n').count(), 1);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["user_agent"], String::from_utf8_lossy(&text).as_ref());
    assert_eq!(value["status"], 200);
}

#[test]
fn texts_are_cut() {
    let of = |text: &[u8]| {
        let value: serde_json::Value = serde_json::from_str(&line(JSON, &Record { path: text, ..record() })).unwrap();
        value["path"].as_str().unwrap().to_owned()
    };
    let fits = "x".repeat(TEXT_MAX);
    assert_eq!(of(fits.as_bytes()), fits);
    assert_eq!(of(format!("{fits}y").as_bytes()), format!("{fits}…"));
    let odd = format!("{}é", "x".repeat(TEXT_MAX - 1));
    assert_eq!(of(odd.as_bytes()), format!("{}…", "x".repeat(TEXT_MAX - 1)), "not within a character");
    assert!(of(&[0x80; 5_000]).ends_with('…'));
    let longest = line(JSON, &Record { path: &[1; 5_000], user_agent: Some(&[1; 5_000]), ..record() });
    assert!(longest.len() < 15_000);
}

#[test]
fn queries_and_clients_are_redacted() {
    let style = Style { redact_query: true, redact_clients: true, ..JSON };
    for (path, shown) in [("/x?a=b?c", "/x?…"), ("/x", "/x"), ("?", "?…"), ("", "")] {
        let value: serde_json::Value =
            serde_json::from_str(&line(style, &Record { path: path.as_bytes(), ..record() })).unwrap();
        assert_eq!(value["path"], shown);
    }
    for (ip, network) in [
        ("192.0.2.255", "192.0.2.0"),
        ("::ffff:192.0.2.255", "192.0.2.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("::1", "::"),
    ] {
        assert_eq!(redacted(ip.parse().unwrap()), network.parse::<IpAddr>().unwrap(), "{ip}");
    }
}

#[test]
fn failures_are_always_kept() {
    let sample = Sample::one_in(100);
    let ok = Some(StatusCode::OK);
    assert!(sample.keeps(0, ok, Outcome::Completed) && sample.keeps(200, ok, Outcome::Completed));
    assert!(!sample.keeps(1, ok, Outcome::Completed));
    assert!(!sample.keeps(1, Some(StatusCode::FORBIDDEN), Outcome::Policy));
    assert!(!sample.keeps(1, None, Outcome::ClientAborted));
    assert!(sample.keeps(1, Some(StatusCode::BAD_GATEWAY), Outcome::Completed), "the backend's own");
    assert!(sample.keeps(1, ok, Outcome::BackendFailed), "in the middle of a body");
    assert!(Sample::one_in(0).keeps(7, ok, Outcome::Completed) && Sample::ALL.keeps(7, ok, Outcome::Completed));
    assert_eq!((0..1_000).filter(|draw| sample.keeps(*draw, ok, Outcome::Completed)).count(), 10);
}

proptest! {
    #[test]
    fn every_text_is_one_value_of_one_line(text in prop::collection::vec(any::<u8>(), 0..1_500)) {
        let record = Record { path: &text, user_agent: Some(&text), ..record() };
        let json = line(JSON, &record);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        if text.len() <= TEXT_MAX {
            prop_assert_eq!(value["path"].as_str().unwrap(), String::from_utf8_lossy(&text));
        }
        let logfmt = line(LOGFMT, &record);
        for line in [json, logfmt] {
            prop_assert!(!line[..line.len() - 1].contains(|c: char| c.is_control()) && line.ends_with('\n'));
        }
    }
}
