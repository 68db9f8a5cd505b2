//! The behaviour suite's ledger: which row of docs/behaviour.md is proven by which test, and how the run went.
//!
//! `cargo xtask test behaviour` runs the tests and asks this program what to run and what the results mean.

mod calibration;
mod compliance;
mod proofs;
mod real_time;
mod spec;

use std::{collections::BTreeMap, fs, io::Read as _, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{
    calibration::Calibration,
    proofs::{Obstacle, Tests, Verdict, obstacles, tests, tests_of, verdict},
    spec::{Level, Row, Spec},
};

const USAGE: &str = "\
behaviour list   [--id ID]... [--section PREFIX]...   the rows and their tests, from the names on standard input
behaviour select [--id ID]... [--section PREFIX]...   the names of those tests
behaviour judge  [--id ID]... [--section PREFIX]... [--against NAME] [--write]
                                                      what the results on standard input say of the rows
behaviour real-time [--write]                         what they say of the default timers";

/// More rows that bind and have no test than this, and the suite is no proof any more.
const EXCEPTIONS: usize = 9;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((verb, rest)) = arguments.split_first() else { bail!("{USAGE}") };
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("tests is a folder of the repository")?;
    let spec = Spec::read(root)?;
    let choice = Choice::from_words(rest)?;
    let rows = choice.rows(&spec)?;
    let mut printed = Vec::new();
    std::io::stdin().read_to_end(&mut printed).context("read from standard input")?;
    let printed = String::from_utf8_lossy(&printed);
    let tests = tests(&printed);
    match verb.as_str() {
        "list" => list(&spec, &rows, &tests),
        "select" => select(&spec, &rows, &tests),
        "real-time" => return real_time::judge(&tests, choice.write, root),
        "judge" => return judge(&spec, &rows, &tests, &obstacles(&printed), &choice, root),
        _ => bail!("{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Which rows, and what the results are of.
#[derive(Debug, Default)]
struct Choice {
    ids: Vec<String>,
    sections: Vec<String>,
    /// What stood in natgw's place.
    against: Option<String>,
    /// Write docs/rfc-compliance.md anew instead of comparing it; against a reference, docs/calibration.md.
    write: bool,
}

impl Choice {
    fn from_words(words: &[String]) -> Result<Self> {
        let mut choice = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value =
                || words.next().map(|value| value.to_uppercase()).with_context(|| format!("{word} what?"));
            match word.as_str() {
                "--id" => choice.ids.push(value()?),
                "--section" => choice.sections.push(value()?),
                "--against" => choice.against = Some(value()?.to_lowercase()),
                "--write" => choice.write = true,
                // The tests know.
                "--full" => {}
                other => bail!("{other} is no option\n{USAGE}"),
            }
        }
        Ok(choice)
    }

    fn is_everything(&self) -> bool {
        self.ids.is_empty() && self.sections.is_empty()
    }

    fn rows<'a>(&self, spec: &'a Spec) -> Result<Vec<&'a Row>> {
        if let Some(id) = self.ids.iter().find(|id| spec.row(id).is_none()) {
            bail!("{id} is no row of docs/behaviour.md");
        }
        let section = |row: &Row| row.id.split('-').next().unwrap_or_default().to_owned();
        let chosen = |row: &&Row| {
            self.is_everything() || self.ids.contains(&row.id) || self.sections.contains(&section(row))
        };
        let rows: Vec<&Row> = spec.rows.iter().filter(chosen).collect();
        if rows.is_empty() {
            bail!("no row is in section {}; there are FRG, ICE, S004, …", self.sections.join(", "));
        }
        Ok(rows)
    }
}

fn list(spec: &Spec, rows: &[&Row], tests: &Tests) {
    for row in rows {
        println!("{:<8} {:<6} {}", row.id, row.level, row.text);
        let names = tests_of(spec, tests, &row.id);
        for name in &names {
            println!("                {name}");
        }
        match spec.exceptions.get(&row.id) {
            Some(reason) => println!("                not tested: {reason}"),
            None if names.is_empty() => println!("                no test"),
            None => {}
        }
    }
}

fn select(spec: &Spec, rows: &[&Row], tests: &Tests) {
    let mut names: Vec<&str> = rows.iter().flat_map(|row| tests_of(spec, tests, &row.id)).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        println!("{name}");
    }
}

fn judge(
    spec: &Spec,
    rows: &[&Row],
    tests: &Tests,
    obstacles: &BTreeMap<String, Obstacle>,
    choice: &Choice,
    root: &Path,
) -> Result<ExitCode> {
    let of = |wanted: Verdict| -> Vec<&Row> {
        rows.iter().copied().filter(|row| verdict(spec, tests, &row.id) == wanted).collect()
    };
    let (failed, missing, not_run) = (of(Verdict::Failed), of(Verdict::Missing), of(Verdict::NotRun));
    for (what, rows) in [("fails", &failed), ("has no test", &missing), ("was not run", &not_run)] {
        for row in rows {
            println!("{:<8} {:<6} {what}: {}", row.id, row.level, row.text);
        }
    }
    for level in [Level::Must, Level::Should, Level::May, Level::Beyond] {
        let count = |rows: &[&Row]| rows.iter().filter(|row| row.level == level).count();
        let (proven, excepted) = (of(Verdict::Proven), of(Verdict::Excepted));
        println!(
            "{level:<6} {:>3} proven, {} failed, {} without a test, {} not run, {} excepted",
            count(&proven),
            count(&failed),
            count(&missing),
            count(&not_run),
            count(&excepted),
        );
    }
    if let Some(reference) = &choice.against {
        if choice.write {
            let path = root.join("docs/calibration.md");
            let document = Calibration { spec, rows, tests, obstacles }.document(reference);
            fs::write(&path, document).with_context(|| format!("write {}", path.display()))?;
        }
        return Ok(judge_reference(reference, &of(Verdict::Proven), root));
    }
    let mut good = failed.is_empty() && missing.is_empty();
    if choice.is_everything() {
        let excepted = of(Verdict::Excepted);
        let excepted: Vec<&str> =
            excepted.iter().filter(|row| row.level.binds()).map(|row| row.id.as_str()).collect();
        if excepted.len() > EXCEPTIONS {
            println!(
                "{} rows that bind have no test ({}); at most {EXCEPTIONS} may",
                excepted.len(),
                excepted.join(", ")
            );
            good = false;
        }
        good &= compare(spec, tests, choice, root)?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A reference stood in natgw's place: what passes there and is not expected to is a case that proves nothing.
fn judge_reference(reference: &str, passed: &[&Row], root: &Path) -> ExitCode {
    let path = root.join(format!("tests/behaviour/passes-{reference}.txt"));
    let Ok(expected) = fs::read_to_string(&path) else {
        println!("passed: {}", passed.iter().map(|row| row.id.as_str()).collect::<Vec<_>>().join(" "));
        return ExitCode::SUCCESS;
    };
    let expected: Vec<&str> =
        expected.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace).collect();
    let void: Vec<&&Row> = passed.iter().filter(|row| !expected.contains(&row.id.as_str())).collect();
    for row in &void {
        println!("{:<8} passes with {reference} in natgw's place: {}", row.id, row.text);
    }
    if void.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// docs/rfc-compliance.md says what this run says, or is made to.
fn compare(spec: &Spec, tests: &Tests, choice: &Choice, root: &Path) -> Result<bool> {
    let path = root.join("docs/rfc-compliance.md");
    let document = compliance::document(spec, tests);
    if choice.write {
        fs::write(&path, document).with_context(|| format!("write {}", path.display()))?;
        return Ok(true);
    }
    let same = fs::read_to_string(&path).is_ok_and(|there| there == document);
    if !same {
        println!(
            "docs/rfc-compliance.md does not say what this run says: `cargo xtask test behaviour --write` writes it anew"
        );
    }
    Ok(same)
}
