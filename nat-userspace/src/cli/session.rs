//! `natgw session …`

use std::io::Write as _;

use clap::{Args, Subcommand};
use nat_common::tcp::State;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::table::{Column, Table};
use super::{Daemon, Failure, Format, output};
use crate::api::{Counted, Deleted, EndpointFilter, Request, SessionFilter, SessionRow};
use crate::config::{protocol_name, protocol_number};
use crate::eventlog::Record;

#[derive(Debug, Subcommand)]
pub(super) enum Session {
    /// List sessions
    ///
    /// One line a session: its endpoints inside and outside the translation, the remote, who
    /// began, its state and when it ends if nothing more comes, packets and bytes each way, and
    /// the rule that made it. The filters narrow it down; all that are given must hold.
    List(Listing),
    /// Count sessions
    Count(Listing),
    /// Delete the sessions that the filters name
    ///
    /// At least one filter is needed; `natgw session flush` deletes all. The next packet from
    /// inside opens a session anew, perhaps with another external port.
    Delete(Listing),
    /// Delete all sessions
    Flush(Format),
    /// Print sessions as they begin, change and end, until it is interrupted
    ///
    /// One line each: time (UTC), what happened, protocol, inside and external endpoint, remote, rule. A session is
    /// created; a TCP connection is established and closed, which leaves its session some minutes; in the end it is
    /// expired, or deleted by a command or a change of rules. With --json a line of JSON each.
    Watch(Listing),
}

#[derive(Args, Debug)]
pub(super) struct Listing {
    // First: what follows the filters would stand under their heading in the help.
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Filters")]
struct Filter {
    /// The inside host: 10.1.1.7, 10.1.1.7:40000 or 10.1.1.0/24
    #[arg(long, value_name = "ENDPOINT")]
    inside: Option<EndpointFilter>,
    /// The external endpoint: 203.0.113.1, 203.0.113.1:40000 or a prefix
    #[arg(long, value_name = "ENDPOINT")]
    outside: Option<EndpointFilter>,
    /// The remote endpoint: 198.51.100.7, 198.51.100.7:443 or a prefix
    #[arg(long, value_name = "ENDPOINT")]
    remote: Option<EndpointFilter>,
    /// tcp, udp, icmp or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = parse_protocol)]
    protocol: Option<String>,
    /// What TCP or, with `active`, another protocol is doing
    #[arg(long, value_name = "STATE", value_parser = STATES)]
    state: Option<String>,
    /// The rule's name
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
}

impl From<Filter> for SessionFilter {
    fn from(filter: Filter) -> Self {
        let Filter { inside, outside, remote, protocol, state, rule } = filter;
        Self { inside, outside, remote, protocol, state, rule }
    }
}

/// The name that listings have for a protocol: `6` is as good as `tcp`.
fn parse_protocol(word: &str) -> Result<String, String> {
    protocol_number(&word.to_lowercase())
        .map(protocol_name)
        .ok_or_else(|| "tcp, udp, icmp or a number from 0 to 255".to_owned())
}

impl Session {
    pub(super) fn carry_out(self, daemon: &Daemon) -> Result<(), Failure> {
        match self {
            Self::List(Listing { filter, format }) => list(filter.into(), format, daemon),
            Self::Count(Listing { filter, format }) => {
                let counted: Counted = daemon.ask(&Request::SessionCount { filter: filter.into() })?;
                if format.json {
                    output::json(&counted)?;
                } else {
                    say(&counted.sessions.to_string())?;
                }
                Ok(())
            }
            Self::Delete(Listing { filter, format }) => {
                let filter = SessionFilter::from(filter);
                if filter.is_empty() {
                    return Err(Failure::Usage {
                        message: "session delete: no filter is given".to_owned(),
                        hint: "say which, such as --inside 10.1.1.7; `natgw session flush` deletes all"
                            .to_owned(),
                    });
                }
                deleted(&Request::SessionDelete { filter }, format, daemon)
            }
            Self::Watch(Listing { filter, format }) => watch(filter.into(), format, daemon),
            Self::Flush(format) => deleted(&Request::SessionFlush, format, daemon),
        }
    }
}

fn list(filter: SessionFilter, format: Format, daemon: &Daemon) -> Result<(), Failure> {
    let request = Request::SessionList { filter };
    if format.json {
        return daemon.list_json(&request);
    }
    let mut table = Table::new(output::stdout(), output::styled(), COLUMNS);
    let _: Counted = daemon.list(&request, |row: SessionRow| table.row(cells(&row)))?;
    Ok(table.finish()?.flush()?)
}

fn watch(filter: SessionFilter, format: Format, daemon: &Daemon) -> Result<(), Failure> {
    let request = Request::SessionWatch { filter };
    let mut out = output::stdout();
    let mut line = |line: &str| {
        writeln!(out, "{line}")?;
        out.flush()
    };
    if format.json {
        let _: IgnoredAny = daemon.list(&request, |row: Box<RawValue>| line(row.get()))?;
    } else {
        let _: IgnoredAny = daemon.list(&request, |row: Record| line(&row.line()))?;
    }
    Ok(())
}

fn cells(row: &SessionRow) -> [String; COLUMNS.len()] {
    [
        row.protocol.to_string(),
        row.inside.to_string(),
        row.outside.to_string(),
        row.remote.to_string(),
        row.direction.name().to_owned(),
        row.state.to_string(),
        output::seconds(row.expires_in),
        output::seconds(row.age),
        row.packets_out.to_string(),
        row.bytes_out.to_string(),
        row.packets_in.to_string(),
        row.bytes_in.to_string(),
        row.rule.clone(),
    ]
}

fn deleted(request: &Request, format: Format, daemon: &Daemon) -> Result<(), Failure> {
    let deleted: Deleted = daemon.ask(request)?;
    if format.json {
        output::json(&deleted)?;
    } else {
        say(&format!("{} deleted", output::counted(deleted.deleted, "session")))?;
    }
    Ok(())
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = output::stdout();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Of a [`SessionRow`]; a misspelt one would just list nothing.
const STATES: [&str; 5] =
    [State::Opening.name(), State::Established.name(), State::Closing.name(), State::Reset.name(), "active"];

const COLUMNS: [Column; 13] = [
    Column::Left("PROTOCOL"),
    Column::Left("INSIDE"),
    Column::Left("OUTSIDE"),
    Column::Left("REMOTE"),
    Column::Left("DIRECTION"),
    Column::Left("STATE"),
    Column::Right("EXPIRES"),
    Column::Right("AGE"),
    Column::Right("PACKETS-OUT"),
    Column::Right("BYTES-OUT"),
    Column::Right("PACKETS-IN"),
    Column::Right("BYTES-IN"),
    Column::Left("RULE"),
];
