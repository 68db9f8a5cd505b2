//! The end of things: timers that are due, what the fast path reported, what was deleted.

use std::time::{Duration, Instant};

use nat_common::abi::SessionEvent;
use nat_common::activity::Activity;
use nat_common::tcp::State;
use nat_common::{Direction, FlowKey, Reason, wire};

use super::hold::Held;
use super::icmp::Error;
use super::mappings::Mapping;
use super::notices::Condition;
use super::open::session_remote;
use super::sessions::{NO_MAPPING, Session};
use super::steps::Step;
use super::world::World;
use super::{Gateway, Outcome, Released};
use crate::config::EventClass;

/// Sessions looked at in one go: packets wait no longer than that takes.
const BATCH: usize = 4096;

impl Gateway {
    /// Looks at what is due, a bounded part of it. Returns how long nothing else is.
    pub fn tick(&mut self, world: &mut dyn World, now: Instant) -> Duration {
        self.sessions.reuse(world.released());
        let mut due = Vec::new();
        self.wheel.due(now, BATCH, &mut due);
        let more = due.len() >= BATCH;
        for (slot, tick) in due {
            self.look_at(world, now, slot, tick);
        }
        for neighbour in self.holds.expired(now) {
            for Held { ingress, frame } in self.holds.release(neighbour) {
                self.give_up(world, now, ingress, frame);
            }
        }
        self.expire_fragments(now);
        self.expire_knocks(now);
        self.sources.sweep(now);
        self.services.sweep(now);
        let notices = self.notices.sweep(now);
        if more {
            return Duration::ZERO;
        }
        let opening = self.look_at_opening(world, now);
        let next = [opening, self.holds.next(), self.datagrams.next(), self.knocks.next(), notices]
            .into_iter()
            .flatten()
            .min();
        let wait = self.wheel.wait(now);
        next.map_or(wait, |next| wait.min(next.saturating_duration_since(now)))
    }

    /// A session's timer rang: over, or armed again for when it would be.
    fn look_at(&mut self, world: &mut dyn World, now: Instant, slot: u32, tick: u32) {
        let Some(session) = self.sessions.get(slot) else { return };
        if session.armed != tick {
            return;
        }
        let left = self.time_left(world, session, &world.activity(slot));
        if left.is_zero() {
            self.abandon_as(world, now, slot, Step::Expired);
        } else {
            self.arm(now + left, slot);
        }
    }

    pub(super) fn arm(&mut self, due: Instant, slot: u32) {
        let armed = self.wheel.arm(slot, due);
        if let Some(session) = self.sessions.get_mut(slot) {
            session.armed = armed;
        }
    }

    /// How long a session lives on if nothing comes any more.
    pub(super) fn time_left(&self, world: &dyn World, session: &Session, line: &Activity) -> Duration {
        let [original, reply] = &line.directions;
        let mut idle = world.since(original.last_seen);
        if (session.reply_refreshes || self.timeouts.inbound_refresh) && reply.packets > 0 {
            idle = idle.min(world.since(reply.last_seen));
        }
        self.timeout(&session.original, session.tcp_state(line)).saturating_sub(idle)
    }

    /// The lifetime of an idle session in this state, if it is of TCP.
    fn timeout(&self, original: &FlowKey, state: State) -> Duration {
        match original.protocol {
            wire::TCP => match state {
                State::Opening => self.timeouts.tcp_opening,
                State::Established => self.timeouts.tcp_established,
                State::Closing | State::Reset => self.timeouts.tcp_closing,
            },
            wire::ICMP => self.timeouts.icmp,
            wire::UDP => {
                let port = u16::from_be(original.destination_port);
                self.timeouts.udp_ports.get(&port).copied().unwrap_or(self.timeouts.udp)
            }
            _ => self.timeouts.udp,
        }
    }

    /// The lifetime of a session that is just being opened.
    pub(super) fn first_timeout(&self, original: &FlowKey) -> Duration {
        self.timeout(original, State::Opening)
    }

    /// The fast path saw a FIN, an RST or a new SYN: the session's timer may be shorter now.
    pub fn session_event(&mut self, world: &mut dyn World, now: Instant, event: &SessionEvent) {
        let Some(session) = self.sessions.get(event.session) else { return };
        let line = world.activity(event.session);
        let left = self.time_left(world, session, &line);
        self.arm(now + left, event.session);
        self.look_at_state(now, event.session, &line);
    }

    /// Events were lost: every TCP session may have changed.
    pub fn session_events_lost(&mut self, world: &mut dyn World, now: Instant) {
        let slots: Vec<u32> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.original.protocol == wire::TCP)
            .map(|(slot, _)| slot)
            .collect();
        for session in slots {
            self.session_event(world, now, &SessionEvent { session, seen: 0, direction: 0, pad: 0 });
        }
    }

    /// Ends a session whose ends may go on talking: they are told if the configuration says so.
    pub fn abandon(&mut self, world: &mut dyn World, now: Instant, slot: u32) {
        self.abandon_as(world, now, slot, Step::Deleted);
    }

    fn abandon_as(&mut self, world: &mut dyn World, now: Instant, slot: u32, step: Step) {
        // Whoever is connected to a server that is taken out learns it at once (behaviour LBS-07).
        let is_of_removed = self.sessions.get(slot).is_some_and(|session| session.server().is_some())
            && self.allowed_by(slot).is_none();
        if self.timeouts.tcp_reset || is_of_removed {
            self.reset_both_ends(world, slot);
        }
        self.end_as(world, now, slot, step);
    }

    /// Ends a session: its entries, and its mapping if it was the last.
    pub fn end(&mut self, world: &mut dyn World, now: Instant, slot: u32) {
        self.end_as(world, now, slot, Step::Deleted);
    }

    fn end_as(&mut self, world: &mut dyn World, now: Instant, slot: u32, step: Step) {
        let Some(session) = self.sessions.remove(slot) else { return };
        if self.events.wants(EventClass::Steps) {
            self.step(now, slot, &session, &world.activity(slot), step);
        }
        if let Some((position, server)) = session.server() {
            self.services.ended(position, server, &world.activity(slot));
        }
        world.close(slot, &session.keys());
        self.let_go(now, &session);
    }

    /// The kernel's table did not take a session's entries.
    pub fn abort(&mut self, world: &mut dyn World, now: Instant, slot: u32) {
        self.counts.add(Reason::DropTable);
        self.short_of(now, Condition::Room);
        self.end(world, now, slot);
    }

    pub(super) fn let_go(&mut self, now: Instant, session: &Session) {
        self.record_end(now, session);
        self.let_go_of_hairpin(now, &session.original);
        if session.mapping != NO_MAPPING
            && let Some(mapping) = self.mappings.release(session.mapping, session_remote(session))
        {
            self.give_port_back(now, &mapping);
        }
        if let Some(source) = session.limited_source() {
            self.sources.close(source);
        }
    }

    /// Lets go of the mapping that the source of a hairpinned session has, if it is one.
    pub(super) fn let_go_of_hairpin(&mut self, now: Instant, original: &FlowKey) {
        if let Some(slot) = self.hairpins.remove(original)
            && let Some(mapping) = self.mappings.release(slot, original.destination)
        {
            self.give_port_back(now, &mapping);
        }
    }

    /// Gives a mapping that nobody holds back at once: what opened it failed after it was made.
    pub(super) fn drop_if_unused(&mut self, now: Instant, slot: u32) {
        if self.mappings.get(slot).is_some_and(|mapping| mapping.sessions == 0 && !mapping.permanent)
            && let Some(mapping) = self.mappings.remove(slot)
        {
            self.give_port_back(now, &mapping);
        }
    }

    pub(super) fn give_port_back(&mut self, now: Instant, mapping: &Mapping) {
        let Mapping { key, external, external_port, shared, .. } = mapping;
        let port = u16::from_be(*external_port);
        if *shared {
            self.externals.unshare(key.protocol, *external, port);
        } else {
            // A port of its host's own block rests for nobody (RFC 6888 REQ-8b), one beyond it for the next.
            let rule = self.rules.snat.get(usize::from(mapping.rule));
            let rests = mapping.permanent
                || rule.is_none_or(|rule| rule.deterministic.is_none())
                || self.blocks.contains(*external, port);
            let holder = (key.address, key.port);
            self.externals.give_back((key.protocol, *external), port, holder, rests, now);
        }
        self.let_go_of_block(now, *external, port);
        self.record_unmapping(now, mapping);
        if self.externals.end_lease(key.address, *external) {
            self.record_lease(now, mapping.rule, key.address, *external, false);
        }
    }

    /// A neighbour did not answer: the sender of a frame that waited for it is told (RFC 1812
    /// section 4.3.3.1), and the session it had opened is over.
    fn give_up(&mut self, world: &dyn World, now: Instant, ingress: u32, mut frame: Vec<u8>) {
        self.counts.add(Reason::DropNoNeighbour);
        let Some(interface) = self.interfaces.get(&ingress).cloned() else { return };
        let Some(view) = nat_common::frame::SliceFrame::new(&mut frame) else { return };
        if let nat_common::parse::Frames::Ipv4(parsed) = nat_common::parse(&view, interface.realm()) {
            self.answer(now, &interface, &frame, &parsed, Error::HostUnreachable, Reason::DropNoNeighbour);
            if let Some((slot, Direction::Original)) = world.find(&parsed.key) {
                self.unreachable.push(slot);
            }
        }
    }

    /// Ends sessions whose first packets could not be delivered and that nothing answered.
    pub fn end_unreachable(&mut self, world: &mut dyn World, now: Instant) {
        for slot in std::mem::take(&mut self.unreachable) {
            let [original, reply] = world.activity(slot).directions;
            // Of a server's answers that go past the gateway nothing is seen.
            let is_relay = self.sessions.get(slot).is_some_and(|session| session.carriage.is_relay());
            if reply.packets == 0 && !(is_relay && original.packets > 0) {
                self.end(world, now, slot);
            }
        }
    }

    /// Frames that waited for a neighbour which has answered: judged anew, for the caller to send.
    pub(super) fn release(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        neighbour: (u32, std::net::Ipv4Addr),
    ) {
        for Held { ingress, mut frame } in self.holds.release(neighbour) {
            let came = frame.clone();
            let outcome = self.handle(world, now, ingress, &mut frame);
            if outcome != Outcome::Held {
                self.released.push(Released { ingress, came, frame, outcome });
            }
        }
    }
}
