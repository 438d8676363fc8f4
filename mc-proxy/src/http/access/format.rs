//! Records to text.

use std::{
    fmt::Display,
    io::Write as _,
    time::{Duration, SystemTime},
};

use ::http::Version;

use super::{Format, Record, Style, TEXT_MAX, redacted};
use crate::telemetry::log::is_printable;

pub(super) fn write(style: Style, record: &Record<'_>, to: &mut Vec<u8>) {
    let mut line = Line { format: style.format, to, is_first: true };
    if style.format == Format::Json {
        line.to.push(b'{');
    }
    line.text("time", time(record.time).as_bytes());
    if style.redact_clients {
        line.text("client", redacted(record.client.ip()).to_string().as_bytes());
    } else {
        line.text("client", record.client.socket().to_string().as_bytes());
    }
    line.optional("country", record.country.map(str::as_bytes));
    line.optional("sni", record.sni.map(str::as_bytes));
    line.optional("host", record.host);
    line.optional("route", record.route.map(str::as_bytes));
    line.text("method", record.method);
    match record.path.iter().position(|byte| *byte == b'?') {
        Some(query) if style.redact_query => {
            let path = record.path.get(..query).unwrap_or_default();
            line.text("path", &[path, "?…".as_bytes()].concat());
        }
        _ => line.text("path", record.path),
    }
    if let Some(status) = record.status {
        line.bare("status", status.as_u16());
    }
    line.bare("request_bytes", record.request_bytes);
    line.bare("response_bytes", record.response_bytes);
    line.duration("queue_ms", record.timings.queue);
    line.duration("connect_ms", record.timings.connect);
    line.duration("first_byte_ms", record.timings.first_byte);
    line.duration("total_ms", Some(record.timings.total));
    line.optional("backend", record.backend.map(str::as_bytes));
    line.text("protocol", protocol(record.protocol).as_bytes());
    line.optional("tls", record.tls.map(str::as_bytes));
    line.optional("user_agent", record.user_agent);
    line.text("request_id", record.request_id);
    line.text("outcome", record.outcome.as_str().as_bytes());
    line.to.extend_from_slice(match style.format {
        Format::Json => b"}\n",
        Format::Logfmt => b"\n",
    });
}

/// Keys are names of this module and need no escape.
struct Line<'a> {
    format: Format,
    to: &'a mut Vec<u8>,
    is_first: bool,
}

impl Line<'_> {
    fn key(&mut self, key: &str) {
        let separator = match self.format {
            Format::Json => ",",
            Format::Logfmt => " ",
        };
        if !std::mem::take(&mut self.is_first) {
            self.to.extend_from_slice(separator.as_bytes());
        }
        match self.format {
            Format::Json => self.write(format_args!("\"{key}\":")),
            Format::Logfmt => self.write(format_args!("{key}=")),
        }
    }

    fn optional(&mut self, key: &str, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn text(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        if self.format == Format::Logfmt && is_plain(value) {
            self.to.extend_from_slice(value);
        } else {
            quoted(value, self.to);
        }
    }

    fn bare(&mut self, key: &str, value: impl Display) {
        self.key(key);
        self.write(format_args!("{value}"));
    }

    /// In milliseconds with three places, as access logs have it.
    fn duration(&mut self, key: &str, value: Option<Duration>) {
        if let Some(value) = value {
            let micros = value.as_micros();
            self.bare(key, format_args!("{}.{:03}", micros / 1_000, micros % 1_000));
        }
    }

    /// Writing to a vector cannot fail.
    fn write(&mut self, what: std::fmt::Arguments<'_>) {
        let _ = self.to.write_fmt(what);
    }
}

/// What readers of logfmt take for one value.
fn is_plain(value: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && !b"=\"\\".contains(byte);
    (1..=TEXT_MAX).contains(&value.len()) && value.iter().all(is_plain)
}

/// With the escapes of JSON, in both formats; bytes that are not UTF-8 are U+FFFD.
fn quoted(value: &[u8], to: &mut Vec<u8>) {
    let is_cut = value.len() > TEXT_MAX;
    let kept = value.get(..cut(value)).unwrap_or_default();
    to.push(b'"');
    for chunk in kept.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => to.extend_from_slice(&[b'\\', c as u8]),
                ' '..='~' => to.push(c as u8),
                '\n' => to.extend_from_slice(b"\\n"),
                '\r' => to.extend_from_slice(b"\\r"),
                '\t' => to.extend_from_slice(b"\\t"),
                c if is_printable(c) => to.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(to, "\\u{unit:04x}");
                    }
                }
            }
        }
        if !chunk.invalid().is_empty() {
            to.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    if is_cut {
        to.extend_from_slice("…".as_bytes());
    }
    to.push(b'"');
}

/// Where a text ends, at most behind [`TEXT_MAX`] and not within a character.
fn cut(value: &[u8]) -> usize {
    let mut end = value.len().min(TEXT_MAX);
    // A character has three bytes at most behind its first; more of them are none.
    for _ in 0..3 {
        if end > 0 && value.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
            end -= 1;
        }
    }
    end
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

/// RFC 3339, UTC, with microseconds, as in the daemon's log. What is before 1970 is 1970.
fn time(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days of years that begin in March, so that the leap day is the last, in eras of 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (hour, minute, second, micros) = (second / 3_600, second / 60 % 60, second % 60, since.subsec_micros());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}
