//! Attacks, bounded and stoppable: threads in the attacker's namespace that count what they send.

use std::{
    io::{ErrorKind, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::topology::Namespace;

const BATCH: usize = 64;

/// A thread that attacks until it is stopped or dropped.
#[derive(Debug)]
pub struct Flood {
    sent: Arc<AtomicU64>,
    connected: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flood {
    /// UDP datagrams of 64 bytes.
    pub fn udp(from: &Namespace, to: SocketAddr) -> Self {
        Self::start(from, move |sent, _, is_over| {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            while !is_over.load(Ordering::Relaxed) {
                for _ in 0..BATCH {
                    match socket.send_to(&[0x55; 64], to) {
                        Ok(_) => {
                            sent.fetch_add(1, Ordering::Relaxed);
                        }
                        // The other side's ICMP errors, or a full queue.
                        Err(error) if is_passing(&error) => {}
                        Err(error) => return Err(error).context("sending a datagram"),
                    }
                }
                // Leaves the other core and the daemon their share.
                thread::park_timeout(Duration::from_micros(500));
            }
            Ok(())
        })
    }

    /// UDP datagrams of several addresses of a namespace in turn, to the edge's address of their family, with a pause after
    /// each round.
    pub fn udp_of(from: &Namespace, sources: Vec<IpAddr>, to: [SocketAddr; 2], pause: Duration) -> Self {
        Self::start(from, move |sent, _, is_over| {
            let sockets = sources.iter().map(|source| UdpSocket::bind((*source, 0)).context("binding to a source"));
            let sockets = sockets.collect::<Result<Vec<_>>>()?;
            while !is_over.load(Ordering::Relaxed) {
                for (source, socket) in sources.iter().zip(&sockets) {
                    match socket.send_to(&[0x55; 64], to[usize::from(source.is_ipv6())]) {
                        Ok(_) => {
                            sent.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) if is_passing(&error) => {}
                        Err(error) => return Err(error).context("sending a datagram"),
                    }
                }
                thread::park_timeout(pause);
            }
            Ok(())
        })
    }

    /// TCP connections, many at a time; each that is accepted sends `payload` and resets.
    pub fn connections(from: &Namespace, to: SocketAddr, payload: Vec<u8>) -> Self {
        Self::start(from, move |sent, connected, is_over| {
            while !is_over.load(Ordering::Relaxed) {
                let sockets = (0..BATCH).map(|_| begin_connect(to)).collect::<Result<Vec<_>>>()?;
                sent.fetch_add(BATCH as u64, Ordering::Relaxed);
                thread::park_timeout(Duration::from_millis(10));
                for mut socket in sockets {
                    if socket.write_all(&payload).is_ok() {
                        connected.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            Ok(())
        })
    }

    /// Bare SYNs from one address, with ports and sequence numbers that change.
    pub fn syn(from: &Namespace, source: Ipv4Addr, to: SocketAddrV4) -> Self {
        Self::start(from, move |sent, _, is_over| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).context("opening a raw socket")?;
            let address = SockAddr::from(SocketAddrV4::new(*to.ip(), 0));
            let mut number = 0_u32;
            while !is_over.load(Ordering::Relaxed) {
                for _ in 0..BATCH {
                    number = number.wrapping_add(0x9e37_79b9);
                    match socket.send_to(&syn(source, to, number), &address) {
                        Ok(_) => {
                            sent.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) if is_passing(&error) => {}
                        Err(error) => return Err(error).context("sending a SYN"),
                    }
                }
                thread::park_timeout(Duration::from_micros(500));
            }
            Ok(())
        })
    }

    /// Datagrams, SYNs or connection attempts so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Connections that the edge has accepted so far.
    pub fn connected(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it had broken off by itself.
    pub fn stop(mut self) -> Result<()> {
        self.finish()
    }

    fn start(
        from: &Namespace,
        attack: impl FnOnce(&AtomicU64, &AtomicU64, &AtomicBool) -> Result<()> + Send + 'static,
    ) -> Self {
        let (sent, connected) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let is_over = Arc::<AtomicBool>::default();
        let thread = from.spawn({
            let (sent, connected, is_over) = (Arc::clone(&sent), Arc::clone(&connected), Arc::clone(&is_over));
            move || attack(&sent, &connected, &is_over)
        });
        Self { sent, connected, is_over, thread: Some(thread) }
    }

    fn finish(&mut self) -> Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| anyhow!("the flood panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            eprintln!("a flood broke off: {error:#}");
        }
    }
}

/// Receives one datagram into `buffer`, or `None` when none comes within the socket's timeout.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Result<Option<(usize, SocketAddr)>> {
    match socket.recv_from(buffer) {
        Ok(received) => Ok(Some(received)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
        Err(error) => Err(error).context("receiving a datagram"),
    }
}

/// Datagrams that wait in a socket's queue right now; they are taken out.
pub fn drain(socket: &UdpSocket) -> Result<u64> {
    socket.set_nonblocking(true)?;
    let mut count = 0;
    while receive(socket, &mut [0; 64])?.is_some() {
        count += 1;
    }
    socket.set_nonblocking(false)?;
    Ok(count)
}

fn begin_connect(to: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).context("opening a socket")?;
    socket.set_nonblocking(true)?;
    // Reset on close: a flood must not run out of ports in TIME_WAIT.
    socket.set_linger(Some(Duration::ZERO))?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error).context("starting a connection"),
    }
    Ok(socket)
}

/// A TCP header (RFC 9293 §3.1) with nothing but SYN.
fn syn(source: Ipv4Addr, to: SocketAddrV4, number: u32) -> [u8; 20] {
    let mut header = [0; 20];
    let port = 1024 + (number >> 16) as u16 % 60_000;
    header[0..2].copy_from_slice(&port.to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[4..8].copy_from_slice(&number.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = 0x02;
    header[14..16].copy_from_slice(&64_240_u16.to_be_bytes());
    let pseudo = [&source.octets()[..], &to.ip().octets(), &[0, 6, 0, 20]].concat();
    let words = pseudo.chunks(2).chain(header.chunks(2)).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    header[16..18].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::WouldBlock | ErrorKind::HostUnreachable)
        || error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}
