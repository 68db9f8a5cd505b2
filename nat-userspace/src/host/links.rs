//! Network interfaces and their IPv4 addresses.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_core::{DecodeError, NlasIterator, Parseable as _, parse_string, parse_u32};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{LinkFlags, LinkHeader, LinkLayerType},
};

use nat_common::wire::ETHERTYPE_VLAN;

use super::HostEvent;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of the interface.
    pub index: u32,
    /// Its name, which may change.
    pub name: String,
    /// Its Ethernet address; zero where it has none.
    pub mac: [u8; 6],
    /// The largest IP packet it takes.
    pub mtu: u32,
    /// Whether it is set up and has a carrier.
    pub up: bool,
    /// `veth`, `bridge`, `tun` …; none for hardware.
    pub kind: Option<String>,
    /// Receive queues it was made with; a driver may have fewer in use.
    pub rx_queues: u32,
    /// Whether its frames are Ethernet frames.
    pub ethernet: bool,
    /// The device it is stacked on, in the same namespace.
    pub parent: Option<u32>,
    /// EtherType and number of the VLAN that it is.
    pub vlan: Option<(u16, u16)>,
}

/// An IPv4 address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The interface's own address.
    pub addr: Ipv4Addr,
    /// Length of the subnet's prefix (of the peer's, on a point-to-point link).
    pub prefix: u8,
    /// The subnet's broadcast address, if it has one.
    pub broadcast: Option<Ipv4Addr>,
    /// Whether the kernel takes another address of this subnet as source.
    pub secondary: bool,
    /// Whether natgw added it.
    pub claimed: bool,
}

/// The interfaces of a namespace and their addresses.
#[derive(Debug, Default)]
pub(super) struct Links {
    links: BTreeMap<u32, Link>,
    addresses: BTreeMap<u32, Vec<Address>>,
}

impl Links {
    pub(super) fn link(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    pub(super) fn addresses(&self, index: u32) -> &[Address] {
        self.addresses.get(&index).map_or(&[], Vec::as_slice)
    }

    pub(super) fn local_addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.addresses.values().flatten().map(|address| address.addr)
    }

    /// Takes in an `RTM_NEWLINK`.
    ///
    /// Read attribute by attribute: a typed decoder refuses the whole message over one unknown attribute,
    /// and an interface must not become invisible because a newer kernel says more about it.
    pub(super) fn link_changed(&mut self, payload: &[u8]) -> Result<Option<HostEvent>, DecodeError> {
        let header = LinkHeader::parse(payload)?;
        // A bridge reports its ports under its own family, with attributes of another meaning.
        if header.interface_family != AddressFamily::Unspec {
            return Ok(None);
        }
        let known = self.links.get(&header.index);
        // Some notifications (wireless events) carry few attributes: what they leave out is as before.
        let mut link = known.cloned().unwrap_or_else(|| Link {
            index: header.index,
            name: String::new(),
            mac: [0; 6],
            mtu: 0,
            up: false,
            kind: None,
            rx_queues: 1,
            ethernet: false,
            parent: None,
            vlan: None,
        });
        link.up = header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
        link.ethernet = header.link_layer_type == LinkLayerType::Ether;
        // The index of a parent in another namespace says nothing here.
        let mut elsewhere = false;
        for attribute in NlasIterator::new(payload.get(LINK_HEADER..).unwrap_or_default()) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                IFLA_ADDRESS => link.mac = value.try_into().unwrap_or_default(),
                IFLA_IFNAME => link.name = parse_string(value)?,
                IFLA_MTU => link.mtu = parse_u32(value)?,
                IFLA_LINK => link.parent = Some(parse_u32(value)?),
                IFLA_LINK_NETNSID => elsewhere = true,
                IFLA_LINKINFO => {
                    let mut data = None;
                    for info in NlasIterator::new(value) {
                        let info = info?;
                        match info.kind() {
                            IFLA_INFO_KIND => link.kind = Some(parse_string(info.value())?),
                            IFLA_INFO_DATA => data = Some(info.value().to_vec()),
                            _ => {}
                        }
                    }
                    if link.kind.as_deref() == Some("vlan")
                        && let Some(data) = data
                    {
                        link.vlan = parse_vlan(&data)?;
                    }
                }
                IFLA_NUM_RX_QUEUES => link.rx_queues = parse_u32(value)?,
                _ => {}
            }
        }
        if elsewhere {
            link.parent = None;
        }
        if known == Some(&link) {
            return Ok(None);
        }
        self.links.insert(header.index, link);
        Ok(Some(HostEvent::LinkChanged(header.index)))
    }

    /// Takes in an `RTM_DELLINK`.
    pub(super) fn link_removed(&mut self, payload: &[u8]) -> Result<Option<HostEvent>, DecodeError> {
        let header = LinkHeader::parse(payload)?;
        // A port that leaves a bridge is "deleted" in the bridge's family only.
        if header.interface_family != AddressFamily::Unspec {
            return Ok(None);
        }
        self.addresses.remove(&header.index);
        let removed = self.links.remove(&header.index);
        Ok(removed.map(|link| HostEvent::LinkRemoved { index: link.index, name: link.name }))
    }

    /// Takes in an `RTM_NEWADDR`.
    pub(super) fn address_added(&mut self, payload: &[u8]) -> Result<Option<HostEvent>, DecodeError> {
        let Some((ifindex, address)) = parse_address(payload)? else { return Ok(None) };
        let addresses = self.addresses.entry(ifindex).or_default();
        if let Some(known) = addresses.iter_mut().find(|known| same(known, &address)) {
            *known = address;
            return Ok(None);
        }
        addresses.push(address);
        Ok(Some(HostEvent::AddressAdded { ifindex, addr: address.addr }))
    }

    /// Takes in an `RTM_DELADDR`.
    pub(super) fn address_removed(&mut self, payload: &[u8]) -> Result<Option<HostEvent>, DecodeError> {
        let Some((ifindex, address)) = parse_address(payload)? else { return Ok(None) };
        let addresses = self.addresses.entry(ifindex).or_default();
        let before = addresses.len();
        addresses.retain(|known| !same(known, &address));
        let gone = before > addresses.len() && addresses.iter().all(|known| known.addr != address.addr);
        Ok(gone.then_some(HostEvent::AddressRemoved { ifindex, addr: address.addr }))
    }
}

/// EtherType and number from what a VLAN device says of itself.
fn parse_vlan(data: &[u8]) -> Result<Option<(u16, u16)>, DecodeError> {
    let (mut number, mut kind) = (None, ETHERTYPE_VLAN);
    for attribute in NlasIterator::new(data) {
        let attribute = attribute?;
        match (attribute.kind(), attribute.value()) {
            (IFLA_VLAN_ID, &[a, b]) => number = Some(u16::from_ne_bytes([a, b])),
            (IFLA_VLAN_PROTOCOL, &[a, b]) => kind = u16::from_be_bytes([a, b]),
            _ => {}
        }
    }
    Ok(number.map(|number| (kind, number)))
}

fn same(one: &Address, other: &Address) -> bool {
    one.addr == other.addr && one.prefix == other.prefix
}

fn parse_address(payload: &[u8]) -> Result<Option<(u32, Address)>, DecodeError> {
    let message = AddressMessage::parse(payload)?;
    if message.header.family != AddressFamily::Inet {
        return Ok(None);
    }
    let (mut local, mut peer, mut broadcast, mut claimed) = (None, None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(addr)) => local = Some(*addr),
            AddressAttribute::Address(IpAddr::V4(addr)) => peer = Some(*addr),
            AddressAttribute::Broadcast(addr) => broadcast = Some(*addr),
            AddressAttribute::Protocol(origin) => claimed = u8::from(*origin) == ORIGIN,
            _ => {}
        }
    }
    let Some(addr) = local.or(peer) else { return Ok(None) };
    let secondary = message.header.flags.contains(AddressHeaderFlags::Secondary);
    Ok(Some((
        message.header.index,
        Address { addr, prefix: message.header.prefix_len, broadcast, secondary, claimed },
    )))
}

/// `IFA_PROTO` of what natgw adds (kernel 5.18, commit 47f0bd503210; older kernels ignore it).
pub(super) const ORIGIN: u8 = 0x4e;

/// `struct ifinfomsg`
const LINK_HEADER: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_LINK: u16 = 5;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// As `ip link add link eth0 name eth0.5 type vlan id 5` has it, and with `proto 802.1ad`.
    #[test]
    fn a_vlan_says_its_number_and_its_parent() {
        for (protocol, kind) in [([0x81, 0], 0x8100), ([0x88, 0xa8], 0x88a8)] {
            let data =
                [attribute(IFLA_VLAN_PROTOCOL, &protocol), attribute(IFLA_VLAN_ID, &5u16.to_ne_bytes())];
            let info = [attribute(IFLA_INFO_KIND, b"vlan\0"), attribute(IFLA_INFO_DATA, &data.concat())];
            let mut header = [0; LINK_HEADER];
            header[2] = 1;
            header[4] = 7;
            let message = [
                &header[..],
                &attribute(IFLA_IFNAME, b"eth0.5\0"),
                &attribute(IFLA_LINK, &2u32.to_ne_bytes()),
                &attribute(IFLA_LINKINFO, &info.concat()),
            ]
            .concat();
            let mut links = Links::default();
            links.link_changed(&message).expect("a message");
            let link = links.link(7).expect("the link");
            assert_eq!((link.parent, link.vlan), (Some(2), Some((kind, 5))));
            // A parent in another namespace.
            let message = [message, attribute(IFLA_LINK_NETNSID, &[0; 4])].concat();
            links.link_changed(&message).expect("a message");
            assert_eq!(links.link(7).expect("the link").parent, None);
        }
    }
}
