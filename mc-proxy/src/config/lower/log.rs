//! `[log]`: the daemon's own lines, and access records.

use super::{
    super::{Access, Log, LogFormat, diagnostic::did_you_mean, file::Given},
    Lower, file, is_set,
};
use crate::http::access::{Format, Sample, Style, writer::Destination};

impl Lower<'_, '_> {
    pub(super) fn log(&mut self, log: file::Log) -> Log {
        use tracing::Level;
        let levels = [
            ("info", Level::INFO),
            ("trace", Level::TRACE),
            ("debug", Level::DEBUG),
            ("warn", Level::WARN),
            ("error", Level::ERROR),
        ];
        Log {
            level: self.word(log.level, "log.level", &levels),
            format: self.word(log.format, "log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        }
    }

    pub(super) fn access(&mut self, log: &file::Log) -> Access {
        let formats = [("json", Format::Json), ("logfmt", Format::Logfmt)];
        let style = Style {
            format: self.word(log.access_format.clone(), "log.access_format", &formats),
            redact_clients: is_set(&log.redact_clients),
            redact_query: is_set(&log.redact_queries),
        };
        let sample = self.within(log.access_sample.clone(), "log.access_sample", 1..=u32::MAX, 1);
        let to = log.access.as_ref().and_then(|given| self.destination(given));
        Access { to, style, sample: Sample::one_in(sample) }
    }

    fn destination(&mut self, given: &Given<String>) -> Option<Destination> {
        let words = ["off", "stdout", "stderr"];
        match given.value.as_str() {
            "" | "off" => None,
            "stdout" => Some(Destination::Stdout),
            "stderr" => Some(Destination::Stderr),
            path if path.starts_with('/') => self.path(given.clone(), "log.access").map(Destination::File),
            other => {
                let hint = did_you_mean(other, words);
                let text = format!(
                    "log.access: {other:?} is not \"off\", \"stdout\", \"stderr\" or an absolute path; write one of \
                     these, such as \"/srv/mc-proxy/access.log\"{hint}"
                );
                self.report.error(&given.at, text);
                None
            }
        }
    }
}
