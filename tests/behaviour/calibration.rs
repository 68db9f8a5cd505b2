//! docs/calibration.md: the suite with Linux's own NAT in natgw's place, and where that falls short.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use crate::{
    proofs::{Outcome, Tests, Verdict, tests_of, verdict},
    spec::{Level, Row, Spec},
};

/// A run against a reference.
pub(crate) struct Calibration<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) rows: &'a [&'a Row],
    pub(crate) tests: &'a Tests,
    /// What the reference has nothing like, by the test that asked for it.
    pub(crate) refusals: &'a BTreeMap<String, String>,
}

/// How the reference did in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Result {
    Passes,
    FallsShort,
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
                count(|result| *result == Result::FallsShort),
                count(|result| matches!(result, Result::NothingLike(_))),
                count(|result| *result == Result::NotAsked),
            );
        }
        text.push_str("\n## Where it falls short\n\n| row | level | in short |\n|---|---|---|\n");
        for (row, _) in results.iter().filter(|(_, result)| *result == Result::FallsShort) {
            let _ = writeln!(text, "| {} | {} | {} |", row.id, row.level, in_short(&row.text));
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
                let failed = tests_of(self.spec, self.tests, &row.id)
                    .into_iter()
                    .filter(|name| self.tests[*name] == Some(Outcome::Failed));
                let refused: Option<Vec<&String>> = failed.map(|name| self.refusals.get(name)).collect();
                let first = refused.and_then(|refused| refused.first().copied().cloned());
                first.map_or(Result::FallsShort, Result::NothingLike)
            }
        }
    }
}

/// The row's first sentences, as far as they fit into a table.
fn in_short(text: &str) -> String {
    const LENGTH: usize = 160;
    // The source and the level stand in front.
    let text = text.split_once("] ").map_or(text, |(_, rest)| rest);
    let text = text.split_once(". ").map_or(text, |(_, rest)| rest).replace('|', "\\|");
    let Some((end, _)) = text.char_indices().nth(LENGTH) else { return text };
    let end = text[..end].rfind(' ').unwrap_or(end);
    // What is left open in the middle, for example emphasis, would run on.
    let short = text[..end].replace(['*', '`'], "");
    format!("{short} …")
}
