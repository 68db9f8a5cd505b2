//! The host as the gateway sees it: interfaces, addresses, routes, neighbours, sockets.
//!
//! All of it is that of the network namespace of the thread that calls [`Host::open`]. One thread owns a
//! [`Host`], sleeps on [`Host::monitor`] among its other descriptors, and calls [`Host::poll`] when it is readable.
//! What is known is always what the kernel last said: subscriptions come before the first reading, and lost
//! notifications lead to reading all of it anew.
#![deny(unsafe_code)]

mod arp;
mod claims;
mod links;
mod narrow;
mod neighbours;
mod netlink;
mod offloads;
mod qdiscs;
mod routes;
mod sockets;
mod xdp_features;

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use ipnet::Ipv4Net;
use netlink_packet_core::{DecodeError, NLM_F_CREATE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage, address::AddressMessage, link::LinkMessage,
    neighbour::NeighbourMessage,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::event::epoll;

pub use self::qdiscs::remove_clsact_without_filters;
pub use self::{
    arp::Arp,
    links::{Address, Link},
    neighbours::{Neighbour, NeighbourState},
    offloads::{hides_tags, merge_before_routing, merges_segments},
    routes::{Route, RouteError, RouteKind, RouteQuery},
    sockets::{BoundPorts, bound_ports},
    xdp_features::XdpFeatures,
};
use self::{
    links::Links,
    narrow::Narrow,
    neighbours::Neighbours,
    netlink::{Channel, Message, Notifications},
    routes::Routes,
    xdp_features::Netdev,
};

/// What the host could not be asked or told.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {source}")]
pub struct HostError {
    action: String,
    source: io::Error,
}

impl HostError {
    fn new(action: impl Into<String>, source: io::Error) -> Self {
        Self { action: action.into(), source }
    }

    /// The errno behind it, if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// Something about the host is no longer as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostEvent {
    /// An interface is new, or changed its name, address, MTU or state.
    LinkChanged(u32),
    /// An interface is gone.
    LinkRemoved {
        /// The number it had.
        index: u32,
        /// The name it had.
        name: String,
    },
    /// An interface has a new address.
    AddressAdded {
        /// The interface.
        ifindex: u32,
        /// Its new address.
        addr: Ipv4Addr,
    },
    /// An interface lost an address.
    AddressRemoved {
        /// The interface.
        ifindex: u32,
        /// The address it had.
        addr: Ipv4Addr,
    },
    /// A neighbour moved, was confirmed, aged or went.
    NeighbourChanged {
        /// The interface it is behind.
        ifindex: u32,
        /// Its IP address.
        addr: Ipv4Addr,
        /// How to reach it; none if it is no longer known.
        neighbour: Option<Neighbour>,
        /// It was asked for and did not answer.
        failed: bool,
    },
    /// Routes, rules or the forwarding switch changed: earlier answers of [`Host::route`] may be wrong.
    RoutesChanged,
    /// What XDP can do with an interface changed.
    XdpFeaturesChanged(u32),
    /// Notifications were lost and everything was read anew: compare all of it with what you hold.
    Resynced,
}

/// The host, kept up to date.
pub struct Host {
    requests: Channel,
    notifications: Channel,
    netdev: Option<Netdev>,
    readable: OwnedFd,
    links: Links,
    neighbours: Neighbours,
    routes: Routes,
    narrow: Narrow,
}

impl Host {
    /// Subscribes to the kernel's notifications, then reads interfaces, addresses, neighbours, rules, and which routes set
    /// an MTU.
    pub fn open() -> Result<Self, HostError> {
        let failed = |source| HostError::new("open netlink sockets", source);
        let notifications = Channel::subscribe(NETLINK_ROUTE, &GROUPS).map_err(failed)?;
        notifications.join_if_known(RTNLGRP_NEXTHOP);
        let requests = Channel::open(NETLINK_ROUTE).map_err(failed)?;
        let netdev = Netdev::open()
            .map_err(|source| HostError::new("find the netdev family of generic netlink", source))?;
        let readable = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let mut host = Self {
            requests,
            notifications,
            netdev,
            readable,
            links: Links::default(),
            neighbours: Neighbours::default(),
            routes: Routes::default(),
            narrow: Narrow::default(),
        };
        host.watch().map_err(failed)?;
        host.read_all()?;
        Ok(host)
    }

    /// Readable when events wait.
    pub fn monitor(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }

    /// Takes in what the kernel reported since the last call and appends what changed.
    pub fn poll(&mut self, events: &mut Vec<HostEvent>) -> Result<(), HostError> {
        let failed = |source| HostError::new("read notifications of the kernel", source);
        let Self { notifications, links, neighbours, routes, narrow, .. } = self;
        let mut routes_changed = false;
        let mut rules_changed = false;
        let outcome = notifications
            .notifications(|message| {
                match message.kind {
                    RTM_NEWROUTE => narrow.is_there(message.payload),
                    RTM_DELROUTE => narrow.is_gone(message.payload),
                    RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR => narrow.may_be_gone(),
                    _ => {}
                }
                match message.kind {
                    RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR => routes.forget(),
                    RTM_NEWRULE | RTM_DELRULE => rules_changed = true,
                    RTM_NEWROUTE | RTM_DELROUTE | RTM_NEWNETCONF | RTM_DELNETCONF | RTM_NEWNEXTHOP
                    | RTM_DELNEXTHOP => routes_changed = true,
                    _ => {}
                }
                match take_in(links, neighbours, &message) {
                    Ok(event) => events.extend(event),
                    Err(error) => {
                        tracing::warn!(kind = message.kind, %error, "netlink notification not understood");
                    }
                }
            })
            .map_err(failed)?;
        if rules_changed {
            routes
                .read_rules(&mut self.requests)
                .map_err(|source| HostError::new("read routing rules", source))?;
        }
        narrow.read_again(&mut self.requests).map_err(|source| HostError::new("read routes", source))?;
        if routes_changed || rules_changed {
            routes.forget();
            events.push(HostEvent::RoutesChanged);
        }
        if let Notifications::Lost = outcome {
            tracing::warn!("messages about changes of the host were lost (ENOBUFS): all of it is read anew");
            self.read_all()?;
            events.push(HostEvent::Resynced);
        }
        if let Some(netdev) = &mut self.netdev {
            netdev.poll(events).map_err(failed)?;
        }
        Ok(())
    }

    /// Whether a packet's way depends on where it came in and goes to, and on nothing else: `ip rule` has but the kernel's
    /// three.
    pub fn routes_by_destination(&self) -> bool {
        !self.routes.is_policy()
    }

    /// The prefixes that routes with an MTU lead to, each with the smallest that any route to an address there may set;
    /// none if they are what they were when last asked for.
    pub fn narrow_routes(&mut self) -> Option<Vec<(Ipv4Net, u32)>> {
        self.narrow.news()
    }

    /// An interface by its number.
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.link(ifindex)
    }

    /// An interface by its name.
    pub fn link_by_name(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// All interfaces.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter()
    }

    /// The IPv4 addresses of an interface, in the kernel's order.
    pub fn addresses(&self, ifindex: u32) -> &[Address] {
        self.links.addresses(ifindex)
    }

    /// The IPv4 addresses of all interfaces.
    pub fn local_addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.links.local_addresses()
    }

    /// Where the kernel would forward a packet.
    ///
    /// Policy rules and the source count as long as the ingress interface forwards (`ip_forward`); if it does not,
    /// the kernel refuses to look it up that way and the answer is the one for the gateway's own packets.
    pub fn route(&mut self, query: RouteQuery) -> Result<Route, RouteError> {
        self.routes.lookup(&mut self.requests, query)
    }

    /// Where a packet of the gateway's own from `source` goes next if it is to leave by `egress`.
    pub fn route_by(
        &mut self,
        egress: u32,
        source: Ipv4Addr,
        destination: Ipv4Addr,
    ) -> Result<Route, RouteError> {
        routes::lookup_by(&mut self.requests, egress, source, destination)
    }

    /// Every usable neighbour: interface, address, and what is known of it.
    pub fn neighbours(&self) -> impl Iterator<Item = (u32, Ipv4Addr, Neighbour)> {
        self.neighbours.iter()
    }

    /// How to reach a neighbour, if the kernel knows.
    pub fn neighbour(&self, ifindex: u32, addr: Ipv4Addr) -> Option<Neighbour> {
        self.neighbours.find(ifindex, addr)
    }

    /// Makes the kernel resolve a neighbour, or confirm a stale one. The answer is a
    /// [`HostEvent::NeighbourChanged`].
    pub fn resolve(&mut self, ifindex: u32, addr: Ipv4Addr) -> Result<(), HostError> {
        self.requests
            .execute(neighbours::resolve_request(ifindex, addr), NLM_F_CREATE)
            .map_err(|source| HostError::new(format!("resolve {addr} on interface {ifindex}"), source))
    }

    /// What XDP can do with an interface; none if the kernel (before 6.3) cannot tell.
    pub fn xdp_features(&mut self, ifindex: u32) -> Result<Option<XdpFeatures>, HostError> {
        let Some(netdev) = &mut self.netdev else { return Ok(None) };
        netdev
            .features(ifindex)
            .map(Some)
            .map_err(|source| HostError::new(format!("read the XDP features of interface {ifindex}"), source))
    }

    /// Makes one descriptor of those that report.
    fn watch(&self) -> io::Result<()> {
        let reporting = [Some(self.notifications.socket().as_fd()), self.netdev.as_ref().map(Netdev::fd)];
        for fd in reporting.into_iter().flatten() {
            epoll::add(&self.readable, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        }
        Ok(())
    }

    /// Reads everything anew.
    fn read_all(&mut self) -> Result<(), HostError> {
        self.links = Links::default();
        self.neighbours = Neighbours::default();
        let Self { requests, links, neighbours, routes, narrow, .. } = self;
        let mut addresses = AddressMessage::default();
        addresses.header.family = AddressFamily::Inet;
        let mut arp = NeighbourMessage::default();
        arp.header.family = AddressFamily::Inet;
        for (what, request) in [
            ("interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default())),
            ("addresses", RouteNetlinkMessage::GetAddress(addresses)),
            ("neighbours", RouteNetlinkMessage::GetNeighbour(arp)),
        ] {
            requests
                .dump(request, |message| take_in(links, neighbours, &message).map(drop))
                .map_err(|source| HostError::new(format!("read {what}"), source))?;
        }
        narrow.read(requests).map_err(|source| HostError::new("read routes", source))?;
        routes.read_rules(requests).map_err(|source| HostError::new("read routing rules", source))
    }
}

/// Brings what is known of links and neighbours up to date with one message.
fn take_in(
    links: &mut Links,
    neighbours: &mut Neighbours,
    message: &Message<'_>,
) -> Result<Option<HostEvent>, DecodeError> {
    match message.kind {
        RTM_NEWLINK => links.link_changed(message.payload),
        RTM_DELLINK => {
            let event = links.link_removed(message.payload)?;
            if let Some(HostEvent::LinkRemoved { index, .. }) = &event {
                neighbours.link_removed(*index);
            }
            Ok(event)
        }
        RTM_NEWADDR => links.address_added(message.payload),
        RTM_DELADDR => links.address_removed(message.payload),
        RTM_NEWNEIGH => neighbours.changed(message.payload),
        RTM_DELNEIGH => neighbours.removed(message.payload),
        _ => Ok(None),
    }
}

/// The `RTNLGRP_*` of linux/rtnetlink.h for links, neighbours, and IPv4 addresses, routes, rules, forwarding.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 8, 24];
const RTNLGRP_NEXTHOP: u32 = 32;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
