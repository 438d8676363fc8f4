//! One end of a relayed pair: it sends a pattern, and checks the pattern that it receives.

use std::{
    cell::RefCell,
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::{SendFlags, connect_unspec, send};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    task::consume_budget,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{Pattern, Random};
use crate::client::is_reset;

/// A peer that makes no progress for this long has been forgotten.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Bytes in one call.
const BUFFER: usize = 128 << 10;

thread_local! {
    /// Filled and used between two waits.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// FIN.
    Closed,
    /// RST.
    Reset,
}

/// One end of a pair. Its halves can be used by tasks of their own.
#[derive(Debug)]
pub struct Peer {
    addr: SocketAddr,
    /// What it says.
    pub sender: Sender,
    /// What it hears.
    pub receiver: Receiver,
}

/// A place in a stream, which others may look at while it moves on.
#[derive(Clone, Debug, Default)]
pub struct Position(Arc<AtomicU64>);

/// Sends its pattern from the position it has come to.
#[derive(Debug)]
pub struct Sender {
    stream: Arc<TcpStream>,
    pattern: Pattern,
    at: Position,
}

/// Receives and checks a pattern from the position it has come to.
#[derive(Debug)]
pub struct Receiver {
    stream: Arc<TcpStream>,
    pattern: Pattern,
    at: Position,
}

impl Peer {
    /// A peer that sends `sends` and has to receive `receives`.
    pub fn new(stream: TcpStream, sends: Pattern, receives: Pattern) -> Result<Self> {
        stream.set_nodelay(true)?;
        let addr = stream.local_addr()?;
        let stream = Arc::new(stream);
        Ok(Self {
            addr,
            sender: Sender { stream: Arc::clone(&stream), pattern: sends, at: Position::default() },
            receiver: Receiver { stream, pattern: receives, at: Position::default() },
        })
    }

    /// Its own address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Asks the kernel for buffers of about `bytes` in both directions, instead of ones that grow.
    pub fn limit_buffers(&self, bytes: usize) -> Result<()> {
        let socket = SockRef::from(&*self.sender.stream);
        socket.set_send_buffer_size(bytes)?;
        Ok(socket.set_recv_buffer_size(bytes)?)
    }

    /// RST, at once.
    pub fn reset(self) -> Result<()> {
        self.sender.reset()
    }
}

impl Position {
    /// Bytes that have been moved so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn advance(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }
}

impl Sender {
    /// Bytes sent so far.
    pub fn at(&self) -> u64 {
        self.at.bytes()
    }

    /// Follows [`Self::at`].
    pub fn position(&self) -> Position {
        self.at.clone()
    }

    /// Sends the next `length` bytes.
    pub async fn send(&mut self, length: u64) -> Result<()> {
        self.send_in_writes_of(length, BUFFER).await
    }

    /// The same in writes of at most `size`.
    pub async fn send_in_writes_of(&mut self, length: u64, size: usize) -> Result<()> {
        let end = self.at() + length;
        while self.at() < end {
            // A peer that never has to wait still lets others run.
            consume_budget().await;
            let most = size.min(usize::try_from(end - self.at()).unwrap_or(size));
            if self.try_send(most)? == 0 {
                let writable = timeout(PATIENCE, self.stream.writable()).await;
                writable.with_context(|| format!("byte {} could not be sent for {PATIENCE:?}", self.at()))??;
            }
        }
        Ok(())
    }

    /// Sends `length` bytes in writes of any size, with pauses in between.
    pub async fn send_at_random(&mut self, length: u64, largest: u64, random: &mut Random) -> Result<()> {
        let end = self.at() + length;
        while self.at() < end {
            let size = random.size(largest).min(end - self.at());
            self.send_in_writes_of(size, size.min(BUFFER as u64) as usize).await?;
            pause(random).await;
        }
        Ok(())
    }

    /// Sends in writes of `size`, as much as is taken within `time` and at most `most`. Returns how much that is.
    pub async fn push(&mut self, most: u64, size: usize, time: Duration) -> Result<u64> {
        let (begin, end) = (self.at(), Instant::now() + time);
        while self.at() - begin < most {
            consume_budget().await;
            if self.try_send(size)? == 0 && timeout_at(end, self.stream.writable()).await.is_err() {
                break;
            }
        }
        Ok(self.at() - begin)
    }

    /// One write; 0 when there is no room.
    pub fn try_send(&mut self, size: usize) -> Result<usize> {
        let sent = SCRATCH.with_borrow_mut(|scratch| {
            let bytes = &mut scratch[..size.min(BUFFER)];
            self.pattern.fill(self.at(), bytes);
            self.stream.try_write(bytes)
        });
        match sent {
            Ok(count) => {
                self.at.advance(count);
                Ok(count)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error).with_context(|| format!("sending at byte {}", self.at())),
        }
    }

    /// FIN.
    pub fn finish(&self) -> Result<()> {
        SockRef::from(&*self.stream).shutdown(std::net::Shutdown::Write).context("sending FIN")
    }

    /// Sends the next `length` bytes, the last of them in the segment that carries the FIN.
    pub async fn send_and_finish(&mut self, length: u64) -> Result<()> {
        let last = length.min(1_000);
        self.send(length - last).await?;
        let mut bytes = vec![0; last as usize];
        self.pattern.fill(self.at(), &mut bytes);
        let end = self.at() + last;
        while self.at() < end {
            let rest = &bytes[(last - (end - self.at())) as usize..];
            match send(&*self.stream, rest, SendFlags::MORE | SendFlags::NOSIGNAL) {
                Ok(count) => self.at.advance(count),
                // The reactor is not asked: it has not seen that this call found no room.
                Err(rustix::io::Errno::AGAIN) => sleep(Duration::from_millis(1)).await,
                Err(error) => return Err(error).with_context(|| format!("sending at byte {}", self.at())),
            }
        }
        self.finish()
    }

    /// RST, at once.
    pub fn reset(&self) -> Result<()> {
        connect_unspec(&*self.stream).context("sending RST")
    }
}

impl Receiver {
    /// Bytes received so far.
    pub fn at(&self) -> u64 {
        self.at.bytes()
    }

    /// Follows [`Self::at`].
    pub fn position(&self) -> Position {
        self.at.clone()
    }

    /// Receives exactly the next `length` bytes.
    pub async fn receive(&mut self, length: u64) -> Result<()> {
        let end = self.at() + length;
        while self.at() < end {
            let most = usize::try_from(end - self.at()).unwrap_or(BUFFER);
            match self.read(most).await? {
                Ok(0) => bail!("the stream ended at byte {}, {} short", self.at(), end - self.at()),
                Ok(_) => {}
                Err(error) => return Err(error).with_context(|| format!("receiving at byte {}", self.at())),
            }
        }
        Ok(())
    }

    /// Receives `length` bytes in reads of any size, with pauses in between.
    pub async fn receive_at_random(&mut self, length: u64, largest: u64, random: &mut Random) -> Result<()> {
        let end = self.at() + length;
        while self.at() < end {
            self.receive(random.size(largest).min(end - self.at())).await?;
            pause(random).await;
        }
        Ok(())
    }

    /// Receives up to the end.
    pub async fn ending(&mut self) -> Result<Ending> {
        loop {
            match self.read(BUFFER).await? {
                Ok(0) => return Ok(Ending::Closed),
                Ok(_) => {}
                Err(error) if is_reset(&error) => return Ok(Ending::Reset),
                Err(error) => return Err(error).with_context(|| format!("receiving at byte {}", self.at())),
            }
        }
    }

    /// Receives up to the FIN, which has to come after exactly `total` bytes.
    pub async fn end_at(&mut self, total: u64) -> Result<()> {
        let ending = self.ending().await?;
        ensure!(
            (ending, self.at()) == (Ending::Closed, total),
            "the stream ended with {ending:?} at byte {} of {total}",
            self.at()
        );
        Ok(())
    }

    /// What one read gives, checked; 0 at the end.
    async fn read(&mut self, most: usize) -> Result<io::Result<usize>> {
        loop {
            consume_budget().await;
            let readable = timeout(PATIENCE, self.stream.readable()).await;
            readable.with_context(|| format!("byte {} did not come for {PATIENCE:?}", self.at()))??;
            let (pattern, at) = (self.pattern, self.at());
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let read = self.stream.try_read(&mut scratch[..most.min(BUFFER)]);
                let bytes = read.as_ref().map_or(&[][..], |count| &scratch[..*count]);
                pattern.check(at, bytes).map(|()| read)
            })?;
            match read {
                Ok(count) => {
                    self.at.advance(count);
                    return Ok(Ok(count));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Ok(Err(error)),
            }
        }
    }
}

/// None most of the time.
async fn pause(random: &mut Random) {
    if random.percent(15) {
        sleep(random.duration(Duration::from_millis(25))).await;
    }
}
