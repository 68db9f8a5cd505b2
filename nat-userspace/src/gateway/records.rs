//! What of the gateway's doings is told to those who record it, and when.

use std::net::SocketAddrV4;
use std::time::Instant;

use nat_common::activity::Activity;

use super::datagrams;
use super::events::{AddressPair, Binding, Happening, Quota, Threshold};
use super::mappings::Mapping;
use super::notices::Condition;
use super::sessions::{Origin, Session};
use super::steps::Step;
use super::thresholds::{Crossing, Level};
use super::view::endpoint;
use super::{Gateway, address, network};
use crate::config::EventClass;

impl Gateway {
    /// A session began.
    pub(super) fn record_session(&mut self, now: Instant, slot: u32) {
        if self.events.wants(EventClass::Sessions)
            && let Some(session) = self.sessions.get(slot)
            && session.origin != Origin::Bypass
        {
            self.events.add(now, Happening::SessionCreated(session.endpoints()));
        }
        if self.events.wants(EventClass::Steps)
            && let Some(session) = self.sessions.get(slot).cloned()
        {
            self.step(now, slot, &session, &Activity::default(), Step::Created);
        }
        if self.thresholds.watch()
            && let Some(session) = self.sessions.get(slot)
        {
            self.look_at_session_levels(now, inside_of(session));
        }
    }

    /// A session is over.
    pub(super) fn record_end(&mut self, now: Instant, session: &Session) {
        if self.events.wants(EventClass::Sessions) && session.origin != Origin::Bypass {
            self.events.add(now, Happening::SessionDeleted(session.endpoints()));
        }
        if self.thresholds.watch() {
            self.look_at_session_levels(now, inside_of(session));
        }
    }

    /// The session in a slot ends with the daemon.
    pub fn record_last(&mut self, now: Instant, slot: u32) {
        if let Some(session) = self.sessions.get(slot)
            && session.origin != Origin::Bypass
        {
            let (ends, mapping) = (session.endpoints(), session.mapping);
            self.events.add(now, Happening::SessionDeleted(ends));
            // Held by several sessions, it ends with the first.
            if let Some(mapping) = self.mappings.remove(mapping).filter(|mapping| !mapping.permanent)
                && let Some(binding) = binding(&mapping)
            {
                self.events.add(now, Happening::MappingDeleted(binding));
            }
        }
    }

    /// A mapping was made.
    pub(super) fn record_mapping(&mut self, now: Instant, mapping: &Mapping) {
        if self.events.wants(EventClass::Mappings)
            && let Some(binding) = binding(mapping)
        {
            self.events.add(now, Happening::MappingCreated(binding));
        }
        self.look_at_port_level(now, mapping);
    }

    /// A mapping is over, and its port given back.
    pub(super) fn record_unmapping(&mut self, now: Instant, mapping: &Mapping) {
        if self.events.wants(EventClass::Mappings)
            && let Some(binding) = binding(mapping)
        {
            self.events.add(now, Happening::MappingDeleted(binding));
        }
        self.look_at_port_level(now, mapping);
    }

    /// A host has an external address of its own from now on, or no more.
    pub(super) fn record_lease(&mut self, now: Instant, rule: u16, inside: u32, external: u32, begins: bool) {
        let pair = AddressPair { inside: address(inside), outside: address(external) };
        let what = if begins { Happening::AddressBound(pair) } else { Happening::AddressReleased(pair) };
        self.events.add(now, what);
        if self.thresholds.watch() {
            let pool = self.rules.pools.get(usize::from(rule)).map_or(0, |pool| pool.len());
            let used = u32::try_from(self.externals.leased(u32::from(rule))).unwrap_or(u32::MAX);
            let most = u32::try_from(pool).unwrap_or(u32::MAX);
            let number = u32::from(rule) + 1;
            let what = match self.thresholds.look(Level::Addresses(rule), used, most) {
                Some(Crossing::High(level)) => Threshold::AddressesHigh(number, level),
                Some(Crossing::Low(level)) => Threshold::AddressesLow(number, level),
                None => return,
            };
            self.events.add(now, Happening::Threshold(what));
        }
    }

    /// A flow or fragment was refused for want of something: told when it begins, not for each packet.
    pub(super) fn short_of(&mut self, now: Instant, condition: Condition) {
        // Two limits have one reason each with others of their kind.
        let condition = match condition {
            Condition::Sessions if !self.sessions.is_full() => Condition::Mappings,
            Condition::Source(source) if !self.sources.have_room_for(network(source)) => Condition::Sources,
            condition => condition,
        };
        if !self.notices.refused(condition, now) {
            return;
        }
        let what = match condition {
            Condition::Ports(protocol) => {
                Happening::PortsExhausted(address(self.shortage.external), protocol)
            }
            Condition::Addresses => Happening::AddressesExhausted(u32::from(self.shortage.rule) + 1),
            Condition::Sessions => Happening::Quota(Quota::Sessions(self.sessions.limit())),
            Condition::Mappings => Happening::Quota(Quota::Mappings(self.mappings_limit)),
            Condition::Sources => Happening::Quota(Quota::Sources(self.sources.most())),
            // That is no quota of RFC 8158: nobody has set it.
            Condition::Room => return,
            Condition::Source(source) => {
                let limit = self.sources.sessions_limit();
                if limit == 0 || self.sources.sessions_of(network(source)) < limit {
                    // It was too fast: that is no quota of RFC 8158.
                    return;
                }
                Happening::Quota(Quota::Source(limit, source))
            }
            Condition::Fragments => Happening::Quota(Quota::Fragments(datagrams::MOST_WAITING)),
        };
        self.events.add(now, what);
    }

    fn look_at_session_levels(&mut self, now: Instant, inside: u32) {
        let (used, most) = (self.sessions.count(), self.sessions.limit());
        if let Some(Crossing::High(level)) = self.thresholds.look(Level::Sessions, used, most) {
            self.events.add(now, Happening::Threshold(Threshold::Sessions(level)));
        }
        let (used, most) = (self.sources.sessions_of(inside), self.sources.sessions_limit());
        if let Some(Crossing::High(level)) = self.thresholds.look(Level::Source(inside), used, most) {
            self.events.add(now, Happening::Threshold(Threshold::Source(level, address(inside))));
        }
    }

    fn look_at_port_level(&mut self, now: Instant, mapping: &Mapping) {
        if !self.thresholds.watch() {
            return;
        }
        let (external, protocol) = (mapping.external, mapping.key.protocol);
        let Some([used, free, resting]) = self.externals.use_of(external, protocol) else { return };
        let crossed = self.thresholds.look(Level::Ports(external, protocol), used, used + free + resting);
        if let Some(Crossing::High(level)) = crossed {
            self.events.add(now, Happening::Threshold(Threshold::Ports(level)));
        }
    }
}

/// The inside host of a session, whose limit it counts for.
fn inside_of(session: &Session) -> u32 {
    if session.is_outbound() { session.original.source } else { session.rewrite.destination }
}

/// A mapping's ends. None if nothing is translated (`to = "track"`).
fn binding(mapping: &Mapping) -> Option<Binding> {
    let inside: SocketAddrV4 = endpoint(mapping.key.address, mapping.key.port);
    let outside = endpoint(mapping.external, mapping.external_port);
    (inside.ip() != outside.ip()).then_some(Binding { protocol: mapping.key.protocol, inside, outside })
}
