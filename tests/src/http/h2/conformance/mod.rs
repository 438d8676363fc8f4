//! What RFC 9113 and RFC 7541 demand of a server, as a list: what is sent, and how a server may react.

mod fields;
mod frames;
mod hpack;
mod streams;

use anyhow::Result;

use super::{
    frame::{code, data, frame, headers},
    raw::{Event, Raw},
};

/// What the daemon that is tested is configured with.
pub const LIMITS: &str = "max_concurrent_streams = 10\nmax_head_bytes = \"10KiB\"\nmax_target_bytes = \"4KiB\"";

const MAX_STREAMS: u32 = 10;

/// A thing that is sent, and what may follow.
#[derive(Clone, Debug)]
pub struct Case {
    /// Where it is specified.
    pub section: &'static str,
    /// What is sent.
    pub what: &'static str,
    /// What the RFC lets a server do.
    pub allowed: Vec<Is>,
    /// What is done instead, if it is something else, and why.
    pub deviation: Option<(Is, &'static str)>,
    /// Sends it, and waits for the reaction.
    pub play: fn(&mut Raw) -> Result<Event>,
    /// Whether SETTINGS are exchanged before.
    pub is_bare: bool,
}

/// A reaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// GOAWAY with a code, and the end.
    Connection(u32),
    /// RST_STREAM with a code; the connection goes on.
    Stream(u32),
    /// A response with a status; the connection goes on.
    Answer(u16),
    /// An acknowledgement; the connection goes on.
    Acknowledged,
    /// The end without GOAWAY.
    Closed,
}

/// All cases, in the order of their sections.
pub fn cases() -> Vec<Case> {
    [frames::cases(), streams::cases(), fields::cases(), hpack::cases()].concat()
}

/// The tables of `docs/conformance.md`.
pub fn table() -> String {
    let mut rows = vec!["| Section | Sent | Allowed | Verdict |".to_owned(), "|---|---|---|---|".to_owned()];
    let mut deviations = vec!["| Section | Sent | mc-proxy | Reason |".to_owned(), "|---|---|---|---|".to_owned()];
    for case in cases() {
        let allowed = case.allowed.iter().map(|is| is.text()).collect::<Vec<_>>().join(", ");
        let verdict = if case.deviation.is_some() { "deviates" } else { "conforms" };
        rows.push(format!("| {} | {} | {allowed} | {verdict} |", case.section, case.what));
        if let Some((is, why)) = case.deviation {
            deviations.push(format!("| {} | {} | {} | {why} |", case.section, case.what, is.text()));
        }
    }
    format!("{}\n\n## Known deviations\n\n{}\n", rows.join("\n"), deviations.join("\n"))
}

impl Is {
    /// What an event amounts to.
    pub fn of(event: Event) -> Self {
        match event {
            Event::GoAway(code) => Self::Connection(code),
            Event::Reset(_, code) => Self::Stream(code),
            Event::Head(_, status) => Self::Answer(status),
            Event::Closed => Self::Closed,
            Event::Pong | Event::Acknowledged | Event::Ended(_) => Self::Acknowledged,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Connection(of) => format!("connection error {}", code::name(of)),
            Self::Stream(of) => format!("stream error {}", code::name(of)),
            Self::Answer(200) => "goes on".to_owned(),
            Self::Answer(status) => status.to_string(),
            Self::Acknowledged => "acknowledged".to_owned(),
            Self::Closed => "close".to_owned(),
        }
    }
}

impl Case {
    fn new(section: &'static str, what: &'static str, allowed: Vec<Is>, play: fn(&mut Raw) -> Result<Event>) -> Self {
        Self { section, what, allowed, deviation: None, play, is_bare: false }
    }

    /// It is another reaction.
    fn but(mut self, is: Is, why: &'static str) -> Self {
        self.deviation = Some((is, why));
        self
    }

    /// Without SETTINGS before.
    fn bare(mut self) -> Self {
        self.is_bare = true;
        self
    }
}

/// A connection error; GOAWAY in front of the end is a SHOULD (RFC 9113 §5.4.1).
fn connection(code: u32) -> Vec<Is> {
    vec![Is::Connection(code), Is::Closed]
}

/// A stream error, which may be a connection error as well (RFC 9113 §5.4.1).
fn stream(code: u32) -> Vec<Is> {
    vec![Is::Stream(code), Is::Connection(code), Is::Closed]
}

/// A malformed request: a stream error, before which there may be an answer (RFC 9113 §8.1.1), or a connection error (§5.4.1).
fn malformed() -> Vec<Is> {
    vec![Is::Stream(code::PROTOCOL), Is::Answer(400), Is::Connection(code::PROTOCOL)]
}

/// It is nothing that a server may mind.
fn goes_on() -> Vec<Is> {
    vec![Is::Answer(200)]
}

/// Sends bytes and waits for what comes of them.
fn send(raw: &mut Raw, bytes: impl AsRef<[u8]>) -> Result<Event> {
    raw.send(bytes)?;
    raw.reaction()
}

/// A request whose backend does not answer.
fn held(stream: u32) -> Vec<u8> {
    headers(stream, true, super::hpack::get("/hold"))
}

/// A request whose content is still to come.
fn begun(stream: u32) -> Vec<u8> {
    headers(stream, false, super::hpack::request("POST", "/", &[]))
}

/// A request that is answered.
fn good(stream: u32) -> Vec<u8> {
    headers(stream, true, super::hpack::get("/"))
}

/// A whole request of such a block.
fn ask(raw: &mut Raw, block: impl AsRef<[u8]>) -> Result<Event> {
    send(raw, headers(1, true, block))
}

/// Content of a request whose head has more fields.
fn post(raw: &mut Raw, more: &[(&str, &str)], content: &[&[u8]]) -> Result<Event> {
    let mut bytes = headers(1, content.is_empty(), super::hpack::request("POST", "/", more));
    for (at, piece) in content.iter().enumerate() {
        bytes.extend(data(1, at + 1 == content.len(), piece));
    }
    send(raw, bytes)
}

/// A frame by itself.
fn one(raw: &mut Raw, kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Result<Event> {
    send(raw, frame(kind, flags, stream, payload))
}
