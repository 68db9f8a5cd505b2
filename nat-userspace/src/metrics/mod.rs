//! Counters for Prometheus: gathered on the worker's thread in one go, written on another.

#![deny(unsafe_code)]

mod server;
mod text;

pub use self::server::{Responder, ResponderError};
use self::text::{Family, Text};
use crate::api::{InterfaceStatus, PoolRow, RuleCounts};
use crate::gateway::{ServerView, ServiceView};

/// What the metrics are made of. Cheap to gather however many sessions there are.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Of the daemon's package.
    pub version: String,
    /// Seconds since the daemon started.
    pub uptime: f64,
    /// Packets by what became of them, under the names of the reasons.
    pub verdicts: Vec<(&'static str, u64)>,
    /// Dropped packets by the name of the reason, also those that have dropped none.
    pub drops: Vec<(&'static str, u64)>,
    /// Sessions there are, and may be.
    pub sessions: [u64; 2],
    /// Mappings there are.
    pub mappings: u64,
    /// Sessions opened since the start by the rule's name.
    pub opened: Vec<(String, u64)>,
    /// How many rules of each kind.
    pub rules: RuleCounts,
    /// Ports of each external address.
    pub pools: Vec<PoolRow>,
    /// Virtual servers; of packets and bytes those of sessions that are over.
    pub services: Vec<ServiceView>,
    /// The configured interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// Frames that wait for a neighbour.
    pub held: u64,
    /// Fragments that wait for their first.
    pub fragments: u64,
    /// Frames that the daemon's rings had no room for.
    pub lost_frames: u64,
    /// Reports of TCP sessions that the daemon was not told in time.
    pub lost_reports: u64,
    /// Records of the event log that were written, their bytes, and records that were lost.
    pub log: [u64; 3],
}

impl Snapshot {
    /// In the text format of Prometheus, version 0.0.4.
    pub fn text(&self) -> String {
        let mut text = Text::default();
        self.daemon(&mut text);
        self.packets(&mut text);
        self.state(&mut text);
        self.servers(&mut text);
        self.log(&mut text);
        text.finish()
    }

    fn daemon(&self, text: &mut Text) {
        text.gauge("natgw_build_info", "The version of the daemon, as a label.")
            .value(&[("version", &self.version)], 1.0);
        text.gauge("natgw_uptime_seconds", "Time since the daemon started.").value(&[], self.uptime);
        let mut up =
            text.gauge("natgw_interface_up", "Whether a configured interface is there, up and has carrier.");
        for interface in &self.interfaces {
            let labels = [("interface", &*interface.name), ("side", &interface.side)];
            up.value(&labels, f64::from(u8::from(interface.state == "up")));
        }
        let mut queues = text.gauge(
            "natgw_interface_queues",
            "Receive queues that are served, by how the program is attached.",
        );
        for interface in &self.interfaces {
            let labels = [("interface", &*interface.name), ("mode", &interface.mode)];
            queues.value(&labels, f64::from(interface.queues));
        }
        let mut rules = text.gauge("natgw_rules", "Rules in force.");
        let RuleCounts { snat, r#static, forward, service } = self.rules;
        let kinds = [("snat", snat), ("static", r#static), ("forward", forward), ("service", service)];
        for (kind, count) in kinds {
            rules.count(&[("kind", kind)], count);
        }
    }

    fn packets(&self, text: &mut Text) {
        let mut verdicts = text.counter(
            "natgw_packets_total",
            "Packets by verdict of the fast path. Punted ones were decided by the daemon and sent by it or dropped.",
        );
        for (verdict, count) in &self.verdicts {
            verdicts.count(&[("verdict", verdict)], *count);
        }
        let mut drops =
            text.counter("natgw_dropped_packets_total", "Packets that ended at the gateway, by reason.");
        for (reason, count) in &self.drops {
            drops.count(&[("reason", reason)], *count);
        }
        text.counter("natgw_lost_frames_total", "Frames that the daemon's rings had no room for.")
            .count(&[], self.lost_frames);
        text.counter(
            "natgw_lost_reports_total",
            "Changes of TCP sessions that the fast path could not report in time.",
        )
        .count(&[], self.lost_reports);
        text.gauge("natgw_held_frames", "Frames that wait for a neighbour to answer.").count(&[], self.held);
        text.gauge("natgw_waiting_fragments", "Fragments that wait for their datagram's first.")
            .count(&[], self.fragments);
    }

    fn log(&self, text: &mut Text) {
        let [records, bytes, lost] = self.log;
        text.counter("natgw_log_records_total", "Records of the event log that were handed over.")
            .count(&[], records);
        text.counter("natgw_log_bytes_total", "Bytes of the event log that were handed over.")
            .count(&[], bytes);
        text.counter(
            "natgw_log_lost_records_total",
            "Records of the event log that were lost: their reader is slow or gone.",
        )
        .count(&[], lost);
    }

    fn state(&self, text: &mut Text) {
        let [sessions, limit] = self.sessions;
        text.gauge("natgw_sessions", "Sessions there are.").count(&[], sessions);
        text.gauge("natgw_sessions_limit", "Sessions there may be.").count(&[], limit);
        text.gauge("natgw_mappings", "Mappings of inside to external endpoints there are.")
            .count(&[], self.mappings);
        let mut opened = text.counter("natgw_sessions_opened_total", "Sessions opened, by rule.");
        for (rule, count) in &self.opened {
            opened.count(&[("rule", rule)], *count);
        }
        let mut ports = text.gauge(
            "natgw_ports",
            "External ports and ICMP identifiers of addresses in use. Quarantined ones rest before they are used anew.",
        );
        for pool in &self.pools {
            let address = pool.address.to_string();
            let states = [("used", pool.used), ("free", pool.free), ("quarantined", pool.quarantined)];
            for (state, count) in states {
                let labels = [("address", &*address), ("protocol", &*pool.protocol), ("state", state)];
                ports.count(&labels, count);
            }
        }
    }

    fn servers(&self, text: &mut Text) {
        let each = |family: &mut Family<'_>, value: fn(&ServerView) -> u64| {
            for view in &self.services {
                for server in &view.servers {
                    let address = server.address.to_string();
                    family.count(&[("service", &view.rule.name), ("server", &address)], value(server));
                }
            }
        };
        let mut up = text.gauge("natgw_server_up", "Whether a virtual server's checks find a server well.");
        each(&mut up, |server| u64::from(server.is_up));
        let mut active = text.gauge("natgw_server_connections", "Connections that a server has.");
        each(&mut active, |server| u64::from(server.active));
        let mut opened = text.counter("natgw_server_opened_total", "Connections that a server was given.");
        each(&mut opened, |server| server.opened);
        let mut falls =
            text.counter("natgw_server_falls_total", "How often a server's checks found it down.");
        each(&mut falls, |server| server.falls);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Words that begin with `natgw_`.
    fn names(text: &str) -> BTreeSet<&str> {
        let words = text.split(|letter: char| !(letter.is_ascii_lowercase() || letter == '_'));
        words.filter(|word| word.starts_with("natgw_")).collect()
    }

    #[test]
    fn dashboard_and_alerts_name_metrics_that_there_are() {
        let text = Snapshot::default().text();
        let there = names(&text);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib");
        for file in ["grafana/natgw.json", "prometheus/natgw.rules.yml"] {
            let shown = std::fs::read_to_string(root.join(file)).unwrap();
            let named = names(&shown);
            assert!(named.len() > 4, "{file} has {named:?}");
            let unknown: Vec<_> = named.difference(&there).collect();
            assert!(unknown.is_empty(), "{file} names {unknown:?}");
        }
        let dashboard = std::fs::read_to_string(root.join("grafana/natgw.json")).unwrap();
        let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            let targets = panel["targets"].as_array().unwrap();
            assert!(
                !targets.is_empty()
                    && targets
                        .iter()
                        .all(|target| target["expr"].as_str().is_some_and(|it| it.contains("natgw_"))),
                "{panel}"
            );
        }
    }
}
