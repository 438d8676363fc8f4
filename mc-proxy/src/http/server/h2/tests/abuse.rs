//! Clients that do too much of something, or nothing.

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// GET, https, `/`, and a.example as `:authority` (RFC 7541 §6).
const BLOCK: &[u8] = b"\x82\x87\x84\x41\x09a.example";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The kinds of the frames that come until the end, with their payloads.
async fn frames(far: &mut TcpStream) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    let mut head = [0; 9];
    while far.read_exact(&mut head).await.is_ok() {
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        far.read_exact(&mut payload).await.unwrap();
        frames.push((head[3], payload));
    }
    frames
}

/// The error code of the last GOAWAY.
fn goaway(frames: &[(u8, Vec<u8>)]) -> Option<u32> {
    let (_, payload) = frames.iter().rfind(|(kind, _)| *kind == 7)?;
    Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()))
}

/// Sends `flood` behind the preface, and is told to calm down.
async fn flood(flood: &[u8]) {
    let (served, mut far, mut around) = Bench::new(nowhere(), BackendProtocol::Http1, limits()).serve().await;
    far.write_all(&[PREFACE, flood].concat()).await.unwrap();
    let frames = soon(frames(&mut far)).await;
    assert_eq!(goaway(&frames), Some(11), "{frames:?}");
    drop(far);
    assert_eq!(soon(served).await.unwrap(), Outcome::Closed);
    assert_eq!(around.edge.http_counters.abuse(), 1);
    assert_eq!(around.offences.recv().await.unwrap().kind, OffenceKind::Http);
}

/// CVE-2023-44487.
#[tokio::test]
async fn rapid_reset() {
    let pairs = (0..11).flat_map(|at| {
        let stream = 2 * at + 1;
        [frame(1, 5, stream, BLOCK), frame(3, 0, stream, &[0, 0, 0, 8])].concat()
    });
    flood(&pairs.collect::<Vec<_>>()).await;
}

/// CVE-2025-8671: a window that overflows makes the server reset.
#[tokio::test]
async fn made_you_reset() {
    let pairs = (0..11).flat_map(|at| {
        let stream = 2 * at + 1;
        [frame(1, 5, stream, BLOCK), frame(8, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat()
    });
    flood(&pairs.collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn pings() {
    flood(&frame(6, 0, 0, &[0; 8]).repeat(21)).await;
}

/// CVE-2024-27316.
#[tokio::test]
async fn continuations() {
    flood(&[frame(1, 1, 1, BLOCK), frame(9, 0, 1, b"").repeat(9)].concat()).await;
}

#[tokio::test]
async fn a_client_that_says_nothing() {
    let http = HttpLimits { header_timeout: Duration::from_millis(100), ..limits() };
    for begun in [&b""[..], &PREFACE[..20], &PREFACE[..24], &[PREFACE, &frame(1, 1, 1, b"")[..5]].concat()] {
        let http = HttpLimits { keepalive_timeout: Duration::from_millis(200), ..http.clone() };
        let (served, mut far, _around) = Bench::new(nowhere(), BackendProtocol::Http1, http).serve().await;
        far.write_all(begun).await.unwrap();
        let frames = soon(frames(&mut far)).await;
        drop(far);
        let outcome = soon(served).await.unwrap();
        assert!(matches!(outcome, Outcome::Idle | Outcome::Closed), "{outcome:?} {frames:?}");
    }
}

/// CONTINUATION that does not come.
#[tokio::test]
async fn a_field_block_that_does_not_end() {
    let http = HttpLimits { header_timeout: Duration::from_millis(100), ..limits() };
    let (served, mut far, mut around) = Bench::new(nowhere(), BackendProtocol::Http1, http).serve().await;
    far.write_all(&[PREFACE, &frame(1, 1, 1, BLOCK)].concat()).await.unwrap();
    let frames = soon(frames(&mut far)).await;
    assert_eq!(goaway(&frames), Some(1));
    drop(far);
    assert_eq!(soon(served).await.unwrap(), Outcome::Closed);
    assert_eq!(around.offences.recv().await.unwrap().kind, OffenceKind::Timeout);
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go() {
    let http = HttpLimits { keepalive_timeout: Duration::from_millis(50), ..limits() };
    let (served, far, _around) = Bench::new(nowhere(), BackendProtocol::Http1, http).serve().await;
    let (_sender, connection) = client(far).await;
    soon(connection).await.unwrap().unwrap();
    assert_eq!(soon(served).await.unwrap(), Outcome::Idle);
}

#[tokio::test]
async fn a_drain_lets_streams_end() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n";
    for is_busy in [false, true] {
        let (addr, _backend) = backend(move |_| answer.to_owned()).await;
        let (served, far, around) = Bench::new(addr, BackendProtocol::Http1, limits()).serve().await;
        let (mut sender, connection) = client(far).await;
        let exchange = is_busy.then(|| {
            let head = Request::post("https://a.example/").header("content-length", "4").body(()).unwrap();
            sender.send_request(head, false).unwrap()
        });
        if let Some((response, mut send)) = exchange {
            let response = soon(response).await.unwrap();
            around.drain.begin();
            tokio::time::sleep(Duration::from_millis(50)).await;
            send.send_data(Bytes::from_static(b"data"), true).unwrap();
            assert_eq!(soon(read(response.into_body())).await.0, b"data");
        } else {
            around.drain.begin();
        }
        soon(connection).await.unwrap().unwrap();
        let expected = if is_busy { Outcome::Closed } else { Outcome::Told };
        assert_eq!(soon(served).await.unwrap(), expected);
    }
}

/// Its window stays shut, and its response waits in a buffer that has a bound.
#[tokio::test]
async fn a_client_that_takes_nothing() {
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(100_000));
    let (addr, _backend) = backend(move |_| answer).await;
    let http = HttpLimits { write_timeout: Duration::from_millis(100), ..limits() };
    let (_served, far, around) = Bench::new(addr, BackendProtocol::Http1, http).serve().await;
    let (mut sender, _connection) = client(far).await;
    let (response, mut send) = sender.send_request(get("/"), true).unwrap();
    let response = soon(response).await.unwrap();
    let reset = soon(poll_fn(|cx| send.poll_reset(cx))).await.unwrap();
    assert_eq!(reset, Reason::INTERNAL_ERROR);
    drop(response);
    let aborted = around.edge.http_counters.outcomes().find(|(outcome, _)| *outcome == access::Outcome::ClientAborted);
    assert_eq!(aborted.unwrap().1, 1);
}
