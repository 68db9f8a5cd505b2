//! What sessions say: answers that never come, answers that were delivered; and of one host, whether any rule
//! is for it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{Facts, Finding, Severity};
use crate::api::{Direction, RuleRow, SessionRow};

/// Packets without an answer from which on it counts as silence.
const SILENCE: u64 = 3;
/// Packets of each side of a connection that is not established from which on it was asked for again, in vain.
const AGAIN: u64 = 2;
/// Sessions named in evidence.
const NAMED: usize = 5;
/// What loses answers that natgw has delivered, and what shows it.
const BEHIND: &str = "the loss is behind natgw: a host in two networks drops what comes by another interface than its own \
                      route leads to (rp_filter), or its firewall does";
const ON_THE_HOST: &str =
    "on the host: nstat -az TcpExtIPReversePathFilter; sysctl -w net.ipv4.conf.all.rp_filter=2";

/// See the module.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = unanswered(&facts.sessions).into_iter().collect();
    findings.extend(asked_again(&facts.sessions));
    if let Some(host) = facts.host {
        findings.extend(unmatched(facts, host));
        findings.extend(no_route(facts, host));
        findings.extend(delivered(facts, host));
    }
    findings
}

fn unanswered(sessions: &[SessionRow]) -> Option<Finding> {
    let silent: Vec<&SessionRow> =
        sessions.iter().filter(|row| row.packets_out >= SILENCE && row.packets_in == 0).collect();
    if silent.is_empty() {
        return None;
    }
    let evidence = silent.iter().take(NAMED).map(|row| {
        format!(
            "{} {} as {} to {}: {} out, 0 back",
            row.protocol, row.inside, row.outside, row.remote, row.packets_out
        )
    });
    Some(Finding {
        check: "no_replies",
        severity: Severity::Fault,
        title: format!("replies never come back: {} sessions have sent and heard nothing", silent.len()),
        evidence: evidence.collect(),
        consequence: "natgw translates and sends, and nobody answers to it: the remote, the way there, or the way back \
                      to the external address is at fault; or the kernel drops the answers before natgw"
            .to_owned(),
        command: silent.first().map_or_else(String::new, |row| {
            format!("ip route get {0} from {1}; traceroute -s {1} {0}", row.remote.ip(), row.outside.ip())
        }),
    })
}

/// Connections whose answers were sent on to the host, which asks for them again: it has not heard any.
fn asked_again(sessions: &[SessionRow]) -> Option<Finding> {
    let is_deaf = |row: &&SessionRow| {
        row.state == "opening"
            && row.direction == Direction::Outbound
            && row.packets_out.min(row.packets_in) >= AGAIN
    };
    let deaf: Vec<&SessionRow> = sessions.iter().filter(is_deaf).collect();
    let host = *deaf.first()?.inside.ip();
    let evidence = deaf.iter().take(NAMED).map(|row| {
        format!(
            "{} {} to {}: {} out, {} back and delivered, none established",
            row.protocol, row.inside, row.remote, row.packets_out, row.packets_in
        )
    });
    Some(Finding {
        check: "asked_again",
        severity: Severity::Fault,
        title: format!("{host} asks again and again for what natgw has delivered"),
        evidence: evidence.collect(),
        consequence: BEHIND.to_owned(),
        command: format!("{ON_THE_HOST}; here: natgw doctor {host}"),
    })
}

/// No rule's source selector holds for the host.
fn unmatched(facts: &Facts, host: Ipv4Addr) -> Option<Finding> {
    let of_source = |rule: &&RuleRow| rule.kind == "snat" && selects(&rule.source, host);
    let is_static = |rule: &RuleRow| rule.kind == "static" && selects(&rule.to, host);
    if facts.rules.iter().any(|rule| of_source(&rule) || is_static(rule)) {
        return None;
    }
    Some(Finding {
        check: "no_rule",
        severity: Severity::Fault,
        title: format!("no rule's source selector holds for {host}"),
        evidence: facts
            .rules
            .iter()
            .map(|rule| format!("{} {}: source {}", rule.kind, rule.name, rule.source))
            .collect(),
        consequence:
            "its packets are routed plainly, with the private source they have: the provider drops them, or \
                      answers go astray"
                .to_owned(),
        command: format!("add \"{host}/32\", or its network, to `source` of a [[snat]]; then natgw reload"),
    })
}

fn no_route(facts: &Facts, host: Ipv4Addr) -> Option<Finding> {
    let station = facts.station.as_ref()?;
    let fault = station.route_fault.as_ref()?;
    Some(Finding {
        check: "no_route_back",
        severity: Severity::Fault,
        title: format!("there is no route to {host}"),
        evidence: vec![format!("the kernel says: {fault}")],
        consequence: "what comes back for it cannot be delivered".to_owned(),
        command: format!("ip route get {host}; ip route add NETWORK via INNER-ROUTER"),
    })
}

/// Answers that were sent on to the host: if it does not see them, the loss is behind natgw.
fn delivered(facts: &Facts, host: Ipv4Addr) -> Option<Finding> {
    let answered: Vec<&SessionRow> =
        facts.sessions.iter().filter(|row| *row.inside.ip() == host && row.packets_in > 0).collect();
    if answered.is_empty() {
        return None;
    }
    let station = facts.station.as_ref()?;
    let mac = station.mac.clone().unwrap_or_else(|| "an unknown address".to_owned());
    let evidence = answered.iter().take(NAMED).map(|row| {
        format!(
            "{} {} to {}: {} out, {} back, delivered {} of {} to MAC {mac} on {}",
            row.protocol,
            row.inside,
            row.remote,
            row.packets_out,
            row.packets_in,
            row.packets_in,
            row.packets_in,
            station.interface
        )
    });
    Some(Finding {
        check: "delivered",
        severity: Severity::Note,
        title: format!("what came back for {host} was delivered to MAC {mac} on {}", station.interface),
        evidence: evidence.collect(),
        consequence: format!("if the host misses these answers, {BEHIND}"),
        command: ON_THE_HOST.to_owned(),
    })
}

/// Whether a selector, as a listing shows it, holds for an address.
fn selects(selector: &str, host: Ipv4Addr) -> bool {
    let holds =
        |word: &str| word.parse::<Ipv4Net>().is_ok_and(|net| net.contains(&host)) || word.parse() == Ok(host);
    let words = || selector.split([',', ' ']).map(str::trim).filter(|word| !word.is_empty());
    let excluded = words().filter_map(|word| word.strip_prefix('!')).any(holds);
    let mut positive = words().filter(|word| !word.starts_with('!') && *word != "any").peekable();
    !excluded && (positive.peek().is_none() || positive.any(holds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_as_listed() {
        let host = Ipv4Addr::new(10, 1, 1, 12);
        for (selector, holds) in [
            ("any", true),
            ("10.1.1.0/24", true),
            ("10.1.2.0/24, 10.1.1.12", true),
            ("10.1.0.0/16, !10.1.1.0/24", false),
            ("!10.1.1.0/24", false),
            ("!10.1.2.0/24", true),
            ("192.168.0.0/16", false),
        ] {
            assert_eq!(selects(selector, host), holds, "{selector}");
        }
    }

    #[test]
    fn silence_is_found_and_answers_are_shown() {
        let row = |packets_in| SessionRow {
            protocol: "icmp".into(),
            inside: "10.1.1.12:305".parse().expect("an endpoint"),
            outside: "192.168.1.10:360".parse().expect("an endpoint"),
            remote: "198.51.100.1:0".parse().expect("an endpoint"),
            remote_inside: "198.51.100.1:0".parse().expect("an endpoint"),
            direction: Direction::Outbound,
            state: "active".into(),
            expires_in: 60,
            age: 5,
            packets_out: 5,
            bytes_out: 420,
            packets_in,
            bytes_in: 84 * packets_in,
            rule: "r1".to_owned(),
            filtering: None,
        };
        let facts = |packets_in| Facts {
            sessions: vec![row(packets_in)],
            host: Some(Ipv4Addr::new(10, 1, 1, 12)),
            station: Some(crate::doctor::Station {
                interface: "eth1".to_owned(),
                mac: Some("02:00:00:00:00:01".to_owned()),
                route_fault: None,
            }),
            rules: vec![RuleRow { kind: "snat".to_owned(), source: "any".to_owned(), ..RuleRow::default() }],
            ..Facts::default()
        };
        let checks = |facts: &Facts| findings(facts).iter().map(|finding| finding.check).collect::<Vec<_>>();
        assert_eq!(checks(&facts(0)), ["no_replies"]);
        assert_eq!(checks(&facts(5)), ["delivered"]);
        assert!(
            findings(&facts(5))[0].evidence[0].contains("delivered 5 of 5 to MAC 02:00:00:00:00:01 on eth1")
        );
    }
}
