use ::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use bytes::BytesMut;
use proptest::prelude::*;

use super::{
    chunked::{ChunkedDecoder, Decoded},
    encode,
    head::HeadReader,
    *,
};

const LIMITS: HeadLimits = HeadLimits { head_bytes: 8192, fields: 50, target_bytes: 1024 };

#[derive(Debug, PartialEq)]
struct Read {
    line: String,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

/// What a stream of requests is to a reader that gets it in parts.
#[derive(Debug, PartialEq)]
enum Seen {
    Request(Box<Read>),
    Refused(HeadError),
    Unfinished,
}

fn read<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<Seen> {
    let mut parts = parts.into_iter();
    let mut buffer = BytesMut::new();
    let mut seen = Vec::new();
    let mut reader = HeadReader::default();
    loop {
        let head = match reader.request(&mut buffer, LIMITS) {
            Ok(Some(head)) => head,
            Ok(None) => match parts.next() {
                Some(part) => {
                    buffer.extend_from_slice(part);
                    continue;
                }
                None => {
                    if reader.has_begun(&buffer) {
                        seen.push(Seen::Unfinished);
                    }
                    return seen;
                }
            },
            Err(error) => {
                seen.push(Seen::Refused(error));
                return seen;
            }
        };
        let (mut body, mut trailers) = (Vec::new(), None);
        let mut decoder = ChunkedDecoder::new(LIMITS);
        loop {
            let is_whole = match head.framing {
                RequestFraming::None => true,
                RequestFraming::Length(length) => {
                    let missing = length as usize - body.len();
                    body.extend_from_slice(&buffer.split_to(missing.min(buffer.len())));
                    body.len() as u64 == length
                }
                RequestFraming::Chunked => match decoder.decode(&mut buffer) {
                    Ok(Decoded::Data(data)) => {
                        body.extend_from_slice(&data);
                        continue;
                    }
                    Ok(Decoded::Incomplete) => false,
                    Ok(Decoded::End(fields)) => {
                        trailers = Some(fields);
                        true
                    }
                    Err(error) => {
                        seen.push(Seen::Refused(error));
                        return seen;
                    }
                },
            };
            if is_whole {
                break;
            }
            match parts.next() {
                Some(part) => buffer.extend_from_slice(part),
                None => {
                    seen.push(Seen::Unfinished);
                    return seen;
                }
            }
        }
        let line = format!("{} {:?} {:?} {:?}", head.method, head.target, head.version, head.framing);
        seen.push(Seen::Request(Box::new(Read { line, headers: head.headers, body, trailers })));
    }
}

fn parse(bytes: &[u8]) -> Result<RequestHead, HeadError> {
    HeadReader::default().request(&mut BytesMut::from(bytes), LIMITS).map(|head| head.expect("a whole head"))
}

fn respond(bytes: &[u8], method: &Method) -> Result<ResponseHead, HeadError> {
    HeadReader::default().response(&mut BytesMut::from(bytes), LIMITS, method).map(|head| head.expect("a whole head"))
}

/// The error of a request, a GET with a host and these lines.
fn with(lines: &str) -> Option<HeadError> {
    parse(format!("POST / HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n\r\n").as_bytes()).err()
}

#[test]
fn a_request() {
    let bytes = b"GET /a?b=c HTTP/1.1\r\nHost: A.example:8443\r\nX-Empty:\r\nx-two: \t 1 \xe9\t \r\nX-Two:2\r\n\r\n";
    let head = parse(bytes).unwrap();
    assert_eq!((head.method, head.version, head.framing), (Method::GET, Version::HTTP_11, RequestFraming::None));
    assert_eq!(head.target, Target::Origin("/a?b=c".parse().unwrap()));
    assert_eq!(head.authority.unwrap().to_string(), "a.example:8443");
    assert_eq!(head.headers["x-empty"], "");
    let two = head.headers.get_all("x-two").iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    assert_eq!(two, [&b"1 \xe9"[..], b"2"]);
    assert!(head.is_persistent && !head.expects_continue);
}

#[test]
fn targets() {
    for (target, path, host) in [
        ("/", "/", "h"),
        ("//x/..//y?z?#q".split('#').next().unwrap(), "//x/..//y?z?", "h"),
        ("/a\"b|{c}^", "/a\"b|{c}^", "h"),
        ("http://h/x", "/x", "h"),
        ("HTTPS://h", "/", "h"),
        ("http://h?q", "/?q", "h"),
    ] {
        let head = parse(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(head.target, Target::Origin(path.parse().unwrap()), "{target}");
    }
    assert_eq!(parse(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").unwrap().target, Target::Asterisk);
    assert_eq!(parse(b"OPTIONS http://h HTTP/1.1\r\nHost: h\r\n\r\n").unwrap().target, Target::Asterisk);
    for target in
        ["*", "x", "h:443", "/a#b", "/\u{e9}", "/a\tb", "/\x7f", "ftp://h/", "http:/h", "://h", "/a\x0bb", "http:///x"]
    {
        let error = parse(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).unwrap_err();
        assert!(matches!(error, HeadError::Target | HeadError::Host(_)), "{target}: {error}");
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(1024));
    assert_eq!(parse(long.as_bytes()).unwrap_err(), HeadError::TargetTooLong);
}

#[test]
fn request_lines() {
    for (line, expected) in [
        ("GET  / HTTP/1.1", HeadError::RequestLine),
        ("GET / HTTP/1.1 ", HeadError::RequestLine),
        ("GET\t/\tHTTP/1.1", HeadError::RequestLine),
        ("GET / x HTTP/1.1", HeadError::RequestLine),
        ("GET /", HeadError::RequestLine),
        ("GET / http/1.1", HeadError::RequestLine),
        ("GET / HTTP/1.10", HeadError::RequestLine),
        ("GET / HTTP/1,1", HeadError::RequestLine),
        ("GET / HTTP/1.1\r", HeadError::RequestLine),
        ("GET / HTTP/1.2", HeadError::Version),
        ("GET / HTTP/2.0", HeadError::Version),
        ("GET / HTTP/0.9", HeadError::Version),
        ("G\u{e9}T / HTTP/1.1", HeadError::Method),
        ("G(T / HTTP/1.1", HeadError::Method),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1", HeadError::Method),
        ("CONNECT h:443 HTTP/1.1", HeadError::Connect),
        ("PRI * HTTP/2.0", HeadError::Version),
    ] {
        assert_eq!(parse(format!("{line}\r\nHost: h\r\n\r\n").as_bytes()).unwrap_err(), expected, "{line:?}");
    }
    assert_eq!(parse(b"x-y / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap().method.as_str(), "x-y");
}

#[test]
fn garbage_is_refused_at_its_first_byte() {
    for first in [0x16, 0, b' ', 0x80, b'\n'] {
        assert!(HeadReader::default().request(&mut BytesMut::from(&[first][..]), LIMITS).is_err(), "{first}");
    }
}

#[test]
fn one_empty_line_is_skipped() {
    assert!(matches!(read([&b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"[..]])[..], [Seen::Request(_)]));
    assert!(matches!(read([&b"\r\n\r\nGET / HTTP/1.1\r\n"[..]])[..], [Seen::Refused(HeadError::RequestLine)]));
}

#[test]
fn hosts() {
    assert!(matches!(parse(b"GET / HTTP/1.1\r\nA: b\r\n\r\n").unwrap_err(), HeadError::Host(_)));
    assert!(matches!(parse(b"GET http://a/ HTTP/1.1\r\nA: b\r\n\r\n").unwrap_err(), HeadError::Host(_)));
    assert!(parse(b"GET / HTTP/1.0\r\nA: b\r\n\r\n").unwrap().authority.is_none());
    for lines in ["Host: b", "Host: a.example", "Host: a.example,b"] {
        assert!(matches!(with(lines), Some(HeadError::Host(_))), "{lines}");
    }
    for host in ["", "a b", "u@a", "a:x", "a/b", "a,b"] {
        let error = parse(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap_err();
        assert!(matches!(error, HeadError::Host(_)), "{host}");
    }
    assert!(matches!(parse(b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n").unwrap_err(), HeadError::Host(_)));
}

#[test]
fn fields_that_smuggle() {
    use HeadError::*;
    for (lines, expected) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", LengthAndCoding),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", LengthAndCoding),
        ("Content-Length: 5\r\nContent-Length: 5", ContentLength),
        ("Content-Length: 5\r\nContent-Length: 6", ContentLength),
        ("Content-Length: 5, 5", ContentLength),
        ("Content-Length: +5", ContentLength),
        ("Content-Length: -5", ContentLength),
        ("Content-Length: 0x5", ContentLength),
        ("Content-Length: 5 ;x", ContentLength),
        ("Content-Length: 5_0", ContentLength),
        ("Content-Length:", ContentLength),
        ("Content-Length: 18446744073709551616", ContentLength),
        ("Content-Length: \u{665}", ContentLength),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", TransferEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", TransferEncoding),
        ("Transfer-Encoding: chunked, chunked", TransferEncoding),
        ("Transfer-Encoding: chunked, identity", TransferEncoding),
        ("Transfer-Encoding: identity", TransferEncoding),
        ("Transfer-Encoding: xchunked", TransferEncoding),
        ("Transfer-Encoding: chunked;x=y", TransferEncoding),
        ("Transfer-Encoding: \"chunked\"", TransferEncoding),
        ("Transfer-Encoding: ,chunked", TransferEncoding),
        ("Transfer-Encoding:", TransferEncoding),
        ("Transfer-Encoding: gzip", TransferEncoding),
        ("Transfer-Encoding: gzip, chunked", TransferCoding),
        ("Transfer-Encoding : chunked", FieldName),
        ("Transfer-Encoding\t: chunked", FieldName),
        ("Transfer\u{a0}Encoding: chunked", FieldName),
        (": chunked", FieldName),
        ("chunked", FieldName),
        ("X\0: y", FieldName),
        ("Transfer-Encoding: \x0bchunked", FieldValue),
        ("Transfer-Encoding: chunked\x0c", FieldValue),
        ("Transfer-Encoding: chun\0ked", FieldValue),
        ("X: a\rTransfer-Encoding: chunked", FieldValue),
        ("X: a\x7f", FieldValue),
        ("X: a\r\r", FieldValue),
        ("X: a\r\n Transfer-Encoding: chunked", ObsFold),
        ("X: a\r\n\tb", ObsFold),
        ("X: a\nTransfer-Encoding: chunked", BareLf),
        ("X: a\n", BareLf),
        ("Expect: 200-maybe", Expectation),
    ] {
        assert_eq!(with(lines), Some(expected), "{lines:?}");
    }
    let old = b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(parse(old).unwrap_err(), TransferEncoding);
    assert_eq!(parse(b"GET / HTTP/1.1\r\n Host: h\r\n\r\n").unwrap_err(), ObsFold);
    assert_eq!(with("Transfer-Encoding: \t CHUNKED \t"), None);
    assert_eq!(with("Content-Length: 18446744073709551615"), None);
    assert_eq!(with("content-length: 007"), None);
}

#[test]
fn limits_hold() {
    let fields = |count: usize| (1..count).map(|i| format!("x{i}: y\r\n")).collect::<String>();
    let head = |fields: String| parse(format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n").as_bytes());
    assert_eq!(head(fields(50)).unwrap().headers.len(), 50);
    assert_eq!(head(fields(51)).unwrap_err(), HeadError::TooManyFields);
    let start = "GET / HTTP/1.1\r\nHost: h\r\nx: ";
    let padding = "a".repeat(8192 - start.len() - 4);
    assert!(parse(format!("{start}{padding}\r\n\r\n").as_bytes()).is_ok());
    assert_eq!(parse(format!("{start}{padding}a\r\n\r\n").as_bytes()).unwrap_err(), HeadError::TooLong);
    // It is not waited for more than that.
    let endless = vec![b'a'; 8192];
    assert!(HeadReader::default().request(&mut BytesMut::from(&endless[..8191]), LIMITS).unwrap().is_none());
    assert_eq!(
        HeadReader::default().request(&mut BytesMut::from(&endless[..]), LIMITS).unwrap_err(),
        HeadError::TooLong
    );
}

#[test]
fn expectations() {
    let expects = |lines: &str| {
        parse(format!("POST / HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\n").as_bytes()).unwrap().expects_continue
    };
    assert!(
        expects("Expect: 100-Continue\r\nContent-Length: 1")
            && expects("Expect: 100-continue\r\nTransfer-Encoding: chunked")
    );
    assert!(!expects("Expect: 100-continue") && !expects("Content-Length: 1"));
    let old = parse(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n").unwrap();
    assert!(!old.expects_continue && !old.headers.contains_key(header::EXPECT));
    for lines in ["Expect: y 100-continue", "Expect: 100-continue\r\nExpect: 100-continue"] {
        let old = format!("POST / HTTP/1.0\r\n{lines}\r\nContent-Length: 1\r\n\r\n");
        assert_eq!(parse(old.as_bytes()).unwrap_err(), HeadError::Expectation);
    }
}

#[test]
fn responses() {
    use ResponseFraming::{Chunked, Length, None, UntilClose};
    for (status, lines, method, framing) in [
        ("200 OK", "Content-Length: 5", Method::GET, Length(5)),
        ("200", "Transfer-Encoding: chunked", Method::GET, Chunked),
        ("200 ", "X: y", Method::GET, UntilClose),
        ("200 \u{e9}\tb", "Content-Length: 5", Method::HEAD, None),
        ("204 No Content", "Content-Length: 5", Method::GET, None),
        ("304 Not Modified", "Content-Length: 5", Method::GET, None),
        ("103 Early Hints", "Link: </a>", Method::GET, None),
        ("101 Switching Protocols", "Upgrade: websocket", Method::GET, None),
        ("999 ", "Content-Length: 0", Method::GET, Length(0)),
    ] {
        let head = respond(format!("HTTP/1.1 {status}\r\n{lines}\r\n\r\n").as_bytes(), &method).unwrap();
        assert_eq!(head.framing, framing, "{status}");
        assert_eq!(head.is_persistent, framing != UntilClose, "{status}");
    }
    assert!(!respond(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", &Method::GET).unwrap().is_persistent);
    for (bytes, expected) in [
        (&b"HTTP/1.1  200 OK\r\n\r\n"[..], HeadError::StatusLine),
        (b"HTTP/1.1 20 OK\r\n\r\n", HeadError::StatusLine),
        (b"HTTP/1.1 2000 OK\r\n\r\n", HeadError::StatusLine),
        (b"HTTP/1.1 099 OK\r\n\r\n", HeadError::StatusLine),
        (b"HTTP/1.1\r\n\r\n", HeadError::StatusLine),
        (b"ICY 200 OK\r\n\r\n", HeadError::StatusLine),
        (b"HTTP/1.1 200 a\rb\r\n\r\n", HeadError::StatusLine),
        (b"HTTP/3.0 200 OK\r\n\r\n", HeadError::Version),
        (b"HTTP/1.1 200 OK\n\r\n", HeadError::BareLf),
        (b"HTTP/1.1 304 x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", HeadError::ContentLength),
        (b"HTTP/1.1 200 x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", HeadError::LengthAndCoding),
    ] {
        assert_eq!(respond(bytes, &Method::GET).unwrap_err(), expected, "{}", bytes.escape_ascii());
    }
    let body_begins_like_a_field = b"HTTP/1.1 200 x\r\n\r\n: y\r\n\r\n";
    assert!(respond(body_begins_like_a_field, &Method::GET).unwrap().headers.is_empty());
}

fn chunks(bytes: &[u8]) -> Result<(Vec<u8>, HeaderMap, usize), HeadError> {
    let (mut decoder, mut buffer, mut body) = (ChunkedDecoder::new(LIMITS), BytesMut::from(bytes), Vec::new());
    loop {
        match decoder.decode(&mut buffer)? {
            Decoded::Data(data) => body.extend_from_slice(&data),
            Decoded::End(trailers) => return Ok((body, trailers, buffer.len())),
            Decoded::Incomplete => panic!("incomplete after {}", body.len()),
        }
    }
}

#[test]
fn chunked_bodies() {
    let (body, trailers, left) =
        chunks(b"5;a=\"b\\\"\r\nhello\r\n00a\r\n, world.ok\r\n0\r\nX-Sum: 1\r\n\r\nGET").unwrap();
    assert_eq!((body.as_slice(), left, trailers["x-sum"].as_bytes()), (&b"hello, world.ok"[..], 3, &b"1"[..]));
    for (bytes, expected) in [
        (&b"5\nhello"[..], HeadError::Chunk),
        (b"5 \r\nhello", HeadError::Chunk),
        (b" 5\r\nhello", HeadError::Chunk),
        (b"0x5\r\nhello", HeadError::Chunk),
        (b"+5\r\nhello", HeadError::Chunk),
        (b"\r\nhello", HeadError::Chunk),
        (b"g\r\n", HeadError::Chunk),
        (b"5\rx", HeadError::Chunk),
        (b"5;a\nb\r\nhello", HeadError::Chunk),
        (b"5;a\rb\r\nhello", HeadError::Chunk),
        (b"5;\0\r\nhello", HeadError::Chunk),
        (b"5;\xff\r\nhello", HeadError::Chunk),
        (b"5\r\nhelloX", HeadError::Chunk),
        (b"5\r\nhello\n", HeadError::Chunk),
        (b"5\r\nhello\rX", HeadError::Chunk),
        (b"10000000000000000\r\n", HeadError::Chunk),
        (b"00000000000000005\r\nhello", HeadError::Chunk),
        (b"0\r\n\n", HeadError::BareLf),
        (b"0\r\nX : y\r\n\r\n", HeadError::FieldName),
        (b"0\r\n X: y\r\n\r\n", HeadError::ObsFold),
    ] {
        assert_eq!(chunks(bytes).unwrap_err(), expected, "{}", bytes.escape_ascii());
    }
    let long = format!("1;{}\r\nx\r\n", "a".repeat(300));
    assert_eq!(chunks(long.as_bytes()).unwrap_err(), HeadError::ChunkExtensions);
    let many = format!("1;{}\r\nx\r\n", "a".repeat(200)).repeat(30);
    assert_eq!(chunks(many.as_bytes()).unwrap_err(), HeadError::ChunkExtensions);
    let trailers = format!("0\r\n{}\r\n", "x: y\r\n".repeat(51));
    assert_eq!(chunks(trailers.as_bytes()).unwrap_err(), HeadError::TooManyFields);
}

#[test]
fn what_is_written() {
    let mut to = BytesMut::new();
    let mut headers = HeaderMap::new();
    let host = HeaderValue::from_static("h");
    let hop = encode::Hop { host: &host, upgrade: None, wants_trailers: false, websocket_key: None };
    headers.insert(header::CONTENT_LENGTH, "7".parse().unwrap());
    headers.insert(header::TRANSFER_ENCODING, "gzip".parse().unwrap());
    let target = Target::Origin("/x".parse().unwrap());
    encode::request(&mut to, &Method::POST, &target, &hop, &headers, RequestFraming::Chunked);
    assert_eq!(to.split(), "POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n");
    let protocol = HeaderValue::from_static("websocket");
    let hop = encode::Hop { upgrade: Some(&protocol), wants_trailers: true, websocket_key: Some(&host), ..hop };
    encode::request(&mut to, &Method::GET, &Target::Asterisk, &hop, &HeaderMap::new(), RequestFraming::None);
    assert_eq!(
        to.split(),
        "GET * HTTP/1.1\r\nhost: h\r\nconnection: upgrade, te\r\nupgrade: websocket\r\nsec-websocket-key: h\r\n\
         sec-websocket-version: 13\r\n\r\n"
    );
    encode::response(&mut to, StatusCode::OK, &headers, ResponseFraming::None);
    assert_eq!(to.split(), "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n", "as for HEAD");
    encode::response(&mut to, StatusCode::NO_CONTENT, &headers, ResponseFraming::None);
    assert_eq!(to.split(), "HTTP/1.1 204 No Content\r\n\r\n");
    encode::response(&mut to, StatusCode::from_u16(299).unwrap(), &headers, ResponseFraming::Length(3));
    assert_eq!(to.split(), "HTTP/1.1 299 \r\ncontent-length: 3\r\n\r\n");
    encode::chunk_head(&mut to, 0x1f);
    encode::last_chunk(&mut to, None);
    assert_eq!(to.split(), "1f\r\n0\r\n\r\n");
}

/// A stream of requests, most of them good, in the ways in which they go wrong.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let body = proptest::collection::vec(any::<u8>(), 0..40);
    let request = (body, 0..3, any::<bool>()).prop_map(|(body, kind, has_trailer)| {
        let mut bytes = b"POST /p?q HTTP/1.1\r\nHost: a.example\r\nX: y z\r\n".to_vec();
        match kind {
            0 => bytes.extend_from_slice(b"\r\n"),
            1 => {
                bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                bytes.extend_from_slice(&body);
            }
            _ => {
                bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                for part in body.chunks(7) {
                    bytes.extend_from_slice(format!("{:X};e\r\n", part.len()).as_bytes());
                    bytes.extend_from_slice(part);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(if has_trailer { b"0\r\nT: u\r\n\r\n" } else { b"0\r\n\r\n" });
            }
        }
        bytes
    });
    let edits = proptest::collection::vec(
        (any::<prop::sample::Index>(), prop::sample::select(&b"\r\n :;,\t\0a0\xff5"[..]), 0..3),
        0..3,
    );
    (proptest::collection::vec(request, 1..4), edits).prop_map(|(requests, edits)| {
        let mut bytes = requests.concat();
        for (at, byte, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn how_bytes_come_does_not_matter(bytes in stream(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let whole = read([&bytes[..]]);
        prop_assert_eq!(&read(bytes.chunks(1)), &whole);
        let mut cuts = cuts.iter().map(|cut| cut.index(bytes.len())).collect::<Vec<_>>();
        cuts.sort_unstable();
        let mut rest = &bytes[..];
        let mut parts = Vec::new();
        for (cut, before) in cuts.iter().zip(std::iter::once(&0).chain(&cuts)) {
            let (part, later) = rest.split_at(cut - before);
            parts.push(part);
            rest = later;
        }
        parts.push(rest);
        prop_assert_eq!(&read(parts), &whole);
    }

    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(read([&bytes[..]]));
        let _ = HeadReader::default().response(&mut BytesMut::from(&bytes[..]), LIMITS, &Method::GET);
    }

    #[test]
    fn what_is_written_is_read_again(
        names in proptest::collection::vec("x[a-z0-9-]{0,8}", 0..10),
        values in proptest::collection::vec("[ -~]{0,20}", 10),
        path in "/[!-~]{0,20}",
        body in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..5),
    ) {
        let Ok(path) = path.parse::<::http::uri::PathAndQuery>() else { return Ok(()) };
        let mut headers = HeaderMap::new();
        let host = HeaderValue::from_static("a.example");
        let hop = encode::Hop { host: &host, upgrade: None, wants_trailers: false, websocket_key: None };
        for (name, value) in names.iter().zip(&values) {
            headers.append(::http::HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value.trim()).unwrap());
        }
        let mut bytes = BytesMut::new();
        encode::request(&mut bytes, &Method::PUT, &Target::Origin(path.clone()), &hop, &headers, RequestFraming::Chunked);
        for part in &body {
            encode::chunk_head(&mut bytes, part.len());
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(encode::CHUNK_END);
        }
        encode::last_chunk(&mut bytes, Some(&headers));
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        let seen = read([&bytes[..]]);
        headers.remove(header::TRANSFER_ENCODING);
        let Some(Seen::Request(seen)) = seen.into_iter().next() else { panic!("refused") };
        let Read { headers: mut read_headers, body: read_body, trailers, line } = *seen;
        prop_assert!(line.contains(path.as_str()));
        prop_assert_eq!(read_headers.remove(header::TRANSFER_ENCODING), Some(HeaderValue::from_static("chunked")));
        prop_assert_eq!(read_headers.remove(header::HOST), Some(host));
        prop_assert_eq!(&read_headers, &headers);
        prop_assert_eq!(trailers, Some(headers));
        prop_assert_eq!(read_body, body.concat());
    }
}
