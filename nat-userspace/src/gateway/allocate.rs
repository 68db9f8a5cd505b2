//! An external port for a mapping: of the rule's ports, of a subscriber's own block, or of a block beyond
//! it (RFC 7422 section 2).

use std::time::Instant;

use nat_common::{FlowKey, Realm};

use super::events::{Block, Happening};
use super::externals::Wish;
use super::open::{has_ports, shared_reply};
use super::ports::Ports;
use super::world::World;
use super::{Gateway, address};
use crate::config::{Mapping as Behaviour, PortRange, SnatRule};

/// A mapping that wants a port.
pub(super) struct Claim<'a> {
    /// The packet that asks for it.
    pub(super) key: &'a FlowKey,
    /// The inside endpoint, network byte order.
    pub(super) inside: (u32, u16),
    /// The rule, and its position.
    pub(super) rule: &'a SnatRule,
    pub(super) position: u16,
    /// The side it is to be seen on.
    pub(super) realm: Realm,
}

impl Gateway {
    /// A port of an external address, host byte order; 0 for protocols that have none.
    pub(super) fn port_on(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        claim: &Claim<'_>,
        external: u32,
    ) -> Option<u16> {
        if !has_ports(claim.key.protocol) {
            return Some(0);
        }
        let ports = self.rules.ports_of(claim.position, claim.rule, address(claim.inside.0), external);
        let found = self.port_within(world, now, claim, external, ports);
        found.or_else(|| self.port_beyond(world, now, claim, external))
    }

    /// A port of some of an address's.
    fn port_within(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        claim: &Claim<'_>,
        external: u32,
        ports: Ports,
    ) -> Option<u16> {
        let protocol = claim.key.protocol;
        let wish = Wish {
            protocol,
            address: external,
            port: u16::from_be(claim.inside.1),
            ports,
            holder: claim.inside,
        };
        if claim.rule.mapping != Behaviour::EndpointDependent {
            let mut usable = |port: u16| !world.is_bound(protocol, external, port.to_be());
            return self.externals.take(&wish, now, &mut usable);
        }
        self.externals.share(&wish, &mut |port| {
            !world.is_bound(protocol, external, port.to_be())
                && world.find(&shared_reply(claim.key, external, port, claim.realm)).is_none()
        })
    }

    /// A port of a block beyond the subscriber's own: of one that he has, else of a new one.
    fn port_beyond(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        claim: &Claim<'_>,
        external: u32,
    ) -> Option<u16> {
        let beyond = claim.rule.beyond()?;
        let inside = claim.inside.0;
        let held = self.blocks.of(inside, external);
        for block in &held {
            if let Some(port) = self.port_within(world, now, claim, external, (*block).into()) {
                self.blocks.hold(external, port);
                return Some(port);
            }
        }
        let (_, own) = claim.rule.block(address(inside))?;
        let has: u32 = held.iter().chain([&own]).map(|ports| ports.len()).sum();
        if beyond.most > 0 && has + u32::from(beyond.size) > beyond.most {
            return None;
        }
        let block = self.blocks.take(inside, external, beyond.within, beyond.size, &mut self.random)?;
        let Some(port) = self.port_within(world, now, claim, external, block.into()) else {
            // All of it rests, or is the gateway's own.
            self.blocks.give_back(external, block.first);
            return None;
        };
        self.blocks.hold(external, port);
        self.events.add(now, Happening::BlockTaken(recorded(inside, external, block)));
        Some(port)
    }

    /// A mapping less has a port: with the last, its block is nobody's.
    pub(super) fn let_go_of_block(&mut self, now: Instant, external: u32, port: u16) {
        if let Some((inside, block)) = self.blocks.release(external, port) {
            self.events.add(now, Happening::BlockReleased(recorded(inside, external, block)));
        }
    }

    /// The ports among which a mapping that a restart finds has its own: a block beyond its host's is his again.
    pub(super) fn restored_ports(
        &mut self,
        position: u16,
        rule: &SnatRule,
        inside: u32,
        external: u32,
        port: u16,
    ) -> Ports {
        let ports = self.rules.ports_of(position, rule, address(inside), external);
        if ports.contains(port) {
            return ports;
        }
        let block = rule
            .beyond()
            .and_then(|beyond| self.blocks.adopt(inside, external, beyond.within, beyond.size, port));
        block.map_or(ports, Into::into)
    }
}

fn recorded(inside: u32, external: u32, ports: PortRange) -> Block {
    Block { inside: address(inside), outside: address(external), ports }
}
