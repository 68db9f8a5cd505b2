//! What can be seen of the gateway from outside: sessions, pools, counts.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use crate::hash::HashMap;
use nat_common::{Direction, wire};

use super::events::Endpoints;
use super::sessions::{Origin, Session};
use super::world::World;
use super::{Gateway, address};
use crate::config::Filtering;

/// A session as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Its slot.
    pub slot: u32,
    /// IP protocol.
    pub protocol: u8,
    /// The inside endpoint; for ICMP the identifier stands in the port's place, here and below.
    pub inside: SocketAddrV4,
    /// The external endpoint.
    pub outside: SocketAddrV4,
    /// The remote as it is.
    pub remote: SocketAddrV4,
    /// The remote as the inside host sees it.
    pub remote_inside: SocketAddrV4,
    /// Opened from the inside.
    pub outbound: bool,
    /// State, in a word.
    pub state: &'static str,
    /// Seconds left if nothing comes.
    pub expires_in: u64,
    /// Seconds since it was opened.
    pub age: u64,
    /// Packets and bytes from the inside, then to it.
    pub packets: [u64; 2],
    /// See `packets`.
    pub bytes: [u64; 2],
    /// Name of its rule.
    pub rule: String,
    /// Whom its mapping lets in, in a word.
    pub filtering: Option<&'static str>,
}

/// What a session has carried, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTotals {
    /// When it was opened, in milliseconds from the start: another session in the same slot has another.
    pub opened: u64,
    /// The inside host.
    pub inside: Ipv4Addr,
    /// The remote.
    pub remote: Ipv4Addr,
    /// What opened it.
    pub origin: Origin,
    /// Packets and bytes from the inside, then to it.
    pub packets: [u64; 2],
    /// See `packets`.
    pub bytes: [u64; 2],
}

/// Ports of an external address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// The address.
    pub address: Ipv4Addr,
    /// The interface that has it, if one has.
    pub interface: Option<String>,
    /// IP protocol.
    pub protocol: u8,
    /// Ports in use, free, resting.
    pub used: u32,
    /// See `used`.
    pub free: u32,
    /// See `used`.
    pub quarantined: u32,
}

impl Gateway {
    /// Slots to ask [`Gateway::session`] for, from 0.
    pub fn session_slots(&self) -> u32 {
        self.sessions.slots()
    }

    /// Translated sessions there are.
    pub fn session_count(&self) -> u32 {
        self.sessions.count()
    }

    /// The most sessions there may be.
    pub fn session_limit(&self) -> u32 {
        self.sessions.limit()
    }

    /// Mappings there are.
    pub fn mapping_count(&self) -> usize {
        self.mappings.count()
    }

    /// Frames that wait for a neighbour.
    pub fn held(&self) -> usize {
        self.holds.count()
    }

    /// Fragments that wait for their first.
    pub fn waiting_fragments(&self) -> usize {
        self.datagrams.waiting()
    }

    /// The session in a slot. Flows that are plain routing are not shown.
    pub fn session(&self, world: &dyn World, now: Instant, slot: u32) -> Option<SessionView> {
        let session = self.sessions.get(slot)?;
        if session.origin == Origin::Bypass {
            return None;
        }
        let line = world.activity(slot);
        let outbound = session.is_outbound();
        let (from_inside, to_inside) = if outbound {
            (Direction::Original, Direction::Reply)
        } else {
            (Direction::Reply, Direction::Original)
        };
        let [sent, received] = [&line.directions[from_inside as usize], &line.directions[to_inside as usize]];
        let Endpoints { protocol, inside, outside, remote, remote_inside } = session.endpoints();
        let age = now.saturating_duration_since(self.started).as_millis();
        let age = u64::try_from(age).unwrap_or(u64::MAX).saturating_sub(session.opened) / 1000;
        Some(SessionView {
            slot,
            protocol,
            inside,
            outside,
            remote,
            remote_inside,
            outbound,
            state: state(session, &line),
            expires_in: self.time_left(world, session, &line).as_secs(),
            age,
            packets: [sent.packets, received.packets],
            bytes: [sent.bytes, received.bytes],
            rule: self.rules.name(session.origin),
            filtering: self.rules.filtering(session.origin).map(Filtering::name),
        })
    }

    /// What the session in a slot has carried: for those who look at all of them, again and again.
    pub fn totals(&self, world: &dyn World, slot: u32) -> Option<FlowTotals> {
        let session = self.sessions.get(slot).filter(|session| session.origin != Origin::Bypass)?;
        let [original, reply] = world.activity(slot).directions;
        let [sent, received] = if session.is_outbound() { [original, reply] } else { [reply, original] };
        let ends = session.endpoints();
        Some(FlowTotals {
            opened: session.opened,
            inside: *ends.inside.ip(),
            remote: *ends.remote.ip(),
            origin: session.origin,
            packets: [sent.packets, received.packets],
            bytes: [sent.bytes, received.bytes],
        })
    }

    /// Sessions opened by each rule, by its name.
    pub fn sessions_by_rule(&self) -> HashMap<String, u64> {
        let mut counts = HashMap::default();
        let mut by_origin = HashMap::default();
        for (_, session) in self.sessions.iter() {
            *by_origin.entry(session.origin).or_insert(0u64) += 1;
        }
        for (origin, count) in by_origin {
            *counts.entry(self.rules.name(origin)).or_insert(0) += count;
        }
        counts
    }

    /// Sessions a rule has opened since the start.
    pub fn opened_by_rule(&self, name: &str) -> u64 {
        self.opened
            .iter()
            .filter(|(origin, _)| self.rules.name(**origin) == name)
            .map(|(_, count)| count)
            .sum()
    }

    /// Every service and its servers, without the packets and bytes of sessions there are: whatever their number, in
    /// no time.
    pub fn service_counts(&self, now: Instant) -> Vec<super::ServiceView> {
        self.services.view(now, std::iter::empty())
    }

    /// Every service and its servers.
    pub fn services(&self, world: &dyn World, now: Instant) -> Vec<super::ServiceView> {
        let live = self.sessions.iter().filter_map(|(slot, session)| {
            let (position, server) = session.server()?;
            Some((position, server, world.activity(slot)))
        });
        self.services.view(now, live)
    }

    /// Sessions opened since the start, by rules of a name.
    pub fn opened(&self) -> HashMap<String, u64> {
        let mut opened = HashMap::default();
        for (origin, count) in &self.opened {
            *opened.entry(self.rules.name(*origin)).or_default() += count;
        }
        opened
    }

    /// Brings up to date what time alone changes, before somebody looks.
    pub fn before_a_look(&mut self, now: Instant) {
        self.externals.release_rested(now);
    }

    /// Every external address in use, and its ports.
    pub fn pools(&self) -> Vec<PoolUse> {
        let mut pools: Vec<PoolUse> = self
            .externals
            .usage()
            .map(|(own, protocol, [used, free, quarantined])| PoolUse {
                address: own,
                interface: self
                    .interfaces
                    .values()
                    .find(|interface| interface.addresses.contains(&own))
                    .map(|interface| interface.name.clone()),
                protocol,
                used,
                free,
                quarantined,
            })
            .collect();
        pools.sort_by_key(|pool| (pool.address, pool.protocol));
        pools
    }
}

/// An endpoint of what is in network byte order.
pub(crate) fn endpoint(host: u32, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address(host), u16::from_be(port))
}

fn state(session: &Session, line: &nat_common::activity::Activity) -> &'static str {
    if session.original.protocol == wire::TCP { session.tcp_state(line).name() } else { "active" }
}
