//! Switches of the kernel that routing depends on.

use super::{Facts, Finding, Severity, SharedStation};

/// See the module.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    [forwarding(facts), reverse_path(facts), arp_flux(facts)].into_iter().flatten().collect()
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

/// Interfaces on one segment, on which the kernel answers ARP for every address it has.
fn arp_flux(facts: &Facts) -> Option<Finding> {
    let answers_all = |name: &str| {
        facts.interfaces.iter().any(|interface| interface.name == name && interface.arp_ignore == 0)
    };
    let shared: Vec<_> = facts
        .shared_stations
        .iter()
        .filter(|station| station.interfaces.iter().any(|name| answers_all(name)))
        .collect();
    let interfaces = shared.first()?.interfaces.join(" and ");
    Some(Finding {
        check: "arp_flux",
        severity: Severity::Fault,
        title: format!("{interfaces} are on one segment, and each answers ARP for the other's addresses"),
        evidence: shared
            .iter()
            .map(|station| {
                let SharedStation { address, mac, interfaces } = station;
                format!("{address} at {mac} is a neighbour on {}; arp_ignore is 0", interfaces.join(" and "))
            })
            .collect(),
        consequence: "hosts find the gateway's address at the wrong interface, and what they send comes in by the wrong \
                      side: it is translated by other rules, or dropped as forged"
            .to_owned(),
        command: "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2".to_owned(),
    })
}
