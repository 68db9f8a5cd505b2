//! Which routes set an MTU. The program that opens sessions cannot ask: `bpf_fib_lookup` tells of an MTU that is locked,
//! or learnt, and not of one that a route merely has (`ip_mtu_from_fib_result`), which Linux holds packets to all the
//! same.

use std::{io, net::Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage, route::RouteMessage};

use super::netlink::Channel;
use crate::hash::HashMap;

/// The prefixes of routes that set an MTU, in whatever table.
#[derive(Debug, Default)]
pub(super) struct Narrow {
    /// The smallest that a route to this prefix sets.
    routes: HashMap<Ipv4Net, u32>,
    /// One of them may be gone: what is smallest now the kernel has to tell. Until then more counts as narrow than is.
    outdated: bool,
    /// Since they were last asked for.
    changed: bool,
}

impl Narrow {
    /// Reads all routes. They are scanned and not taken apart: there may be a million.
    pub(super) fn read(&mut self, channel: &mut Channel) -> io::Result<()> {
        *self = Self { changed: true, ..Self::default() };
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        channel.dump(RouteNetlinkMessage::GetRoute(request), |message| {
            self.is_there(message.payload);
            Ok(())
        })
    }

    /// Reads them again if one may be gone.
    pub(super) fn read_again(&mut self, channel: &mut Channel) -> io::Result<()> {
        if self.outdated { self.read(channel) } else { Ok(()) }
    }

    /// There is such a route: a new one, or one that another has become.
    pub(super) fn is_there(&mut self, message: &[u8]) {
        let Some((prefix, mtu)) = scan(message) else { return };
        let known = self.routes.get(&prefix).copied();
        match (mtu, known) {
            (None, None) => {}
            (Some(mtu), None) => {
                self.routes.insert(prefix, mtu);
                self.changed = true;
            }
            (mtu, Some(known)) if mtu == Some(known) => {}
            (mtu, Some(known)) => {
                self.routes.insert(prefix, mtu.map_or(known, |mtu| mtu.min(known)));
                self.outdated = true;
                self.changed = true;
            }
        }
    }

    /// Such a route is gone.
    pub(super) fn is_gone(&mut self, message: &[u8]) {
        self.outdated |= scan(message).is_some_and(|(prefix, _)| self.routes.contains_key(&prefix));
    }

    /// Links or addresses are others: the kernel does not tell which routes have gone with them.
    pub(super) fn may_be_gone(&mut self) {
        self.outdated |= !self.routes.is_empty();
    }

    /// The prefixes, and the smallest MTU that any route to an address there may set, if they are others than those that
    /// were last asked for.
    pub(super) fn news(&mut self) -> Option<Vec<(Ipv4Net, u32)>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let smallest = |prefix: &Ipv4Net| {
            let around = std::iter::successors(Some(*prefix), Ipv4Net::supernet);
            around.filter_map(|prefix| self.routes.get(&prefix)).min().copied()
        };
        Some(self.routes.keys().filter_map(|prefix| Some((*prefix, smallest(prefix)?))).collect())
    }
}

/// Prefix and MTU of a route to other hosts; `struct rtmsg` and its attributes.
fn scan(message: &[u8]) -> Option<(Ipv4Net, Option<u32>)> {
    let (header, attributes) = message.split_at_checked(RTMSG)?;
    let flags = u32::from_ne_bytes(header[8..12].try_into().ok()?);
    // What the gateway's own connections learnt is among them, too, as a copy of the route.
    if header[0] != AF_INET || header[7] != RTN_UNICAST || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let address = attribute(attributes, RTA_DST).and_then(|address| <[u8; 4]>::try_from(address).ok());
    let prefix = Ipv4Net::new(address.map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from), header[1]).ok()?;
    let mtu = attribute(attributes, RTA_METRICS)
        .and_then(|metrics| attribute(metrics, RTAX_MTU))
        .and_then(|mtu| Some(u32::from_ne_bytes(mtu.try_into().ok()?)))
        .filter(|mtu| *mtu > 0);
    Some((prefix.trunc(), mtu))
}

/// One of a run of attributes, `struct rtattr`.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let header = rest.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// Size of `struct rtmsg`.
const RTMSG: usize = 12;
const AF_INET: u8 = 2;
const RTN_UNICAST: u8 = 1;
const RTM_F_CLONED: u32 = 0x200;
const RTA_DST: u16 = 1;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;
