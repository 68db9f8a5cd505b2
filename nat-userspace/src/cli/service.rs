//! `natgw service …`

use std::io::{self, Write as _};
use std::net::SocketAddrV4;

use clap::{Args, Subcommand};
use serde::de::IgnoredAny;

use super::table::{Column, Table};
use super::{Daemon, Failure, Format, output};
use crate::api::{Request, ServiceRow};

#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// List virtual servers: their servers, health, connections and bytes
    ///
    /// A server is up, down (its checks fail: nothing new for it) or draining (weight 0: nothing new, what is there
    /// finishes). IN is to the server, OUT from it; with direct-routing and tunnel, answers do not come by here.
    List(Format),
    /// Give a server nothing new; what it has finishes
    ///
    /// The same as weight 0. `natgw service weight` has it back.
    Drain(Server),
    /// Change a server's share of new connections
    Weight(Weight),
    /// Add a server
    Add(Add),
    /// Take a server out; its connections are reset
    ///
    /// `natgw service drain` first lets them finish.
    Remove(Server),
}

#[derive(Args, Debug)]
pub(super) struct Server {
    /// The service's name
    service: String,
    /// The server, as `service list` shows it
    #[arg(value_parser = endpoint)]
    server: SocketAddrV4,
}

#[derive(Args, Debug)]
pub(super) struct Weight {
    #[command(flatten)]
    server: Server,
    /// Its share; 0 drains it
    #[arg(value_parser = clap::value_parser!(u32).range(0..=65_535))]
    weight: u32,
}

#[derive(Args, Debug)]
pub(super) struct Add {
    #[command(flatten)]
    server: Server,
    /// Its share
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=65_535))]
    weight: u32,
}

impl Service {
    pub(super) fn carry_out(self, daemon: &Daemon) -> Result<(), Failure> {
        let request = match self {
            Self::List(format) => return list(format, daemon),
            Self::Drain(Server { service, server }) => Request::ServiceWeight { service, server, weight: 0 },
            Self::Weight(Weight { server: Server { service, server }, weight }) => {
                Request::ServiceWeight { service, server, weight }
            }
            Self::Add(Add { server: Server { service, server }, weight }) => {
                Request::ServiceAdd { service, server, weight }
            }
            Self::Remove(Server { service, server }) => Request::ServiceRemove { service, server },
        };
        let changed: ServiceRow = daemon.ask(&request)?;
        Ok(write(&[changed])?)
    }
}

fn list(format: Format, daemon: &Daemon) -> Result<(), Failure> {
    if format.json {
        return daemon.list_json(&Request::ServiceList);
    }
    let mut rows = Vec::new();
    let _: IgnoredAny = daemon.list(&Request::ServiceList, |row: ServiceRow| {
        rows.push(row);
        Ok(())
    })?;
    Ok(write(&rows)?)
}

fn endpoint(text: &str) -> Result<SocketAddrV4, &'static str> {
    text.parse().map_err(|_| "address:port is wanted, such as 10.1.1.21:8080")
}

/// One line for each service, and under it one for each server.
fn write(rows: &[ServiceRow]) -> io::Result<()> {
    let columns = [
        Column::Left("SERVICE"),
        Column::Left("PROTOCOL"),
        Column::Left("ADDRESS"),
        Column::Left("METHOD"),
        Column::Left("SCHEDULER"),
        Column::Right("WEIGHT"),
        Column::Left("STATE"),
        Column::Right("ACTIVE"),
        Column::Right("OPENED"),
        Column::Right("PER SECOND"),
        Column::Right("BYTES IN"),
        Column::Right("BYTES OUT"),
    ];
    let mut table = Table::new(output::stdout(), output::styled(), columns);
    for row in rows {
        let sum = |field: fn(&crate::api::ServerRow) -> u64| row.servers.iter().map(field).sum::<u64>();
        let up = row.servers.iter().filter(|server| server.state == "up").count();
        let rate: f64 = row.servers.iter().map(|server| server.rate).sum();
        table.row([
            row.name.clone(),
            row.protocol.clone(),
            row.external.clone(),
            row.method.clone(),
            row.scheduler.clone(),
            String::new(),
            format!("{up}/{} up", row.servers.len()),
            sum(|server| server.active).to_string(),
            sum(|server| server.connections).to_string(),
            format!("{rate:.1}"),
            sum(|server| server.bytes_in).to_string(),
            sum(|server| server.bytes_out).to_string(),
        ])?;
        for server in &row.servers {
            table.row([
                String::new(),
                String::new(),
                format!("  {}", server.address),
                String::new(),
                String::new(),
                server.weight.to_string(),
                server.state.clone(),
                server.active.to_string(),
                server.connections.to_string(),
                format!("{:.1}", server.rate),
                server.bytes_in.to_string(),
                server.bytes_out.to_string(),
            ])?;
        }
    }
    table.finish()?.flush()
}
