//! docs/calibration.md: the suite with Linux's own NAT in natgw's place, and where that falls short.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use crate::{
    proofs::{Obstacle, Outcome, Tests, Verdict, tests_of, verdict},
    spec::{Level, Row, Spec},
};

/// A run against a reference.
pub(crate) struct Calibration<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) rows: &'a [&'a Row],
    pub(crate) tests: &'a Tests,
    /// Why tests did not pass.
    pub(crate) obstacles: &'a BTreeMap<String, Obstacle>,
}

/// How the reference did in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Result {
    Passes,
    /// And what the first of its tests says.
    FallsShort(String),
    /// It has no setting or command like that.
    NothingLike(String),
    /// The row's tests are of natgw's library.
    NotAsked,
}

impl Calibration<'_> {
    /// The document.
    pub(crate) fn document(&self, reference: &str) -> String {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut text = format!(
            "# Calibration\n\n\
             Written by `cargo xtask test behaviour --against {reference} --write`: the suite with netfilter in natgw's place, nftables' `masquerade` and `dnat` on Linux {}, \
             its timers set as a case says ([the script](../tests/reference/nftables)). It is judged by the same captured packets as natgw.\n\n\
             A test that netfilter passes does not ask for too much; a row in which it falls short is one in which a Linux router that is set up as usual does so. \
             Where a case needs a setting or a command that the script has nothing like, nothing is said of netfilter.\n\n\
             | level | passes | falls short | nothing like it | unit tier only |\n|---|---|---|---|---|\n",
            kernel.trim()
        );
        let results: Vec<(&Row, Result)> = self.rows.iter().map(|row| (*row, self.result(row))).collect();
        for level in [Level::Must, Level::Should, Level::May, Level::Beyond] {
            let count = |wanted: fn(&Result) -> bool| {
                results.iter().filter(|(row, result)| row.level == level && wanted(result)).count()
            };
            let _ = writeln!(
                text,
                "| {level} | {} | {} | {} | {} |",
                count(|result| *result == Result::Passes),
                count(|result| matches!(result, Result::FallsShort(_))),
                count(|result| matches!(result, Result::NothingLike(_))),
                count(|result| *result == Result::NotAsked),
            );
        }
        text.push_str(
            "\n## Where it falls short\n\n\
             With what the first test of the row said; now and then that is something which only natgw lists.\n\n\
             | row | level | in short | the test |\n|---|---|---|---|\n",
        );
        for (row, result) in &results {
            if let Result::FallsShort(why) = result {
                let (row_says, test_says) = (in_short(says(&row.text), 160), in_short(why, 100));
                let _ = writeln!(text, "| {} | {} | {row_says} | {test_says} |", row.id, row.level);
            }
        }
        text.push_str(
            "\n## What it was not asked, for want of anything like it\n\n| row | level | it cannot |\n|---|---|---|\n",
        );
        for (row, result) in &results {
            if let Result::NothingLike(what) = result {
                let _ = writeln!(text, "| {} | {} | {what} |", row.id, row.level);
            }
        }
        let passed = results.iter().filter(|(_, result)| *result == Result::Passes);
        let passed: Vec<&str> = passed.map(|(row, _)| row.id.as_str()).collect();
        let _ = write!(text, "\n## What it passes\n\n{}.\n", passed.join(", "));
        text
    }

    fn result(&self, row: &Row) -> Result {
        match verdict(self.spec, self.tests, &row.id) {
            Verdict::Proven => Result::Passes,
            Verdict::NotRun | Verdict::Excepted | Verdict::Missing => Result::NotAsked,
            Verdict::Failed => {
                let names = tests_of(self.spec, self.tests, &row.id);
                let failed = names.into_iter().filter(|name| self.tests[*name] == Some(Outcome::Failed));
                let mut first = None;
                for obstacle in failed.map(|name| self.obstacles.get(name)) {
                    match obstacle {
                        Some(Obstacle::NothingLike(what)) => {
                            first.get_or_insert_with(|| Result::NothingLike(what.clone()));
                        }
                        Some(Obstacle::Panic(why)) => return Result::FallsShort(why.clone()),
                        None => return Result::FallsShort(String::new()),
                    }
                }
                first.unwrap_or(Result::NotAsked)
            }
        }
    }
}

/// What a row says, without the source and the level that stand in front.
fn says(text: &str) -> &str {
    let text = text.split_once("] ").map_or(text, |(_, rest)| rest);
    text.split_once(". ").map_or(text, |(_, rest)| rest)
}

/// As much of a text as fits into a table.
fn in_short(text: &str, length: usize) -> String {
    let text = text.replace('|', "\\|");
    let Some((end, _)) = text.char_indices().nth(length) else { return text };
    let end = text[..end].rfind(' ').unwrap_or(end);
    // What is left open in the middle, for example emphasis, would run on.
    let short = text[..end].replace(['*', '`'], "");
    format!("{short} …")
}
