//! `[log]`: which events of address translation are recorded, in which form, and where to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_spanned::Spanned;

use super::error::{Fault, Problems};
use super::validate::endpoint;
use super::{file, timeouts};

/// What is recorded of translations, and where to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Where records go; nowhere if none.
    pub target: Option<LogTarget>,
    /// What is recorded.
    pub events: EventClasses,
    /// Whether records of sessions say whom they are with (RFC 6888 REQ-12).
    pub destinations: bool,
    /// How full what is limited may be, in percent, before a record says so; 0: none does.
    pub threshold: u8,
}

/// Where records go, and so in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// A line of JSON a record, at the end of a file.
    Json(PathBuf),
    /// To the host's own syslog, or by UDP to another.
    Syslog(Option<SocketAddr>),
    /// IPFIX by UDP (RFC 7011, RFC 8158).
    Ipfix {
        /// Who gathers them.
        collector: SocketAddr,
        /// How often the templates are sent again.
        refresh: Duration,
    },
}

/// A kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventClass {
    /// Sessions begin and end.
    Sessions,
    /// An inside endpoint gets an external one, and gives it back.
    Mappings,
    /// A host gets an external address of its own.
    Addresses,
    /// A subscriber gets a block of ports.
    Blocks,
    /// Something runs out, or is about to.
    Limits,
    /// Sessions come to a step of their life: not recorded, but watched.
    Steps,
}

impl EventClass {
    /// The words of the file and what they mean.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("sessions", Self::Sessions),
        ("mappings", Self::Mappings),
        ("addresses", Self::Addresses),
        ("blocks", Self::Blocks),
        ("limits", Self::Limits),
    ];
}

/// A set of kinds of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventClasses(u8);

impl EventClasses {
    /// All of these.
    pub fn of(classes: impl IntoIterator<Item = EventClass>) -> Self {
        Self(classes.into_iter().fold(0, |set, class| set | 1 << class as u8))
    }

    /// Whether a kind is one of them.
    pub fn contains(self, class: EventClass) -> bool {
        self.0 & (1 << class as u8) != 0
    }

    /// Those of either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Judges the section.
pub(super) fn log(raw: &file::Log, problems: &mut Problems<'_>) -> Log {
    let form = raw.sessions.as_ref().map_or("none", |word| word.get_ref().as_str());
    let target = match form {
        "none" => None,
        "json" => Some(LogTarget::Json(file_of(raw.file.as_ref(), problems))),
        "syslog" => Some(LogTarget::Syslog(
            raw.collector.as_ref().and_then(|word| endpoint(word, "192.0.2.9:514", problems)),
        )),
        "ipfix" => {
            let place = raw.sessions.as_ref().map(Spanned::span).unwrap_or_default();
            let missing = || Fault::new("`collector` is missing", "collector = \"192.0.2.9:4739\"");
            let collector = match &raw.collector {
                Some(word) => endpoint(word, "192.0.2.9:4739", problems),
                None => problems.check(&place, Err(missing())),
            };
            let refresh = raw.template_refresh.as_ref().map_or(Some(REFRESH), |word| {
                problems.check(&word.span(), timeouts::parse_duration(&word.get_ref().0, false))
            });
            collector.zip(refresh).map(|(collector, refresh)| LogTarget::Ipfix { collector, refresh })
        }
        other => {
            let place = raw.sessions.as_ref().map(Spanned::span).unwrap_or_default();
            let fault = Fault::new(
                format!("`{other}` is not known here"),
                "one of \"none\", \"json\", \"syslog\", \"ipfix\"",
            );
            problems.add(&place, fault);
            None
        }
    };
    refuse_what_means_nothing(raw, form, problems);
    Log {
        target,
        events: classes(raw, problems),
        destinations: raw.destinations,
        threshold: raw.threshold.as_ref().map_or(0, |value| {
            let percent = u8::try_from(*value.get_ref()).ok().filter(|percent| *percent <= 100);
            let wrong =
                || Fault::new(format!("{} is not a percentage", value.get_ref()), "1 to 100, or 0 for none");
            problems.check(&value.span(), percent.ok_or_else(wrong)).unwrap_or(0)
        }),
    }
}

/// Keys that the form has no use for: whoever wrote them wanted something else.
fn refuse_what_means_nothing(raw: &file::Log, form: &str, problems: &mut Problems<'_>) {
    let keys = [
        ("file", raw.file.as_ref().map(Spanned::span), &["json"][..]),
        ("collector", raw.collector.as_ref().map(Spanned::span), &["syslog", "ipfix"][..]),
        ("template_refresh", raw.template_refresh.as_ref().map(Spanned::span), &["ipfix"][..]),
    ];
    for (key, place, forms) in keys {
        if let Some(place) = place.filter(|_| !forms.contains(&form)) {
            let fault = Fault::new(
                format!("`{key}` means nothing with sessions = \"{form}\""),
                format!("it is for sessions = \"{}\"", forms.join("\" or \"")),
            );
            problems.add(&place, fault);
        }
    }
}

fn classes(raw: &file::Log, problems: &mut Problems<'_>) -> EventClasses {
    if raw.events.is_none() {
        return EventClasses::of([EventClass::Sessions, EventClass::Blocks, EventClass::Limits]);
    }
    let words = file::words(raw.events.as_ref());
    EventClasses::of(words.into_iter().filter_map(|(place, word)| {
        let known = EventClass::WORDS.iter().find(|(name, _)| *name == word).map(|(_, class)| *class);
        let names = EventClass::WORDS.map(|(name, _)| format!("\"{name}\"")).join(", ");
        problems.check(
            &place,
            known.ok_or_else(|| {
                Fault::new(format!("`{word}` is no kind of event"), format!("one of {names}"))
            }),
        )
    }))
}

fn file_of(raw: Option<&Spanned<String>>, problems: &mut Problems<'_>) -> PathBuf {
    let Some(word) = raw else { return DEFAULT_FILE.into() };
    let path = PathBuf::from(word.get_ref());
    if !path.is_absolute() {
        let fault = Fault::new(
            format!("`{}` is not an absolute path", path.display()),
            format!("a full path such as {DEFAULT_FILE}"),
        );
        problems.add(&word.span(), fault);
    }
    path
}

/// Where records go as JSON unless the configuration says otherwise.
const DEFAULT_FILE: &str = "/var/log/natgw/events.json";

/// How often templates are sent again: whoever begins to listen understands nothing before.
const REFRESH: Duration = Duration::from_secs(60);
