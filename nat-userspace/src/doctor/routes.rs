//! Default routes: none, two that are equal, one that leads to the wrong side, one to a router that is silent.

use super::{Facts, Finding, Severity};
use crate::doctor::facts::DefaultRoute;

/// See the module.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let Some(best) = facts.default_routes.iter().min_by_key(|route| route.metric) else {
        return vec![Finding {
            check: "no_default_route",
            severity: Severity::Risk,
            title: "there is no default route".to_owned(),
            evidence: vec!["/proc/net/route has none".to_owned()],
            consequence: "only destinations with a route of their own are reached; all else is answered with ICMP unreachable"
                .to_owned(),
            command: "ip route add default via ROUTER".to_owned(),
        }];
    };
    let equal: Vec<&DefaultRoute> =
        facts.default_routes.iter().filter(|route| route.metric == best.metric).collect();
    [ambiguous(&equal), inside(facts, best), silent(best)].into_iter().flatten().collect()
}

fn shown(route: &DefaultRoute) -> String {
    let via = route.gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
    format!("default{via} dev {} metric {}", route.interface, route.metric)
}

fn ambiguous(equal: &[&DefaultRoute]) -> Option<Finding> {
    let [first, second, ..] = equal else { return None };
    Some(Finding {
        check: "default_routes",
        severity: Severity::Risk,
        title: format!("{} default routes have metric {}", equal.len(), first.metric),
        evidence: equal.iter().map(|route| shown(route)).collect(),
        consequence: "the kernel takes the one that was added last, and natgw with it: new sessions may leave by the uplink that is not meant"
            .to_owned(),
        command: format!("ip route del {}; then add it again with another metric", shown(second)),
    })
}

fn inside(facts: &Facts, best: &DefaultRoute) -> Option<Finding> {
    let of_side = |side: &str| {
        facts.interfaces.iter().any(|interface| interface.side == side && interface.name == best.interface)
    };
    of_side("inside").then(|| Finding {
        check: "default_route_inside",
        severity: Severity::Fault,
        title: format!("the default route leads to the inside, by {}", best.interface),
        evidence: vec![shown(best)],
        consequence: "what inside hosts send to the world is sent back to the inside, and no rule for the outside is asked"
            .to_owned(),
        command: format!("ip route del {}; ip route add default via ROUTER dev OUTSIDE", shown(best)),
    })
}

fn silent(best: &DefaultRoute) -> Option<Finding> {
    let gateway = best.gateway.filter(|_| best.silent)?;
    Some(Finding {
        check: "router_silent",
        severity: Severity::Fault,
        title: format!("the router {gateway} does not answer ARP on {}", best.interface),
        evidence: vec![
            shown(best),
            format!("asked for {gateway} on {}: no answer, and none in /proc/net/arp", best.interface),
        ],
        consequence: "nothing that goes by the default route leaves; it waits a moment and is dropped"
            .to_owned(),
        command: format!("arping -I {} {gateway}; ip neighbour show {gateway}", best.interface),
    })
}
