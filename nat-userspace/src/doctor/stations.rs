//! Stations on the segments: addresses that two of them have, or that none has.

use super::asked::Asked;
use super::{Facts, Finding, Severity};

/// See the module.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let each = facts.asked.iter().filter_map(|asked| match asked.stations.as_slice() {
        [station, ..] if asked.own => Some(taken(asked, station)),
        [_, _, ..] => Some(duplicate(asked)),
        [] if facts.host == Some(asked.address) && !asked.own => Some(silent(asked)),
        _ => None,
    });
    each.collect()
}

/// What `arping` would show, too.
fn evidence(asked: &Asked) -> Vec<String> {
    let Asked { interface, address, stations, .. } = asked;
    stations.iter().map(|mac| format!("{mac} answers ARP for {address} on {interface}")).collect()
}

fn duplicate(asked: &Asked) -> Finding {
    let Asked { interface, address, stations, .. } = asked;
    Finding {
        check: "duplicate_address",
        severity: Severity::Fault,
        title: format!("{} stations have the address {address} on {interface}", stations.len()),
        evidence: evidence(asked),
        consequence:
            "what is sent there reaches now one of them, now the other: connections stall and are reset"
                .to_owned(),
        command: format!(
            "arping -I {interface} -c 3 {address}; give one of them another address, or, if they are one host's, \
             sysctl -w net.ipv4.conf.all.arp_ignore=1 there; then ip neighbour flush to {address}"
        ),
    }
}

fn taken(asked: &Asked, station: &str) -> Finding {
    let Asked { interface, address, .. } = asked;
    Finding {
        check: "address_taken",
        severity: Severity::Fault,
        title: format!("somebody else has the gateway's own address {address} on {interface}"),
        evidence: evidence(asked),
        consequence:
            "hosts and routers there send what is for the gateway to the other station: sessions hang, some \
                      of them, at times"
                .to_owned(),
        command: format!(
            "arping -D -I {interface} -c 3 {address}; find {station} and give it another address, or take it from here: \
             ip address show to {address}"
        ),
    }
}

/// The host that the question is about, on a network of the gateway's own.
fn silent(asked: &Asked) -> Finding {
    let Asked { interface, address, .. } = asked;
    Finding {
        check: "host_silent",
        severity: Severity::Fault,
        title: format!("{address} does not answer ARP on {interface}"),
        evidence: vec![format!("asked for it on {interface}: no answer")],
        consequence:
            "nothing can be delivered to it: it is off, elsewhere, or has another address or network mask"
                .to_owned(),
        command: format!("arping -I {interface} -c 3 {address}; ip neighbour show to {address}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_answer_is_right_for_others_and_none_for_oneself() {
        let host = "192.168.1.10".parse().expect("an address");
        let asked = |own, stations: &[&str]| Asked {
            interface: "lan".to_owned(),
            address: host,
            own,
            stations: stations.iter().map(|mac| (*mac).to_owned()).collect(),
        };
        let checks = |about, asked: Asked| {
            let facts = Facts { host: about, asked: vec![asked], ..Facts::default() };
            findings(&facts).iter().map(|finding| finding.check).collect::<Vec<_>>()
        };
        let (one, other) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
        assert!(checks(None, asked(false, &[one])).is_empty());
        assert_eq!(checks(None, asked(false, &[one, other])), ["duplicate_address"]);
        assert!(checks(None, asked(true, &[])).is_empty());
        assert_eq!(checks(None, asked(true, &[one])), ["address_taken"]);
        assert!(checks(None, asked(false, &[])).is_empty());
        assert_eq!(checks(Some(host), asked(false, &[])), ["host_silent"]);
    }
}
