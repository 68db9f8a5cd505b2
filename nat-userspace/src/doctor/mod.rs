//! `natgw doctor`: what is wrong with the host or the set-up, what that does, and the command that mends it.
//!
//! [`Facts`] are gathered once; the checks, one module a family, are functions of them alone.
#![deny(unsafe_code)]

mod absent;
mod asked;
mod drops;
mod facts;
mod firewall;
mod kernel;
mod links;
mod machine;
mod offloads;
mod routes;
mod services;
mod stations;
mod traffic;

pub use self::absent::examine_absence;
pub use self::asked::Asked;
pub use self::facts::{DefaultRoute, Facts, InterfaceFacts, NatChain, SharedStation, Station};

use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Packets are lost, or leave as they should not.
    Fault,
    /// It can come to that.
    Risk,
    /// What was seen, for whoever looks for a fault elsewhere.
    Note,
}

/// Something that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A stable name for programs.
    pub check: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is the case, in one line.
    pub title: String,
    /// What it was seen by.
    pub evidence: Vec<String>,
    /// What it does to packets.
    pub consequence: String,
    /// The command that mends it, or shows more.
    pub command: String,
}

/// Everything that is to be said of the facts, the worst first.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let families = [
        kernel::findings,
        machine::findings,
        links::findings,
        offloads::findings,
        stations::findings,
        routes::findings,
        firewall::findings,
        drops::findings,
        services::findings,
        traffic::findings,
    ];
    let mut findings: Vec<Finding> = families.iter().flat_map(|family| family(facts)).collect();
    findings.sort_by_key(|finding| finding.severity);
    findings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    /// All files of a folder, joined.
    fn texts(folder: &str) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let files = fs::read_dir(folder).expect("a folder").flatten();
        files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect()
    }

    #[test]
    fn every_finding_is_documented_and_made_to_happen() {
        let sources = texts("src/doctor");
        let named = |part: &str| part.split_once("\",").map(|(name, _)| name.to_owned());
        let words = sources.split("check: \"").skip(1).filter_map(named);
        let is_name = |word: &String| word.chars().all(|one| one.is_ascii_lowercase() || one == '_');
        let checks: BTreeSet<String> = words.filter(is_name).collect();
        assert!(checks.len() > 30, "{checks:?}");
        let (documents, tests) = (texts("../docs"), texts("../tests/lab"));
        for check in checks {
            assert!(documents.contains(&format!("`{check}`")), "{check} is not in docs/troubleshooting.md");
            let happens = tests.contains(&format!("\"{check}\""));
            assert!(happens, "{check} has no test in tests/lab");
        }
    }
}
