//! Where output goes: data and talk are two streams, and a closed pipe is an error value, never a panic.

use std::{
    fmt,
    io::Write,
    time::{Duration, Instant},
};

use comfy_table::{Cell, Table, presets};
use serde_json::Value;

use super::CtlError;
use crate::telemetry::log::is_printable;

/// The two streams of a command.
pub(super) struct Output<'w> {
    is_json: bool,
    data: &'w mut dyn Write,
    talk: &'w mut dyn Write,
    terminals: Terminals,
}

/// Which of the streams somebody looks at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terminals {
    pub(super) data: bool,
    pub(super) talk: bool,
}

impl<'w> Output<'w> {
    pub(super) fn new(is_json: bool, data: &'w mut dyn Write, talk: &'w mut dyn Write, terminals: Terminals) -> Self {
        Self { is_json, data, talk, terminals }
    }

    /// Whether the data is looked at as it comes.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminals.data && !self.is_json
    }

    /// A line on how far the work is; nothing is shown where nobody looks.
    pub(super) fn progress(&mut self) -> Progress<'_, 'w> {
        let is_shown = self.terminals.talk && !self.is_json;
        Progress { out: is_shown.then_some(self), shown: None }
    }

    /// Writes a part of the answer.
    pub(super) fn answer_part(
        &mut self,
        json: impl FnOnce() -> String,
        text: impl FnOnce() -> String,
    ) -> Result<(), CtlError> {
        let text = if self.is_json { json() } else { text() };
        self.data.write_all(text.as_bytes()).map_err(CtlError::Output)
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

/// Between two changes of a line of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// One line that is written over and over, and gone at the end.
pub(super) struct Progress<'o, 'w> {
    out: Option<&'o mut Output<'w>>,
    shown: Option<Instant>,
}

impl Progress<'_, '_> {
    pub(super) fn show(&mut self, text: impl FnOnce() -> String) {
        let Some(out) = &mut self.out else { return };
        if self.shown.is_none_or(|shown| shown.elapsed() >= PROGRESS_INTERVAL) {
            self.shown = Some(Instant::now());
            // Nobody looks when stderr is closed.
            let _ = write!(out.talk, "\r\x1b[K{}", printable(&text()));
            let _ = out.talk.flush();
        }
    }

    pub(super) fn end(self) {
        if let (Some(out), Some(_)) = (self.out, self.shown) {
            let _ = write!(out.talk, "\r\x1b[K");
        }
    }
}

/// [`table`] for rows that come in pages: the first page says how wide the columns are.
pub(super) struct Columns<const N: usize> {
    headings: [&'static str; N],
    widths: Option<[usize; N]>,
}

impl<const N: usize> Columns<N> {
    pub(super) fn new(headings: [&'static str; N]) -> Self {
        Self { headings, widths: None }
    }

    /// The lines of a page, the first one under the headings.
    pub(super) fn rows(&mut self, rows: Vec<[String; N]>) -> String {
        let rows = rows.into_iter().map(|row| row.map(|text| printable(&text))).collect::<Vec<_>>();
        let mut text = String::new();
        let widths = match self.widths {
            Some(widths) => widths,
            None => {
                let widest = |column: usize| {
                    let cells = rows.iter().filter_map(|row| row.get(column)).map(String::as_str);
                    cells.chain(self.headings.get(column).copied()).map(|cell| cell.chars().count()).max().unwrap_or(0)
                };
                let widths = std::array::from_fn(widest);
                self.widths = Some(widths);
                write_row(&mut text, &self.headings, &widths);
                widths
            }
        };
        for row in &rows {
            write_row(&mut text, row, &widths);
        }
        text
    }
}

fn write_row(text: &mut String, cells: &[impl AsRef<str>], widths: &[usize]) {
    let start = text.len();
    for (cell, width) in cells.iter().zip(widths) {
        let cell = cell.as_ref();
        text.push_str(cell);
        let blanks = width.saturating_sub(cell.chars().count()) + 2;
        text.extend(std::iter::repeat_n(' ', blanks));
    }
    let trimmed = text.trim_end_matches(' ').len().max(start);
    text.truncate(trimmed);
    text.push('\n');
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

    #[test]
    fn pages_have_the_columns_of_the_first() {
        let mut columns = Columns::new(["A", "LONG", "C"]);
        let row = |a: &str, b: &str, c: &str| [a.to_owned(), b.to_owned(), c.to_owned()];
        assert_eq!(
            columns.rows(vec![row("x\u{1b}", "1", "ä"), row("y", "12345", "")]),
            "A        LONG   C\nx\\u{1b}  1      ä\ny        12345\n"
        );
        assert_eq!(columns.rows(vec![row("a long cell", "2", "c")]), "a long cell  2      c\n");
    }

    #[test]
    fn progress_is_for_those_who_look() {
        for (talk, expected) in [(false, ""), (true, "\r\x1b[Khalf\\n\r\x1b[K")] {
            let (mut data, mut said) = (Vec::new(), Vec::new());
            let mut out = Output::new(false, &mut data, &mut said, Terminals { data: false, talk });
            let mut progress = out.progress();
            progress.show(|| "half\n".to_owned());
            progress.show(|| "too soon".to_owned());
            progress.end();
            assert_eq!(String::from_utf8(said).unwrap(), expected);
            assert!(data.is_empty());
        }
    }
}
