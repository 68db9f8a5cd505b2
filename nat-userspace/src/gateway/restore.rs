//! Taking a flow table over: a daemon that starts where another was killed finds the sessions in
//! the kernel's table, and goes on with their ports, mappings and timers.

use crate::hash::HashSet;
use std::sync::Arc;
use std::time::Instant;

use nat_common::flow::{Action, Query};
use nat_common::{Direction, Realm};

use super::Gateway;
use super::externals::Wish;
use super::mappings::{Mapping, MappingKey};
use super::open::{FORWARDS, has_ports, session_remote};
use super::sessions::{Carriage, NO_MAPPING, Origin, Session};
use super::world::World;
use crate::config::{Mapping as Behaviour, SnatTarget};
use crate::datapath::Found;

impl Origin {
    /// As a number, for the entry in the kernel's table.
    pub fn encode(self) -> u32 {
        let (kind, position) = match self {
            Self::Snat(position) => (1, position),
            Self::Inbound(position) => (2, position),
            Self::Forward(position) => (3, position),
            Self::Static(position) => (4, position),
            Self::Bypass => (5, 0),
            Self::Service(position) => (6, position),
        };
        kind << 16 | u32::from(position)
    }

    /// Back from the number.
    fn decode(code: u32) -> Option<Self> {
        let position = u16::try_from(code & 0xffff).ok()?;
        match code >> 16 {
            1 => Some(Self::Snat(position)),
            2 => Some(Self::Inbound(position)),
            3 => Some(Self::Forward(position)),
            4 => Some(Self::Static(position)),
            5 => Some(Self::Bypass),
            6 => Some(Self::Service(position)),
            _ => None,
        }
    }
}

impl Gateway {
    /// Takes over the sessions of a table, and says which go on: halves, and what the rules no longer allow, do not.
    /// Next hops are not taken over but looked up anew, in other slots than those that the table's lines name (`hops`):
    /// each direction of a flow goes on the old way until it is told the new one. The old slots are free
    /// [afterwards](Gateway::finish_restore).
    pub fn restore(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        found: &[Found],
        hops: HashSet<u16>,
    ) -> HashSet<u32> {
        self.next_hops.leave(hops);
        let mut restored = HashSet::default();
        for session in found {
            if self.restore_session(world, now, session).is_some() {
                restored.insert(session.session);
            }
        }
        self.sessions.finish_restore();
        self.routes_changed(world);
        restored
    }

    /// Nothing is left in the table but what was restored, and no program runs that has seen it as it was.
    pub fn finish_restore(&mut self) {
        self.next_hops.take_back();
    }

    /// One session. `None` if it cannot go on.
    fn restore_session(&mut self, world: &mut dyn World, now: Instant, found: &Found) -> Option<()> {
        let &Found { session: slot, entries: [(original, value), (reply, back)], origin } = found;
        let origin = Origin::decode(origin).filter(|origin| *origin != Origin::Bypass)?;
        let rewrite = value.rewrite();
        let realm = if reply.realm == Realm::Inside as u16 { Realm::Inside } else { Realm::Outside };
        let carriage = match value.action {
            direct if direct == Action::Direct as u8 => Carriage::Direct,
            tunnel if tunnel == Action::Tunnel as u8 => Carriage::Tunnelled,
            _ => Carriage::Translated,
        };
        let session = Session {
            original,
            rewrite,
            mapping: NO_MAPPING,
            // The earlier daemon's, until the way is looked up.
            next_hops: [value.next_hop, back.next_hop],
            carriage,
            armed: 0,
            opened: 0,
            origin,
            answers: realm,
            reply_refreshes: !matches!(origin, Origin::Snat(_)) || original.protocol == nat_common::wire::TCP,
        };
        if session.key(Direction::Reply) != reply {
            return None;
        }
        let mapping = match origin {
            Origin::Snat(position) => self.restore_mapping(&session, position)?,
            Origin::Inbound(_) => {
                let (protocol, own, port) =
                    (original.protocol, original.destination, original.destination_port);
                self.restore_inbound(&session).or_else(|| self.mappings.find_external(protocol, own, port))?
            }
            Origin::Forward(_) => self
                .mappings
                .find_external(original.protocol, original.destination, original.destination_port)
                .unwrap_or(NO_MAPPING),
            Origin::Static(_) | Origin::Service(_) | Origin::Bypass => NO_MAPPING,
        };
        // The source of a hairpinned session has a mapping of its own.
        let hairpin = if original.realm != Realm::Inside as u16
            || matches!(origin, Origin::Snat(_))
            || carriage.is_relay()
        {
            None
        } else if let Origin::Service(_) = origin {
            // Without a rule that hides it, a service's client has the gateway's inside address, or its own.
            self.rules.hairpin(&original).filter(|_| rewrite.source != original.source)
        } else {
            Some(self.rules.hairpin(&original)?)
        };
        if let Some((position, _)) = hairpin {
            let source = self.restore_mapping(&session, position)?;
            self.mappings.hold(source, original.destination);
            self.hairpins.insert(original, source);
        }
        let session = Session { mapping, ..session };
        let remote = session_remote(&session);
        let is_its = |key| world.find(key).is_some_and(|(found, _)| found == slot);
        if !is_its(&original) || !is_its(&reply) || !self.sessions.restore(slot, session) {
            return None;
        }
        if mapping != NO_MAPPING {
            self.mappings.hold(mapping, remote);
        }
        if let Some(source) = self.sessions.get(slot).and_then(Session::limited_source) {
            self.sources.adopt(source, now);
        }
        let Some(origin) = self.allowed_by(slot) else {
            // Its entries go with those that belong to no session.
            if let Some(session) = self.sessions.remove(slot) {
                self.let_go(now, &session);
            }
            return None;
        };
        self.belongs_to(world, slot, origin);
        self.count_service(now, slot);
        let line = world.activity(slot);
        let left = self.sessions.get(slot).map(|session| self.time_left(world, session, &line))?;
        self.arm(now + left, slot);
        Some(())
    }

    /// The mapping of a session's source under a rule: found, or made with the port it has.
    fn restore_mapping(&mut self, session: &Session, position: u16) -> Option<u32> {
        let rule = &Arc::clone(self.rules.snat.get(usize::from(position))?);
        let (key, rewrite) = (&session.original, &session.rewrite);
        let is_reply = key.query == Query::Reply as u8;
        let (inside_port, external_port) = if is_reply {
            (key.destination_port, rewrite.destination_port)
        } else {
            (key.source_port, rewrite.source_port)
        };
        let inside = (key.source, inside_port);
        let remote = (key.destination, if is_reply { 0 } else { key.destination_port });
        let pool = match &rule.to {
            SnatTarget::Pool(pool) if pool.len() > 1 => u32::from(position),
            _ => rewrite.source,
        };
        let behaviour = rule.mapping;
        let forwarded =
            MappingKey::new(Behaviour::EndpointIndependent, key.protocol, inside, remote, FORWARDS);
        let mapping_key = MappingKey::new(behaviour, key.protocol, inside, remote, pool);
        for candidate in [&forwarded, &mapping_key] {
            if let Some(slot) = self.mappings.find(candidate)
                && let Some(mapping) = self.mappings.get(slot)
                && (mapping.external, mapping.external_port) == (rewrite.source, external_port)
            {
                return Some(slot);
            }
        }
        let tracked = rule.to == SnatTarget::Track;
        let shared = tracked || behaviour == Behaviour::EndpointDependent || !has_ports(key.protocol);
        let is_exclusive = self.rules.is_exclusive(position, rewrite.source);
        let wish = Wish {
            protocol: key.protocol,
            address: rewrite.source,
            port: u16::from_be(external_port),
            ports: self.restored_ports(
                position,
                rule,
                key.source,
                rewrite.source,
                u16::from_be(external_port),
            ),
            holder: inside,
        };
        if !tracked {
            if has_ports(key.protocol) && !self.externals.adopt(&wish, shared) {
                return None;
            }
            if is_exclusive {
                self.externals.lease(key.source, pool, rewrite.source);
            } else {
                self.externals.pair(key.source, pool, rewrite.source);
            }
        }
        self.blocks.hold(rewrite.source, wish.port);
        let mapping = Mapping {
            key: mapping_key,
            external: rewrite.source,
            external_port,
            sessions: 0,
            rule: position,
            permanent: false,
            shared,
        };
        Some(self.mappings.insert(mapping))
    }

    /// The mapping an inbound session came by: made if the sessions its host opened are gone.
    fn restore_inbound(&mut self, session: &Session) -> Option<u32> {
        let Origin::Inbound(position) = session.origin else { return None };
        let rule = &Arc::clone(self.rules.snat.get(usize::from(position))?);
        let (key, rewrite) = (&session.original, &session.rewrite);
        if self.mappings.find_external(key.protocol, key.destination, key.destination_port).is_some() {
            return None;
        }
        let inside = (rewrite.destination, rewrite.destination_port);
        let pool = match &rule.to {
            SnatTarget::Pool(pool) if pool.len() > 1 => u32::from(position),
            _ => key.destination,
        };
        let is_exclusive = self.rules.is_exclusive(position, key.destination);
        let wish = Wish {
            protocol: key.protocol,
            address: key.destination,
            port: u16::from_be(key.destination_port),
            ports: self.restored_ports(
                position,
                rule,
                inside.0,
                key.destination,
                u16::from_be(key.destination_port),
            ),
            holder: inside,
        };
        if !self.externals.adopt(&wish, false) {
            return None;
        }
        if is_exclusive {
            self.externals.lease(inside.0, pool, key.destination);
        }
        self.blocks.hold(key.destination, wish.port);
        Some(self.mappings.insert(Mapping {
            key: MappingKey::new(rule.mapping, key.protocol, inside, (key.source, key.source_port), pool),
            external: key.destination,
            external_port: key.destination_port,
            sessions: 0,
            rule: position,
            permanent: false,
            shared: false,
        }))
    }
}
