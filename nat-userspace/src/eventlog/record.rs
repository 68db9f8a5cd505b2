//! An event for people and programs: as JSON and as words.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::config::protocol_name;
use crate::gateway::{
    AddressPair, Binding, Block, Endpoints, Event, Happening, Quota, Step, Stepped, Threshold,
};

/// An event, in fields that are there only where they mean something.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Record {
    /// UTC, to the millisecond.
    pub time: String,
    /// `session_created` and so on.
    pub event: Cow<'static, str>,
    /// Its number in RFC 8158 section 4.3; 0 for what is none of them.
    pub nat_event: u8,
    /// `tcp`, `udp`, `icmp` or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Cow<'static, str>>,
    /// The inside host, with its port where there is one; for ICMP the identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<Place>,
    /// What it looks like outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<Place>,
    /// The remote, where the configuration wants it recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddrV4>,
    /// The remote as the inside host sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_inside: Option<SocketAddrV4>,
    /// The state of a session that is watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Cow<'static, str>>,
    /// The rule of a session that is watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// First and last port of a block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<[u16; 2]>,
    /// The place of an `[[snat]]` among its kind, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<u32>,
    /// What a limit or a level is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Cow<'static, str>>,
    /// The limit or level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// An address with or without a port.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Place {
    /// With a port or identifier.
    Endpoint(SocketAddrV4),
    /// An address alone.
    Address(Ipv4Addr),
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(endpoint) => endpoint.fmt(out),
            Self::Address(address) => address.fmt(out),
        }
    }
}

/// When an event was, by the clock of the wall as it goes now.
pub(super) fn utc(event: &Event) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(event.at.elapsed()).unwrap_or(now)
}

impl Record {
    /// The record of an event. Remotes are left out unless asked for (RFC 6888 REQ-12).
    pub fn new(event: &Event, destinations: bool) -> Self {
        let time = humantime::format_rfc3339_millis(utc(event)).to_string();
        let (name, nat_event) = named(&event.what);
        let record = Self { time, event: name.into(), nat_event, ..Self::default() };
        let limit =
            |of: &'static str, limit: u32| Self { of: Some(of.into()), limit: Some(limit), ..record.clone() };
        match event.what {
            Happening::SessionCreated(ends) | Happening::SessionDeleted(ends) => {
                let Endpoints { protocol, inside, outside, remote, remote_inside } = ends;
                Self {
                    protocol: Some(protocol_name(protocol).into()),
                    inside: Some(Place::Endpoint(inside)),
                    outside: Some(Place::Endpoint(outside)),
                    remote: destinations.then_some(remote),
                    remote_inside: destinations.then_some(remote_inside),
                    ..record
                }
            }
            Happening::SessionStep(Stepped { ends, state, .. }) => Self {
                protocol: Some(protocol_name(ends.protocol).into()),
                inside: Some(Place::Endpoint(ends.inside)),
                outside: Some(Place::Endpoint(ends.outside)),
                remote: Some(ends.remote),
                remote_inside: Some(ends.remote_inside),
                state: Some(state.into()),
                ..record
            },
            Happening::MappingCreated(binding) | Happening::MappingDeleted(binding) => {
                let Binding { protocol, inside, outside } = binding;
                Self {
                    protocol: Some(protocol_name(protocol).into()),
                    inside: Some(Place::Endpoint(inside)),
                    outside: Some(Place::Endpoint(outside)),
                    ..record
                }
            }
            Happening::AddressBound(pair) | Happening::AddressReleased(pair) => {
                let AddressPair { inside, outside } = pair;
                Self {
                    inside: Some(Place::Address(inside)),
                    outside: Some(Place::Address(outside)),
                    ..record
                }
            }
            Happening::BlockTaken(block) | Happening::BlockReleased(block) => {
                let Block { inside, outside, ports } = block;
                Self {
                    inside: Some(Place::Address(inside)),
                    outside: Some(Place::Address(outside)),
                    ports: Some([ports.first, ports.last]),
                    ..record
                }
            }
            Happening::AddressesExhausted(pool) => Self { pool: Some(pool), ..record },
            Happening::PortsExhausted(outside, protocol) => Self {
                protocol: Some(protocol_name(protocol).into()),
                outside: Some(Place::Address(outside)),
                ..record
            },
            Happening::Quota(Quota::Sessions(most)) => limit("sessions", most),
            Happening::Quota(Quota::Mappings(most)) => limit("mappings", most),
            Happening::Quota(Quota::Sources(most)) => limit("sources", most),
            Happening::Quota(Quota::Source(most, source)) => {
                Self { inside: Some(Place::Address(source)), ..limit("sessions_per_source", most) }
            }
            Happening::Quota(Quota::Fragments(most)) => limit("waiting_fragments", most),
            Happening::Threshold(Threshold::AddressesHigh(pool, level)) => {
                Self { pool: Some(pool), ..limit("addresses_high", level) }
            }
            Happening::Threshold(Threshold::AddressesLow(pool, level)) => {
                Self { pool: Some(pool), ..limit("addresses_low", level) }
            }
            Happening::Threshold(Threshold::Ports(level)) => limit("ports", level),
            Happening::Threshold(Threshold::Source(level, source)) => {
                Self { inside: Some(Place::Address(source)), ..limit("sessions_per_source", level) }
            }
            Happening::Threshold(Threshold::Sessions(level)) => limit("sessions", level),
        }
    }

    /// In a line for people who watch: `12:00:00.123  session_created  udp  10.1.1.12:40000 …`.
    pub fn line(&self) -> String {
        let clock = self.time.split(['T', 'Z']).nth(1).unwrap_or(&self.time);
        let place = |place: Option<Place>| place.map_or_else(|| "-".to_owned(), |place| place.to_string());
        let remote = self.remote.map_or_else(|| "-".to_owned(), |remote| remote.to_string());
        let protocol = self.protocol.as_deref().unwrap_or("-");
        let (inside, outside) = (place(self.inside), place(self.outside));
        let rule = self.rule.as_ref().map_or_else(String::new, |rule| format!("  {rule}"));
        let remote = if rule.is_empty() { remote } else { format!("{remote:<21}") };
        format!("{clock}  {:<19}  {protocol:<4}  {inside:<21}  {outside:<21}  {remote}{rule}", self.event)
    }

    /// As words: `session_created time=… protocol=udp …`.
    pub fn words(&self) -> String {
        let mut words = format!("{} time={} nat_event={}", self.event, self.time, self.nat_event);
        let fields = [
            ("protocol", self.protocol.as_ref().map(ToString::to_string)),
            ("inside", self.inside.map(|inside| inside.to_string())),
            ("outside", self.outside.map(|outside| outside.to_string())),
            ("remote", self.remote.as_ref().map(ToString::to_string)),
            ("remote_inside", self.remote_inside.as_ref().map(ToString::to_string)),
            ("ports", self.ports.map(|[first, last]| format!("{first}-{last}"))),
            ("pool", self.pool.map(|pool| pool.to_string())),
            ("of", self.of.as_ref().map(ToString::to_string)),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ];
        for (name, text) in fields {
            if let Some(text) = text {
                // A String takes everything.
                let _ = write!(words, " {name}={text}");
            }
        }
        words
    }
}

/// What an event is called, and its number in RFC 8158 section 4.3.
pub(super) fn named(what: &Happening) -> (&'static str, u8) {
    match what {
        Happening::AddressesExhausted(_) => ("addresses_exhausted", 3),
        Happening::SessionCreated(_) => ("session_created", 4),
        Happening::SessionDeleted(_) => ("session_deleted", 5),
        Happening::SessionStep(Stepped { step, .. }) => match step {
            Step::Created => ("session_created", 4),
            Step::Established => ("session_established", 0),
            Step::Closed => ("session_closed", 0),
            Step::Expired => ("session_expired", 5),
            Step::Deleted => ("session_deleted", 5),
        },
        Happening::MappingCreated(_) => ("mapping_created", 8),
        Happening::MappingDeleted(_) => ("mapping_deleted", 9),
        Happening::PortsExhausted(..) => ("ports_exhausted", 12),
        Happening::Quota(_) => ("quota_exceeded", 13),
        Happening::AddressBound(_) => ("address_bound", 14),
        Happening::AddressReleased(_) => ("address_released", 15),
        Happening::BlockTaken(_) => ("block_taken", 16),
        Happening::BlockReleased(_) => ("block_released", 17),
        Happening::Threshold(_) => ("threshold_reached", 18),
    }
}
