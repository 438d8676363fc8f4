//! The relay between real TCP sockets on loopback, with small kernel buffers so that every write blocks sooner or later.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

use super::*;

/// The far end of one side, and the relay's end of it.
async fn pair() -> (TcpStream, Socket) {
    pair_that_receives(16 * 1024).await
}

async fn pair_that_receives(buffer: usize) -> (TcpStream, Socket) {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    SockRef::from(&listener).set_recv_buffer_size(buffer).unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (near, _) = listener.accept().await.unwrap();
    let near = near.into_std().unwrap();
    SockRef::from(&near).set_send_buffer_size(16 * 1024).unwrap();
    (far, Socket::new(OwnedFd::from(near)))
}

async fn relay(client: Socket, backend: Socket, idle: Duration) -> JoinHandle<(Ended, Transferred)> {
    relay_until(client, backend, idle, Drain::never()).await
}

thread_local! {
    /// A test has its thread.
    static SPLICING: RefCell<Arc<Splicing>> = RefCell::new(Arc::new(Splicing::userspace()));
}

/// Lets the relays of this test be carried by the kernel in `mode`; `false`, and said so, without the rights for it.
fn set_mode(mode: Splice) -> bool {
    match Kernel::load() {
        Ok(kernel) => {
            SPLICING.set(Arc::new(Splicing::new(mode, Ok(kernel))));
            true
        }
        Err(error) => {
            assert!(
                std::env::var_os("MC_PROXY_REQUIRE_KERNEL").is_none(),
                "{error}: {:?}",
                std::error::Error::source(&error)
            );
            eprintln!("skipped: pairs cannot be spliced in the kernel here: {error}");
            false
        }
    }
}

/// In the kernel's hands already, if that is where it is to be.
async fn relay_until(
    mut client: Socket,
    mut backend: Socket,
    idle: Duration,
    drain: Drain,
) -> JoinHandle<(Ended, Transferred)> {
    let splicing = SPLICING.with_borrow(Arc::clone);
    let taken = splicing.figures().taken;
    let theirs = Arc::clone(&splicing);
    let handle = tokio::spawn(async move {
        let mut transferred = Transferred::default();
        let terms = Terms { idle, drain: &drain, splicing: &theirs, mode: None };
        let ended = run(&mut client, &mut backend, terms, &mut transferred).await;
        if ended.is_orderly() {
            client.close();
            backend.close();
        }
        (ended, transferred)
    });
    while splicing.mode(None) == Splice::Sockmap && splicing.figures().taken == taken {
        tokio::task::yield_now().await;
    }
    handle
}

/// A stream that can be checked at every position.
fn byte_at(seed: u64, position: usize) -> u8 {
    let mixed = (position as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u8
}

async fn send(mut stream: tokio::net::tcp::OwnedWriteHalf, seed: u64, total: usize, chunks: &[usize]) {
    let mut sent = 0;
    for chunk in chunks.iter().cycle() {
        let chunk: Vec<u8> = (sent..total.min(sent + chunk)).map(|at| byte_at(seed, at)).collect();
        stream.write_all(&chunk).await.unwrap();
        sent += chunk.len();
        if sent == total {
            break;
        }
        tokio::task::yield_now().await;
    }
    stream.shutdown().await.unwrap();
    // Dropping the half would only repeat the shutdown.
    stream.forget();
}

async fn receive(mut stream: tokio::net::tcp::OwnedReadHalf, seed: u64, total: usize, pause: Duration) {
    let mut buffer = vec![0; 48 * 1024];
    let mut received = 0;
    loop {
        let read = stream.read(&mut buffer).await.unwrap();
        if read == 0 {
            break;
        }
        for (offset, byte) in buffer[..read].iter().enumerate() {
            assert_eq!(*byte, byte_at(seed, received + offset), "at {}", received + offset);
        }
        received += read;
        if received % 7 == 0 {
            tokio::time::sleep(pause).await;
        }
    }
    assert_eq!(received, total);
}

const PATIENCE: Duration = Duration::from_secs(30);

async fn both_directions_at_once_whatever_the_sizes() {
    for (up, down, chunks) in [
        (0, 0, &[1][..]),
        (1, 300_000, &[1, 2, 3, 1000]),
        (3_000_000, 5, &[65_536, 65_536, 65_536, 200_000, 1]),
        (2_000_000, 2_000_000, &[100_000, 100_000, 100_000, 100_000, 100_000, 100_000, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]),
    ] {
        let (client, near_client) = pair().await;
        let (backend, near_backend) = pair().await;
        let relay = relay(near_client, near_backend, PATIENCE).await;
        let (client_read, client_write) = client.into_split();
        let (backend_read, backend_write) = backend.into_split();
        let pause = Duration::from_millis(1);
        let all = async {
            tokio::join!(
                send(client_write, 1, up, chunks),
                send(backend_write, 2, down, chunks),
                receive(backend_read, 1, up, pause),
                receive(client_read, 2, down, pause),
            )
        };
        timeout(PATIENCE, all).await.expect("the relay stalled");
        let (ended, transferred) = relay.await.unwrap();
        assert_eq!(ended, Ended::Closed);
        assert_eq!(transferred, Transferred { client: up as u64, backend: down as u64 });
    }
}

#[tokio::test]
async fn a_direction_that_has_been_bulk_holds_nothing_while_it_is_idle() {
    let (mut client, mut near_client) = pair_that_receives(1 << 20).await;
    let (mut backend, mut near_backend) = pair().await;
    let mut direction = Direction::default();
    let mut moved = 0;
    let mut was_bulk = false;
    for total in [400_000, 3_000_000] {
        let moving = poll_fn(|cx| {
            let polled = BUFFER
                .with_borrow_mut(|buffer| direction.poll(cx, &mut near_client, &mut near_backend, buffer, &mut moved));
            was_bulk |= direction.holds().0;
            polled
        });
        let (sent, mut taken) = (vec![7; total], vec![0; total]);
        let take = async {
            // Late, so that the target blocks.
            tokio::time::sleep(Duration::from_millis(50)).await;
            backend.read_exact(&mut taken).await
        };
        let both = async { tokio::try_join!(client.write_all(&sent), take) };
        tokio::select! {
            biased;
            end = moving => panic!("{end:?}"),
            result = timeout(PATIENCE, both) => drop(result.expect("stalled").unwrap()),
        }
        // What the last poll left: it looks once more, and finds nothing.
        poll_fn(|cx| {
            BUFFER.with_borrow_mut(|buffer| {
                let _ = direction.poll(cx, &mut near_client, &mut near_backend, buffer, &mut moved);
            });
            Poll::Ready(())
        })
        .await;
        let (_, memory, has_pipe) = direction.holds();
        assert_eq!((memory, has_pipe), (0, false));
    }
    assert!(was_bulk);
}

async fn the_end_of_one_side_leaves_the_other_open() {
    let (mut client, near_client) = pair().await;
    let (mut backend, near_backend) = pair().await;
    let relay = relay(near_client, near_backend, PATIENCE).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    backend.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"question");
    for _ in 0..100 {
        backend.write_all(&[7; 10_000]).await.unwrap();
        tokio::task::yield_now().await;
        let mut part = vec![0; 10_000];
        client.read_exact(&mut part).await.unwrap();
    }
    drop(backend);
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(relay.await.unwrap().0, Ended::Closed);
}

async fn a_reset_reaches_the_other_side_as_a_reset() {
    for is_client in [true, false] {
        let (client, near_client) = pair().await;
        let (backend, near_backend) = pair().await;
        let relay = relay(near_client, near_backend, PATIENCE).await;
        let (failing, mut other) = if is_client { (client, backend) } else { (backend, client) };
        SockRef::from(&failing).set_linger(Some(Duration::ZERO)).unwrap();
        drop(failing);
        let error = other.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let expected = if is_client { Ended::ClientFailed } else { Ended::BackendFailed };
        assert_eq!(relay.await.unwrap().0, expected);
    }
}

async fn a_reset_after_the_end_is_noticed_while_the_other_side_is_silent() {
    let (mut client, near_client) = pair().await;
    let (mut backend, near_backend) = pair().await;
    let relay = relay(near_client, near_backend, PATIENCE).await;
    client.shutdown().await.unwrap();
    assert_eq!(backend.read(&mut [0; 1]).await.unwrap(), 0);
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let (ended, _) = timeout(PATIENCE, relay).await.expect("not noticed").unwrap();
    assert_eq!(ended, Ended::ClientFailed);
    // A read would still give the end that came first.
    assert!(backend.write_all(b"x").await.is_err());
}

async fn silence_ends_a_relay_and_a_byte_prolongs_it() {
    let (mut client, near_client) = pair().await;
    let (mut backend, near_backend) = pair().await;
    let idle = Duration::from_millis(300);
    let start = Instant::now();
    let relay = relay(near_client, near_backend, idle).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.write_all(b"x").await.unwrap();
        backend.read_exact(&mut [0]).await.unwrap();
    }
    assert_eq!(relay.await.unwrap().0, Ended::Idle);
    assert!(start.elapsed() >= Duration::from_millis(700));
}

/// Also what was said just before or after the relay has last looked at its clock does not count twice.
async fn silence_is_counted_from_the_last_byte() {
    const IDLE: Duration = Duration::from_secs(2);
    for delay in [None, Some(IDLE / 4)] {
        let (mut client, near_client) = pair().await;
        let (mut backend, near_backend) = pair().await;
        let relay = relay(near_client, near_backend, IDLE).await;
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
            client.write_all(b"x").await.unwrap();
            backend.read_exact(&mut [0]).await.unwrap();
        }
        let silent = Instant::now();
        assert_eq!(relay.await.unwrap().0, Ended::Idle);
        let lasted = silent.elapsed();
        assert!(lasted < IDLE + IDLE / 2, "{lasted:?}, {delay:?}");
    }
}

fn drain_after(quiet: u64) -> Drain {
    Drain::new(tokio_util::sync::CancellationToken::new(), Duration::from_millis(quiet))
}

async fn a_quiet_pair_is_told_and_has_its_last_words() {
    let (mut client, near_client) = pair().await;
    let (mut backend, near_backend) = pair().await;
    let drain = drain_after(200);
    let relay = relay_until(near_client, near_backend, PATIENCE, drain.child()).await;
    client.write_all(b"question").await.unwrap();
    backend.read_exact(&mut [0; 8]).await.unwrap();
    drain.begin();
    // It goes on as long as something moves.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        backend.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
    }
    let quiet = Instant::now();
    for side in [&mut client, &mut backend] {
        assert_eq!(timeout(PATIENCE, side.read(&mut [0; 1])).await.expect("not told").unwrap(), 0);
    }
    assert!(quiet.elapsed() >= Duration::from_millis(150), "{:?}", quiet.elapsed());
    client.write_all(b"close_notify").await.unwrap();
    drop((client, backend));
    let (ended, transferred) = timeout(PATIENCE, relay).await.unwrap().unwrap();
    assert_eq!((ended, transferred), (Ended::Told, Transferred { client: 8, backend: 10 }));
}

async fn a_side_that_talks_on_after_it_was_told_is_cut_off() {
    let (mut client, near_client) = pair().await;
    let (mut backend, near_backend) = pair().await;
    let drain = drain_after(0);
    let relay = relay_until(near_client, near_backend, PATIENCE, drain.child()).await;
    drain.begin();
    assert_eq!(timeout(PATIENCE, client.read(&mut [0; 1])).await.expect("not told").unwrap(), 0);
    let (_, mut write) = client.into_split();
    let talk = async { while write.write_all(&[7; 1000]).await.is_ok() {} };
    let (ended, ()) = timeout(PATIENCE, async { tokio::join!(relay, talk) }).await.unwrap();
    assert_eq!(ended.unwrap().0, Ended::CutOff);
    assert_eq!(backend.read(&mut [0; 1]).await.unwrap(), 0, "its end had come before");
}

/// A FIN behind half of what was read would make a cut stream look whole.
async fn nobody_is_told_before_it_has_everything() {
    let (mut client, near_client) = pair().await;
    let (backend, near_backend) = pair().await;
    let drain = drain_after(100);
    let relay = relay_until(near_client, near_backend, PATIENCE, drain.child()).await;
    let total = 3_000_000;
    let (_backend_read, backend_write) = backend.into_split();
    let flood = tokio::spawn(send(backend_write, 5, total, &[100_000]));
    // Until nothing more fits in between.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drain.begin();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (client_read, mut client_write) = client.split();
    let mut received = 0;
    let mut buffer = vec![0; 100_000];
    while received < total {
        client_read.readable().await.unwrap();
        match client_read.try_read(&mut buffer) {
            Ok(read) => {
                assert_ne!(read, 0, "the end came after {received} bytes");
                received += read;
            }
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    flood.await.unwrap();
    client_write.shutdown().await.unwrap();
    let (ended, transferred) = timeout(PATIENCE, relay).await.unwrap().unwrap();
    assert_eq!(transferred.backend, total as u64);
    assert!(ended.is_orderly(), "{ended:?}");
}

async fn a_reader_that_stalls_for_ever_is_idle_also_when_the_other_side_has_ended() {
    for half_closes in [false, true] {
        let (client, near_client) = pair().await;
        let (mut backend, near_backend) = pair().await;
        let relay = relay(near_client, near_backend, Duration::from_millis(400)).await;
        let flood = async { while backend.write_all(&[7; 10_000]).await.is_ok() {} };
        let (_client_read, mut client_write) = client.into_split();
        if half_closes {
            client_write.shutdown().await.unwrap();
        }
        let (ended, ()) = timeout(PATIENCE, async { tokio::join!(relay, flood) }).await.expect("it waits for ever");
        assert_eq!(ended.unwrap().0, Ended::Idle);
    }
}

/// A client that sends all of its request before it reads would otherwise wait until the idle timeout.
async fn what_a_side_sends_is_passed_on_while_it_does_not_read() {
    for is_client in [true, false] {
        let (client, near_client) = pair().await;
        let (backend, near_backend) = pair().await;
        let relay = relay(near_client, near_backend, PATIENCE).await;
        let (mut deaf, talker) = if is_client { (client, backend) } else { (backend, client) };
        let (mut talker_read, mut talker_write) = talker.into_split();
        // Small writes with pauses, so that the first send that blocks is the one that stays blocked.
        let flood = tokio::spawn(async move {
            loop {
                talker_write.write_all(&[7; 1000]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        deaf.write_all(b"more").await.unwrap();
        let mut heard = [0; 4];
        timeout(PATIENCE / 2, talker_read.read_exact(&mut heard)).await.expect("not passed on").unwrap();
        assert_eq!(&heard, b"more");
        flood.abort();
        relay.abort();
    }
}

/// Each of them with pairs carried in user space, and in the kernel from the first byte on.
macro_rules! in_each_mode {
    ($($test:ident,)*) => {
        mod userspace {
            $(#[tokio::test]
            async fn $test() {
                super::$test().await;
            })*
        }

        mod kernel {
            $(#[tokio::test]
            async fn $test() {
                if super::set_mode(super::Splice::Sockmap) {
                    super::$test().await;
                    super::nothing_is_left().await;
                }
            })*
        }
    };
}

in_each_mode! {
    both_directions_at_once_whatever_the_sizes,
    the_end_of_one_side_leaves_the_other_open,
    a_reset_reaches_the_other_side_as_a_reset,
    a_reset_after_the_end_is_noticed_while_the_other_side_is_silent,
    silence_ends_a_relay_and_a_byte_prolongs_it,
    silence_is_counted_from_the_last_byte,
    a_quiet_pair_is_told_and_has_its_last_words,
    a_side_that_talks_on_after_it_was_told_is_cut_off,
    nobody_is_told_before_it_has_everything,
    a_reader_that_stalls_for_ever_is_idle_also_when_the_other_side_has_ended,
    what_a_side_sends_is_passed_on_while_it_does_not_read,
}

#[tokio::test]
async fn an_engine_that_fails_gives_its_pairs_back_and_gets_no_more() {
    if !set_mode(Splice::Sockmap) {
        return;
    }
    let splicing = SPLICING.with_borrow(Arc::clone);
    let kernel = Arc::clone(splicing.kernel().unwrap());
    let (mut client, near_client) = pair().await;
    let (mut backend, near_backend) = pair().await;
    let before = relay(near_client, near_backend, PATIENCE).await;
    client.write_all(b"before").await.unwrap();
    backend.read_exact(&mut [0; 6]).await.unwrap();
    kernel.fail();
    assert!(splicing.kernel().is_err());
    let given_back = async {
        while kernel.figures().credit > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, given_back).await.expect("the kernel still carries it");
    let (mut other_client, near_client) = pair().await;
    let (mut other_backend, near_backend) = pair().await;
    let after = relay(near_client, near_backend, PATIENCE).await;
    for (client, backend) in [(&mut client, &mut backend), (&mut other_client, &mut other_backend)] {
        client.write_all(b"after").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        timeout(PATIENCE, backend.read_to_end(&mut heard)).await.expect("nobody hears of the end").unwrap();
        assert_eq!(heard, b"after");
    }
    drop((client, backend, other_client, other_backend));
    assert_eq!(before.await.unwrap(), (Ended::Closed, Transferred { client: 11, backend: 0 }));
    assert_eq!(after.await.unwrap(), (Ended::Closed, Transferred { client: 5, backend: 0 }));
    assert_eq!(kernel.figures().taken, 1);
}

/// No pair, and no credit.
async fn nothing_is_left() {
    let kernel = SPLICING.with_borrow(Arc::clone);
    let ended = async {
        while kernel.figures().pairs > 0 || kernel.figures().credit > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, ended).await.expect("a pair is left");
    assert!(kernel.figures().taken > 0, "{:?}", kernel.figures());
}
