//! Virtual servers, seen and changed while they run.

use std::net::SocketAddrV4;
use std::time::Instant;

use super::worker::Worker;
use crate::api::{ApiError, ServerRow, ServiceRow};
use crate::config::{ForwardAddress, ServerConfig, ServiceRule, protocol_name};
use crate::gateway::{ServerView, ServiceView};

/// `natgw service list`.
pub fn rows(worker: &Worker) -> Vec<ServiceRow> {
    worker.gateway.services(&worker.kernel, Instant::now()).iter().map(row).collect()
}

fn row(view: &ServiceView) -> ServiceRow {
    let ServiceRule { name, protocol, external, port, method, scheduler, persistence, .. } = &*view.rule;
    let host = match external {
        ForwardAddress::Address(address) => address.to_string(),
        ForwardAddress::Interface(interface) => interface.clone(),
    };
    ServiceRow {
        name: name.clone(),
        protocol: protocol_name(*protocol),
        external: format!("{host}:{port}"),
        method: method.name().to_owned(),
        scheduler: scheduler.name().to_owned(),
        persistence: persistence.as_secs(),
        check: view.rule.check.kind.name().to_owned(),
        servers: view.servers.iter().map(server_row).collect(),
    }
}

fn server_row(view: &ServerView) -> ServerRow {
    ServerRow {
        address: view.address,
        weight: view.weight,
        state: match view {
            ServerView { is_up: false, .. } => "down",
            ServerView { weight: 0, .. } => "draining",
            _ => "up",
        }
        .to_owned(),
        since: view.since,
        falls: view.falls,
        active: u64::from(view.active),
        connections: view.opened,
        rate: view.rate,
        packets_in: view.packets[0],
        bytes_in: view.bytes[0],
        packets_out: view.packets[1],
        bytes_out: view.bytes[1],
    }
}

/// What is to be changed of a service.
pub enum Change {
    /// A server comes.
    Add(ServerConfig),
    /// A server goes, its connections with it.
    Remove(SocketAddrV4),
    /// A server gets another share; 0 drains it.
    Weigh(SocketAddrV4, u32),
}

/// Changes a service, until the configuration is read again.
pub fn change(worker: &mut Worker, service: &str, change: &Change) -> Result<ServiceRow, ApiError> {
    let mut services = worker.config.services.clone();
    let names: Vec<String> = services.iter().map(|rule| rule.name.clone()).collect();
    let rule = services.iter_mut().find(|rule| rule.name == service).ok_or_else(|| {
        let hint = if names.is_empty() {
            "the configuration has no [[service]]".to_owned()
        } else {
            format!("there are: {}", names.join(", "))
        };
        ApiError::new(format!("no service is called `{service}`"), hint)
    })?;
    apply(rule, change)?;
    worker.set_services(services)?;
    let changed = rows(worker).into_iter().find(|row| row.name == service);
    changed
        .ok_or_else(|| ApiError::new(format!("the service `{service}` is gone"), "see `natgw service list`"))
}

fn apply(rule: &mut ServiceRule, change: &Change) -> Result<(), ApiError> {
    let there: Vec<String> = rule.servers.iter().map(|server| server.address.to_string()).collect();
    let place = |wanted: SocketAddrV4| rule.servers.iter().position(|server| server.address == wanted);
    let unknown = |wanted: SocketAddrV4| {
        ApiError::new(
            format!("the service `{}` has no server {wanted}", rule.name),
            format!("there are: {}", there.join(", ")),
        )
    };
    match *change {
        Change::Add(server) => {
            if place(server.address).is_some() {
                return Err(ApiError::new(
                    format!("the service `{}` has the server {} already", rule.name, server.address),
                    "`natgw service weight` changes its share",
                ));
            }
            rule.may_have(server.address).map_err(|why| {
                ApiError::new(
                    format!("add {} to the service `{}`: {why}", server.address, rule.name),
                    "name the server by the service's port",
                )
            })?;
            rule.servers.push(server);
        }
        Change::Remove(wanted) => {
            let place = place(wanted).ok_or_else(|| unknown(wanted))?;
            rule.servers.remove(place);
        }
        Change::Weigh(wanted, weight) => {
            let place = place(wanted).ok_or_else(|| unknown(wanted))?;
            rule.servers[place].weight = weight;
        }
    }
    Ok(())
}
