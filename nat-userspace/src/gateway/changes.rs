//! The host changes under the gateway: interfaces, addresses, neighbours, routes. Flows follow at
//! once, and none keeps an address or a MAC that is no longer right.

use crate::hash::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use nat_common::{Direction, Realm};

use super::sessions::{Carriage, NO_MAPPING, Origin};
use super::world::{RouteKind, RouteQuery, World};
use super::{Gateway, Interface, address, network, next_hops};
use crate::config::{Config, ServiceRule};

/// What a reload did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Sessions that live on.
    pub kept: u32,
    /// Sessions the new rules do not allow.
    pub ended: u32,
}

impl Gateway {
    /// An interface is new or changed.
    pub fn set_interface(&mut self, world: &mut dyn World, now: Instant, interface: Interface) {
        let ifindex = interface.ifindex;
        self.end_grants(world);
        let interface = Arc::new(interface);
        let before = self.interfaces.insert(ifindex, Arc::clone(&interface));
        let gone: Vec<Ipv4Addr> = before
            .map(|before| {
                before.addresses.iter().copied().filter(|own| !interface.addresses.contains(own)).collect()
            })
            .unwrap_or_default();
        for own in gone {
            self.address_gone(world, now, own);
        }
        for neighbour in self.next_hops.behind(ifindex) {
            self.next_hops.refresh(world, &interface, neighbour);
        }
        self.reserve_forwards();
    }

    /// An interface is gone.
    pub fn remove_interface(&mut self, world: &mut dyn World, now: Instant, ifindex: u32) {
        if let Some(interface) = self.interfaces.remove(&ifindex) {
            self.end_grants(world);
            let down = Interface { up: false, ..Interface::clone(&interface) };
            for neighbour in self.next_hops.behind(ifindex) {
                self.next_hops.refresh(world, &down, neighbour);
            }
            for own in down.addresses {
                self.address_gone(world, now, own);
            }
        }
    }

    /// An address is the gateway's no more: mappings on it end at once (design: never a packet
    /// with an address that belongs to someone else).
    fn address_gone(&mut self, world: &mut dyn World, now: Instant, own: Ipv4Addr) {
        let own = network(own);
        let slots: Vec<u32> = self
            .sessions
            .iter()
            .filter(|(_, session)| {
                session.origin != Origin::Bypass
                    && (session.key(Direction::Reply).destination == own
                        || session.original.destination == own
                        || (session.carriage == Carriage::Tunnelled && session.rewrite.source == own))
            })
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            self.end(world, now, slot);
        }
        let permanent: HashSet<u32> = self
            .mappings
            .iter()
            .filter(|(_, mapping)| mapping.external == own)
            .map(|(slot, _)| slot)
            .collect();
        self.forget_knocks(now, |slot| permanent.contains(&slot));
        for slot in permanent {
            self.mappings.remove(slot);
        }
        self.externals.forget(own);
    }

    /// A neighbour answered, moved or is gone.
    pub fn neighbour_changed(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ifindex: u32,
        neighbour: Ipv4Addr,
    ) {
        let Some(interface) = self.interfaces.get(&ifindex).cloned() else { return };
        if self.next_hops.refresh(world, &interface, neighbour) {
            self.release(world, now, (ifindex, neighbour));
        }
    }

    /// Neighbours that flows go to: to be kept confirmed, since the kernel does not see the
    /// traffic that shows they live.
    pub fn neighbours(&self) -> Vec<(u32, Ipv4Addr)> {
        self.next_hops.iter().collect()
    }

    /// Routes changed: every session's way is looked up again, and changed where it is another.
    pub fn routes_changed(&mut self, world: &mut dyn World) {
        self.end_grants(world);
        let slots: Vec<u32> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.origin != Origin::Bypass)
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            for direction in [Direction::Original, Direction::Reply] {
                self.renew_way(world, slot, direction);
            }
        }
    }

    pub(super) fn renew_way(&mut self, world: &mut dyn World, slot: u32, direction: Direction) {
        let Some(session) = self.sessions.get(slot) else { return };
        let to = session.rewritten(direction).destination;
        let opposite = match direction {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        };
        let ingress =
            self.next_hops.neighbour(session.next_hops[opposite as usize]).map_or(0, |(ifindex, _)| ifindex);
        let query = RouteQuery {
            source: address(session.key(direction).source),
            destination: address(to),
            ingress: if direction == Direction::Original { ingress } else { 0 },
        };
        // Who came from outside is answered by the way of that external address, wherever the
        // route to it leads (behaviour POL-10).
        let by_address =
            matches!(session.origin, Origin::Inbound(_) | Origin::Forward(_) | Origin::Service(_))
                && session.original.realm == Realm::Outside as u16
                && direction == Direction::Reply;
        let external = session.original.destination;
        let uplink = if by_address { self.interface_of(external) } else { None };
        if let Some(uplink) = uplink.filter(|uplink| uplink.up) {
            let hop = self.way_to_remote(world, &uplink, external, to);
            self.set_way(world, slot, direction, hop);
            return;
        }
        let translated = session.rewrite.source;
        let is_outbound = matches!(session.origin, Origin::Snat(_)) && direction == Direction::Original;
        // While the link of an inside host is down, its address is one that only the default route leads to.
        let stays_inside = session.key(opposite).realm == Realm::Inside as u16;
        let hop = match world.route(query) {
            Ok(route) if route.kind == RouteKind::Unicast => {
                let leads = |egress: &&Arc<Interface>| !stays_inside || egress.realm() == Realm::Inside;
                let egress = self.interfaces.get(&route.ifindex).filter(leads).cloned();
                let stays = egress
                    .as_ref()
                    .filter(|_| is_outbound)
                    .and_then(|egress| self.way_it_began(world, egress, translated, to));
                match (stays, egress) {
                    (Some(hop), _) => hop,
                    (None, Some(egress)) => {
                        self.next_hops.slot(world, &egress, route.neighbour(address(to)), route.mtu)
                    }
                    (None, None) => next_hops::UNKNOWN,
                }
            }
            _ => next_hops::UNKNOWN,
        };
        self.set_way(world, slot, direction, hop);
    }

    /// The way by the uplink that a session's external address belongs to, where the best route has come to lead to
    /// another: the provider there would drop that address, or answers would come by the first one (behaviour
    /// S000-18). None where that uplink is down or leads there no more.
    fn way_it_began(
        &mut self,
        world: &mut dyn World,
        egress: &Interface,
        external: u32,
        remote: u32,
    ) -> Option<u16> {
        let uplink = self.interface_of(external)?;
        let outside = Realm::Outside;
        if uplink.ifindex == egress.ifindex
            || !uplink.up
            || uplink.realm() != outside
            || egress.realm() != outside
        {
            return None;
        }
        let route = world.route_by(uplink.ifindex, address(external), address(remote)).ok()?;
        (route.kind == RouteKind::Unicast && route.ifindex == uplink.ifindex)
            .then(|| self.next_hops.slot(world, &uplink, route.neighbour(address(remote)), route.mtu))
    }

    fn set_way(&mut self, world: &mut dyn World, slot: u32, direction: Direction, hop: u16) {
        if session_hop(self, slot, direction) == hop {
            return;
        }
        if let Some(session) = self.sessions.get_mut(slot) {
            if session.server().is_some() && direction == Direction::Original {
                self.next_hops.schedule(world, hop);
            }
            session.next_hops[direction as usize] = hop;
            world.replace(slot, &session.entries(), session.origin.encode());
        }
    }

    /// Takes new rules: sessions that they would open the same way live on.
    pub fn reload(&mut self, world: &mut dyn World, now: Instant, config: &Config) -> Reloaded {
        self.end_grants(world);
        // Whether the new rules would let them knock is seen when they do it again.
        self.forget_knocks(now, |_| true);
        self.drop_permanent_mappings();
        let before: Vec<(Origin, String, u64)> =
            self.opened.drain().map(|(origin, count)| (origin, self.rules.name(origin), count)).collect();
        self.rules = super::Rules::new(config);
        let other_timeouts = self.timeouts != config.timeouts;
        self.timeouts = config.timeouts.clone();
        self.datagrams.timeout = config.timeouts.fragment;
        self.reserve_forwards();
        self.services.update(&self.rules.services, now);
        for (origin, name, count) in before {
            if let Some(origin) = self.rules.position(origin, &name) {
                *self.opened.entry(origin).or_default() += count;
            }
        }
        let mut reloaded = Reloaded::default();
        let slots: Vec<u32> = self.sessions.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            if let Some(origin) = self.allowed_by(slot) {
                reloaded.kept += 1;
                self.belongs_to(world, slot, origin);
                if other_timeouts && let Some(session) = self.sessions.get(slot) {
                    // Its timer is set for when it would have ended.
                    let left = self.time_left(world, session, &world.activity(slot));
                    self.arm(now + left, slot);
                }
            } else {
                reloaded.ended += 1;
                self.abandon(world, now, slot);
            }
        }
        self.services.recount(self.sessions.iter().filter_map(|(_, session)| session.server()));
        reloaded
    }

    /// Takes other servers and weights of the services there are. Connections of servers that are no more are
    /// reset; all others live on.
    pub fn set_services(&mut self, world: &mut dyn World, now: Instant, services: &[ServiceRule]) {
        self.rules.services = services.iter().cloned().map(Arc::new).collect();
        self.services.update(&self.rules.services, now);
        let slots: Vec<u32> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.server().is_some())
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            if self.allowed_by(slot).is_none() {
                self.abandon(world, now, slot);
            }
        }
    }

    /// Takes the mappings of forwards out. Sessions that hold one live on without: its port stays
    /// reserved.
    fn drop_permanent_mappings(&mut self) {
        let permanent: HashSet<u32> =
            self.mappings.iter().filter(|(_, mapping)| mapping.permanent).map(|(slot, _)| slot).collect();
        if permanent.is_empty() {
            return;
        }
        self.hairpins.retain(|_, mapping| !permanent.contains(mapping));
        let holders: Vec<u32> = self
            .sessions
            .iter()
            .filter(|(_, session)| permanent.contains(&session.mapping))
            .map(|(slot, _)| slot)
            .collect();
        for slot in holders {
            if let Some(session) = self.sessions.get_mut(slot) {
                session.mapping = NO_MAPPING;
            }
        }
        for slot in permanent {
            self.mappings.remove(slot);
        }
    }

    /// A session, and the mapping it holds, are a rule's from now on.
    pub(super) fn belongs_to(&mut self, world: &mut dyn World, slot: u32, origin: Origin) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if session.origin == origin {
            return;
        }
        session.origin = origin;
        world.replace(slot, &session.entries(), origin.encode());
        if let Origin::Snat(position) | Origin::Inbound(position) = origin {
            self.mappings.set_rule(session.mapping, position);
        }
    }

    /// What in the rules in force would open a session as it is.
    pub(super) fn allowed_by(&self, slot: u32) -> Option<Origin> {
        let session = self.sessions.get(slot)?;
        let by_rule = |key: &nat_common::FlowKey, external: u32| {
            let position = self.rules.snat.iter().position(|rule| {
                rule.protocols.contains(key.protocol)
                    && rule.source.matches(address(key.source))
                    && rule.destination.matches(address(key.destination))
                    && match &rule.to {
                        crate::config::SnatTarget::Pool(pool) => pool.contains(address(external)),
                        crate::config::SnatTarget::Masquerade => {
                            self.interfaces.values().any(|own| own.addresses.contains(&address(external)))
                        }
                        crate::config::SnatTarget::None => false,
                        crate::config::SnatTarget::Track => external == key.source,
                    }
            })?;
            u16::try_from(position).ok()
        };
        match session.origin {
            // Judged anew by its next packet.
            Origin::Bypass => None,
            Origin::Snat(_) => by_rule(&session.original, session.rewrite.source).map(Origin::Snat),
            Origin::Inbound(_) if session.mapping == NO_MAPPING => None,
            Origin::Inbound(_) => {
                by_rule(&session.key(Direction::Reply), session.original.destination).map(Origin::Inbound)
            }
            Origin::Forward(_) => self
                .rules
                .forward(&session.original, |name, wanted| {
                    self.interfaces.values().any(|own| own.name == name && own.addresses.contains(&wanted))
                })
                .filter(|(_, rule)| network(rule.internal) == session.rewrite.destination)
                .map(|(position, _)| Origin::Forward(position)),
            Origin::Service(_) => {
                let (_, server) = session.server()?;
                let is_address_of = |name: &str, wanted: Ipv4Addr| {
                    self.interfaces.values().any(|own| own.name == name && own.addresses.contains(&wanted))
                };
                let (position, rule) = self.rules.service(&session.original, is_address_of)?;
                let is_there = rule.servers.iter().any(|one| one.address == server);
                (is_there && Carriage::of(rule.method) == session.carriage)
                    .then_some(Origin::Service(position))
            }
            Origin::Static(_) => self
                .rules
                .static_inbound(address(session.original.destination))
                .filter(|(_, inside)| network(*inside) == session.rewrite.destination)
                .map(|(position, _)| Origin::Static(position)),
        }
    }
}

fn session_hop(gateway: &Gateway, slot: u32, direction: Direction) -> u16 {
    gateway.sessions.get(slot).map_or(next_hops::UNKNOWN, |session| session.next_hops[direction as usize])
}
