//! Where output goes: data and talk are two streams, and a closed pipe is an error value, never a panic.

use std::{fmt, io::Write};

use comfy_table::{Cell, Table, presets};
use serde_json::Value;

use super::CtlError;
use crate::telemetry::log::is_printable;

/// The two streams of a command.
pub(super) struct Output<'w> {
    is_json: bool,
    data: &'w mut dyn Write,
    talk: &'w mut dyn Write,
}

impl<'w> Output<'w> {
    pub(super) fn new(is_json: bool, data: &'w mut dyn Write, talk: &'w mut dyn Write) -> Self {
        Self { is_json, data, talk }
    }

    /// Writes the answer: the object of `json`, or the lines of `text`.
    pub(super) fn answer(
        &mut self,
        json: impl FnOnce() -> Value,
        text: impl FnOnce() -> String,
    ) -> Result<(), CtlError> {
        let text = if self.is_json { format!("{:#}\n", json()) } else { text() };
        self.data.write_all(text.as_bytes()).map_err(CtlError::Output)
    }

    /// Says on stderr what was done; programs that ask for JSON read the object instead.
    pub(super) fn say(&mut self, text: impl fmt::Display) {
        if !self.is_json {
            // Nobody listens when stderr is closed; the work is done all the same.
            let _ = writeln!(self.talk, "{text}");
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), CtlError> {
        self.data.flush().map_err(CtlError::Output)
    }
}

/// Columns under a line of headings; nothing without rows.
pub(super) fn table<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings);
    table.add_rows(rows.into_iter().map(|row| row.map(|text| Cell::new(printable(&text)))));
    if table.row_count() == 0 {
        return String::new();
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    format!("{}\n", table.trim_fmt())
}

/// The text with everything escaped that a terminal would act on.
pub(super) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if is_printable(c) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_columns() {
        let rows = [["a.example.com".to_owned(), "x\u{1b}[2J\ny".to_owned()], ["b".to_owned(), String::new()]];
        assert_eq!(table(["HOSTNAME", "BACKEND"], rows), "HOSTNAME       BACKEND\na.example.com  x\\u{1b}[2J\\ny\nb\n");
        assert_eq!(table(["HOSTNAME"], []), "");
    }
}
