//! What the program opens by itself, see [`nat_common::delegate`]: hosts are granted what a packet of theirs was
//! judged to be worth, and the sessions that the program reports are taken into the tables as if opened here.

use crate::hash::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nat_common::abi::SessionEvent;
use nat_common::delegate::{Grant, GrantKey};
use nat_common::report::{Entered, Report};
use nat_common::{FlowKey, Realm, wire};

use super::mappings::{Mapping, MappingKey};
use super::next_hops;
use super::open::session_remote;
use super::sessions::{Carriage, Origin, Session};
use super::world::{Route, World};
use super::{Gateway, Interface, address, network};
use crate::config::{Mapping as Behaviour, Pooling, SnatRule, SnatTarget};
use crate::datapath::{Claims, Endpoint, Found, Held};

/// How long the program may take from claiming an endpoint to telling of it, if the host takes its CPU away.
const PATIENCE: Duration = Duration::from_millis(20);

/// Sessions that are adopted together: what is known of one is not asked for before all have been asked about, and memory
/// answers many questions in the time of one.
const TOGETHER: usize = 16;

/// What of the gateway the program may do.
pub(super) struct Delegation {
    claims: Rc<Claims>,
    epoch: u32,
    granted: HashMap<GrantKey, Grant>,
    /// Not before there are as few sessions: the table was full.
    paused_until: Option<u32>,
    /// What is told of sessions whose own report has not come yet: a packet finds a session before that is written.
    early: Vec<SessionEvent>,
}

impl Delegation {
    /// Asks memory for the cell of a packet's inside endpoint.
    pub(super) fn expect(&self, key: &FlowKey) {
        let _ = self.claims.is_pending(endpoint(key));
    }
}

impl Gateway {
    /// Lets the program open sessions, which claims from these, once the epoch that it knows is over.
    pub fn delegate(&mut self, claims: Rc<Claims>, epoch: u32) {
        self.mappings.share(Rc::clone(&claims));
        self.delegation = Some(Delegation {
            claims,
            epoch,
            granted: HashMap::default(),
            paused_until: None,
            early: Vec::new(),
        });
    }

    /// Grants a host what a session of its was just opened with, if all its like may be opened that way.
    #[expect(clippy::too_many_arguments, reason = "a first packet and everything known of it")]
    pub(super) fn grant(
        &mut self,
        world: &mut dyn World,
        ingress: &Interface,
        egress: &Interface,
        position: u16,
        rule: &SnatRule,
        route: &Route,
        session: &Session,
    ) {
        let key = &session.original;
        let Some(delegation) = &mut self.delegation else { return };
        let is_plain = rule.mapping == Behaviour::EndpointIndependent
            && rule.deterministic.is_none()
            && rule.port_set.is_none()
            && rule.to.translates()
            && match rule.to {
                // Of several addresses the route may name one, which the program does not see.
                SnatTarget::Masquerade => egress.addresses.len() == 1,
                _ => rule.pooling == Pooling::Paired,
            }
            && !self.sources.are_limited()
            && self.mappings_limit == 0
            && matches!(key.protocol, wire::TCP | wire::UDP)
            && (ingress.realm(), egress.realm()) == (Realm::Inside, Realm::Outside)
            // The program opens none by routes that are narrower.
            && route.mtu.is_none()
            && !session.next_hops.contains(&next_hops::UNKNOWN);
        if !is_plain {
            return;
        }
        let external = session.rewrite.source;
        let claims = &delegation.claims;
        let tables = [wire::TCP, wire::UDP].map(|protocol| self.externals.shared(external, protocol, claims));
        let grant = Grant {
            epoch: delegation.epoch,
            ingress: ingress.ifindex,
            egress: egress.ifindex,
            gateway: network(route.neighbour(address(key.destination))),
            external,
            first_port: rule.ports.first,
            last_port: rule.ports.last,
            tables,
            next_hops: session.next_hops,
            flags: if world.is_local(address(external)) { 0 } else { Grant::ABSENT },
        };
        let key = GrantKey { address: key.source, rule: position.into() };
        if delegation.granted.insert(key, grant) != Some(grant) {
            world.grant(&key, &grant);
        }
    }

    /// Rules, interfaces, addresses or routes are others: nothing that was granted holds any more.
    pub fn end_grants(&mut self, world: &mut dyn World) {
        if let Some(delegation) = &mut self.delegation {
            delegation.epoch = delegation.epoch.wrapping_add(1);
            delegation.granted.clear();
            world.set_epoch(delegation.epoch);
            delegation.claims.renew();
        }
    }

    /// Lends the program slots.
    pub fn lend(&mut self, world: &mut dyn World) {
        let Some(delegation) = &mut self.delegation else { return };
        let sessions = &mut self.sessions;
        if delegation.paused_until.is_some_and(|few| sessions.count() > few) {
            return;
        }
        delegation.paused_until = None;
        let useless = world.lend(&mut || {
            let is_room = sessions.count() + sessions.lent() < sessions.limit() / 4 * 3;
            if is_room { sessions.lend() } else { None }
        });
        sessions.reuse(useless);
    }

    /// Takes back what the program has not used: the last places of the table are the daemon's to give.
    pub(super) fn revoke(&mut self, world: &mut dyn World) {
        let Some(delegation) = &mut self.delegation else { return };
        delegation.paused_until = Some(self.sessions.limit() / 2);
        self.sessions.reuse(world.revoke());
    }

    /// Whether the table would be full if the program used all that it was lent.
    pub(super) fn is_lent_out(&self) -> bool {
        let lent = self.sessions.lent();
        lent > 0 && (self.sessions.count() + lent >= self.sessions.limit() || self.sessions.is_full())
    }

    /// Takes note of what the program has reported. Whether it has.
    pub fn read_reports(&mut self, world: &mut dyn World, now: Instant) -> bool {
        // Before the reports, which those of the same sessions should precede.
        let events = world.session_events();
        let opened = world.opened();
        for together in opened.chunks(TOGETHER) {
            self.adopt_all(world, now, together);
        }
        let early = self.delegation.as_mut().map(|own| std::mem::take(&mut own.early)).unwrap_or_default();
        for event in early.iter().chain(&events) {
            if self.sessions.get(event.session).is_some() {
                self.session_event(world, now, event);
            } else if let Some(delegation) = &mut self.delegation
                && self.sessions.is_lent(event.session)
            {
                delegation.early.push(*event);
            }
        }
        !opened.is_empty()
    }

    /// Keeps the program from making a mapping of a packet's inside endpoint as long as the answer lives, and waits
    /// until what it had begun to make is known.
    pub(super) fn hold_endpoint(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        key: &FlowKey,
    ) -> Option<Held> {
        let claims = Rc::clone(&self.delegation.as_ref()?.claims);
        let endpoint = endpoint(key);
        let held = claims.hold(endpoint);
        let mut begun = None;
        while claims.is_pending(endpoint) {
            // Whoever has waited too long reads once more: it may have been this thread that was away.
            let is_late = begun.get_or_insert_with(Instant::now).elapsed() >= PATIENCE;
            self.read_reports(world, now);
            if is_late {
                break;
            }
            std::hint::spin_loop();
        }
        Some(held)
    }

    /// Takes sessions that the program has opened into the tables.
    fn adopt_all(&mut self, world: &mut dyn World, now: Instant, reports: &[Report]) {
        // One that an earlier daemon had left unread was found in the table.
        let is_new = |slot| self.sessions.get(slot).is_none() && self.sessions.is_lent(slot);
        let found: [Option<Found>; TOGETHER] = std::array::from_fn(|number| {
            let report = reports.get(number).filter(|report| is_new(report.session))?;
            let found = world.session(report.session)?;
            for ((key, _), entered) in found.entries.iter().zip(report.entered) {
                if entered == Entered::Unsure {
                    world.expect(key);
                }
            }
            Some(found)
        });
        let asked: [_; TOGETHER] = std::array::from_fn(|number| {
            let mapping = self.mapping_of(found[number].as_ref()?)?;
            self.mappings.expect(&mapping);
            Some(mapping)
        });
        let mut opened: Option<(Origin, u64)> = None;
        for ((report, found), mapping) in reports.iter().zip(&found).zip(asked) {
            let Some(found) = found else { continue };
            let is_entered = world.adopt(report, found);
            let Some(origin) = self.adopt(world, now, *report, found, mapping.filter(|_| is_entered)) else {
                continue;
            };
            match &mut opened {
                Some((last, count)) if *last == origin => *count += 1,
                _ => self.count_opened(opened.replace((origin, 1))),
            }
        }
        self.count_opened(opened);
    }

    fn count_opened(&mut self, opened: Option<(Origin, u64)>) {
        if let Some((origin, count)) = opened {
            *self.opened.entry(origin).or_default() += count;
        }
    }

    /// Takes a session that the program has opened into the tables, with the mapping that it has made. What opened it.
    fn adopt(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        report: Report,
        found: &Found,
        mapping: Option<Mapping>,
    ) -> Option<Origin> {
        let slot = report.session;
        let [(original, value), (reply, back)] = found.entries;
        let rewrite = value.rewrite();
        let (owner, port) = ((original.protocol, rewrite.source), u16::from_be(rewrite.source_port));
        self.sessions.forget(slot);
        let has_port = self.externals.adopt_claimed(rewrite.source, original.protocol, port);
        let Some(mapping) = mapping.filter(|_| has_port) else {
            // Its port or one of its keys is another's: as if it had never been.
            tracing::debug!(slot, "a session that the program opened clashes with another");
            if has_port {
                self.externals.give_back(owner, port, (original.source, original.source_port), false, now);
            }
            self.mappings.settle(endpoint(&original));
            world.close(slot, &[original, reply]);
            return None;
        };
        self.record_mapping(now, &mapping);
        let origin = Origin::Snat(mapping.rule);
        let session = Session {
            original,
            rewrite,
            mapping: self.mappings.adopt(mapping),
            next_hops: [value.next_hop, back.next_hop],
            carriage: Carriage::Translated,
            armed: self.wheel.arm(slot, now + self.first_timeout(&original)),
            opened: self.age(now),
            origin,
            answers: Realm::Outside,
            reply_refreshes: original.protocol == wire::TCP,
        };
        self.mappings.hold(session.mapping, session_remote(&session));
        self.sessions.adopt(slot, session);
        self.record_session(now, slot);
        let is_of_now = |own: &Delegation| own.epoch & 0xffff == u32::from(report.epoch);
        if !self.delegation.as_ref().is_some_and(is_of_now) {
            self.judge_anew(world, now, slot);
        }
        Some(origin)
    }

    /// The mapping that the program has made with a session. `None` if its inside endpoint has another.
    fn mapping_of(&self, found: &Found) -> Option<Mapping> {
        let [(key, value), _] = found.entries;
        let position = u16::try_from(found.origin & 0xffff).unwrap_or(u16::MAX);
        let rewrite = value.rewrite();
        let pool = match self.rules.snat.get(usize::from(position)).map(|rule| &rule.to) {
            Some(SnatTarget::Pool(pool)) if pool.len() > 1 => u32::from(position),
            _ => rewrite.source,
        };
        let inside = (key.source, key.source_port);
        let key = MappingKey::new(Behaviour::EndpointIndependent, key.protocol, inside, (0, 0), pool);
        self.mappings.find(&key).is_none().then_some(Mapping {
            key,
            external: rewrite.source,
            external_port: rewrite.source_port,
            sessions: 0,
            rule: position,
            permanent: false,
            shared: false,
        })
    }

    /// A session that was opened by what held before: does it still?
    fn judge_anew(&mut self, world: &mut dyn World, now: Instant, slot: u32) {
        match self.allowed_by(slot) {
            Some(origin) => {
                self.belongs_to(world, slot, origin);
                for direction in nat_common::Direction::BOTH {
                    self.renew_way(world, slot, direction);
                }
            }
            None => self.abandon(world, now, slot),
        }
    }
}

/// The inside endpoint of a first packet.
pub(super) fn endpoint(key: &FlowKey) -> Endpoint {
    (key.protocol, key.source, key.source_port)
}
