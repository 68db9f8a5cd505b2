//! External addresses: which one an inside host gets, and the ports on each.

use crate::hash::HashMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nat_common::wire;

use super::leases::Leases;
use super::ports::{Holder, PortTable};
use super::random::Random;
use crate::config::{Pooling, PortRange, Ports};
use crate::datapath::{Claims, SharedPorts};

/// All ports a mapping may have unless the rule names others: RFC 4787 REQ-3a wants well-known
/// source ports kept well-known, and all others not.
const DEFAULT: PortRange = PortRange::UNPRIVILEGED;

/// Ports of every external address in use, made when first needed.
pub struct Externals {
    tables: HashMap<(u32, u8), PortTable>,
    /// Inside address and pool → the external address it is paired with (RFC 4787 REQ-2).
    pairs: HashMap<(u32, u32), u32>,
    /// External address → inside addresses paired with it.
    paired: HashMap<u32, u32>,
    /// Addresses that are one host's own.
    leases: Leases,
    /// Ports that are a forward's, by address and protocol.
    reserved: HashMap<(u32, u8), Vec<u16>>,
    quarantine: Duration,
    random: Random,
}

/// What a mapping asks of the ports.
pub struct Wish {
    /// IP protocol.
    pub protocol: u8,
    /// External address, network byte order.
    pub address: u32,
    /// The port it would like, host byte order.
    pub port: u16,
    /// Ports the rule allows.
    pub ports: Ports,
    /// Who asks.
    pub holder: Holder,
}

impl Wish {
    /// The ranges to look in, in order.
    fn ranges(&self) -> [Option<Ports>; 2] {
        let low = PortRange { first: u16::from(self.protocol != wire::ICMP), last: 1023 };
        if self.ports != DEFAULT.into() {
            [Some(self.ports), None]
        } else if self.port <= low.last {
            [Some(low.into()), Some(DEFAULT.into())]
        } else {
            [Some(DEFAULT.into()), None]
        }
    }
}

impl Externals {
    /// No address yet.
    pub fn new(quarantine: Duration, random: Random) -> Self {
        Self {
            tables: HashMap::default(),
            pairs: HashMap::default(),
            paired: HashMap::default(),
            leases: Leases::default(),
            reserved: HashMap::default(),
            quarantine,
            random,
        }
    }

    /// The candidates for an inside host, best first. `belongs` tells whether an address is one of
    /// `addresses`, which may be many.
    pub fn candidates(
        &mut self,
        inside: u32,
        pool: u32,
        addresses: &[u32],
        belongs: &dyn Fn(u32) -> bool,
        pooling: Pooling,
    ) -> Vec<u32> {
        let random = &mut self.random;
        if let Pooling::Exclusive | Pooling::ExclusiveThenShared = pooling {
            let (own, last) = match (addresses, pooling) {
                ([own @ .., last], Pooling::ExclusiveThenShared) => (own, Some(*last)),
                _ => (addresses, None),
            };
            let leased = self.leases.of(inside, pool).filter(|&leased| belongs(leased));
            return leased.or_else(|| self.leases.free(pool, own)).or(last).into_iter().collect();
        }
        if pooling == Pooling::Arbitrary {
            let start = random.below(addresses.len().max(1));
            return addresses[start..].iter().chain(&addresses[..start]).copied().collect();
        }
        let paired = self.pairs.get(&(inside, pool)).copied().filter(|&pair| belongs(pair));
        let pair = paired.or_else(|| {
            let load = |address: &u32| self.paired.get(address).copied().unwrap_or(0);
            addresses.iter().copied().min_by_key(load)
        });
        let Some(pair) = pair else { return Vec::new() };
        if paired.is_none() {
            self.pairs.insert((inside, pool), pair);
            *self.paired.entry(pair).or_default() += 1;
        }
        let mut candidates = vec![pair];
        if pooling == Pooling::Soft {
            candidates.extend(addresses.iter().copied().filter(|&address| address != pair));
        }
        candidates
    }

    /// Remembers which external address an inside host is paired with.
    pub fn pair(&mut self, inside: u32, pool: u32, external: u32) {
        if self.pairs.insert((inside, pool), external).is_none() {
            *self.paired.entry(external).or_default() += 1;
        }
    }

    /// Takes a port for one mapping. `usable` says which are not the gateway's own.
    pub fn take(&mut self, wish: &Wish, now: Instant, usable: &mut dyn FnMut(u16) -> bool) -> Option<u16> {
        for ports in wish.ranges().into_iter().flatten() {
            self.table(wish.address, wish.protocol, ports);
            let table = self.tables.get_mut(&(wish.address, wish.protocol))?;
            if let Some(port) = table.take(wish.port, wish.holder, ports, now, &mut self.random, usable) {
                return Some(port);
            }
        }
        None
    }

    /// Shares a port between remotes: the wanted one, else random ones, until `vacant` says that
    /// the remote has none there yet.
    pub fn share(&mut self, wish: &Wish, vacant: &mut dyn FnMut(u16) -> bool) -> Option<u16> {
        /// Random tries before the range is gone through in order.
        const TRIES: usize = 32;
        for ports in wish.ranges().into_iter().flatten() {
            self.table(wish.address, wish.protocol, ports);
            let table = self.tables.get_mut(&(wish.address, wish.protocol))?;
            let range = ports.range;
            let length = range.len() as usize;
            let nth = |n: usize| range.first + u16::try_from(n % length).unwrap_or(0);
            let start = self.random.below(length);
            // Same parity first (RFC 4787 REQ-4).
            let start = start & !1 | usize::from((wish.port ^ range.first) & 1);
            let wanted = ports.contains(wish.port).then_some(wish.port);
            let random = &mut self.random;
            let tries = (0..TRIES).map(|_| nth(random.below(length) & !1 | (start & 1))).collect::<Vec<_>>();
            let sweep = (0..length).map(|n| nth(start + n));
            let found = wanted.into_iter().chain(tries).chain(sweep).find(|&port| {
                ports.contains(port) && table.is_shareable(port) && vacant(port) && table.share(port)
            });
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// One more mapping of a host on an address of its own. Whether it is the first.
    pub fn lease(&mut self, inside: u32, pool: u32, external: u32) -> bool {
        self.leases.add(inside, pool, external)
    }

    /// How many addresses of a pool are a host's own.
    pub fn leased(&self, pool: u32) -> usize {
        self.leases.taken(pool)
    }

    /// Ports used, free and resting of an address and protocol.
    pub fn use_of(&self, address: u32, protocol: u8) -> Option<[u32; 3]> {
        let table = self.tables.get(&(address, protocol))?;
        Some([table.used(), table.free(), table.quarantined()])
    }

    /// One mapping less. With the last the address is free, and nothing of it rests: the next host
    /// has its ports as they are. Whether it was the last.
    pub fn end_lease(&mut self, inside: u32, external: u32) -> bool {
        let is_over = self.leases.remove(inside, external);
        if is_over {
            self.tables.retain(|&(address, _), table| address != external || table.used() > 0);
        }
        is_over
    }

    /// Gives a mapping's port back.
    pub fn give_back(
        &mut self,
        (protocol, address): (u8, u32),
        port: u16,
        holder: Holder,
        rests: bool,
        now: Instant,
    ) {
        if let Some(table) = self.tables.get_mut(&(address, protocol)) {
            table.give_back(port, holder, rests, now);
        }
    }

    /// A session less shares a port.
    pub fn unshare(&mut self, protocol: u8, address: u32, port: u16) {
        if let Some(table) = self.tables.get_mut(&(address, protocol)) {
            table.unshare(port);
        }
    }

    /// Where to begin looking in a range.
    pub fn draw(&mut self, range: PortRange) -> u16 {
        u16::try_from(self.random.below(range.len() as usize)).unwrap_or(0)
    }

    /// Takes a certain port, as a restart finds it.
    pub fn adopt(&mut self, wish: &Wish, shared: bool) -> bool {
        for ports in wish.ranges().into_iter().flatten() {
            self.table(wish.address, wish.protocol, ports);
        }
        let Some(table) = self.tables.get_mut(&(wish.address, wish.protocol)) else { return false };
        if shared { table.share(wish.port) } else { table.adopt(wish.port) }
    }

    /// Takes a port that the program has claimed.
    pub fn adopt_claimed(&mut self, address: u32, protocol: u8, port: u16) -> bool {
        self.tables.get_mut(&(address, protocol)).is_some_and(|table| table.adopt_claimed(port))
    }

    /// The number by which the program knows the ports of an address; 0 if it does not, because nothing of that
    /// protocol has come by yet, or too many others are known.
    pub fn shared(&mut self, address: u32, protocol: u8, claims: &Rc<Claims>) -> u16 {
        let Some(table) = self.tables.get_mut(&(address, protocol)) else { return 0 };
        if table.shared().is_none()
            && let Some(shared) = claims.table()
        {
            table.share_with_program(shared);
        }
        table.shared().map_or(0, SharedPorts::number)
    }

    /// Keeps a forward's port from mappings. `false` if a mapping has it now: it is reserved once
    /// that mapping is gone.
    pub fn reserve(&mut self, protocol: u8, address: u32, port: u16) -> bool {
        let reserved = self.reserved.entry((address, protocol)).or_default();
        if !reserved.contains(&port) {
            reserved.push(port);
        }
        self.tables.get_mut(&(address, protocol)).is_none_or(|table| table.reserve(port))
    }

    /// Frees the ports whose rest is over: otherwise that waits until the next is given back or asked for.
    pub fn release_rested(&mut self, now: Instant) {
        self.tables.values_mut().for_each(|table| table.release_rested(now));
    }

    /// Ports used, free and resting of every address and protocol in use.
    pub fn usage(&self) -> impl Iterator<Item = (Ipv4Addr, u8, [u32; 3])> {
        self.tables.iter().map(|(&(address, protocol), table)| {
            (
                Ipv4Addr::from(address.to_ne_bytes()),
                protocol,
                [table.used(), table.free(), table.quarantined()],
            )
        })
    }

    /// Forgets an address that is the gateway's no more.
    pub fn forget(&mut self, address: u32) {
        self.tables.retain(|&(other, _), _| other != address);
        self.pairs.retain(|_, &mut other| other != address);
        self.paired.remove(&address);
        self.leases.forget(address);
    }

    /// Makes sure the table of an address and protocol exists and covers `ports`.
    fn table(&mut self, address: u32, protocol: u8, ports: Ports) {
        // A TCP session's end is seen, its port may be used again at once (RFC 6888 REQ-8).
        let quarantine = if protocol == wire::TCP { Duration::ZERO } else { self.quarantine };
        let reserved = self.reserved.get(&(address, protocol)).map_or(&[][..], Vec::as_slice);
        let mut added = false;
        let table = self.tables.entry((address, protocol)).or_insert_with(|| {
            added = true;
            PortTable::new(ports, quarantine)
        });
        if !added {
            added = table.include(ports);
        }
        if added {
            for &port in reserved {
                table.reserve(port);
            }
        }
    }
}
