//! The command as a whole: consistent, and each of its options, like each key of the configuration, with a test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory as _};

use super::*;
use crate::config::Config;

/// `OPTION OR KEY: test, test`; the tests are those that fail if it does nothing.
const TESTS: &str = include_str!("../../../tests/options.txt");

#[test]
fn arguments_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_help_names_the_default_socket() {
    let help = Cli::command().render_help().to_string();
    assert!(help.contains(&format!("[default: {DEFAULT_SOCKET}]")), "{help}");
}

/// The commands of natgw's in a line of a shell, without what they are piped to.
fn commands(line: &str) -> impl Iterator<Item = Vec<&str>> {
    let (line, _comment) = line.split_once(" #").unwrap_or((line, ""));
    line.split(['|', ';', '>', '&']).filter_map(|part| {
        let words: Vec<&str> = part.split_whitespace().collect();
        let here = words.strip_prefix(&["ssh", "root@gateway"]).unwrap_or(&words);
        (here.first() == Some(&"natgw")).then(|| here.to_vec())
    })
}

/// Commands in the blocks of the documents are commands, with options that there are.
#[test]
fn the_commands_of_the_documents_are_ours() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = vec![root.join("README.md")];
    for folder in ["docs", "docs/guides"] {
        files.extend(fs::read_dir(root.join(folder)).expect("a folder").flatten().map(|entry| entry.path()));
    }
    let mut tried = 0;
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(file).expect("a document");
        for block in text.split("```").skip(1).step_by(2) {
            let (kind, lines) = block.split_once('\n').unwrap_or_default();
            // In a terminal, commands follow a prompt; the rest is what they print.
            let is_script = kind == "sh";
            let typed = lines.lines().filter_map(|line| {
                if is_script {
                    Some(line)
                } else {
                    line.strip_prefix("# ").or_else(|| line.strip_prefix("$ "))
                }
            });
            for words in typed.filter(|_| kind != "toml" && kind != "ini").flat_map(commands) {
                let parsed = Cli::command().try_get_matches_from(&words);
                assert!(parsed.is_ok(), "{}: {words:?}: {}", file.display(), parsed.unwrap_err());
                tried += 1;
            }
        }
    }
    assert!(tried > 30, "{tried} commands");
}

/// Every argument of a command and of those below it: `session list --inside`, `rule delete RULE`.
fn arguments(command: &Command, path: &str, found: &mut BTreeSet<String>) {
    for argument in command.get_arguments() {
        let word = match (argument.get_long(), argument.get_value_names()) {
            (Some(long), _) => format!("--{long}"),
            (None, Some([name, ..])) => name.to_string(),
            _ => continue,
        };
        found.insert(format!("{path} {word}").trim_start().to_owned());
    }
    if !command.has_subcommands() && command.get_arguments().next().is_none() {
        found.insert(path.trim_start().to_owned());
    }
    for below in command.get_subcommands() {
        arguments(below, &format!("{path} {}", below.get_name()), found);
    }
}

/// The keys that a section knows: one that it does not know makes it name them.
fn keys(section: &str, text: &str, found: &mut BTreeSet<String>) {
    let error = Config::parse(text, "keys").expect_err("a key that does not exist").to_string();
    let known = error.split_once("known here: ").unwrap_or_else(|| panic!("{section}: {error}")).1;
    let known = known.lines().next().unwrap_or_default();
    found.extend(known.split(", ").map(|key| format!("{section}.{key}")));
}

#[test]
fn every_option_and_every_key_has_a_test() {
    let mut there = BTreeSet::new();
    arguments(&Cli::command(), "", &mut there);
    let nothing = "xqxqxqxq = 1";
    for section in ["timeouts", "limits", "unmatched", "control", "metrics", "log"] {
        keys(section, &format!("[{section}]\n{nothing}\n"), &mut there);
    }
    for section in ["interface", "snat", "static", "forward", "service"] {
        keys(section, &format!("[[{section}]]\n{nothing}\n"), &mut there);
    }
    keys("snat.port_set", &format!("[[snat]]\nport_set = {{ {nothing} }}\n"), &mut there);
    keys("snat.deterministic", &format!("[[snat]]\ndeterministic = {{ {nothing} }}\n"), &mut there);
    keys("service.check", &format!("[[service]]\ncheck = {{ {nothing} }}\n"), &mut there);
    keys("service.server", &format!("[[service]]\n[[service.server]]\n{nothing}\n"), &mut there);

    let lines = TESTS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let listed: BTreeMap<&str, Vec<&str>> = lines
        .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("`{line}` is no line of the list")))
        .map(|(name, tests)| (name, tests.split(", ").collect()))
        .collect();
    let names: BTreeSet<String> = listed.keys().map(|&name| name.to_owned()).collect();
    let missing: Vec<&String> = there.difference(&names).collect();
    assert!(missing.is_empty(), "without a test in tests/options.txt: {missing:#?}");
    let gone: Vec<&String> = names.difference(&there).collect();
    assert!(gone.is_empty(), "in tests/options.txt, but no longer there: {gone:#?}");

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder of the repository");
    let mut sources = String::new();
    for folder in ["tests", "nat-userspace/src"] {
        read_sources(&root.join(folder), &mut sources);
    }
    for (name, tests) in listed {
        for test in tests {
            let function = test.rsplit("::").next().unwrap_or(test);
            assert!(sources.contains(&format!("fn {function}()")), "{name}: there is no test {test}");
        }
    }
}

fn read_sources(folder: &Path, sources: &mut String) {
    for entry in fs::read_dir(folder).expect("list a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(&path).expect("read a source"));
        }
    }
}
