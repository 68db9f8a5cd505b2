//! `natgw status`

use std::io::{self, Write};

use super::table::{Column, Table, or_dash};
use super::top::figure;
use super::{Daemon, Failure, Format, output, pool};
use crate::api::{Request, StatusReport};

pub(super) fn carry_out(format: Format, daemon: &Daemon) -> Result<(), Failure> {
    let report: StatusReport = daemon.ask(&Request::Status)?;
    if format.json {
        return Ok(output::json(&report)?);
    }
    Ok(write(output::stdout(), &report)?.flush()?)
}

fn write<W: Write>(mut out: W, report: &StatusReport) -> io::Result<W> {
    let StatusReport { rules, packets, rates, .. } = report;
    writeln!(out, "natgw {}, process {}, up {}", report.version, report.pid, output::seconds(report.uptime))?;
    writeln!(
        out,
        "sessions: {} of {}, on {} external ports; {} packets wait",
        report.sessions, report.sessions_limit, report.mappings, report.waiting
    )?;
    writeln!(
        out,
        "rules:    {} snat, {} static, {} forward, {} service",
        rules.snat, rules.r#static, rules.forward, rules.service
    )?;
    writeln!(
        out,
        "packets:  {} translated, {} passed, {} punted, {} dropped",
        packets.translated, packets.passed, packets.punted, packets.dropped
    )?;
    let [translated, passed, punted, dropped] =
        [rates.translated, rates.passed, rates.punted, rates.dropped].map(figure);
    writeln!(
        out,
        "a second: {translated} translated, {passed} passed, {punted} punted, {dropped} dropped\n"
    )?;
    let mut out = interfaces(out, report)?;
    if !report.pools.is_empty() {
        writeln!(out)?;
        out = pool::write(out, &report.pools)?;
    }
    if !report.drops.is_empty() {
        writeln!(out)?;
        out = drops(out, report)?;
    }
    if !report.warnings.is_empty() {
        writeln!(out)?;
    }
    for warning in &report.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(out)
}

fn interfaces<W: Write>(out: W, report: &StatusReport) -> io::Result<W> {
    let columns = [
        Column::Left("INTERFACE"),
        Column::Left("SIDE"),
        Column::Left("STATE"),
        Column::Left("MODE"),
        Column::Right("INDEX"),
        Column::Right("QUEUES"),
        Column::Left("ADDRESSES"),
    ];
    let mut table = Table::new(out, output::styled(), columns);
    for interface in &report.interfaces {
        let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
        table.row([
            interface.name.clone(),
            interface.side.clone(),
            interface.state.clone(),
            or_dash(Some(interface.mode.clone())),
            interface.index.to_string(),
            interface.queues.to_string(),
            or_dash(Some(addresses.join(","))),
        ])?;
    }
    table.finish()
}

fn drops<W: Write>(out: W, report: &StatusReport) -> io::Result<W> {
    let columns = [Column::Left("DROPPED-FOR"), Column::Right("PACKETS"), Column::Left("WHICH-MEANS")];
    let mut table = Table::new(out, output::styled(), columns);
    for drop in &report.drops {
        table.row([drop.reason.clone(), drop.packets.to_string(), drop.description.clone()])?;
    }
    table.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{DropRow, InterfaceStatus, PacketRates, PacketTotals, PoolRow, RuleCounts};

    #[test]
    fn for_people() {
        let report = StatusReport {
            version: "0.1.0".to_owned(),
            pid: 4242,
            uptime: 7440,
            interfaces: vec![InterfaceStatus {
                name: "wan".to_owned(),
                side: "outside".to_owned(),
                index: 3,
                mode: "native".to_owned(),
                queues: 2,
                addresses: vec![[203, 0, 113, 1].into()],
                state: "up".to_owned(),
            }],
            rules: RuleCounts { snat: 1, ..RuleCounts::default() },
            sessions: 12,
            sessions_limit: 1_048_576,
            waiting: 3,
            mappings: 10,
            pools: vec![PoolRow {
                address: [203, 0, 113, 1].into(),
                interface: Some("wan".to_owned()),
                protocol: "udp".into(),
                used: 10,
                free: 64_502,
                quarantined: 0,
            }],
            packets: PacketTotals { translated: 1000, passed: 5, punted: 12, dropped: 1 },
            rates: PacketRates { translated: 48_200.0, passed: 2.5, punted: 11.8, dropped: 0.0 },
            drops: vec![DropRow {
                reason: "ttl-expired".to_owned(),
                description: "the time to live ran out".to_owned(),
                packets: 1,
            }],
            warnings: vec!["wan: LRO is on".to_owned()],
        };
        let text = String::from_utf8(write(Vec::new(), &report).expect("a Vec takes all")).expect("UTF-8");
        assert_eq!(
            text,
            "natgw 0.1.0, process 4242, up 2h4m
sessions: 12 of 1048576, on 10 external ports; 3 packets wait
rules:    1 snat, 0 static, 0 forward, 0 service
packets:  1000 translated, 5 passed, 12 punted, 1 dropped
a second: 48.2k translated, 2.5 passed, 12 punted, 0 dropped

INTERFACE  SIDE     STATE  MODE    INDEX  QUEUES  ADDRESSES
wan        outside  up     native      3       2  203.0.113.1

ADDRESS      INTERFACE  PROTOCOL  USED   FREE  QUARANTINED
203.0.113.1  wan        udp         10  64502            0

DROPPED-FOR  PACKETS  WHICH-MEANS
ttl-expired        1  the time to live ran out

warning: wan: LRO is on
"
        );
    }
}
