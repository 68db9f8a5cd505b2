//! `cargo xtask test`: the lint, then the tiers; the last line says how many tests passed, failed and were skipped.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    num::NonZeroUsize,
    ops::AddAssign,
    path::Path,
    process::Stdio,
    thread,
};

use crate::{
    behaviour, bench,
    build::{build_natgw, natgw},
    installed, kernels,
    lint::CHECKS,
    machine::want_root,
    setup::setup,
    shell::{cargo, step, Result},
    told::{Failures, Told},
};

/// Where a group of tests runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tier {
    /// No privileges, no kernel.
    Unit,
    /// The eBPF program, loaded and given frames.
    Program,
    /// natgw in network namespaces.
    Lab,
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Everything, or one tier; what follows `--` goes to the test programs (a filter, `--nocapture`, …).
pub(crate) fn test(arguments: &[&str]) -> Result {
    let (own, filter) = match arguments.iter().position(|word| *word == "--") {
        Some(at) => (&arguments[..at], &arguments[at + 1..]),
        None => (arguments, &[][..]),
    };
    if let ["behaviour", options @ ..] = own {
        return behaviour::behaviour(options);
    }
    if let ["package", options @ ..] = own {
        return installed::installed(options);
    }
    if own == ["kernels"] {
        let mut failures = Failures::default();
        let tally = kernels::kernels(filter, &mut failures)?;
        print!("{failures}");
        return tally.judged();
    }
    let tiers = match own {
        [] => &[Tier::Unit, Tier::Program, Tier::Lab][..],
        ["unit"] => &[Tier::Unit],
        ["program"] => &[Tier::Program],
        ["lab"] => &[Tier::Lab],
        other => {
            let tiers = "unit, program, lab, behaviour, package or kernels";
            return Err(format!("`{}` is no tier: {tiers}", other.join(" ")));
        }
    };
    if tiers.iter().any(|tier| *tier != Tier::Unit) {
        want_root("test (for the tiers program and lab)")?;
    }
    let mut tally = Tally::default();
    let mut told = Told::default();
    let mut messages = String::new();
    // Each failure is counted and the rest still runs: one look shows all that is wrong.
    let mut count = |result: Result<Tally>| match result {
        Ok(more) => tally += more,
        Err(message) => {
            eprintln!("{message}");
            messages.push_str(&["==> failed: ", &message, "\n"].concat());
            tally.failed += 1;
        }
    };
    let ready = step("setup", setup);
    if ready.is_ok() {
        let checks = if own.is_empty() { CHECKS } else { &[] };
        for (name, check) in checks {
            count(step(name, || check().map(|()| Tally::default())));
        }
        for tier in tiers {
            count(step(tier.name(), || tier.run(filter, &mut told)));
        }
        if own.is_empty() && filter.is_empty() {
            count(step("the Debian package, installed", || {
                installed::installed(&[]).map(|()| Tally::default())
            }));
            count(step("the bench, in short", || bench::short().map(|()| Tally::default())));
            count(step("the oldest kernel", || kernels::short(&mut told.failures)));
            // A whole run can say that every row has its proof.
            count(step("rows of docs/behaviour.md", || {
                behaviour::judge(&["judge"], &told.lines).map(|()| Tally::default())
            }));
        }
    }
    // Nothing can be said of the rest without it.
    count(ready.map(|()| Tally::default()));
    print!("{messages}{}", told.failures);
    tally.judged()
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit tests",
            Self::Program => "tests of the loaded eBPF program",
            Self::Lab => "lab tests",
        }
    }

    fn run(self, filter: &[&str], told: &mut Told) -> Result<Tally> {
        let mut words = vec!["test", "--locked", "--no-fail-fast"];
        match self {
            Self::Unit => {
                words.extend(["-p", "nat-common", "-p", "nat-userspace", "-p", "nat-fuzz", "-p", "xtask"]);
            }
            Self::Program => words.extend(["-p", "nat-tests", "--test", "program"]),
            Self::Lab => {
                build_natgw()?;
                words.extend(["-p", "nat-tests", "--lib", "--test", "lab"]);
            }
        }
        words.push("--");
        let threads = lab_threads();
        if self == Self::Lab {
            words.extend(["--test-threads", &threads]);
        }
        words.extend(filter);
        count_tests(&words, None, told)
    }
}

/// How many lab tests run at once: each is a dozen network namespaces, some with traffic at full speed, and most wait
/// for timers half of the time.
pub(crate) fn lab_threads() -> String {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (2 * processors).clamp(2, 8).to_string()
}

/// Runs cargo, passes on what it prints, keeps what is to be told of it, and adds up its results.
///
/// `reference` stands in natgw's place, if it is given.
pub(crate) fn count_tests(words: &[&str], reference: Option<&Path>, told: &mut Told) -> Result<Tally> {
    let mut command = cargo(words);
    command.env("NATGW_BIN", reference.map_or_else(natgw, Path::to_path_buf)).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("start cargo test: {error}"))?;
    let output = child.stdout.take().expect("stdout is piped");
    let mut tally = Tally::default();
    // Bytes, not lines of text: a test may print anything.
    for line in BufReader::new(output).split(b'\n') {
        let mut line = line.map_err(|error| format!("read from cargo test: {error}"))?;
        let text = String::from_utf8_lossy(&line);
        if let Some(more) = Tally::of_line(&text) {
            tally += more;
        }
        told.line(&text);
        line.push(b'\n');
        // Nobody left to read it is no reason to stop testing.
        let _ = std::io::stdout().write_all(&line);
    }
    let status = child.wait().map_err(|error| format!("wait for cargo test: {error}"))?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test program died: no line of its own tells.
        told.failures.nameless(&format!("cargo {}", words.join(" ")), &status.to_string());
        tally.failed += 1;
    }
    Ok(tally)
}

impl Tally {
    /// One that could not be run.
    pub(crate) const fn skipped() -> Self {
        Self { passed: 0, failed: 0, skipped: 1 }
    }

    /// Says it.
    fn judged(self) -> Result {
        let Self { passed, failed, skipped } = self;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        if failed == 0 {
            Ok(())
        } else {
            // The closing line is the last word.
            std::process::exit(1)
        }
    }

    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let counts = line.trim().strip_prefix("test result:")?.split_once(". ")?.1;
        let number = |what: &str| {
            let part = counts.split(';').map(str::trim).find(|part| part.ends_with(what))?;
            part.split(' ').next()?.parse().ok()
        };
        Some(Self { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_test_are_read() {
        let line = "test result: FAILED. 9 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.88s";
        assert_eq!(Tally::of_line(line), Some(Tally { passed: 9, failed: 2, skipped: 1 }));
        assert_eq!(Tally::of_line("test result_is_read ... ok"), None);
        assert_eq!(Tally::of_line("running 9 tests"), None);
    }
}
