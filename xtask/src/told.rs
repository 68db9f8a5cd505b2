//! What test programs print: the lines that the ledger judges, and why tests failed.

use std::{fmt, mem};

/// How many lines of a failed test's message are repeated, and how many of what it printed last.
const MESSAGE: usize = 10;
const LAST: usize = 30;

/// What is kept of it.
#[derive(Default)]
pub(crate) struct Told {
    /// How tests ended, why, and what a reference cannot do: a line each.
    pub(crate) lines: String,
    pub(crate) failures: Failures,
    panicked: bool,
}

/// Tests that failed, with what they printed. Shown at the very end of a run, for whoever has only the tail of it.
#[derive(Default)]
pub(crate) struct Failures {
    tests: Vec<(String, Vec<String>)>,
    reading: bool,
}

impl Told {
    /// Takes the next line of a test program.
    pub(crate) fn line(&mut self, text: &str) {
        self.failures.line(text);
        let says_where = text.starts_with("thread '") && text.contains(" panicked at ");
        let panicked = mem::replace(&mut self.panicked, says_where);
        let shown = self.failures.tests.last().map_or("", |(name, _)| name);
        if text.starts_with("test ") {
            self.lines.push_str(&[text, "\n"].concat());
        } else if text.starts_with("reference: cannot ") {
            self.lines.push_str(&[shown, " ", text, "\n"].concat());
        } else if panicked {
            self.lines.push_str(&[shown, " panicked: ", text, "\n"].concat());
        }
    }
}

impl Failures {
    /// Takes the next line of a test program.
    pub(crate) fn line(&mut self, text: &str) {
        let name = text.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = name {
            self.tests.push((name.to_owned(), Vec::new()));
            self.reading = true;
        } else if text == "failures:" || text.starts_with("test result: ") {
            self.reading = false;
        } else if self.reading {
            self.tests.last_mut().expect("one is being read").1.push(text.to_owned());
        }
    }

    /// Takes what failed without a line of a test's: it did not compile, or the test program died.
    pub(crate) fn nameless(&mut self, what: &str, how: &str) {
        eprintln!("`{what}` failed without naming a failed test: {how}");
        self.tests.push((what.to_owned(), vec![how.to_owned()]));
    }
}

impl fmt::Display for Failures {
    /// Of each test its message and its last lines, without what lies between.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, printed) in &self.tests {
            let panic = printed.iter().position(|line| line.contains(" panicked at ")).unwrap_or(0);
            let ends = printed.len() - printed.iter().rev().take_while(|line| line.is_empty()).count();
            let message = panic..(panic + MESSAGE).min(ends);
            let last = message.end.max(ends.saturating_sub(LAST))..ends;
            writeln!(out, "==> failed: {name}")?;
            printed[message.clone()].iter().try_for_each(|line| writeln!(out, "{line}"))?;
            if message.end < last.start {
                writeln!(out, "[… {} lines]", last.start - message.end)?;
            }
            printed[last].iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_test_is_shown_with_its_message_and_its_last_lines() {
        let mut told = Told::default();
        let log: Vec<String> = (1..=100).map(|line| format!("log {line}")).collect();
        let before =
            "test map::a ... ok\ntest map::b ... FAILED\n\nfailures:\n\n---- map::b stdout ----\nquiet\n\n";
        let panic = "thread 'map::b' (7) panicked at tests/lab/map.rs:1:2:\nno answer\n";
        let after = "\n\n\nfailures:\n    map::b\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored\n";
        [before, panic, &log.join("\n"), after].concat().lines().for_each(|line| told.line(line));
        let kept = "test map::a ... ok\ntest map::b ... FAILED\nmap::b panicked: no answer\n";
        assert_eq!(told.lines, [kept, "test result: FAILED. 1 passed; 1 failed; 0 ignored\n"].concat());
        let shown = told.failures.to_string();
        let first = format!("==> failed: map::b\n{panic}log 1\n");
        assert!(shown.starts_with(&first), "{shown}");
        assert!(shown.contains("log 8\n[… 62 lines]\nlog 71\n"), "{shown}");
        assert!(shown.ends_with("log 100\n"), "{shown}");
    }

    #[test]
    fn a_short_output_is_shown_once() {
        let mut failures = Failures::default();
        "---- a stdout ----\n\nthread 'a' panicked at b:\nno\nnote: run\n\n\nfailures:\n    a"
            .lines()
            .for_each(|line| failures.line(line));
        assert_eq!(failures.to_string(), "==> failed: a\nthread 'a' panicked at b:\nno\nnote: run\n");
    }
}
