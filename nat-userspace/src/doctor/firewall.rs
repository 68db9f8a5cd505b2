//! What else on this machine drops or translates: netfilter.

use super::{Facts, Finding, Severity};

/// See the module.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let forward = facts.forward_drops.iter().map(|chain| Finding {
        check: "forward_policy",
        severity: Severity::Fault,
        title: format!("netfilter drops what is forwarded: the policy of {chain} is drop"),
        evidence: vec![format!("nft list ruleset: chain {chain}, hook forward, policy drop")],
        consequence:
            "what no rule of natgw's translates is dropped by netfilter, unless one of its rules accepts \
                      it; what natgw translates does not pass netfilter at all"
                .to_owned(),
        command: format!("nft list chain {chain}"),
    });
    let double = facts.nat_chains.iter().map(|chain| Finding {
        check: "double_nat",
        severity: Severity::Fault,
        title: format!("netfilter translates, too: {} in {}", chain.action, chain.chain),
        evidence: vec![format!("nft list ruleset: {} in chain {}", chain.action, chain.chain)],
        consequence:
            "what natgw leaves to the kernel is translated by netfilter: the two share ports without knowing \
                      of each other, and answers to netfilter's may end at natgw"
                .to_owned(),
        command: format!("nft flush chain {}", chain.chain),
    });
    forward.chain(double).collect()
}
