//! The interfaces themselves: missing, down, slow, in part without natgw, or with networks that overlap.

use super::{Facts, Finding, InterfaceFacts, Severity};

/// See the module.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let each = facts
        .interfaces
        .iter()
        .flat_map(|interface| [down(interface), queues(interface), generic(interface)]);
    each.flatten().chain(overlaps(&facts.interfaces)).chain(warnings(facts)).collect()
}

fn down(interface: &InterfaceFacts) -> Option<Finding> {
    let InterfaceFacts { name, state, .. } = interface;
    (state != "up").then(|| Finding {
        check: "interface_down",
        severity: Severity::Fault,
        title: format!("the interface {name} is {state}"),
        evidence: vec![format!("natgw status: {name} {state}")],
        consequence: "nothing passes by it; natgw serves it again by itself once it is there".to_owned(),
        command: if state == "missing" {
            format!("ip link show {name}; if it has another name, change `name` of its [[interface]] and restart natgw")
        } else {
            format!("ip link set {name} up; ip -details link show {name}")
        },
    })
}

fn queues(interface: &InterfaceFacts) -> Option<Finding> {
    let InterfaceFacts { name, queues, present, .. } = interface;
    (*queues > 0 && queues < present).then(|| Finding {
        check: "queues_without_sockets",
        severity: Severity::Fault,
        title: format!("{name} receives on {present} queues, and natgw serves {queues}"),
        evidence: vec![
            format!("/sys/class/net/{name}/queues has {present}"),
            format!("natgw status: {queues}"),
        ],
        consequence: "first packets that arrive on the others are lost".to_owned(),
        command: format!("ethtool -L {name} combined {queues}, or restart natgw"),
    })
}

fn generic(interface: &InterfaceFacts) -> Option<Finding> {
    let InterfaceFacts { name, mode, driver, .. } = interface;
    (mode == "generic").then(|| Finding {
        check: "generic_mode",
        severity: Severity::Note,
        title: format!("XDP on {name} is generic"),
        evidence: vec![format!("natgw status: {name} generic; driver {driver}")],
        consequence:
            "packets pass, at a fraction of the speed: the kernel has copied each before natgw sees it"
                .to_owned(),
        command: format!(
            "`mode = \"native\"` for {name} says why native XDP does not come about; ethtool -i {name}"
        ),
    })
}

/// The same subnet on two interfaces: routes lead to one of them only.
fn overlaps(interfaces: &[InterfaceFacts]) -> Vec<Finding> {
    let mut found = Vec::new();
    for (position, one) in interfaces.iter().enumerate() {
        for other in &interfaces[position + 1..] {
            let pairs = one.networks.iter().flat_map(|a| other.networks.iter().map(move |b| (a, b)));
            let Some((a, b)) = pairs.into_iter().find(|(a, b)| a.contains(*b) || b.contains(*a)) else {
                continue;
            };
            found.push(Finding {
                check: "same_subnet",
                severity: Severity::Risk,
                title: format!("{} and {} have overlapping subnets", one.name, other.name),
                evidence: vec![format!("{a} on {}", one.name), format!("{b} on {}", other.name)],
                consequence: "the kernel routes to hosts of both by one of the interfaces: those behind the other are not reached"
                    .to_owned(),
                command: format!("ip route show match {}; give one of the networks other addresses", a.network()),
            });
        }
    }
    found
}

/// What the daemon itself warns of, unless a check of its own speaks of it.
fn warnings(facts: &Facts) -> Vec<Finding> {
    let own = facts
        .warnings
        .iter()
        .filter(|warning| !["ip_forward", "rp_filter"].iter().any(|covered| warning.starts_with(covered)));
    // They are "what: what it does; what to do".
    own.map(|warning| {
        let (title, rest) = warning.split_once(": ").unwrap_or((warning, ""));
        let (consequence, command) = rest.rsplit_once("; ").unwrap_or((rest, ""));
        let or = |words: &str, other: &str| if words.is_empty() { other } else { words }.to_owned();
        Finding {
            check: "warning",
            severity: Severity::Risk,
            title: title.to_owned(),
            evidence: vec!["natgw status warns of it".to_owned()],
            consequence: or(consequence, "it is allowed, and hardly what is wanted"),
            command: or(command, "natgw status; docs/configuration.md, Warnings"),
        }
    })
    .collect()
}
