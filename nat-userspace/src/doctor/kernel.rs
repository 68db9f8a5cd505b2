//! Switches of the kernel that routing depends on.

use super::{Facts, Finding, Severity};

/// See the module.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    [forwarding(facts), reverse_path(facts)].into_iter().flatten().collect()
}

fn forwarding(facts: &Facts) -> Option<Finding> {
    (facts.ip_forward == Some(false)).then(|| Finding {
        check: "ip_forward",
        severity: Severity::Fault,
        title: "the kernel does not forward (ip_forward is 0)".to_owned(),
        evidence: vec![
            "/proc/sys/net/ipv4/ip_forward is 0".to_owned(),
            format!("{} packets were left to the kernel's stack", facts.passed),
        ],
        consequence: "what no rule translates is not routed; what natgw translates passes all the same"
            .to_owned(),
        command: "sysctl -w net.ipv4.ip_forward=1".to_owned(),
    })
}

/// Strict reverse-path filtering on interfaces that natgw serves: the kernel's count says whether it bites.
fn reverse_path(facts: &Facts) -> Option<Finding> {
    let strict: Vec<&str> = facts
        .interfaces
        .iter()
        .filter(|interface| interface.rp_filter == 1)
        .map(|interface| interface.name.as_str())
        .collect();
    let first = strict.first()?;
    let dropped = facts.reverse_path_drops;
    Some(Finding {
        check: "rp_filter",
        severity: if dropped > 0 { Severity::Fault } else { Severity::Risk },
        title: format!("reverse-path filtering is strict on {}", strict.join(", ")),
        evidence: vec![
            format!("rp_filter is 1 on {}", strict.join(", ")),
            format!("the kernel has dropped {dropped} packets for it (IPReversePathFilter, martian sources)"),
        ],
        consequence:
            "a packet that comes in by another interface than its answer would leave by is dropped by the \
                      kernel, if natgw leaves it to the kernel"
                .to_owned(),
        command: format!("sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{first}.rp_filter=2"),
    })
}
