//! Standard output: for people or for programs, and never a panic when its reader leaves.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write};

use serde::Serialize;

/// Standard output, locked and buffered. Flush it: errors at the end count, too.
pub(super) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 * 1024, io::stdout().lock())
}

/// Whether headings may be set off by terminal sequences.
pub(super) fn styled() -> bool {
    io::stdout().is_terminal() && !plain_wanted()
}

/// Whether the user asks for plain text (<https://no-color.org>).
pub(super) fn plain_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Writes one value as JSON for programs (and for people who look).
pub(super) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = stdout();
    serde_json::to_writer_pretty(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// A JSON array, one element a line, written as it comes. Not finished, it is no valid JSON: a
/// program sees that a listing broke off.
pub(super) struct JsonArray<W: Write> {
    out: W,
    separator: &'static [u8],
}

impl<W: Write> JsonArray<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, separator: b"[\n" }
    }

    pub(super) fn element(&mut self, json: &str) -> io::Result<()> {
        self.out.write_all(self.separator)?;
        self.separator = b",\n";
        self.out.write_all(json.as_bytes())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        let end: &[u8] = if self.separator == b",\n" { b"\n]\n" } else { b"[]\n" };
        self.out.write_all(end)?;
        self.out.flush()
    }
}

/// A duration of whole seconds, in a form that is one word: `2h4m`.
pub(super) fn seconds(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string().replace(' ', "")
}

/// A number of things, as one says it: `1 session`, `2 sessions`.
pub(super) fn counted(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays() {
        let array = |elements: &[&str]| {
            let mut out = Vec::new();
            let mut array = JsonArray::new(&mut out);
            for element in elements {
                array.element(element).expect("a Vec takes all");
            }
            array.finish().expect("a Vec takes all");
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(array(&[]), "[]\n");
        assert_eq!(array(&["1", "{}"]), "[\n1,\n{}\n]\n");
    }

    #[test]
    fn durations_are_one_word() {
        assert_eq!(seconds(7440), "2h4m");
        assert_eq!(seconds(0), "0s");
    }
}
