//! The world as the gateway core sees it, made of kernel maps and netlink.

use crate::hash::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nat_common::abi::{SessionEvent, TooBigEvent};
use nat_common::activity::Activity;
use nat_common::delegate::{Grant, GrantKey};
use nat_common::next_hop::NextHop;
use nat_common::report::Report;
use nat_common::{Direction, FlowKey, FlowValue, wire};

use crate::datapath::{Datapath, Found, LoadError, ticks};
use crate::gateway::{World, address};
use crate::host::{Host, Route, RouteError, RouteQuery};

use super::sockets::Sockets;

/// How often a neighbour is asked for.
const RESOLVE_EVERY: Duration = Duration::from_millis(200);
/// How often the kernel's clock is read at most.
const CLOCK_EVERY: Duration = Duration::from_millis(10);
/// Over what time the kernel's tick rate is measured.
const CALIBRATION: Duration = Duration::from_secs(1);
/// Tick rates Linux can be built with.
const RATES: [u32; 4] = [100, 250, 300, 1000];

/// Kernel and host.
pub struct Kernel {
    /// Maps and programs.
    pub datapath: Datapath,
    /// Links, routes, neighbours.
    pub host: Host,
    /// Every address of the gateway.
    locals: HashSet<Ipv4Addr>,
    /// When each neighbour was last asked for.
    asked: HashMap<(u32, Ipv4Addr), Instant>,
    /// The gateway's own, of TCP and UDP: a flood of the one does not have the other's read.
    sockets: [Sockets; 2],
    clock_read: Instant,
    jiffies: u64,
    /// What merged packets were too big for, as reported.
    pub too_big: Vec<TooBigEvent>,
    /// The first reading, to measure the rate by.
    first: (Instant, u64),
    /// Jiffies a second.
    rate: u32,
}

impl Kernel {
    /// Joins the two.
    pub fn new(datapath: Datapath, host: Host) -> Result<Self, LoadError> {
        let jiffies = datapath.jiffies()?;
        let now = Instant::now();
        let sockets =
            [wire::TCP, wire::UDP].map(|protocol| Sockets::read(protocol, &datapath.delegation.listing));
        let mut kernel = Self {
            datapath,
            host,
            locals: HashSet::default(),
            asked: HashMap::default(),
            sockets,
            clock_read: now,
            jiffies,
            too_big: Vec::new(),
            first: (now, jiffies),
            // The slowest there is: nothing is too old before the rate is known.
            rate: RATES[3],
        };
        kernel.read_addresses();
        Ok(kernel)
    }

    /// Reads what is worth reading again.
    pub fn refresh(&mut self, now: Instant) {
        if now.saturating_duration_since(self.clock_read) >= CLOCK_EVERY {
            self.clock_read = now;
            match self.datapath.jiffies() {
                Ok(jiffies) => self.jiffies = jiffies,
                Err(error) => tracing::warn!(%error, "the kernel's clock cannot be read"),
            }
            let elapsed = now.saturating_duration_since(self.first.0);
            if elapsed >= CALIBRATION {
                self.rate = nearest_rate(self.jiffies - self.first.1, elapsed);
            }
        }
        for sockets in &mut self.sockets {
            sockets.renew(&self.datapath.delegation.listing, now, self.jiffies, self.rate);
        }
    }

    /// Brings the set of the gateway's addresses up to date.
    pub fn read_addresses(&mut self) {
        self.locals = self.host.local_addresses().collect();
    }

    /// Every address of the gateway.
    pub fn locals(&self) -> &HashSet<Ipv4Addr> {
        &self.locals
    }

    /// Ports that sockets of the gateway hold: protocol, address (0.0.0.0 for all), port.
    pub fn bound(&self) -> impl Iterator<Item = (u8, Ipv4Addr, u16)> {
        self.sockets.iter().flat_map(Sockets::bound)
    }
}

/// The rate a kernel can have that is nearest to what was measured.
fn nearest_rate(jiffies: u64, elapsed: Duration) -> u32 {
    #[expect(clippy::cast_precision_loss, reason = "a rate of a few hundred")]
    let measured = jiffies as f64 / elapsed.as_secs_f64();
    let distance = |rate: &u32| (f64::from(*rate) - measured).abs();
    RATES.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(RATES[1])
}

impl World for Kernel {
    fn open(&mut self, session: u32, entries: &[(FlowKey, FlowValue); 2], origin: u32) {
        self.datapath.flows.open(session, entries, origin);
    }

    fn replace(&mut self, session: u32, entries: &[(FlowKey, FlowValue); 2], origin: u32) {
        self.datapath.flows.replace(session, entries, origin);
    }

    fn close(&mut self, session: u32, keys: &[FlowKey; 2]) {
        self.datapath.flows.close(session, keys);
    }

    fn find(&self, key: &FlowKey) -> Option<(u32, Direction)> {
        self.datapath.flows.find(key)
    }

    fn expect(&self, key: &FlowKey) {
        self.datapath.flows.expect(key);
    }

    fn released(&mut self) -> Vec<u32> {
        self.datapath.flows.released()
    }

    fn session_events(&mut self) -> Vec<SessionEvent> {
        let mut reports = Vec::new();
        while let Some(event) = self.datapath.events.next() {
            // Their sizes tell them apart; one says no more than that there are sessions opened.
            reports.extend(bytemuck::try_pod_read_unaligned::<SessionEvent>(&event));
            self.too_big.extend(bytemuck::try_pod_read_unaligned::<TooBigEvent>(&event));
        }
        reports
    }

    fn session(&self, session: u32) -> Option<Found> {
        self.datapath.flows.session(session)
    }

    fn opened(&mut self) -> Vec<Report> {
        self.datapath.delegation.lender.reports()
    }

    fn adopt(&mut self, report: &Report, found: &Found) -> bool {
        let protocol = found.entries[0].0.protocol;
        self.sockets.iter_mut().for_each(|sockets| sockets.note_opened(protocol));
        self.datapath.flows.adopt(report, found)
    }

    fn shed(&mut self, host: u32) {
        self.datapath.delegation.shed(host, ticks(self.jiffies));
    }

    fn grant(&mut self, key: &GrantKey, grant: &Grant) {
        self.datapath.delegation.grant(key, grant);
    }

    fn set_epoch(&mut self, epoch: u32) {
        if let Err(error) = self.datapath.set_epoch(epoch, self.host.routes_by_destination()) {
            tracing::error!(%error, "the program could not be told that its grants are void");
        }
    }

    fn lend(&mut self, slot: &mut dyn FnMut() -> Option<u32>) -> Vec<u32> {
        let Datapath { flows, delegation, .. } = &mut self.datapath;
        let mut useless = Vec::new();
        delegation.lender.lend(&mut || {
            let slot = slot()?;
            if flows.prepare(slot) {
                return Some(slot);
            }
            useless.push(slot);
            None
        });
        useless
    }

    fn revoke(&mut self) -> Vec<u32> {
        self.datapath.delegation.lender.revoke()
    }

    fn activity(&self, session: u32) -> Activity {
        self.datapath.flows.activity(session)
    }

    fn set_activity(&mut self, session: u32, line: &Activity) {
        self.datapath.flows.set_activity(session, line);
    }

    fn tick(&self) -> u32 {
        ticks(self.jiffies)
    }

    fn since(&self, tick: u32) -> Duration {
        // A tick less, because it may have begun just before the note was made.
        let passed = ticks(self.jiffies).wrapping_sub(tick).saturating_sub(1);
        // Written by the fast path after the clock was read: not in the past at all.
        if passed > u32::MAX / 2 {
            return Duration::ZERO;
        }
        let jiffies = u64::from(passed) << nat_common::activity::TICK_SHIFT;
        Duration::from_millis(jiffies * 1000 / u64::from(self.rate))
    }

    fn set_next_hop(&mut self, index: u32, hop: &NextHop) {
        if let Err(error) = self.datapath.hops.set(index, hop, 0) {
            tracing::error!(%error, index, "a next hop could not be written");
        }
    }

    fn route(&mut self, query: RouteQuery) -> Result<Route, RouteError> {
        self.host.route(query)
    }

    fn route_by(
        &mut self,
        egress: u32,
        source: Ipv4Addr,
        destination: Ipv4Addr,
    ) -> Result<Route, RouteError> {
        self.host.route_by(egress, source, destination)
    }

    fn neighbour(&self, ifindex: u32, neighbour: Ipv4Addr) -> Option<[u8; 6]> {
        self.host.neighbour(ifindex, neighbour).map(|neighbour| neighbour.mac)
    }

    fn resolve(&mut self, ifindex: u32, neighbour: Ipv4Addr) {
        // A burst of first packets asks once: the kernel repeats the question by itself.
        let now = Instant::now();
        let asked = self.asked.insert((ifindex, neighbour), now);
        if asked.is_some_and(|asked| now - asked < RESOLVE_EVERY) {
            self.asked.extend(asked.map(|asked| ((ifindex, neighbour), asked)));
            return;
        }
        if let Err(error) = self.host.resolve(ifindex, neighbour) {
            tracing::debug!(%error, %neighbour, "asking for a neighbour failed");
        }
    }

    fn is_local(&self, own: Ipv4Addr) -> bool {
        self.locals.contains(&own)
    }

    fn read_bound(&mut self, protocol: u8) -> bool {
        let Some(sockets) = self.sockets.iter_mut().find(|sockets| sockets.protocol() == protocol) else {
            return true;
        };
        sockets.refresh(&self.datapath.delegation.listing, self.jiffies)
    }

    fn is_bound(&self, protocol: u8, own: u32, port: u16) -> bool {
        let listing = &self.datapath.delegation.listing;
        let mut sockets = self.sockets.iter().filter(|sockets| sockets.protocol() == protocol);
        sockets.any(|sockets| sockets.has(listing, address(own), u16::from_be(port)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_one_a_kernel_can_have() {
        assert_eq!(nearest_rate(251, Duration::from_secs(1)), 250);
        assert_eq!(nearest_rate(995, Duration::from_secs(1)), 1000);
        assert_eq!(nearest_rate(99, Duration::from_secs(1)), 100);
    }
}
