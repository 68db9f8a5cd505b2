//! `natgw rule …`

use std::io::Write as _;

use clap::Subcommand;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::output::{self, JsonArray};
use super::table::{Column, Table, or_dash};
use super::{Daemon, Failure, Format};
use crate::api::{Request, RuleRow};

#[derive(Debug, Subcommand)]
pub(super) enum Rule {
    /// List rules in the order they are tried
    ///
    /// With the number of first packets each has matched and the sessions it has now.
    List(Format),
}

impl Rule {
    pub(super) fn carry_out(self, daemon: &Daemon) -> Result<(), Failure> {
        let Self::List(format) = self;
        if format.json {
            let mut array = JsonArray::new(output::stdout());
            let _: IgnoredAny =
                daemon.list(&Request::RuleList, |row: Box<RawValue>| array.element(row.get()))?;
            return Ok(array.finish()?);
        }
        let columns = [
            Column::Right("ID"),
            Column::Left("KIND"),
            Column::Left("NAME"),
            Column::Left("SOURCE"),
            Column::Left("DESTINATION"),
            Column::Left("PROTOCOL"),
            Column::Left("OUT"),
            Column::Left("TO"),
            Column::Right("PACKETS"),
            Column::Right("SESSIONS"),
            Column::Left("OPTIONS"),
        ];
        let mut table = Table::new(output::stdout(), output::styled(), columns);
        let _: IgnoredAny = daemon.list(&Request::RuleList, |row: RuleRow| {
            let options = or_dash(Some(options(&row)));
            table.row([
                row.id.to_string(),
                row.kind,
                row.name,
                row.source,
                row.destination,
                row.protocol,
                or_dash(row.out),
                row.to,
                row.packets.to_string(),
                row.sessions.to_string(),
                options,
            ])
        })?;
        Ok(table.finish()?.flush()?)
    }
}

/// What a rule is told beyond addresses: `ports=1024-65535,mapping=endpoint-independent,…`.
fn options(row: &RuleRow) -> String {
    let words = [
        ("ports", &row.ports),
        ("mapping", &row.mapping),
        ("filtering", &row.filtering),
        ("pooling", &row.pooling),
    ];
    let flags = [("hairpin", row.hairpin), ("masquerade_source", row.masquerade_source)];
    let words = words.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value.as_ref()?)));
    let flags = flags.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?)));
    words.chain(flags).collect::<Vec<_>>().join(",")
}
