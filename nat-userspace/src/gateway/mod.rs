//! The gateway core: a frame in, what to do with it out. Sans I/O: the clock is an argument, the
//! kernel's tables and the host's routes are behind [`World`].
//!
//! In the order a packet meets them: [`handle`](Gateway::handle) here, `known` for packets of a
//! session, `open` for first packets, `inbound` for mappings and forwards, `stateless` for
//! one-to-one, `errors` for ICMP errors, `fragments`. Beside it `expire` (timers, events) and
//! `changes` (interfaces, addresses, routes, neighbours).

mod allocate;
mod blocks;
mod changes;
mod cut;
mod datagrams;
mod delegate;
mod errors;
mod events;
mod expire;
mod explain;
mod externals;
mod fragments;
mod hold;
mod icmp;
mod inbound;
mod knocks;
mod known;
mod leases;
mod limits;
mod mappings;
mod mss;
mod next_hops;
mod notices;
mod open;
mod owners;
mod ports;
mod random;
mod records;
mod relay;
mod reset;
mod restore;
mod rules;
mod services;
mod sessions;
mod slab;
mod stateless;
mod steps;
mod thresholds;
mod view;
mod wheel;
mod world;

use crate::hash::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::Ipv4Net;
use nat_common::classify::{is_group, is_martian_destination, is_martian_source};
use nat_common::flow::is_partial;
use nat_common::frame::{Frame as _, SliceFrame};
use nat_common::parse::{Frames, Kind};
use nat_common::tcp::{self, State};
use nat_common::vlan::Tags;
use nat_common::wire;
use nat_common::{Direction, FlowKey, Parsed, Realm, Reason, parse};

pub use self::changes::Reloaded;
pub use self::events::{AddressPair, Binding, Block, Endpoints, Event, Events, Happening, Quota, Threshold};
pub use self::explain::Explained;
pub use self::notices::{Condition, Notice};
pub use self::random::Random;
pub use self::rules::{Rules, address, network};
pub use self::services::{ServerView, ServiceView};
pub use self::sessions::{Origin, Session};
pub use self::steps::{Step, Stepped};
pub(crate) use self::view::endpoint;
pub use self::view::{FlowTotals, PoolUse, SessionView};
pub use self::world::World;
use crate::config::{Config, Side, Timeouts};

/// An interface the gateway serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Kernel index.
    pub ifindex: u32,
    /// Kernel name.
    pub name: String,
    /// Which side it faces.
    pub side: Side,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Largest IPv4 packet, bytes.
    pub mtu: u32,
    /// Up, with carrier.
    pub up: bool,
    /// Slot in the device map.
    pub port: u16,
    /// Takes redirected frames.
    pub redirects: bool,
    /// Hands up partial checksums.
    pub is_virtual: bool,
    /// The tags of its VLAN.
    pub tags: Tags,
    /// The largest MSS that SYNs which come or leave by it may announce.
    pub mss_clamp: Option<u16>,
    /// Its IPv4 addresses, primary first.
    pub addresses: Vec<Ipv4Addr>,
    /// The networks on its link.
    pub networks: Vec<Ipv4Net>,
}

impl Interface {
    /// The realm of packets that arrive here.
    pub fn realm(&self) -> Realm {
        match self.side {
            Side::Inside => Realm::Inside,
            Side::Outside => Realm::Outside,
        }
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Rewritten in place: to be sent.
    Send {
        /// The interface to send it out of.
        ifindex: u32,
        /// The session it opened or belongs to, if one: should its table entries fail, the frame
        /// must not be sent.
        session: Option<u32>,
    },
    /// What is to be sent of it is among the emissions: it had to be cut.
    Cut,
    /// The gateway's own: hand it to the stack, untouched.
    ToStack,
    /// Kept (a copy), for a neighbour or a fragment.
    Held,
    /// Ends here.
    Drop(Reason),
}

/// A frame the core sends beside the one it was given: an ICMP error, a fragment that waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emission {
    /// Interface to send it out of.
    pub ifindex: u32,
    /// The frame.
    pub frame: Vec<u8>,
}

/// Counts of what the core did, by reason.
#[derive(Clone, Debug, Default)]
pub struct Counts(HashMap<Reason, u64>);

impl Counts {
    /// One more.
    pub fn add(&mut self, reason: Reason) {
        *self.0.entry(reason).or_default() += 1;
    }

    /// How many.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.get(&reason).copied().unwrap_or(0)
    }
}

/// ICMP errors the gateway sends in a second (RFC 1812 section 4.3.2.8, RFC 5508 REQ-10f).
const ERRORS_PER_SECOND: u32 = 1000;

/// The gateway.
pub struct Gateway {
    started: Instant,
    rules: Rules,
    timeouts: Timeouts,
    interfaces: HashMap<u32, Arc<Interface>>,
    sessions: sessions::SessionTable,
    mappings: mappings::MappingTable,
    /// The most there may be; 0 for any number.
    mappings_limit: u32,
    externals: externals::Externals,
    blocks: blocks::Blocks,
    next_hops: next_hops::NextHops,
    holds: hold::Holds,
    datagrams: datagrams::Datagrams,
    wheel: wheel::Wheel,
    /// What the program may open by itself; nothing if none.
    delegation: Option<delegate::Delegation>,
    sources: limits::Sources,
    errors: limits::Bucket,
    /// ICMP errors that may be about a socket of the gateway that is too new to be known.
    doubtful: limits::Bucket,
    identifications: cut::Identifications,
    random: Random,
    /// Mappings that the sources of hairpinned sessions have, by the sessions' first keys.
    hairpins: HashMap<FlowKey, u32>,
    knocks: knocks::Knocks,
    services: services::Services,
    /// Sessions whose first packets found no neighbour.
    unreachable: Vec<u32>,
    /// Frames to send beside what `handle` returns; the caller drains it.
    pub emissions: Vec<Emission>,
    /// Where frames that were held are told of: the caller sends or injects them.
    pub released: Vec<Released>,
    notices: notices::Notices,
    thresholds: thresholds::Thresholds,
    steps: steps::Steps,
    /// What has happened, for those who record it; the caller takes it.
    pub events: Events,
    /// What the last refused flow was short of.
    shortage: Shortage,
    counts: Counts,
    /// Sessions opened since the start, by rule.
    opened: HashMap<Origin, u64>,
}

/// What there was nothing left of.
#[derive(Clone, Copy, Debug, Default)]
struct Shortage {
    /// The external address without ports, network byte order.
    external: u32,
    /// The position of the rule.
    rule: u16,
}

/// A frame that waited and is now finished.
#[derive(Debug)]
pub struct Released {
    /// Where it had come in.
    pub ingress: u32,
    /// The frame as it came.
    pub came: Vec<u8>,
    /// The frame, rewritten if it is to be sent.
    pub frame: Vec<u8>,
    /// What becomes of it.
    pub outcome: Outcome,
}

impl Gateway {
    /// A gateway without interfaces or sessions.
    pub fn new(config: &Config, now: Instant, mut random: Random) -> Self {
        let rules = Rules::new(config);
        Self {
            started: now,
            services: services::Services::new(&rules.services, now),
            rules,
            timeouts: config.timeouts.clone(),
            interfaces: HashMap::default(),
            sessions: sessions::SessionTable::new(config.limits.sessions),
            mappings: mappings::MappingTable::default(),
            mappings_limit: config.limits.mappings,
            externals: externals::Externals::new(config.timeouts.quarantine, random.split()),
            blocks: blocks::Blocks::default(),
            next_hops: next_hops::NextHops::new(),
            holds: hold::Holds::default(),
            datagrams: datagrams::Datagrams::new(config.timeouts.fragment),
            wheel: wheel::Wheel::new(now),
            delegation: None,
            sources: limits::Sources::new(
                config.limits.sources,
                config.limits.sessions_per_source,
                config.limits.new_per_second_per_source,
            ),
            errors: limits::Bucket::new(ERRORS_PER_SECOND, now),
            doubtful: limits::Bucket::new(ERRORS_PER_SECOND, now),
            identifications: cut::Identifications::default(),
            random,
            hairpins: HashMap::default(),
            knocks: knocks::Knocks::default(),
            unreachable: Vec::new(),
            emissions: Vec::new(),
            released: Vec::new(),
            notices: notices::Notices::default(),
            thresholds: thresholds::Thresholds::new(config.log.threshold),
            steps: steps::Steps::default(),
            events: Events::default(),
            shortage: Shortage::default(),
            counts: Counts::default(),
            opened: HashMap::default(),
        }
    }

    /// Judges a frame that arrived on `ingress`. It must lie at an even address. A frame to be
    /// sent has been rewritten in place; one held or for the stack is as it was (but for a
    /// checksum that its sender had left to an offload, which is finished).
    pub fn handle(&mut self, world: &mut dyn World, now: Instant, ingress: u32, frame: &mut [u8]) -> Outcome {
        let outcome = self.judge(world, now, ingress, frame);
        if let Outcome::Drop(reason) = outcome {
            self.counts.add(reason);
        }
        outcome
    }

    /// Asks memory for what a packet that is about to be handled will need first. Of many packets, all are asked for
    /// before the first is handled: memory answers many questions in the time of one.
    pub fn expect(&self, world: &dyn World, ingress: u32, frame: &mut [u8]) {
        let Some(interface) = self.interfaces.get(&ingress) else { return };
        let Some(view) = SliceFrame::new(frame) else { return };
        if let Frames::Ipv4(Parsed { key, kind: Kind::Ported, .. }) = parse(&view, interface.realm()) {
            world.expect(&key);
            if let Some(delegation) = &self.delegation {
                delegation.expect(&key);
            }
        }
    }

    fn judge(&mut self, world: &mut dyn World, now: Instant, ingress: u32, frame: &mut [u8]) -> Outcome {
        let Some(interface) = self.interfaces.get(&ingress).cloned() else { return Outcome::ToStack };
        let Some(view) = SliceFrame::new(frame) else { return Outcome::Drop(Reason::DropTruncated) };
        let parsed = match parse(&view, interface.realm()) {
            Frames::Ipv4(parsed) => parsed,
            Frames::Other => return Outcome::ToStack,
            Frames::Bad(reason) => return Outcome::Drop(reason),
        };
        if interface.is_virtual {
            finish_checksum(frame, &parsed);
        }
        match parsed.kind {
            Kind::FirstFragment | Kind::LaterFragment => {
                self.fragment(world, now, &interface, frame, &parsed)
            }
            Kind::IcmpOther => self.icmp_error(world, now, &interface, frame, &parsed),
            Kind::Ported | Kind::Portless => self.packet(world, now, &interface, frame, &parsed),
        }
    }

    /// Judges a whole packet, in the order of the configuration: session, one-to-one, mapping and
    /// forward, rule.
    fn packet(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        parsed: &Parsed,
    ) -> Outcome {
        if let Some((slot, direction)) = self.find(world, now, &parsed.key) {
            if !self.is_to_be_scheduled(world, slot, direction, parsed) {
                return self.known(world, now, ingress, frame, parsed, slot, direction);
            }
            self.end(world, now, slot);
        }
        if let Some(outcome) = self.refuse_at_sight(world, ingress, &parsed.key) {
            return outcome;
        }
        let destination = parsed.key.destination;
        if let Some(outcome) = self.one_to_one(world, now, ingress, frame, parsed) {
            return outcome;
        }
        let opened = if world.is_local(address(destination)) || self.is_external(destination) {
            self.open_inbound(world, now, ingress, parsed)
        } else {
            self.open_outbound(world, now, ingress, frame, parsed)
        };
        match opened {
            Ok((slot, direction)) => self.known(world, now, ingress, frame, parsed, slot, direction),
            Err(refusal) => self.refuse(world, now, ingress, frame, parsed, refusal),
        }
    }

    /// Whether a client of a virtual server uses the port of a connection that is over once more, or knocks again at a
    /// server that takes nothing new by now: the connection that begins is given to a server like any other
    /// (behaviour LBS-17).
    fn is_to_be_scheduled(
        &self,
        world: &mut dyn World,
        slot: u32,
        direction: Direction,
        parsed: &Parsed,
    ) -> bool {
        let is_syn = parsed.key.protocol == wire::TCP && tcp::opens(parsed.tcp_flags);
        let Some(session) = self.sessions.get(slot).filter(|_| is_syn && direction == Direction::Original)
        else {
            return false;
        };
        let Some((position, server)) = session.server() else { return false };
        match session.tcp_state(&world.activity(slot)) {
            State::Closing | State::Reset => true,
            State::Opening => !self.services.takes_new(position, server),
            State::Established => false,
        }
    }

    /// What becomes of a packet whose addresses alone say that nothing of natgw's is meant.
    fn refuse_at_sight(&self, world: &dyn World, ingress: &Interface, key: &FlowKey) -> Option<Outcome> {
        let (source, destination) = (key.source, key.destination);
        if is_group(destination) {
            return Some(Outcome::ToStack);
        }
        if is_martian_source(source) || is_martian_destination(destination) {
            return Some(Outcome::Drop(Reason::DropMartian));
        }
        // From an address of the gateway's own, or to itself (behaviour ATK-01, ATK-02).
        let forged = ingress.side == Side::Outside && self.is_inside(address(source));
        (source == destination || forged || world.is_local(address(source)))
            .then_some(Outcome::Drop(Reason::DropSpoofed))
    }

    /// The inside networks: on inside links, and those that rules translate from.
    pub fn inside_networks(&self) -> Vec<Ipv4Net> {
        let on_links = self
            .interfaces
            .values()
            .filter(|interface| interface.side == Side::Inside)
            .flat_map(|interface| interface.networks.iter().copied());
        let outside = |net: &Ipv4Net| {
            self.interfaces
                .values()
                .filter(|interface| interface.side == Side::Outside)
                .any(|interface| interface.networks.iter().any(|link| net.contains(link)))
        };
        let translated = self
            .rules
            .snat
            .iter()
            .filter(|rule| rule.destination.positive.is_empty())
            .flat_map(|rule| rule.source.positive.iter().copied())
            .filter(|net| !outside(net));
        on_links.chain(translated).collect()
    }

    /// Whether an address is of an inside network.
    fn is_inside(&self, own: Ipv4Addr) -> bool {
        self.inside_networks().iter().any(|net| net.contains(&own))
    }

    /// Whether an address is one that mappings live on.
    fn is_external(&self, destination: u32) -> bool {
        self.rules.snat.iter().any(|rule| match &rule.to {
            crate::config::SnatTarget::Pool(pool) => pool.contains(address(destination)),
            _ => false,
        }) || self.rules.forwards.iter().any(|rule| {
            matches!(&rule.external, crate::config::ForwardAddress::Address(external) if network(*external) == destination)
        }) || self.rules.services.iter().any(|rule| {
            matches!(&rule.external, crate::config::ForwardAddress::Address(external) if network(*external) == destination)
        })
    }

    /// The interface with an index.
    pub fn interface(&self, ifindex: u32) -> Option<&Interface> {
        self.interfaces.get(&ifindex).map(Arc::as_ref)
    }

    /// The interface with a name.
    pub fn interface_named(&self, name: &str) -> Option<&Interface> {
        self.interfaces.values().find(|interface| interface.name == name).map(Arc::as_ref)
    }

    /// The rules in force.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What an operator should know of since it was last asked.
    pub fn notices(&mut self) -> Vec<Notice> {
        self.notices.take()
    }

    /// What the core did, by reason.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// Finishes a transport checksum that holds only the pseudo-header's sum.
fn finish_checksum(frame: &mut [u8], parsed: &Parsed) {
    if parsed.kind != Kind::Ported {
        return;
    }
    let field = match parsed.key.protocol {
        wire::TCP => parsed.transport + 16,
        wire::UDP => parsed.transport + 6,
        _ => return,
    };
    let end = parsed.network + usize::from(parsed.total_length);
    let length = parsed.total_length - u16::try_from(parsed.transport - parsed.network).unwrap_or(0);
    let key = &parsed.key;
    let Some(view) = SliceFrame::new(frame) else { return };
    let Some(checksum) = view.at::<u16>(field) else { return };
    // SAFETY: `at` answered for two bytes of the frame, which nothing else borrows.
    let stored = unsafe { *checksum };
    if !is_partial(key.source, key.destination, key.protocol, length, stored) {
        return;
    }
    // The field itself, holding the pseudo-header's sum, is part of what is summed.
    let Some(bytes) = frame.get(parsed.transport..end) else { return };
    let sum = nat_common::checksum::Sum::ZERO.add_bytes(bytes).checksum();
    let sum = if sum == 0 && key.protocol == wire::UDP { 0xffff } else { sum };
    if let Some(field) = frame.get_mut(field..field + 2) {
        field.copy_from_slice(&sum.to_ne_bytes());
    }
}
