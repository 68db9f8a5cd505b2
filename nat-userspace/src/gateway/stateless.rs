//! One-to-one NAT in the daemon: what the fast path could not send by itself (no neighbour yet,
//! forwarding off, TTL, size, hairpin). The same bytes come out, and no table entry is made but
//! for hairpins, where both ends change.

use std::sync::Arc;
use std::time::Instant;

use nat_common::flow::Rewrite;
use nat_common::{FlowValue, Parsed, Realm, Reason, next_hop::NextHop};

use super::icmp::Error;
use super::known::finish;
use super::sessions::{Carriage, NO_MAPPING, Origin, Session};
use super::world::{RouteKind, RouteQuery, World};
use super::{Gateway, Interface, Outcome, address, network};
use crate::config::Side;

impl Gateway {
    /// Judges a packet by the one-to-one rules. `None` if none concerns it.
    pub(super) fn one_to_one(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        parsed: &Parsed,
    ) -> Option<Outcome> {
        let key = &parsed.key;
        let inbound = self.rules.static_inbound(address(key.destination));
        if let Some((position, inside)) = inbound {
            if ingress.realm() == Realm::Inside {
                return Some(self.static_hairpin(world, now, ingress, frame, parsed, position, inside));
            }
            let rewrite = Rewrite { destination: network(inside), ..same(key) };
            return Some(self.send_stateless(world, now, ingress, frame, parsed, rewrite));
        }
        if ingress.realm() == Realm::Outside || world.is_local(address(key.destination)) {
            return None;
        }
        let (_, external) = self.rules.static_outbound(address(key.source))?;
        let query = RouteQuery {
            source: address(key.source),
            destination: address(key.destination),
            ingress: ingress.ifindex,
        };
        let egress = world.route(query).ok().and_then(|route| self.interfaces.get(&route.ifindex));
        if egress.is_some_and(|egress| egress.side == Side::Inside) {
            return Some(Outcome::ToStack);
        }
        let rewrite = Rewrite { source: network(external), ..same(key) };
        Some(self.send_stateless(world, now, ingress, frame, parsed, rewrite))
    }

    /// Sends a packet between new ends.
    fn send_stateless(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        parsed: &Parsed,
        rewrite: Rewrite,
    ) -> Outcome {
        match self.stateless_way(world, now, ingress, frame, parsed, rewrite.destination) {
            // An inside host whose link is down is not to be found at the end of the default route.
            Ok((_, egress))
                if rewrite.destination != parsed.key.destination && egress.realm() == Realm::Outside =>
            {
                Outcome::Drop(Reason::DropNoRoute)
            }
            Ok((hop, _)) => {
                let value = FlowValue::translate(&parsed.key, &rewrite, 0);
                self.clamp_mss(ingress, &hop, frame, parsed);
                let outcome = finish(frame, parsed, &value, &hop, None);
                self.cut_to_size(frame, parsed, &hop, outcome)
            }
            Err(outcome) => outcome,
        }
    }

    /// The next hop to a destination, or what becomes of the packet.
    pub(super) fn stateless_way(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &[u8],
        parsed: &Parsed,
        destination: u32,
    ) -> Result<(NextHop, Arc<Interface>), Outcome> {
        if parsed.ttl <= 1 {
            return Err(self.answer(now, ingress, frame, parsed, Error::TtlExceeded, Reason::DropTtl));
        }
        let query = RouteQuery {
            source: address(parsed.key.source),
            destination: address(destination),
            ingress: ingress.ifindex,
        };
        let route = match world.route(query) {
            Ok(route) if route.kind == RouteKind::Unicast => route,
            Ok(_) => return Err(Outcome::Drop(Reason::DropNoRoute)),
            Err(_) => {
                let error = Error::NetworkUnreachable;
                return Err(self.answer(now, ingress, frame, parsed, error, Reason::DropNoRoute));
            }
        };
        let Some(egress) = self.interfaces.get(&route.ifindex).cloned() else {
            return Err(Outcome::Drop(Reason::DropNoRoute));
        };
        let slot = self.next_hops.slot(world, &egress, route.neighbour(address(destination)), route.mtu);
        let hop = self.passable(world, now, ingress, frame, parsed, slot)?;
        Ok((hop, egress))
    }

    /// From an inside host to another's one-to-one address (RFC 5508 REQ-7, behaviour HPN-04):
    /// both see each other's external address.
    #[expect(clippy::too_many_arguments, reason = "a frame and everything known of it")]
    fn static_hairpin(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        parsed: &Parsed,
        position: u16,
        inside: std::net::Ipv4Addr,
    ) -> Outcome {
        let key = parsed.key;
        let query = RouteQuery { source: address(key.source), destination: inside, ingress: 0 };
        let Some((route, egress)) = world
            .route(query)
            .ok()
            .and_then(|route| Some((route, self.interfaces.get(&route.ifindex).cloned()?)))
        else {
            return Outcome::Drop(Reason::DropNoRoute);
        };
        let mut rewrite = Rewrite { destination: network(inside), ..same(&key) };
        if let Some((_, own)) = self.rules.static_outbound(address(key.source)) {
            rewrite.source = network(own);
        } else if let Some((rule_position, rule)) = self.rules.hairpin(&key) {
            let rule = rule.clone();
            let outside = self.interfaces.values().find(|interface| interface.side == Side::Outside).cloned();
            let Some(outside) = outside else { return Outcome::Drop(Reason::DropNoAddress) };
            match self.mapping_for(world, now, &key, rule_position, &rule, &outside, None) {
                Ok((slot, external, port)) => {
                    self.mappings.hold(slot, key.destination);
                    self.hairpins.insert(key, slot);
                    rewrite.source = external;
                    rewrite.source_port = port;
                }
                Err(refusal) => return self.refuse(world, now, ingress, frame, parsed, refusal),
            }
        }
        let next_hops = [
            self.next_hops.slot(world, &egress, route.neighbour(inside), route.mtu),
            self.way_back(world, ingress, key.source),
        ];
        let session = Session {
            original: key,
            rewrite,
            mapping: NO_MAPPING,
            next_hops,
            carriage: Carriage::Translated,
            armed: 0,
            opened: 0,
            origin: Origin::Static(position),
            answers: egress.realm(),
            reply_refreshes: true,
        };
        match self.enter(world, now, session) {
            Some((slot, direction)) => self.known(world, now, ingress, frame, parsed, slot, direction),
            None => Outcome::Drop(Reason::DropTable),
        }
    }
}

/// The ends as they are.
fn same(key: &nat_common::FlowKey) -> Rewrite {
    Rewrite {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
    }
}
