//! `natgw doctor`: what is wrong with the host or the set-up, what that does, and the command that mends it.
//!
//! [`Facts`] are gathered once; the checks, one module a family, are functions of them alone.
#![deny(unsafe_code)]

mod absent;
mod drops;
mod facts;
mod firewall;
mod kernel;
mod links;
mod routes;
mod services;
mod traffic;

pub use self::absent::examine_absence;
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
        links::findings,
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
