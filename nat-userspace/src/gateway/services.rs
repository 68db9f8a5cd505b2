//! Virtual servers at work: which server a new connection gets, and what each has had.

use crate::hash::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nat_common::activity::Activity;

use crate::balance::{Balancer, Candidate, mix};
use crate::config::ServiceRule;

/// Clients whose servers a service remembers at most: the memory of a flood is bounded.
const REMEMBERED: usize = 1 << 18;
/// How often it is looked who has been away for too long.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Seconds that a rate is an average of.
const RATE_OVER: u32 = 5;

/// All services, in the order of their rules.
pub struct Services {
    all: Vec<Service>,
    started: Instant,
    swept: Instant,
}

/// A service.
struct Service {
    rule: Arc<ServiceRule>,
    servers: Vec<Server>,
    balancer: Balancer,
    /// The server of a client that came not long ago, and until when.
    remembered: HashMap<u32, (SocketAddrV4, Instant)>,
    candidates: Vec<Candidate>,
    /// The place among the servers of each candidate.
    places: Vec<usize>,
}

/// A server of a service.
#[derive(Clone, Debug)]
struct Server {
    address: SocketAddrV4,
    weight: u32,
    is_up: bool,
    /// Since when it has been up, or down.
    since: Instant,
    /// How often it went down.
    falls: u64,
    active: u32,
    opened: u64,
    rate: Rate,
    /// Of sessions that are over: packets and bytes to it, then from it.
    ended: [(u64, u64); 2],
}

/// Connections in each of the last seconds.
#[derive(Clone, Debug, Default)]
struct Rate {
    second: u64,
    counts: [u32; RATE_OVER as usize + 1],
}

/// A service as a listing shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceView {
    /// What it is.
    pub rule: Arc<ServiceRule>,
    /// Its servers, in order.
    pub servers: Vec<ServerView>,
}

/// A server as a listing shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerView {
    /// Its endpoint.
    pub address: SocketAddrV4,
    /// Its share.
    pub weight: u32,
    /// Whether its checks find it well.
    pub is_up: bool,
    /// Seconds since that changed.
    pub since: u64,
    /// How often it went down.
    pub falls: u64,
    /// Connections it has now.
    pub active: u32,
    /// Connections it was given.
    pub opened: u64,
    /// New ones a second.
    pub rate: f64,
    /// Packets to it, then from it.
    pub packets: [u64; 2],
    /// Bytes to it, then from it.
    pub bytes: [u64; 2],
}

impl Services {
    /// Those of a configuration, nobody served yet.
    pub fn new(rules: &[Arc<ServiceRule>], now: Instant) -> Self {
        let mut services = Self { all: Vec::new(), started: now, swept: now };
        services.update(rules, now);
        services
    }

    /// Goes by other rules: a service that keeps its name, and a server that keeps its endpoint there, keep
    /// what is known of them.
    pub fn update(&mut self, rules: &[Arc<ServiceRule>], now: Instant) {
        let mut before = std::mem::take(&mut self.all);
        self.all = rules
            .iter()
            .map(|rule| {
                let known = before.iter().position(|old| old.rule.name == rule.name);
                let known = known.map(|place| before.swap_remove(place));
                Service::new(Arc::clone(rule), known, now)
            })
            .collect();
    }

    /// The server for a new connection. `None` if there is none that takes one.
    pub fn choose(&mut self, position: u16, client: (Ipv4Addr, u16), now: Instant) -> Option<SocketAddrV4> {
        self.all.get_mut(usize::from(position))?.choose(client, now)
    }

    /// Whether a server is given new connections.
    pub fn takes_new(&self, position: u16, server: SocketAddrV4) -> bool {
        let service = self.all.get(usize::from(position));
        service
            .is_some_and(|service| service.servers.iter().any(|one| one.address == server && one.takes_new()))
    }

    /// A connection of a client was given to a server.
    pub fn opened(&mut self, position: u16, server: SocketAddrV4, client: Ipv4Addr, now: Instant) {
        let second = now.saturating_duration_since(self.started).as_secs();
        let Some(service) = self.all.get_mut(usize::from(position)) else { return };
        service.remember(client, server, now);
        if let Some(server) = service.server_mut(server) {
            server.active += 1;
            server.opened += 1;
            server.rate.count(second);
        }
    }

    /// A connection is over.
    pub fn ended(&mut self, position: u16, server: SocketAddrV4, line: &Activity) {
        let service = self.all.get_mut(usize::from(position));
        let Some(server) = service.and_then(|service| service.server_mut(server)) else { return };
        server.active = server.active.saturating_sub(1);
        for ((packets, bytes), half) in server.ended.iter_mut().zip(&line.directions) {
            *packets += half.packets;
            *bytes += half.bytes;
        }
    }

    /// Counts connections anew, after positions have changed.
    pub fn recount(&mut self, sessions: impl Iterator<Item = (u16, SocketAddrV4)>) {
        for server in self.all.iter_mut().flat_map(|service| &mut service.servers) {
            server.active = 0;
        }
        for (position, server) in sessions {
            let service = self.all.get_mut(usize::from(position));
            if let Some(server) = service.and_then(|service| service.server_mut(server)) {
                server.active += 1;
            }
        }
    }

    /// What a check has found. Returns whether that is news.
    pub fn set_health(&mut self, name: &str, server: SocketAddrV4, is_up: bool, now: Instant) -> bool {
        let service = self.all.iter_mut().find(|service| service.rule.name == name);
        let Some(server) = service.and_then(|service| service.server_mut(server)) else { return false };
        if server.is_up == is_up {
            return false;
        }
        server.is_up = is_up;
        server.since = now;
        server.falls += u64::from(!is_up);
        true
    }

    /// Forgets clients that have been away for too long.
    pub fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept) < SWEEP_EVERY {
            return;
        }
        self.swept = now;
        for service in &mut self.all {
            service.remembered.retain(|_, (_, until)| *until > now);
        }
    }

    /// What a listing shows; `live` are the lines of sessions there are, with where they belong.
    pub fn view(
        &self,
        now: Instant,
        live: impl Iterator<Item = (u16, SocketAddrV4, Activity)>,
    ) -> Vec<ServiceView> {
        let second = now.saturating_duration_since(self.started).as_secs();
        let mut views: Vec<ServiceView> = self
            .all
            .iter()
            .map(|service| ServiceView {
                rule: Arc::clone(&service.rule),
                servers: service.servers.iter().map(|server| server.view(now, second)).collect(),
            })
            .collect();
        for (position, server, line) in live {
            let view = views.get_mut(usize::from(position));
            let server = view.and_then(|view| view.servers.iter_mut().find(|one| one.address == server));
            let Some(server) = server else { continue };
            for (direction, half) in line.directions.iter().enumerate() {
                server.packets[direction] += half.packets;
                server.bytes[direction] += half.bytes;
            }
        }
        views
    }
}

impl Service {
    fn new(rule: Arc<ServiceRule>, known: Option<Self>, now: Instant) -> Self {
        let servers = rule.servers.iter().map(|server| {
            let known = known.iter().flat_map(|old| &old.servers).find(|old| old.address == server.address);
            let mut kept = known.cloned().unwrap_or_else(|| Server::new(server.address, now));
            kept.weight = server.weight;
            kept
        });
        let servers: Vec<Server> = servers.collect();
        let (mut balancer, mut remembered) = match known {
            Some(old) if old.balancer.scheduler() == rule.scheduler => (old.balancer, old.remembered),
            Some(old) => (Balancer::new(rule.scheduler), old.remembered),
            None => (Balancer::new(rule.scheduler), HashMap::default()),
        };
        balancer.forget_all_but(|id| servers.iter().any(|server| id_of(server.address) == id));
        if rule.persistence.is_zero() {
            remembered.clear();
        }
        Self { rule, servers, balancer, remembered, candidates: Vec::new(), places: Vec::new() }
    }

    fn choose(&mut self, client: (Ipv4Addr, u16), now: Instant) -> Option<SocketAddrV4> {
        if let Some((server, until)) = self.remembered.get(&self.network_of(client.0))
            && *until > now
            && self.servers.iter().any(|one| one.address == *server && one.takes_new())
        {
            return Some(*server);
        }
        let Self { servers, balancer, candidates, places, .. } = self;
        candidates.clear();
        places.clear();
        for (place, server) in servers.iter().enumerate().filter(|(_, server)| server.takes_new()) {
            candidates.push(Candidate {
                id: id_of(server.address),
                weight: server.weight,
                active: server.active,
            });
            places.push(place);
        }
        let place = *places.get(balancer.choose(candidates, client)?)?;
        Some(servers.get(place)?.address)
    }

    fn remember(&mut self, client: Ipv4Addr, server: SocketAddrV4, now: Instant) {
        let network = self.network_of(client);
        let is_known = self.remembered.contains_key(&network);
        if !self.rule.persistence.is_zero() && (is_known || self.remembered.len() < REMEMBERED) {
            self.remembered.insert(network, (server, now + self.rule.persistence));
        }
    }

    /// The part of a client's address that has one server.
    fn network_of(&self, client: Ipv4Addr) -> u32 {
        let ignored = 32 - u32::from(self.rule.persistence_prefix);
        client.to_bits().checked_shr(ignored).unwrap_or(0)
    }

    fn server_mut(&mut self, address: SocketAddrV4) -> Option<&mut Server> {
        self.servers.iter_mut().find(|server| server.address == address)
    }
}

impl Server {
    /// One that counts as up until its checks say otherwise.
    fn new(address: SocketAddrV4, now: Instant) -> Self {
        Self {
            address,
            weight: 1,
            is_up: true,
            since: now,
            falls: 0,
            active: 0,
            opened: 0,
            rate: Rate::default(),
            ended: [(0, 0); 2],
        }
    }

    fn takes_new(&self) -> bool {
        self.is_up && self.weight > 0
    }

    fn view(&self, now: Instant, second: u64) -> ServerView {
        ServerView {
            address: self.address,
            weight: self.weight,
            is_up: self.is_up,
            since: now.saturating_duration_since(self.since).as_secs(),
            falls: self.falls,
            active: self.active,
            opened: self.opened,
            rate: self.rate.clone().a_second(second),
            packets: self.ended.map(|(packets, _)| packets),
            bytes: self.ended.map(|(_, bytes)| bytes),
        }
    }
}

impl Rate {
    fn slot(second: u64) -> usize {
        usize::try_from(second % (u64::from(RATE_OVER) + 1)).unwrap_or(0)
    }

    /// Empties the seconds that have passed.
    fn turn_to(&mut self, second: u64) {
        for passed in (self.second + 1..=second).take(self.counts.len()) {
            self.counts[Self::slot(passed)] = 0;
        }
        if second.saturating_sub(self.second) > u64::from(RATE_OVER) {
            self.counts = Default::default();
        }
        self.second = self.second.max(second);
    }

    fn count(&mut self, second: u64) {
        self.turn_to(second);
        self.counts[Self::slot(second)] += 1;
    }

    /// Over the last whole seconds.
    fn a_second(mut self, second: u64) -> f64 {
        self.turn_to(second);
        self.counts[Self::slot(second)] = 0;
        f64::from(self.counts.iter().sum::<u32>()) / f64::from(RATE_OVER)
    }
}

/// What a server is known by, whatever its place.
fn id_of(address: SocketAddrV4) -> u64 {
    mix(u64::from(address.ip().to_bits()) << 16 | u64::from(address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_seconds() {
        let mut rate = Rate::default();
        for second in 0..10 {
            for _ in 0..second {
                rate.count(second);
            }
        }
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(rate.clone().a_second(10), f64::from(5 + 6 + 7 + 8 + 9) / 5.0));
        assert!(close(rate.clone().a_second(12), f64::from(7 + 8 + 9) / 5.0));
        assert!(close(rate.a_second(1000), 0.0));
    }
}
