//! Connections that are chatty and bulky by turns: what a request asks for, and the backend's side of it.
//!
//! A turn is a request of 16 bytes, then as many bytes as it announces, then an answer as long as it asks for. A request
//! can also say that its reader stalls: what it announces is never read, and what it asks for is copied from user space,
//! so that every byte that a proxy takes is memory of the machine (a sendfile would lend the same pages again and again).

use std::os::fd::AsFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::counters::Counters;
use super::socket::{Sink, Source};

/// Bytes of a request, and of the answer to a chatty one.
pub(super) const REQUEST_LEN: usize = 16;
/// Steps of one connection before the others have their turn.
const STEPS: usize = 4;
const STALL: u64 = 1 << 63;

/// What one turn moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// Bytes that follow the request; under 2^63.
    pub(super) up: u64,
    /// Bytes of the answer.
    pub(super) down: u64,
    pub(super) is_stall: bool,
}

impl Request {
    /// A message and one of the same size back.
    pub(super) const CHAT: Self = Self { up: 0, down: REQUEST_LEN as u64, is_stall: false };

    /// Bytes sent in bulk, and one back when they have arrived.
    pub(super) const fn burst_up(bytes: u64) -> Self {
        Self { up: bytes, down: 1, is_stall: false }
    }

    /// Bytes received in bulk.
    pub(super) const fn burst_down(bytes: u64) -> Self {
        Self { up: 0, down: bytes, is_stall: false }
    }

    pub(super) fn to_bytes(self) -> [u8; REQUEST_LEN] {
        let up = self.up | if self.is_stall { STALL } else { 0 };
        let mut bytes = [0; REQUEST_LEN];
        bytes[..8].copy_from_slice(&up.to_be_bytes());
        bytes[8..].copy_from_slice(&self.down.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; REQUEST_LEN]) -> Self {
        let ([up, down], []) = bytes.as_chunks::<8>() else { unreachable!("16 bytes are two times eight") };
        let (up, down) = (u64::from_be_bytes(*up), u64::from_be_bytes(*down));
        Self { up: up & !STALL, down, is_stall: up & STALL != 0 }
    }
}

/// What the backend has to do next on a connection.
#[derive(Debug, Default)]
pub(super) struct Turns {
    head: [u8; REQUEST_LEN],
    got: usize,
    up_left: u64,
    down_left: u64,
    is_stalled: bool,
}

/// How a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// When the socket is ready for this; a stalled reader waits for the end only.
    Wait(EventFlags),
    Over,
}

impl Turns {
    pub(super) fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// Does what the socket permits now.
    pub(super) fn go(
        &mut self,
        socket: impl AsFd,
        (source, sink, scratch): (&Source, &mut Sink, &[u8]),
        counters: &mut Counters,
    ) -> Next {
        for _ in 0..STEPS {
            if self.up_left > 0 && self.is_stalled {
                return Next::Wait(EventFlags::RDHUP);
            }
            if self.up_left > 0 {
                let turn = sink.discard(&socket, self.up_left.try_into().unwrap_or(usize::MAX));
                if turn.is_over {
                    return Next::Over;
                }
                if turn.bytes == 0 {
                    return Next::Wait(EventFlags::IN);
                }
                counters.bytes_received += turn.bytes;
                self.up_left -= turn.bytes;
                continue;
            }
            if self.down_left > 0 {
                let turn = if self.is_stalled || self.down_left <= REQUEST_LEN as u64 {
                    Source::copy(&socket, scratch, self.down_left)
                } else {
                    source.pour_at_most(&socket, self.down_left)
                };
                if turn.is_over {
                    return Next::Over;
                }
                counters.bytes_sent += turn.bytes;
                self.down_left -= turn.bytes;
                if self.down_left > 0 {
                    return Next::Wait(EventFlags::OUT | EventFlags::RDHUP);
                }
                // The next request answers to what was just sent.
                return Next::Wait(EventFlags::IN);
            }
            match rustix::net::recv(&socket, &mut self.head[self.got..], RecvFlags::empty()) {
                Ok((_, 0)) => return Next::Over,
                Ok((_, received)) => self.got += received,
                Err(Errno::AGAIN) => return Next::Wait(EventFlags::IN),
                Err(_) => return Next::Over,
            }
            if self.got == REQUEST_LEN {
                let request = Request::from_bytes(&self.head);
                counters.done += 1;
                (self.got, self.up_left, self.down_left) = (0, request.up, request.down);
                self.is_stalled = request.is_stall;
            }
        }
        Next::Wait(if self.up_left == 0 && self.down_left > 0 { EventFlags::OUT } else { EventFlags::IN })
    }
}

/// Sends a request, whole.
pub(super) fn ask(socket: impl AsFd, request: Request) -> anyhow::Result<()> {
    let sent = rustix::net::send(socket, &request.to_bytes(), SendFlags::NOSIGNAL)?;
    anyhow::ensure!(sent == REQUEST_LEN, "sent {sent} bytes of a request");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::socket::pattern;
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        let requests = [
            Request::CHAT,
            Request::burst_up(8 << 20),
            Request::burst_down(u64::MAX),
            Request { up: STALL - 1, down: 0, is_stall: true },
            Request { up: 0, down: 10_000_000_000, is_stall: true },
        ];
        for request in requests {
            assert_eq!(Request::from_bytes(&request.to_bytes()), request);
        }
    }

    /// One end of a socket pair plays the client, the other the backend.
    struct Pair {
        client: UnixStream,
        backend: UnixStream,
        turns: Turns,
        source: Source,
        sink: Sink,
        counters: Counters,
    }

    impl Pair {
        fn new() -> Self {
            let (client, backend) = UnixStream::pair().unwrap();
            client.set_nonblocking(true).unwrap();
            backend.set_nonblocking(true).unwrap();
            let (source, sink) = (Source::new().unwrap(), Sink::new());
            Self { client, backend, turns: Turns::default(), source, sink, counters: Counters::default() }
        }

        fn go(&mut self) -> Next {
            let scratch = pattern(4096);
            self.turns.go(&self.backend, (&self.source, &mut self.sink, &scratch), &mut self.counters)
        }
    }

    #[test]
    fn a_chat_is_answered_even_when_it_comes_in_pieces() {
        use std::io::{Read, Write};
        let mut pair = Pair::new();
        for byte in Request::CHAT.to_bytes() {
            assert_eq!(pair.go(), Next::Wait(EventFlags::IN));
            pair.client.write_all(&[byte]).unwrap();
        }
        assert_eq!(pair.go(), Next::Wait(EventFlags::IN));
        let mut answer = [0; 64];
        assert_eq!(pair.client.read(&mut answer).unwrap(), REQUEST_LEN);
        assert_eq!((pair.counters.done, pair.counters.bytes_sent), (1, REQUEST_LEN as u64));
    }

    #[test]
    fn a_stalled_reader_leaves_everything_where_it_is() {
        let mut pair = Pair::new();
        ask(&pair.client, Request { up: 1000, down: 0, is_stall: true }).unwrap();
        std::io::Write::write_all(&mut pair.client, &[7; 100]).unwrap();
        for _ in 0..3 {
            assert_eq!(pair.go(), Next::Wait(EventFlags::RDHUP));
        }
        assert_eq!(pair.counters.bytes_received, 0);
    }

    #[test]
    fn the_end_of_the_client_is_the_end() {
        let mut pair = Pair::new();
        let (other, _) = UnixStream::pair().unwrap();
        drop(std::mem::replace(&mut pair.client, other));
        assert_eq!(pair.go(), Next::Over);
    }
}
