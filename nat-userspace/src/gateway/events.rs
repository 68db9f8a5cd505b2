//! What happens to translations, for whoever records it or watches: kept only while somebody does.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use super::steps::Stepped;
use crate::config::{EventClass, EventClasses, PortRange};

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// What.
    pub what: Happening,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A session began.
    SessionCreated(Endpoints),
    /// It is over.
    SessionDeleted(Endpoints),
    /// It came to a step of its life: for those who watch.
    SessionStep(Stepped),
    /// An inside endpoint got an external one.
    MappingCreated(Binding),
    /// It gave it back.
    MappingDeleted(Binding),
    /// A host got an external address of its own.
    AddressBound(AddressPair),
    /// It is its own no more.
    AddressReleased(AddressPair),
    /// A subscriber got a block of ports.
    BlockTaken(Block),
    /// It gave it back.
    BlockReleased(Block),
    /// A flow found no external address; the rule's place among those of its kind, from 1.
    AddressesExhausted(u32),
    /// A flow found no port of an external address.
    PortsExhausted(Ipv4Addr, u8),
    /// A flow was refused because of a limit.
    Quota(Quota),
    /// What is limited is nearly full, or no longer.
    Threshold(Threshold),
}

/// The ends of a session. For ICMP the identifier stands in the port's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// IP protocol.
    pub protocol: u8,
    /// The inside host's.
    pub inside: SocketAddrV4,
    /// What it looks like outside.
    pub outside: SocketAddrV4,
    /// The remote as it is.
    pub remote: SocketAddrV4,
    /// The remote as the inside host sees it.
    pub remote_inside: SocketAddrV4,
}

/// A mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// IP protocol.
    pub protocol: u8,
    /// The inside endpoint.
    pub inside: SocketAddrV4,
    /// The external one.
    pub outside: SocketAddrV4,
}

/// A host and its external address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPair {
    /// The host.
    pub inside: Ipv4Addr,
    /// Its external address.
    pub outside: Ipv4Addr,
}

/// A block of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Whose it is.
    pub inside: Ipv4Addr,
    /// The external address.
    pub outside: Ipv4Addr,
    /// The ports.
    pub ports: PortRange,
}

/// A limit that refuses (RFC 8158 table 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// Of all sessions.
    Sessions(u32),
    /// Of all mappings.
    Mappings(u32),
    /// Of all sources that have sessions.
    Sources(u32),
    /// Of one source.
    Source(u32, Ipv4Addr),
    /// Of fragments that wait.
    Fragments(u32),
}

/// A level that was crossed (RFC 8158 table 4), with its configured value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// Addresses of a pool in use: many.
    AddressesHigh(u32, u32),
    /// No longer.
    AddressesLow(u32, u32),
    /// Ports in use of an external address.
    Ports(u32),
    /// Sessions of a source.
    Source(u32, Ipv4Addr),
    /// All sessions.
    Sessions(u32),
}

impl Happening {
    /// What kind it is of.
    pub fn class(&self) -> EventClass {
        match self {
            Self::SessionCreated(_) | Self::SessionDeleted(_) => EventClass::Sessions,
            Self::SessionStep(_) => EventClass::Steps,
            Self::MappingCreated(_) | Self::MappingDeleted(_) => EventClass::Mappings,
            Self::AddressBound(_) | Self::AddressReleased(_) => EventClass::Addresses,
            Self::BlockTaken(_) | Self::BlockReleased(_) => EventClass::Blocks,
            Self::AddressesExhausted(_) | Self::PortsExhausted(..) | Self::Quota(_) | Self::Threshold(_) => {
                EventClass::Limits
            }
        }
    }
}

/// Events until they are taken.
#[derive(Debug, Default)]
pub struct Events {
    wanted: EventClasses,
    untaken: Vec<Event>,
}

impl Events {
    /// Which events are worth keeping from now on.
    pub fn want(&mut self, wanted: EventClasses) {
        self.wanted = wanted;
    }

    /// Whether anybody asks for a kind: else there is no need to make one.
    pub fn wants(&self, class: EventClass) -> bool {
        self.wanted.contains(class)
    }

    /// Something happened.
    pub fn add(&mut self, at: Instant, what: Happening) {
        if self.wants(what.class()) {
            self.untaken.push(Event { at, what });
        }
    }

    /// What has happened since this was last asked.
    pub fn take(&mut self) -> std::vec::Drain<'_, Event> {
        self.untaken.drain(..)
    }
}
