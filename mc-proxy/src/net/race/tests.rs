//! Races between real addresses of the loopback interface. A listener whose queue is full is one that is silent.

use std::{
    cell::RefCell,
    io::{ErrorKind, Read as _},
    net::{IpAddr, TcpListener, TcpStream},
};

use super::*;
use crate::net::{
    addr::BackendAddr,
    dial::{Dial, connecting},
};

const DELAY: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(20);

/// A port of which 127.0.0.1 is silent.
pub(in crate::net) struct Street {
    pub(in crate::net) port: u16,
    _silent: TcpListener,
    _queued: TcpStream,
}

impl Street {
    pub(in crate::net) fn new() -> Self {
        let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        silent.listen(0).unwrap();
        let silent = TcpListener::from(silent);
        let addr = silent.local_addr().unwrap();
        let queued = TcpStream::connect(addr).unwrap();
        Self { port: addr.port(), _silent: silent, _queued: queued }
    }

    pub(in crate::net) fn open(&self, last: u8) -> TcpListener {
        TcpListener::bind(self.addr(last)).unwrap()
    }

    fn addr(&self, last: u8) -> SocketAddr {
        (IpAddr::from([127, 0, 0, last]), self.port).into()
    }

    /// The result, and who was tried when.
    async fn race(&self, lasts: &[u8], first: &[u8]) -> (io::Result<Winner>, Vec<(u8, Duration)>) {
        let begun = Instant::now();
        let tried = RefCell::new(Vec::new());
        let backend = BackendAddr::Ip(self.addr(1));
        let dial = Dial { backend: &backend, first, source: None, mark: None, timeout: PATIENCE };
        let start = |addr: SocketAddr| {
            let IpAddr::V4(ip) = addr.ip() else { panic!("not IPv4") };
            tried.borrow_mut().push((ip.octets()[3], begun.elapsed()));
            connecting(addr, &dial)
        };
        let race = race(lasts.iter().map(|last| self.addr(*last)), DELAY, first, start);
        let result = tokio::time::timeout(PATIENCE, race).await.expect("the race has no end");
        (result, tried.into_inner())
    }
}

fn received(stream: &TcpListener, length: usize) -> Vec<u8> {
    let (mut stream, _) = stream.accept().unwrap();
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_short_deadline_is_divided() {
    let delay = |timeout, addresses| attempt_delay(Duration::from_millis(timeout), addresses).as_millis();
    assert_eq!([delay(5_000, 2), delay(5_000, 20), delay(5_000, 25)], [250, 250, 200]);
    assert_eq!([delay(300, 3), delay(300, 100), delay(300, 0), delay(0, 1)], [100, 10, 250, 10]);
}

#[tokio::test]
async fn the_first_that_answers_is_the_only_one_that_is_tried() {
    let street = Street::new();
    let listener = street.open(2);
    let (winner, tried) = street.race(&[2, 1, 3], b"hello").await;
    let winner = winner.unwrap();
    assert_eq!((winner.addr, winner.sent, winner.is_late), (street.addr(2), 5, false));
    assert_eq!(tried.len(), 1);
    assert_eq!(received(&listener, 5), b"hello");
}

#[tokio::test]
async fn a_silent_one_is_overtaken_after_the_delay_and_not_before() {
    let street = Street::new();
    let listener = street.open(2);
    let (winner, tried) = street.race(&[1, 2, 3], b"hello").await;
    let winner = winner.unwrap();
    assert_eq!((winner.addr, winner.is_late), (street.addr(2), true));
    assert_eq!(tried.iter().map(|(last, _)| *last).collect::<Vec<_>>(), [1, 2]);
    assert!(tried[1].1 >= DELAY, "{tried:?}");
    assert_eq!(received(&listener, 5), b"hello");
}

#[tokio::test]
async fn a_refusal_costs_no_delay() {
    let street = Street::new();
    let _listener = street.open(9);
    let (winner, tried) = street.race(&[3, 4, 5, 9], b"hello").await;
    assert_eq!(winner.unwrap().addr, street.addr(9));
    assert_eq!(tried.iter().map(|(last, _)| *last).collect::<Vec<_>>(), [3, 4, 5, 9]);
}

#[tokio::test]
async fn the_silent_one_wins_when_it_answers_at_last() {
    let street = Street::new();
    let (queue, accepted) = std::sync::mpsc::channel();
    // Room is made while the second, which refuses, is already out of the race.
    let silent = street._silent.try_clone().unwrap();
    let late = std::thread::spawn(move || {
        accepted.recv().unwrap();
        let queued = silent.accept().unwrap();
        (queued, received(&silent, 5))
    });
    let racing = street.race(&[1, 3], b"hello");
    let ((winner, tried), ()) = tokio::join!(racing, async {
        tokio::time::sleep(2 * DELAY).await;
        queue.send(()).unwrap();
    });
    assert_eq!(winner.unwrap().addr, street.addr(1));
    assert_eq!(tried.len(), 2);
    assert_eq!(late.join().unwrap().1, b"hello");
}

#[tokio::test]
async fn without_first_bytes_the_winner_is_who_connects() {
    let street = Street::new();
    let _listener = street.open(2);
    let (winner, _) = street.race(&[1, 2], b"").await;
    let winner = winner.unwrap();
    assert_eq!((winner.addr, winner.sent), (street.addr(2), 0));
}

#[tokio::test]
async fn losers_have_got_nothing() {
    let street = Street::new();
    let fast = street.open(2);
    let (winner, _) = street.race(&[1, 2], b"hello").await;
    let _winner = winner.unwrap();
    assert_eq!(received(&fast, 5), b"hello");
    // Who was waiting comes in, and behind it nobody is left, or a connection without a byte.
    drop(street._silent.accept().unwrap());
    street._silent.set_nonblocking(true).unwrap();
    match street._silent.accept() {
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        Ok((mut loser, _)) => assert!(!matches!(loser.read(&mut [0; 5]), Ok(1..))),
    }
}

#[tokio::test]
async fn when_all_have_failed_the_last_failure_is_told() {
    let street = Street::new();
    let (result, tried) = street.race(&[3, 4], b"hello").await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(tried.len(), 2);
    let (result, _) = street.race(&[], b"hello").await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound);
}
