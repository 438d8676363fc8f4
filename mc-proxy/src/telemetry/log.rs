//! Log lines on stderr: logfmt for people and `grep`, JSON for programs.
//!
//! ```text
//! time=2026-11-20T19:26:47.123456Z level=INFO msg="received SIGHUP, reloading GeoIP database"
//! {"time":"2026-11-20T19:26:47.123456Z","level":"INFO","msg":"received SIGHUP, reloading GeoIP database"}
//! ```
//!
//! The fields of the event follow, then those of the spans around it, outermost first. Whatever bytes a client sends,
//! an event is one line and a value ends where it seems to end.

use std::{error::Error, fmt, fmt::Write as _, io};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::{SubscriberInitExt as _, TryInitError},
};

use super::batch::Batch;
use crate::config::{Log, LogFormat};

/// Target of this crate's events. Those of other crates are written from WARN up, whatever the level.
const OWN_TARGET: &str = "mc_proxy";

/// Lines that may wait for a reader of stderr; beyond that they are lost, and connections are not held up.
const BUFFERED_LINES: usize = 16 * 1024;

/// Sends the process's events to stderr from now on, through a thread of its own. What is still waiting is written when
/// the guard is dropped.
///
/// # Errors
/// When a subscriber has been installed already.
pub fn init(log: Log) -> Result<WorkerGuard, TryInitError> {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(BUFFERED_LINES)
        .thread_name("log")
        .finish(Batch::new(io::stderr()));
    subscriber(log, writer).try_init()?;
    Ok(guard)
}

fn subscriber<W>(log: Log, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer()
        .fmt_fields(Lines(log.format))
        .event_format(Lines(log.format))
        .with_writer(writer)
        .with_ansi(false)
        // A failed write would be reported on stderr, which is what has failed.
        .log_internal_errors(false)
        .with_filter(filter(log.level));
    tracing_subscriber::registry().with(lines)
}

fn filter(level: Level) -> Targets {
    let others = if level < Level::WARN { level } else { Level::WARN };
    Targets::new()
        .with_default(LevelFilter::from_level(others))
        // It warns of what clients do, as often as they do it.
        .with_target("rustls", LevelFilter::ERROR)
        .with_target(OWN_TARGET, level)
}

/// Formats events, and the fields of spans as fragments that are appended to events.
#[derive(Clone, Copy, Debug)]
struct Lines(LogFormat);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let level = event.metadata().level();
        let mut fields = Fields::new(self.0);
        event.record(&mut fields);

        match self.0 {
            LogFormat::Text => {
                write!(writer, "time={time} level={level} msg=")?;
                write_quoted(&mut writer, &fields.message)?;
            }
            LogFormat::Json => {
                write!(writer, "{{\"time\":\"{time}\",\"level\":\"{level}\",\"msg\":{}", json_string(&fields.message))?;
            }
        }
        writer.write_str(&fields.rest)?;
        for span in ctx.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                writer.write_str(fields)?;
            }
        }
        writer.write_str(match self.0 {
            LogFormat::Text => "\n",
            LogFormat::Json => "}\n",
        })
    }
}

impl<'w> FormatFields<'w> for Lines {
    fn format_fields<R: tracing_subscriber::field::RecordFields>(
        &self,
        mut writer: Writer<'w>,
        fields: R,
    ) -> fmt::Result {
        let mut fragment = Fields::new(self.0);
        fields.record(&mut fragment);
        writer.write_str(&fragment.rest)
    }

    fn add_fields(&self, current: &'w mut FormattedFields<Self>, fields: &span::Record<'_>) -> fmt::Result {
        // The default puts a space between; a fragment brings its own separators.
        let mut fragment = Fields::new(self.0);
        fields.record(&mut fragment);
        current.fields.push_str(&fragment.rest);
        Ok(())
    }
}

/// Collects `message`, and the other fields as ` key=value` or `,"key":value`.
struct Fields {
    format: LogFormat,
    message: String,
    rest: String,
}

impl Fields {
    fn new(format: LogFormat) -> Self {
        Self { format, message: String::new(), rest: String::new() }
    }

    fn text(&mut self, field: &Field, value: &str) {
        match (field.name(), self.format) {
            ("message", _) => value.clone_into(&mut self.message),
            // What the `log` facade adds: file and line of a dependency.
            (name, _) if name.starts_with("log.") => {}
            (name, LogFormat::Text) => {
                let _ = write!(self.rest, " {name}=");
                let _ =
                    if needs_quotes(value) { write_quoted(&mut self.rest, value) } else { self.rest.write_str(value) };
            }
            (name, LogFormat::Json) => {
                let _ = write!(self.rest, ",{}:{}", json_string(name), json_string(value));
            }
        }
    }

    /// A number or a truth value, which neither format quotes.
    fn bare(&mut self, field: &Field, value: impl fmt::Display) {
        let name = field.name();
        let _ = match self.format {
            _ if name == "message" || name.starts_with("log.") => return self.text(field, &value.to_string()),
            LogFormat::Text => write!(self.rest, " {name}={value}"),
            LogFormat::Json => write!(self.rest, ",{}:{value}", json_string(name)),
        };
    }
}

/// Writing to a `String` cannot fail, hence the discarded results above.
impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.text(field, &text);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no NaN and no infinities.
        if value.is_finite() { self.bare(field, value) } else { self.text(field, &value.to_string()) }
    }
}

fn needs_quotes(value: &str) -> bool {
    value.is_empty() || value.chars().any(|c| matches!(c, ' ' | '=' | '"' | '\\') || !is_printable(c))
}

/// The escapes are those of JSON, which readers of logfmt undo.
fn write_quoted(out: &mut impl fmt::Write, value: &str) -> fmt::Result {
    out.write_char('"')?;
    for c in value.chars() {
        match c {
            '"' | '\\' => write!(out, "\\{c}")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if is_printable(c) => out.write_char(c)?,
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
    }
    out.write_char('"')
}

/// Not a control, a line separator, a direction override or anything else that a terminal would act on.
pub(crate) fn is_printable(c: char) -> bool {
    matches!(c, '\'' | '"' | '\\') || c.escape_debug().len() == 1
}

fn json_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    let _ = write_quoted(&mut out, text);
    out
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{Span, info, info_span, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(level: Level, format: LogFormat, events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(Log { level, format }, move || writer.clone());
        tracing::subscriber::with_default(subscriber, events);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// The line without its time stamp, which is checked to be one.
    fn after_time(line: &str) -> &str {
        let (time, rest) = line.strip_prefix("time=").unwrap().split_once(' ').unwrap();
        assert!(time.len() == "2026-11-20T19:26:47.123456Z".len() && time.ends_with('Z'), "{time}");
        rest
    }

    #[test]
    fn text_is_logfmt() {
        let text = written(Level::INFO, LogFormat::Text, || {
            info!(
                listener = ":443",
                client = %"192.0.2.1:5000",
                bytes = 12_u64,
                delta = -1,
                ok = true,
                reason = "two words",
                empty = "",
                "received SIGHUP, reloading GeoIP database"
            );
        });
        assert_eq!(
            after_time(&text),
            "level=INFO msg=\"received SIGHUP, reloading GeoIP database\" listener=:443 client=192.0.2.1:5000 \
             bytes=12 delta=-1 ok=true reason=\"two words\" empty=\"\"\n"
        );
    }

    #[test]
    fn a_value_cannot_forge_a_line_or_a_field() {
        let hostile = "a\" level=ERROR\nmsg=\"x\r\t\\\u{0}\u{1b}[2J\u{7f}\u{85}\u{2028}\u{202e}\u{e0001}é'";
        let text = written(Level::INFO, LogFormat::Text, || warn!(sni = hostile, "{hostile}"));
        let quoted = r#""a\" level=ERROR\nmsg=\"x\r\t\\\u0000\u001b[2J\u007f\u0085\u2028\u202e\udb40\udc01é'""#;
        assert_eq!(after_time(&text), format!("level=WARN msg={quoted} sni={quoted}\n"));

        let json = written(Level::INFO, LogFormat::Json, || warn!(sni = hostile, "{hostile}"));
        assert_eq!(json.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((value["sni"].as_str(), value["msg"].as_str()), (Some(hostile), Some(hostile)));
    }

    #[test]
    fn json_keeps_types() {
        let json = written(Level::INFO, LogFormat::Json, || {
            info!(bytes = u64::MAX, ratio = 0.5, nan = f64::NAN, ok = false, "closed");
        });
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(json.starts_with("{\"time\":\""), "{json}");
        assert_eq!(value["level"], "INFO");
        assert_eq!(value["msg"], "closed");
        assert_eq!(value["bytes"], u64::MAX);
        assert_eq!(value["ratio"], 0.5);
        assert_eq!(value["nan"], "NaN");
        assert_eq!(value["ok"], false);
    }

    #[test]
    fn fields_of_spans_follow() {
        let events = || {
            let outer = info_span!("listener", listener = ":443").entered();
            let inner = info_span!("connection", client = "a b", sni = tracing::field::Empty).entered();
            Span::current().record("sni", "app.example.com");
            info!(bytes = 1, "closed");
            drop((inner, outer));
        };
        let text = written(Level::INFO, LogFormat::Text, events);
        assert_eq!(
            after_time(&text),
            "level=INFO msg=\"closed\" bytes=1 listener=:443 client=\"a b\" sni=app.example.com\n"
        );
        let json = written(Level::INFO, LogFormat::Json, events);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&value["listener"], &value["sni"]), (&":443".into(), &"app.example.com".into()));
    }

    #[test]
    fn errors_come_with_their_causes() {
        let cause = io::Error::other("no space left");
        let error: Box<dyn Error> = Box::new(crate::xdp::PlaneError::caused("cannot write", cause));
        let text = written(Level::INFO, LogFormat::Text, || warn!(error = error.as_ref(), "not stored"));
        assert_eq!(after_time(&text), "level=WARN msg=\"not stored\" error=\"cannot write: no space left\"\n");
    }

    #[test]
    fn dependencies_are_heard_from_warn_up() {
        let events = || {
            info!(target: "h2::codec", "noise");
            warn!(target: "aya", "trouble");
            // What a client has done, as often as it does it.
            warn!(target: "rustls::server", "noise");
            tracing::debug!("own detail");
            tracing::error!(target: "hyper", "failure");
        };
        let messages = |level| {
            let text = written(level, LogFormat::Text, events);
            text.lines().map(|l| l.split_once("msg=").unwrap().1.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(messages(Level::INFO), ["\"trouble\"", "\"failure\""]);
        assert_eq!(messages(Level::DEBUG), ["\"trouble\"", "\"own detail\"", "\"failure\""]);
        assert_eq!(messages(Level::ERROR), ["\"failure\""]);
    }
}
