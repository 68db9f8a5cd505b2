//! The interfaces themselves: missing, down, in part without natgw, or with addresses and networks that overlap.

use super::{Facts, Finding, InterfaceFacts, Severity};

/// See the module.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let each = facts.interfaces.iter().flat_map(|interface| [down(interface), queues(interface)]);
    each.flatten()
        .chain(overlaps(&facts.interfaces))
        .chain(twice(&facts.interfaces))
        .chain(warnings(facts))
        .collect()
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

/// Each two of them.
fn pairs(interfaces: &[InterfaceFacts]) -> impl Iterator<Item = (&InterfaceFacts, &InterfaceFacts)> {
    let others = |position: usize| &interfaces[position + 1..];
    interfaces
        .iter()
        .enumerate()
        .flat_map(move |(position, one)| others(position).iter().map(move |other| (one, other)))
}

/// The same subnet on two interfaces: routes lead to one of them only.
fn overlaps(interfaces: &[InterfaceFacts]) -> Vec<Finding> {
    let shared = pairs(interfaces).filter_map(|(one, other)| {
        let mut networks = one.networks.iter().flat_map(|a| other.networks.iter().map(move |b| (a, b)));
        let (a, b) = networks.find(|(a, b)| a.contains(*b) || b.contains(*a))?;
        Some(Finding {
            check: "same_subnet",
            severity: Severity::Risk,
            title: format!("{} and {} have overlapping subnets", one.name, other.name),
            evidence: vec![format!("{a} on {}", one.name), format!("{b} on {}", other.name)],
            consequence: "the kernel routes to hosts of both by one of the interfaces: those behind the other are not reached"
                .to_owned(),
            command: format!("ip route show match {}; give one of the networks other addresses", a.network()),
        })
    });
    shared.collect()
}

/// The same address on two interfaces: the kernel answers for it on both, and packets from it leave by either.
fn twice(interfaces: &[InterfaceFacts]) -> Vec<Finding> {
    let shared = pairs(interfaces).filter_map(|(one, other)| {
        let address = one.addresses.iter().find(|address| other.addresses.contains(address))?;
        Some(Finding {
            check: "same_address",
            severity: Severity::Fault,
            title: format!("{} and {} have the same address {address}", one.name, other.name),
            evidence: vec![format!("{address} on {}", one.name), format!("{address} on {}", other.name)],
            consequence: "both segments take the gateway to be at that address, and its answers leave by one interface only"
                .to_owned(),
            command: format!("ip address show to {address}; ip address del {address} dev {}", other.name),
        })
    });
    shared.collect()
}

/// What the daemon itself warns of, unless a check of its own speaks of it.
fn warnings(facts: &Facts) -> Vec<Finding> {
    let own = facts.warnings.iter().filter(|warning| {
        !["ip_forward", "rp_filter", "the MTU of"].iter().any(|covered| warning.starts_with(covered))
    });
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
