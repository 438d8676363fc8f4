//! Backends of HTTP/2 over real sockets.

use std::os::fd::OwnedFd;

use ::h2::{Reason, RecvStream, server};
use ::http::{HeaderValue, StatusCode};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{advance, pause, resume, timeout},
};

use super::*;
use crate::{
    http::{
        authority::Authority as Host,
        message::{Answer, Content, Part, Response, Sink as _, Source as _, Upstream as _},
        upstream::pool::Idle,
    },
    net::socket::Socket,
};

const PATIENCE: Duration = Duration::from_secs(10);

type Server = server::Connection<TcpStream, Bytes>;
type Asked = (::http::Request<RecvStream>, server::SendResponse<Bytes>);

async fn soon<T>(wait: impl Future<Output = T>) -> T {
    timeout(PATIENCE, wait).await.unwrap()
}

async fn pair() -> (Io, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (near, _) = listener.accept().await.unwrap();
    (Io::Plain(Socket::new(OwnedFd::from(near.into_std().unwrap()))), far)
}

fn place() -> Open {
    Idle::new(1).open(0, 0).unwrap()
}

/// A connection, and its other end.
async fn open(builder: &server::Builder) -> (Handle, Server) {
    let (io, far) = pair().await;
    let limits = HttpLimits::default();
    let both = async { tokio::join!(Handle::open(io, &limits, place()), builder.handshake(far)) };
    // The server's SETTINGS go out with its handshake.
    let (handle, server) = soon(both).await;
    (handle.unwrap(), server.unwrap())
}

/// The next request; the connection goes on by itself.
async fn accept(mut server: Server) -> Asked {
    let asked = soon(server.accept()).await.unwrap().unwrap();
    tokio::spawn(async move { while server.accept().await.is_some() {} });
    asked
}

fn request(method: Method, content: Content) -> Request {
    Request {
        method,
        target: Target::Origin("/a?b".parse().unwrap()),
        authority: Host::parse(b"a.example").unwrap(),
        host: HeaderValue::from_static("A.example"),
        version: Version::HTTP_11,
        headers: HeaderMap::new(),
        content,
        expects_continue: false,
        upgrade: None,
    }
}

async fn answer(backend: &mut Backend) -> Result<Response, Broken> {
    match soon(poll_fn(|cx| backend.poll_answer(cx))).await? {
        Answer::Final(response) => Ok(response),
        Answer::Informational(..) => panic!("it is not the last"),
    }
}

async fn part(backend: &mut Backend) -> Result<Option<Part>, Broken> {
    soon(poll_fn(|cx| backend.poll_part(cx))).await
}

async fn data(backend: &mut Backend) -> Bytes {
    match part(backend).await {
        Ok(Some(Part::Data(data))) => data,
        other => panic!("{other:?}"),
    }
}

fn response(status: u16) -> ::http::Response<()> {
    ::http::Response::builder().status(status).body(()).unwrap()
}

#[tokio::test]
async fn a_get_and_its_answers() {
    let (handle, server) = open(&server::Builder::new()).await;
    assert!(!handle.is_closed() && handle.has_room() && handle.place() == 0);
    let mut asked = request(Method::GET, Content::None);
    asked.headers.insert(header::CONNECTION, "x".parse().unwrap());
    asked.headers.insert("x-y", "z".parse().unwrap());
    let mut backend = handle.claim().send(&asked, PATIENCE).await.unwrap();
    let (got, mut send) = accept(server).await;
    assert_eq!((got.method(), got.uri().to_string().as_str()), (&Method::GET, "http://A.example/a?b"));
    assert!(got.body().is_end_stream() && got.headers().len() == 1);
    assert!(backend.has_sent());
    send.send_informational(response(103)).unwrap();
    let early = soon(poll_fn(|cx| backend.poll_answer(cx))).await;
    assert!(matches!(early, Ok(Answer::Informational(status, _)) if status == 103));
    let mut send = send.send_response(response(200), false).unwrap();
    let answered = answer(&mut backend).await.unwrap();
    assert_eq!((answered.status, answered.content), (StatusCode::OK, Content::Parts));
    send.send_data(Bytes::from_static(b"abc"), false).unwrap();
    send.send_trailers(HeaderMap::from_iter([(header::ETAG, "x".parse().unwrap())])).unwrap();
    assert_eq!(data(&mut backend).await, "abc");
    assert!(matches!(part(&mut backend).await, Ok(Some(Part::Trailers(trailers))) if trailers.len() == 1));
    assert!(backend.is_ended() && matches!(part(&mut backend).await, Ok(None)));
    assert!(!handle.close_if_unused(Instant::now(), Duration::ZERO));
    drop(backend);
    assert!(handle.close_if_unused(Instant::now(), Duration::ZERO));
}

#[tokio::test]
async fn content_waits_for_the_window() {
    let (handle, server) = open(&server::Builder::new()).await;
    let mut backend = handle.claim().send(&request(Method::POST, Content::Length(200_000)), PATIENCE).await.unwrap();
    let (got, _send) = accept(server).await;
    let mut body = got.into_body();
    let mut bytes = Bytes::from(vec![7; 200_000]);
    // A window's worth is taken, and not more.
    let first = timeout(Duration::from_millis(50), poll_fn(|cx| backend.poll_data(cx, &mut bytes, true))).await;
    assert!(first.is_err() && bytes.len() >= 200_000 - SEND_BUFFER - 65_535, "{}", bytes.len());
    let reading = async {
        let mut count = 0;
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            count += data.len();
        }
        count
    };
    let writing = async {
        poll_fn(|cx| backend.poll_data(cx, &mut bytes, true)).await.unwrap();
        poll_fn(|cx| backend.poll_flush(cx)).await.unwrap();
    };
    let (count, ()) = soon(async { tokio::join!(reading, writing) }).await;
    assert_eq!(count, 200_000);
}

/// What a client does not take, the backend does not send.
#[tokio::test]
async fn windows_open_when_a_part_has_been_taken() {
    let (handle, server) = open(&server::Builder::new()).await;
    let mut backend = handle.claim().send(&request(Method::GET, Content::None), PATIENCE).await.unwrap();
    let (_got, mut send) = accept(server).await;
    let mut send = send.send_response(response(200), false).unwrap();
    answer(&mut backend).await.unwrap();
    send.send_data(Bytes::from(vec![0; 3 * STREAM_WINDOW as usize]), true).unwrap();
    let mut taken = data(&mut backend).await.len();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(handle.shared.transferred().0 < u64::from(STREAM_WINDOW) + 1_000);
    while let Some(Part::Data(data)) = part(&mut backend).await.unwrap() {
        taken += data.len();
    }
    assert_eq!(taken, 3 * STREAM_WINDOW as usize);
}

#[tokio::test]
async fn how_heads_end() {
    for (method, status, length, ends, content) in [
        (Method::HEAD, 200, Some("7"), true, Content::None),
        (Method::GET, 304, None, true, Content::None),
        (Method::GET, 200, None, true, Content::Length(0)),
        (Method::GET, 200, Some("7"), false, Content::Length(7)),
    ] {
        let (handle, server) = open(&server::Builder::new()).await;
        let mut backend = handle.claim().send(&request(method, Content::None), PATIENCE).await.unwrap();
        let (_got, mut send) = accept(server).await;
        let mut head = response(status);
        if let Some(length) = length {
            head.headers_mut().insert(header::CONTENT_LENGTH, length.parse().unwrap());
        }
        send.send_response(head, ends).unwrap();
        assert_eq!(answer(&mut backend).await.unwrap().content, content);
    }
}

#[tokio::test]
async fn how_streams_fail() {
    for (reason, broken) in [(Reason::REFUSED_STREAM, Broken::Refused), (Reason::INTERNAL_ERROR, Broken::Reset)] {
        let (handle, server) = open(&server::Builder::new()).await;
        let mut backend = handle.claim().send(&request(Method::GET, Content::None), PATIENCE).await.unwrap();
        let (_got, mut send) = accept(server).await;
        send.send_reset(reason);
        assert_eq!(answer(&mut backend).await.unwrap_err(), broken);
    }
    // GOAWAY that names no stream, and the end of the connection.
    let (handle, mut server) = open(&server::Builder::new()).await;
    let mut backend = handle.claim().send(&request(Method::GET, Content::None), PATIENCE).await.unwrap();
    server.abrupt_shutdown(Reason::NO_ERROR);
    tokio::spawn(async move { while server.accept().await.is_some() {} });
    assert_eq!(answer(&mut backend).await.unwrap_err(), Broken::Refused);
    assert!(handle.is_closed());
    let (handle, server) = open(&server::Builder::new()).await;
    let mut backend = handle.claim().send(&request(Method::GET, Content::None), PATIENCE).await.unwrap();
    drop(server);
    assert_eq!(answer(&mut backend).await.unwrap_err(), Broken::Gone);
    assert!(handle.is_closed() && handle.claim().send(&request(Method::GET, Content::None), PATIENCE).await.is_err());
}

/// NO_ERROR is no end: behind all of a response it changes nothing, in the middle of one the rest is missing.
#[tokio::test]
async fn a_reset_without_an_error() {
    for is_whole in [true, false] {
        let (handle, server) = open(&server::Builder::new()).await;
        let mut backend = handle.claim().send(&request(Method::POST, Content::Parts), PATIENCE).await.unwrap();
        let (_got, mut respond) = accept(server).await;
        let mut send = respond.send_response(response(200), false).unwrap();
        assert_eq!(answer(&mut backend).await.unwrap().content, Content::Parts);
        send.send_data(Bytes::from_static(b"some"), is_whole).unwrap();
        assert_eq!(data(&mut backend).await, "some");
        send.send_reset(Reason::NO_ERROR);
        soon(async {
            while poll_fn(|cx| backend.poll_flush(cx)).await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        match part(&mut backend).await {
            Ok(None) => assert!(is_whole && backend.is_ended()),
            Err(broken) => assert!(!is_whole && broken == Broken::Reset && !backend.is_ended()),
            Ok(Some(part)) => panic!("{part:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_dropped_is_reset() {
    let (handle, server) = open(server::Builder::new().max_concurrent_streams(1)).await;
    let backend = handle.claim().send(&request(Method::POST, Content::Parts), PATIENCE).await.unwrap();
    assert!(!handle.has_room());
    let (_got, mut send) = accept(server).await;
    drop(backend);
    assert_eq!(soon(poll_fn(|cx| send.poll_reset(cx))).await.unwrap(), Reason::CANCEL);
    assert!(handle.has_room());
}

/// A frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What comes late for streams that were given up, however much of it, does not end the connection under the others.
#[tokio::test]
async fn what_comes_for_streams_that_were_given_up() {
    const GIVEN_UP: u32 = 3_000;
    let (io, mut far) = pair().await;
    let limits = HttpLimits::default();
    far.write_all(&frame(4, 0, 0, b"")).await.unwrap();
    let handle = soon(Handle::open(io, &limits, place())).await.unwrap();
    let mut kept = soon(handle.claim().send(&request(Method::GET, Content::None), PATIENCE)).await.unwrap();
    for _ in 0..GIVEN_UP {
        let backend = soon(handle.claim().send(&request(Method::GET, Content::None), PATIENCE)).await.unwrap();
        tokio::task::yield_now().await;
        drop(backend);
    }
    let (mut read, mut write) = far.into_split();
    let reading = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
    // The status 200 (RFC 7541 §A), and DATA that is on its way. The first stream is the one that is kept.
    let late = (1..=GIVEN_UP).map(|number| 2 * number + 1);
    let late = late.flat_map(|stream| [frame(1, 4, stream, &[0x88]), frame(0, 0, stream, &[0; 20]).repeat(10)]);
    let late = late.flatten().collect::<Vec<_>>();
    soon(write.write_all(&late)).await.unwrap();
    write.write_all(&[frame(1, 4, 1, &[0x88]), frame(0, 1, 1, b"all")].concat()).await.unwrap();
    assert_eq!(answer(&mut kept).await.unwrap().status, StatusCode::OK);
    assert_eq!(data(&mut kept).await, "all");
    assert!(!handle.is_closed());
    drop((kept, handle, write));
    let _ = soon(reading).await;
}

/// A backend may end a connection on which many streams are given up: others do not come to be on it.
#[tokio::test]
async fn a_connection_on_which_much_is_given_up() {
    let (handle, mut server) = open(server::Builder::new().max_pending_accept_reset_streams(1_000)).await;
    tokio::spawn(async move {
        let mut at = 0;
        while let Some(Ok((_, mut send))) = server.accept().await {
            at += 1;
            // As many are refused, which is the backend's own doing.
            if at <= RESETS_MAX {
                send.send_reset(Reason::REFUSED_STREAM);
            }
        }
    });
    let begin = async || soon(handle.claim().send(&request(Method::GET, Content::None), PATIENCE)).await.unwrap();
    for _ in 0..RESETS_MAX {
        assert_eq!(answer(&mut begin().await).await.unwrap_err(), Broken::Refused);
    }
    for _ in 0..RESETS_MAX {
        assert!(handle.has_room());
        begin().await;
    }
    assert!(handle.has_room());
    begin().await;
    assert!(!handle.has_room() && !handle.is_closed());
    pause();
    advance(RESETS_WINDOW).await;
    resume();
    assert!(handle.has_room());
}

#[tokio::test]
async fn a_connection_ends_with_its_last_handle() {
    let (handle, mut server) = open(&server::Builder::new()).await;
    drop(handle);
    assert!(soon(server.accept()).await.is_none());
}

#[tokio::test]
async fn what_does_not_speak_http2() {
    let (io, mut far) = pair().await;
    far.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let limits = HttpLimits::default();
    assert!(soon(Handle::open(io, &limits, place())).await.is_err());
    let mut bytes = Vec::new();
    let _ = soon(far.read_to_end(&mut bytes)).await;
}

fn upgrade(key: Option<&'static str>) -> Request {
    let mut asked = request(Method::GET, Content::None);
    asked.upgrade = Some(HeaderValue::from_static("websocket"));
    asked.headers.extend(key.map(|key| (websocket::KEY, HeaderValue::from_static(key))));
    asked
}

/// RFC 6455 in front, RFC 8441 behind; or RFC 8441 on both sides.
#[tokio::test]
async fn a_web_socket() {
    for key in [None, Some("dGhlIHNhbXBsZSBub25jZQ==")] {
        let (handle, server) = open(server::Builder::new().enable_connect_protocol()).await;
        let mut backend = handle.claim().send(&upgrade(key), PATIENCE).await.unwrap();
        let (got, mut send) = accept(server).await;
        assert_eq!(got.method(), Method::CONNECT);
        assert_eq!(got.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
        assert!(got.headers().is_empty() && got.uri().path() == "/a");
        let mut send = send.send_response(response(200), false).unwrap();
        let answered = answer(&mut backend).await.unwrap();
        assert_eq!((answered.status, answered.content), (StatusCode::SWITCHING_PROTOCOLS, Content::Parts));
        let accept = answered.headers.get(websocket::ACCEPT).map(HeaderValue::as_bytes);
        assert_eq!(accept, key.map(|_| b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".as_slice()));
        let mut bytes = Bytes::from_static(b"up");
        poll_fn(|cx| backend.poll_data(cx, &mut bytes, false)).await.unwrap();
        let mut body = got.into_body();
        assert_eq!(soon(body.data()).await.unwrap().unwrap(), "up");
        send.send_data(Bytes::from_static(b"down"), true).unwrap();
        assert_eq!(data(&mut backend).await, "down");
        backend.end(None).unwrap();
        assert!(soon(body.data()).await.is_none_or(|data| data.unwrap().is_empty()));
    }
}

#[tokio::test]
async fn a_backend_without_extended_connect() {
    let (handle, _server) = open(&server::Builder::new()).await;
    assert_eq!(handle.claim().send(&upgrade(None), PATIENCE).await.unwrap_err(), Broken::Unsupported);
}
