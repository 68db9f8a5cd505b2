//! docs/real-time.md: the default timers, waited for.

use std::{fmt::Write as _, fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::proofs::{Outcome, Tests, ids};

/// Says how the tests ended, and with `write` writes it down; one that was left out is what the document says of it.
pub(crate) fn judge(tests: &Tests, write: bool, root: &Path) -> Result<ExitCode> {
    let path = root.join("docs/real-time.md");
    let before = fs::read_to_string(&path).unwrap_or_default();
    let document = document(tests, &before);
    print!(
        "{}",
        document
            .lines()
            .filter(|line| line.starts_with('|'))
            .fold(String::new(), |text, line| text + line + "\n")
    );
    if write {
        fs::write(&path, document).with_context(|| format!("write {}", path.display()))?;
    }
    let failed = tests.values().any(|outcome| *outcome == Some(Outcome::Failed));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn document(tests: &Tests, before: &str) -> String {
    let mut text = String::from(
        "# The default timers in real time\n\n\
         Written by `cargo xtask test behaviour --real-time --write`. The normal run scales timers to seconds; these tests wait as long as the defaults do, \
         judged by captured packets like all others ([the tests](../tests/lab/real_time.rs)).\n\n\
         | rows | test | result |\n|---|---|---|\n",
    );
    for (name, outcome) in tests {
        let name = name.rsplit("::").next().unwrap_or(name);
        let begin = format!("| {} | `{name}` |", ids(name).join(", "));
        let result = match outcome {
            Some(Outcome::Passed) => "holds",
            Some(Outcome::Failed) => "**fails**",
            // Left out: what an earlier run has found.
            None => before
                .lines()
                .find_map(|line| line.strip_prefix(&begin)?.strip_suffix(" |"))
                .map_or("not run", str::trim),
        };
        let _ = writeln!(text, "{begin} {result} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_keeps_its_result() {
        let tests = crate::proofs::tests("test real_time::tcp_07_waits_for_137_minutes ... ok\n");
        let first = document(&tests, "");
        assert!(first.ends_with("| TCP-07 | `tcp_07_waits_for_137_minutes` | holds |\n"), "{first}");
        let left_out = crate::proofs::tests("real_time::tcp_07_waits_for_137_minutes: test\n");
        assert_eq!(document(&left_out, &first), first);
        assert!(document(&left_out, "").ends_with("| not run |\n"));
    }
}
