//! Sessions: who talks to whom, and through which external endpoint.

use nat_common::activity::Activity;
use nat_common::flow::{Action, Rewrite};
use nat_common::{Direction, FlowKey, FlowValue, Realm, tcp, tunnel, wire};

use super::events::Endpoints;
use super::slab::Slab;
use super::view::endpoint;
use crate::config::Method;
use crate::datapath::capacity;

/// No mapping: the session of a forward.
pub const NO_MAPPING: u32 = u32::MAX;

const _: () = assert!(size_of::<Option<Session>>() <= 56, "there are millions of them");

/// A session.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its first packet's key.
    pub original: FlowKey,
    /// What its first packet became. Where it was relayed: from the tunnel's end or itself, to the server.
    pub rewrite: Rewrite,
    /// The mapping that owns its external port, or `NO_MAPPING`.
    pub mapping: u32,
    /// Next hop of each direction.
    pub next_hops: [u16; 2],
    /// The tick of the wheel it is armed for.
    pub armed: u32,
    /// Milliseconds since the gateway's start when it was opened.
    pub opened: u64,
    /// What opened it.
    pub origin: Origin,
    /// How packets of its original direction travel on.
    pub carriage: Carriage,
    /// The side that packets come back from.
    pub answers: Realm,
    /// Whether packets of the reply direction keep it alive.
    pub reply_refreshes: bool,
}

/// How packets of a session's original direction travel on. Those of the reply direction are translated, if they come
/// by at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carriage {
    /// With other addresses or ports.
    Translated,
    /// As they are, to the server.
    Direct,
    /// As they are, inside packets to the server.
    Tunnelled,
}

impl Carriage {
    /// What a service's method asks for.
    pub fn of(method: Method) -> Self {
        match method {
            Method::Nat => Self::Translated,
            Method::DirectRouting => Self::Direct,
            Method::Tunnel => Self::Tunnelled,
        }
    }

    /// Whether answers go past the gateway.
    pub fn is_relay(self) -> bool {
        self != Self::Translated
    }

    /// How much longer packets become.
    pub fn overhead(self) -> u32 {
        if self == Self::Tunnelled { tunnel::OVERHEAD.into() } else { 0 }
    }
}

/// What let a session be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An snat rule, by position; outbound or towards whoever it hides from.
    Snat(u16),
    /// A mapping of an snat rule, from outside.
    Inbound(u16),
    /// A forward, by position.
    Forward(u16),
    /// A one-to-one rule, by position: only where the fast path could not do without (hairpin).
    Static(u16),
    /// A virtual server, by position.
    Service(u16),
    /// No rule: plain routing, remembered so that it is not asked again.
    Bypass,
}

impl Session {
    /// The key of packets of a direction as they arrive.
    pub fn key(&self, direction: Direction) -> FlowKey {
        match direction {
            Direction::Original => self.original,
            // A server that packets are relayed to answers from the address they were sent to.
            Direction::Reply if self.carriage.is_relay() => self.original.reversed(self.answers),
            Direction::Reply => Self::reply_key(&self.original, &self.rewrite, self.answers),
        }
    }

    /// Both keys.
    pub fn keys(&self) -> [FlowKey; 2] {
        Direction::BOTH.map(|direction| self.key(direction))
    }

    /// What packets of a direction become.
    pub fn rewritten(&self, direction: Direction) -> Rewrite {
        match direction {
            Direction::Original => self.rewrite,
            Direction::Reply => Rewrite {
                source: self.original.destination,
                destination: self.original.source,
                source_port: self.original.destination_port,
                destination_port: self.original.source_port,
            },
        }
    }

    /// The server of a service's session, as its own endpoint.
    pub fn server(&self) -> Option<(u16, std::net::SocketAddrV4)> {
        let Origin::Service(position) = self.origin else { return None };
        let Rewrite { destination, destination_port, .. } = self.rewrite;
        let host = super::address(destination);
        Some((position, std::net::SocketAddrV4::new(host, u16::from_be(destination_port))))
    }

    /// The inside host whose limit it counts for, if it counts for any.
    pub fn limited_source(&self) -> Option<u32> {
        match self.origin {
            Origin::Snat(_) => Some(self.original.source),
            Origin::Inbound(_) | Origin::Forward(_) => Some(self.rewrite.destination),
            Origin::Static(_) | Origin::Service(_) | Origin::Bypass => None,
        }
    }

    /// Whether the inside host opened it.
    pub fn is_outbound(&self) -> bool {
        matches!(self.origin, Origin::Snat(_))
    }

    /// Its ends as the inside host has them: its packets are the original direction of a session it opened, the
    /// reply direction of one opened to it. For ICMP the identifier stands in the port's place.
    pub fn endpoints(&self) -> Endpoints {
        let from_inside = if self.is_outbound() { Direction::Original } else { Direction::Reply };
        let (key, rewritten) = (self.key(from_inside), self.rewritten(from_inside));
        let icmp = key.protocol == wire::ICMP;
        let inside_port = if icmp { key.source_port | key.destination_port } else { key.source_port };
        let outside_port =
            if icmp { rewritten.source_port | rewritten.destination_port } else { rewritten.source_port };
        let remote_port = if icmp { outside_port } else { rewritten.destination_port };
        let remote_inside_port = if icmp { inside_port } else { key.destination_port };
        Endpoints {
            protocol: key.protocol,
            // A server that packets are relayed to is known by its own address, not by the one it answers from.
            inside: match self.server() {
                Some((_, server)) => server,
                None => endpoint(key.source, inside_port),
            },
            outside: endpoint(rewritten.source, outside_port),
            remote: endpoint(rewritten.destination, remote_port),
            remote_inside: endpoint(key.destination, remote_inside_port),
        }
    }

    /// The table entry of a direction.
    pub fn value(&self, direction: Direction) -> FlowValue {
        if self.origin == Origin::Bypass {
            return FlowValue::bypass();
        }
        let hop = self.next_hops[direction as usize];
        let action = match (direction, self.carriage) {
            (Direction::Reply, _) | (_, Carriage::Translated) => Action::Translate,
            (_, Carriage::Direct) => Action::Direct,
            (_, Carriage::Tunnelled) => Action::Tunnel,
        };
        if action != Action::Translate {
            return FlowValue::relay(action, &self.rewrite, hop);
        }
        FlowValue::translate(&self.key(direction), &self.rewritten(direction), hop)
    }

    /// The state of a TCP session.
    pub fn tcp_state(&self, line: &Activity) -> tcp::State {
        let [original, reply] = &line.directions;
        if self.carriage.is_relay() && reply.packets == 0 {
            return tcp::state_of_opener(original.seen);
        }
        tcp::state(original.seen, reply.seen)
    }

    /// Both entries.
    pub fn entries(&self) -> [(FlowKey, FlowValue); 2] {
        Direction::BOTH.map(|direction| (self.key(direction), self.value(direction)))
    }

    /// The key under which packets of `rewrite`, turned round, arrive on `realm`.
    pub fn reply_key(original: &FlowKey, rewrite: &Rewrite, realm: Realm) -> FlowKey {
        let sent = FlowKey {
            source: rewrite.source,
            destination: rewrite.destination,
            source_port: rewrite.source_port,
            destination_port: rewrite.destination_port,
            ..*original
        };
        sent.reversed(realm)
    }
}

/// The sessions, by slot. Which session a key is of the flow table knows, see [`super::World::find`].
#[derive(Default)]
pub struct SessionTable {
    slots: Slab<Session>,
    count: u32,
    limit: u32,
    /// Which slots the program may open a session in, and how many they are.
    lent: Vec<bool>,
    lent_count: u32,
}

impl SessionTable {
    /// An empty table for at most `limit` sessions.
    pub fn new(limit: u32) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Sessions there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether no more fit.
    pub fn is_full(&self) -> bool {
        self.count >= self.limit || !self.slots.has_room(capacity(self.limit))
    }

    /// The most there may be.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// The session in a slot.
    pub fn get(&self, slot: u32) -> Option<&Session> {
        self.slots.get(slot)
    }

    /// The session in a slot, to change its timers and next hops (never its keys).
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Session> {
        self.slots.get_mut(slot)
    }

    /// Puts a session in, whose keys nobody has. `None` if the table is full.
    pub fn insert(&mut self, session: Session) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let slot = self.slots.reserve(capacity(self.limit))?;
        self.slots.put(slot, session);
        self.count += 1;
        Some(slot)
    }

    /// Sets a slot aside for the program to open a session in. None if there is none.
    pub fn lend(&mut self) -> Option<u32> {
        let slot = self.slots.reserve(capacity(self.limit))?;
        self.lent.resize(self.slots.length() as usize, false);
        self.lent[slot as usize] = true;
        self.lent_count += 1;
        Some(slot)
    }

    /// Slots that are set aside for the program.
    pub fn lent(&self) -> u32 {
        self.lent_count
    }

    /// Whether a slot is set aside for the program.
    pub fn is_lent(&self, slot: u32) -> bool {
        self.lent.get(slot as usize).is_some_and(|lent| *lent)
    }

    /// A slot that was lent holds nothing after all.
    pub fn forget(&mut self, slot: u32) {
        if let Some(lent) = self.lent.get_mut(slot as usize).filter(|lent| **lent) {
            *lent = false;
            self.lent_count -= 1;
        }
    }

    /// Puts the session that the program has opened into the slot that it was lent.
    pub fn adopt(&mut self, slot: u32, session: Session) {
        self.forget(slot);
        self.slots.put(slot, session);
        self.count += 1;
    }

    /// Puts a session into a certain slot, as a restart finds it. `false` if it cannot be had.
    pub fn restore(&mut self, slot: u32, session: Session) -> bool {
        if slot >= capacity(self.limit) || self.get(slot).is_some() {
            return false;
        }
        self.slots.extend(slot + 1);
        self.slots.put(slot, session);
        self.count += 1;
        true
    }

    /// After [`SessionTable::restore`]: brings the free list in order with what is there.
    pub fn finish_restore(&mut self) {
        self.slots.free_the_rest();
    }

    /// Takes a session out. Its slot is not given to another before it is [reused](SessionTable::reuse).
    pub fn remove(&mut self, slot: u32) -> Option<Session> {
        let session = self.slots.take(slot)?;
        self.count -= 1;
        Some(session)
    }

    /// Slots whose sessions are gone, for packets on their way, too, or that were lent in vain.
    pub fn reuse(&mut self, slots: Vec<u32>) {
        for &slot in &slots {
            self.forget(slot);
        }
        self.slots.give_back(slots);
    }

    /// Slots there may be sessions in.
    pub fn slots(&self) -> u32 {
        self.slots.length()
    }

    /// Every session with its slot.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Session)> {
        self.slots.iter()
    }
}
