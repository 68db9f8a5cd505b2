//! What the daemon tells of itself, in the shapes of the control protocol.

use std::time::Instant;

use nat_common::Reason;

use super::worker::Worker;
use crate::api::{
    Direction, DropRow, InterfaceStatus, PacketTotals, PoolRow, RuleCounts, RuleRow, SessionRow,
    StatusReport, rule_rows,
};
use crate::config::{Config, Side, protocol_name};
use crate::datapath::Attached;
use crate::eventlog::Writer;
use crate::gateway::{Condition, Notice, SessionView};
use crate::metrics::Snapshot;

/// A session as a row.
pub fn session_row(view: SessionView) -> SessionRow {
    SessionRow {
        protocol: protocol_name(view.protocol).into(),
        inside: view.inside,
        outside: view.outside,
        remote: view.remote,
        remote_inside: view.remote_inside,
        direction: if view.outbound { Direction::Outbound } else { Direction::Inbound },
        state: view.state.into(),
        expires_in: view.expires_in,
        age: view.age,
        packets_out: view.packets[0],
        bytes_out: view.bytes[0],
        packets_in: view.packets[1],
        bytes_in: view.bytes[1],
        rule: view.rule,
        filtering: view.filtering.map(Into::into),
    }
}

/// `natgw status`.
pub fn status(worker: &Worker) -> StatusReport {
    let packets = totals(worker);
    let drops: Vec<DropRow> = Reason::ALL
        .iter()
        .filter(|reason| reason.is_drop())
        .map(|&reason| DropRow {
            reason: reason.name().to_owned(),
            description: reason.description().to_owned(),
            packets: worker.count(reason),
        })
        .filter(|row| row.packets > 0)
        .collect();
    StatusReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime: worker.started.elapsed().as_secs(),
        interfaces: interfaces(worker),
        rules: rule_counts(&worker.config),
        sessions: u64::from(worker.gateway.session_count()),
        sessions_limit: u64::from(worker.gateway.session_limit()),
        waiting: (worker.gateway.held() + worker.gateway.waiting_fragments()) as u64,
        mappings: worker.gateway.mapping_count() as u64,
        pools: pools(worker),
        rates: worker.meter.rates(Instant::now(), packets),
        packets,
        drops,
        warnings: worker.warnings(),
    }
}

/// Packets by what became of them.
pub fn totals(worker: &Worker) -> PacketTotals {
    let sum = |reasons: &[Reason]| reasons.iter().map(|&reason| worker.count(reason)).sum();
    let drops = Reason::ALL.iter().filter(|reason| reason.is_drop());
    PacketTotals {
        translated: sum(&[
            Reason::Translated,
            Reason::TranslatedStatic,
            Reason::TranslatedByStack,
            Reason::Relayed,
        ]),
        passed: worker.count(Reason::Passed),
        punted: worker.count(Reason::Punted),
        dropped: drops.map(|&reason| worker.count(reason)).sum(),
    }
}

/// `natgw metrics`, yet to be written. Nothing here takes longer the more sessions there are.
pub fn metrics(worker: &Worker) -> Snapshot {
    let gateway = &worker.gateway;
    let counts = |drops: bool| {
        let reasons = Reason::ALL.iter().filter(move |reason| reason.is_drop() == drops);
        reasons
            .filter(|reason| **reason != Reason::EventLost)
            .map(|&reason| (reason.name(), worker.count(reason)))
    };
    let opened = gateway.opened();
    let rules = rule_rows(&worker.config).into_iter();
    Snapshot {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime: worker.started.elapsed().as_secs_f64(),
        verdicts: counts(false).collect(),
        drops: counts(true).collect(),
        sessions: [gateway.session_count(), gateway.session_limit()].map(u64::from),
        mappings: gateway.mapping_count() as u64,
        opened: rules
            .map(|rule| {
                let count = opened.get(&rule.name).copied().unwrap_or(0);
                (rule.name, count)
            })
            .collect(),
        rules: rule_counts(&worker.config),
        pools: pools(worker),
        services: gateway.service_counts(Instant::now()),
        interfaces: interfaces(worker),
        held: gateway.held() as u64,
        fragments: gateway.waiting_fragments() as u64,
        lost_frames: worker.lost_frames(),
        lost_reports: worker.count(Reason::EventLost),
        log: worker.log.as_ref().map(Writer::counts).unwrap_or_default(),
    }
}

fn rule_counts(config: &Config) -> RuleCounts {
    RuleCounts {
        snat: config.snat.len() as u64,
        r#static: config.statics.len() as u64,
        forward: config.forwards.len() as u64,
        service: config.services.len() as u64,
    }
}

fn interfaces(worker: &Worker) -> Vec<InterfaceStatus> {
    worker
        .served
        .iter()
        .map(|served| {
            let known = served.ifindex.and_then(|ifindex| worker.gateway.interface(ifindex));
            InterfaceStatus {
                name: served.config.name.clone(),
                side: match served.config.side {
                    Side::Inside => "inside",
                    Side::Outside => "outside",
                }
                .to_owned(),
                index: served.ifindex.unwrap_or(0),
                mode: match served.attached {
                    Some(Attached::Native) => "native",
                    Some(Attached::Generic) => "generic",
                    None => "none",
                }
                .to_owned(),
                queues: served.queues,
                addresses: known.map(|interface| interface.addresses.clone()).unwrap_or_default(),
                state: match known {
                    Some(interface) if interface.up => "up",
                    Some(_) => "down",
                    None => "missing",
                }
                .to_owned(),
            }
        })
        .collect()
}

/// `natgw pool list`.
pub fn pools(worker: &Worker) -> Vec<PoolRow> {
    worker
        .gateway
        .pools()
        .into_iter()
        .map(|pool| PoolRow {
            address: pool.address,
            interface: pool.interface,
            protocol: protocol_name(pool.protocol).into(),
            used: u64::from(pool.used),
            free: u64::from(pool.free),
            quarantined: u64::from(pool.quarantined),
        })
        .collect()
}

/// `natgw rule list`.
pub fn rules(worker: &Worker) -> Vec<RuleRow> {
    let open = worker.gateway.sessions_by_rule();
    rule_rows(&worker.config)
        .into_iter()
        .map(|row| RuleRow {
            sessions: open.get(&row.name).copied().unwrap_or(0),
            packets: worker.gateway.opened_by_rule(&row.name),
            ..row
        })
        .collect()
}

/// Tells the operator that fragments crowd each other out, and when they no longer do.
fn fragments(evicted: Option<u64>) {
    match evicted {
        None => tracing::warn!("more fragments wait for their first than may: the oldest are dropped"),
        Some(evicted) => tracing::info!(evicted, "fragments no longer crowd each other out"),
    }
}

/// Tells the operator what refuses flows, and when it no longer does.
pub fn notice(notice: Notice) {
    let (condition, refused) = match notice {
        Notice::Begun(condition) => (condition, None),
        Notice::Over(condition, refused) => (condition, Some(refused)),
    };
    let what = match condition {
        Condition::Ports(protocol) => {
            format!(
                "external ports for {}: add addresses or use endpoint-dependent mapping",
                protocol_name(protocol)
            )
        }
        Condition::Addresses => "external addresses: the interface has none".to_owned(),
        Condition::Sessions => "sessions: raise limits.sessions".to_owned(),
        Condition::Mappings => "mappings: raise limits.mappings".to_owned(),
        Condition::Sources => "sources that may have sessions: raise limits.sources".to_owned(),
        Condition::Room => "memory for the kernel's flow table".to_owned(),
        Condition::Fragments => return fragments(refused),
        Condition::Source(source) => format!("sessions that {source} may have: see [limits]"),
    };
    match refused {
        None => tracing::warn!("new flows are refused for want of {what}"),
        Some(refused) => tracing::info!(refused, "new flows are no longer refused for want of {what}"),
    }
}
