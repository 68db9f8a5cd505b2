//! Servers of virtual servers that are down, that answer past the gateway though it has to translate their answers, or
//! that do not take packets for the service's address.

use super::{Facts, Finding, Severity};
use crate::api::{ServerRow, ServiceRow, SessionRow};

/// Packets without an answer from which on it counts as silence.
const SILENCE: u64 = 3;

/// Connections that are asked for in vain from which on it is no accident.
const ASKING: usize = 2;

/// See the module.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let servers = facts.services.iter().flat_map(|row| row.servers.iter().map(move |server| (row, server)));
    servers
        .filter_map(|(service, server)| {
            down(service, server)
                .or_else(|| silent(facts, service, server))
                .or_else(|| unheard(facts, service, server))
        })
        .collect()
}

fn down(service: &ServiceRow, server: &ServerRow) -> Option<Finding> {
    if server.state != "down" {
        return None;
    }
    let needs = match service.method.as_str() {
        "direct-routing" => "; the check asks at its own address, so the service has to listen there, too",
        "tunnel" => {
            "; the check asks at its own address, outside the tunnel: the service has to listen there, too"
        }
        _ => "",
    };
    Some(Finding {
        check: "server_down",
        severity: Severity::Fault,
        title: format!("server {} of {} does not answer its checks", server.address, service.name),
        evidence: vec![format!(
            "check {}: down for {} s, {} times in all",
            service.check, server.since, server.falls
        )],
        consequence: format!("it gets no new connections{needs}"),
        command: match service.check.as_str() {
            "ping" => format!("ping -c 3 {}", server.address.ip()),
            "http" => format!("curl -v http://{}/", server.address),
            _ => format!("nc -zv {} {}", server.address.ip(), server.address.port()),
        },
    })
}

/// Requests were delivered, and nothing has come back this way.
fn silent(facts: &Facts, service: &ServiceRow, server: &ServerRow) -> Option<Finding> {
    if service.method != "nat" || server.packets_in < SILENCE || server.packets_out > 0 {
        return None;
    }
    let address = server.address;
    let gateway = facts.inside_addresses.first();
    let gateway = gateway.map_or_else(|| "GATEWAY".to_owned(), ToString::to_string);
    Some(Finding {
        check: "server_silent",
        severity: Severity::Fault,
        title: format!("{}: requests delivered, no replies seen from {address}", service.name),
        evidence: vec![format!("{} packets to it, 0 from it", server.packets_in)],
        consequence: "its clients wait in vain: the server answers past the gateway, from an address that they have not \
                      asked, or not at all. With method nat its route to them has to lead here"
            .to_owned(),
        command: format!("on the server: ip route get CLIENT; ip route replace default via {gateway}"),
    })
}

/// Answers go past the gateway: what shows is that clients ask again and again, and none gets any further.
fn unheard(facts: &Facts, service: &ServiceRow, server: &ServerRow) -> Option<Finding> {
    let (host, address) = (server.address.ip(), server.address);
    let of_server: Vec<&SessionRow> = facts
        .sessions
        .iter()
        .filter(|session| {
            session.rule == service.name && session.inside == address && session.protocol == "tcp"
        })
        .collect();
    let asked: Vec<&&SessionRow> =
        of_server.iter().filter(|session| session.state == "opening" && session.packets_in > 1).collect();
    let got_through = of_server.iter().any(|session| session.state != "opening");
    let public = asked.first().filter(|_| asked.len() >= ASKING && !got_through)?.outside.ip().to_owned();
    let mut evidence =
        vec![format!("{} connections to it, each asked for again and again, none established", asked.len())];
    let sent_back = facts.drops.get("loop").copied().unwrap_or_default();
    if sent_back > 0 {
        evidence.push(format!("{sent_back} packets came back from a server that sent them on"));
    }
    let (lacks, command) = match service.method.as_str() {
        "direct-routing" => (
            format!("{public} is on none of its interfaces"),
            format!(
                "ip addr add {public}/32 dev lo; sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2"
            ),
        ),
        "tunnel" => (
            format!("it has no tunnel end with {public} on it, or rp_filter drops what comes out of that"),
            format!(
                "ip link add ipip0 type ipip local {host}; ip link set ipip0 up; ip addr add {public}/32 dev ipip0; \
                 sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.ipip0.rp_filter=0"
            ),
        ),
        _ => return None,
    };
    Some(Finding {
        check: "server_silent",
        severity: Severity::Fault,
        title: format!("{}: requests delivered, but {address} answers no client", service.name),
        evidence,
        consequence: format!("its clients wait in vain: {lacks}, or it has no route to them"),
        command: format!("on the server: {command}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(method: &str, state: &str, packets: [u64; 2]) -> Facts {
        let server = ServerRow {
            address: "10.1.1.21:8080".parse().expect("an endpoint"),
            weight: 1,
            state: state.to_owned(),
            since: 9,
            falls: 2,
            active: 1,
            connections: 1,
            rate: 0.0,
            packets_in: packets[0],
            bytes_in: 0,
            packets_out: packets[1],
            bytes_out: 0,
        };
        let service = ServiceRow {
            name: "web".to_owned(),
            protocol: "tcp".to_owned(),
            external: "wan:80".to_owned(),
            method: method.to_owned(),
            scheduler: "round-robin".to_owned(),
            persistence: 0,
            check: "http".to_owned(),
            servers: vec![server],
        };
        Facts {
            services: vec![service],
            inside_addresses: vec!["10.1.1.1".parse().expect("an address")],
            ..Facts::default()
        }
    }

    #[test]
    fn s003_09_silence_is_a_fault_only_where_answers_come_by() {
        let checks = |facts: &Facts| findings(facts).iter().map(|finding| finding.check).collect::<Vec<_>>();
        let silent = facts("nat", "up", [3, 0]);
        assert_eq!(checks(&silent), ["server_silent"]);
        let found = &findings(&silent)[0];
        assert_eq!(found.title, "web: requests delivered, no replies seen from 10.1.1.21:8080");
        assert!(found.command.ends_with("default via 10.1.1.1"), "{}", found.command);
        assert!(checks(&facts("nat", "up", [3, 1])).is_empty());
        assert!(checks(&facts("nat", "up", [2, 0])).is_empty());
        assert!(checks(&facts("tunnel", "up", [3, 0])).is_empty());
    }

    #[test]
    fn a_server_that_is_down_is_named() {
        let found = findings(&facts("direct-routing", "down", [3, 0]));
        assert_eq!((found.len(), found[0].check), (1, "server_down"));
        assert!(found[0].consequence.contains("listen there, too"));
        assert_eq!(found[0].command, "curl -v http://10.1.1.21:8080/");
    }
}
