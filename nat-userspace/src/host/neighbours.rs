//! The kernel's ARP cache: who answers at which Ethernet address.

use std::{collections::HashMap, net::Ipv4Addr};

use netlink_packet_core::{DecodeError, Parseable as _};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{self, NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
};

use super::HostEvent;

/// How much the kernel trusts what it knows of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighbourState {
    /// Confirmed not long ago.
    Reachable,
    /// Known, not confirmed of late: usable, and worth a confirmation.
    Stale,
    /// Used while stale: a confirmation will be asked for.
    Delay,
    /// A confirmation has been asked for.
    Probe,
    /// Set by an administrator.
    Permanent,
    /// On a link that needs no resolution.
    NoArp,
}

/// A neighbour that frames can be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// What the kernel thinks of it.
    pub state: NeighbourState,
}

/// The usable neighbours of a namespace.
#[derive(Debug, Default)]
pub(super) struct Neighbours(HashMap<(u32, Ipv4Addr), Neighbour>);

impl Neighbours {
    pub(super) fn find(&self, ifindex: u32, addr: Ipv4Addr) -> Option<Neighbour> {
        self.0.get(&(ifindex, addr)).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Ipv4Addr, Neighbour)> {
        self.0.iter().map(|(&(ifindex, addr), &neighbour)| (ifindex, addr, neighbour))
    }

    /// Takes in an `RTM_NEWNEIGH`.
    pub(super) fn changed(&mut self, payload: &[u8]) -> Result<Option<HostEvent>, DecodeError> {
        let Some((ifindex, addr, message)) = parse(payload)? else { return Ok(None) };
        let neighbour = usable(&message);
        let before = match neighbour {
            Some(neighbour) => self.0.insert((ifindex, addr), neighbour),
            None => self.0.remove(&(ifindex, addr)),
        };
        let failed = message.header.state == neighbour::NeighbourState::Failed;
        // A failure is told each time: somebody asked for this neighbour and waits.
        let news = failed || before != neighbour;
        Ok(news.then_some(HostEvent::NeighbourChanged { ifindex, addr, neighbour, failed }))
    }

    /// Takes in an `RTM_DELNEIGH`.
    pub(super) fn removed(&mut self, payload: &[u8]) -> Result<Option<HostEvent>, DecodeError> {
        let Some((ifindex, addr, _)) = parse(payload)? else { return Ok(None) };
        let known = self.0.remove(&(ifindex, addr));
        Ok(known.map(|_| HostEvent::NeighbourChanged { ifindex, addr, neighbour: None, failed: false }))
    }

    /// Forgets the neighbours of an interface that is gone.
    pub(super) fn link_removed(&mut self, ifindex: u32) {
        self.0.retain(|(index, _), _| *index != ifindex);
    }
}

/// The request that makes the kernel resolve a neighbour, or confirm a stale one, as if it had a packet for it.
pub(super) fn resolve_request(ifindex: u32, addr: Ipv4Addr) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = ifindex;
    message.header.flags = NeighbourFlags::Use;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)));
    RouteNetlinkMessage::NewNeighbour(message)
}

fn parse(payload: &[u8]) -> Result<Option<(u32, Ipv4Addr, NeighbourMessage)>, DecodeError> {
    let message = NeighbourMessage::parse(payload)?;
    // Bridges report their forwarding tables as neighbours; proxy entries are our own promises.
    if message.header.family != AddressFamily::Inet || message.header.flags.contains(NeighbourFlags::Proxy) {
        return Ok(None);
    }
    let addr = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => Some(*addr),
        _ => None,
    });
    Ok(addr.map(|addr| (message.header.ifindex, addr, message)))
}

fn usable(message: &NeighbourMessage) -> Option<Neighbour> {
    let state = match message.header.state {
        neighbour::NeighbourState::Reachable => NeighbourState::Reachable,
        neighbour::NeighbourState::Stale => NeighbourState::Stale,
        neighbour::NeighbourState::Delay => NeighbourState::Delay,
        neighbour::NeighbourState::Probe => NeighbourState::Probe,
        neighbour::NeighbourState::Permanent => NeighbourState::Permanent,
        neighbour::NeighbourState::Noarp => NeighbourState::NoArp,
        _ => return None,
    };
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => {
            Some(Neighbour { mac: mac.as_slice().try_into().ok()?, state })
        }
        _ => None,
    })
}
