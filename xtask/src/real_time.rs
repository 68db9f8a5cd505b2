//! `cargo xtask test behaviour --real-time`: the tests of the default timers that take as long as the timers.

use std::process::Stdio;

use crate::{
    behaviour::judge,
    shell::{cargo, step, Result},
    test::count_tests,
    told::Told,
};

/// All that fit into so many minutes, at once: they only wait.
pub(crate) fn real_time(minutes: Option<u32>, write: bool) -> Result {
    let names = names()?;
    let fits = |name: &&String| {
        let takes = minutes_of(name);
        minutes.is_none_or(|most| takes.is_some_and(|takes| takes <= most))
    };
    let (chosen, left_out): (Vec<&String>, Vec<&String>) = names.iter().partition(fits);
    for name in &left_out {
        println!("left out, takes longer: {name}");
    }
    let longest = chosen.iter().filter_map(|name| minutes_of(name)).max();
    let longest = longest.ok_or_else(|| "no test of the timers is that short".to_owned())?;
    println!("{} tests at once, the longest takes {longest} minutes", chosen.len());
    let mut words =
        vec!["test", "--locked", "-p", "nat-tests", "--test", "lab", "--", "--ignored", "--exact"];
    words.extend(["--test-threads", "64"]);
    words.extend(chosen.iter().map(|name| name.as_str()));
    let mut told = Told::default();
    let tally = step("timers in real time", || count_tests(&words, None, &mut told));
    // The ledger has to know what was left out.
    for name in left_out {
        told.lines.push_str(name);
        told.lines.push_str(": test\n");
    }
    let judged = judge(if write { &["real-time", "--write"] } else { &["real-time"] }, &told.lines);
    print!("{}", told.failures);
    tally?;
    judged
}

/// The tests that the normal run leaves out.
fn names() -> Result<Vec<String>> {
    let mut command = cargo(&[
        "test",
        "--quiet",
        "--locked",
        "-p",
        "nat-tests",
        "--test",
        "lab",
        "--",
        "--list",
        "--ignored",
        "real_time::",
    ]);
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("start cargo test: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo test --list: {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// What a name ends with: `real_time::tcp_07_waits_for_137_minutes`.
fn minutes_of(name: &str) -> Option<u32> {
    name.strip_suffix("_minutes")?.rsplit('_').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_how_long_it_takes() {
        assert_eq!(minutes_of("real_time::tcp_07_waits_for_137_minutes"), Some(137));
        assert_eq!(minutes_of("tcp::tcp_07_the_default_is_two_hours_and_four_minutes"), None);
    }
}
