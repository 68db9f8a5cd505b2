//! What the daemon knows of the gateway's own sockets of a protocol, and when it tells the program.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nat_common::held::HOLDS_FOR;

use crate::datapath::Listing;
use crate::host::{BoundPorts, bound_ports};

/// How old what is known may be when the daemon gives a port out.
const EVERY: Duration = Duration::from_millis(5);
/// Listing them takes at most one part in so many of the time.
const SHARE: u32 = 20;
/// What it costs the program to ask the kernel about one port, at least.
const ONE_ASKED: Duration = Duration::from_nanos(100);

/// The sockets of one protocol, as they were listed last.
pub struct Sockets {
    protocol: u8,
    bound: BoundPorts,
    listed: Instant,
    /// How long that took.
    took: Duration,
    /// Sessions that the program has opened since they were listed for it.
    opened: u32,
}

impl Sockets {
    /// Those there are now.
    pub fn read(protocol: u8, listing: &Listing) -> Self {
        let (bound, took) = (BoundPorts::default(), Duration::ZERO);
        let mut sockets = Self { protocol, bound, listed: Instant::now(), took, opened: 0 };
        sockets.list(listing);
        sockets
    }

    /// IP protocol.
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Held ports: protocol, address (0.0.0.0 for all), port.
    pub fn bound(&self) -> impl Iterator<Item = (u8, Ipv4Addr, u16)> {
        self.bound.iter().map(|(own, port)| (self.protocol, own, port))
    }

    /// Whether one of them holds a port, or has sent from it since they were listed.
    pub fn has(&self, listing: &Listing, own: Ipv4Addr, port: u16) -> bool {
        self.bound.contains(own, port) || listing.was_sent_from(self.protocol, port)
    }

    /// The program has opened a session.
    pub fn note_opened(&mut self, protocol: u8) {
        self.opened += u32::from(self.protocol == protocol);
    }

    /// Lists them if that is worth it, before the daemon gives a port out: `false` if it is not, because it was done a
    /// moment ago.
    pub fn refresh(&mut self, listing: &Listing, jiffies: u64) -> bool {
        let is_outdated = self.listed.elapsed() >= EVERY.max(self.took * SHARE);
        if is_outdated && self.list(listing) && self.is_asked_for() {
            self.publish(listing, jiffies);
        }
        is_outdated
    }

    /// Lists them for the program if that is worth it. `rate`: jiffies a second.
    pub fn renew(&mut self, listing: &Listing, now: Instant, jiffies: u64, rate: u32) {
        // Half of the time that a list holds for.
        let every = Duration::from_millis(HOLDS_FOR * 1000 / 2 / u64::from(rate));
        let is_due = now.saturating_duration_since(self.listed) >= every;
        if is_due && self.is_asked_for() && self.list(listing) {
            self.publish(listing, jiffies);
        }
    }

    /// Whether asking the kernel about each port costs the program more than the daemon's list would.
    fn is_asked_for(&self) -> bool {
        self.opened > 0 && ONE_ASKED * self.opened >= self.took
    }

    /// `jiffies`: before they were listed.
    fn publish(&mut self, listing: &Listing, jiffies: u64) {
        self.opened = 0;
        listing.publish(self.protocol, jiffies);
    }

    /// Whether it could.
    fn list(&mut self, listing: &Listing) -> bool {
        let begun = Instant::now();
        listing.begin(self.protocol);
        match bound_ports(self.protocol) {
            Ok(bound) => self.bound = bound,
            Err(error) => {
                tracing::warn!(%error, "the gateway's own sockets cannot be read");
                self.listed = Instant::now();
                // Not again before there is a reason to.
                self.opened = 0;
                return false;
            }
        }
        listing.renew(self.protocol, self.bound.iter().map(|(_, port)| port));
        self.listed = Instant::now();
        self.took = self.listed - begun;
        true
    }
}
