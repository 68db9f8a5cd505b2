//! Addresses added to interfaces, marked as natgw's own (`ip address` shows `proto 0x4e`), so that
//! a later daemon and the administrator know where they came from.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::links::ORIGIN;
use super::{Host, HostError};

impl Host {
    /// Adds a host address to an interface.
    pub fn add_address(&mut self, ifindex: u32, addr: Ipv4Addr) -> Result<(), HostError> {
        let message = RouteNetlinkMessage::NewAddress(host_address(ifindex, addr));
        self.requests
            .execute(message, NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|source| HostError::new("add an address", source))
    }

    /// Takes a host address off an interface.
    pub fn remove_address(&mut self, ifindex: u32, addr: Ipv4Addr) -> Result<(), HostError> {
        let message = RouteNetlinkMessage::DelAddress(host_address(ifindex, addr));
        self.requests.execute(message, 0).map_err(|source| HostError::new("remove an address", source))
    }

    /// Broadcast addresses of every subnet the gateway is in.
    pub fn broadcasts(&self) -> Vec<Ipv4Addr> {
        self.links()
            .flat_map(|link| self.addresses(link.index))
            .filter_map(|address| address.broadcast)
            .collect()
    }
}

fn host_address(ifindex: u32, addr: Ipv4Addr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.index = ifindex;
    message.attributes.push(AddressAttribute::Local(IpAddr::V4(addr)));
    message.attributes.push(AddressAttribute::Address(IpAddr::V4(addr)));
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(ORIGIN)));
    message
}
