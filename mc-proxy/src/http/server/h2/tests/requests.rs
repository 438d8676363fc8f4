//! Requests, from a client's head to its record.

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: x\r\nx: y\r\n\r\nhello";

#[tokio::test]
async fn a_get_goes_there_and_back() {
    let answer = |head: &str| {
        assert!(head.starts_with("GET /a?b HTTP/1.1\r\nhost: a.example\r\n"), "{head}");
        OK.to_owned()
    };
    let (addr, _backend) = backend(answer).await;
    let (served, far, around) = Bench::new(addr, BackendProtocol::Http1, limits()).serve().await;
    let (mut sender, connection) = client(far).await;
    let (response, _) = sender.send_request(get("/a?b"), true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-length"], "5");
    assert!(response.headers().contains_key("date") && !response.headers().contains_key("x"));
    assert_eq!(soon(read(response.into_body())).await.0, b"hello");
    drop(sender);
    soon(connection).await.unwrap().unwrap();
    assert_eq!(soon(served).await.unwrap(), Outcome::Closed);
    let (from_client, from_backends) = around.shared.bytes();
    assert_eq!(from_backends, 5);
    assert!(from_client > 24);
    assert_eq!(around.edge.http_counters.requests(), 1);
}

#[tokio::test]
async fn content_goes_both_ways_with_backpressure() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";
    let (addr, _backend) = backend(move |_| answer.to_owned()).await;
    let (served, far, around) = Bench::new(addr, BackendProtocol::Http1, limits()).serve().await;
    let (mut sender, _connection) = client(far).await;
    let head = Request::post("https://a.example/").header("content-length", "1000000").body(()).unwrap();
    let (response, mut send) = sender.send_request(head, false).unwrap();
    let content: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    let sent = Bytes::from(content.clone());
    let sending = async {
        send.send_data(sent, true).unwrap();
        poll_fn(|cx| send.poll_reset(cx)).await.ok()
    };
    let reading = async {
        let response = response.await.unwrap();
        read(response.into_body()).await.0
    };
    let received = soon(async {
        tokio::select! {
            reset = sending => panic!("{reset:?}"),
            received = reading => received,
        }
    })
    .await;
    assert!(received == content);
    drop((sender, send));
    soon(served).await.unwrap();
    assert_eq!(around.shared.bytes().1, 1_000_000);
}

#[tokio::test]
async fn informational_responses_and_trailers() {
    let answer = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
        3\r\nabc\r\n0\r\nend: yes\r\n\r\n";
    let (addr, _backend) = backend(move |_| answer.to_owned()).await;
    let (_served, far, _around) = Bench::new(addr, BackendProtocol::Http1, limits()).serve().await;
    let (mut sender, _connection) = client(far).await;
    let (mut response, _) = sender.send_request(get("/"), true).unwrap();
    let early = soon(poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!((early.status().as_u16(), &early.headers()["link"]), (103, &"</x>".parse().unwrap()));
    let response = soon(response).await.unwrap();
    assert!(!response.headers().contains_key("transfer-encoding"));
    let (bytes, trailers) = soon(read(response.into_body())).await;
    assert_eq!((bytes.as_slice(), &trailers.unwrap()["end"]), (b"abc".as_slice(), &"yes".parse().unwrap()));
}

#[tokio::test]
async fn head_has_no_content() {
    let (addr, _backend) = backend(|_| "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".to_owned()).await;
    let (_served, far, _around) = Bench::new(addr, BackendProtocol::Http1, limits()).serve().await;
    let (mut sender, _connection) = client(far).await;
    let head = Request::head("https://a.example/").body(()).unwrap();
    let (response, _) = sender.send_request(head, true).unwrap();
    let response = soon(response).await.unwrap();
    assert!(response.body().is_end_stream() && response.headers()["content-length"] == "5");
}

/// RFC 8441 in front, RFC 6455 behind.
#[tokio::test]
async fn a_web_socket_to_a_backend_of_http1() {
    let answer = |head: &str| {
        let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
        assert!(head.contains("upgrade: websocket\r\n") && head.starts_with("GET /chat HTTP/1.1\r\n"));
        let accept = websocket::accept(&key.parse().unwrap());
        let accept = accept.to_str().unwrap();
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {accept}\r\n\r\n"
        )
    };
    let (addr, backend) = backend(answer).await;
    let (served, far, around) = Bench::new(addr, BackendProtocol::Auto, limits()).serve().await;
    let (mut sender, _connection) = client(far).await;
    soon(async {
        while !sender.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut head = Request::builder().method(Method::CONNECT).uri("https://a.example/chat").body(()).unwrap();
    head.extensions_mut().insert(::h2::ext::Protocol::from_static("websocket"));
    head.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    let (response, mut send) = sender.send_request(head, false).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    for name in ["sec-websocket-accept", "connection", "upgrade"] {
        assert!(!response.headers().contains_key(name), "{name}");
    }
    let mut body = response.into_body();
    send.send_data(Bytes::from_static(b"ping"), false).unwrap();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "ping");
    send.send_data(Bytes::from_static(b"last"), true).unwrap();
    assert_eq!(soon(read(body)).await.0, b"last");
    drop((sender, send));
    assert_eq!(soon(served).await.unwrap(), Outcome::Closed);
    assert_eq!(around.edge.http_counters.tunnels(), 1);
    soon(backend).await.unwrap();
}

/// A 200 to an upgrade is no tunnel.
#[tokio::test]
async fn a_backend_that_does_not_change_its_protocol() {
    let (addr, _backend) = backend(|_| OK.to_owned()).await;
    let (_served, far, _around) = Bench::new(addr, BackendProtocol::Auto, limits()).serve().await;
    let (mut sender, _connection) = client(far).await;
    let mut head = Request::builder().method(Method::CONNECT).uri("https://a.example/chat").body(()).unwrap();
    head.extensions_mut().insert(::h2::ext::Protocol::from_static("websocket"));
    let (response, _send) = sender.send_request(head, false).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(soon(read(response.into_body())).await.0.get(..3), Some(&b"502"[..]));
}

#[tokio::test]
async fn a_client_that_resets_ends_the_exchange() {
    let (addr, backend) = backend(|_| "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nh".to_owned()).await;
    let (_served, far, around) = Bench::new(addr, BackendProtocol::Http1, limits()).serve().await;
    let (mut sender, _connection) = client(far).await;
    let (response, mut send) = sender.send_request(get("/"), true).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "h");
    send.send_reset(Reason::CANCEL);
    soon(backend).await.unwrap();
    soon(async {
        while around.edge.http_counters.requests() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let aborted = around.edge.http_counters.outcomes().find(|(outcome, _)| *outcome == access::Outcome::ClientAborted);
    assert_eq!(aborted.unwrap().1, 1);
}

/// RFC 9113 §8.1: all of the response, then NO_ERROR.
#[tokio::test]
async fn a_response_that_does_not_need_the_request() {
    let http = HttpLimits { max_body_bytes: 10, ..limits() };
    let (_served, far, _around) = Bench::new(nowhere(), BackendProtocol::Http1, http).serve().await;
    let (mut sender, _connection) = client(far).await;
    let head = Request::post("https://a.example/").header("content-length", "1000").body(()).unwrap();
    let (response, mut send) = sender.send_request(head, false).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(!soon(read(response.into_body())).await.0.is_empty());
    assert_eq!(soon(poll_fn(|cx| send.poll_reset(cx))).await.unwrap(), Reason::NO_ERROR);
}

#[tokio::test]
async fn what_is_answered_here_and_what_is_reset() {
    let http = HttpLimits { max_fields: 10, max_target_bytes: 100, ..limits() };
    let (_served, far, mut around) = Bench::new(nowhere(), BackendProtocol::Http1, http).serve().await;
    let (mut sender, _connection) = client(far).await;
    let mut many = get("/");
    for at in 0..11 {
        many.headers_mut().insert(::http::HeaderName::try_from(format!("x-{at}")).unwrap(), "y".parse().unwrap());
    }
    let with = |name: &'static str, value: &'static str| {
        let mut head = get("/");
        head.headers_mut().insert(name, value.parse().unwrap());
        head
    };
    let connect = Request::builder().method(Method::CONNECT).uri("a.example:443").body(()).unwrap();
    for (head, expected) in [
        (get(&format!("/{}", "x".repeat(100))), Ok(414)),
        (many, Ok(431)),
        (connect, Ok(501)),
        (Request::get("https://b.example/").body(()).unwrap(), Ok(421)),
        (Request::get("ftp://a.example/").body(()).unwrap(), Ok(400)),
        (with("expect", "more"), Ok(417)),
        (with("host", "b.example"), Err(Reason::PROTOCOL_ERROR)),
        (with("x", " y"), Err(Reason::PROTOCOL_ERROR)),
    ] {
        let name = format!("{head:?}");
        let (response, _send) = sender.send_request(head, true).unwrap();
        let result = soon(response).await.map(|response| response.status().as_u16());
        assert_eq!(result.map_err(|error| error.reason().unwrap()), expected, "{name}");
    }
    assert_eq!(around.offences.recv().await.unwrap().kind, OffenceKind::Http);
    assert!(around.edge.http_counters.malformed().any(|(name, count)| name == "http_host" && count == 1));
}

#[tokio::test]
async fn the_last_request_of_a_connection() {
    let (addr, _backend) = backend(|_| OK.to_owned()).await;
    let http = HttpLimits { max_requests: 1, ..limits() };
    let (served, far, _around) = Bench::new(addr, BackendProtocol::Http1, http).serve().await;
    let (mut sender, connection) = client(far).await;
    let (response, _) = sender.send_request(get("/"), true).unwrap();
    assert_eq!(soon(response).await.unwrap().headers()[header::CONTENT_LENGTH], "5");
    soon(connection).await.unwrap().unwrap();
    assert_eq!(soon(served).await.unwrap(), Outcome::Closed);
    assert!(sender.send_request(get("/"), true).is_err());
}
