//! Everything outside the core, simulated. A flow entry that is put in twice or taken out twice is a failure.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use nat_common::{Direction, FlowKey, FlowValue, activity::Activity, checksum::Sum, next_hop::NextHop, wire};
use natgw::{
    config::{Config, Side},
    datapath::Found,
    gateway::{Gateway, Interface, Outcome, Random, SessionView, World},
    host::{Route, RouteError, RouteKind, RouteQuery},
};

/// Interface indices.
pub const LAN: u32 = 1;
/// See [`LAN`].
pub const WAN: u32 = 2;
/// The outside address.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The next hop outside.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);
/// The inside network is 192.168.1.0/24.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];

/// What the core sees of the world.
pub struct Outside {
    /// The kernel's flow table.
    pub flows: HashMap<FlowKey, FlowValue>,
    sessions: HashMap<FlowKey, (u32, Direction)>,
    /// Neighbours that do not answer.
    pub cold: HashSet<Ipv4Addr>,
    /// Neighbours that were asked for.
    pub asked: Vec<Ipv4Addr>,
    /// The gateway's address outside.
    pub public: Ipv4Addr,
    /// The next hops that are written.
    pub hops: HashMap<u16, NextHop>,
    /// Whether a table is being taken over.
    judging: bool,
    /// What opened the sessions.
    origins: HashMap<u32, u32>,
    lines: HashMap<u32, Activity>,
    closed: Vec<u32>,
    start: Instant,
    now: Instant,
}

/// Width of a tick.
const TICK: Duration = Duration::from_millis(16);

impl World for Outside {
    fn open(&mut self, session: u32, entries: &[(FlowKey, FlowValue); 2], origin: u32) {
        self.origins.insert(session, origin);
        // A host that reaches itself has one entry for both directions.
        let count = if entries[0].0 == entries[1].0 { 1 } else { 2 };
        for (direction, &(key, value)) in Direction::BOTH.into_iter().zip(entries).take(count) {
            self.sessions.insert(key, (session, direction));
            assert!(self.flows.insert(key, value).is_none(), "{key:?} was there already");
        }
    }

    fn replace(&mut self, _session: u32, entries: &[(FlowKey, FlowValue); 2], _origin: u32) {
        for &(key, value) in entries {
            assert!(self.flows.insert(key, value).is_some(), "{key:?} was not there");
        }
        self.judge_ways();
    }

    fn close(&mut self, session: u32, keys: &[FlowKey; 2]) {
        let count = if keys[0] == keys[1] { 1 } else { 2 };
        for key in keys.iter().take(count) {
            self.sessions.remove(key);
            assert!(self.flows.remove(key).is_some(), "{key:?} was not there");
        }
        self.closed.push(session);
    }

    fn find(&self, key: &FlowKey) -> Option<(u32, Direction)> {
        self.sessions.get(key).copied()
    }

    fn released(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.closed)
    }

    fn activity(&self, session: u32) -> Activity {
        self.lines.get(&session).copied().unwrap_or_default()
    }

    fn set_activity(&mut self, session: u32, line: &Activity) {
        self.lines.insert(session, *line);
    }

    fn tick(&self) -> u32 {
        let elapsed = self.now.duration_since(self.start);
        u32::try_from(elapsed.as_millis() / TICK.as_millis()).expect("tests are shorter than that")
    }

    fn since(&self, tick: u32) -> Duration {
        TICK * (self.tick() - tick)
    }

    fn set_next_hop(&mut self, index: u32, hop: &NextHop) {
        self.hops.insert(u16::try_from(index).expect("a slot"), *hop);
        self.judge_ways();
    }

    fn route_by(
        &mut self,
        egress: u32,
        _source: Ipv4Addr,
        destination: Ipv4Addr,
    ) -> Result<Route, RouteError> {
        self.route(RouteQuery { source: destination, destination, ingress: 0 })
            .and_then(|route| if route.ifindex == egress { Ok(route) } else { Err(RouteError::Unreachable) })
    }

    fn route(&mut self, query: RouteQuery) -> Result<Route, RouteError> {
        let route = |ifindex, gateway, own, kind| {
            Ok(Route { ifindex, gateway, preferred_source: Some(own), mtu: None, kind })
        };
        let to = query.destination;
        if self.is_local(to) {
            route(query.ingress, None, to, RouteKind::Local)
        } else if to.octets()[0..3] == GATEWAY.octets()[0..3] {
            route(LAN, None, GATEWAY, RouteKind::Unicast)
        } else {
            route(WAN, Some(ROUTER), self.public, RouteKind::Unicast)
        }
    }

    fn neighbour(&self, _ifindex: u32, address: Ipv4Addr) -> Option<[u8; 6]> {
        (!self.cold.contains(&address)).then(|| Self::mac_of(address))
    }

    fn resolve(&mut self, _ifindex: u32, address: Ipv4Addr) {
        self.asked.push(address);
    }

    fn is_local(&self, address: Ipv4Addr) -> bool {
        address == GATEWAY || address == self.public
    }

    fn read_bound(&mut self, _protocol: u8) -> bool {
        true
    }

    fn is_bound(&self, _protocol: u8, _address: u32, _port: u16) -> bool {
        false
    }
}

impl Outside {
    /// Where a neighbour is.
    fn mac_of(address: Ipv4Addr) -> [u8; 6] {
        let [a, b, c, d] = address.octets();
        [2, 0xaa, a, b, c, d]
    }

    /// The sessions that are in the table.
    fn found(&self) -> Vec<Found> {
        let half = |session, wanted| {
            let mut keys = self.sessions.iter().filter(|(_, found)| **found == (session, wanted));
            keys.next().map(|(key, _)| (*key, self.flows[key]))
        };
        let of = |session| Some([half(session, Direction::Original)?, half(session, Direction::Reply)?]);
        let found = self.sessions.values().filter(|(_, direction)| *direction == Direction::Original);
        let found = found.filter_map(|&(session, _)| {
            Some(Found { session, entries: of(session)?, origin: self.origins[&session] })
        });
        found.collect()
    }

    /// While a table is taken over, each flow's next hop is its neighbour's at every moment.
    fn judge_ways(&self) {
        for (key, value) in self.flows.iter().filter(|_| self.judging) {
            let to = Ipv4Addr::from(value.destination.to_ne_bytes());
            let neighbour = if to.octets()[0..3] == GATEWAY.octets()[0..3] { to } else { ROUTER };
            let wanted = if self.cold.contains(&neighbour) { [0; 6] } else { Self::mac_of(neighbour) };
            let hop = self.hops.get(&value.next_hop).map(|hop| hop.destination);
            assert_eq!(hop, Some(wanted), "{key:?} goes by slot {}", value.next_hop);
        }
    }
}

/// A gateway and its world.
pub struct Simulation {
    pub gateway: Gateway,
    pub world: Outside,
}

/// The rules between a LAN and a WAN.
pub fn config(rules: &str) -> Config {
    let interfaces = "[[interface]]\nname = \"lan\"\nside = \"inside\"\n[[interface]]\nname = \"wan\"\nside = \"outside\"\n";
    Config::parse(&format!("{interfaces}{rules}"), "the test").unwrap_or_else(|error| panic!("{error}"))
}

impl Simulation {
    /// A gateway under these rules that draws its ports from `seed`.
    pub fn new(rules: &str, seed: u64) -> Self {
        let now = Instant::now();
        let world = Outside {
            flows: HashMap::new(),
            sessions: HashMap::new(),
            cold: HashSet::new(),
            asked: Vec::new(),
            public: PUBLIC,
            hops: HashMap::new(),
            judging: false,
            origins: HashMap::new(),
            lines: HashMap::new(),
            closed: Vec::new(),
            start: now,
            now,
        };
        let mut simulation = Self { gateway: Gateway::new(&config(rules), now, Random::seeded(seed)), world };
        simulation.set_interface(LAN, GATEWAY);
        simulation.set_interface(WAN, PUBLIC);
        simulation
    }

    /// The daemon is killed, and another takes the table over.
    pub fn restart(&mut self, rules: &str, seed: u64) {
        let now = self.world.now;
        self.gateway = Gateway::new(&config(rules), now, Random::seeded(seed));
        self.set_interface(LAN, GATEWAY);
        self.set_interface(WAN, self.world.public);
        let found = self.world.found();
        let hops = self.world.flows.values().map(|value| value.next_hop).collect();
        self.world.judging = true;
        let restored = self.gateway.restore(&mut self.world, now, &found, hops);
        self.world.judging = false;
        assert_eq!(restored.len(), found.len());
        self.gateway.finish_restore();
    }

    fn set_interface(&mut self, ifindex: u32, address: Ipv4Addr) {
        let (name, side, mac) =
            if ifindex == LAN { ("lan", Side::Inside, LAN_MAC) } else { ("wan", Side::Outside, WAN_MAC) };
        let interface = Interface {
            ifindex,
            name: name.to_owned(),
            side,
            mac,
            mtu: 1500,
            up: true,
            port: 0,
            redirects: true,
            is_virtual: false,
            tags: nat_common::vlan::Tags::NONE,
            mss_clamp: None,
            addresses: vec![address],
            networks: vec![ipnet::Ipv4Net::new_assert(address, 24)],
        };
        let now = self.world.now;
        self.gateway.set_interface(&mut self.world, now, interface);
    }

    /// Gives the gateway another address outside.
    pub fn set_public(&mut self, address: Ipv4Addr) {
        self.world.public = address;
        self.set_interface(WAN, address);
    }

    /// Takes other rules.
    pub fn reload(&mut self, rules: &str) {
        let now = self.world.now;
        self.gateway.reload(&mut self.world, now, &config(rules));
    }

    /// A packet comes in. Returns what becomes of it, and the packet.
    pub fn handle(&mut self, ifindex: u32, packet: Packet) -> (Outcome, Packet) {
        let mut frame = packet.frame();
        let outcome = self.handle_frame(ifindex, &mut frame);
        (outcome, Packet::of(&frame))
    }

    /// Any frame comes in.
    pub fn handle_frame(&mut self, ifindex: u32, frame: &mut [u8]) -> Outcome {
        let now = self.world.now;
        self.gateway.handle(&mut self.world, now, ifindex, frame)
    }

    /// A packet comes in that has to leave: as what?
    pub fn sent(&mut self, ifindex: u32, packet: Packet) -> Packet {
        match self.handle(ifindex, packet) {
            (Outcome::Send { .. }, sent) => sent,
            (other, _) => panic!("{packet:?}: {other:?}"),
        }
    }

    /// Time passes, and what is due happens.
    pub fn pass(&mut self, time: Duration) {
        let end = self.world.now + time;
        while self.world.now < end {
            self.world.now = end.min(self.world.now + Duration::from_secs(1));
            let now = self.world.now;
            while self.gateway.tick(&mut self.world, now).is_zero() {}
        }
    }

    /// Sessions as a listing shows them.
    pub fn sessions(&self) -> Vec<SessionView> {
        let slots = 0..self.gateway.session_slots();
        slots.filter_map(|slot| self.gateway.session(&self.world, self.world.now, slot)).collect()
    }

    /// A session is deleted.
    pub fn delete(&mut self, slot: u32) {
        let now = self.world.now;
        self.gateway.end(&mut self.world, now, slot);
    }

    /// A neighbour answers.
    pub fn answers(&mut self, ifindex: u32, neighbour: Ipv4Addr) {
        self.world.cold.remove(&neighbour);
        let now = self.world.now;
        self.gateway.neighbour_changed(&mut self.world, now, ifindex, neighbour);
    }

    /// Sessions whose first packets could not be delivered end.
    pub fn end_unreachable(&mut self) {
        let now = self.world.now;
        self.gateway.end_unreachable(&mut self.world, now);
    }
}

/// A packet of a session; for ICMP queries both ports are the identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub protocol: u8,
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    /// TCP flags, or the ICMP type.
    pub kind: u8,
    /// The IP identification: tells packets apart.
    pub id: u16,
}

impl Packet {
    pub fn udp(from: SocketAddrV4, to: SocketAddrV4) -> Self {
        Self { protocol: wire::UDP, from, to, kind: 0, id: 0 }
    }

    pub fn tcp(from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> Self {
        Self { protocol: wire::TCP, from, to, kind: flags, id: 0 }
    }

    pub fn echo(from: Ipv4Addr, to: Ipv4Addr, id: u16) -> Self {
        let [from, to] = [from, to].map(|address| SocketAddrV4::new(address, id));
        Self { protocol: wire::ICMP, from, to, kind: wire::ICMP_ECHO_REQUEST, id: 0 }
    }

    /// What the other side sends back.
    pub fn answer(self) -> Self {
        let kind = if self.protocol == wire::ICMP { wire::ICMP_ECHO_REPLY } else { self.kind };
        Self { from: self.to, to: self.from, kind, ..self }
    }

    /// The frame.
    pub fn frame(self) -> Vec<u8> {
        let [source, destination] = [self.from, self.to].map(|endpoint| endpoint.port().to_be_bytes());
        let transport = match self.protocol {
            wire::TCP => {
                let mut header = [source, destination].concat();
                header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, self.kind, 0xff, 0xff, 0, 0, 0, 0]);
                header
            }
            wire::ICMP => [[self.kind, 0], [0, 0], source, [0, 1]].concat(),
            // Without a checksum: the sums are others' to test.
            _ => [source, destination, [0, 8], [0, 0]].concat(),
        };
        let total = u16::try_from(20 + transport.len()).expect("short");
        let mut header = vec![0x45, 0];
        header.extend(total.to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend([0x40, 0, 64, self.protocol, 0, 0]);
        header.extend(self.from.ip().octets());
        header.extend(self.to.ip().octets());
        let checksum = Sum::ZERO.add_bytes(&header).checksum();
        header[10..12].copy_from_slice(&checksum.to_ne_bytes());
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        frame.extend(header);
        frame.extend(transport);
        frame
    }

    /// What a frame says.
    pub fn of(frame: &[u8]) -> Self {
        let number = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).expect("four"));
        let protocol = frame[23];
        let ports = if protocol == wire::ICMP { [38, 38] } else { [34, 36] }.map(number);
        let kind = match protocol {
            wire::TCP => frame[47],
            wire::ICMP => frame[34],
            _ => 0,
        };
        Self {
            protocol,
            from: SocketAddrV4::new(address(26), ports[0]),
            to: SocketAddrV4::new(address(30), ports[1]),
            kind,
            id: number(18),
        }
    }
}

/// An inside host.
pub fn client(number: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 10 + number), port)
}

/// An outside host.
pub fn server(number: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1 + number), port)
}
