//! Errors and warnings about a configuration, with their place.

use std::fmt::{self, Write as _};

/// How many errors a [`ConfigErrors`] writes before it only counts: a list of a million bad addresses is one mistake.
const SHOWN: usize = 100;

/// One error or warning. Displays as one line: place, key, bad value, remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where the value was given.
    pub place: Place,
    /// Key, bad value and remedy.
    pub text: String,
}

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole: something is absent from it, or it cannot be read.
    File {
        /// As the caller named it.
        file: String,
    },
    /// A position in the file, both counted from 1, the column in characters.
    Line {
        /// As the caller named it.
        file: String,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
    },
    /// An environment variable.
    Variable(String),
}

/// Everything that is wrong with a configuration; never empty. Displays one line for each error, in the order of the
/// file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub(super) Vec<Diagnostic>);

impl ConfigErrors {
    /// All errors, in the order of the file; those of the environment last.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.0
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().take(SHOWN).enumerate() {
            if i > 0 {
                f.write_char('\n')?;
            }
            diagnostic.fmt(f)?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more errors"),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        // A value may contain a line break or a terminal's escape sequence; a diagnostic stays one harmless line.
        for c in self.text.chars() {
            if c.is_control() { c.escape_default().try_for_each(|c| f.write_char(c))? } else { f.write_char(c)? }
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file } => f.write_str(file),
            Self::Line { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// Where a value came from, before it is turned into a [`Place`].
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    /// Absent.
    #[default]
    File,
    /// Byte offset.
    Offset(usize),
    /// Name of an environment variable.
    Variable(String),
}

/// Collects what is wrong while a configuration is read and lowered.
#[derive(Debug)]
pub(super) struct Report<'a> {
    file: &'a str,
    text: &'a str,
    line_starts: Vec<usize>,
    errors: Vec<(At, String)>,
    warnings: Vec<(At, String)>,
}

impl<'a> Report<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self { file, text, line_starts, errors: Vec::new(), warnings: Vec::new() }
    }

    pub(super) fn error(&mut self, at: &At, text: impl Into<String>) {
        self.errors.push((at.clone(), text.into()));
    }

    pub(super) fn warn(&mut self, at: &At, text: impl Into<String>) {
        self.warnings.push((at.clone(), text.into()));
    }

    /// `line 12` or the variable's name, for a text that refers to another place.
    pub(super) fn refer(&self, at: &At) -> String {
        match self.place(at) {
            Place::File { file } => file,
            Place::Line { line, .. } => format!("line {line}"),
            Place::Variable(name) => name,
        }
    }

    /// The warnings, or all errors if there is one.
    pub(super) fn finish(mut self) -> Result<Vec<Diagnostic>, ConfigErrors> {
        let is_valid = self.errors.is_empty();
        let mut found = std::mem::take(if is_valid { &mut self.warnings } else { &mut self.errors });
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let found = found.into_iter().map(|(at, text)| Diagnostic { place: self.place(&at), text }).collect::<Vec<_>>();
        if is_valid { Ok(found) } else { Err(ConfigErrors(found)) }
    }

    fn place(&self, at: &At) -> Place {
        let file = || self.file.to_owned();
        match at {
            At::File => Place::File { file: file() },
            At::Variable(name) => Place::Variable(name.clone()),
            At::Offset(offset) => {
                let line = self.line_starts.partition_point(|start| start <= offset);
                let start = self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or_default();
                let before = self.text.as_bytes().get(start..*offset).unwrap_or_default();
                // UTF-8 continuation bytes are 0b10xx_xxxx.
                let column = before.iter().filter(|byte| **byte & 0xc0 != 0x80).count() + 1;
                Place::Line { file: file(), line, column }
            }
        }
    }
}

/// The candidate that `given` is most likely a slip of, as `; did you mean …?`, or nothing.
pub(super) fn did_you_mean<'c>(given: &str, candidates: impl IntoIterator<Item = &'c str>) -> String {
    match nearest(given, candidates) {
        Some(candidate) => format!("; did you mean \"{candidate}\"?"),
        None => String::new(),
    }
}

fn nearest<'c>(given: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    // The distance takes memory in proportion to the product of the lengths.
    if given.len() > 64 {
        return None;
    }
    let given = given.to_lowercase();
    let slips = 1 + given.chars().count() / 4;
    let distance = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let (short, long) = if given.len() < candidate.len() { (&*given, &*candidate) } else { (&*candidate, &*given) };
        let distance = strsim::damerau_levenshtein(short, long);
        // "warning" for "warn" and "idle" for "idle_timeout" are slips too.
        if short.len() >= 3 && long.starts_with(short) { distance.min(slips) } else { distance }
    };
    candidates
        .into_iter()
        .map(|candidate| (distance(candidate), candidate))
        .filter(|(distance, _)| *distance <= slips)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
