//! Messages, read strictly: what a lenient reader would forgive is an error here.

use std::io::Read;

use anyhow::{Context as _, Result, bail, ensure};

/// More than any head or body that is kept whole.
const MAX: usize = 64 << 20;

/// A stream with what has been read of it and not been looked at.
#[derive(Debug)]
pub struct Reader<S> {
    stream: S,
    buffer: Vec<u8>,
}

/// The start line of a message and its fields.
#[derive(Clone, Debug)]
pub struct Head {
    /// Without its line end.
    pub line: String,
    /// In their order.
    pub fields: Fields,
}

/// Field lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, String)>);

/// How the end of a message is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// `Content-Length`.
    Length(usize),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// The end of the connection.
    UntilClose,
}

impl Fields {
    /// The values of a field, whose name is compared without case.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.0.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        lines.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a field that is there at most once; of a repeated one what no value is.
    pub fn get(&self, name: &str) -> Option<&str> {
        match self.all(name).as_slice() {
            [] => None,
            [value] => Some(value),
            [..] => Some("(repeated)"),
        }
    }

    /// How a message with these fields ends, if they say it.
    ///
    /// # Errors
    /// When they say it twice.
    pub fn framing(&self) -> Result<Option<Framing>> {
        match (self.all("content-length").as_slice(), self.all("transfer-encoding").as_slice()) {
            ([], []) => Ok(None),
            ([length], []) => {
                ensure!(length.bytes().all(|byte| byte.is_ascii_digit()), "a length of {length:?}");
                Ok(Some(Framing::Length(length.parse()?)))
            }
            ([], ["chunked"]) => Ok(Some(Framing::Chunked)),
            (lengths, codings) => bail!("lengths {lengths:?} and codings {codings:?}"),
        }
    }
}

impl<S> Reader<S> {
    /// Of a stream that nothing has been read of.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The stream below.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// What has been read and not been looked at.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Both.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.buffer)
    }
}

impl<S: Read> Reader<S> {
    /// Reads more; 0 at the end.
    pub fn fill(&mut self) -> std::io::Result<usize> {
        let mut bytes = [0; 16 << 10];
        let read = self.stream.read(&mut bytes)?;
        self.buffer.extend_from_slice(&bytes[..read]);
        Ok(read)
    }

    /// The next head; none when the stream ends before it begins.
    pub fn head(&mut self) -> Result<Option<Head>> {
        let Some(block) = self.block()? else { return Ok(None) };
        let mut lines = block.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        Ok(Some(Head { line, fields: fields(lines)? }))
    }

    /// Exactly so many bytes.
    pub fn exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.buffer.len() < length {
            let have = self.buffer.len();
            let read = self.fill().with_context(|| format!("after {have} bytes of {length}"))?;
            ensure!(read > 0, "the end after {have} bytes of {length}");
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// A body in chunks, and its trailers.
    pub fn chunks(&mut self) -> Result<(Vec<u8>, Fields)> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            ensure!(!line.is_empty() && line.bytes().all(|byte| byte.is_ascii_hexdigit()), "a chunk of {line:?}");
            let size = usize::from_str_radix(&line, 16)?;
            if size == 0 {
                break;
            }
            body.extend(self.exactly(size)?);
            ensure!(self.exactly(2)? == b"\r\n", "behind a chunk");
        }
        let mut lines = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((body, fields(lines.iter().map(String::as_str))?));
            }
            lines.push(line);
        }
    }

    /// All until the end of the stream.
    pub fn rest(&mut self) -> Result<Vec<u8>> {
        while self.fill().context("before the end")? > 0 {
            ensure!(self.buffer.len() < MAX, "too much");
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    /// A body that is framed so.
    pub fn body(&mut self, framing: Framing) -> Result<(Vec<u8>, Fields)> {
        match framing {
            Framing::None => Ok((Vec::new(), Fields::default())),
            Framing::Length(length) => Ok((self.exactly(length)?, Fields::default())),
            Framing::Chunked => self.chunks(),
            Framing::UntilClose => Ok((self.rest()?, Fields::default())),
        }
    }

    /// Lines up to the empty one, without it.
    fn block(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let bytes = self.buffer.drain(..end + 4).collect::<Vec<_>>();
                let text = String::from_utf8(bytes[..end].to_vec())?;
                let bare = text.replace("\r\n", "");
                ensure!(!bare.contains(['\r', '\n']), "a line end of one character in {text:?}");
                return Ok(Some(text));
            }
            ensure!(self.buffer.len() < MAX, "too much");
            if self.fill()? == 0 {
                ensure!(self.buffer.is_empty(), "the end within {:?}", String::from_utf8_lossy(&self.buffer));
                return Ok(None);
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let bytes = self.buffer.drain(..=end).collect::<Vec<_>>();
                let line = bytes.strip_suffix(b"\r\n").context("a bare LF")?;
                return Ok(String::from_utf8(line.to_vec())?);
            }
            ensure!(self.fill()? > 0, "the end within a line");
        }
    }
}

fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Fields> {
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(": ").with_context(|| format!("no field line: {line:?}"))?;
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        ensure!(!name.is_empty() && name.bytes().all(is_token), "the name of {line:?}");
        ensure!(value.trim() == value && !value.chars().any(|c| c.is_control() && c != '\t'), "the value of {line:?}");
        fields.push((name.to_owned(), value.to_owned()));
    }
    Ok(Fields(fields))
}
