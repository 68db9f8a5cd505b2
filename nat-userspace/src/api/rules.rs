//! A configuration's rules as rows of a listing.

use crate::api::RuleRow;
use crate::config::{
    Config, ForwardAddress, ForwardRule, ServiceRule, SnatRule, SnatTarget, StaticRule, protocol_name,
    show_prefix,
};

/// The rules in the order they are tried, numbered from 1: statics, then forwards, services and snat, each
/// in file order. Counters are zero: the daemon knows them.
pub fn rule_rows(config: &Config) -> Vec<RuleRow> {
    let statics = config.statics.iter().map(static_row);
    let forwards = config.forwards.iter().map(forward_row);
    let services = config.services.iter().map(service_row);
    let snat = config.snat.iter().map(snat_row);
    (1..)
        .zip(statics.chain(forwards).chain(services).chain(snat))
        .map(|(id, row)| RuleRow { id, ..row })
        .collect()
}

fn static_row(rule: &StaticRule) -> RuleRow {
    RuleRow {
        kind: "static".to_owned(),
        name: rule.name.clone(),
        source: "any".to_owned(),
        destination: show_prefix(rule.external),
        protocol: "any".to_owned(),
        to: show_prefix(rule.internal),
        ..RuleRow::default()
    }
}

fn forward_row(rule: &ForwardRule) -> RuleRow {
    let host = match &rule.external {
        ForwardAddress::Address(address) => address.to_string(),
        ForwardAddress::Interface(name) => name.clone(),
    };
    RuleRow {
        kind: "forward".to_owned(),
        name: rule.name.clone(),
        source: rule.source.to_string(),
        destination: format!("{host}:{}", rule.external_ports),
        protocol: rule.protocols.to_string(),
        to: format!("{}:{}", rule.internal, rule.internal_ports),
        masquerade_source: Some(rule.masquerade_source),
        ..RuleRow::default()
    }
}

fn service_row(rule: &ServiceRule) -> RuleRow {
    let host = match &rule.external {
        ForwardAddress::Address(address) => address.to_string(),
        ForwardAddress::Interface(name) => name.clone(),
    };
    let servers: Vec<String> = rule.servers.iter().map(|server| server.address.to_string()).collect();
    RuleRow {
        kind: "service".to_owned(),
        name: rule.name.clone(),
        source: "any".to_owned(),
        destination: format!("{host}:{}", rule.port),
        protocol: protocol_name(rule.protocol),
        to: if servers.is_empty() { "none".to_owned() } else { servers.join(",") },
        ..RuleRow::default()
    }
}

fn snat_row(rule: &SnatRule) -> RuleRow {
    let row = RuleRow {
        kind: "snat".to_owned(),
        name: rule.name.clone(),
        source: rule.source.to_string(),
        destination: rule.destination.to_string(),
        protocol: rule.protocols.to_string(),
        out: rule.out.clone(),
        ..RuleRow::default()
    };
    let to = match &rule.to {
        SnatTarget::Masquerade => "masquerade".to_owned(),
        SnatTarget::Pool(pool) => pool.to_string(),
        // Nothing is translated: ports, mapping and the rest have no meaning.
        SnatTarget::None => return RuleRow { to: "none".to_owned(), ..row },
        SnatTarget::Track => return RuleRow { to: "track".to_owned(), ..row },
    };
    RuleRow {
        to,
        ports: Some(rule.allowed_ports().to_string()),
        mapping: Some(rule.mapping.name().to_owned()),
        filtering: Some(rule.filtering.name().to_owned()),
        pooling: Some(rule.pooling.name().to_owned()),
        hairpin: Some(rule.hairpin),
        ..row
    }
}
