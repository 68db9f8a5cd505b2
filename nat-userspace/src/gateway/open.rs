//! First packets towards the outside: which rule, which external endpoint, which way.

use std::time::Instant;

use nat_common::flow::{Query, Rewrite};
use nat_common::{Direction, FlowKey, Parsed, Realm, Reason, tcp, wire};

use super::allocate::Claim;
use super::icmp::Error;
use super::mappings::{Mapping, MappingKey};
use super::notices::Condition;
use super::sessions::{Carriage, NO_MAPPING, Origin, Session};
use super::world::{Route, RouteError, RouteKind, RouteQuery, World};
use super::{Gateway, Interface, Outcome, Shortage, address, network, next_hops};
use crate::config::{Mapping as Behaviour, SnatRule, SnatTarget};

/// Why a packet opens nothing.
#[derive(Clone, Copy)]
pub(super) enum Refusal {
    /// It is the stack's.
    Stack,
    /// It ends here, and its sender is told nothing.
    Silent(Reason),
    /// It ends here, and its sender is told.
    Told(Reason, Error),
}

/// Every port that could be had is taken.
pub(super) const NO_PORT: Refusal =
    Refusal::Told(Reason::DropPortsExhausted, Error::AdministrativelyProhibited);

/// A session's slot, and the direction of the packet that opened it.
pub(super) type Opened = Result<(u32, Direction), Refusal>;

impl Gateway {
    /// Opens a session for a packet that goes to another host than the gateway.
    pub(super) fn open_outbound(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &[u8],
        parsed: &Parsed,
    ) -> Opened {
        let key = &parsed.key;
        let query = RouteQuery {
            source: address(key.source),
            destination: address(key.destination),
            ingress: ingress.ifindex,
        };
        let route = world.route(query).map_err(unreachable)?;
        if route.kind != RouteKind::Unicast {
            return Err(Refusal::Stack);
        }
        let egress = self.interfaces.get(&route.ifindex).cloned();
        let rule = egress.as_ref().and_then(|egress| self.rules.snat(key, ingress, egress));
        if rule.is_none() && ingress.realm() == Realm::Outside && self.rules.is_uninvited(key) {
            // What the fast path would have dropped, had it not been a fragment that may belong
            // to a session.
            return Err(Refusal::Silent(Reason::DropUninvited));
        }
        let Some(egress) = egress else {
            return self.bypass(world, now, key, ingress.realm());
        };
        let Some((position, rule)) = rule else {
            return self.bypass(world, now, key, egress.realm());
        };
        if rule.to == SnatTarget::None {
            return self.bypass(world, now, key, egress.realm());
        }
        // What answers opens nothing: its question went another way (behaviour S000-12). TCP of an inside host is
        // picked up, since its connection may be older than this gateway.
        let answers = match key.protocol {
            wire::TCP => {
                let is_picked_up = ingress.realm() == Realm::Inside
                    && tcp::may_be_picked_up(parsed.tcp_flags)
                    && has_payload(frame, parsed);
                !tcp::opens(parsed.tcp_flags) && !is_picked_up
            }
            wire::ICMP => key.query == Query::Reply as u8,
            _ => false,
        };
        if answers {
            return Err(Refusal::Silent(Reason::DropNoSession));
        }
        if parsed.ttl <= 1 {
            // Answered before anything is allocated (behaviour RTR-02).
            return Err(Refusal::Told(Reason::DropTtl, Error::TtlExceeded));
        }
        if ingress.realm() == Realm::Inside && self.comes_from_outside(world, key.source) {
            return Err(Refusal::Silent(Reason::DropSpoofed));
        }
        let rule = rule.clone();
        self.may_open(world, key.source, now).inspect_err(|refusal| {
            if let Refusal::Told(Reason::DropSourceLimit, _) = refusal {
                world.shed(key.source);
            }
        })?;
        let opened = self.map_and_open(world, now, ingress, &egress, key, position, &rule, &route);
        if opened.is_err() {
            self.sources.close(key.source);
        }
        opened
    }

    /// Whether the table and the source's limits leave room for one more session.
    pub(super) fn may_open(
        &mut self,
        world: &mut dyn World,
        source: u32,
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.is_lent_out() {
            self.revoke(world);
        }
        if self.sessions.is_full() {
            return Err(Refusal::Told(Reason::DropSessionsFull, Error::AdministrativelyProhibited));
        }
        if !self.sources.open(source, now) {
            return Err(Refusal::Told(Reason::DropSourceLimit, Error::AdministrativelyProhibited));
        }
        Ok(())
    }

    /// Whether there are as many mappings as there may be.
    pub(super) fn has_all_mappings(&self) -> bool {
        self.mappings_limit != 0 && self.mappings.count() >= self.mappings_limit as usize
    }

    /// Finds or makes the mapping, and the session through it.
    #[expect(clippy::too_many_arguments, reason = "a first packet and everything known of it")]
    fn map_and_open(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        egress: &Interface,
        key: &FlowKey,
        position: u16,
        rule: &SnatRule,
        route: &Route,
    ) -> Opened {
        let (mapping, external, port) =
            self.mapping_for(world, now, key, position, rule, egress, route.preferred_source.map(network))?;
        let rewrite = match key.query {
            reply if reply == Query::Reply as u8 => Rewrite {
                source: external,
                destination: key.destination,
                source_port: 0,
                destination_port: port,
            },
            _ => Rewrite {
                source: external,
                destination: key.destination,
                source_port: port,
                destination_port: key.destination_port,
            },
        };
        let out = self.next_hops.slot(world, egress, route.neighbour(address(key.destination)), route.mtu);
        let back = self.way_back(world, ingress, key.source);
        let session = Session {
            original: *key,
            rewrite,
            mapping,
            next_hops: [out, back],
            carriage: Carriage::Translated,
            armed: 0,
            opened: 0,
            origin: Origin::Snat(position),
            answers: egress.realm(),
            reply_refreshes: key.protocol == wire::TCP,
        };
        let granted = session.clone();
        let Some(opened) = self.enter(world, now, session) else {
            self.drop_if_unused(now, mapping);
            // The program may have opened it while this packet was on its way.
            let known = self.find(world, now, key);
            return known.inspect(|_| self.sources.close(key.source)).ok_or(NO_PORT);
        };
        self.grant(world, ingress, egress, position, rule, route, &granted);
        Ok(opened)
    }

    /// Whether answers to an inside source would leave by an outside interface: then the source is forged, or the
    /// route to its network is missing. Answers would carry its private address to the provider.
    fn comes_from_outside(&self, world: &mut dyn World, source: u32) -> bool {
        let query = RouteQuery { source: address(source), destination: address(source), ingress: 0 };
        world.route(query).is_ok_and(|back| {
            back.kind == RouteKind::Unicast
                && self.interfaces.get(&back.ifindex).is_some_and(|way| way.realm() == Realm::Outside)
        })
    }

    /// Next hop for packets back to `inside`, which was seen on `ingress`.
    pub(super) fn way_back(&mut self, world: &mut dyn World, ingress: &Interface, inside: u32) -> u16 {
        let query = RouteQuery { source: address(inside), destination: address(inside), ingress: 0 };
        match world.route(query) {
            Ok(route) if route.kind == RouteKind::Unicast => {
                let Some(interface) = self.interfaces.get(&route.ifindex).cloned() else {
                    return next_hops::UNKNOWN;
                };
                self.next_hops.slot(world, &interface, route.neighbour(address(inside)), route.mtu)
            }
            // No route back (an asymmetric set-up): to where it came from, as if on the link.
            _ => self.next_hops.slot(world, ingress, address(inside), None),
        }
    }

    /// The mapping of an inside endpoint, made if it has none: its slot, external address and
    /// port (network byte order).
    #[expect(clippy::too_many_arguments, reason = "a first packet and everything known of it")]
    pub(super) fn mapping_for(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        key: &FlowKey,
        position: u16,
        rule: &SnatRule,
        egress: &Interface,
        preferred: Option<u32>,
    ) -> Result<(u32, u32, u16), Refusal> {
        let single;
        let pooled;
        let addresses: &[u32] = match &rule.to {
            SnatTarget::Masquerade => {
                let primary = egress.addresses.first().copied().map(network);
                let on_egress = |wanted: &u32| egress.addresses.iter().any(|own| network(*own) == *wanted);
                single = preferred.filter(on_egress).or(primary);
                single.as_slice()
            }
            SnatTarget::Pool(_) => {
                pooled = self.rules.pools.get(usize::from(position)).cloned();
                pooled.as_deref().unwrap_or_default()
            }
            // Its own: nothing is allocated, nothing changes.
            SnatTarget::Track => {
                single = Some(key.source);
                single.as_slice()
            }
            SnatTarget::None => &[],
        };
        let belongs = |external: u32| match &rule.to {
            SnatTarget::Pool(pool) => pool.contains(address(external)),
            _ => addresses.contains(&external),
        };
        let Some(&first) = addresses.first() else {
            self.shortage = Shortage { external: 0, rule: position };
            return Err(Refusal::Told(Reason::DropNoAddress, Error::AdministrativelyProhibited));
        };
        let pool = if addresses.len() == 1 { first } else { u32::from(position) };
        let is_reply = key.query == Query::Reply as u8;
        let inside_port = if is_reply { key.destination_port } else { key.source_port };
        let remote = (key.destination, if is_reply { 0 } else { key.destination_port });
        let inside = (key.source, inside_port);
        // A forward's mapping is its host's mapping for outbound flows too (behaviour PFW-04).
        let shared_by_all =
            MappingKey::new(Behaviour::EndpointIndependent, key.protocol, inside, remote, FORWARDS);
        let mapping_key = MappingKey::new(rule.mapping, key.protocol, inside, remote, pool);
        let _held = self.hold_endpoint(world, now, key);
        for candidate in [&shared_by_all, &mapping_key] {
            if let Some(slot) = self.mappings.find(candidate)
                && let Some(mapping) = self.mappings.get(slot)
                && belongs(mapping.external)
            {
                return Ok((slot, mapping.external, mapping.external_port));
            }
        }
        if rule.to == SnatTarget::Track {
            let (external, external_port) = inside;
            let slot = self.mappings.insert(Mapping {
                key: mapping_key,
                external,
                external_port,
                sessions: 0,
                rule: position,
                permanent: false,
                shared: true,
            });
            return Ok((slot, external, external_port));
        }
        if self.has_all_mappings() {
            return Err(Refusal::Told(Reason::DropSessionsFull, Error::AdministrativelyProhibited));
        }
        let candidates: Vec<u32> = match rule.deterministic {
            None => self.externals.candidates(key.source, pool, addresses, &belongs, rule.pooling),
            Some(_) => rule.block(address(key.source)).iter().map(|(own, _)| network(*own)).collect(),
        };
        // What no interface has no socket can be bound to: then they need not be read.
        if candidates.iter().any(|own| world.is_local(address(*own))) {
            world.read_bound(key.protocol);
        }
        let claim = Claim { key, inside, rule, position, realm: egress.realm() };
        let found = candidates
            .iter()
            .find_map(|&external| Some((external, self.port_on(world, now, &claim, external)?)));
        let Some((external, port)) = found else {
            self.shortage =
                Shortage { external: candidates.first().copied().unwrap_or(first), rule: position };
            return Err(NO_PORT);
        };
        let mapping = Mapping {
            key: mapping_key,
            external,
            external_port: port.to_be(),
            sessions: 0,
            rule: position,
            permanent: false,
            shared: rule.mapping == Behaviour::EndpointDependent || !has_ports(key.protocol),
        };
        let slot = self.mappings.insert(mapping);
        if self.rules.is_exclusive(position, external) && self.externals.lease(key.source, pool, external) {
            self.record_lease(now, position, key.source, external, true);
        }
        self.record_mapping(now, &mapping);
        Ok((slot, external, mapping.external_port))
    }

    /// Milliseconds since the start.
    pub(super) fn age(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// The session that a packet belongs to, and its direction. What the program has opened is taken in first.
    pub(super) fn find(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        key: &FlowKey,
    ) -> Option<(u32, Direction)> {
        let found = world.find(key)?;
        if self.sessions.get(found.0).is_none() {
            self.read_reports(world, now);
        }
        self.sessions.get(found.0).map(|_| found)
    }

    /// Puts a session and its entries in, and arms its timer. `None` if the table is full or one of its keys is taken.
    pub(super) fn enter(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        mut session: Session,
    ) -> Option<(u32, Direction)> {
        let (mapping, remote) = (session.mapping, session_remote(&session));
        let timeout = self.first_timeout(&session.original);
        let origin = session.origin;
        if session.keys().iter().any(|key| world.find(key).is_some()) {
            return None;
        }
        session.opened = self.age(now);
        let slot = self.sessions.insert(session)?;
        if mapping != NO_MAPPING {
            self.mappings.hold(mapping, remote);
        }
        *self.opened.entry(origin).or_default() += 1;
        world.set_activity(slot, &nat_common::activity::Activity::default());
        let armed = self.wheel.arm(slot, now + timeout);
        let session = self.sessions.get_mut(slot)?;
        session.armed = armed;
        let (entries, origin) = (session.entries(), session.origin.encode());
        world.open(slot, &entries, origin);
        self.count_service(now, slot);
        self.record_session(now, slot);
        Some((slot, Direction::Original))
    }

    /// Remembers that a flow is plain routing.
    fn bypass(&mut self, world: &mut dyn World, now: Instant, key: &FlowKey, back: Realm) -> Opened {
        let rewrite = Rewrite {
            source: key.source,
            destination: key.destination,
            source_port: key.source_port,
            destination_port: key.destination_port,
        };
        let session = Session {
            original: *key,
            rewrite,
            mapping: NO_MAPPING,
            next_hops: [next_hops::UNKNOWN; 2],
            carriage: Carriage::Translated,
            armed: 0,
            opened: 0,
            origin: Origin::Bypass,
            answers: back,
            reply_refreshes: true,
        };
        // Answered, it would pass for an answer to what a forward carries (behaviour PFW-07).
        if world.find(&session.key(Direction::Reply)).is_some() {
            return Err(Refusal::Silent(Reason::DropUninvited));
        }
        // A full table only costs the memory of the judgement.
        self.enter(world, now, session).ok_or(Refusal::Stack)
    }

    /// Does what a refusal asks.
    pub(super) fn refuse(
        &mut self,
        _world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &[u8],
        parsed: &Parsed,
        refusal: Refusal,
    ) -> Outcome {
        if let Refusal::Silent(reason) | Refusal::Told(reason, _) = refusal
            && let Some(condition) = Condition::of(reason, parsed.key.protocol, address(parsed.key.source))
        {
            self.short_of(now, condition);
        }
        match refusal {
            Refusal::Stack => Outcome::ToStack,
            Refusal::Silent(reason) => Outcome::Drop(reason),
            Refusal::Told(reason, error) => self.answer(now, ingress, frame, parsed, error, reason),
        }
    }
}

/// The pool of forwards' mappings: they belong to no rule's addresses.
pub(super) const FORWARDS: u32 = 0;

/// Whether a protocol has ports or identifiers to translate.
pub(super) fn has_ports(protocol: u8) -> bool {
    matches!(protocol, wire::TCP | wire::UDP | wire::UDPLITE | wire::ICMP)
}

/// Whether a TCP segment carries data. What does not, the last ACK of a connection that is over,
/// say, is no reason to remember anything (behaviour TCP-11).
fn has_payload(frame: &[u8], parsed: &Parsed) -> bool {
    let header = frame.get(parsed.transport + 12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    parsed.transport + header < parsed.network + usize::from(parsed.total_length)
}

/// The remote address of a session, as its mapping's filter sees it.
pub(super) fn session_remote(session: &Session) -> u32 {
    match session.origin {
        Origin::Inbound(_) | Origin::Forward(_) | Origin::Service(_) => session.original.source,
        _ => session.rewrite.destination,
    }
}

/// The reply key a session from `key` would have behind an external endpoint.
pub(super) fn shared_reply(key: &FlowKey, external: u32, port: u16, realm: Realm) -> FlowKey {
    let rewrite = Rewrite {
        source: external,
        destination: key.destination,
        source_port: port.to_be(),
        destination_port: key.destination_port,
    };
    Session::reply_key(key, &rewrite, realm)
}

/// What a failed route lookup tells the sender (RFC 1812 section 4.3.3.1).
pub(super) fn unreachable(error: RouteError) -> Refusal {
    match error {
        RouteError::Blackhole => Refusal::Silent(Reason::DropNoRoute),
        RouteError::Prohibited => Refusal::Told(Reason::DropNoRoute, Error::AdministrativelyProhibited),
        _ => Refusal::Told(Reason::DropNoRoute, Error::NetworkUnreachable),
    }
}
