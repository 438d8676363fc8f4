//! Backends that speak HTTP/1.1 by a script, and keep what they got.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, bail, ensure};
use mc_proxy::proxy_header::{Header, Progress, parse};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::message::{Fields, Framing, Reader};
use crate::{
    backend::Backend,
    client,
    topology::Namespace,
    wait::{SOON, until},
};

/// Of each connection so much is kept.
const KEPT: usize = 1 << 20;

/// A backend; it closes its socket on drop.
#[derive(Debug)]
pub struct Origin {
    backend: Backend,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    requests: Vec<Request>,
    /// By connection.
    bytes: Vec<Vec<u8>>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// The number of its connection, from 0.
    pub connection: usize,
    /// The start line.
    pub line: String,
    /// Fields of the head.
    pub fields: Fields,
    /// Where it ends.
    pub framing: Framing,
    /// The content, unless only the head was read.
    pub body: Vec<u8>,
    /// Fields behind it.
    pub trailers: Fields,
}

/// A connection of a backend.
#[derive(Debug)]
pub struct Conn {
    /// Its number, from 0.
    pub number: usize,
    /// Who has connected.
    pub peer: SocketAddr,
    reader: Reader<Tap>,
    kept: Arc<Mutex<Kept>>,
}

/// Keeps what is read.
#[derive(Debug)]
struct Tap {
    stream: Stream,
    number: usize,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

/// A response with a body of known length.
pub fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

impl Origin {
    /// Serves each connection with `serve`, on the loopback.
    pub fn new(serve: impl Fn(&mut Conn) -> Result<()> + Send + Sync + 'static) -> Result<Self> {
        Self::on(TcpListener::bind("127.0.0.1:0")?, None, serve)
    }

    /// The same over TLS.
    pub fn tls(config: ServerConfig, serve: impl Fn(&mut Conn) -> Result<()> + Send + Sync + 'static) -> Result<Self> {
        Self::on(TcpListener::bind("127.0.0.1:0")?, Some(config), serve)
    }

    /// On the loopback of a namespace.
    pub fn within(
        namespace: &Namespace,
        serve: impl Fn(&mut Conn) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::on(namespace.run(|| TcpListener::bind("127.0.0.1:0"))??, None, serve)
    }

    /// Answers every request with what `answer` makes of it.
    pub fn answering(answer: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Result<Self> {
        Self::new(move |conn| conn.answer(&answer))
    }

    /// Answers every request with its own start line.
    pub fn telling() -> Result<Self> {
        Self::answering(|request| ok(&request.line))
    }

    fn on(
        listener: TcpListener,
        config: Option<ServerConfig>,
        serve: impl Fn(&mut Conn) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let kept = Arc::<Mutex<Kept>>::default();
        let config = config.map(Arc::new);
        let count = AtomicUsize::new(0);
        let backend = Backend::on(listener, {
            let kept = Arc::clone(&kept);
            move |stream| {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let peer = stream.peer_addr()?;
                stream.set_nodelay(true)?;
                let stream = match &config {
                    None => Stream::Plain(stream),
                    Some(config) => {
                        let connection = ServerConnection::new(Arc::clone(config))?;
                        Stream::Tls(Box::new(StreamOwned::new(connection, stream)))
                    }
                };
                let tap = Tap { stream, number, kept: Arc::clone(&kept) };
                let mut conn = Conn { number, peer, reader: Reader::new(tap), kept: Arc::clone(&kept) };
                let served = serve(&mut conn);
                if let Err(error) = &served {
                    println!("connection {number} of a backend: {error:#}");
                }
                conn.close();
                served
            }
        })?;
        Ok(Self { backend, kept })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.backend.addr()
    }

    /// Connections so far.
    pub fn accepts(&self) -> u64 {
        self.backend.accepts()
    }

    /// Requests so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.kept).requests.clone()
    }

    /// The last request.
    pub fn last(&self) -> Result<Request> {
        lock(&self.kept).requests.last().cloned().context("the backend has got no request")
    }

    /// Waits until there are so many requests.
    pub fn wait_for(&self, count: usize) -> Result<()> {
        until("requests at the backend", SOON, || Ok(lock(&self.kept).requests.len() >= count))
    }

    /// What has come by all connections.
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.kept).bytes.concat()
    }
}

impl Conn {
    /// The next request, whole; none at the end.
    pub fn request(&mut self) -> Result<Option<Request>> {
        let Some(mut request) = self.read_head()? else { return Ok(None) };
        (request.body, request.trailers) = self.reader.body(request.framing)?;
        lock(&self.kept).requests.push(request.clone());
        Ok(Some(request))
    }

    /// The head of the next request; its content is still to be read.
    pub fn head(&mut self) -> Result<Option<Request>> {
        let head = self.read_head()?;
        lock(&self.kept).requests.extend(head.clone());
        Ok(head)
    }

    /// Content that is framed so, and what follows it.
    pub fn body(&mut self, framing: Framing) -> Result<(Vec<u8>, Fields)> {
        self.reader.body(framing)
    }

    /// Exactly so many bytes.
    pub fn exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        self.reader.exactly(length)
    }

    /// All until the client's end.
    pub fn rest(&mut self) -> Result<Vec<u8>> {
        self.reader.rest()
    }

    /// Answers request after request.
    pub fn answer(&mut self, answer: impl Fn(&Request) -> Vec<u8>) -> Result<()> {
        while let Some(request) = self.request()? {
            self.send(answer(&request))?;
        }
        Ok(())
    }

    /// The PROXY header that the connection begins with.
    pub fn proxy_header(&mut self) -> Result<Header> {
        loop {
            match parse(self.reader.buffer()) {
                Progress::Complete { header, consumed } => {
                    self.reader.buffer().drain(..consumed);
                    return Ok(header);
                }
                Progress::Incomplete(_) => ensure!(self.reader.fill()? > 0, "the end within a PROXY header"),
                other => bail!("no PROXY header: {other:?}"),
            }
        }
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.write_all(bytes.as_ref()).context("sending")?;
        Ok(self.flush()?)
    }

    /// The name that the handshake has asked for, if there was one.
    pub fn server_name(&mut self) -> Option<String> {
        match &self.reader.stream().stream {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => stream.conn.server_name().map(str::to_owned),
        }
    }

    /// RST, as soon as the script ends.
    pub fn reset(&mut self) -> Result<()> {
        client::reset(self.socket().try_clone()?)
    }

    /// The socket below.
    pub fn socket(&mut self) -> &TcpStream {
        match &self.reader.stream().stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
        }
    }

    fn read_head(&mut self) -> Result<Option<Request>> {
        let Some(head) = self.reader.head()? else { return Ok(None) };
        let framing = head.fields.framing()?.unwrap_or(Framing::None);
        ensure!(head.line.ends_with(" HTTP/1.1") && head.line.split(' ').count() == 3, "start line {:?}", head.line);
        ensure!(head.fields.all("host").len() == 1, "no Host, or several: {head:?}");
        let (connection, body, trailers) = (self.number, Vec::new(), Fields::default());
        Ok(Some(Request { connection, line: head.line, fields: head.fields, framing, body, trailers }))
    }

    /// With TLS the end has to be told.
    fn close(&mut self) {
        if let Stream::Tls(stream) = &mut self.reader.stream().stream {
            stream.conn.send_close_notify();
            // A client that is gone does not hear it. `flush` would go on with a handshake that has failed.
            while stream.conn.wants_write() && stream.conn.write_tls(&mut stream.sock).is_ok() {}
        }
    }
}

impl Read for Conn {
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

impl Write for Conn {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.reader.stream().stream {
            Stream::Plain(stream) => stream.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.reader.stream().stream {
            Stream::Plain(stream) => stream.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}

impl Read for Tap {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.stream {
            Stream::Plain(stream) => stream.read(to),
            Stream::Tls(stream) => stream.read(to),
        }?;
        let mut kept = lock(&self.kept);
        if kept.bytes.len() <= self.number {
            kept.bytes.resize(self.number + 1, Vec::new());
        }
        let bytes = &mut kept.bytes[self.number];
        let room = KEPT.saturating_sub(bytes.len()).min(read);
        bytes.extend_from_slice(&to[..room]);
        Ok(read)
    }
}

impl Request {
    /// A field of the head; see [`Fields::get`].
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
