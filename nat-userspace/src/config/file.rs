//! The file as it is written: names and TOML types, nothing judged but those.
//!
//! Whatever has a meaning of its own is kept as text with its place, and what must be there is
//! optional here: the TOML reader stops at its first complaint, the judgement after it does not.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_spanned::Spanned;

use super::error::{Fault, Problem, Problems};

/// Reads the text as TOML of the shape below.
pub(super) fn read(text: &str) -> Result<File, Vec<Problem>> {
    toml::from_str(text).map_err(|error| {
        let mut problems = Problems::new(text);
        problems.add(&error.span().unwrap_or_default(), explain(error.message()));
        problems.into_found()
    })
}

/// The TOML reader's complaint in this program's words.
fn explain(message: &str) -> Fault {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.as_slice() {
        [key, known @ ..] if message.starts_with("unknown field") => {
            let hint = match known.iter().max_by(|a, b| likeness(key, a).total_cmp(&likeness(key, b))) {
                Some(nearest) if likeness(key, nearest) > 0.75 => format!("did you mean `{nearest}`?"),
                _ => format!("known here: {}", known.join(", ")),
            };
            Fault::new(format!("unknown key `{key}`"), hint)
        }
        _ => Fault::new(
            message.trim().replace('\n', ", "),
            "text stands in double quotes, lists in [ ], sections are [name] or [[name]]",
        ),
    }
}

fn likeness(a: &str, b: &str) -> f64 {
    strsim::jaro_winkler(a, b)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) interface: Vec<Spanned<Interface>>,
    #[serde(default)]
    pub(super) snat: Vec<Spanned<Snat>>,
    #[serde(default, rename = "static")]
    pub(super) statics: Vec<Spanned<Static>>,
    #[serde(default)]
    pub(super) forward: Vec<Spanned<Forward>>,
    #[serde(default)]
    pub(super) service: Vec<Spanned<Service>>,
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) unmatched: Unmatched,
    #[serde(default)]
    pub(super) control: Control,
    #[serde(default)]
    pub(super) metrics: Metrics,
    #[serde(default)]
    pub(super) log: Log,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Interface {
    pub(super) name: Option<Spanned<String>>,
    pub(super) side: Option<Spanned<String>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) mss_clamp: Option<Spanned<i64>>,
    pub(super) parent: Option<Spanned<String>>,
    pub(super) vlan: Option<Spanned<Vlans>>,
}

/// A VLAN's number, or the outer's and the inner's.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Vlans {
    One(i64),
    Several(Vec<i64>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Snat {
    pub(super) name: Option<Spanned<String>>,
    pub(super) source: Option<Spanned<List>>,
    pub(super) destination: Option<Spanned<List>>,
    pub(super) protocol: Option<Spanned<List>>,
    pub(super) out: Option<Spanned<String>>,
    pub(super) to: Option<Spanned<List>>,
    pub(super) ports: Option<Spanned<Word>>,
    pub(super) port_set: Option<Spanned<PortSet>>,
    pub(super) deterministic: Option<Spanned<Deterministic>>,
    pub(super) mapping: Option<Spanned<String>>,
    pub(super) filtering: Option<Spanned<String>>,
    pub(super) pooling: Option<Spanned<String>>,
    pub(super) hairpin: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PortSet {
    pub(super) offset: Option<i64>,
    pub(super) length: i64,
    pub(super) id: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Deterministic {
    pub(super) subscribers: String,
    #[serde(default)]
    pub(super) dynamic: u32,
    #[serde(default)]
    pub(super) block: u16,
    #[serde(default)]
    pub(super) most: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Static {
    pub(super) name: Option<Spanned<String>>,
    pub(super) external: Option<Spanned<String>>,
    pub(super) internal: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Forward {
    pub(super) name: Option<Spanned<String>>,
    pub(super) protocol: Option<Spanned<List>>,
    pub(super) external: Option<Spanned<String>>,
    pub(super) internal: Option<Spanned<String>>,
    pub(super) source: Option<Spanned<List>>,
    #[serde(default)]
    pub(super) masquerade_source: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: Option<Spanned<String>>,
    pub(super) protocol: Option<Spanned<String>>,
    pub(super) external: Option<Spanned<String>>,
    pub(super) method: Option<Spanned<String>>,
    pub(super) scheduler: Option<Spanned<String>>,
    pub(super) persistence: Option<Spanned<Word>>,
    pub(super) persistence_prefix: Option<Spanned<i64>>,
    pub(super) check: Option<Spanned<Check>>,
    #[serde(default)]
    pub(super) server: Vec<Spanned<Server>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Check {
    pub(super) kind: Option<Spanned<String>>,
    pub(super) interval: Option<Spanned<Word>>,
    pub(super) timeout: Option<Spanned<Word>>,
    pub(super) fall: Option<Spanned<i64>>,
    pub(super) rise: Option<Spanned<i64>>,
    pub(super) path: Option<Spanned<String>>,
    pub(super) status: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Server {
    pub(super) address: Option<Spanned<String>>,
    pub(super) weight: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    pub(super) tcp_established: Option<Spanned<Word>>,
    pub(super) tcp_transitory: Option<Spanned<Word>>,
    pub(super) tcp_opening: Option<Spanned<Word>>,
    pub(super) tcp_closing: Option<Spanned<Word>>,
    #[serde(default)]
    pub(super) tcp_reset: bool,
    pub(super) udp: Option<Spanned<Word>>,
    #[serde(default)]
    pub(super) udp_ports: BTreeMap<String, Spanned<Word>>,
    #[serde(default)]
    pub(super) inbound_refresh: bool,
    pub(super) icmp: Option<Spanned<Word>>,
    pub(super) fragment: Option<Spanned<Word>>,
    pub(super) quarantine: Option<Spanned<Word>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) sessions: Option<Spanned<i64>>,
    pub(super) mappings: Option<Spanned<i64>>,
    pub(super) sources: Option<Spanned<i64>>,
    pub(super) sessions_per_source: Option<Spanned<i64>>,
    pub(super) new_per_second_per_source: Option<Spanned<i64>>,
    pub(super) delegated: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unmatched {
    pub(super) outside: Option<Spanned<String>>,
    pub(super) forged: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Control {
    pub(super) socket: Option<Spanned<String>>,
    pub(super) bpffs: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {
    pub(super) listen: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    pub(super) sessions: Option<Spanned<String>>,
    pub(super) events: Option<Spanned<List>>,
    #[serde(default)]
    pub(super) destinations: bool,
    pub(super) file: Option<Spanned<String>>,
    pub(super) collector: Option<Spanned<String>>,
    pub(super) template_refresh: Option<Spanned<Word>>,
    pub(super) threshold: Option<Spanned<i64>>,
}

/// Text, or a bare number where a number is natural (a port, a protocol).
pub(super) struct Word(pub(super) String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordVisitor;

        impl Visitor<'_> for WordVisitor {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text or a number")
            }

            fn visit_str<E>(self, value: &str) -> Result<Word, E> {
                Ok(Word(value.to_owned()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Word, E> {
                Ok(Word(value.to_string()))
            }
        }

        deserializer.deserialize_any(WordVisitor)
    }
}

/// A list of words; a single word stands for a list of one.
pub(super) enum List {
    One(Word),
    Many(Vec<Spanned<Word>>),
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor;

        impl<'de> Visitor<'de> for ListVisitor {
            type Value = List;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list such as [\"…\", \"…\"]")
            }

            fn visit_str<E>(self, value: &str) -> Result<List, E> {
                Ok(List::One(Word(value.to_owned())))
            }

            fn visit_i64<E>(self, value: i64) -> Result<List, E> {
                Ok(List::One(Word(value.to_string())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<List, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(list)).map(List::Many)
            }
        }

        deserializer.deserialize_any(ListVisitor)
    }
}

/// The words of a list with their places; none if the key is absent.
pub(super) fn words(list: Option<&Spanned<List>>) -> Vec<(Range<usize>, &str)> {
    let Some(list) = list else { return Vec::new() };
    match list.get_ref() {
        List::One(word) => vec![(list.span(), word.0.as_str())],
        List::Many(items) => items.iter().map(|item| (item.span(), item.get_ref().0.as_str())).collect(),
    }
}
