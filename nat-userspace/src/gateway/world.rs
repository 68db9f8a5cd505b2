//! What the gateway core needs of the world. The daemon gives it kernel maps and netlink, a test
//! whatever it likes: the core itself does no I/O and reads no clock.

use std::net::Ipv4Addr;
use std::time::Duration;

use nat_common::abi::SessionEvent;
use nat_common::delegate::{Grant, GrantKey};
use nat_common::report::Report;
use nat_common::{Direction, FlowKey, FlowValue, activity::Activity, next_hop::NextHop};

use crate::datapath::Found;
pub use crate::host::{Route, RouteError, RouteKind, RouteQuery};

/// Everything outside the core.
pub trait World {
    /// Puts a session's two entries in, with what opened it. One that was not taken is told after the batch (see
    /// [`super::Gateway::abort`]).
    fn open(&mut self, session: u32, entries: &[(FlowKey, FlowValue); 2], origin: u32);
    /// Writes the values of a session's entries anew.
    fn replace(&mut self, session: u32, entries: &[(FlowKey, FlowValue); 2], origin: u32);
    /// Takes a session's two entries out.
    fn close(&mut self, session: u32, keys: &[FlowKey; 2]);
    /// The session whose entry a key has, and the direction of its packets. It may be one that the program has opened
    /// and not told of yet.
    fn find(&self, key: &FlowKey) -> Option<(u32, Direction)>;
    /// Slots of closed sessions that packets on their way cannot refer to any more.
    fn released(&mut self) -> Vec<u32>;

    /// What the fast path noted of a session.
    fn activity(&self, session: u32) -> Activity;
    /// Overwrites that.
    fn set_activity(&mut self, session: u32, line: &Activity);
    /// The tick to write as "seen now".
    fn tick(&self) -> u32;
    /// How long ago a tick was, at least: never more than the truth.
    fn since(&self, tick: u32) -> Duration;

    /// Writes a next hop.
    fn set_next_hop(&mut self, index: u32, hop: &NextHop);

    /// Where a packet goes.
    fn route(&mut self, query: RouteQuery) -> Result<Route, RouteError>;
    /// Where a packet from `source`, an address of the gateway's own, goes next if it is to leave by `egress`.
    fn route_by(&mut self, egress: u32, source: Ipv4Addr, destination: Ipv4Addr)
    -> Result<Route, RouteError>;
    /// The MAC of a neighbour, if it is usable.
    fn neighbour(&self, ifindex: u32, address: Ipv4Addr) -> Option<[u8; 6]>;
    /// Asks for a neighbour's MAC.
    fn resolve(&mut self, ifindex: u32, address: Ipv4Addr);
    /// Whether an address is the gateway's own.
    fn is_local(&self, address: Ipv4Addr) -> bool;
    /// Brings what is known of the gateway's sockets of a protocol up to date, before a port is given out. `false` if it
    /// was read a moment ago and is not worth reading again: sockets may have come since.
    fn read_bound(&mut self, protocol: u8) -> bool;
    /// Whether a socket of the gateway is bound to a port (network byte order).
    fn is_bound(&self, protocol: u8, address: u32, port: u16) -> bool;

    /// Asks memory for what [`World::find`] will look at first.
    fn expect(&self, _key: &FlowKey) {}

    /// TCP sessions of which the program has reported something since the last time.
    fn session_events(&mut self) -> Vec<SessionEvent> {
        Vec::new()
    }
    /// Sessions that the program has opened since the last time. This and all that follows: nothing, where the program
    /// opens no sessions by itself.
    fn opened(&mut self) -> Vec<Report> {
        Vec::new()
    }
    /// A session as the program has written it.
    fn session(&self, _session: u32) -> Option<Found> {
        None
    }
    /// Takes note of the entries of a session that the program has opened, and enters what it could not. `false` if
    /// there is no place, or a key is another's: then it is to be closed.
    fn adopt(&mut self, _report: &Report, _found: &Found) -> bool {
        false
    }
    /// A host (network byte order) is at a limit: more of its first packets need not come up for a moment.
    fn shed(&mut self, _host: u32) {}
    /// Grants a host what its sessions may be opened with.
    fn grant(&mut self, _key: &GrantKey, _grant: &Grant) {}
    /// Makes grants of other epochs void.
    fn set_epoch(&mut self, _epoch: u32) {}
    /// Lends the program slots, as many as it can use and `slot` gives. Returns those whose lines cannot be had.
    fn lend(&mut self, _slot: &mut dyn FnMut() -> Option<u32>) -> Vec<u32> {
        Vec::new()
    }
    /// Takes back those that the program has not taken.
    fn revoke(&mut self) -> Vec<u32> {
        Vec::new()
    }
}
