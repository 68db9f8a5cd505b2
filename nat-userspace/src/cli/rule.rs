//! `natgw rule …`

use std::io::Write as _;

use clap::{Args, Subcommand};
use serde::de::IgnoredAny;
use toml_edit::DocumentMut;

use super::table::{Column, Table, or_dash};
use super::{Daemon, Failure, Format, output, reload};
use crate::api::{Request, RuleRow};

#[derive(Debug, Subcommand)]
pub(super) enum Rule {
    /// List rules in the order they are tried
    ///
    /// With the number of first packets each has matched and the sessions it has now.
    List(Format),
    /// Add a rule while the gateway runs
    ///
    /// Behind the others of its kind, or before the one that --before names. It holds until the next reload or restart;
    /// with --save it is written into the configuration file, whose comments and layout stay as they are. The options
    /// are the keys of the file; lists are separated by commas.
    #[command(subcommand)]
    Add(Box<Add>),
    /// Delete a rule while the gateway runs
    ///
    /// Sessions that the remaining rules do not allow end.
    Delete(Delete),
}

#[derive(Debug, Subcommand)]
pub(super) enum Add {
    /// Source translation
    Snat(Snat),
    /// One-to-one translation
    Static(Static),
    /// A port forward
    Forward(Forward),
}

#[derive(Args, Debug)]
pub(super) struct Change {
    #[command(flatten)]
    format: Format,
    /// Change the configuration file, too
    #[arg(long)]
    save: bool,
}

#[derive(Args, Debug)]
pub(super) struct Placed {
    #[command(flatten)]
    change: Change,
    /// Its name in listings
    #[arg(long)]
    name: Option<String>,
    /// Have it tried before this rule of its kind
    #[arg(long, value_name = "RULE")]
    before: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Snat {
    #[command(flatten)]
    placed: Placed,
    /// masquerade, none, track, or external addresses: 203.0.113.10-203.0.113.12,198.51.100.0/29
    #[arg(long, value_name = "TARGET", required = true, value_delimiter = ',')]
    to: Vec<String>,
    /// Prefixes of sources; a leading ! takes one out
    #[arg(long, value_name = "PREFIXES", value_delimiter = ',')]
    source: Vec<String>,
    /// Prefixes of destinations
    #[arg(long, value_name = "PREFIXES", value_delimiter = ',')]
    destination: Vec<String>,
    /// tcp, udp, icmp or numbers
    #[arg(long, value_name = "PROTOCOLS", value_delimiter = ',')]
    protocol: Vec<String>,
    /// Only what leaves by this interface
    #[arg(long, value_name = "INTERFACE")]
    out: Option<String>,
    /// External ports: 1024-65535
    #[arg(long, value_name = "FIRST-LAST")]
    ports: Option<String>,
    /// As in the file
    #[arg(long)]
    mapping: Option<String>,
    /// As in the file
    #[arg(long)]
    filtering: Option<String>,
    /// As in the file
    #[arg(long)]
    pooling: Option<String>,
    /// Whether inside hosts reach each other at their external addresses
    #[arg(long, value_name = "BOOL")]
    hairpin: Option<bool>,
}

#[derive(Args, Debug)]
pub(super) struct Static {
    #[command(flatten)]
    placed: Placed,
    /// External address or prefix
    #[arg(long, value_name = "PREFIX")]
    external: String,
    /// Inside address or prefix of the same size
    #[arg(long, value_name = "PREFIX")]
    internal: String,
}

#[derive(Args, Debug)]
pub(super) struct Forward {
    #[command(flatten)]
    placed: Placed,
    /// External endpoint: 203.0.113.1:8080 or wan:8080
    #[arg(long, value_name = "ENDPOINT")]
    external: String,
    /// Inside endpoint: 10.1.1.12:80
    #[arg(long, value_name = "ENDPOINT")]
    internal: String,
    /// tcp, udp or numbers
    #[arg(long, value_name = "PROTOCOLS", value_delimiter = ',')]
    protocol: Vec<String>,
    /// Prefixes of remotes that may use it
    #[arg(long, value_name = "PREFIXES", value_delimiter = ',')]
    source: Vec<String>,
    /// Show the inside host the gateway's address instead of the remote's
    #[arg(long)]
    masquerade_source: bool,
}

#[derive(Args, Debug)]
pub(super) struct Delete {
    #[command(flatten)]
    change: Change,
    /// Its ID or name, as `rule list` shows it
    #[arg(value_name = "RULE")]
    rule: String,
}

/// Keys of a rule, in the order of the options.
#[derive(Default)]
struct Keys(DocumentMut);

impl Keys {
    fn put(&mut self, key: &str, given: Option<impl Into<toml_edit::Value>>) {
        if let Some(given) = given {
            self.0.insert(key, toml_edit::value(given));
        }
    }

    fn list(&mut self, key: &str, words: Vec<String>) {
        if !words.is_empty() {
            self.put(key, Some(toml_edit::Array::from_iter(words)));
        }
    }
}

impl Add {
    fn request(self) -> (Request, Format) {
        let mut keys = Keys::default();
        let (kind, Placed { change, name, before }) = match self {
            Self::Snat(Snat {
                placed,
                mut to,
                source,
                destination,
                protocol,
                out,
                ports,
                mapping,
                filtering,
                pooling,
                hairpin,
            }) => {
                keys.put("name", placed.name.clone());
                keys.list("source", source);
                keys.list("destination", destination);
                keys.list("protocol", protocol);
                keys.put("out", out);
                // A word stands by itself, also a wrong one, whose fault is told as that of a word; addresses in a list.
                if to.len() == 1 && !to[0].starts_with(|first: char| first.is_ascii_digit()) {
                    keys.put("to", to.pop());
                } else {
                    keys.list("to", to);
                }
                for (key, given) in
                    [("ports", ports), ("mapping", mapping), ("filtering", filtering), ("pooling", pooling)]
                {
                    keys.put(key, given);
                }
                keys.put("hairpin", hairpin);
                ("snat", placed)
            }
            Self::Static(Static { placed, external, internal }) => {
                keys.put("name", placed.name.clone());
                keys.put("external", Some(external));
                keys.put("internal", Some(internal));
                ("static", placed)
            }
            Self::Forward(Forward { placed, external, internal, protocol, source, masquerade_source }) => {
                keys.put("name", placed.name.clone());
                keys.list("protocol", protocol);
                keys.put("external", Some(external));
                keys.put("internal", Some(internal));
                keys.list("source", source);
                keys.put("masquerade_source", masquerade_source.then_some(true));
                ("forward", placed)
            }
        };
        drop(name);
        let Change { format, save } = change;
        let keys = keys.0.to_string();
        (Request::RuleAdd { kind: kind.to_owned(), keys, before, save }, format)
    }
}

impl Rule {
    pub(super) fn carry_out(self, daemon: &Daemon) -> Result<(), Failure> {
        match self {
            Self::List(format) => list(format, daemon),
            Self::Add(add) => {
                let (request, format) = add.request();
                reload::tell(&daemon.ask(&request)?, "added", format)
            }
            Self::Delete(Delete { change: Change { format, save }, rule }) => {
                reload::tell(&daemon.ask(&Request::RuleDelete { rule, save })?, "deleted", format)
            }
        }
    }
}

fn list(format: Format, daemon: &Daemon) -> Result<(), Failure> {
    if format.json {
        return daemon.list_json(&Request::RuleList);
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
