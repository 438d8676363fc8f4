//! Clients of the proxy that speak bytes, and how a connection ended for them.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};

use crate::{
    backend::{IO_LIMIT, limit},
    wait::SOON,
};

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// FIN after these bytes.
    Closed(Vec<u8>),
    /// RST; what came before it.
    Reset(Vec<u8>),
    /// Nothing for as long as the read may take.
    Silent(Vec<u8>),
}

/// Connects; every later read and write is bounded.
pub fn connect(addr: SocketAddr) -> Result<TcpStream> {
    open(None, addr).with_context(|| format!("connecting to {addr}"))
}

/// Connects from a source address of this host.
pub fn connect_from(source: IpAddr, addr: SocketAddr) -> Result<TcpStream> {
    open(Some(source), addr).with_context(|| format!("connecting from {source} to {addr}"))
}

/// Sends `bytes`, half-closes and reads until the connection ends.
pub fn ask(addr: SocketAddr, bytes: &[u8]) -> Result<End> {
    converse(open(None, addr), bytes, true).with_context(|| format!("asking {addr}"))
}

/// The same from a source address of this host.
pub fn ask_from(source: IpAddr, addr: SocketAddr, bytes: &[u8]) -> Result<End> {
    converse(open(Some(source), addr), bytes, true).with_context(|| format!("asking {addr} from {source}"))
}

/// Sends `bytes`, leaves the connection open and reads until the proxy ends it.
pub fn ask_and_stay(addr: SocketAddr, bytes: &[u8]) -> Result<End> {
    converse(open(None, addr), bytes, false).with_context(|| format!("asking {addr}"))
}

/// Reads until the end.
pub fn end_of(stream: &mut TcpStream) -> Result<End> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => Ok(End::Closed(bytes)),
        Err(error) if is_reset(&error) => Ok(End::Reset(bytes)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(End::Silent(bytes)),
        Err(error) => Err(error).context("reading"),
    }
}

/// Whether nothing arrives for `duration` on a connection that stays open.
pub fn is_silent_for(stream: &mut TcpStream, duration: Duration) -> Result<bool> {
    stream.set_read_timeout(Some(duration))?;
    let silent = match stream.read(&mut [0]) {
        Ok(_) => false,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => true,
        Err(error) if is_reset(&error) => false,
        Err(error) => return Err(error).context("reading"),
    };
    limit(stream)?;
    Ok(silent)
}

/// Sends a message and reads as many bytes back.
pub fn exchange(stream: &mut TcpStream, message: &[u8]) -> Result<Vec<u8>> {
    stream.write_all(message).context("sending")?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).context("reading the answer")?;
    Ok(answer)
}

/// Closes with RST.
pub fn reset(stream: TcpStream) -> Result<()> {
    let socket = Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).context("asking for RST")?;
    drop(socket);
    Ok(())
}

/// A write after an RST has been read fails as a broken pipe.
pub fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn open(source: Option<IpAddr>, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect_timeout(&addr.into(), SOON)?;
    socket.set_tcp_nodelay(true)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(IO_LIMIT))?;
    stream.set_write_timeout(Some(IO_LIMIT))?;
    Ok(stream)
}

/// A refusal may come at any time, also before `connect` has returned or everything is sent. How it ends is what
/// counts.
fn converse(stream: io::Result<TcpStream>, bytes: &[u8], half_closes: bool) -> Result<End> {
    let mut stream = match stream {
        Ok(stream) => stream,
        Err(error) if is_reset(&error) => return Ok(End::Reset(Vec::new())),
        Err(error) => return Err(error).context("connecting"),
    };
    let sent = stream.write_all(bytes);
    let sent = if half_closes { sent.and_then(|()| stream.shutdown(Shutdown::Write)) } else { sent };
    let was_reset = match sent {
        Ok(()) => false,
        Err(error) if is_reset(&error) || error.kind() == ErrorKind::NotConnected => true,
        Err(error) => return Err(error).context("sending"),
    };
    Ok(match end_of(&mut stream)? {
        // The kernel tells of a reset once, and it was when sending.
        End::Closed(bytes) if was_reset => End::Reset(bytes),
        end @ (End::Closed(_) | End::Reset(_) | End::Silent(_)) => end,
    })
}
