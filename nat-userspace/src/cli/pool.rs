//! `natgw pool …`

use std::io::{self, Write};

use clap::Subcommand;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::output::{self, JsonArray};
use super::table::{Column, Table, or_dash};
use super::{Daemon, Failure, Format};
use crate::api::{PoolRow, Request};

#[derive(Debug, Subcommand)]
pub(super) enum Pool {
    /// List external addresses: ports used, free and quarantined
    ///
    /// One line for each address and protocol. Quarantined ports were freed a short time ago and
    /// rest, so that late packets of one host do not reach another.
    List(Format),
}

impl Pool {
    pub(super) fn carry_out(self, daemon: &Daemon) -> Result<(), Failure> {
        let Self::List(format) = self;
        if format.json {
            let mut array = JsonArray::new(output::stdout());
            let _: IgnoredAny =
                daemon.list(&Request::PoolList, |row: Box<RawValue>| array.element(row.get()))?;
            return Ok(array.finish()?);
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
