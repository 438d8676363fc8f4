//! Backends: a listening socket, a thread for each connection, and a count of accepts as evidence.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::net::{Shutdown, shutdown};

use crate::topology::Namespace;

/// No connection of a test is silent for longer.
pub const IO_LIMIT: Duration = Duration::from_secs(30);

/// A server that closes its socket on drop.
#[derive(Debug)]
pub struct Backend {
    addr: SocketAddr,
    accepts: Arc<AtomicU64>,
    listener: Arc<TcpListener>,
    acceptor: Option<JoinHandle<()>>,
}

impl Backend {
    /// Serves each connection with `serve`, on 127.0.0.1 and a port that the kernel chooses.
    pub fn start(serve: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static) -> Result<Self> {
        Self::on(TcpListener::bind("127.0.0.1:0").context("binding a backend")?, serve)
    }

    /// The same on the loopback of a namespace.
    pub fn start_in(
        namespace: &Namespace,
        serve: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = namespace.run(|| TcpListener::bind("127.0.0.1:0"))?.context("binding a backend")?;
        Self::on(listener, serve)
    }

    /// The same on a socket.
    pub fn on(listener: TcpListener, serve: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static) -> Result<Self> {
        let addr = listener.local_addr()?;
        let listener = Arc::new(listener);
        let accepts = Arc::new(AtomicU64::new(0));
        let acceptor = thread::spawn({
            let (listener, accepts, serve) = (Arc::clone(&listener), Arc::clone(&accepts), Arc::new(serve));
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    accepts.fetch_add(1, Ordering::SeqCst);
                    let serve = Arc::clone(&serve);
                    thread::spawn(move || {
                        // What went wrong shows at the client, whose test asserts on it.
                        let _ = limit(&stream).and_then(|()| serve(stream));
                    });
                }
            }
        });
        Ok(Self { addr, accepts, listener, acceptor: Some(acceptor) })
    }

    /// Hands each connection to the test.
    pub fn handing_over() -> Result<(Self, Receiver<TcpStream>)> {
        let (sender, receiver) = channel();
        let backend = Self::start(move |stream| sender.send(stream).context("nobody wants the connection"))?;
        Ok((backend, receiver))
    }

    /// Answers the first bytes with `name` and a newline, then echoes what follows; the first bytes are kept.
    pub fn named(name: &str) -> Result<(Self, Received)> {
        let received = Received::default();
        let serve = greeter(name, &received);
        Ok((Self::start(serve)?, received))
    }

    /// The same in a namespace.
    pub fn named_in(namespace: &Namespace, name: &str) -> Result<(Self, Received)> {
        let received = Received::default();
        let serve = greeter(name, &received);
        Ok((Self::start_in(namespace, serve)?, received))
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections accepted so far.
    pub fn accepts(&self) -> u64 {
        self.accepts.load(Ordering::SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Wakes the blocked `accept` with an error.
        let _ = shutdown(self.listener.as_fd(), Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// What a backend got on each of its connections.
#[derive(Clone, Debug, Default)]
pub struct Received(Arc<Mutex<Vec<Vec<u8>>>>);

impl Received {
    /// Bytes of every connection so far, up to the answer.
    pub fn all(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, bytes: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

/// The client half-closes or falls silent when it has said everything; the name is the answer to all of it.
fn greeter(name: &str, received: &Received) -> impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static {
    let (name, received) = (name.to_owned(), received.clone());
    move |mut stream| {
        let mut bytes = Vec::new();
        let ended = stream.read_to_end(&mut bytes);
        received.add(bytes);
        ended?;
        writeln!(stream, "{name}")?;
        Ok(())
    }
}

/// Echoes until the end, then closes.
pub fn echo(mut stream: TcpStream) -> Result<()> {
    let mut writer = stream.try_clone()?;
    io::copy(&mut stream, &mut writer)?;
    Ok(())
}

/// Bounds every read and write.
pub fn limit(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(IO_LIMIT))?;
    stream.set_write_timeout(Some(IO_LIMIT))?;
    Ok(())
}
