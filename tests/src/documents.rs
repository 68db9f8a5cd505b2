//! What the documents say is shown by tests is shown by tests that exist.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The tree.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("nat-tests is in the workspace").to_owned()
}

/// The tests below a folder, each with the path of its file before its name.
fn tests_below(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                is_test |= line == "#[test]";
                let function = line.strip_prefix("fn ").and_then(|rest| rest.split(['(', '<']).next());
                if let Some(name) = function
                    && is_test
                {
                    found.push(format!("{}::{name}", path.with_extension("").display()));
                    is_test = false;
                }
                // A case of proptest's has its attribute in another macro's hands.
                is_test &= !line.starts_with("fn ");
            }
        }
    }
}

/// What stands in the columns of a table with this heading, in back quotes, line by line.
fn named(document: &str, column: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("docs").join(document)).expect("the document");
    let mut names = Vec::new();
    let mut at = None;
    for line in text.lines() {
        let Some(row) = line.strip_prefix('|') else {
            at = None;
            continue;
        };
        if row.starts_with('-') {
            continue;
        }
        let cells: Vec<&str> = row.trim_end_matches('|').split('|').map(str::trim).collect();
        match at {
            None => at = Some(cells.iter().position(|cell| *cell == column).unwrap_or(usize::MAX)),
            Some(at) => {
                let cell = cells.get(at).copied().unwrap_or_default();
                names.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned));
            }
        }
    }
    names
}

#[test]
fn every_test_that_a_document_names_exists() {
    let tiers = [
        ("lab", &["tests/lab"][..]),
        ("program", &["tests/program"]),
        (
            "unit",
            &["nat-common/src", "nat-common/tests", "nat-userspace/src", "nat-userspace/tests", "tests/src"],
        ),
    ];
    let tests: BTreeMap<&str, Vec<String>> = tiers
        .into_iter()
        .map(|(tier, folders)| {
            let mut found = Vec::new();
            for folder in folders {
                tests_below(&root().join(folder), &mut found);
            }
            (tier, found)
        })
        .collect();
    let exists = |name: &str| {
        let (tier, name) = name.split_once(' ').unwrap_or(("lab", name));
        match tier {
            "fuzz" => root().join(format!("fuzz/src/targets/{name}.rs")).exists(),
            tier => tests.get(tier).is_some_and(|tests| tests.iter().any(|test| test.contains(name))),
        }
    };
    let named = [named("security.md", "test"), named("reliability.md", "test")];
    assert!(named.iter().all(|names| names.len() > 20), "the tables are there: {named:?}");
    let missing: Vec<&String> = named.iter().flatten().filter(|name| !exists(name)).collect();
    assert_eq!(missing, [""; 0]);
    assert!(!exists("a_test_that_nobody_wrote") && !exists("program a_test_that_nobody_wrote"));
}
