//! As much of HTTP/1.1 as the client needs: the responses to its GET requests, read to their last byte.

use std::time::Instant;

use anyhow::{Context, bail, ensure};

use super::super::hello::SERVER_NAME;
use super::client::{Session, Tally};

const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const LONGEST_HEAD: usize = 16 << 10;

/// How long a connection of the client lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasts {
    /// One request follows the other.
    Keep,
    /// Each request asks for the connection to be closed, and is done when it is.
    Once,
}

/// One request at a time.
#[derive(Debug)]
pub(super) struct Get<'a> {
    request: &'a [u8],
    expected: &'a [u8],
    lasts: Lasts,
    began: Instant,
    /// A head whose end has not come.
    head: Vec<u8>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    /// So many bytes of the body have come; whether the connection ends with it.
    Body {
        got: usize,
        is_last: bool,
    },
    Complete,
}

/// The request for a path.
pub(super) fn request(path: &str, lasts: Lasts) -> Vec<u8> {
    let connection = if lasts == Lasts::Once { "Connection: close\r\n" } else { "" };
    format!("GET {path} HTTP/1.1\r\nHost: {SERVER_NAME}\r\nUser-Agent: bench\r\nAccept: */*\r\n{connection}\r\n").into()
}

impl<'a> Get<'a> {
    /// Asks by `request` for a body that has to be `expected`; a connection that is used once `began` before.
    pub(super) fn new(request: &'a [u8], expected: &'a [u8], lasts: Lasts, began: Instant) -> Self {
        Self { request, expected, lasts, began, head: Vec::new(), stage: Stage::Head }
    }

    /// Whether the response is the last, and what follows its head; `None` until that has come.
    fn head<'d>(&mut self, data: &'d [u8]) -> anyhow::Result<Option<(bool, &'d [u8])>> {
        let expected = self.expected.len();
        // Nearly always it comes in one piece.
        if self.head.is_empty()
            && let Some((head, rest)) = split(data)
        {
            return Ok(Some((read(head, expected)?, rest)));
        }
        self.head.extend_from_slice(data);
        ensure!(self.head.len() <= LONGEST_HEAD, "a head of more than {LONGEST_HEAD} bytes");
        let Some((head, rest)) = split(&self.head) else { return Ok(None) };
        let (is_last, left) = (read(head, expected)?, rest.len());
        self.head.clear();
        Ok(Some((is_last, &data[data.len() - left..])))
    }

    fn body<'d>(&mut self, data: &'d [u8], (got, is_last): (usize, bool)) -> anyhow::Result<&'d [u8]> {
        let take = data.len().min(self.expected.len() - got);
        ensure!(self.expected[got..got + take] == data[..take], "the body came changed");
        let got = got + take;
        self.stage = Stage::Body { got, is_last };
        Ok(&data[take..])
    }
}

impl Session for Get<'_> {
    fn begin(&mut self, out: &mut Vec<u8>, now: Instant) {
        if self.lasts == Lasts::Keep {
            self.began = now;
        }
        out.extend_from_slice(self.request);
    }

    fn receive(&mut self, mut data: &[u8], out: &mut Vec<u8>, tally: &mut Tally<'_>) -> anyhow::Result<()> {
        while !data.is_empty() {
            match self.stage {
                Stage::Head => {
                    let Some((is_last, rest)) = self.head(data)? else { return Ok(()) };
                    data = self.body(rest, (0, is_last))?;
                }
                Stage::Body { got, is_last } => data = self.body(data, (got, is_last))?,
                Stage::Complete => bail!("{} bytes after the response", data.len()),
            }
            if let Stage::Body { got, is_last } = self.stage
                && got == self.expected.len()
            {
                tally.bytes(got);
                self.stage = Stage::Complete;
                if self.lasts == Lasts::Keep {
                    tally.done(self.began);
                    if !is_last {
                        self.stage = Stage::Head;
                        self.began = tally.now();
                        out.extend_from_slice(self.request);
                    }
                }
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.lasts == Lasts::Keep && self.stage == Stage::Complete
    }

    fn close(&mut self, tally: &mut Tally<'_>) -> anyhow::Result<()> {
        ensure!(self.stage == Stage::Complete, "closed before the end of the response");
        tally.done(self.began);
        Ok(())
    }
}

/// The head, without its last line ends, and what follows.
fn split(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = data.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD)?;
    Some((&data[..end], &data[end + END_OF_HEAD.len()..]))
}

/// Whether the connection ends after a response; an error unless it has a body of `expected` bytes.
fn read(head: &[u8], expected: usize) -> anyhow::Result<bool> {
    let head = std::str::from_utf8(head).context("a head that is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    ensure!(status.starts_with("HTTP/1.1 200"), "the response is {status:?}");
    let (mut length, mut is_last) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<usize>().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            is_last = value.trim().eq_ignore_ascii_case("close");
        }
    }
    ensure!(length == Some(expected), "a body of {length:?} bytes instead of {expected}");
    Ok(is_last)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::counters::Counters;
    use super::*;

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody";

    fn all(parts: &[&[u8]], lasts: Lasts) -> anyhow::Result<(Counters, usize, bool)> {
        let mut counters = Counters::default();
        let mut latencies = super::super::super::client::Warmed::new(Duration::ZERO);
        let mut get = Get::new(b"GET", b"body", lasts, Instant::now());
        let mut out = Vec::new();
        let mut tally = Tally::new(&mut counters, &mut latencies);
        get.begin(&mut out, Instant::now());
        for part in parts {
            get.receive(part, &mut out, &mut tally)?;
        }
        let is_over = get.is_over();
        if lasts == Lasts::Once {
            get.close(&mut tally)?;
        }
        Ok((counters, out.len() / 3, is_over))
    }

    #[test]
    fn a_response_may_come_in_any_parts() {
        for at in 0..OK.len() {
            let (counters, requests, is_over) = all(&[&OK[..at], &OK[at..], OK], Lasts::Keep).unwrap();
            assert_eq!((counters.done, counters.bytes_received, requests, is_over), (2, 8, 3, false), "cut at {at}");
        }
    }

    #[test]
    fn the_last_response_ends_the_connection() {
        let last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody";
        let (counters, requests, is_over) = all(&[last], Lasts::Keep).unwrap();
        assert_eq!((counters.done, requests, is_over), (1, 1, true));
        let (counters, requests, is_over) = all(&[last], Lasts::Once).unwrap();
        assert_eq!((counters.done, requests, is_over), (1, 1, false), "done when it is closed");
    }

    #[test]
    fn what_is_not_the_response_is_an_error() {
        for (response, said) in [
            (&b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nbody"[..], "502"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbody!", "Some(5)"),
            (b"HTTP/1.1 200 OK\r\n\r\nbody", "None"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbodY", "changed"),
        ] {
            let error = all(&[response], Lasts::Keep).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(all(&[&OK[..OK.len() - 1]], Lasts::Once).is_err(), "cut short");
        assert!(all(&[OK, b"x"], Lasts::Once).is_err(), "too much");
    }
}
