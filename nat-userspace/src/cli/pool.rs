//! `natgw pool …`

use std::io::{self, Write};
use std::net::SocketAddrV4;

use clap::{Args, Subcommand};
use serde::de::IgnoredAny;

use super::table::{Column, Table, or_dash};
use super::{ConfigFile, Daemon, Failure, Format, output};
use crate::api::{PoolRow, Request};
use crate::config::{Config, protocol_number};

#[derive(Debug, Subcommand)]
pub(super) enum Pool {
    /// List external addresses: ports used, free and quarantined
    ///
    /// One line for each address and protocol. Quarantined ports were freed a short time ago and
    /// rest, so that late packets of one host do not reach another.
    List(Format),
    /// Tell whose an external port is under a `deterministic` rule
    ///
    /// It follows from the configuration: neither the daemon nor a log is asked.
    Owner(Owner),
}

#[derive(Args, Debug)]
pub(super) struct Owner {
    /// The external endpoint, such as 192.0.2.1:2001
    endpoint: SocketAddrV4,
    /// Its protocol: tcp, udp, icmp or a number
    #[arg(long, default_value = "tcp")]
    protocol: String,
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    format: Format,
}

impl Owner {
    fn carry_out(self) -> Result<(), Failure> {
        let Self { endpoint, protocol, file, format } = self;
        let number = protocol_number(&protocol).ok_or_else(|| Failure::Usage {
            message: format!("`{protocol}` is not a protocol"),
            hint: "tcp, udp, icmp, or the number of another IP protocol (0 to 255)".to_owned(),
        })?;
        let config = Config::load(&file.config)?;
        let found = config
            .snat
            .iter()
            .filter(|rule| rule.protocols.contains(number))
            .find_map(|rule| Some((rule.owner(*endpoint.ip(), endpoint.port())?, rule)));
        let Some((inside, rule)) = found else {
            return Err(Failure::Said {
                message: format!("{endpoint} is in no subscriber's block of ports"),
                hint: Some(
                    "`deterministic` of a [[snat]] says who has blocks; `natgw session list` who has it now"
                        .to_owned(),
                ),
            });
        };
        let mut out = io::stdout().lock();
        if format.json {
            writeln!(out, "{}", serde_json::json!({ "inside": inside, "rule": rule.name }))?;
        } else {
            writeln!(out, "{inside} ({})", rule.name)?;
        }
        Ok(out.flush()?)
    }
}

impl Pool {
    pub(super) fn carry_out(self, daemon: &Daemon) -> Result<(), Failure> {
        let format = match self {
            Self::List(format) => format,
            Self::Owner(owner) => return owner.carry_out(),
        };
        if format.json {
            return daemon.list_json(&Request::PoolList);
        }
        let mut table = table(output::stdout());
        let _: IgnoredAny = daemon.list(&Request::PoolList, |row: PoolRow| table.row(cells(&row)))?;
        Ok(table.finish()?.flush()?)
    }
}

/// Writes pools as a table, for other verbs.
pub(super) fn write<W: Write>(out: W, rows: &[PoolRow]) -> io::Result<W> {
    let mut table = table(out);
    rows.iter().try_for_each(|row| table.row(cells(row)))?;
    table.finish()
}

fn table<W: Write>(out: W) -> Table<W, 6> {
    Table::new(
        out,
        output::styled(),
        [
            Column::Left("ADDRESS"),
            Column::Left("INTERFACE"),
            Column::Left("PROTOCOL"),
            Column::Right("USED"),
            Column::Right("FREE"),
            Column::Right("QUARANTINED"),
        ],
    )
}

fn cells(row: &PoolRow) -> [String; 6] {
    [
        row.address.to_string(),
        or_dash(row.interface.clone()),
        row.protocol.to_string(),
        row.used.to_string(),
        row.free.to_string(),
        row.quarantined.to_string(),
    ]
}
