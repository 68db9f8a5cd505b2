//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why there is no [`Config`](super::Config).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("read configuration {}: {source}\n  hint: {hint}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The file was read and is not valid.
    #[error("configuration {origin} is not valid{}", listing(origin, problems))]
    Invalid {
        /// The file's name as the user gave it.
        origin: String,
        /// All that was found, in file order; never empty.
        problems: Vec<Problem>,
    },
}

impl ConfigError {
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        let hint = match source.kind() {
            io::ErrorKind::NotFound => {
                "name another file with --config FILE; two [[interface]] and one [[snat]] are enough to begin"
            }
            io::ErrorKind::PermissionDenied => "run as root, or make the file readable to this user",
            io::ErrorKind::InvalidData => "the file has to be UTF-8 text",
            _ => "see whether `cat` can read it",
        };
        Self::Read { path: path.to_owned(), source, hint }
    }

    /// What was found in the file, in file order; empty if it could not be read.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Read { .. } => &[],
            Self::Invalid { problems, .. } => problems,
        }
    }
}

fn listing(origin: &str, problems: &[Problem]) -> String {
    use fmt::Write as _;
    problems.iter().fold(String::new(), |mut text, problem| {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {origin}:{problem}");
        text
    })
}

/// One thing wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}\n    hint: {}", self.line, self.column, self.message, self.hint)
    }
}

/// A problem whose place is not known yet: what the parsers of single values return.
#[derive(Debug)]
pub(super) struct Fault {
    message: String,
    hint: String,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

/// Gathers problems while the whole file is looked at.
pub(super) struct Problems<'text> {
    text: &'text str,
    found: Vec<Problem>,
}

impl<'text> Problems<'text> {
    pub(super) fn new(text: &'text str) -> Self {
        Self { text, found: Vec::new() }
    }

    /// Notes a fault of the bytes `span`.
    pub(super) fn add(&mut self, span: &Range<usize>, fault: Fault) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        self.found.push(Problem { line, column, message: fault.message, hint: fault.hint });
    }

    /// The value, or a note of what is wrong with it.
    pub(super) fn check<T>(&mut self, span: &Range<usize>, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.add(span, fault)).ok()
    }

    /// All that was found, in file order.
    pub(super) fn into_found(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|problem| (problem.line, problem.column));
        self.found
    }
}
