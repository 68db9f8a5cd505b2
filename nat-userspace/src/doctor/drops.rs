//! What the counters say that natgw itself has dropped.

use nat_common::Reason;

use super::{Facts, Finding, Severity};

/// Reasons that somebody should do something about: what it does to packets, and what to do.
const TELLING: [(Reason, &str, &str); 9] = [
    (
        Reason::DropNoRoute,
        "destinations without a route are answered with ICMP unreachable",
        "ip route show; ip route get DESTINATION",
    ),
    (
        Reason::DropNoNeighbour,
        "what goes by a router or to a host that does not answer ARP is lost: a route may point to a dead one",
        "ip neighbour show nud failed; ip route get DESTINATION",
    ),
    (
        Reason::DropPortsExhausted,
        "new flows are refused with ICMP 3/13; those there are go on",
        "natgw pool list, then more addresses in `to`, or mapping = \"endpoint-dependent\"",
    ),
    (
        Reason::DropSourceLimit,
        "new flows of the hosts at their limit, or of more hosts than there may be, are refused with ICMP 3/13",
        "natgw session count --inside HOST, then [limits] sessions_per_source, new_per_second_per_source or sources",
    ),
    (
        Reason::DropSessionsFull,
        "new flows are refused with ICMP 3/13",
        "raise [limits] sessions, or mappings, and restart natgw",
    ),
    (
        Reason::DropNoAddress,
        "nothing is translated by an interface without an address",
        "ip address show; natgw status",
    ),
    (Reason::DropNoDaemon, "new flows are lost while the daemon is away or overloaded", "natgw status"),
    (
        Reason::DropSpoofed,
        "sources that no inside interface leads to are dropped: forged, or the route to their network is missing",
        "ip route get SOURCE, then ip route add NETWORK via INNER-ROUTER",
    ),
    (
        Reason::DropOwnClash,
        "a connection of the gateway's own does not come about",
        "sysctl net.ipv4.ip_local_port_range, and `ports` of the rule: keep them apart",
    ),
];

/// See the module.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let telling = TELLING.iter().filter_map(|(reason, consequence, command)| {
        let packets = *facts.drops.get(reason.name())?;
        Some(Finding {
            check: reason.name(),
            severity: Severity::Fault,
            title: format!("{packets} packets dropped: {}", reason.description()),
            evidence: vec![format!("natgw status: {} {packets}", reason.name())],
            consequence: (*consequence).to_owned(),
            command: (*command).to_owned(),
        })
    });
    telling.collect()
}
