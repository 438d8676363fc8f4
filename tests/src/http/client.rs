//! A client over TLS that sends what it is told to, byte for byte.

use std::{
    io::{self, ErrorKind, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use super::{
    edge::HOST,
    message::{Fields, Framing, Reader},
};
use crate::{
    backend::limit,
    client::{is_reset, reset},
};

/// A connection after its handshake.
#[derive(Debug)]
pub struct Client {
    reader: Reader<StreamOwned<ClientConnection, TcpStream>>,
    local: SocketAddr,
}

/// A response, whole.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The rest of the status line.
    pub reason: String,
    /// Fields of the head.
    pub fields: Fields,
    /// How its end was found.
    pub framing: Framing,
    /// The content.
    pub body: Vec<u8>,
    /// Fields behind it.
    pub trailers: Fields,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// In order: `close_notify`.
    Closed,
    /// FIN without it.
    Truncated,
    /// RST.
    Reset,
    /// Not for as long as a read may take.
    Open,
}

/// A request for a path.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
}

impl Client {
    /// Shakes hands. `name` is what the certificate has to be for, and the SNI unless `config` sends none.
    pub fn new(stream: TcpStream, config: ClientConfig, name: &str) -> Result<Self> {
        let local = stream.local_addr()?;
        let name = ServerName::try_from(name.to_owned()).with_context(|| format!("{name} as SNI"))?;
        let mut connection = ClientConnection::new(Arc::new(config), name)?;
        let mut stream = stream;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream).context("shaking hands")?;
        }
        Ok(Self { reader: Reader::new(StreamOwned::new(connection, stream)), local })
    }

    /// Its own address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.try_send(bytes).context("sending")
    }

    /// The same for somebody who is not surprised when it fails.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let stream = self.reader.stream();
        stream.write_all(bytes.as_ref())?;
        stream.flush()
    }

    /// Sends a request and reads its response.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Result<Response> {
        self.send(request.as_ref())?;
        let method = request.as_ref().split(|byte| *byte == b' ').next().unwrap_or_default();
        self.response_to(std::str::from_utf8(method)?)
    }

    /// The next response, to a request that is not HEAD.
    pub fn response(&mut self) -> Result<Response> {
        self.response_to("GET")
    }

    /// The next response, which may be an informational one.
    pub fn response_to(&mut self, method: &str) -> Result<Response> {
        let mut response = self.head_of(method)?;
        (response.body, response.trailers) = self.reader.body(response.framing)?;
        Ok(response)
    }

    /// The next response without its content, which is still to be read.
    pub fn head_of(&mut self, method: &str) -> Result<Response> {
        let head = self.reader.head()?.context("the connection ended instead of a response")?;
        let rest = head.line.strip_prefix("HTTP/1.1 ").with_context(|| format!("status line {:?}", head.line))?;
        let (status, reason) = rest.split_once(' ').with_context(|| format!("status line {:?}", head.line))?;
        let status = status.parse()?;
        let said = head.fields.framing()?;
        let is_informational = (100..200).contains(&status);
        let framing = match (status, said) {
            (204, said) | (100..200, said) => {
                ensure!(said.is_none(), "{status} with {said:?}");
                Framing::None
            }
            (304, _) => Framing::None,
            _ if method == "HEAD" => Framing::None,
            (_, said) => said.unwrap_or(Framing::UntilClose),
        };
        ensure!(is_informational || head.fields.all("date").len() == 1, "a response without Date: {head:?}");
        ensure!(
            framing != Framing::UntilClose || head.fields.get("connection") == Some("close"),
            "nothing tells where the response ends: {head:?}"
        );
        let reason = reason.to_owned();
        let (body, trailers) = (Vec::new(), Fields::default());
        Ok(Response { status, reason, fields: head.fields, framing, body, trailers })
    }

    /// Exactly so many bytes, whatever they are.
    pub fn exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        self.reader.exactly(length)
    }

    /// Whether nothing comes for so long, and the connection stays.
    pub fn is_silent_for(&mut self, duration: Duration) -> Result<bool> {
        if !self.reader.buffer().is_empty() {
            return Ok(false);
        }
        self.reader.stream().sock.set_read_timeout(Some(duration))?;
        let read = self.reader.fill();
        limit(&self.reader.stream().sock)?;
        match read {
            Ok(_) => Ok(false),
            Err(error) => Ok(is_timeout(&error)),
        }
    }

    /// How the connection ends. Nothing may come before.
    pub fn end(&mut self) -> Result<Ended> {
        let (ended, rest) = self.rest()?;
        ensure!(rest.is_empty(), "{:?} before the end", String::from_utf8_lossy(&rest));
        Ok(ended)
    }

    /// How the connection ends, and what comes before.
    pub fn rest(&mut self) -> Result<(Ended, Vec<u8>)> {
        let ended = loop {
            match self.reader.fill() {
                Ok(0) => break Ended::Closed,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break Ended::Truncated,
                Err(error) if is_reset(&error) => break Ended::Reset,
                Err(error) if is_timeout(&error) => break Ended::Open,
                Err(error) => return Err(error).context("reading"),
            }
        };
        Ok((ended, std::mem::take(self.reader.buffer())))
    }

    /// Ends its own side: `close_notify` and FIN.
    pub fn finish(&mut self) -> Result<()> {
        let stream = self.reader.stream();
        stream.conn.send_close_notify();
        stream.flush()?;
        Ok(stream.sock.shutdown(Shutdown::Write)?)
    }

    /// RST.
    pub fn reset(self) -> Result<()> {
        let (stream, _) = self.reader.into_parts();
        reset(stream.sock)
    }

    /// The certificate that the server has shown.
    pub fn certificate(&mut self) -> Option<Vec<u8>> {
        let certificates = self.reader.stream().conn.peer_certificates()?;
        certificates.first().map(|certificate| certificate.to_vec())
    }

    /// The socket below.
    pub fn socket(&mut self) -> &TcpStream {
        &self.reader.stream().sock
    }

    /// The stream, when nothing has been read that was not asked for.
    pub fn into_stream(self) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let (stream, rest) = self.reader.into_parts();
        ensure!(rest.is_empty(), "{:?} has been read", String::from_utf8_lossy(&rest));
        Ok(stream)
    }
}

impl io::Read for Client {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let buffer = self.reader.buffer();
        if buffer.is_empty() {
            return self.reader.stream().read(to);
        }
        let count = to.len().min(buffer.len());
        to[..count].copy_from_slice(&buffer[..count]);
        buffer.drain(..count);
        Ok(count)
    }
}

impl io::Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.reader.stream().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.reader.stream().flush()
    }
}

impl Response {
    /// A field of the head; see [`Fields::get`].
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)
    }

    /// The content as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// An error unless it has this status.
    pub fn expect(self, status: u16) -> Result<Self> {
        ensure!(self.status == status, "not {status}: {self:?}");
        Ok(self)
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
