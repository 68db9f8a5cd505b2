//! Which tests prove which rows, and how they ended.

use std::collections::BTreeMap;

use crate::spec::Spec;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
}

/// What is known of a row after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All of its tests passed.
    Proven,
    /// One of them did not.
    Failed,
    /// None of its tests ran.
    NotRun,
    /// It has no test, and a reason for that.
    Excepted,
    /// It has no test.
    Missing,
}

/// The tests of a run, by name, with their outcome; `None` where only the names are known.
pub(crate) type Tests = BTreeMap<String, Option<Outcome>>;

/// Reads what libtest prints: `test tcp::tcp_01_options … ok`, or `tcp::tcp_01_options: test` from `--list`.
pub(crate) fn tests(printed: &str) -> Tests {
    let line = |line: &str| {
        if let Some(name) = line.strip_suffix(": test") {
            return Some((name.to_owned(), None));
        }
        let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
        let outcome = match outcome.trim() {
            "ok" => Outcome::Passed,
            "FAILED" => Outcome::Failed,
            _ => return None,
        };
        Some((name.to_owned(), Some(outcome)))
    };
    printed.lines().filter_map(line).collect()
}

/// What kept a test from passing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// A reference in natgw's place has nothing like what the test asks for.
    NothingLike(String),
    /// What the test says is wrong.
    Panic(String),
}

/// By test: `tcp::tcp_01_options reference: cannot …`, or else the first `tcp::tcp_01_options panicked: …`.
pub(crate) fn obstacles(printed: &str) -> BTreeMap<String, Obstacle> {
    let mut obstacles = BTreeMap::new();
    for line in printed.lines() {
        if let Some((name, what)) = line.split_once(" reference: cannot ") {
            obstacles.insert(name.to_owned(), Obstacle::NothingLike(what.to_owned()));
        } else if let Some((name, what)) = line.split_once(" panicked: ") {
            obstacles.entry(name.to_owned()).or_insert_with(|| Obstacle::Panic(what.to_owned()));
        }
    }
    obstacles
}

/// The ids that a test's name claims: `map_05_…`, `frg_01_to_04_06_and_09_…`, `ice_13_and_tcp_24_…`.
pub(crate) fn ids(name: &str) -> Vec<String> {
    let function = name.rsplit("::").next().unwrap_or(name);
    let words: Vec<&str> = function.split('_').collect();
    let number = |at: usize| words.get(at).filter(|word| word.len() == 2)?.parse::<u32>().ok();
    let mut ids = Vec::new();
    let mut last: Option<(String, u32)> = None;
    let mut at = 0;
    while let Some(word) = words.get(at) {
        if let (Some((section, _)), Some(more)) = (&last, number(at)) {
            let section = section.clone();
            ids.push(format!("{section}-{more:02}"));
            last = Some((section, more));
            at += 1;
            continue;
        }
        match (&last, *word, number(at + 1)) {
            (Some((section, from)), "to", Some(to)) => {
                ids.extend((from + 1..=to).map(|number| format!("{section}-{number:02}")));
                last = Some((section.clone(), to));
                at += 2;
            }
            (Some((section, _)), "and", Some(number)) => {
                ids.push(format!("{section}-{number:02}"));
                last = Some((section.clone(), number));
                at += 2;
            }
            (Some(_), "and", None) => at += 1,
            (_, section, Some(number)) => {
                let section = section.to_uppercase();
                ids.push(format!("{section}-{number:02}"));
                last = Some((section, number));
                at += 2;
            }
            _ => break,
        }
    }
    ids
}

/// The names of the tests that prove a row, its own and those of rows that it repeats.
pub(crate) fn tests_of<'a>(spec: &Spec, tests: &'a Tests, id: &str) -> Vec<&'a str> {
    let others = spec.same.get(id).into_iter().flatten().map(String::as_str);
    let wanted: Vec<&str> = others.chain([id]).collect();
    let proves = |name: &&String| ids(name).iter().any(|id| wanted.contains(&id.as_str()));
    tests.keys().filter(proves).map(String::as_str).collect()
}

/// What the run says of a row.
pub(crate) fn verdict(spec: &Spec, tests: &Tests, id: &str) -> Verdict {
    let outcomes: Vec<Option<Outcome>> =
        tests_of(spec, tests, id).into_iter().map(|name| tests[name]).collect();
    if outcomes.contains(&Some(Outcome::Failed)) {
        Verdict::Failed
    } else if outcomes.contains(&Some(Outcome::Passed)) {
        Verdict::Proven
    } else if !outcomes.is_empty() {
        Verdict::NotRun
    } else if spec.exceptions.contains_key(id) {
        Verdict::Excepted
    } else {
        Verdict::Missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_prove() {
        assert_eq!(ids("tcp::tcp_08_and_09_only_a_whole_handshake"), ["TCP-08", "TCP-09"]);
        assert_eq!(ids("frg_01_to_03_every_order"), ["FRG-01", "FRG-02", "FRG-03"]);
        assert_eq!(ids("ice_13_and_tcp_24_an_error_and_5_more"), ["ICE-13", "TCP-24"]);
        assert_eq!(
            ids("s004_01_to_03_05_and_08_a_pool"),
            ["S004-01", "S004-02", "S004-03", "S004-05", "S004-08"]
        );
        assert_eq!(ids("s001_03_one_to_one"), ["S001-03"]);
        assert_eq!(ids("a_lab_is_quick_to_build"), [""; 0]);
        assert_eq!(ids("rules_10_deep"), ["RULES-10"], "such a name is no row's");
    }

    #[test]
    fn the_printed_lines_of_libtest_are_read() {
        let printed = "running 2 tests\ntest map::map_01_x ... ok\ntest map::map_02_y ... FAILED\nmap::map_03_z: test\n";
        let read = tests(printed);
        assert_eq!(read["map::map_01_x"], Some(Outcome::Passed));
        assert_eq!(read["map::map_02_y"], Some(Outcome::Failed));
        assert_eq!(read["map::map_03_z"], None);
        let printed =
            "a::x panicked: one\na::x panicked: two\na::y panicked: one\na::y reference: cannot do\n";
        let found = obstacles(printed);
        assert_eq!(found["a::x"], Obstacle::Panic("one".to_owned()));
        assert_eq!(found["a::y"], Obstacle::NothingLike("do".to_owned()));
    }
}
