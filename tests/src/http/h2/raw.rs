//! A client of HTTP/2 over TLS that sends any bytes, and tells what comes of it.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::{ClientConnection, StreamOwned};

use super::{
    frame::{Frame, PREFACE, data, flag, frame, headers, kind, settings},
    hpack,
};
use crate::{
    client::{connect, is_reset},
    http::{Client, Edge, HOST},
    wait::SOON,
};

/// A connection with ALPN `h2`.
#[derive(Debug)]
pub struct Raw {
    stream: StreamOwned<ClientConnection, TcpStream>,
    input: Vec<u8>,
    /// The last GOAWAY that has been passed over.
    pub goaway: Option<u32>,
}

/// What a peer has done that a client cannot overlook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// GOAWAY with an error code.
    GoAway(u32),
    /// The end of the connection, in whatever way.
    Closed,
    /// RST_STREAM with an error code.
    Reset(u32, u32),
    /// HEADERS, with their status.
    Head(u32, u16),
    /// The end of a response.
    Ended(u32),
    /// PING with ACK.
    Pong,
    /// SETTINGS with ACK, behind the first one.
    Acknowledged,
}

impl Raw {
    /// A connection on which nothing has been said.
    pub fn bare(edge: &Edge) -> Result<Self> {
        Self::over(edge, connect(edge.addr)?)
    }

    /// The same over a connection that is there.
    pub fn over(edge: &Edge, stream: TcpStream) -> Result<Self> {
        let mut config = edge.authority.client_config()?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = Client::new(stream, config, HOST)?.into_stream()?;
        ensure!(stream.conn.alpn_protocol() == Some(b"h2"), "no h2");
        Ok(Self { stream, input: Vec::new(), goaway: None })
    }

    /// A connection after SETTINGS of both sides; the peer is told to have no table, so that its fields can be read.
    pub fn new(edge: &Edge) -> Result<Self> {
        Self::with(edge, &[])
    }

    /// The same with more settings.
    pub fn with(edge: &Edge, values: &[(u16, u32)]) -> Result<Self> {
        Self::begin(Self::bare(edge)?, values)
    }

    /// The beginning, on a connection on which nothing has been said.
    pub fn begin(mut self, values: &[(u16, u32)]) -> Result<Self> {
        self.send([PREFACE, &settings(&[&[(1, 0)], values].concat())].concat())?;
        let first = self.frame()?.context("the end instead of SETTINGS")?;
        ensure!(first.kind == kind::SETTINGS && !first.has(flag::ACK), "not SETTINGS first: {first:?}");
        self.send(frame(kind::SETTINGS, flag::ACK, 0, ""))?;
        while self.event()? != Event::Acknowledged {}
        Ok(self)
    }

    /// Sends bytes. That the peer has closed meanwhile shows when it is read from.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        match self.stream.write_all(bytes.as_ref()).and_then(|()| self.stream.flush()) {
            Err(error) if !is_reset(&error) => Err(error).context("sending"),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether everything could be sent.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).and_then(|()| self.stream.flush()).is_ok()
    }

    /// A whole GET.
    pub fn get(&mut self, stream: u32, path: &str) -> Result<()> {
        self.send(headers(stream, true, hpack::get(path)))
    }

    /// The head of a POST, with more fields.
    pub fn post(&mut self, stream: u32, path: &str, more: &[(&str, &str)]) -> Result<()> {
        self.send(headers(stream, false, hpack::request("POST", path, more)))
    }

    /// DATA.
    pub fn data(&mut self, stream: u32, is_last: bool, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.send(data(stream, is_last, bytes))
    }

    /// The next frame; none at the end.
    pub fn frame(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some((frame, length)) = Frame::parse(&self.input) {
                self.input.drain(..length);
                return Ok(Some(frame));
            }
            let mut bytes = [0; 16 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(error) if is_reset(&error) || error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error).context("reading"),
            }
        }
    }

    /// The next frame that is an event, after what a good client would do about the others: SETTINGS are acknowledged, PING is
    /// answered, and GOAWAY without an error is remembered.
    pub fn event(&mut self) -> Result<Event> {
        loop {
            let Some(next) = self.frame()? else { return Ok(Event::Closed) };
            match next.kind {
                kind::GOAWAY if next.code() == 0 => self.goaway = Some(0),
                kind::GOAWAY => return Ok(Event::GoAway(next.code())),
                kind::RST_STREAM => return Ok(Event::Reset(next.stream, next.code())),
                kind::HEADERS => match hpack::status(&next.payload) {
                    // The end comes with the head; whoever waits for it asks for `ended`.
                    Some(status) => {
                        if next.ends() {
                            self.input.splice(..0, data(next.stream, true, ""));
                        }
                        return Ok(Event::Head(next.stream, status));
                    }
                    None if next.ends() => return Ok(Event::Ended(next.stream)),
                    None => bail!("no status in {next:?}"),
                },
                kind::DATA if next.ends() => return Ok(Event::Ended(next.stream)),
                kind::PING if next.has(flag::ACK) => return Ok(Event::Pong),
                // It follows the first GOAWAY of a server that wants to know when the client has heard of it.
                kind::PING => self.send(frame(kind::PING, flag::ACK, 0, &next.payload))?,
                kind::SETTINGS if next.has(flag::ACK) => return Ok(Event::Acknowledged),
                kind::SETTINGS => self.send(frame(kind::SETTINGS, flag::ACK, 0, ""))?,
                _ => {}
            }
        }
    }

    /// The first event of a connection that shows what has become of a request or of the connection; PING and SETTINGS do not.
    pub fn reaction(&mut self) -> Result<Event> {
        loop {
            match self.event()? {
                Event::Pong | Event::Acknowledged | Event::Ended(_) => {}
                event @ (Event::GoAway(_) | Event::Closed | Event::Reset(..) | Event::Head(..)) => return Ok(event),
            }
        }
    }

    /// A whole GET that is answered so, with all of its content.
    pub fn ask(&mut self, stream: u32, path: &str) -> Result<u16> {
        self.get(stream, path)?;
        self.answer(stream)
    }

    /// The status of a response, of which all is read.
    pub fn answer(&mut self, stream: u32) -> Result<u16> {
        let mut status = None;
        loop {
            match self.event()? {
                Event::Head(of, head) if of == stream => status = Some(head),
                Event::Ended(of) if of == stream => return status.context("an end without a head"),
                event @ (Event::GoAway(_) | Event::Closed) => bail!("{event:?} instead of a response"),
                event @ Event::Reset(of, _) if of == stream => bail!("{event:?} instead of a response"),
                Event::Head(..) | Event::Ended(_) | Event::Reset(..) | Event::Pong | Event::Acknowledged => {}
            }
        }
    }

    /// Waits for an event, and passes over all others.
    pub fn wait_for(&mut self, what: &str, is: impl Fn(Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + SOON;
        loop {
            let event = self.event().with_context(|| format!("waiting for {what}"))?;
            if is(event) {
                return Ok(event);
            }
            ensure!(event != Event::Closed, "the end instead of {what}");
            ensure!(Instant::now() < deadline, "not {what} in time");
        }
    }

    /// The error code that the connection ends with; none when it just ends.
    pub fn end(&mut self) -> Result<Option<u32>> {
        let mut code = None;
        loop {
            match self.event()? {
                Event::GoAway(of) => code = Some(of),
                Event::Closed => return Ok(code.or(self.goaway)),
                Event::Head(..) | Event::Ended(_) | Event::Reset(..) | Event::Pong | Event::Acknowledged => {}
            }
        }
    }

    /// Reads take no longer than that.
    pub fn limit(&self, duration: Duration) -> Result<()> {
        Ok(self.stream.sock.set_read_timeout(Some(duration))?)
    }
}
